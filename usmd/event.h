/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reading a userfaultfd and applying its events to the page table.  Faults are
 * handed on (worker.h).  Any thread may find itself reading; it never waits for a
 * policy, an agent or a disk: where a FORK or REMAP has to wait until pages on their way
 * out have arrived, the journal is left as it is (LATCH_BARRIER, process.h), and whoever
 * reads next looks whether it can go on.
 */
#pragma once

#include <stdint.h>

#include "process.h"

/* Something is to be read: reads it, or leaves it to who holds the latch. */
void event_readable(struct process *p);
/* The caller holds the latch exclusively; it is let go. */
void event_read_latched(struct process *p);
/*
 * A new engine, single-threaded: p's latch is held from here on, so that no page is
 * installed before what the dead engine had read is applied; the agent gets its gate
 * back and carries nothing out that an unapplied event has made stale.
 */
void event_hold(struct process *p);
/* With all threads running: applies the rest of the dead engine's journal, reads on, lets
 * the latch go. */
void event_resume(struct process *p);
/* Its program has ended and nothing of it is on its way out any more: what waited at a barrier
 * is applied, as a child may be in it.  The caller holds the latch exclusively, and keeps it. */
void event_finish(struct process *p);

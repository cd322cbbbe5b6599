/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reading a userfaultfd and applying its events to the page table.  Faults are
 * handed on (worker.h).  Any thread may find itself reading; it never waits for a
 * policy, and for an agent or a disk only when a FORK or REMAP has to wait until
 * pages on their way out have arrived.
 */
#pragma once

#include <stdint.h>

#include "process.h"

/* Something is to be read: reads it, or leaves it to who holds the latch. */
void event_readable(struct process *p);
/* The caller holds the latch exclusively; it is let go. */
void event_read_latched(struct process *p);
/* A new engine: applies what the dead one had read but not applied, gives the agent's
 * gate back.  Single-threaded, before the page tables are scanned; slots and frames are
 * not counted yet, so references are left alone. */
void event_replay(struct process *p);

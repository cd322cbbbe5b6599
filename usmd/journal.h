/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the journal says of what programs do with their pages: sums at level info, single pages at
 * level debug.  Not under a latch: whoever reads the log may be slow.
 */
#pragma once

#include "fill.h"
#include "process.h"

/* When a process had its last entries; the main thread's. */
struct journal_turn {
	uint32_t generation;
	uint64_t first_beat, last_beat;
};

/* Each second for ten seconds, then each ten seconds.  beat: seconds, of whatever beginning. */
bool journal_is_due(struct journal_turn *t, uint32_t generation, uint64_t beat);

/* One entry for each kind of which there was any since the last one, by whatever thread or engine.
 * Also when a process ends: most live for less than a second. */
void journal_say_sums(struct process *p);

/* At level debug, else nothing: the pages that a fill has brought in; one that has left (slot 0:
 * it held zeros). */
void journal_say_filled(const struct fill *f);
void journal_say_evicted(struct process *p, uint64_t vpn, uint32_t frame, uint32_t slot);

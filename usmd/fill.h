/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A fill: pages of one process that are on their way in, in the order of these calls:
 *
 *   fill_claim_*()   NONE, SWAPPED or RESIDENT -> FILLING, under the latch
 *   fill_frames()    a frame for each, by the policy
 *   fill_read()      what is in slots
 *   fill_install()   FILLING -> RESIDENT, under the latch
 *
 * Each of them may give pages back: n is smaller then, and what was given back is what it was.
 * For workers, and for the janitor.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include <usm/policy.h>

#include "mechanism-userfault.h"
#include "process.h"

/* The kernel was short of memory: what failed is tried again after this. */
#define FILL_MEMORY_USEC 1000

/* Pages [vpn, vpn + n) claimed as FILLING; one leaf, so entries are consecutive. */
struct fill {
	struct process *p;
	uint64_t vpn;
	page_entry *entry;
	unsigned n;
	bool swapped; /* all from slots, or all without content */
	bool urgent;  /* the agent's own fault: what frees frames may be waiting for it */
	uint32_t slot[USM_OPS_BATCH];
	uint32_t frame[USM_OPS_BATCH]; /* 0: none yet, or none at all: see publish_as() in fill.c */
};

/* A page that the program has zapped, or that the kernel has dropped (LAZY); the fill's first.
 * Under the latch.  False: it is not what it was. */
bool fill_claim_resident(struct fill *f, page_entry *e, uint64_t v);
/* One more entry, of the kind that `swapped` says.  Under the latch.  False: it is of another. */
bool fill_claim_next(struct fill *f, page_entry *e);
/* Gives a claim back: the entry is what it was, or NONE if it was unmapped meanwhile.
 * Under the latch; the caller wakes the page. */
void fill_unclaim(struct fill *f, unsigned i);
/*
 * Frames for the fill's pages: the first one by all means, the others only while there are
 * plenty.  wait: as "oom" says, if there is none; lend: without frames.  Outside the latch.
 * 0, or -ENOMEM, -ESRCH, -EAGAIN (a barrier): the whole fill was given back; -EINPROGRESS: also, as the program is
 * over its limit, and its faults are woken when some of its pages have left.
 */
int fill_frames(struct fill *f, enum usm_event_type type, bool wait, bool lend);
/* Reads the slots' content, a page for each of the fill.  What cannot be read is lost, and the
 * program killed.  Outside the latch.  0, or -errno: nothing is left of the fill; -ENOMEM: there
 * was no memory to read it, and the page faults again. */
int fill_read(struct fill *f, uint8_t *buffer);
/*
 * Installs the pages and publishes them.  Everything is looked at again under the
 * latch: the kernel says EAGAIN as long as an event is unread, and the latch says
 * that what was read has been applied; at a barrier all is given back.  0, or -ESRCH.
 */
int fill_install(struct fill *f, const uint8_t *buffer);
/* What happens at every fault when memory is short is logged every five seconds: now? */
bool fill_log_is_due(_Atomic uint64_t *last);

/* Who faulted on it goes on, or faults again. */
static inline void fill_wake(struct process *p, uint64_t vpn)
{
	userfault_wake(p->shared->uffd, vpn, 1);
}

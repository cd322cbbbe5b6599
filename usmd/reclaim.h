/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reclaim: one thread that owns every EVICTING page.  It asks policies for victims,
 * has the programs' agents take the pages out (attach.h), writes them to swap
 * devices, and publishes where they are.  Operations of several processes are under
 * way at once; the thread never waits for one agent.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core.h"

struct pool;
struct process;

int reclaim_start(struct core *c);
void reclaim_stop(struct core *c);

/* After frames were taken: wakes the thread when free frames are below the low watermark. */
void reclaim_kick(struct core *c);

/*
 * A fault has found no free frame.  Waits until there is one, or until the thread has
 * found nothing that could leave.  True: look again.
 */
bool reclaim_wait(struct core *c);

/* A fault of p was dropped, as p is over its limit: it is woken when pages of p have left, or
 * could not.  Nobody waits: that would be a worker less for the others. */
void reclaim_park(struct process *p);
/* p was over its limit a moment ago and nothing of it could leave. */
bool reclaim_is_stuck(const struct process *p);

/* Is p over its limit without a fault that says so (it was lowered, pages were adopted)?
 * Then pages leave, as long as some can.  Any thread. */
void reclaim_check_limit(struct process *p);

/* A policy wants these frames out now: waits until they are, or cannot leave. */
void reclaim_frames_now(struct pool *pool, const uint32_t *frames, unsigned n);

/*
 * A user's request: up to `pages` pages of one process.  Returns a ticket (> 0), or
 * -EBUSY when too many are under way.  reclaim_request_done: true when finished, with
 * how many left; the ticket is free then.
 */
int reclaim_request(struct core *c, struct process *p, uint64_t pages);
bool reclaim_request_done(struct core *c, int ticket, uint64_t *ret_evicted,
			  const char **ret_reason);

/* The agent of p is there: poll its socket.  Any thread. */
void reclaim_add(struct process *p);
/* Before p is torn down: its operation is given up, nr_evicting becomes 0.  Waits. */
void reclaim_forget(struct process *p);

/* p is being let go and has LAZY pages: they become its own as soon as its agent has time for it.
 * The janitor, each tick that it still has some. */
void reclaim_rescue(struct process *p);

/* Forgets the clean slots that lie on devices being removed.  The janitor. */
void reclaim_drop_draining(struct core *c);

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Workers: the threads that serve faults, as leader and followers.
 *
 * `workers N` starts N + 1 equal threads, all waiting for the userfaultfds.  Who
 * gets a message serves it itself, so a fault costs one wake-up.  Serving may wait
 * (for a policy, a disk, a free frame) and needs one of N tokens; a thread that
 * gets none queues its faults for those who have one and goes back to reading.  So
 * there is always a thread that reads: agents and programs whose events must be
 * read never wait for a policy or a disk.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "process.h"

struct fault {
	uint32_t process, generation;
	uint64_t vpn;
	uint32_t flags; /* UFFD_PAGEFAULT_FLAG_* */
	uint32_t tid;	/* in its own pid namespace */
	uint64_t nsec;	/* when it was read */
};

/* Buffers of one thread that serves faults; locked memory. */
struct worker {
	struct core *core;
	struct arena_worker *record;
	unsigned number;
	uint8_t *buffer; /* USM_OPS_BATCH pages for swap-in */
	struct fault *local;
	unsigned nr_local, next_local; /* those before next_local have been served */
	bool handing_over;
	/* Following the thread that faults (worker.c). */
	uint32_t follow_tid;
	unsigned nr_followed;
	int cpu; /* where this thread is pinned, -1: nowhere */
};

/* Starts n + 1 threads.  -errno. */
int workers_start(struct core *c, unsigned n);
/* Tells them to end and waits. */
void workers_stop(struct core *c);
/* The calling thread gets what a worker has, without being one (janitor, recovery). */
int worker_init(struct core *c, unsigned record, struct worker *ret);
void worker_done(struct worker *w);

/* Hands a fault on.  Any thread, any latch. */
void worker_fault(struct process *p, const struct fault *f);
/*
 * The calling thread is about to wait for frames: what it has read and not served goes to
 * others, and agents' faults, which may be what the frames wait for, are served at once.  No
 * latch is held, and the thread's buffer is not in use.
 */
void worker_before_wait(void);
/* The agent holds the gate, or the barrier is over: a worker is to read p in a moment. */
void worker_defer(struct process *p);
/* p has ended and nobody has it in hand. */
void worker_forget(struct process *p);

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the engine's threads share: the arena, the processes, the pools, the swap
 * devices and the tunables.  Everything here is the engine's own memory and is
 * rebuilt by a new engine.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "arena.h"

struct pool;
struct process;
struct reclaim;
struct worker;

struct core {
	struct arena *arena;
	struct usm_swap *swap;
	struct process *process;	  /* ARENA_PROCESSES, by number */
	struct pool *pool[ARENA_POOLS];	  /* by number; NULL: none */
	struct reclaim *reclaim;

	/* Frames in use in all pools together, and how many may be. */
	_Atomic int64_t nr_used;
	_Atomic int64_t nr_budget;
	_Atomic int64_t low_frames, high_frames; /* watermarks, free frames */
	_Atomic unsigned faultaround;		 /* pages */
	_Atomic unsigned oom;			 /* enum usm_oom_kind */
	_Atomic unsigned grace_sec;		 /* an agent without a daemon waits so long */
	_Atomic unsigned evict_modes;		 /* USM_EVICT_* */
	unsigned register_mode;			 /* UFFDIO_REGISTER_MODE_* */
	_Atomic bool stopping;
	_Atomic bool drain_swap; /* a swap device is being removed */
	_Atomic bool swap_tight; /* few free slots: remember no clean ones */

	int epoll_fd; /* userfaultfds: workers wait here */
	int kick_fd;  /* eventfd in it: the fault queue is not empty, or stop */
	int main_fd;  /* eventfd: the main thread has something to look at */
	int janitor_fd; /* eventfd: a process changed state */
	const void *zeros; /* USM_OPS_BATCH pages, all one zero page */
};

static inline uint64_t now_nsec(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

/* Coarse time, 100 ms; the same for an engine and the next. */
uint64_t now_tick(void);

static inline int64_t core_free_frames(struct core *c)
{
	return atomic_load_explicit(&c->nr_budget, memory_order_relaxed) -
	       atomic_load_explicit(&c->nr_used, memory_order_relaxed);
}

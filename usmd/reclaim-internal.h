/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The reclaim thread's own fields; for reclaim.c, operation.c, collect.c and undo.c alone. */
#pragma once

#include <pthread.h>

#include "process.h"
#include "reclaim.h"

/* Requests of users to evict, under way at once. */
#define RECLAIM_REQUESTS 32

struct request {
	bool used, done;
	uint32_t process, generation;
	uint64_t want, evicted;
	unsigned fruitless;
	unsigned not_written; /* operations in a row of which no page could be written */
	const char *reason;
};

struct reclaim {
	struct core *core;
	pthread_t thread;
	int epoll_fd, kick_fd;
	_Atomic bool stop, kicked;
	bool reclaiming;
	unsigned lent_turn;
	uint64_t nr_stayed;	 /* pages in a row that could not leave */
	_Atomic uint64_t exhausted_nsec; /* when all had stayed, 0: some left since */
	unsigned nr_posted; /* operations under way that will give frames, or lead to some */
	unsigned nr_prompt; /* those of them that are not late */
	bool busy;	    /* a process's events were just being applied: it may have victims */
	bool removed;	    /* pages were passed over because a zap of them may be pending */
	uint64_t removed_nsec; /* since when only such pages are left, 0: others are */
	bool stalled;	    /* an agent stands still in the middle of an operation */
	bool again;	    /* an operation has ended, and its events are just being applied */
	struct arena_worker *record;

	pthread_mutex_t lock; /* what follows; leaf */
	pthread_cond_t cond;
	uint64_t idle_passes;
	unsigned nr_waiting;
	struct request request[RECLAIM_REQUESTS];
	struct {
		struct pool *pool;
		uint32_t frame;
	} now[USM_OPS_BATCH];
	unsigned nr_now;
	uint64_t now_posted, now_done; /* victims handed over / gone through */

	/* One batch's working memory. */
	int32_t res[USM_OPS_BATCH];
	page_entry *entry[USM_OPS_BATCH];
};

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A pool: the frames of one policy set.
 *
 * On the userfault mechanism a frame is a right to one resident page, with a
 * number that the policy knows as an address.  [first, first + nr) belong to the
 * set; nr more are lent by usmd itself when nothing can be evicted ("oom exceed",
 * bringing pages back at the end), unknown to the policy.
 *
 * A frame in use has an owner (process, page) in the arena, written before the
 * page-table entry that names the frame.  Frames that become free are pushed on
 * the pool's freed stack, without a lock, by whoever frees them; pool_flush()
 * tells the policy, outside every latch.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <usm/policy.h>

#include "core.h"

struct policy_set;
struct process;

struct pool {
	struct core *core;
	struct arena_pool *shared;
	struct policy_set *set; /* NULL: usmd's own first-fit and FIFO */
	unsigned number;
	uint32_t first, nr;
	struct page *pages; /* nr entries */
	_Atomic uint8_t *taken_by; /* the policy of the set that took the frame, + 1; 0: usmd itself */
	_Atomic uint32_t victims_turn; /* process whose policy is to name victims next */
	_Atomic uint32_t freed; /* head of the freed stack: frame - first + 1 */
	_Atomic uint32_t *freed_next;
	_Atomic uint8_t *announced; /* is on the freed stack */
	_Atomic uint32_t alloc_hint, hand;
	_Atomic uint64_t nr_used, nr_lent;
};

/* A pool of nr frames with its arena record at number; first is taken from the record if
 * it is in use already (a new engine).  -ENOMEM, -ENOSPC. */
int pool_new(struct core *c, unsigned number, uint32_t nr, struct pool **ret);
struct pool *pool_free(struct pool *pool);

/* Synthetic addresses start well above zero, so that 0 is never a frame's address. */
#define POOL_BASE 0x100000000ull
static inline uint64_t pool_paddr(uint32_t frame)
{
	return POOL_BASE + ((uint64_t)frame << 12);
}

struct pool *pool_of_frame(struct core *c, uint32_t frame);
/* Takes a free frame of the pool for a page. False: not free. */
bool pool_take(struct pool *pool, uint32_t frame, uint32_t process, uint64_t vpn);
/* Any free frame, first fit: usmd's own choice.  False: none. */
bool pool_take_any(struct pool *pool, uint32_t process, uint64_t vpn, uint32_t *ret_frame);
/* A lent frame, over the pool's size.  False: even those are used up. */
bool pool_take_lent(struct pool *pool, uint32_t process, uint64_t vpn, uint32_t *ret_frame);
static inline bool pool_is_lent(const struct pool *pool, uint32_t frame)
{
	return frame - pool->first >= pool->nr;
}
/* Frees a frame, with the clean slot that it remembers.  The page-table entry must not
 * name it any more.  Any context. */
void pool_release(struct core *c, uint32_t frame);
/* The policy will be told that the frame is free: once, however often it is announced. */
void pool_announce_free(struct pool *pool, uint32_t frame);
/* Tells the policy of the frames freed since the last call. Outside latches. */
void pool_flush(struct pool *pool);
/* The page moved in its process (mremap), or is accounted for by a relative now (family.h). */
void pool_moved(struct core *c, uint32_t frame, uint32_t process, uint64_t vpn);
/* The next frames in use in the order of their numbers, round and round, at most max;
 * process < 0: of any. */
unsigned pool_hand(struct pool *pool, int process, uint32_t *hand, uint32_t *frames, unsigned max);
/* usmd's own choice of victims, without the policy: lent frames first, then all in turn. */
unsigned pool_victims(struct pool *pool, uint32_t *frames, unsigned max);

static inline struct arena_frame *pool_frame(struct core *c, uint32_t frame)
{
	return &c->arena->frame[frame];
}

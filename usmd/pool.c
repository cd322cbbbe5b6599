/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <stdlib.h>

#include "lib/cleanup.h"
#include "policy.h"
#include "pool.h"

int pool_new(struct core *c, unsigned number, uint32_t nr, struct pool **ret)
{
	struct arena_pool *shared = &c->arena->h->pool[number];
	struct pool *pool = calloc(1, sizeof(*pool));
	int r;

	if (!pool)
		return -ENOMEM;
	pool->core = c;
	pool->shared = shared;
	pool->number = number;
	if (!atomic_load(&shared->in_use)) {
		uint64_t end = (uint64_t)c->arena->h->nr_frames_assigned + 2ull * nr;

		if (end >= c->arena->h->nr_frames) {
			pool_free(pool);
			return -ENOSPC;
		}
		shared->first = MAX(c->arena->h->nr_frames_assigned, 1u);
		shared->nr = nr;
	}
	pool->first = shared->first;
	pool->nr = shared->nr;
	pool->pages = calloc(pool->nr, sizeof(*pool->pages));
	pool->taken_by = calloc(pool->nr, sizeof(*pool->taken_by));
	pool->freed_next = calloc(pool->nr, sizeof(*pool->freed_next));
	pool->announced = calloc(pool->nr, sizeof(*pool->announced));
	if (!pool->pages || !pool->taken_by || !pool->freed_next || !pool->announced) {
		pool_free(pool);
		return -ENOMEM;
	}
	r = arena_reserve(c->arena, pool_frame(c, pool->first),
			  2 * (size_t)pool->nr * sizeof(struct arena_frame));
	if (r < 0) {
		pool_free(pool);
		return r;
	}
	for (uint32_t i = 0; i < pool->nr; i++) {
		pool->pages[i].physicalAddress = pool_paddr(pool->first + i);
		pool->pages[i].process = -1;
	}
	c->arena->h->nr_frames_assigned =
		MAX(c->arena->h->nr_frames_assigned, pool->first + 2 * pool->nr);
	atomic_store(&shared->in_use, 1);
	*ret = pool;
	return 0;
}

struct pool *pool_free(struct pool *pool)
{
	if (!pool)
		return NULL;
	free(pool->pages);
	free((void *)pool->taken_by);
	free((void *)pool->freed_next);
	free((void *)pool->announced);
	free(pool);
	return NULL;
}

struct pool *pool_of_frame(struct core *c, uint32_t frame)
{
	for (unsigned i = 0; i < ARENA_POOLS; i++) {
		struct pool *pool = c->pool[i];

		if (pool && frame >= pool->first && frame - pool->first < 2 * pool->nr)
			return pool;
	}
	return NULL;
}

bool pool_take(struct pool *pool, uint32_t frame, uint32_t process, uint64_t vpn)
{
	struct arena_frame *f = pool_frame(pool->core, frame);
	uint64_t free = 0;

	if (!atomic_compare_exchange_strong(&f->owner, &free, ARENA_OWNER(process, vpn)))
		return false;
	f->born_msec = (uint32_t)(now_nsec() / 1000000);
	atomic_store_explicit(&f->clean_slot, 0, memory_order_relaxed);
	atomic_fetch_add(&pool->nr_used, 1);
	atomic_fetch_add(&pool->core->nr_used, 1);
	return true;
}

static bool take_between(struct pool *pool, uint32_t start, uint32_t n, uint32_t process,
			 uint64_t vpn, uint32_t *ret_frame)
{
	uint32_t hint = atomic_load_explicit(&pool->alloc_hint, memory_order_relaxed);

	for (uint32_t i = 0; i < n; i++) {
		uint32_t frame = pool->first + start + (hint + i) % n;

		if (atomic_load_explicit(&pool_frame(pool->core, frame)->owner,
					 memory_order_relaxed))
			continue;
		if (!pool_take(pool, frame, process, vpn))
			continue;
		atomic_store_explicit(&pool->alloc_hint, (hint + i + 1) % n, memory_order_relaxed);
		if (!pool_is_lent(pool, frame))
			pool->taken_by[frame - pool->first] = 0;
		*ret_frame = frame;
		return true;
	}
	return false;
}

bool pool_take_any(struct pool *pool, uint32_t process, uint64_t vpn, uint32_t *ret_frame)
{
	return take_between(pool, 0, pool->nr, process, vpn, ret_frame);
}

bool pool_take_lent(struct pool *pool, uint32_t process, uint64_t vpn, uint32_t *ret_frame)
{
	if (!take_between(pool, pool->nr, pool->nr, process, vpn, ret_frame))
		return false;
	atomic_fetch_add(&pool->nr_lent, 1);
	return true;
}

void pool_release(struct core *c, uint32_t frame)
{
	struct arena_frame *f = pool_frame(c, frame);
	struct pool *pool = pool_of_frame(c, frame);
	uint32_t slot, i = frame - pool->first;

	slot = atomic_exchange(&f->clean_slot, 0);
	if (slot)
		usm_swap_unref(c->swap, slot);
	if (i < pool->nr) {
		pool->pages[i].virtualAddress = 0;
		pool->pages[i].process = -1;
	}
	atomic_store(&f->owner, 0);
	atomic_fetch_sub(&pool->nr_used, 1);
	atomic_fetch_sub(&c->nr_used, 1);
	if (i >= pool->nr) {
		atomic_fetch_sub(&pool->nr_lent, 1);
		return;
	}
	pool_announce_free(pool, frame);
}

void pool_announce_free(struct pool *pool, uint32_t frame)
{
	uint32_t head, i = frame - pool->first;

	if (atomic_exchange(&pool->announced[i], 1))
		return;
	head = atomic_load(&pool->freed);
	do
		atomic_store_explicit(&pool->freed_next[i], head, memory_order_relaxed);
	while (!atomic_compare_exchange_weak(&pool->freed, &head, i + 1));
}

void pool_flush(struct pool *pool)
{
	uint32_t i;

	/* The whole stack is taken at once, so that a frame that is freed again
	 * meanwhile cannot confuse the list. */
	if (!atomic_load_explicit(&pool->freed, memory_order_relaxed))
		return;
	i = atomic_exchange(&pool->freed, 0);
	while (i) {
		uint32_t next = atomic_load_explicit(&pool->freed_next[i - 1], memory_order_relaxed);

		atomic_store(&pool->announced[i - 1], 0);
		/* Taken again meanwhile, if usmd chose it itself or the policy knew already. */
		if (!atomic_load(&pool_frame(pool->core, pool->first + i - 1)->owner))
			policy_frame_freed(pool, &pool->pages[i - 1]);
		i = next;
	}
}

void pool_moved(struct core *c, uint32_t frame, uint32_t process, uint64_t vpn)
{
	struct pool *pool = pool_of_frame(c, frame);

	atomic_store(&pool_frame(c, frame)->owner, ARENA_OWNER(process, vpn));
	if (pool_is_lent(pool, frame))
		return;
	pool->pages[frame - pool->first].virtualAddress = vpn << 12;
	pool->pages[frame - pool->first].process = (int)process;
}

unsigned pool_victims(struct pool *pool, uint32_t *frames, unsigned max)
{
	uint32_t hand = atomic_load(&pool->hand);
	unsigned n = pool_hand(pool, -1, &hand, frames, max);

	atomic_store(&pool->hand, hand);
	return n;
}

unsigned pool_hand(struct pool *pool, int process, uint32_t *hand, uint32_t *frames, unsigned max)
{
	uint32_t n = 2 * pool->nr;
	unsigned found = 0;

	/* Lent frames first: they are over the pool.  When there are more than fit, the next call
	 * goes on behind these, which perhaps cannot leave. */
	if (process < 0 && atomic_load(&pool->nr_lent)) {
		uint32_t i;

		for (i = 0; i < pool->nr && found < max; i++) {
			uint32_t frame = pool->first + pool->nr + (*hand + i) % pool->nr;

			if (atomic_load_explicit(&pool_frame(pool->core, frame)->owner,
						 memory_order_relaxed))
				frames[found++] = frame;
		}
		if (found == max)
			*hand += i;
	}
	for (uint32_t i = 0; i < n && found < max; i++) {
		uint32_t at = (*hand)++ % n;
		uint64_t owner = atomic_load_explicit(&pool_frame(pool->core, pool->first + at)->owner,
						      memory_order_relaxed);

		if (!owner || (process >= 0 && ARENA_OWNER_PROCESS(owner) != (uint32_t)process))
			continue;
		frames[found++] = pool->first + at;
	}
	return found;
}

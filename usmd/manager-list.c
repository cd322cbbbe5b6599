/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the manager tells: status, processes, frames; and evictions by request. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/cleanup.h"
#include "manager-internal.h"
#include "reclaim.h"

#ifndef USM_VERSION
#define USM_VERSION "unknown"
#endif

static uint64_t not_negative(int64_t n)
{
	return n > 0 ? (uint64_t)n : 0;
}

void manager_get_status(struct manager *m, struct usm_status *ret)
{
	struct core *c = &m->core;
	struct arena_header *h = c->arena->h;
	struct usm_swap_info swaps[USM_SWAP_DEVICES];
	unsigned modes = atomic_load(&c->evict_modes), n;
	uint64_t swap_errors = 0;
	bool uring = false;

	memset(ret, 0, sizeof(*ret));
	strncpy(ret->version, USM_VERSION, sizeof(ret->version) - 1);
	ret->mechanism = "userfault";
	ret->eviction = modes & USM_EVICT_MOVE ? "move" : modes & USM_EVICT_LAZYFREE ? "lazyfree" : "off";
	n = usm_swap_list(c->swap, swaps, USM_SWAP_DEVICES);
	for (unsigned i = 0; i < n; i++)
		uring |= swaps[i].uring;
	ret->io = uring ? "io_uring" : "pread";
	ret->keeper_pid = h->keeper_pid;
	ret->engine_pid = getpid();
	ret->engine_restarts = atomic_load(&h->nr_restarts);
	ret->frames_total = (uint64_t)atomic_load(&c->nr_budget);
	ret->frames_free = not_negative(core_free_frames(c));
	ret->exceeded = not_negative(-core_free_frames(c));
	for (uint32_t i = 0; i < arena_processes(m->core.arena); i++)
		ret->processes += atomic_load(&c->arena->process[i].state) == PROCESS_LIVE;
	ret->faults = atomic_load(&h->nr_faults);
	ret->evictions = atomic_load(&h->nr_evictions);
	ret->swap_ins = atomic_load(&h->nr_swap_ins);
	usm_swap_totals(c->swap, &ret->slots_total, &ret->slots_used, &swap_errors);
	ret->errors = atomic_load(&h->nr_errors) + swap_errors;
	ret->policy_errors = atomic_load(&h->nr_policy_errors);
	ret->last_recovery_usec = atomic_load(&h->recovery_usec);
}

static bool is_listed(const struct process *p)
{
	return atomic_load(&p->shared->state) == PROCESS_LIVE;
}

static bool matches(const struct process *p, pid_t pid, const char *name)
{
	const struct arena_process *s = p->shared;

	return is_listed(p) && (pid ? s->pid == pid :
				      name && (!strcmp(s->name, name) || !strcmp(s->argv0, name)));
}

int manager_list_processes(struct manager *m, struct usm_process_info **ret, unsigned *ret_n)
{
	struct usm_process_info *list = calloc(ARENA_PROCESSES, sizeof(*list));
	unsigned n = 0;

	if (!list)
		return -ENOMEM;
	for (uint32_t i = 0; i < arena_processes(m->core.arena); i++) {
		struct process *p = &m->core.process[i];
		struct usm_process_info *info = &list[n];

		if (!is_listed(p))
			continue;
		info->pid = p->shared->pid;
		info->uid = p->shared->uid;
		memcpy(info->name, p->shared->name, sizeof(info->name));
		memcpy(info->policy, p->shared->policy, sizeof(info->policy));
		info->resident = not_negative(atomic_load(&p->nr_resident));
		info->swapped = not_negative(atomic_load(&p->nr_swapped));
		info->unevictable_reason = atomic_load(&p->unevictable_reason);
		if (!info->unevictable_reason && p->shared->is_child && !p->shared->attached)
			info->unevictable_reason = "a forked child whose agent has not come";
		info->unevictable = info->unevictable_reason ? info->resident :
							       atomic_load(&p->nr_unevictable);
		if (info->unevictable && !info->unevictable_reason)
			info->unevictable_reason = "pinned, read-only, or shared after a fork";
		info->limit = p->shared->limit_pages;
		info->faults = atomic_load(&p->shared->nr_faults);
		info->evictions = atomic_load(&p->shared->nr_evictions);
		info->swap_ins = atomic_load(&p->shared->nr_swap_ins);
		info->fault_usec_p50 = process_fault_usec(p, 5000);
		info->fault_usec_p99 = process_fault_usec(p, 9900);
		info->fault_usec_max = atomic_load(&p->fault_usec_max);
		n++;
	}
	*ret = list;
	*ret_n = n;
	return 0;
}

int manager_process_uid(struct manager *m, pid_t pid, uid_t *ret)
{
	for (uint32_t i = 0; i < arena_processes(m->core.arena); i++)
		if (matches(&m->core.process[i], pid, NULL)) {
			*ret = m->core.process[i].shared->uid;
			return 0;
		}
	return -ESRCH;
}

int manager_list_frames(struct manager *m, bool used, pid_t pid, const char *name, uint64_t offset,
			unsigned count, struct usm_frame_info **ret, unsigned *ret_n,
			uint64_t *ret_total)
{
	struct core *c = &m->core;
	_cleanup_free_ struct usm_frame_info *list = calloc(MAX(count, 1u), sizeof(*list));
	_cleanup_free_ uint32_t *frames = NULL;
	uint32_t now = (uint32_t)(now_nsec() / 1000000);
	bool any = !pid && !name, found = any;
	uint64_t total = 0;
	unsigned n = 0;

	if (!list)
		return -ENOMEM;
	for (uint32_t i = 0; i < arena_processes(m->core.arena) && !found; i++)
		found = matches(&c->process[i], pid, name);
	if (!found)
		return -ESRCH;
	for (unsigned k = 0; k < ARENA_POOLS; k++) {
		struct pool *pool = c->pool[k];
		unsigned got;

		if (!pool)
			continue;
		free(frames);
		frames = calloc(2 * (size_t)pool->nr, sizeof(*frames));
		if (!frames)
			return -ENOMEM;
		got = policy_list(pool, used, 0, frames, 2 * pool->nr);
		for (unsigned i = 0; i < got; i++) {
			uint64_t owner = atomic_load(&pool_frame(c, frames[i])->owner);
			struct process *p = owner ? &c->process[ARENA_OWNER_PROCESS(owner)] : NULL;
			struct usm_frame_info *info;

			if (used != !!owner || (!any && !matches(p, pid, name)))
				continue;
			if (total++ < offset || n == count)
				continue;
			info = &list[n++];
			info->frame = pool_paddr(frames[i]);
			if (!used)
				continue;
			info->addr = VADDR(ARENA_OWNER_VPN(owner));
			info->pid = p->shared->pid;
			memcpy(info->name, p->shared->name, sizeof(info->name));
			info->age_msec = now - pool_frame(c, frames[i])->born_msec;
		}
	}
	*ret = TAKE_PTR(list);
	*ret_n = n;
	*ret_total = total;
	return 0;
}

unsigned manager_list_swaps(struct manager *m, struct usm_swap_info *info, unsigned max)
{
	return usm_swap_list(m->core.swap, info, max);
}

/* --- evictions by request ---------------------------------------------------------- */

int manager_evict(struct manager *m, pid_t pid, const char *name, uint64_t pages,
		  manager_evict_done_t done, void *userdata)
{
	struct core *c = &m->core;
	struct eviction *e = NULL;
	uint64_t left = pages, resident = 0;
	unsigned nr = 0;

	for (unsigned i = 0; i < EVICTIONS_MAX && !e; i++)
		if (!m->eviction[i].done)
			e = &m->eviction[i];
	if (!e)
		return -EBUSY;
	memset(e, 0, sizeof(*e));
	for (uint32_t i = 0; i < arena_processes(m->core.arena); i++)
		if (matches(&c->process[i], pid, name)) {
			resident += not_negative(atomic_load(&c->process[i].nr_resident));
			nr++;
		}
	if (!nr)
		return -ESRCH;
	for (uint32_t i = 0; i < arena_processes(m->core.arena) && e->nr_tickets < ARRAY_SIZE(e->ticket) && left; i++) {
		struct process *p = &c->process[i];
		uint64_t share, has;
		int t;

		if (!matches(p, pid, name))
			continue;
		/* Of several processes each gives by its size; the last one what is left. */
		has = not_negative(atomic_load(&p->nr_resident));
		nr--;
		share = pages == UINT64_MAX ? pages : nr ? MIN(left, pages * has / MAX(resident, 1ul)) : left;
		if (!share)
			continue;
		if (pages != UINT64_MAX)
			left -= share;
		t = reclaim_request(c, p, share);
		if (t < 0)
			break;
		e->ticket[e->nr_tickets++] = t;
	}
	if (!e->nr_tickets)
		return -EBUSY;
	e->done = done;
	e->userdata = userdata;
	return 0;
}

void manager_check_evictions(struct manager *m)
{
	for (unsigned i = 0; i < EVICTIONS_MAX; i++) {
		struct eviction *e = &m->eviction[i];
		manager_evict_done_t done = e->done;

		if (!done)
			continue;
		for (unsigned k = 0; k < e->nr_tickets;) {
			const char *reason = NULL;
			uint64_t evicted = 0;

			if (!reclaim_request_done(&m->core, e->ticket[k], &evicted, &reason)) {
				k++;
				continue;
			}
			e->evicted += evicted;
			if (reason)
				e->reason = reason;
			e->ticket[k] = e->ticket[--e->nr_tickets];
		}
		if (e->nr_tickets)
			continue;
		e->done = NULL;
		done(e->userdata, e->evicted, e->reason);
	}
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "family.h"
#include "kill-point.h"
#include "lib/cleanup.h"
#include "mechanism-userfault.h"
#include "pagemap.h"
#include "pool.h"

struct process *family_next(struct process *p, uint32_t *i)
{
	struct core *c = p->core;

	while (*i < arena_processes(c->arena)) {
		struct process *q = &c->process[(*i)++];

		if (q == p || q->shared->family != p->shared->family || !q->shared->fork_protected)
			continue;
		q = process_get(c, q->number, q->generation);
		if (q)
			return q;
	}
	return NULL;
}

/* RESIDENT pages of one leaf. */
struct residents {
	uint64_t first; /* of the leaf's pages */
	unsigned n;
	page_entry *entry[LEAF_PAGES];
};

static int note_resident(void *userdata, uint64_t vpn, page_entry *e)
{
	struct residents *r = userdata;
	uint64_t v = atomic_load(e), leaf = vpn - vpn % LEAF_PAGES;

	if (PAGE_STATE(v) != PAGE_RESIDENT || v & PAGE_LAZY)
		return 0;
	if (r->n && leaf != r->first)
		return 1;
	if (!r->n)
		for (unsigned i = 0; i < LEAF_PAGES; i++)
			r->entry[i] = NULL;
	r->first = leaf;
	r->entry[vpn - leaf] = e;
	r->n++;
	return 0;
}

static bool hand_over_page(struct process *p, page_entry *e, struct process *q, uint64_t vpn)
{
	uint32_t frame = PAGE_VALUE(atomic_load(e));
	page_entry *to = process_page(q, vpn, true);
	uint64_t none = 0;
	unsigned done;
	int r;

	if (!to || !atomic_compare_exchange_strong(to, &none, PAGE_ENTRY(PAGE_FILLING, 0)))
		return false;
	/* Registered and present at this moment?  As in take_in() (fault.c). */
	r = userfault_copy(q->shared->uffd, vpn, p->core->zeros, 1, &done);
	if (r != 0 && r != -EEXIST) {
		atomic_store(to, 0);
		userfault_wake(q->shared->uffd, vpn, 1);
		return false;
	}
	KILL_POINT("hand-over-installed");
	pool_moved(p->core, frame, q->number, vpn);
	KILL_POINT("hand-over-owned");
	atomic_store(e, 0);
	KILL_POINT("hand-over-dropped");
	atomic_store(to, PAGE_ENTRY(PAGE_RESIDENT, frame) | process_present_flags(q));
	userfault_wake(q->shared->uffd, vpn, 1);
	atomic_fetch_add(&q->nr_resident, 1);
	atomic_fetch_sub(&p->nr_resident, 1);
	return true;
}

static void hand_over_leaf(struct process *p, struct residents *r)
{
	uint64_t map[LEAF_PAGES];
	struct process *q;
	uint32_t i = 0;

	while (r->n && (q = family_next(p, &i))) {
		_cleanup_close_ int fd = -1;
		char path[64];
		ssize_t n = 0;

		/* A frame belongs to its pool's policies. */
		if (q->shared->pid > 0 && atomic_load(&q->pool) == atomic_load(&p->pool)) {
			snprintf(path, sizeof(path), "/proc/%d/pagemap", q->shared->pid);
			fd = open(path, O_RDONLY | O_CLOEXEC);
			n = pread(fd, map, sizeof(map), (off_t)(r->first * sizeof(map[0])));
		}
		if (n > 0 && !atomic_load(&q->gone) && process_try_latch(q)) {
			for (unsigned k = 0; k < (size_t)n / sizeof(map[0]); k++) {
				if (!r->entry[k] || !(map[k] & PAGEMAP_PRESENT) ||
				    !hand_over_page(p, r->entry[k], q, r->first + k))
					continue;
				r->entry[k] = NULL;
				r->n--;
			}
			process_unlatch_reclaim(q);
		}
		process_put(q);
	}
}

void family_hand_over(struct process *p, uint64_t first, uint64_t end)
{
	uint32_t i = 0;
	struct process *q = p->shared->fork_protected ? family_next(p, &i) : NULL;

	if (!q)
		return;
	process_put(q);
	while (first < end) {
		struct residents r = {.n = 0};

		page_visit(p->core->arena, p->number, first, end, note_resident, &r);
		if (!r.n)
			return;
		hand_over_leaf(p, &r);
		first = r.first + LEAF_PAGES;
	}
}

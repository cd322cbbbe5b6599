/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Posting operations; collect.c takes their results, undo.c does without. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "kill-point.h"
#include "lib/cleanup.h"
#include "lib/log.h"
#include "mechanism-userfault.h"
#include "operation.h"
#include "pool.h"
#include "reclaim-internal.h"

/* Frames looked at for clean slots when slots are short. */
#define CLEAN_SCAN 8192u
/* Each unshared page is one more than the pool has, until it has left. */
#define UNSHARE_BATCH 64u

static int compare_vpn(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* Pages that hold threads' control blocks, sorted. inflight was set before. */
static unsigned read_pins(struct process *p, uint64_t *pins)
{
	unsigned n = 0, max = MIN(atomic_load(&p->ops->nr_pins), USM_OPS_PINS);

	pins[n++] = VPN(p->shared->tcb);
	for (unsigned i = 0; i < max; i++) {
		uint64_t a = atomic_load(&p->ops->pins[i]);

		if (a)
			pins[n++] = VPN(a);
	}
	qsort(pins, n, sizeof(*pins), compare_vpn);
	return n;
}

bool operation_only_lazy(struct core *c)
{
	return !(atomic_load(&c->evict_modes) & USM_EVICT_MOVE);
}

/* Its agent is there and has nothing to do. */
static bool is_idle(struct process *p)
{
	return p->ops && atomic_load(&p->ops->agent_state) != USM_AGENT_GONE &&
	       p->shared->sock >= 0 && p->evict.in_epoll && !atomic_load(&p->gone) &&
	       !atomic_load(&p->barrier) && atomic_load(&p->shared->op_state) == OP_IDLE;
}

bool operation_possible(struct process *p)
{
	return atomic_load(&p->core->evict_modes) && !atomic_load(&p->no_evict) &&
	       !atomic_load(&p->swap_none) && is_idle(p);
}

void operation_send(struct process *p)
{
	struct usm_attach_msg m = {
		.magic = USM_ATTACH_MAGIC,
		.version = USM_ATTACH_VERSION,
		.type = USM_ATTACH_WORK,
		.seq = p->shared->op_seq,
	};

	if (send(p->shared->sock, &m, sizeof(m), MSG_DONTWAIT | MSG_NOSIGNAL) < 0 &&
	    errno != EAGAIN)
		log_debug("%s (pid %d): its agent's socket: %s", p->shared->name, p->shared->pid,
			  strerror(errno));
}

static void post(struct reclaim *r, struct process *p, enum usm_ops_kind kind, unsigned n)
{
	struct arena_process *s = p->shared;
	struct usm_agent_ops *ops = p->ops;

	s->op_kind = kind;
	s->op_n = n;
	s->op_seq = atomic_load(&ops->req) + 1;
	atomic_store(&s->op_state, OP_POSTED);
	KILL_POINT("evict-recorded");
	ops->kind = kind;
	ops->n = n;
	for (unsigned i = 0; i < n; i++) {
		ops->addr[i] = VADDR(s->op_vpn[i]);
		atomic_store_explicit(&ops->res[i], -EINPROGRESS, memory_order_relaxed);
	}
	atomic_store(&p->posted_nsec, now_nsec());
	atomic_store(&ops->req, s->op_seq);
	KILL_POINT("evict-posted");
	p->evict.stalled = false;
	r->nr_posted++;
	r->nr_prompt++;
}

/* Slots that were reserved for more pages than there are. */
void operation_return_slots(struct process *p, unsigned keep)
{
	while (p->evict.nr_slots > keep)
		usm_swap_unref(p->core->swap, p->evict.slot[--p->evict.nr_slots]);
}

/* Write-protects what was claimed, so that the copy is the content. */
static int protect_claimed(struct process *p, unsigned n, bool on)
{
	uint64_t *vpn = p->shared->op_vpn;

	for (unsigned i = 0, j; i < n; i = j) {
		int e;

		for (j = i + 1; j < n && vpn[j] == vpn[j - 1] + 1;)
			j++;
		e = userfault_protect(p->shared->uffd, vpn[i], j - i, on);
		if (e < 0 && on)
			return e;
	}
	return 0;
}

unsigned operation_drop_slots(struct core *c, bool draining, uint32_t *hand, uint64_t scan)
{
	uint32_t frames[256];
	unsigned dropped = 0;

	for (unsigned k = 0; k < ARENA_POOLS; k++) {
		struct pool *pool = c->pool[k];

		if (!pool)
			continue;
		for (uint64_t seen = 0; seen < MIN(scan, 2ul * pool->nr); seen += ARRAY_SIZE(frames)) {
			unsigned n = pool_hand(pool, -1, hand, frames, ARRAY_SIZE(frames));

			for (unsigned i = 0; i < n; i++) {
				struct arena_frame *f = pool_frame(c, frames[i]);
				uint64_t owner = atomic_load(&f->owner);
				uint32_t clean = atomic_load(&f->clean_slot);
				struct process *p;
				page_entry *e;
				uint64_t v;

				if (!owner || !clean ||
				    (draining && !usm_swap_slot_draining(c->swap, clean)))
					continue;
				p = &c->process[ARENA_OWNER_PROCESS(owner)];
				p = process_get(c, p->number, p->generation);
				if (!p)
					continue;
				if (!process_try_latch(p)) {
					process_put(p);
					continue;
				}
				e = process_page(p, ARENA_OWNER_VPN(owner), false);
				v = e ? atomic_load(e) : 0;
				/* Claimed: else the frame may have become a LAZY page's meanwhile. */
				if (PAGE_STATE(v) == PAGE_RESIDENT && PAGE_VALUE(v) == frames[i] &&
				    !(v & PAGE_LAZY) &&
				    atomic_compare_exchange_strong(e, &v, PAGE_ENTRY(PAGE_FILLING, 0))) {
					uint32_t slot = atomic_exchange(&f->clean_slot, 0);

					atomic_store(e, v);
					userfault_wake(p->shared->uffd, ARENA_OWNER_VPN(owner), 1);
					if (slot) {
						usm_swap_unref(c->swap, slot);
						dropped++;
					}
				}
				process_unlatch_reclaim(p);
				process_put(p);
			}
		}
	}
	return dropped;
}

unsigned operation_drop_clean_slots(struct core *c)
{
	static uint32_t hand;

	return operation_drop_slots(c, false, &hand, CLEAN_SCAN);
}

/*
 * Claims those of the frames that are resident pages of p and may leave, and hands
 * them to its agent.  Returns how many; the others are moved to the end of frames[].
 */
unsigned operation_post(struct reclaim *r, struct process *p, uint32_t *frames, unsigned n,
			    bool lazy)
{
	struct core *c = r->core;
	static uint64_t pins[USM_OPS_PINS + 1];
	struct {
		uint64_t vpn;
		uint32_t frame;
	} v[USM_OPS_BATCH];
	unsigned nr_pins, k = 0, left = 0;
	uint32_t rest[USM_OPS_BATCH];
	bool stop;

	n = MIN(n, USM_OPS_BATCH);
	/* A page is not taken out before there is a place for it. */
	p->evict.nr_slots = usm_swap_alloc(c->swap, p->evict.slot, n);
	if (p->evict.nr_slots < n && operation_drop_clean_slots(c))
		p->evict.nr_slots += usm_swap_alloc(c->swap, p->evict.slot + p->evict.nr_slots,
						    n - p->evict.nr_slots);
	if (!p->evict.nr_slots)
		return 0;
	KILL_POINT("evict-slots");
	if (!process_try_latch(p)) {
		r->busy |= !atomic_load(&p->barrier);
		operation_return_slots(p, 0);
		return 0;
	}
	for (unsigned i = 0; i < n; i++) {
		v[i].vpn = ARENA_OWNER_VPN(atomic_load(&pool_frame(c, frames[i])->owner));
		v[i].frame = frames[i];
	}
	qsort(v, n, sizeof(v[0]), compare_vpn);
	atomic_store(&p->ops->inflight, 1);
	nr_pins = read_pins(p, pins);
	/* Before the look whether it is being let go: who lets it go looks the other way round. */
	atomic_fetch_add(&p->nr_evicting, n);
	stop = atomic_load(&p->barrier) || (atomic_load(&p->no_evict) && !atomic_load(&p->rescue));

	for (unsigned i = 0; i < n; i++) {
		page_entry *e = process_page(p, v[i].vpn, false);
		uint64_t old = e ? atomic_load(e) : 0;

		r->removed |= PAGE_STATE(old) == PAGE_RESIDENT && page_removed_recently(old);
		if (k == p->evict.nr_slots || stop || PAGE_STATE(old) != PAGE_RESIDENT ||
		    PAGE_VALUE(old) != v[i].frame || page_removed_recently(old) ||
		    bsearch(&v[i].vpn, pins, nr_pins, sizeof(*pins), compare_vpn) ||
		    !atomic_compare_exchange_strong(
			    e, &old, PAGE_ENTRY(PAGE_EVICTING, v[i].frame) | (old & PAGE_LAZY))) {
			rest[left++] = v[i].frame;
			continue;
		}
		KILL_POINT("evict-claimed");
		p->shared->op_vpn[k] = v[i].vpn;
		frames[k++] = v[i].frame;
	}
	atomic_fetch_sub(&p->nr_evicting, n - k);
	if (k && lazy && protect_claimed(p, k, true) < 0) {
		protect_claimed(p, k, false);
		for (unsigned i = 0; i < k; i++) {
			page_entry *e = process_page(p, p->shared->op_vpn[i], false);
			uint64_t old = atomic_load(e);

			atomic_store(e, PAGE_ENTRY(PAGE_RESIDENT, PAGE_VALUE(old)) |
						(old & PAGE_LAZY));
			rest[left++] = frames[i];
		}
		atomic_fetch_sub(&p->nr_evicting, k);
		k = 0;
	}
	KILL_POINT("evict-protected");
	if (k)
		post(r, p, lazy ? USM_OPS_LAZYFREE : USM_OPS_MOVE, k);
	else
		atomic_store(&p->ops->inflight, 0);
	process_unlatch_reclaim(p);
	operation_return_slots(p, k);
	if (k)
		operation_send(p);
	memcpy(frames + k, rest, left * sizeof(*rest));
	return k;
}

/* Pages that reclaim itself wants to leave now: the list is used up.  How many are on their way. */
static unsigned post_pages(struct reclaim *r, struct process *p, const uint64_t *vpn, unsigned *nr,
			   bool lazy)
{
	uint32_t frames[USM_OPS_BATCH];
	unsigned n = 0;

	if (!process_try_latch(p))
		return 0; /* the next time */
	for (unsigned i = 0; i < *nr; i++) {
		page_entry *e = process_page(p, vpn[i], false);
		uint64_t v = e ? atomic_load(e) : 0;

		if (PAGE_STATE(v) == PAGE_RESIDENT)
			frames[n++] = PAGE_VALUE(v);
	}
	process_unlatch_reclaim(p);
	*nr = 0;
	return n ? operation_post(r, p, frames, n, lazy) : 0;
}

void operation_post_refused(struct reclaim *r, struct process *p)
{
	post_pages(r, p, p->evict.refused, &p->evict.nr_refused, true);
}

void operation_post_again(struct reclaim *r, struct process *p)
{
	p->evict.unshared = post_pages(r, p, p->evict.again, &p->evict.nr_again,
				       operation_only_lazy(r->core)) > 0;
}

void operation_post_unshare(struct reclaim *r, struct process *p)
{
	unsigned n = MIN(p->evict.nr_unshare, UNSHARE_BATCH);

	/* Behind a barrier, messages that were told are recognised by the last operation's pages
	 * (event.c): no other one is recorded before they are applied. */
	if (!process_try_latch(p))
		return; /* the next time */
	memcpy(p->shared->op_vpn, p->evict.unshare, n * sizeof(uint64_t));
	p->evict.nr_unshare -= n;
	memmove(p->evict.unshare, p->evict.unshare + n, p->evict.nr_unshare * sizeof(uint64_t));
	post(r, p, USM_OPS_UNSHARE, n);
	process_unlatch_reclaim(p);
	operation_send(p);
}

/* LAZY pages from rescue_vpn on. */
static int note_lazy(void *userdata, uint64_t vpn, page_entry *e)
{
	struct process *p = userdata;
	uint64_t v = atomic_load(e);

	if (PAGE_STATE(v) != PAGE_RESIDENT || !(v & PAGE_LAZY))
		return 0;
	p->evict.unshare[p->evict.nr_unshare++] = vpn;
	return p->evict.nr_unshare == UNSHARE_BATCH;
}

void operation_post_rescue(struct reclaim *r, struct process *p)
{
	if (!is_idle(p))
		return;
	/* What cannot be written by its agent leaves, and comes back as a page like any other. */
	if (p->evict.nr_again && post_pages(r, p, p->evict.again, &p->evict.nr_again, true))
		return;
	if (!process_try_latch(p))
		return; /* the next time */
	p->evict.nr_unshare = 0;
	page_visit(p->core->arena, p->number, p->evict.rescue_vpn, VPN_MAX, note_lazy, p);
	process_unlatch_reclaim(p);
	if (p->evict.nr_unshare) {
		p->evict.rescue_vpn = p->evict.unshare[p->evict.nr_unshare - 1] + 1;
		operation_post_unshare(r, p);
	} else {
		p->evict.rescue_vpn = 0;
		atomic_store(&p->rescue, false); /* who lets it go looks again */
	}
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Taking the results of operations: what left goes to its slot, what stayed stays. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "journal.h"
#include "kill-point.h"
#include "lib/cleanup.h"
#include "lib/log.h"
#include "mechanism-userfault.h"
#include "operation-internal.h"
#include "policy.h"
#include "pool.h"
#include "reclaim-internal.h"
#include "worker.h"

/* A page that cannot be put back meets unread events: try again after this. */
#define PUT_BACK_USEC 100

uint64_t operation_finish_page(struct process *p, unsigned i, page_entry *e, uint64_t to,
			       bool taken)
{
	struct core *c = p->core;
	uint64_t v = atomic_load(e), new;
	uint32_t frame = PAGE_VALUE(v), clean = 0;
	uint32_t slot = PAGE_STATE(to) == PAGE_SWAPPED ? PAGE_VALUE(to) : 0;

	if (slot) {
		clean = atomic_exchange(&pool_frame(c, frame)->clean_slot, 0);
		atomic_fetch_add(&p->nr_swapped, 1);
		/* Never taken back: an agent that reads 0 lets its program go on without usmd. */
		if (!atomic_exchange(&p->shared->ever_swapped, 1) && p->ops)
			atomic_store(&p->ops->nr_swapped, 1);
	}
	do {
		bool discard = v & (taken ? PAGE_DISCARD : PAGE_DISCARD | PAGE_FREED);

		new = to;
		if (v & PAGE_GONE || (discard && PAGE_STATE(to) != PAGE_RESIDENT))
			new = 0;
		else if (discard)
			new = PAGE_WITH_STAMP((to | PAGE_REMOVED) & ~PAGE_LAZY,
					      now_tick());
	} while (!atomic_compare_exchange_weak(e, &v, new));

	KILL_POINT("collect-published");
	if (slot && new != to) {
		atomic_fetch_sub(&p->nr_swapped, 1);
		usm_swap_unref(c->swap, slot);
	}
	if (clean && clean != slot)
		usm_swap_unref(c->swap, clean);
	if (PAGE_STATE(new) != PAGE_RESIDENT) {
		atomic_fetch_sub(&p->nr_resident, 1);
		pool_release(c, frame);
	}
	KILL_POINT("collect-released");
	if (v & PAGE_WANTED || PAGE_STATE(new) == PAGE_RESIDENT)
		userfault_wake(p->shared->uffd, p->shared->op_vpn[i], 1);
	if (PAGE_STATE(new) == PAGE_SWAPPED)
		journal_say_evicted(p, p->shared->op_vpn[i], frame, slot);
	return new;
}

static uint64_t finish(struct process *p, unsigned i, page_entry *e, uint64_t to)
{
	return operation_finish_page(p, i, e, to, true);
}

static bool is_zero(const uint8_t *page)
{
	return !page[0] && !memcmp(page, page + 1, USM_PAGE_SIZE - 1);
}

/* What it has cannot be placed, or may be gone: it must not go on. */
static void lose(struct process *p, unsigned i, page_entry *e, const char *reason)
{
	if (PAGE_STATE(finish(p, i, e, PAGE_ENTRY(PAGE_LOST, 0))) == PAGE_LOST && reason)
		process_kill(p, VADDR(p->shared->op_vpn[i]), reason);
}

/*
 * Its content stays with the program: no device could take it.  While a FORK waits for
 * us, what was read after it is not applied, and the address may be another mapping's by
 * now: then the content cannot be placed, and the program cannot go on.  flags: of the
 * page if it is present already.  True: it is RESIDENT.
 */
static bool put_back(struct process *p, unsigned i, page_entry *e, const uint8_t *page,
		     uint64_t flags)
{
	uint64_t vpn = p->shared->op_vpn[i];

	for (;;) {
		bool again = false, stays = false;
		unsigned done;

		if (process_try_latch(p)) {
			uint64_t v = atomic_load(e), to = PAGE_ENTRY(PAGE_RESIDENT, PAGE_VALUE(v));
			int r = -ENOENT;

			if (!(v & (PAGE_GONE | PAGE_DISCARD)))
				r = userfault_copy(p->shared->uffd, vpn, page, 1, &done);
			switch (r) {
			case -EEXIST:
				to |= flags;
				/* fall through */
			case 0:
			case -ESRCH:
				stays = PAGE_STATE(finish(p, i, e, to)) == PAGE_RESIDENT;
				break;
			case -ENOENT:
				finish(p, i, e, 0);
				break;
			case -EAGAIN:
			case -ENOMEM:
				again = true;
				break;
			default:
				lose(p, i, e, "its page could be neither written to swap nor put back");
				break;
			}
			process_unlatch_reclaim(p);
			if (!again)
				return stays;
		} else if (atomic_load(&p->barrier)) {
			lose(p, i, e, "its page could not be written to swap during a fork");
			return false;
		}
		if (atomic_load(&p->gone)) {
			/* If it lives on, without its agent, this page ends it. */
			lose(p, i, e, NULL);
			return false;
		}
		usleep(PUT_BACK_USEC);
	}
}

void operation_unprotect(struct process *p, uint64_t vpn)
{
	if (!p->shared->fork_protected)
		userfault_protect(p->shared->uffd, vpn, 1, false);
}

/* A page whose content must go to a slot; stays: it is still present too (LAZY). */
struct leaving {
	unsigned i;
	uint32_t slot;
	bool stays;
};

static void publish_written(struct process *p, const struct leaving *l, page_entry *e)
{
	struct core *c = p->core;
	uint64_t v = atomic_load(e);
	uint32_t frame = PAGE_VALUE(v), old;

	if (!l->stays) {
		finish(p, l->i, e, PAGE_ENTRY(PAGE_SWAPPED, l->slot));
		return;
	}
	old = atomic_exchange(&pool_frame(c, frame)->clean_slot, l->slot);
	if (old)
		usm_swap_unref(c->swap, old);
	operation_unprotect(p, p->shared->op_vpn[l->i]);
	finish(p, l->i, e, PAGE_ENTRY(PAGE_RESIDENT, frame) | PAGE_LAZY);
}

/* Pages that stayed, to be given back to their policy. */
struct staying {
	uint32_t frame[USM_OPS_BATCH];
	unsigned n;
	bool not_written; /* some, because no slot took them */
};

/* Writes out, retrying on another device what failed; what no slot takes is put back. */
static unsigned write_out(struct reclaim *r, struct process *p, struct leaving *l, unsigned n,
			  struct staying *stay)
{
	struct core *c = r->core;
	uint8_t *data = (uint8_t *)p->ops + USM_OPS_DATA;
	struct usm_swap_io io[USM_OPS_BATCH];
	uint32_t slots[USM_OPS_BATCH];
	unsigned written = 0;

	for (unsigned attempt = 0; n && attempt < 3; attempt++) {
		unsigned left = 0, got = MIN(n, p->evict.nr_slots);

		/* First what was reserved; a new engine, or another try, takes new ones. */
		memcpy(slots, p->evict.slot, got * sizeof(*slots));
		memmove(p->evict.slot, p->evict.slot + got,
			(p->evict.nr_slots - got) * sizeof(*slots));
		p->evict.nr_slots -= got;
		got += usm_swap_alloc(c->swap, slots + got, n - got);
		if (!got)
			break;
		for (unsigned k = 0; k < got; k++)
			io[k] = (struct usm_swap_io){
				.slot = slots[k],
				.buf = data + (size_t)l[k].i * USM_PAGE_SIZE,
			};
		usm_swap_write(c->swap, io, got);
		KILL_POINT("collect-written");
		for (unsigned k = 0; k < n; k++) {
			if (k < got && io[k].result >= 0) {
				l[k].slot = slots[k];
				publish_written(p, &l[k], r->entry[l[k].i]);
				written++;
				continue;
			}
			if (k < got) {
				usm_swap_unref(c->swap, slots[k]);
				atomic_fetch_add(&c->arena->h->nr_errors, 1);
			}
			l[left++] = l[k];
		}
		n = left;
	}
	stay->not_written = n > 0;
	for (unsigned k = 0; k < n; k++) {
		page_entry *e = r->entry[l[k].i];
		uint32_t frame = PAGE_VALUE(atomic_load(e));

		if (l[k].stays) {
			/* Present, and the kernel may drop it until it is written: install our copy
			 * where it did, else have the agent write it.  Until then LAZY without a slot
			 * says that it may be lost. */
			operation_unprotect(p, p->shared->op_vpn[l[k].i]);
			if (p->evict.nr_unshare < USM_OPS_BATCH)
				p->evict.unshare[p->evict.nr_unshare++] = p->shared->op_vpn[l[k].i];
		}
		if (put_back(p, l[k].i, e, data + (size_t)l[k].i * USM_PAGE_SIZE,
			     l[k].stays ? PAGE_LAZY : 0) &&
		    !l[k].stays)
			stay->frame[stay->n++] = frame;
	}
	return written;
}

static void note_stopped(struct process *p)
{
	const char *why = NULL;

	switch (atomic_load(&p->ops->agent_state)) {
	case USM_AGENT_LOCKED:
		why = "it locked its memory (mlockall)";
		break;
	case USM_AGENT_SECCOMP:
		why = "it set a seccomp filter for all its threads";
		break;
	default:
		why = "its agent refuses";
		break;
	}
	if (atomic_exchange(&p->no_evict, true))
		return;
	atomic_store(&p->unevictable_reason, why);
	log_event(LOG_WARNING,
		  &((struct usm_log_fields){.event = "unevictable",
					    .message_id = USM_MSG_UNEVICTABLE,
					    .process = p->shared->name,
					    .pid = p->shared->pid,
					    .policy = p->shared->policy}),
		  "%s (pid %d): no page of it is evicted any more: %s", p->shared->name,
		  p->shared->pid, why);
}

void operation_end(struct process *p)
{
	uint32_t n = p->shared->op_kind == USM_OPS_UNSHARE ? 0 : p->shared->op_n;

	/* If this fails MOVE is refused from now on, and LAZYFREE does its work. */
	if (p->evict.fenced)
		userfault_register(p->shared->uffd, p->shared->staging,
				   p->shared->staging + OPERATION_STAGING_BYTES, UFFDIO_REGISTER_MODE_WP);
	p->evict.fenced = false;
	p->evict.stalled = false;
	p->evict.unshared = false;
	operation_return_slots(p, 0);
	atomic_store(&p->ops->inflight, 0);
	KILL_POINT("collect-ending");
	atomic_store(&p->shared->op_state, OP_IDLE);
	atomic_store(&p->collecting, COLLECT_NO);
	KILL_POINT("collect-ended");
	if (n && atomic_fetch_sub(&p->nr_evicting, n) == n && atomic_load(&p->barrier))
		worker_defer(p);
	process_unpark(p);
}

static void drop_slot(struct core *c, uint32_t slot)
{
	if (slot)
		usm_swap_unref(c->swap, slot);
}

/* False: it was unshared a moment ago, and something else keeps it. */
static bool want_unshare(struct process *p, unsigned i)
{
	if (p->evict.unshared || p->evict.nr_unshare == USM_OPS_BATCH)
		return false;
	p->evict.unshare[p->evict.nr_unshare++] = p->shared->op_vpn[i];
	return true;
}

/*
 * The agent has written it: the kernel keeps it.  That is what was wanted of a page that no slot
 * took after MADV_FREE, and of all LAZY ones of a program that is being let go.
 */
static bool was_rescued(struct process *p, uint64_t vpn)
{
	bool rescued = false, any = atomic_load(&p->rescue);
	page_entry *e;
	uint64_t v;

	if (!process_try_latch(p))
		return false;
	e = process_page(p, vpn, false);
	v = e ? atomic_load(e) : 0;
	while (!rescued && (page_has_no_copy(p->core, v) ||
			    (any && PAGE_STATE(v) == PAGE_RESIDENT && v & PAGE_LAZY)))
		rescued = atomic_compare_exchange_weak(e, &v, v & ~PAGE_LAZY);
	process_unlatch_reclaim(p);
	return rescued;
}

void operation_collect(struct reclaim *r, struct process *p)
{
	struct core *c = r->core;
	struct arena_process *s = p->shared;
	uint8_t *data = (uint8_t *)p->ops + USM_OPS_DATA;
	struct leaving leaving[USM_OPS_BATCH];
	struct staying stay = {.n = 0};
	unsigned nr_leaving = 0, evicted = 0, nr_pinned = 0, nr_soon = 0;
	bool lazy = s->op_kind == USM_OPS_LAZYFREE, refused = false;
	bool fallback = !lazy && !p->evict.no_fallback &&
			atomic_load(&c->evict_modes) & USM_EVICT_LAZYFREE;
	struct pool *pool = atomic_load(&p->pool);

	atomic_store(&s->op_state, OP_COLLECT);
	KILL_POINT("collect-begun");
	if (s->op_kind == USM_OPS_UNSHARE) {
		bool rescue = atomic_load(&p->rescue);

		p->evict.nr_again = 0;
		for (unsigned i = 0; i < s->op_n; i++) {
			bool written = atomic_load(&p->ops->res[i]) == 0;

			if (written ? !was_rescued(p, s->op_vpn[i]) && !rescue : rescue)
				p->evict.again[p->evict.nr_again++] = s->op_vpn[i];
		}
		operation_end(p);
		return;
	}
	for (unsigned i = 0; i < s->op_n; i++) {
		page_entry *e = process_page(p, s->op_vpn[i], false);
		const uint8_t *page = data + (size_t)i * USM_PAGE_SIZE;
		int32_t res = atomic_load(&p->ops->res[i]);
		uint64_t v = e ? atomic_load(e) : 0;
		_Atomic uint32_t *clean;
		uint32_t slot;
		bool stays, owned;

		r->entry[i] = e;
		if (PAGE_STATE(v) != PAGE_EVICTING)
			continue;
		/* Who drops clean slots may have looked at this page before it was claimed: so the
		 * reference is taken first.  Not a LAZY page's, which is all that it has. */
		clean = &pool_frame(c, PAGE_VALUE(v))->clean_slot;
		owned = !(v & PAGE_LAZY);
		slot = owned ? atomic_exchange(clean, 0) : atomic_load(clean);
		KILL_POINT("collect-taken");
		if (res == -ENOENT) {
			/* The kernel had dropped it already (LAZY), or the program did. */
			uint64_t to = v & PAGE_LAZY ? PAGE_ENTRY(PAGE_SWAPPED, slot) : 0;

			/* Dropped without a copy, or it was the program's doing, which an event will
			 * tell: a fault finds out. */
			if (v & PAGE_LAZY && !slot)
				to = PAGE_ENTRY(PAGE_RESIDENT, PAGE_VALUE(v)) | PAGE_LAZY;
			drop_slot(c, owned ? slot : 0);
			operation_finish_page(p, i, e, to, false);
			continue;
		}
		stays = lazy && (res == -EBUSY || res == -EMLINK);
		if (res != 0 && !stays) {
			if (lazy)
				operation_unprotect(p, s->op_vpn[i]);
			if (owned)
				atomic_store(clean, slot);
			if (operation_finish_page(p, i, e,
					PAGE_ENTRY(PAGE_RESIDENT, PAGE_VALUE(v)) | (v & PAGE_LAZY),
					!lazy))
				stay.frame[stay.n++] = PAGE_VALUE(v);
			refused |= res == -EPERM;
			nr_pinned += res == -EBUSY || res == -EINVAL;
			if (res == -EINVAL && fallback && p->evict.nr_refused < USM_OPS_BATCH) {
				p->evict.refused[p->evict.nr_refused++] = s->op_vpn[i];
				nr_soon++;
			}
			nr_soon += res == -EBUSY && want_unshare(p, i);
			continue;
		}
		if (v & (PAGE_GONE | PAGE_DISCARD) && !stays) {
			drop_slot(c, owned ? slot : 0);
			finish(p, i, e, 0);
			continue;
		}
		if (!stays && is_zero(page)) {
			drop_slot(c, owned ? slot : 0);
			finish(p, i, e, 0);
			journal_say_evicted(p, s->op_vpn[i], PAGE_VALUE(v), 0);
			evicted++;
			continue;
		}
		if (stays)
			stay.frame[stay.n++] = PAGE_VALUE(v);
		nr_soon += stays && res == -EMLINK && want_unshare(p, i);
		if (slot && usm_swap_slot_matches(c->swap, slot, page)) {
			if (stays) {
				if (owned)
					atomic_store(clean, slot);
				operation_unprotect(p, s->op_vpn[i]);
				finish(p, i, e, PAGE_ENTRY(PAGE_RESIDENT, PAGE_VALUE(v)) | PAGE_LAZY);
			} else {
				finish(p, i, e, PAGE_ENTRY(PAGE_SWAPPED, slot));
				evicted++;
			}
			continue;
		}
		drop_slot(c, owned ? slot : 0);
		leaving[nr_leaving++] = (struct leaving){.i = i, .stays = stays};
	}
	if (nr_leaving)
		evicted += write_out(r, p, leaving, nr_leaving, &stay);
	atomic_store(&p->nr_unevictable, nr_pinned);
	/* Pages in a row that stayed: when they are as many as there are, none can leave. */
	if (evicted) {
		r->nr_stayed = 0;
		r->exhausted_nsec = 0;
		atomic_store(&p->nr_stayed, 0);
		atomic_store(&p->stuck_nsec, 0);
		p->evict.fruitless = 0;
	} else {
		/* Those that are to leave in another way have not been tried yet. */
		r->nr_stayed += stay.n - MIN(nr_soon, stay.n);
		atomic_fetch_add(&p->nr_stayed, stay.n - MIN(nr_soon, stay.n));
		if (s->limit_pages &&
		    (int64_t)atomic_load(&p->nr_stayed) >= atomic_load(&p->nr_resident)) {
			atomic_store(&p->nr_stayed, 0);
			atomic_store(&p->stuck_nsec, now_nsec());
		}
	}
	atomic_fetch_add(&s->nr_evictions, evicted);
	atomic_fetch_add(&c->arena->h->nr_evictions, evicted);
	operation_end(p);
	if (refused && lazy && !operation_only_lazy(c) &&
	    atomic_load(&p->ops->agent_state) == USM_AGENT_RUNNING)
		p->evict.no_fallback = true; /* without its hooks in place LAZYFREE is not safe */
	else if (refused)
		note_stopped(p);
	if (evicted)
		reclaim_check_limit(p);
	if (pool) {
		policy_give_back(pool, stay.frame, stay.n);
		pool_flush(pool);
	}
	pthread_mutex_lock(&r->lock);
	for (unsigned i = 0; i < RECLAIM_REQUESTS; i++) {
		struct request *q = &r->request[i];

		if (q->used && !q->done && q->process == p->number && q->generation == p->generation) {
			q->evicted += evicted;
			q->fruitless = evicted ? 0 : q->fruitless + 1;
			q->not_written = !evicted && stay.not_written ? q->not_written + 1 : 0;
		}
	}
	pthread_mutex_unlock(&r->lock);
	operation_done_now(r);
}

void operation_done_now(struct reclaim *r)
{
	pthread_mutex_lock(&r->lock);
	r->now_done = r->now_posted;
	pthread_cond_broadcast(&r->cond);
	pthread_mutex_unlock(&r->lock);
}

/*
 * The agent has ended its operation.  LAZYFREE makes events of its own, which were read
 * before that: are they applied, or told at a barrier (event.c)?
 */
bool operation_collectable(struct process *p)
{
	bool yes;

	if (p->shared->op_kind != USM_OPS_LAZYFREE)
		return true;
	/* Who tells (event.c) waits for the answer. */
	atomic_store(&p->collecting, COLLECT_ASKS);
	yes = process_try_latch(p);
	if (yes)
		process_unlatch_reclaim(p);
	yes |= atomic_load(&p->barrier);
	atomic_store(&p->collecting, yes ? COLLECT_YES : COLLECT_NO);
	return yes;
}

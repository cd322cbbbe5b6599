/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "event.h"
#include "family.h"
#include "fault.h"
#include "lib/cleanup.h"
#include "lib/log.h"
#include "mechanism-userfault.h"
#include "policy.h"
#include "pool.h"
#include "reclaim.h"

/* A wait for frames that no reclaim can give ("oom wait") looks again this often. */
#define OOM_WAIT_USEC 10000
/* "The pool is exceeded" is logged at most this often. */
#define OOM_LOG_NSEC 5000000000ull
/* There are free frames and the policy gives none: it may not have been told of them yet; after
 * this many times it is wrong, and usmd chooses itself. */
#define POLICY_REFUSALS	    100
#define POLICY_REFUSAL_USEC 100
/* Retries of an install that meets unread events before it gives its processor away. */
#define INSTALL_SPINS 16

/* Pages [vpn, vpn + n) claimed as FILLING; one leaf, so entries are consecutive. */
struct fill {
	struct process *p;
	uint64_t vpn;
	page_entry *entry;
	unsigned n;
	bool swapped; /* all from slots, or all without content */
	bool urgent;  /* the agent's own fault: what frees frames may be waiting for it */
	uint32_t slot[USM_OPS_BATCH];
	uint32_t frame[USM_OPS_BATCH]; /* 0: none yet, or none at all: see publish() */
};

/* --- fault-around ------------------------------------------------------------------ */

/*
 * Pages to resolve for a fault at vpn.  A fault where a stream's last window ended
 * doubles its window; any other starts a stream of one page in the place of the
 * least recently used.  Races between threads of one program cost a worse guess.
 */
static unsigned window(struct process *p, uint64_t vpn, unsigned max)
{
	struct process_stream *s;

	for (unsigned i = 0; i < PROCESS_STREAMS; i++) {
		s = &p->stream[i];
		if (s->window && vpn >= s->next_vpn && vpn - s->next_vpn <= 1) {
			s->window = MIN(s->window * 2, max);
			s->next_vpn = vpn + s->window;
			return s->window;
		}
	}
	s = &p->stream[p->stream_victim++ % PROCESS_STREAMS];
	s->window = 1;
	s->next_vpn = vpn + 1;
	return 1;
}

/* The window was cut short: the stream goes on where it ended. */
static void window_ended(struct process *p, uint64_t wanted_end, uint64_t end)
{
	for (unsigned i = 0; i < PROCESS_STREAMS; i++)
		if (p->stream[i].next_vpn == wanted_end)
			p->stream[i].next_vpn = end;
}

/* --- claiming ---------------------------------------------------------------------- */

static bool claim_resident(struct fill *f, page_entry *e, uint64_t v)
{
	struct core *c = f->p->core;
	uint32_t frame = PAGE_VALUE(v), slot = 0, clean;

	if (v & PAGE_LAZY)
		slot = atomic_load(&pool_frame(c, frame)->clean_slot);
	if (!atomic_compare_exchange_strong(e, &v, PAGE_ENTRY(PAGE_FILLING, slot)))
		return false;
	atomic_fetch_sub(&f->p->nr_resident, 1);
	/* A LAZY page's content: the entry takes the reference.  Otherwise the program zapped
	 * the page, and what the slot holds is of no use. */
	clean = atomic_exchange(&pool_frame(c, frame)->clean_slot, 0);
	if (clean && !slot)
		usm_swap_unref(c->swap, clean);
	f->frame[0] = frame;
	f->slot[0] = slot;
	f->swapped = slot != 0;
	return true;
}

/* One more entry of the same kind. */
static bool claim_next(struct fill *f, page_entry *e)
{
	uint64_t v = atomic_load_explicit(e, memory_order_relaxed);

	if (f->swapped) {
		if (PAGE_STATE(v) != PAGE_SWAPPED ||
		    !atomic_compare_exchange_strong(e, &v,
						    PAGE_ENTRY(PAGE_FILLING, PAGE_VALUE(v))))
			return false;
		atomic_fetch_sub(&f->p->nr_swapped, 1);
		f->slot[f->n] = PAGE_VALUE(v);
	} else {
		if (v || !atomic_compare_exchange_strong(e, &v, PAGE_ENTRY(PAGE_FILLING, 0)))
			return false;
		f->slot[f->n] = 0;
	}
	f->frame[f->n] = 0;
	f->n++;
	return true;
}

/*
 * Claims the faulting page.  1: claimed.  0: somebody else will wake it, or it was
 * dealt with here.
 */
static int claim_first(struct fill *f, const struct fault *fault)
{
	struct process *p = f->p;
	page_entry *e = f->entry;
	uint64_t v = atomic_load(e);
	unsigned done;

	for (;;) {
		switch (PAGE_STATE(v)) {
		case PAGE_NONE:
			f->swapped = false;
			if (claim_next(f, e))
				return 1;
			break;
		case PAGE_SWAPPED:
			f->swapped = true;
			if (claim_next(f, e))
				return 1;
			break;
		case PAGE_RESIDENT:
			if (claim_resident(f, e, v)) {
				f->n = 1;
				return 1;
			}
			break;
		case PAGE_FILLING:
			return 0;
		case PAGE_EVICTING:
			/* An agent that copies a write-protected page which the program has zapped
			 * meanwhile waits for us, and the eviction for it. */
			if (fault && p->ops && (int32_t)fault->tid == p->shared->agent_tid &&
			    p->shared->op_kind == USM_OPS_LAZYFREE) {
				userfault_copy(p->shared->uffd, f->vpn, p->core->zeros, 1, &done);
				return 0;
			}
			if (atomic_compare_exchange_weak(e, &v, v | PAGE_WANTED))
				return 0;
			continue;
		case PAGE_LOST:
			process_kill(p, VADDR(f->vpn), "a page that could not be read back is needed");
			return 0;
		}
		v = atomic_load(e);
	}
}

static void wake(struct process *p, uint64_t vpn)
{
	userfault_wake(p->shared->uffd, vpn, 1);
}

/* Gives a claim back: the entry is what it was, or NONE if it was unmapped meanwhile.
 * Under the latch; the caller wakes the page. */
static void unclaim(struct fill *f, unsigned i)
{
	struct process *p = f->p;
	uint64_t v = atomic_load(&f->entry[i]);
	uint32_t slot = PAGE_VALUE(v);

	if (v & PAGE_GONE) {
		if (slot)
			usm_swap_unref(p->core->swap, slot);
		slot = 0;
	}
	if (slot)
		atomic_fetch_add(&p->nr_swapped, 1);
	atomic_store(&f->entry[i], slot ? PAGE_ENTRY(PAGE_SWAPPED, slot) : 0);
	if (f->frame[i])
		pool_release(p->core, f->frame[i]);
}

/* From `first` on; who faulted on one of them meanwhile faults again. */
static void unclaim_from(struct fill *f, unsigned first)
{
	if (first >= f->n)
		return;
	for (unsigned i = first; i < f->n; i++)
		unclaim(f, i);
	userfault_wake(f->p->shared->uffd, f->vpn + first, f->n - first);
	f->n = first;
}

/* --- frames ------------------------------------------------------------------------ */

static void log_exceeded(struct process *p)
{
	static _Atomic uint64_t last;
	uint64_t now = now_nsec(), then = atomic_load(&last);

	if (now - then < OOM_LOG_NSEC || !atomic_compare_exchange_strong(&last, &then, now))
		return;
	log_event(LOG_WARNING,
		  &((struct usm_log_fields){.event = "oom",
					    .message_id = USM_MSG_OOM,
					    .process = p->shared->name,
					    .pid = p->shared->pid}),
		  "%s (pid %d): no frame is free and nothing can leave (swap full or nothing "
		  "evictable); exceeding the pool ('oom exceed'). Add a swap file: usmctl swap add",
		  p->shared->name, p->shared->pid);
}

/* Beyond the pool; when it is, some of its own frames may be free all the same. */
static bool take_at_once(struct pool *pool, uint32_t process, uint64_t vpn, uint32_t *ret_frame)
{
	return pool_take_lent(pool, process, vpn, ret_frame) ||
	       pool_take_any(pool, process, vpn, ret_frame);
}

/* What "oom" says about a page without a frame. 1: got one, 0: try again, -ENOMEM. */
static int out_of_frames(struct process *p, struct pool *pool, uint64_t vpn, bool limited,
			 uint32_t *ret_frame)
{
	struct core *c = p->core;

	if (!limited && policy_oom(pool, p->number, vpn))
		return 0;
	switch (atomic_load(&c->oom)) {
	case USM_OOM_EXCEED:
		log_exceeded(p);
		/* When even the lent frames are used up: without one. */
		if (!pool_take_any(pool, p->number, vpn, ret_frame))
			pool_take_lent(pool, p->number, vpn, ret_frame);
		return 1;
	case USM_OOM_KILL:
		process_kill(p, VADDR(vpn),
			     limited ? "it is over its limit, nothing of it can leave, and 'oom "
				       "kill' is set" :
				       "no frame is free, nothing can leave, and 'oom kill' is set");
		return -ENOMEM;
	default:
		break;
	}
	usleep(OOM_WAIT_USEC);
	return 0;
}

static bool over_limit(struct process *p, unsigned more)
{
	uint64_t limit = p->shared->limit_pages;

	return limit && (uint64_t)MAX(atomic_load(&p->nr_resident), (int64_t)0) + more > limit;
}

/*
 * Frames for the fill's pages: the first one by all means, the others only while
 * there are plenty.  What gets none is given back.  Outside the latch.  0, or an
 * error: the whole fill was given back.
 */
static int fill_frames(struct fill *f, enum usm_event_type type, bool wait, bool lend)
{
	struct process *p = f->p;
	struct core *c = p->core;
	struct pool *pool = atomic_load(&p->pool);
	uint64_t vpn[USM_OPS_BATCH];
	unsigned have = f->frame[0] != 0, want = f->n;
	unsigned refusals = 0;
	int r = 0;

	if (lend)
		return 0; /* without frames */
	for (unsigned i = 0; i < f->n; i++)
		vpn[i] = f->vpn + i;
	while (!have) {
		int64_t spare = core_free_frames(c) - atomic_load(&c->low_frames) / 2;
		bool limited = over_limit(p, 1);

		if (atomic_load(&p->gone) || atomic_load(&p->killed)) {
			r = -ESRCH;
			break;
		}
		want = MIN(want, (unsigned)MAX(spare, (int64_t)1));
		if (want > 1 && over_limit(p, want))
			want = 1;
		if (!limited && core_free_frames(c) > 0) {
			have = policy_alloc(pool, p->number, vpn, want, type, f->frame);
			if (!have && refusals > POLICY_REFUSALS)
				have = pool_take_any(pool, p->number, vpn[0], &f->frame[0]);
			if (have)
				break;
		}
		if (f->urgent && take_at_once(pool, p->number, vpn[0], &f->frame[0])) {
			have = 1;
			break;
		}
		if (!wait) {
			/* A page that is there has to be accounted for, and others have to leave
			 * for it; one that is to come in can wait. */
			have = type == USM_EVENT_ADOPT && atomic_load(&c->evict_modes) &&
			       take_at_once(pool, p->number, vpn[0], &f->frame[0]);
			r = -ENOMEM;
			break;
		}
		worker_before_wait();
		if (reclaim_wait(c, limited ? p : NULL)) {
			if (refusals++)
				usleep(POLICY_REFUSAL_USEC);
			continue;
		}
		r = out_of_frames(p, pool, vpn[0], limited, &f->frame[0]);
		if (r < 0)
			break;
		have = r > 0;
		r = 0;
	}
	reclaim_kick(c);
	if (have < f->n) {
		process_latch(p);
		unclaim_from(f, have);
		process_unlatch(p);
	}
	return have ? 0 : r;
}

/* --- content ----------------------------------------------------------------------- */

static int fill_read(struct fill *f, uint8_t *buffer)
{
	struct process *p = f->p;
	struct usm_swap_io io[USM_OPS_BATCH];
	unsigned good = 0;
	bool lost = false;
	int r;

	for (unsigned i = 0; i < f->n; i++)
		io[i] = (struct usm_swap_io){
			.slot = f->slot[i],
			.buf = buffer + (size_t)i * USM_PAGE_SIZE,
		};
	r = usm_swap_read(p->core->swap, io, f->n);
	if (r >= 0)
		return 0;
	while (good < f->n && io[good].result >= 0)
		good++;
	process_latch(p);
	if (good == 0) {
		uint64_t v = atomic_load(&f->entry[0]);

		lost = !(v & PAGE_GONE);
		if (lost) {
			/* The slot stays referenced by nothing: the page is lost. */
			if (PAGE_VALUE(v))
				usm_swap_unref(p->core->swap, PAGE_VALUE(v));
			atomic_store(&f->entry[0], PAGE_ENTRY(PAGE_LOST, 0));
			pool_release(p->core, f->frame[0]);
			f->frame[0] = 0;
		} else {
			/* Unmapped or moved, with its slot: what was read is nobody's. */
			unclaim(f, 0);
			wake(p, f->vpn);
		}
		unclaim_from(f, 1);
		f->n = 0;
	} else {
		unclaim_from(f, good);
	}
	process_unlatch(p);
	if (good)
		return 0;
	if (!lost)
		return -ENOENT;
	log_event_errno(LOG_ERR, r,
			&((struct usm_log_fields){.event = "swapin",
						  .message_id = USM_MSG_SWAP,
						  .process = p->shared->name,
						  .pid = p->shared->pid,
						  .addr = VADDR(f->vpn),
						  .slot = f->slot[0],
						  .has_slot = 1}),
			"%s (pid %d): cannot read the page at %#llx back from slot %u: %s",
			p->shared->name, p->shared->pid, (unsigned long long)VADDR(f->vpn), f->slot[0],
			r == -EBADMSG ? "its checksum is wrong" : strerror(-r));
	process_kill(p, VADDR(f->vpn), "a page could not be read back from its swap device");
	return r;
}

/* --- installing -------------------------------------------------------------------- */

/*
 * The page is present under our claim.  Without a frame it becomes NONE: the program's
 * own, as if it had never been managed, until the janitor adopts it.  Under the latch.
 */
static void publish_as(struct fill *f, unsigned i, bool content_from_slot, uint64_t flags)
{
	struct process *p = f->p;
	struct core *c = p->core;
	uint32_t slot = PAGE_VALUE(atomic_load(&f->entry[i]));

	/* A LAZY page's content is in its slot, whatever else is wanted of slots. */
	if (slot && !(flags & PAGE_LAZY) &&
	    (!f->frame[i] || !content_from_slot || atomic_load(&c->swap_tight) ||
	     usm_swap_slot_draining(c->swap, slot))) {
		usm_swap_unref(c->swap, slot);
		slot = 0;
	}
	if (!f->frame[i]) {
		atomic_store(&f->entry[i], 0);
		return;
	}
	atomic_store_explicit(&pool_frame(c, f->frame[i])->clean_slot, slot, memory_order_relaxed);
	atomic_fetch_add_explicit(&p->nr_resident, 1, memory_order_relaxed);
	atomic_store(&f->entry[i], PAGE_ENTRY(PAGE_RESIDENT, f->frame[i]) | flags);
}

static void publish(struct fill *f, unsigned i)
{
	publish_as(f, i, f->swapped, 0);
}

/*
 * The page was present before we came.  The kernel may be about to zap it, if a REMOVE was
 * announced: then it must not leave for a while, like every page that was announced.
 */
static void publish_present(struct fill *f, unsigned i)
{
	publish_as(f, i, false, process_present_flags(f->p));
}

/*
 * Installs the pages and publishes them.  Everything is looked at again under the
 * latch: the kernel says EAGAIN as long as an event is unread, and the latch says
 * that what was read has been applied.
 */
static int fill_install(struct fill *f, const uint8_t *buffer)
{
	struct process *p = f->p;
	unsigned i = 0, spins = 0;
	int r = 0;

	process_latch(p);
	while (i < f->n) {
		unsigned j = i, done;

		while (j < f->n && !(atomic_load(&f->entry[j]) & PAGE_GONE))
			j++;
		if (j == i) {
			unclaim(f, i);
			wake(p, f->vpn + i++);
			continue;
		}
		r = userfault_copy(p->shared->uffd, f->vpn + i,
				   f->swapped ? buffer + (size_t)i * USM_PAGE_SIZE :
						(const uint8_t *)p->core->zeros,
				   j - i, &done);
		for (unsigned k = 0; k < done; k++)
			publish(f, i + k);
		i += done;
		if (r == 0 || done)
			continue;
		switch (r) {
		case -EAGAIN:
			process_unlatch(p);
			event_readable(p);
			if (++spins % INSTALL_SPINS == 0)
				sched_yield();
			process_latch(p);
			break;
		case -EEXIST:
			/* Present already: what is there is newer than any slot. */
			publish_present(f, i);
			wake(p, f->vpn + i);
			i++;
			break;
		case -ESRCH:
			process_gone(p);
			unclaim_from(f, i);
			break;
		case -ENOMEM:
			process_unlatch(p);
			usleep(1000);
			process_latch(p);
			break;
		default:
			/* ENOENT: not mapped any more, or the region ends here. */
			unclaim_from(f, i);
			break;
		}
	}
	process_unlatch(p);
	return r == -ESRCH ? r : 0;
}

static int claim_one(struct fill *f, struct process *p, uint64_t vpn, bool swapped)
{
	f->p = p;
	f->vpn = vpn;
	f->n = 0;
	f->swapped = swapped;
	f->urgent = false;
	f->entry = process_page(p, vpn, !swapped);
	if (!f->entry)
		return swapped ? -ENOENT : -ENOMEM;
	return claim_next(f, f->entry) ? 0 : -EAGAIN;
}

/* Present, and NONE or SWAPPED: from now on it has a frame of its own.  -errno. */
static int take_in(struct process *p, uint64_t vpn, bool swapped, bool wait, bool urgent)
{
	struct fill f;
	int r;

	process_latch(p);
	r = claim_one(&f, p, vpn, swapped);
	process_unlatch(p);
	if (r < 0)
		return r;
	f.urgent = urgent;
	r = fill_frames(&f, USM_EVENT_ADOPT, wait, false);
	if (r < 0)
		return r;
	/*
	 * What said that it is present may be out of date, and the address another mapping's by now,
	 * not registered yet: a page of that must not leave, as nobody would be told of its fault.
	 * An attempt to install says whether it is registered and present.
	 */
	if (!swapped) {
		r = fill_install(&f, NULL);
		return r < 0 || f.n ? r : -ENOENT;
	}
	process_latch(p);
	if (atomic_load(&f.entry[0]) & PAGE_GONE || !f.frame[0])
		unclaim(&f, 0);
	else
		publish_as(&f, 0, true, PAGE_LAZY);
	process_unlatch(p);
	/* A fault that met our claim was not served by anybody. */
	wake(p, vpn);
	return 0;
}

static bool is_none(struct process *p, uint64_t vpn)
{
	page_entry *e;
	bool none;

	if (!process_try_latch(p))
		return false; /* it is forking itself, or like that: the janitor will see */
	e = process_page(p, vpn, false);
	none = !e || !atomic_load(e);
	process_unlatch(p);
	return none;
}

/*
 * A page that a fork may have shared is about to be written: the writer gets a copy, and there
 * is one page more.  The frame that accounts for the shared page is its first owner's, whose
 * entry is RESIDENT; in the others' tables it is NONE.  If the writer's is NONE, the copy gets a
 * frame there; else what the writer leaves behind gets one, at one of those who keep it.
 */
static void account_for_copy(struct process *p, const struct fault *fault, enum page_state state)
{
	struct process *q;
	bool urgent = (int32_t)fault->tid == p->shared->agent_tid;

	if (state == PAGE_NONE || state == PAGE_SWAPPED) {
		take_in(p, fault->vpn, state == PAGE_SWAPPED, true, urgent);
		return;
	}
	if (state != PAGE_RESIDENT)
		return;
	for (uint32_t i = 0; (q = family_next(p, &i));) {
		int r = -ENOENT;

		/* Not for one that has executed another program since. */
		if (!atomic_load(&q->gone) && is_none(q, fault->vpn) &&
		    userfault_protect(q->shared->uffd, VPN(0x10000), 1, false) != -ESRCH)
			r = take_in(q, fault->vpn, false, true, urgent);
		process_put(q);
		if (r == 0)
			return;
	}
}

static void serve_protection(struct process *p, const struct fault *fault)
{
	page_entry *e;
	uint64_t v;

	if (p->shared->fork_protected) {
		process_latch(p);
		e = process_page(p, fault->vpn, false);
		v = e ? atomic_load(e) : 0;
		process_unlatch(p);
		account_for_copy(p, fault, PAGE_STATE(v));
	}
	process_latch(p);
	e = process_page(p, fault->vpn, false);
	v = e ? atomic_load(e) : 0;
	while (PAGE_STATE(v) == PAGE_EVICTING)
		if (atomic_compare_exchange_weak(e, &v, v | PAGE_WANTED))
			goto out;
	if (userfault_protect(p->shared->uffd, fault->vpn, 1, false) < 0)
		wake(p, fault->vpn); /* EAGAIN, ENOENT: it faults again if it must */
out:
	process_unlatch(p);
}

void fault_serve(struct worker *w, struct process *p, const struct fault *fault)
{
	struct core *c = p->core;
	struct fill f;
	unsigned want;

	if (unlikely(fault->flags & UFFD_PAGEFAULT_FLAG_WP)) {
		serve_protection(p, fault);
		return;
	}
	if (unlikely(p->shared->marker && VADDR(fault->vpn) == p->shared->marker &&
		     p->shared->is_child && !p->shared->attached)) {
		uint8_t page[USM_PAGE_SIZE] __attribute__((aligned(USM_PAGE_SIZE))) = {0};
		unsigned done;

		memcpy(page, &p->shared->nonce, sizeof(p->shared->nonce));
		process_latch(p);
		if (userfault_copy(p->shared->uffd, fault->vpn, page, 1, &done) < 0)
			wake(p, fault->vpn);
		process_unlatch(p);
		return;
	}
	f.p = p;
	f.vpn = fault->vpn;
	f.n = 0;
	f.frame[0] = 0;
	f.urgent = p->ops && (int32_t)fault->tid == p->shared->agent_tid;
	process_latch(p);
	f.entry = process_page(p, f.vpn, true);
	if (unlikely(!f.entry)) {
		process_unlatch(p);
		log_warning("No memory for a page table of %s (pid %d), retrying", p->shared->name,
			    p->shared->pid);
		usleep(1000);
		wake(p, fault->vpn);
		return;
	}
	if (!claim_first(&f, fault)) {
		process_unlatch(p);
		return;
	}
	want = window(p, f.vpn, atomic_load_explicit(&c->faultaround, memory_order_relaxed));
	while (f.n < want && (f.vpn + f.n) % LEAF_PAGES && claim_next(&f, f.entry + f.n))
		;
	process_unlatch(p);

	if (fill_frames(&f, f.swapped ? USM_EVENT_SWAP_IN : USM_EVENT_FIRST_TOUCH, true, false) < 0)
		return;
	if (f.n < want)
		window_ended(p, f.vpn + want, f.vpn + f.n);
	if (f.swapped) {
		if (fill_read(&f, w->buffer) < 0)
			return;
		atomic_fetch_add_explicit(&p->shared->nr_swap_ins, f.n, memory_order_relaxed);
		atomic_fetch_add_explicit(&c->arena->h->nr_swap_ins, f.n, memory_order_relaxed);
	}
	fill_install(&f, w->buffer);
	atomic_fetch_add_explicit(&p->shared->nr_faults, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&c->arena->h->nr_faults, 1, memory_order_relaxed);
	process_count_fault(p, now_nsec() - fault->nsec);
}

int fault_bring_back(struct worker *w, struct process *p, uint64_t vpn, bool lend)
{
	struct fill f;
	int r;

	process_latch(p);
	r = claim_one(&f, p, vpn, true);
	while (r >= 0 && f.n < USM_OPS_BATCH && (vpn + f.n) % LEAF_PAGES &&
	       claim_next(&f, f.entry + f.n))
		;
	process_unlatch(p);
	if (r < 0)
		return r;
	r = fill_frames(&f, USM_EVENT_SWAP_IN, false, lend);
	if (r < 0)
		return r;
	r = fill_read(&f, w->buffer);
	if (r < 0)
		return r;
	atomic_fetch_add_explicit(&p->shared->nr_swap_ins, f.n, memory_order_relaxed);
	atomic_fetch_add_explicit(&p->core->arena->h->nr_swap_ins, f.n, memory_order_relaxed);
	return fill_install(&f, w->buffer);
}

int fault_adopt(struct process *p, uint64_t vpn)
{
	return take_in(p, vpn, false, false, false);
}

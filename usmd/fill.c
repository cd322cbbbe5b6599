/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "event.h"
#include "fill.h"
#include "kill-point.h"
#include "lib/cleanup.h"
#include "lib/log.h"
#include "policy.h"
#include "pool.h"
#include "reclaim.h"
#include "worker.h"

/* A wait for frames that no reclaim can give ("oom wait") looks again this often. */
#define OOM_WAIT_USEC 10000
/* That the pool is exceeded, or memory short, is logged at most this often. */
#define OOM_LOG_NSEC 5000000000ull
/* There are free frames and the policy gives none: it may not have been told of them yet; after
 * this many times it is wrong, and usmd chooses itself. */
#define POLICY_REFUSALS	    100
#define POLICY_REFUSAL_USEC 100
/* Retries of an install that meets unread events before it gives its processor away. */
#define INSTALL_SPINS 16

/* --- claiming ---------------------------------------------------------------------- */

bool fill_claim_resident(struct fill *f, page_entry *e, uint64_t v)
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

bool fill_claim_next(struct fill *f, page_entry *e)
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

void fill_unclaim(struct fill *f, unsigned i)
{
	struct process *p = f->p;
	uint64_t v = atomic_load(&f->entry[i]);
	uint32_t slot = PAGE_VALUE(v);
	bool keep = slot && !(v & PAGE_GONE);

	if (keep)
		atomic_fetch_add(&p->nr_swapped, 1);
	atomic_store(&f->entry[i], keep ? PAGE_ENTRY(PAGE_SWAPPED, slot) : 0);
	KILL_POINT("fault-given-back");
	if (slot && !keep)
		usm_swap_unref(p->core->swap, slot);
	if (f->frame[i])
		pool_release(p->core, f->frame[i]);
}

/* From `first` on; who faulted on one of them is woken later. */
static void unclaim_quietly(struct fill *f, unsigned first)
{
	for (unsigned i = first; i < f->n; i++)
		fill_unclaim(f, i);
	f->n = MIN(f->n, first);
}

/* From `first` on; who faulted on one of them meanwhile faults again. */
static void unclaim_from(struct fill *f, unsigned first)
{
	unsigned n = f->n;

	if (first >= n)
		return;
	unclaim_quietly(f, first);
	userfault_wake(f->p->shared->uffd, f->vpn + first, n - first);
}

/* --- frames ------------------------------------------------------------------------ */

bool fill_log_is_due(_Atomic uint64_t *last)
{
	uint64_t now = now_nsec(), then = atomic_load(last);

	return now - then >= OOM_LOG_NSEC && atomic_compare_exchange_strong(last, &then, now);
}

static void log_exceeded(struct process *p)
{
	static _Atomic uint64_t last;

	if (!fill_log_is_due(&last))
		return;
	log_event(LOG_WARNING,
		  &((struct usm_log_fields){.event = "oom",
					    .message_id = USM_MSG_OOM,
					    .process = p->shared->name,
					    .pid = p->shared->pid,
					    .policy = p->shared->policy}),
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

/* What "oom" says about a page without a frame. 1: got one, 0: try again, -ENOMEM, -EINPROGRESS:
 * not now. */
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
	if (limited)
		return -EINPROGRESS;
	usleep(OOM_WAIT_USEC);
	return 0;
}

static bool over_limit(struct process *p, unsigned more)
{
	uint64_t limit = p->shared->limit_pages;

	return limit && (uint64_t)MAX(atomic_load(&p->nr_resident), (int64_t)0) + more > limit;
}

int fill_frames(struct fill *f, enum usm_event_type type, bool wait, bool lend)
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
		if (process_at_barrier(p)) {
			/* It may be what we claimed that it waits for, and nothing of the program can
			 * leave meanwhile. */
			r = -EAGAIN;
			break;
		}
		if (limited && !reclaim_is_stuck(p)) {
			r = -EINPROGRESS;
			break;
		}
		if (!limited) {
			worker_before_wait();
			if (reclaim_wait(c)) {
				if (refusals++)
					usleep(POLICY_REFUSAL_USEC);
				continue;
			}
		}
		r = out_of_frames(p, pool, vpn[0], limited, &f->frame[0]);
		if (r < 0)
			break;
		have = r > 0;
		r = 0;
	}
	reclaim_kick(c);
	if (have < f->n) {
		process_latch_claimed(p);
		if (r == -EINPROGRESS)
			unclaim_quietly(f, have);
		else
			unclaim_from(f, have);
		process_unlatch(p);
	}
	if (r == -EINPROGRESS)
		reclaim_park(p);
	return have ? 0 : r;
}

/* --- content ----------------------------------------------------------------------- */

int fill_read(struct fill *f, uint8_t *buffer)
{
	struct process *p = f->p;
	struct usm_swap_io io[USM_OPS_BATCH];
	unsigned good = 0;
	bool lost = false, again;
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
	again = usm_swap_is_transient(r);
	process_latch_claimed(p);
	if (good == 0) {
		uint64_t v = atomic_load(&f->entry[0]);

		lost = !(v & PAGE_GONE) && !again;
		if (lost) {
			atomic_store(&f->entry[0], PAGE_ENTRY(PAGE_LOST, 0));
			if (PAGE_VALUE(v))
				usm_swap_unref(p->core->swap, PAGE_VALUE(v));
			if (f->frame[0])
				pool_release(p->core, f->frame[0]);
			f->frame[0] = 0;
		} else {
			/* Unmapped or moved, with its slot: what was read is nobody's.  Or there was no
			 * memory to read it: it faults again. */
			fill_unclaim(f, 0);
			fill_wake(p, f->vpn);
		}
		unclaim_from(f, 1);
		f->n = 0;
	} else {
		unclaim_from(f, good);
	}
	process_unlatch(p);
	if (good)
		return 0;
	if (!lost) {
		if (again)
			usleep(FILL_MEMORY_USEC);
		return again ? -ENOMEM : -ENOENT;
	}
	log_event_errno(LOG_ERR, r,
			&((struct usm_log_fields){.event = "swapin",
						  .message_id = USM_MSG_SWAP,
						  .process = p->shared->name,
						  .pid = p->shared->pid,
						  .policy = p->shared->policy,
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
 * own, as if it had never been managed, until a scan adopts it.  Under the latch.
 */
static void publish_as(struct fill *f, unsigned i, bool content_from_slot, uint64_t flags)
{
	struct process *p = f->p;
	struct core *c = p->core;
	uint32_t slot = PAGE_VALUE(atomic_load(&f->entry[i]));
	/* A LAZY page's content is in its slot, whatever else is wanted of slots. */
	bool keep = slot && (flags & PAGE_LAZY ||
			     (f->frame[i] && content_from_slot && !atomic_load(&c->swap_tight) &&
			      !usm_swap_slot_draining(c->swap, slot)));

	if (f->frame[i]) {
		atomic_store_explicit(&pool_frame(c, f->frame[i])->clean_slot, keep ? slot : 0,
				      memory_order_relaxed);
		atomic_fetch_add_explicit(&p->nr_resident, 1, memory_order_relaxed);
		atomic_store(&f->entry[i], PAGE_ENTRY(PAGE_RESIDENT, f->frame[i]) | flags);
	} else {
		atomic_store(&f->entry[i], 0);
	}
	KILL_POINT("fault-published");
	/* Only now: a new engine believes the entry, and a free slot is another page's soon. */
	if (slot && !keep)
		usm_swap_unref(c->swap, slot);
}

static void publish(struct fill *f, unsigned i)
{
	publish_as(f, i, f->swapped, 0);
}

/*
 * The page was present before we came.  The kernel may be about to zap it, if a REMOVE was
 * announced: then it must not leave for a while, like every page that was announced.
 * If it has a slot too, what is there is newer, or it is a LAZY page that a fork has shared: the
 * kernel may drop that one still.
 */
static void publish_present(struct fill *f, unsigned i)
{
	if (f->swapped && f->frame[i])
		publish_as(f, i, true, PAGE_LAZY);
	else if (f->swapped)
		fill_unclaim(f, i); /* without a frame nothing would say that the kernel may drop it */
	else
		publish_as(f, i, false, process_present_flags(f->p));
}

int fill_install(struct fill *f, const uint8_t *buffer)
{
	struct process *p = f->p;
	unsigned i = 0, spins = 0;
	int r = 0;

	if (!process_latch_claimed(p))
		unclaim_from(f, 0);
	while (i < f->n) {
		unsigned j = i, done;

		while (j < f->n && !(atomic_load(&f->entry[j]) & PAGE_GONE))
			j++;
		if (j == i) {
			fill_unclaim(f, i);
			fill_wake(p, f->vpn + i++);
			continue;
		}
		r = userfault_copy(p->shared->uffd, f->vpn + i,
				   f->swapped ? buffer + (size_t)i * USM_PAGE_SIZE :
						(const uint8_t *)p->core->zeros,
				   j - i, &done);
		KILL_POINT("fault-installed");
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
			if (!process_latch_claimed(p))
				unclaim_from(f, i);
			break;
		case -EEXIST:
			publish_present(f, i);
			fill_wake(p, f->vpn + i);
			i++;
			break;
		case -ESRCH:
			process_gone(p);
			unclaim_from(f, i);
			break;
		case -ENOMEM:
			process_unlatch(p);
			usleep(FILL_MEMORY_USEC);
			if (!process_latch_claimed(p))
				unclaim_from(f, i);
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

/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "lib/cleanup.h"
#include "lib/log.h"
#include "mechanism-userfault.h"
#include "policy.h"
#include "pool.h"
#include "process.h"
#include "reclaim.h"
#include "worker.h"

/* A program that has not done its operation by then is stopped or starved: go on without. */
#define STALL_NSEC 1000000000ull
/* With demand but no victims: look again after this. */
#define IDLE_MSEC 5
/* With operations under way: look for stalled ones this often. */
#define BUSY_MSEC 200
/* An ended operation whose events are being applied. */
#define AGAIN_MSEC 1
/* Passes without a victim before a waiting fault is told that nothing can leave. */
#define IDLE_PASSES 2
/* After everything was tried in vain, for this long it is not tried again. */
#define EXHAUSTED_NSEC 100000000ull
#define REQUESTS 32
/* A page that cannot be put back meets unread events: try again after this. */
#define PUT_BACK_USEC 100
/* Free slots below this share (permyriad) of all: clean ones are not kept. */
#define TIGHT_PERMYRIAD 1000
#define CLEAN_SCAN 8192u
/* A program of low priority keeps this many pages while others have any. */
#define PRIORITY_FLOOR 256

struct request {
	bool used, done;
	uint32_t process, generation;
	uint64_t want, evicted;
	unsigned fruitless;
	const char *reason;
};

struct reclaim {
	struct core *core;
	pthread_t thread;
	int epoll_fd, kick_fd;
	_Atomic bool stop, kicked;
	bool reclaiming;
	uint64_t nr_stayed;	 /* pages in a row that could not leave */
	uint64_t exhausted_nsec; /* when all had stayed, 0: some left since */
	unsigned nr_posted; /* operations under way that are not stalled */
	bool again;	    /* an operation has ended, and its events are just being applied */
	struct arena_worker *record;

	pthread_mutex_t lock; /* what follows; leaf */
	pthread_cond_t cond;
	uint64_t idle_passes;
	unsigned nr_waiting;
	struct request request[REQUESTS];
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

static void broadcast(struct reclaim *r)
{
	pthread_mutex_lock(&r->lock);
	pthread_cond_broadcast(&r->cond);
	pthread_mutex_unlock(&r->lock);
}

/* --- posting ----------------------------------------------------------------------- */

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

static bool only_lazy(struct core *c)
{
	return !(atomic_load(&c->evict_modes) & USM_EVICT_MOVE);
}

static bool can_post(struct process *p)
{
	return atomic_load(&p->core->evict_modes) && p->ops && p->shared->sock >= 0 &&
	       p->evict.in_epoll && !atomic_load(&p->no_evict) && !atomic_load(&p->swap_none) &&
	       !atomic_load(&p->gone) && !atomic_load(&p->barrier) &&
	       atomic_load(&p->shared->op_state) == OP_IDLE;
}

static void send_work(struct process *p)
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
	ops->kind = kind;
	ops->n = n;
	for (unsigned i = 0; i < n; i++) {
		ops->addr[i] = VADDR(s->op_vpn[i]);
		atomic_store_explicit(&ops->res[i], -EINPROGRESS, memory_order_relaxed);
	}
	atomic_store(&ops->req, s->op_seq);
	p->evict.posted_nsec = now_nsec();
	p->evict.stalled = false;
	r->nr_posted++;
}

/* Slots that were reserved for more pages than there are. */
static void return_slots(struct process *p, unsigned keep)
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

/* Gives slots of unchanged resident pages back: of all devices, or of those that are being
 * removed.  Looks at `scan` frames of each pool, from *hand on.  Returns how many. */
static unsigned drop_slots(struct core *c, bool draining, uint32_t *hand, uint64_t scan)
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
				if (PAGE_STATE(v) == PAGE_RESIDENT && PAGE_VALUE(v) == frames[i] &&
				    !(v & PAGE_LAZY)) {
					uint32_t slot = atomic_exchange(&f->clean_slot, 0);

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

static unsigned drop_clean_slots(struct core *c)
{
	static uint32_t hand;

	return drop_slots(c, false, &hand, CLEAN_SCAN);
}

void reclaim_drop_draining(struct core *c)
{
	uint32_t hand = 0;

	drop_slots(c, true, &hand, UINT64_MAX);
}

/*
 * Claims those of the frames that are resident pages of p and may leave, and hands
 * them to its agent.  Returns how many; the others are moved to the end of frames[].
 */
static unsigned post_frames(struct reclaim *r, struct process *p, uint32_t *frames, unsigned n,
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

	n = MIN(n, USM_OPS_BATCH);
	/* A page is not taken out before there is a place for it. */
	p->evict.nr_slots = usm_swap_alloc(c->swap, p->evict.slot, n);
	if (p->evict.nr_slots < n && drop_clean_slots(c))
		p->evict.nr_slots += usm_swap_alloc(c->swap, p->evict.slot + p->evict.nr_slots,
						    n - p->evict.nr_slots);
	if (!p->evict.nr_slots || !process_try_latch(p)) {
		return_slots(p, 0);
		return 0;
	}
	for (unsigned i = 0; i < n; i++) {
		v[i].vpn = ARENA_OWNER_VPN(atomic_load(&pool_frame(c, frames[i])->owner));
		v[i].frame = frames[i];
	}
	qsort(v, n, sizeof(v[0]), compare_vpn);
	atomic_store(&p->ops->inflight, 1);
	nr_pins = read_pins(p, pins);

	for (unsigned i = 0; i < n; i++) {
		page_entry *e = process_page(p, v[i].vpn, false);
		uint64_t old = e ? atomic_load(e) : 0;

		if (k == p->evict.nr_slots || atomic_load(&p->barrier) || PAGE_STATE(old) != PAGE_RESIDENT ||
		    PAGE_VALUE(old) != v[i].frame || page_removed_recently(old) ||
		    bsearch(&v[i].vpn, pins, nr_pins, sizeof(*pins), compare_vpn) ||
		    !atomic_compare_exchange_strong(
			    e, &old, PAGE_ENTRY(PAGE_EVICTING, v[i].frame) | (old & PAGE_LAZY))) {
			rest[left++] = v[i].frame;
			continue;
		}
		p->shared->op_vpn[k] = v[i].vpn;
		frames[k++] = v[i].frame;
	}
	atomic_fetch_add(&p->nr_evicting, k);
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
	if (k)
		post(r, p, lazy ? USM_OPS_LAZYFREE : USM_OPS_MOVE, k);
	else
		atomic_store(&p->ops->inflight, 0);
	process_unlatch_reclaim(p);
	return_slots(p, k);
	if (k)
		send_work(p);
	memcpy(frames + k, rest, left * sizeof(*rest));
	return k;
}

/* What MOVE has refused for its protection (PROT_READ, PROT_NONE) can leave by LAZYFREE. */
static void post_refused(struct reclaim *r, struct process *p)
{
	uint32_t frames[USM_OPS_BATCH];
	unsigned n = 0;

	if (!process_try_latch(p))
		return; /* the next time */
	for (unsigned i = 0; i < p->evict.nr_refused; i++) {
		page_entry *e = process_page(p, p->evict.refused[i], false);
		uint64_t v = e ? atomic_load(e) : 0;

		if (PAGE_STATE(v) == PAGE_RESIDENT)
			frames[n++] = PAGE_VALUE(v);
	}
	process_unlatch_reclaim(p);
	p->evict.nr_refused = 0;
	if (n)
		post_frames(r, p, frames, n, true);
}

static void post_unshare(struct reclaim *r, struct process *p)
{
	unsigned n = p->evict.nr_unshare;

	memcpy(p->shared->op_vpn, p->evict.unshare, n * sizeof(uint64_t));
	p->evict.nr_unshare = 0;
	post(r, p, USM_OPS_UNSHARE, n);
	send_work(p);
}

/* --- collecting -------------------------------------------------------------------- */

/*
 * Leaves EVICTING for `to`, unless the page was unmapped or discarded meanwhile.
 * Returns what was published.  A slot in `to` comes with a reference of its own, or is
 * the frame's clean slot, whose reference moves.  Not taken: the agent left it alone, so
 * what was announced was the program's.
 */
static uint64_t finish_page(struct process *p, unsigned i, page_entry *e, uint64_t to, bool taken)
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
	if (v & PAGE_WANTED || PAGE_STATE(new) == PAGE_RESIDENT)
		userfault_wake(p->shared->uffd, p->shared->op_vpn[i], 1);
	return new;
}

static uint64_t finish(struct process *p, unsigned i, page_entry *e, uint64_t to)
{
	return finish_page(p, i, e, to, true);
}

static bool is_zero(const uint8_t *page)
{
	return !page[0] && !memcmp(page, page + 1, USM_PAGE_SIZE - 1);
}

/*
 * Its content stays with the program: no device could take it.  While a FORK waits for
 * us, what was read after it is not applied, and the address may be another mapping's by
 * now: then the content cannot be placed, and the program cannot go on.
 */
static void put_back(struct process *p, unsigned i, page_entry *e, const uint8_t *page)
{
	uint64_t vpn = p->shared->op_vpn[i];

	for (;;) {
		uint64_t v = atomic_load(e);
		unsigned done;
		int r = -EAGAIN;

		if (process_try_latch(p)) {
			v = atomic_load(e);
			if (!(v & (PAGE_GONE | PAGE_DISCARD)))
				r = userfault_copy(p->shared->uffd, vpn, page, 1, &done);
			else
				r = -ENOENT;
			if (r == 0 || r == -EEXIST || r == -ESRCH || r == -ENOENT)
				finish(p, i, e,
				       r == -ENOENT ? 0 : PAGE_ENTRY(PAGE_RESIDENT, PAGE_VALUE(v)));
			process_unlatch_reclaim(p);
			if (r != -EAGAIN && r != -ENOMEM)
				return;
		} else if (atomic_load(&p->barrier)) {
			finish(p, i, e, PAGE_ENTRY(PAGE_LOST, 0));
			process_kill(p, VADDR(vpn), "its page could not be written to swap during a fork");
			return;
		}
		if (atomic_load(&p->gone)) {
			finish(p, i, e, 0);
			return;
		}
		usleep(PUT_BACK_USEC);
	}
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
	userfault_protect(p->shared->uffd, p->shared->op_vpn[l->i], 1, false);
	finish(p, l->i, e, PAGE_ENTRY(PAGE_RESIDENT, frame) | PAGE_LAZY);
}

/* Writes out, retrying on another device what failed; what no slot takes is put back. */
static unsigned write_out(struct reclaim *r, struct process *p, struct leaving *l, unsigned n)
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
	for (unsigned k = 0; k < n; k++) {
		page_entry *e = r->entry[l[k].i];

		if (l[k].stays) {
			/* Present, and the kernel may drop it at any time: install our copy where
			 * it did, else make the program dirty it. */
			userfault_protect(p->shared->uffd, p->shared->op_vpn[l[k].i], 1, false);
			if (p->evict.nr_unshare < USM_OPS_BATCH)
				p->evict.unshare[p->evict.nr_unshare++] = p->shared->op_vpn[l[k].i];
		}
		put_back(p, l[k].i, e, data + (size_t)l[k].i * USM_PAGE_SIZE);
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
		  &((struct usm_log_fields){
			  .event = "evict", .process = p->shared->name, .pid = p->shared->pid}),
		  "%s (pid %d): no page of it is evicted any more: %s", p->shared->name,
		  p->shared->pid, why);
}

static void end_operation(struct process *p)
{
	uint32_t n = p->shared->op_kind == USM_OPS_UNSHARE ? 0 : p->shared->op_n;

	p->evict.stalled = false;
	return_slots(p, 0);
	atomic_store(&p->ops->inflight, 0);
	atomic_store(&p->shared->op_state, OP_IDLE);
	if (n && atomic_fetch_sub(&p->nr_evicting, n) == n && atomic_load(&p->barrier))
		syscall(SYS_futex, &p->nr_evicting, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/*
 * Takes an operation's results.  A new engine may do it again for one that the dead
 * engine had begun: pages that are published are not EVICTING any more.
 */
static void collect(struct reclaim *r, struct process *p)
{
	struct core *c = r->core;
	struct arena_process *s = p->shared;
	uint8_t *data = (uint8_t *)p->ops + USM_OPS_DATA;
	struct leaving leaving[USM_OPS_BATCH];
	uint32_t stay[USM_OPS_BATCH];
	unsigned nr_leaving = 0, nr_stay = 0, evicted = 0, nr_pinned = 0;
	bool lazy = s->op_kind == USM_OPS_LAZYFREE, refused = false;
	bool fallback = !lazy && !p->evict.no_fallback &&
			atomic_load(&c->evict_modes) & USM_EVICT_LAZYFREE;
	struct pool *pool = atomic_load(&p->pool);

	atomic_store(&s->op_state, OP_COLLECT);
	if (s->op_kind == USM_OPS_UNSHARE) {
		end_operation(p);
		return;
	}
	for (unsigned i = 0; i < s->op_n; i++) {
		page_entry *e = process_page(p, s->op_vpn[i], false);
		const uint8_t *page = data + (size_t)i * USM_PAGE_SIZE;
		int32_t res = atomic_load(&p->ops->res[i]);
		uint64_t v = e ? atomic_load(e) : 0;
		uint32_t slot;
		bool stays;

		r->entry[i] = e;
		if (PAGE_STATE(v) != PAGE_EVICTING)
			continue;
		slot = atomic_load(&pool_frame(c, PAGE_VALUE(v))->clean_slot);
		if (res == -ENOENT) {
			/* The kernel had dropped it already (LAZY), or the program did. */
			finish_page(p, i, e, v & PAGE_LAZY && slot ? PAGE_ENTRY(PAGE_SWAPPED, slot) : 0,
				    false);
			continue;
		}
		stays = lazy && (res == -EBUSY || res == -EMLINK);
		if (res != 0 && !stays) {
			if (lazy)
				userfault_protect(s->uffd, s->op_vpn[i], 1, false);
			if (finish_page(p, i, e,
					PAGE_ENTRY(PAGE_RESIDENT, PAGE_VALUE(v)) | (v & PAGE_LAZY),
					!lazy))
				stay[nr_stay++] = PAGE_VALUE(v);
			refused |= res == -EPERM;
			nr_pinned += res == -EBUSY || res == -EINVAL;
			if (res == -EINVAL && fallback && p->evict.nr_refused < USM_OPS_BATCH)
				p->evict.refused[p->evict.nr_refused++] = s->op_vpn[i];
			if (res == -EBUSY && p->evict.nr_unshare < USM_OPS_BATCH)
				p->evict.unshare[p->evict.nr_unshare++] = s->op_vpn[i];
			continue;
		}
		if (v & (PAGE_GONE | PAGE_DISCARD) && !stays) {
			finish(p, i, e, 0);
			continue;
		}
		if (!stays && is_zero(page)) {
			finish(p, i, e, 0);
			evicted++;
			continue;
		}
		if (stays)
			stay[nr_stay++] = PAGE_VALUE(v);
		if (stays && res == -EMLINK && p->evict.nr_unshare < USM_OPS_BATCH)
			p->evict.unshare[p->evict.nr_unshare++] = s->op_vpn[i];
		if (slot && usm_swap_slot_matches(c->swap, slot, page)) {
			if (stays) {
				userfault_protect(s->uffd, s->op_vpn[i], 1, false);
				finish(p, i, e, PAGE_ENTRY(PAGE_RESIDENT, PAGE_VALUE(v)) | PAGE_LAZY);
			} else {
				finish(p, i, e, PAGE_ENTRY(PAGE_SWAPPED, slot));
				evicted++;
			}
			continue;
		}
		leaving[nr_leaving++] = (struct leaving){.i = i, .stays = stays};
	}
	if (nr_leaving)
		evicted += write_out(r, p, leaving, nr_leaving);
	atomic_store(&p->nr_unevictable, nr_pinned);
	/* Pages in a row that stayed: when they are as many as there are, none can leave. */
	if (evicted) {
		r->nr_stayed = 0;
		r->exhausted_nsec = 0;
		atomic_store(&p->nr_stayed, 0);
	} else {
		r->nr_stayed += nr_stay;
		atomic_fetch_add(&p->nr_stayed, nr_stay);
	}
	atomic_fetch_add(&s->nr_evictions, evicted);
	atomic_fetch_add(&c->arena->h->nr_evictions, evicted);
	end_operation(p);
	if (refused && lazy && !only_lazy(c) &&
	    atomic_load(&p->ops->agent_state) == USM_AGENT_RUNNING)
		p->evict.no_fallback = true; /* without its hooks in place LAZYFREE is not safe */
	else if (refused)
		note_stopped(p);
	if (evicted)
		reclaim_check_limit(p);
	if (pool) {
		policy_give_back(pool, stay, nr_stay);
		pool_flush(pool);
	}
	pthread_mutex_lock(&r->lock);
	for (unsigned i = 0; i < REQUESTS; i++) {
		struct request *q = &r->request[i];

		if (q->used && !q->done && q->process == p->number && q->generation == p->generation) {
			q->evicted += evicted;
			q->fruitless = evicted ? 0 : q->fruitless + 1;
		}
	}
	r->now_done = r->now_posted;
	pthread_cond_broadcast(&r->cond);
	pthread_mutex_unlock(&r->lock);
}

/*
 * The agent has ended its operation.  LAZYFREE makes events of its own, which were read
 * before that: are they applied, or told at a barrier (event.c)?
 */
static bool can_collect(struct process *p)
{
	if (p->shared->op_kind != USM_OPS_LAZYFREE)
		return true;
	if (process_try_latch(p)) {
		process_unlatch_reclaim(p);
		return true;
	}
	return atomic_load(&p->barrier);
}

/* The program is dead: nobody needs the pages of its operation. */
static void give_up(struct reclaim *r, struct process *p)
{
	if (atomic_load(&p->shared->op_state) != OP_IDLE) {
		for (unsigned i = 0; p->shared->op_kind != USM_OPS_UNSHARE && i < p->shared->op_n; i++) {
			page_entry *e = process_page(p, p->shared->op_vpn[i], false);

			if (e && PAGE_STATE(atomic_load(e)) == PAGE_EVICTING)
				finish(p, i, e, 0);
		}
		end_operation(p);
	}
	if (p->evict.in_epoll) {
		epoll_ctl(r->epoll_fd, EPOLL_CTL_DEL, p->shared->sock, NULL);
		p->evict.in_epoll = false;
	}
	atomic_store(&p->forget, false);
}

/* --- the thread -------------------------------------------------------------------- */

static void agent_readable(struct reclaim *r, struct process *p)
{
	struct usm_attach_msg m;
	ssize_t n;

	while ((n = recv(p->shared->sock, &m, sizeof(m), MSG_DONTWAIT)) > 0)
		;
	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
		epoll_ctl(r->epoll_fd, EPOLL_CTL_DEL, p->shared->sock, NULL);
		p->evict.in_epoll = false;
		process_gone(p);
	}
}

static void check_operations(struct reclaim *r)
{
	struct core *c = r->core;
	uint64_t now = now_nsec();
	unsigned nr_posted = 0;

	for (uint32_t i = 0; i < arena_processes(c->arena); i++) {
		struct process *p = &c->process[i];
		uint32_t state;

		if (atomic_load_explicit(&p->shared->state, memory_order_relaxed) == PROCESS_FREE)
			continue;
		if (atomic_load(&p->forget)) {
			give_up(r, p);
			continue;
		}
		state = atomic_load(&p->shared->op_state);
		if (state == OP_IDLE || !p->ops)
			continue;
		if (atomic_load(&p->ops->done) == p->shared->op_seq) {
			if (!can_collect(p)) {
				r->again = true;
				continue;
			}
			collect(r, p);
			if (p->evict.nr_refused && can_post(p))
				post_refused(r, p);
			if (p->evict.nr_unshare && can_post(p))
				post_unshare(r, p);
		} else if (!p->evict.stalled && now - p->evict.posted_nsec > STALL_NSEC) {
			p->evict.stalled = true;
			send_work(p); /* in case the message was lost with the engine */
		}
		nr_posted += atomic_load(&p->shared->op_state) != OP_IDLE && !p->evict.stalled;
	}
	r->nr_posted = nr_posted;
}

static int compare_owner(const void *a, const void *b, void *userdata)
{
	struct core *c = userdata;
	uint64_t x = atomic_load(&pool_frame(c, *(const uint32_t *)a)->owner);
	uint64_t y = atomic_load(&pool_frame(c, *(const uint32_t *)b)->owner);

	return x < y ? -1 : x > y;
}

/* Hands victims to their processes' agents. Returns how many are on their way. */
static unsigned post_victims(struct reclaim *r, struct pool *pool, uint32_t *frames, unsigned n)
{
	struct core *c = r->core;
	unsigned posted = 0;

	qsort_r(frames, n, sizeof(*frames), compare_owner, c);
	for (unsigned i = 0, j; i < n; i = j) {
		uint64_t owner = atomic_load(&pool_frame(c, frames[i])->owner);
		uint32_t number = ARENA_OWNER_PROCESS(owner);
		struct process *p = owner ? &c->process[number] : NULL;
		unsigned k = 0;

		for (j = i + 1; j < n; j++)
			if (ARENA_OWNER_PROCESS(atomic_load(&pool_frame(c, frames[j])->owner)) != number)
				break;
		if (!p)
			continue; /* freed meanwhile: the policy has been told */
		p = process_get(c, number, p->generation);
		if (p && can_post(p))
			k = post_frames(r, p, frames + i, j - i, only_lazy(c));
		if (p)
			process_put(p);
		posted += k;
		policy_give_back(pool, frames + i + k, j - i - k);
	}
	return posted;
}

static unsigned evict_of(struct reclaim *r, struct process *p, unsigned want)
{
	struct pool *pool = atomic_load(&p->pool);
	uint32_t frames[USM_OPS_BATCH];
	unsigned n;

	if (!pool || !can_post(p))
		return 0;
	n = pool_hand(pool, (int)p->number, &p->evict.hand, frames, MIN(want, USM_OPS_BATCH));
	return n ? post_frames(r, p, frames, n, only_lazy(r->core)) : 0;
}

/* Users' requests and programs over their limits. Returns how many pages are on their way. */
static unsigned serve_requests(struct reclaim *r, bool *ret_demand)
{
	struct core *c = r->core;
	unsigned posted = 0;

	for (unsigned i = 0; i < REQUESTS; i++) {
		struct request *q = &r->request[i];
		struct process *p;

		if (!q->used || q->done)
			continue;
		p = process_get(c, q->process, q->generation);
		if (p && q->evicted < q->want) {
			uint64_t want = q->want - q->evicted;
			unsigned k = evict_of(r, p, (unsigned)MIN(want, (uint64_t)USM_OPS_BATCH));

			posted += k;
			*ret_demand = true;
			if (!k && atomic_load(&p->shared->op_state) == OP_IDLE) {
				/* Not one page of a whole round could be claimed. */
				if (++q->fruitless > 8) {
					q->done = true;
					q->reason = atomic_load(&p->unevictable_reason);
					if (!atomic_load(&c->evict_modes))
						q->reason = "'eviction off' is configured";
					else if (atomic_load(&p->swap_none))
						q->reason = "its 'process swap' line says none";
					if (!q->reason)
						q->reason = atomic_load(&p->nr_resident) > 0 ?
								    "the rest is pinned, just freed, or "
								    "holds threads' control blocks" :
								    "nothing of it is resident any more";
				}
			}
		} else {
			q->done = true;
			if (!p)
				q->reason = "the process has ended";
		}
		if (p)
			process_put(p);
		if (q->done) {
			broadcast(r);
			eventfd_write(c->main_fd, 1);
		}
	}
	for (uint32_t i = 0; i < arena_processes(c->arena); i++) {
		struct process *p = &c->process[i];

		if (!atomic_load_explicit(&p->over_limit, memory_order_relaxed))
			continue;
		p = process_get(c, i, p->generation);
		if (!p)
			continue;
		atomic_store(&p->over_limit, false);
		*ret_demand = true;
		posted += evict_of(r, p, USM_OPS_BATCH);
		process_put(p);
	}
	return posted;
}

static unsigned serve_now(struct reclaim *r)
{
	struct {
		struct pool *pool;
		uint32_t frame;
	} now[USM_OPS_BATCH];
	unsigned n, posted = 0;

	pthread_mutex_lock(&r->lock);
	n = r->nr_now;
	memcpy(now, r->now, n * sizeof(now[0]));
	r->nr_now = 0;
	pthread_mutex_unlock(&r->lock);
	for (unsigned i = 0, j; i < n; i = j) {
		uint32_t frames[USM_OPS_BATCH];

		for (j = i; j < n && now[j].pool == now[i].pool; j++)
			frames[j - i] = now[j].frame;
		posted += post_victims(r, now[i].pool, frames, j - i);
	}
	if (n && !posted) {
		pthread_mutex_lock(&r->lock);
		r->now_done = r->now_posted;
		pthread_cond_broadcast(&r->cond);
		pthread_mutex_unlock(&r->lock);
	}
	return posted;
}

/* Where "priority" makes a difference, pages of the lowest leave first, down to a floor. */
static unsigned evict_lowest_priority(struct reclaim *r, unsigned want)
{
	struct core *c = r->core;
	struct process *lowest = NULL;
	bool differ = false;
	unsigned k;
	int first = 0;

	for (uint32_t i = 0; i < arena_processes(c->arena); i++) {
		struct process *p = &c->process[i];

		if (atomic_load_explicit(&p->shared->state, memory_order_relaxed) != PROCESS_LIVE)
			continue;
		if (!lowest && !differ)
			first = p->shared->priority;
		differ |= p->shared->priority != first;
		if (atomic_load(&p->nr_resident) > PRIORITY_FLOOR && can_post(p) &&
		    (!lowest || p->shared->priority < lowest->shared->priority))
			lowest = p;
	}
	if (!differ || !lowest)
		return 0;
	lowest = process_get(c, lowest->number, lowest->generation);
	if (!lowest)
		return 0;
	k = evict_of(r, lowest, want);
	process_put(lowest);
	return k;
}

/* Everything was tried a moment ago and nothing could leave. */
static bool is_exhausted(const struct reclaim *r)
{
	return r->exhausted_nsec && now_nsec() - r->exhausted_nsec < EXHAUSTED_NSEC;
}

static unsigned serve_watermarks(struct reclaim *r, bool *ret_demand)
{
	struct core *c = r->core;
	int64_t free = core_free_frames(c);
	uint32_t frames[USM_OPS_BATCH];
	unsigned posted = 0;

	if (free >= atomic_load(&c->high_frames))
		r->reclaiming = false;
	else if (free < atomic_load(&c->low_frames))
		r->reclaiming = true;
	if (!r->reclaiming || !atomic_load(&c->evict_modes) || atomic_load(&c->stopping))
		return 0;
	*ret_demand = true;
	if (r->nr_posted)
		return 0; /* what is under way may be enough */
	if (is_exhausted(r))
		return 0;
	posted = evict_lowest_priority(
		r, (unsigned)MIN(atomic_load(&c->high_frames) - free, (int64_t)USM_OPS_BATCH));
	if (posted)
		return posted;
	for (unsigned k = 0; k < ARENA_POOLS; k++) {
		struct pool *pool = c->pool[k];
		int64_t want = atomic_load(&c->high_frames) - core_free_frames(c) - posted;
		unsigned n, k;

		if (!pool || want <= 0 || !atomic_load(&pool->nr_used))
			continue;
		want = MIN(want, (int64_t)USM_OPS_BATCH);
		n = policy_victims(pool, frames, (unsigned)want);
		k = post_victims(r, pool, frames, n);
		if (!k && n) {
			/* Not one of them may leave.  What may can be in lent frames, of which the
			 * policy does not know. */
			n = pool_victims(pool, frames, (unsigned)want);
			k = post_victims(r, pool, frames, n);
		}
		posted += k;
	}
	return posted;
}

static void check_tight(struct core *c)
{
	uint64_t slots = 0, used = 0, errors;

	usm_swap_totals(c->swap, &slots, &used, &errors);
	atomic_store(&c->swap_tight, (slots - used) * 10000 < slots * TIGHT_PERMYRIAD);
}

static void *reclaim_main(void *arg)
{
	struct reclaim *r = arg;
	struct core *c = r->core;
	int timeout = 0;

	pthread_setname_np(pthread_self(), "usmd-reclaim");
	r->record->tid = (uint32_t)syscall(SYS_gettid);
	policy_thread(r->record);
	while (!atomic_load(&r->stop)) {
		struct epoll_event ev[16];
		int n = epoll_wait(r->epoll_fd, ev, ARRAY_SIZE(ev), timeout);
		bool demand = false, all_stayed;
		unsigned posted;

		for (int i = 0; i < n; i++) {
			struct process *p;
			eventfd_t v;

			if (ev[i].data.u64 == UINT64_MAX) {
				eventfd_read(r->kick_fd, &v);
				continue;
			}
			p = process_get(c, (uint32_t)ev[i].data.u64,
					(uint32_t)(ev[i].data.u64 >> 32));
			if (!p)
				continue;
			agent_readable(r, p);
			process_put(p);
		}
		atomic_store(&r->kicked, false);
		r->again = false;
		check_operations(r);
		check_tight(c);
		posted = serve_now(r);
		pthread_mutex_lock(&r->lock);
		demand |= r->nr_waiting > 0;
		pthread_mutex_unlock(&r->lock);
		posted += serve_requests(r, &demand);
		posted += serve_watermarks(r, &demand);
		all_stayed = (int64_t)r->nr_stayed >= atomic_load(&c->nr_used);
		if (demand && (all_stayed || (!posted && !r->nr_posted))) {
			pthread_mutex_lock(&r->lock);
			r->idle_passes += all_stayed ? IDLE_PASSES : 1;
			if (all_stayed && r->nr_stayed)
				r->exhausted_nsec = now_nsec();
			r->nr_stayed = 0;
			eventfd_write(c->janitor_fd, 1); /* frames of removed pages */
			pthread_cond_broadcast(&r->cond);
			pthread_mutex_unlock(&r->lock);
			timeout = IDLE_MSEC;
		} else {
			timeout = r->nr_posted ? BUSY_MSEC : demand ? IDLE_MSEC : -1;
		}
		if (r->again)
			timeout = AGAIN_MSEC;
	}
	return NULL;
}

static void kick(struct reclaim *r)
{
	if (!atomic_exchange(&r->kicked, true))
		eventfd_write(r->kick_fd, 1);
}

void reclaim_check_limit(struct process *p)
{
	uint64_t limit = p->shared->limit_pages;

	if (limit && atomic_load(&p->nr_resident) > (int64_t)limit &&
	    !atomic_exchange(&p->over_limit, true))
		kick(p->core->reclaim);
}

void reclaim_kick(struct core *c)
{
	if (unlikely(core_free_frames(c) < atomic_load_explicit(&c->low_frames,
								memory_order_relaxed)) &&
	    c->reclaim)
		kick(c->reclaim);
}

static void wait_a_moment(struct reclaim *r)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_nsec += 50000000;
	if (ts.tv_nsec >= 1000000000) {
		ts.tv_nsec -= 1000000000;
		ts.tv_sec++;
	}
	pthread_cond_timedwait(&r->cond, &r->lock, &ts);
}

bool reclaim_wait(struct core *c, struct process *p)
{
	struct reclaim *r = c->reclaim;
	uint64_t idle;
	bool again = true;

	pthread_mutex_lock(&r->lock);
	idle = r->idle_passes;
	if (!p && core_free_frames(c) <= 0 && is_exhausted(r)) {
		pthread_mutex_unlock(&r->lock);
		return false;
	}
	r->nr_waiting++;
	for (;;) {
		if (p) {
			int64_t resident = atomic_load(&p->nr_resident);

			if (resident < (int64_t)p->shared->limit_pages || atomic_load(&p->gone))
				break;
			if (resident > 0 && atomic_load(&p->nr_stayed) >= (uint64_t)resident) {
				atomic_store(&p->nr_stayed, 0);
				again = false;
				break;
			}
			atomic_store(&p->over_limit, true);
		} else if (core_free_frames(c) > 0) {
			break;
		}
		if (r->idle_passes - idle >= IDLE_PASSES || atomic_load(&r->stop)) {
			again = false;
			break;
		}
		kick(r);
		wait_a_moment(r);
	}
	r->nr_waiting--;
	pthread_mutex_unlock(&r->lock);
	return again;
}

void reclaim_frames_now(struct pool *pool, const uint32_t *frames, unsigned n)
{
	struct reclaim *r = pool->core->reclaim;
	uint64_t ticket;

	pthread_mutex_lock(&r->lock);
	for (unsigned i = 0; i < n && r->nr_now < ARRAY_SIZE(r->now); i++) {
		r->now[r->nr_now].pool = pool;
		r->now[r->nr_now++].frame = frames[i];
	}
	ticket = ++r->now_posted;
	while (r->now_done < ticket && !atomic_load(&r->stop)) {
		kick(r);
		wait_a_moment(r);
	}
	pthread_mutex_unlock(&r->lock);
}

int reclaim_request(struct core *c, struct process *p, uint64_t pages)
{
	struct reclaim *r = c->reclaim;
	int ticket = -EBUSY;

	pthread_mutex_lock(&r->lock);
	for (int i = 0; i < REQUESTS; i++) {
		if (r->request[i].used)
			continue;
		r->request[i] = (struct request){
			.used = true,
			.process = p->number,
			.generation = p->generation,
			.want = pages,
		};
		ticket = i + 1;
		break;
	}
	pthread_mutex_unlock(&r->lock);
	if (ticket > 0)
		kick(r);
	return ticket;
}

bool reclaim_request_done(struct core *c, int ticket, uint64_t *ret_evicted,
			  const char **ret_reason)
{
	struct reclaim *r = c->reclaim;
	struct request *q = &r->request[ticket - 1];
	bool done;

	pthread_mutex_lock(&r->lock);
	done = q->done;
	if (done) {
		*ret_evicted = q->evicted;
		*ret_reason = q->evicted < q->want ? q->reason : NULL;
		q->used = false;
	}
	pthread_mutex_unlock(&r->lock);
	return done;
}

void reclaim_add(struct process *p)
{
	struct epoll_event ev = {
		.events = EPOLLIN | EPOLLRDHUP,
		.data.u64 = p->number | (uint64_t)p->generation << 32,
	};

	p->evict.in_epoll = epoll_ctl(p->core->reclaim->epoll_fd, EPOLL_CTL_ADD, p->shared->sock,
				      &ev) == 0;
	if (atomic_load(&p->shared->op_state) == OP_POSTED)
		send_work(p); /* a dead engine may not have got to it */
	kick(p->core->reclaim);
}

void reclaim_forget(struct process *p)
{
	struct reclaim *r = p->core->reclaim;

	atomic_store(&p->forget, true);
	while (atomic_load(&p->forget) && !atomic_load(&r->stop)) {
		kick(r);
		usleep(200);
	}
}

int reclaim_start(struct core *c)
{
	struct epoll_event ev = {.events = EPOLLIN, .data.u64 = UINT64_MAX};
	struct reclaim *r = calloc(1, sizeof(*r));
	int e;

	if (!r)
		return -ENOMEM;
	r->core = c;
	r->record = &c->arena->h->worker[ARENA_WORKERS - 1];
	pthread_mutex_init(&r->lock, NULL);
	pthread_cond_init(&r->cond, NULL);
	r->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	r->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	c->reclaim = r;
	if (r->epoll_fd < 0 || r->kick_fd < 0 ||
	    epoll_ctl(r->epoll_fd, EPOLL_CTL_ADD, r->kick_fd, &ev) < 0)
		return -errno;
	e = pthread_create(&r->thread, NULL, reclaim_main, r);
	return -e;
}

void reclaim_stop(struct core *c)
{
	struct reclaim *r = c->reclaim;

	if (!r)
		return;
	atomic_store(&r->stop, true);
	eventfd_write(r->kick_fd, 1);
	pthread_join(r->thread, NULL);
	broadcast(r);
}

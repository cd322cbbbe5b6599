/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "event.h"
#include "family.h"
#include "kill-point.h"
#include "lib/cleanup.h"
#include "lib/log.h"
#include "pool.h"
#include "reclaim.h"
#include "smaps.h"
#include "store.h"
#include "worker.h"

/* How often to look at the agent's gate before coming back later; one look is some 40 ns,
 * and an agent holds the gate for about 15 us. */
#define GATE_LOOKS 600
#define GATE_LOOKS_YIELD 64
#define GATE_LOOKS_AGAIN 8
/* Messages of one read(); the rest of the journal is for what is read on at a barrier. */
#define JOURNAL_READ 64u
/* There was no memory for a page table: tried again after this, so often. */
#define MEMORY_USEC 1000
#define MEMORY_RETRIES 5000
/* The journal is full of a program's events and its agent waits for another to be read. */
#define BARRIER_FULL_NSEC 5000000000ull

/* Only what a reader holds: a new engine may find the agent's own hold there. */
static void gate_leave(struct process *p)
{
	uint32_t reader = USM_GATE_READER;

	if (!p->ops || !atomic_compare_exchange_strong(&p->ops->gate, &reader, USM_GATE_IDLE))
		return;
	if (atomic_load(&p->ops->gate_waiters))
		syscall(SYS_futex, &p->ops->gate, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static bool gate_enter(struct process *p)
{
	/* Who has held it for so long is stopped, or does not mean well. */
	unsigned looks = p->gate_taken ? GATE_LOOKS_AGAIN : GATE_LOOKS;

	if (!p->ops)
		return true;
	for (unsigned i = 1; i < looks; i++) {
		uint32_t idle = USM_GATE_IDLE;

		if (atomic_compare_exchange_weak(&p->ops->gate, &idle, USM_GATE_READER)) {
			p->gate_taken = false;
			return true;
		}
		if (i % GATE_LOOKS_YIELD)
			__builtin_ia32_pause();
		else
			sched_yield();
	}
	p->gate_taken = true;
	return false;
}

/* Nothing that was asked of the agent before this moment is carried out any more. */
static void cancel_operation(struct process *p)
{
	if (p->ops)
		atomic_store(&p->ops->cancel, atomic_load(&p->ops->req));
}

/* --- UNMAP and REMOVE -------------------------------------------------------------- */

struct apply {
	struct process *p;
	const struct vpn_range *skip; /* FORK: what the child does not get, in order */
	unsigned nr_skip;
	bool remove; /* REMOVE: the mapping stays */
	bool told;   /* REMOVE: pages on their way out have been told, see tell_removals() */
	bool again;  /* a dead engine may have applied a part of it */
	uint64_t delta; /* REMAP: to - from, in pages */
	struct process *child;
};

/*
 * What a REMOVE says about a page on its way out.  MADV_FREE by the agent (LAZYFREE) is
 * announced like the program's own calls, once for each page that it takes: what comes
 * beyond that is the program's.  A page that the agent did not take is not lost by this:
 * FREED alone is what DISCARD would be for it (reclaim.c, finish()).
 */
static uint64_t removal(const struct apply *a, uint64_t v)
{
	if (a->p->shared->op_kind != USM_OPS_LAZYFREE || (v & PAGE_FREED && !a->again))
		return PAGE_DISCARD;
	return PAGE_FREED;
}

static bool in_operation(const struct process *p, uint64_t vpn)
{
	for (unsigned i = 0; i < MIN(p->shared->op_n, USM_OPS_BATCH); i++)
		if (p->shared->op_vpn[i] == vpn)
			return true;
	return false;
}

static int tell_page(void *userdata, uint64_t vpn, page_entry *e)
{
	uint64_t v = atomic_load(e);

	(void)vpn;
	while (PAGE_STATE(v) == PAGE_EVICTING &&
	       !atomic_compare_exchange_weak(e, &v, v | removal(userdata, v)))
		;
	return 0;
}

/*
 * While a barrier waits, an agent may end its operation before the REMOVE that it caused
 * is applied, and its pages are in slots by then: so they are told at once, and not again
 * when the message's turn comes.  From when its results are taken on, what comes is the
 * program's: it finds those pages in their slots, when its turn comes.
 */
static void tell_removals(struct process *p, unsigned first, unsigned n, bool again)
{
	struct apply a = {.p = p, .remove = true, .again = again};

	/* The barrier is down: the answer can only be an older one. */
	while (atomic_load(&p->collecting) == COLLECT_ASKS)
		sched_yield();
	if (p->shared->op_kind != USM_OPS_LAZYFREE || atomic_load(&p->collecting) != COLLECT_NO ||
	    atomic_load(&p->shared->op_state) != OP_POSTED)
		return;
	for (unsigned i = first; i < n; i++) {
		struct uffd_msg *m = &p->shared->journal[i];

		if (m->event != UFFD_EVENT_REMOVE || m->reserved1)
			continue;
		page_visit(p->core->arena, p->number, VPN(m->arg.remove.start),
			   VPN(m->arg.remove.end), tell_page, &a);
		KILL_POINT("barrier-told");
		*(volatile uint8_t *)&m->reserved1 = 1;
	}
}

static int drop_page(void *userdata, uint64_t vpn, page_entry *e)
{
	struct apply *a = userdata;
	struct process *p = a->p;
	uint64_t v = atomic_load(e), new;

	if (a->told && in_operation(p, vpn))
		return 0;
	for (;;) {
		switch (PAGE_STATE(v)) {
		case PAGE_FILLING:
			new = v | PAGE_GONE;
			break;
		case PAGE_EVICTING:
			new = v | (a->remove ? removal(a, v) : PAGE_GONE);
			break;
		case PAGE_RESIDENT:
			new = a->remove ? PAGE_WITH_STAMP((v | PAGE_REMOVED) & ~PAGE_LAZY,
							  now_tick()) :
					  0;
			break;
		default:
			new = 0;
			break;
		}
		if (atomic_compare_exchange_weak(e, &v, new))
			break;
	}
	KILL_POINT("unmap-dropped");
	if (PAGE_STATE(v) == PAGE_SWAPPED) {
		atomic_fetch_sub(&p->nr_swapped, 1);
		usm_swap_unref(p->core->swap, PAGE_VALUE(v));
	} else if (PAGE_STATE(v) == PAGE_RESIDENT && !new) {
		atomic_fetch_sub(&p->nr_resident, 1);
		pool_release(p->core, PAGE_VALUE(v));
	}
	return 0;
}

static void apply_unmap(struct apply *a, uint64_t start, uint64_t end)
{
	struct process *p = a->p;

	family_hand_over(p, VPN(start), VPN(end + USM_PAGE_SIZE - 1));
	page_visit(p->core->arena, p->number, VPN(start), VPN(end + USM_PAGE_SIZE - 1), drop_page,
		   a);
	if (a->remove) {
		atomic_store_explicit(&p->has_removed, true, memory_order_relaxed);
		atomic_store(&p->shared->last_remove_tick, now_tick());
		return;
	}
	atomic_store_explicit(&p->maps_changed, true, memory_order_relaxed);
	if (end - start >= LEAF_PAGES * USM_PAGE_SIZE)
		page_trim(p->core->arena, p->number, VPN(start), VPN(end));
}

/*
 * An entry for what an event says, which cannot be put off: the program goes on, and would not
 * find its page.  So memory is waited for, but not for ever.
 */
static page_entry *make_page(struct process *p, uint64_t vpn)
{
	page_entry *e;

	for (unsigned i = 0; !(e = process_page(p, vpn, true)) && i < MEMORY_RETRIES; i++)
		usleep(MEMORY_USEC);
	return e;
}

/* --- REMAP ------------------------------------------------------------------------- */

static int move_page(void *userdata, uint64_t vpn, page_entry *e)
{
	struct apply *a = userdata;
	struct process *p = a->p;
	uint64_t to = vpn + a->delta, v = atomic_load(e), left = 0, moved = 0;
	page_entry *t = make_page(p, to);

	if (!t) {
		process_kill(p, VADDR(vpn), "no memory to move its page table");
		return -ENOMEM;
	}
	switch (PAGE_STATE(v)) {
	case PAGE_FILLING:
		/* The filler finds its claim gone; a slot moves on. */
		if (v & PAGE_GONE)
			return 0;
		left = PAGE_ENTRY(PAGE_FILLING, 0) | PAGE_GONE;
		if (PAGE_VALUE(v))
			moved = PAGE_ENTRY(PAGE_SWAPPED, PAGE_VALUE(v));
		break;
	case PAGE_RESIDENT:
	case PAGE_SWAPPED:
	case PAGE_LOST:
		moved = v;
		break;
	default:
		return 0;
	}
	if (moved && atomic_load(t) != moved) {
		/* What the target range held before was unmapped; its event came first. */
		if (atomic_load(t))
			drop_page(&(struct apply){.p = p}, to, t);
		if (PAGE_STATE(moved) == PAGE_RESIDENT)
			pool_moved(p->core, PAGE_VALUE(moved), p->number, to);
		atomic_store(t, moved);
		if (PAGE_STATE(v) == PAGE_FILLING)
			atomic_fetch_add(&p->nr_swapped, 1);
	} else if (PAGE_STATE(moved) == PAGE_SWAPPED) {
		/* An engine that died here had moved it, and the scan counted both entries. */
		usm_swap_unref(p->core->swap, PAGE_VALUE(moved));
		atomic_fetch_sub(&p->nr_swapped, 1);
	}
	KILL_POINT("remap-copied");
	atomic_store(e, left);
	return 0;
}

static void apply_remap(struct apply *a, uint64_t from, uint64_t to, uint64_t len)
{
	struct process *p = a->p;

	a->delta = VPN(to) - VPN(from);
	atomic_store_explicit(&p->maps_changed, true, memory_order_relaxed);
	page_visit(p->core->arena, p->number, VPN(from), VPN(from + len), move_page, a);
}

/* --- FORK -------------------------------------------------------------------------- */

/*
 * A page that is present in the parent is present in the child too, shared by
 * copy-on-write: NONE in the child's table; the janitor adopts what becomes the
 * child's alone.  What is not present is in its slot.
 */
static int copy_page(void *userdata, uint64_t vpn, page_entry *e)
{
	struct apply *a = userdata;
	uint64_t v = atomic_load(e);
	uint32_t slot = 0;
	page_entry *c;

	while (a->nr_skip && vpn >= a->skip->end) {
		a->skip++;
		a->nr_skip--;
	}
	if (a->nr_skip && vpn >= a->skip->first)
		return 0;

	if (page_has_no_copy(a->p->core, v))
		v = PAGE_ENTRY(PAGE_LOST, 0);
	switch (PAGE_STATE(v)) {
	case PAGE_FILLING:
		if (!(v & PAGE_GONE))
			slot = PAGE_VALUE(v);
		break;
	case PAGE_SWAPPED:
		slot = PAGE_VALUE(v);
		break;
	case PAGE_RESIDENT:
		if (v & PAGE_LAZY)
			slot = atomic_load(&pool_frame(a->p->core, PAGE_VALUE(v))->clean_slot);
		break;
	case PAGE_EVICTING:
		/* Only if the parent has ended with its agent in the middle of it: whether the page
		 * is in the child, or was on its way and is lost, nobody knows. */
		if (v & (PAGE_GONE | PAGE_DISCARD))
			break;
		/* fall through */
	case PAGE_LOST:
		c = make_page(a->child, vpn);
		if (!c)
			return -ENOMEM;
		atomic_store_explicit(&a->child->shared->ever_swapped, 1, memory_order_relaxed);
		atomic_store(c, PAGE_ENTRY(PAGE_LOST, 0));
		return 0;
	default:
		break;
	}
	if (!slot)
		return 0;
	c = make_page(a->child, vpn);
	if (!c)
		return -ENOMEM;
	KILL_POINT("fork-page");
	usm_swap_ref(a->p->core->swap, slot);
	atomic_store_explicit(&a->child->shared->ever_swapped, 1, memory_order_relaxed);
	atomic_store(c, PAGE_ENTRY(PAGE_SWAPPED, slot));
	atomic_fetch_add(&a->child->nr_swapped, 1);
	return 0;
}

/* A crash may have left a child half built: it is built again from nothing. */
static struct process *child_of(struct core *c, int uffd)
{
	for (uint32_t i = 0; i < arena_processes(c->arena); i++) {
		struct arena_process *s = &c->arena->process[i];

		if (atomic_load(&s->state) == PROCESS_BUILDING && s->is_child && s->uffd == uffd) {
			page_table_free(c->arena, i);
			process_init(c, i);
			return &c->process[i];
		}
	}
	return process_new(c);
}

/* Like make_page(): descriptors or memory may be short for a moment. */
static int read_uninherited(pid_t pid, struct vpn_range **ret, unsigned *ret_n)
{
	int r;

	for (unsigned i = 0;; i++) {
		r = smaps_uninherited(pid, ret, ret_n);
		if ((r != -ENOMEM && r != -EMFILE && r != -ENFILE) || i == MEMORY_RETRIES)
			return r;
		usleep(MEMORY_USEC);
	}
}

static void apply_fork(struct apply *a, int uffd)
{
	struct process *p = a->p, *child;
	struct arena_process *s = p->shared, *cs;
	_cleanup_free_ struct vpn_range *skip = NULL;
	unsigned nr_skip = 0;
	int r = -EMFILE;

	if (uffd < 0) {
		log_event(LOG_CRIT,
			  &((struct usm_log_fields){.event = "fork",
						    .message_id = USM_MSG_KILL,
						    .process = s->name,
						    .pid = s->pid}),
			  "%s (pid %d): usmd was killed as a whole while this program forked, before "
			  "systemd had the child's userfaultfd. What the child had on swap devices reads as "
			  "zeros: end it",
			  s->name, s->pid);
		atomic_fetch_add(&p->core->arena->h->nr_errors, 1);
		return;
	}
	/* The child is already there if the engine died after publishing it. */
	for (uint32_t i = 0; i < arena_processes(p->core->arena); i++)
		if (atomic_load(&p->core->arena->process[i].state) == PROCESS_LIVE &&
		    p->core->arena->process[i].uffd == uffd)
			return;
	child = child_of(p->core, uffd);
	if (p->ops && atomic_load(&p->ops->uninherited))
		s->uninherited = 1;
	if (p->ops && atomic_load(&p->ops->protect_fork) == USM_PROTECT_DONE)
		s->fork_protected = 1;
	if (s->uninherited && s->pid > 0 && read_uninherited(s->pid, &skip, &nr_skip) < 0)
		log_warning("%s (pid %d): cannot read which of its memory a forked child does not "
			    "get; the child gets all of it",
			    s->name, s->pid);
	a->skip = skip;
	a->nr_skip = nr_skip;
	if (child) {
		cs = child->shared;
		KILL_POINT("fork-begun");
		cs->uninherited = s->uninherited;
		cs->family = s->family;
		cs->fork_protected = s->fork_protected;
		cs->is_child = 1;
		cs->uffd = uffd;
		cs->marker = s->marker;
		cs->pool = s->pool;
		cs->uid = s->uid;
		cs->limit_pages = s->limit_pages;
		cs->priority = s->priority;
		cs->forked_usec = now_nsec() / 1000;
		memcpy(cs->name, s->name, sizeof(cs->name));
		memcpy(cs->argv0, s->argv0, sizeof(cs->argv0));
		memcpy(cs->unit, s->unit, sizeof(cs->unit));
		cs->rule_uid = s->rule_uid;
		memcpy(cs->policy, s->policy, sizeof(cs->policy));
		atomic_store(&child->pool, atomic_load(&p->pool));
		atomic_store(&child->policy, atomic_load(&p->policy));
		atomic_store(&child->swap_policy, atomic_load(&p->swap_policy));
		atomic_store(&child->swap_none, atomic_load(&p->swap_none));
		if (getrandom(&cs->nonce, sizeof(cs->nonce), 0) != sizeof(cs->nonce) || !cs->nonce)
			cs->nonce = now_nsec() | 1;
		a->child = child;
		r = page_visit(p->core->arena, p->number, 0, VPN_MAX, copy_page, a);
		KILL_POINT("fork-copied");
		if (r == 0)
			r = process_publish(child);
		KILL_POINT("fork-published");
		/* Its parent is being let go, and who lets all go has not seen it. */
		if (atomic_load(&p->release))
			atomic_store(&child->release, true);
	}
	if (r < 0) {
		/* Nobody serves its userfaultfd, which stays open: it blocks, it never reads
		 * wrong data. */
		arena_fd_set(p->core->arena->h->orphan, uffd, true);
		log_event_errno(LOG_CRIT, r,
				&((struct usm_log_fields){.event = "fork",
							  .message_id = USM_MSG_KILL,
							  .process = s->name,
							  .pid = s->pid,
							  .policy = s->policy}),
				"%s (pid %d): cannot manage a forked child, it stops at its first "
				"fault (end it by hand): %m",
				s->name, s->pid);
		atomic_fetch_add(&p->core->arena->h->nr_errors, 1);
		return;
	}
	eventfd_write(p->core->janitor_fd, 1);
}

/* --- reading ----------------------------------------------------------------------- */

static ssize_t read_messages(struct process *p, struct uffd_msg *m, unsigned n)
{
	struct iovec iov = {.iov_base = m, .iov_len = n * sizeof(*m)};
	ssize_t r;
	int flags;

	/* The program can clear O_NONBLOCK on its own duplicate; RWF_NOWAIT does not care. */
	if (!p->no_nowait) {
		r = preadv2(p->shared->uffd, &iov, 1, -1, RWF_NOWAIT);
		if (r >= 0 || (errno != EOPNOTSUPP && errno != ENOSYS))
			return r < 0 ? -errno : r / (ssize_t)sizeof(*m);
		p->no_nowait = true;
	}
	/* Not on older kernels, and not on what a FORK event has made. */
	flags = fcntl(p->shared->uffd, F_GETFL);
	if (flags >= 0 && !(flags & O_NONBLOCK))
		fcntl(p->shared->uffd, F_SETFL, flags | O_NONBLOCK);
	r = read(p->shared->uffd, m, n * sizeof(*m));
	return r < 0 ? -errno : r / (ssize_t)sizeof(*m);
}

/* A forked child's userfaultfd is nobody else's until its agent has one. */
static void keep_children(const struct uffd_msg *m, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (m[i].event == UFFD_EVENT_FORK)
			store_add((int)m[i].arg.fork.ufd);
}

static bool is_barrier(const struct uffd_msg *m)
{
	return m->event == UFFD_EVENT_FORK || m->event == UFFD_EVENT_REMAP;
}

static void pass_fault(struct process *p, const struct uffd_msg *m, uint64_t time)
{
	worker_fault(p, &(struct fault){
				.process = p->number,
				.generation = p->generation,
				.vpn = VPN(m->arg.pagefault.address),
				.flags = (uint32_t)m->arg.pagefault.flags,
				.tid = m->arg.pagefault.feat.ptid,
				.nsec = time,
			});
}

/*
 * Reads on behind the journal's messages.  Faults are passed on at once, as the kernel gives any
 * number of them before the first event.  An engine that dies here leaves at worst an event twice
 * in a row, which changes nothing.
 */
static void read_on(struct process *p)
{
	struct uffd_msg *j = p->shared->journal;
	unsigned n = p->journal.n, from, room;
	ssize_t k;

	do {
		from = n;
		room = ARENA_JOURNAL - n;
		/* What is read lets its thread go on: no page of what it changes may be on its way. */
		if (!room || !gate_enter(p)) {
			if (room)
				worker_defer(p);
			return;
		}
		k = read_messages(p, &j[n], room);
		KILL_POINT("barrier-read");
		cancel_operation(p);
		gate_leave(p);
		if (k > 0)
			keep_children(&j[n], (unsigned)k);

		for (unsigned i = n; k > 0 && i < from + (unsigned)k; i++) {
			if (j[i].event == UFFD_EVENT_PAGEFAULT) {
				pass_fault(p, &j[i], now_nsec());
			} else if (i == n) {
				n++;
				continue;
			} else {
				j[n++] = j[i];
			}
			*(volatile uint8_t *)&j[i].event = 0;
		}
		p->journal.n = n;
		tell_removals(p, from, n, p->journal.again);
	} while (k == (ssize_t)room);
}

/* The program has ended in the middle of an operation, with its agent. */
static bool is_beyond_collection(struct process *p)
{
	return atomic_load(&p->gone) &&
	       !(p->ops && atomic_load(&p->ops->done) == p->shared->op_seq);
}

static int is_filling(void *userdata, uint64_t vpn, page_entry *e)
{
	(void)userdata;
	(void)vpn;
	return PAGE_STATE(atomic_load(e)) == PAGE_FILLING;
}

/*
 * A fault may still be served where a REMAP puts its pages, for what was mapped there before: its
 * server leaves that entry (process_latch_claimed() tells it of the barrier), nobody else.
 */
static bool must_wait(struct process *p, const struct uffd_msg *m)
{
	if (atomic_load(&p->nr_evicting) && !is_beyond_collection(p))
		return true;
	return m->event == UFFD_EVENT_REMAP &&
	       page_visit(p->core->arena, p->number, VPN(m->arg.remap.to),
			  VPN(m->arg.remap.to + m->arg.remap.len), is_filling, NULL);
}

/* It has no room for what the agent's MADV_FREE may be waiting for to be read. */
static void check_room(struct process *p)
{
	if (p->journal.n < ARENA_JOURNAL || p->shared->op_kind != USM_OPS_LAZYFREE)
		p->journal.full_nsec = 0;
	else if (!p->journal.full_nsec)
		p->journal.full_nsec = now_nsec();
	else if (now_nsec() - p->journal.full_nsec > BARRIER_FULL_NSEC)
		process_kill(p, 0, "its threads change so many mappings that a fork cannot be put in "
				   "order with them");
}

/*
 * No page of p may be on its way out when m, the next message, is applied.  An agent in the
 * middle of MADV_FREE waits for its own event to be read, so what comes meanwhile is read
 * on into the journal.  False: not yet; who ends the operation or the fault, a new event, or
 * the janitor makes somebody try again.
 */
static bool pass_barrier(struct process *p, const struct uffd_msg *m)
{
	bool wait = must_wait(p, m);

	if (wait && !(atomic_load(&p->latch) & LATCH_BARRIER)) {
		tell_removals(p, p->journal.next + 1, p->journal.n, p->journal.again);
		if (p->ops)
			atomic_store(&p->ops->hurry, atomic_load(&p->ops->req));
		p->journal.full_nsec = 0;
		atomic_fetch_or(&p->latch, LATCH_BARRIER);
		KILL_POINT("barrier-waits");
	}
	if (wait) {
		/* Nobody takes an operation's results before its pages were told. */
		atomic_store(&p->barrier, false);
		read_on(p);
		check_room(p);
		atomic_store(&p->barrier, true);
		/* Who ends the operation looks whether there is a barrier afterwards. */
		if (must_wait(p, m))
			return false;
	}
	atomic_store(&p->barrier, false);
	if (atomic_fetch_and(&p->latch, ~LATCH_BARRIER) & LATCH_BARRIER)
		process_unpark(p);
	return true;
}

static void apply_message(struct apply *a, const struct uffd_msg *m)
{
	switch (m->event) {
	case UFFD_EVENT_FORK:
		apply_fork(a, (int)m->arg.fork.ufd);
		break;
	case UFFD_EVENT_REMAP:
		apply_remap(a, m->arg.remap.from, m->arg.remap.to, m->arg.remap.len);
		break;
	case UFFD_EVENT_REMOVE:
	case UFFD_EVENT_UNMAP:
		a->remove = m->event == UFFD_EVENT_REMOVE;
		a->told = m->reserved1;
		apply_unmap(a, m->arg.remove.start, m->arg.remove.end);
		break;
	default:
		break;
	}
}

/* Applies the journal's messages in their order.  False: it waits at a barrier. */
static bool apply_journal(struct process *p)
{
	struct apply a = {.p = p, .again = p->journal.again};
	uint64_t time = now_nsec();

	while (p->journal.next < p->journal.n) {
		struct uffd_msg *m = &p->shared->journal[p->journal.next];

		if (m->event == UFFD_EVENT_PAGEFAULT) {
			pass_fault(p, m, time);
		} else {
			if (is_barrier(m) && !pass_barrier(p, m))
				return false;
			apply_message(&a, m);
			KILL_POINT("event-applied");
		}
		p->journal.next++;
		atomic_store_explicit(&p->shared->journal_applied, p->journal.next,
				      memory_order_release);
	}
	KILL_POINT("event-all-applied");
	for (unsigned i = 0; i < p->journal.n; i++)
		*(volatile uint8_t *)&p->shared->journal[i].event = 0;
	KILL_POINT("event-ending");
	atomic_store_explicit(&p->shared->journal_applied, 0, memory_order_release);
	p->journal.next = p->journal.n = 0;
	return true;
}

/* Reads once and applies. Returns the number of messages, 0: nothing more, -errno. */
static int read_once(struct process *p)
{
	bool events = false;
	ssize_t n;

	if (!gate_enter(p)) {
		worker_defer(p);
		return 0;
	}
	n = read_messages(p, p->shared->journal, JOURNAL_READ);
	KILL_POINT("event-read");
	for (ssize_t i = 0; i < n && !events; i++)
		events = p->shared->journal[i].event != UFFD_EVENT_PAGEFAULT;
	if (events)
		cancel_operation(p);
	gate_leave(p);
	if (events)
		keep_children(p->shared->journal, (unsigned)n);
	if (n <= 0) {
		if (n == -EMFILE || n == -ENFILE || n == -ENOMEM) {
			/* A FORK event that has no room for the child's descriptor: again. */
			worker_defer(p);
			return 0;
		}
		return n == -EAGAIN || n == -EINTR ? 0 : (int)n;
	}
	KILL_POINT("event-cancelled");
	p->journal.n = (unsigned)n;
	p->journal.again = false;
	return apply_journal(p) ? (int)n : 0;
}

void event_read_latched(struct process *p)
{
	do {
		int r = 0;

		if (!p->journal.n || apply_journal(p))
			do
				r = read_once(p);
			while (r == JOURNAL_READ);
		if (r < 0) {
			log_debug("%s (pid %d): reading its userfaultfd: %s", p->shared->name,
				  p->shared->pid, strerror(-r));
			process_gone(p);
		}
	} while (!process_unlatch_exclusive(p));
}

void event_readable(struct process *p)
{
	if (process_try_latch_exclusive(p))
		event_read_latched(p);
}

void event_hold(struct process *p)
{
	atomic_store(&p->latch, LATCH_EXCLUSIVE);
	for (unsigned i = 0; i < ARENA_JOURNAL; i++)
		if (p->shared->journal[i].event && p->shared->journal[i].event != UFFD_EVENT_PAGEFAULT)
			cancel_operation(p);
	gate_leave(p);
}

void event_resume(struct process *p)
{
	unsigned n = ARENA_JOURNAL;

	/* read() fills it from the start, and what it did not fill is zero. */
	while (n && !p->shared->journal[n - 1].event)
		n--;
	p->journal.n = n;
	p->journal.next = MIN(atomic_load(&p->shared->journal_applied), n);
	p->journal.again = true;
	/* It died while it cleared the journal: what is read next has not been applied. */
	if (!n)
		atomic_store(&p->shared->journal_applied, 0);
	event_read_latched(p);
}

void event_finish(struct process *p)
{
	if (p->journal.n)
		apply_journal(p);
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "event.h"
#include "family.h"
#include "fault.h"
#include "fill.h"
#include "journal.h"
#include "kill-point.h"
#include "lib/cleanup.h"
#include "lib/log.h"
#include "mechanism-userfault.h"
#include "pagemap.h"
#include "policy.h"
#include "pool.h"
#include "reclaim.h"

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

bool fault_is_agents(const struct process *p, const struct fault *f)
{
	const struct arena_process *s = p->shared;

	if ((int32_t)f->tid != s->agent_tid || atomic_load(&s->op_state) == OP_IDLE)
		return false;
	for (unsigned i = 0; i < MIN(s->op_n, USM_OPS_BATCH); i++)
		if (s->op_vpn[i] == f->vpn)
			return true;
	return false;
}

/* --- claiming ---------------------------------------------------------------------- */

/* /proc/PID/pagemap; no, if that cannot be read. */
static bool is_present(const struct process *p, uint64_t vpn)
{
	_cleanup_close_ int fd = -1;
	uint64_t entry = 0;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", p->shared->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd >= 0 && pread(fd, &entry, sizeof(entry), (off_t)(vpn * sizeof(entry))) > 0 &&
	       entry & PAGEMAP_PRESENT;
}

/* A page that was not written to swap when it had been marked as free (collect.c). */
static void serve_without_copy(struct fill *f, page_entry *e, uint64_t v)
{
	struct process *p = f->p;

	/* An old fault, or somebody was faster: it faults again if it must. */
	if (is_present(p, f->vpn) ||
	    !atomic_compare_exchange_strong(e, &v, PAGE_ENTRY(PAGE_LOST, 0))) {
		fill_wake(p, f->vpn);
		return;
	}
	atomic_fetch_sub(&p->nr_resident, 1);
	pool_release(p->core, PAGE_VALUE(v));
	process_kill(p, VADDR(f->vpn), "the kernel dropped a page that no swap device had taken");
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
			if (fill_claim_next(f, e))
				return 1;
			break;
		case PAGE_SWAPPED:
			f->swapped = true;
			if (fill_claim_next(f, e))
				return 1;
			break;
		case PAGE_RESIDENT:
			if (unlikely(page_has_no_copy(p->core, v))) {
				serve_without_copy(f, e, v);
				return 0;
			}
			if (fill_claim_resident(f, e, v)) {
				f->n = 1;
				return 1;
			}
			break;
		case PAGE_FILLING:
			return 0;
		case PAGE_EVICTING:
			/* An agent that writes to a page which the program has zapped meanwhile waits for
			 * us, and the eviction for it.  Not an old fault of it: the page may have left. */
			if (p->shared->op_kind == USM_OPS_LAZYFREE && fault_is_agents(p, fault) &&
			    fault->nsec > atomic_load(&p->posted_nsec)) {
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
	return fill_claim_next(f, f->entry) ? 0 : -EAGAIN;
}

/* Present, and NONE or SWAPPED: from now on it has a frame of its own.  -errno. */
static int take_in(struct worker *w, struct process *p, uint64_t vpn, bool swapped, bool wait,
		   bool urgent)
{
	struct fill f;
	int r;

	if (!process_latch(p))
		return -EAGAIN;
	r = claim_one(&f, p, vpn, swapped);
	process_unlatch(p);
	if (r < 0)
		return r;
	f.urgent = urgent;
	r = fill_frames(&f, USM_EVENT_ADOPT, wait, false);
	if (r < 0)
		return r;
	KILL_POINT("adopt-framed");
	/*
	 * What said that it is present may be out of date: it may have left since, or the address be
	 * another mapping's by now, not registered yet, whose pages must not leave, as nobody would be
	 * told of their faults.  An attempt to install says whether it is registered and present.
	 */
	if (swapped) {
		r = fill_read(&f, w->buffer);
		if (r < 0)
			return r;
	}
	r = fill_install(&f, swapped ? w->buffer : NULL);
	return r < 0 || f.n ? r : -ENOENT;
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
 * -EINPROGRESS: not before pages of a program over its limit have left.
 */
static int account_for_copy(struct worker *w, struct process *p, const struct fault *fault,
			    enum page_state state)
{
	struct process *q;
	bool urgent = fault_is_agents(p, fault);

	if (state == PAGE_NONE || state == PAGE_SWAPPED)
		return take_in(w, p, fault->vpn, state == PAGE_SWAPPED, true, urgent);
	if (state != PAGE_RESIDENT)
		return 0;
	for (uint32_t i = 0; (q = family_next(p, &i));) {
		int r = -ENOENT;

		/* Not for one that has executed another program since. */
		if (!atomic_load(&q->gone) && is_none(q, fault->vpn) &&
		    userfault_protect(q->shared->uffd, VPN(0x10000), 1, false) != -ESRCH)
			r = take_in(w, q, fault->vpn, false, true, urgent);
		process_put(q);
		if (r == 0 || r == -EINPROGRESS)
			return r;
	}
	return 0;
}

static void serve_protection(struct worker *w, struct process *p, const struct fault *fault)
{
	page_entry *e;
	uint64_t v;

	if (p->shared->fork_protected) {
		if (!process_latch(p))
			return;
		e = process_page(p, fault->vpn, false);
		v = e ? atomic_load(e) : 0;
		process_unlatch(p);
		if (account_for_copy(w, p, fault, PAGE_STATE(v)) == -EINPROGRESS) {
			process_park(p); /* it may have been a relative's limit */
			return;
		}
	}
	if (!process_latch(p))
		return;
	e = process_page(p, fault->vpn, false);
	v = e ? atomic_load(e) : 0;
	while (PAGE_STATE(v) == PAGE_EVICTING)
		if (atomic_compare_exchange_weak(e, &v, v | PAGE_WANTED))
			goto out;
	if (userfault_protect(p->shared->uffd, fault->vpn, 1, false) < 0)
		fill_wake(p, fault->vpn); /* EAGAIN, ENOENT: it faults again if it must */
out:
	process_unlatch(p);
}

void fault_serve(struct worker *w, struct process *p, const struct fault *fault)
{
	struct core *c = p->core;
	struct fill f;
	unsigned want;

	if (unlikely(fault->flags & UFFD_PAGEFAULT_FLAG_WP)) {
		serve_protection(w, p, fault);
		return;
	}
	if (unlikely(p->shared->marker && VADDR(fault->vpn) == p->shared->marker &&
		     p->shared->is_child && !p->shared->attached)) {
		uint8_t page[USM_PAGE_SIZE] __attribute__((aligned(USM_PAGE_SIZE))) = {0};
		unsigned done;

		memcpy(page, &p->shared->nonce, sizeof(p->shared->nonce));
		if (!process_latch(p))
			return;
		if (userfault_copy(p->shared->uffd, fault->vpn, page, 1, &done) < 0)
			fill_wake(p, fault->vpn);
		process_unlatch(p);
		return;
	}
	f.p = p;
	f.vpn = fault->vpn;
	f.n = 0;
	f.frame[0] = 0;
	f.urgent = fault_is_agents(p, fault);
	if (f.urgent)
		KILL_POINT("fault-of-agent");
	if (!process_latch(p))
		return;
	f.entry = process_page(p, f.vpn, true);
	if (unlikely(!f.entry)) {
		static _Atomic uint64_t last;

		process_unlatch(p);
		if (fill_log_is_due(&last))
			log_warning("No memory for a page table of %s (pid %d), retrying",
				    p->shared->name, p->shared->pid);
		usleep(FILL_MEMORY_USEC);
		fill_wake(p, fault->vpn);
		return;
	}
	if (!claim_first(&f, fault)) {
		process_unlatch(p);
		return;
	}
	want = window(p, f.vpn, atomic_load_explicit(&c->faultaround, memory_order_relaxed));
	while (f.n < want && (f.vpn + f.n) % LEAF_PAGES && fill_claim_next(&f, f.entry + f.n))
		;
	process_unlatch(p);

	KILL_POINT("fault-claimed");
	if (fill_frames(&f, f.swapped ? USM_EVENT_SWAP_IN : USM_EVENT_FIRST_TOUCH, true, false) < 0)
		return;
	KILL_POINT("fault-framed");
	if (f.n < want)
		window_ended(p, f.vpn + want, f.vpn + f.n);
	if (f.swapped) {
		if (fill_read(&f, w->buffer) < 0)
			return;
		atomic_fetch_add_explicit(&p->shared->nr_swap_ins, f.n, memory_order_relaxed);
		atomic_fetch_add_explicit(&c->arena->h->nr_swap_ins, f.n, memory_order_relaxed);
	}
	KILL_POINT("fault-read");
	fill_install(&f, w->buffer);
	journal_say_filled(&f);
	atomic_fetch_add_explicit(&p->shared->nr_faults, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&c->arena->h->nr_faults, 1, memory_order_relaxed);
	process_count_fault(p, now_nsec() - fault->nsec);
}

int fault_bring_back(struct worker *w, struct process *p, uint64_t vpn, bool lend)
{
	struct fill f;
	int r;

	if (!process_latch(p))
		return -EAGAIN;
	r = claim_one(&f, p, vpn, true);
	while (r >= 0 && f.n < USM_OPS_BATCH && (vpn + f.n) % LEAF_PAGES &&
	       fill_claim_next(&f, f.entry + f.n))
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
	r = fill_install(&f, w->buffer);
	journal_say_filled(&f);
	return r;
}

int fault_take_in(struct worker *w, struct process *p, uint64_t vpn)
{
	return take_in(w, p, vpn, true, false, false);
}

int fault_adopt(struct process *p, uint64_t vpn)
{
	return take_in(NULL, p, vpn, false, false, false);
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "detach.h"
#include "event.h"
#include "family.h"
#include "fault.h"
#include "kill-point.h"
#include "journal.h"
#include "lib/log.h"
#include "mechanism-userfault.h"
#include "pool.h"
#include "process.h"
#include "reclaim.h"
#include "scan.h"
#include "store.h"
#include "worker.h"

/* How long an agent that was told to go may take. */
#define RELEASE_TICKS 10
/* That it cannot be let go is said after this. */
#define LAZY_TICKS 50

static int drop_all(void *userdata, uint64_t vpn, page_entry *e)
{
	struct process *p = userdata;
	uint64_t v = atomic_exchange(e, 0);

	(void)vpn;
	switch (PAGE_STATE(v)) {
	case PAGE_RESIDENT:
	case PAGE_EVICTING:
		pool_release(p->core, PAGE_VALUE(v));
		break;
	case PAGE_SWAPPED:
	case PAGE_FILLING:
		if (PAGE_VALUE(v))
			usm_swap_unref(p->core->swap, PAGE_VALUE(v));
		break;
	default:
		break;
	}
	return 0;
}

static void close_fd(int *fd)
{
	int n = *fd;

	*fd = -1;
	store_close(n);
}

static void close_recorded(_Atomic int32_t *fd)
{
	store_close(atomic_exchange(fd, -1));
}

static void note_relative_gone(struct core *c, uint64_t family)
{
	struct process *last = NULL;
	unsigned n = 0;

	for (uint32_t i = 0; i < arena_processes(c->arena); i++) {
		struct process *p = &c->process[i];

		if (atomic_load(&p->shared->state) != PROCESS_FREE && p->shared->family == family &&
		    p->shared->fork_protected) {
			last = p;
			n++;
		}
	}
	if (n == 1)
		atomic_store(&last->lift, true);
}

void detach_dead(struct core *c, struct process *p)
{
	struct arena_process *s = p->shared;
	struct pool *pool = atomic_load(&p->pool);
	struct usm_agent_ops *ops = p->ops;

	journal_say_sums(p);
	log_event(LOG_INFO,
		  &((struct usm_log_fields){.event = "detach",
					    .message_id = USM_MSG_DETACH,
					    .process = s->name,
					    .pid = s->pid,
					    .policy = s->policy}),
		  "%s (pid %d) is no longer managed: %llu faults, %llu pages evicted, %llu swapped in",
		  s->name, s->pid, (unsigned long long)s->nr_faults,
		  (unsigned long long)s->nr_evictions, (unsigned long long)s->nr_swap_ins);
	atomic_store(&p->gone, true);
	atomic_store(&s->state, PROCESS_DYING);
	KILL_POINT("detach-dying");
	if (s->uffd >= 0)
		epoll_ctl(c->epoll_fd, EPOLL_CTL_DEL, s->uffd, NULL);
	reclaim_forget(p);
	while (atomic_load(&p->users))
		usleep(100);
	if (p->held) {
		/* Nobody else will, and a child may be waiting in its journal. */
		p->held = false;
		event_resume(p);
	}
	while (!process_try_latch_exclusive(p))
		usleep(100);
	event_finish(p);
	worker_forget(p);
	family_hand_over(p, 0, VPN_MAX);
	KILL_POINT("detach-handed-over");
	page_visit(c->arena, p->number, 0, VPN_MAX, drop_all, p);
	KILL_POINT("detach-dropped");
	page_table_free(c->arena, p->number);
	p->ops = NULL;
	if (ops)
		munmap(ops, USM_OPS_BYTES);
	free(p->scan.ranges);
	p->scan.ranges = NULL;
	close_fd(&p->scan.maps_fd);
	close_fd(&p->scan.pagemap_fd);
	KILL_POINT("detach-closing");
	close_fd(&s->uffd);
	store_hang_up(s->sock);
	s->sock = -1;
	close_recorded(&s->opsfd);
	close_recorded(&s->pidfd);
	if (pool)
		pool_flush(pool);
	KILL_POINT("detach-closed");
	atomic_store(&s->state, PROCESS_FREE);
	if (s->fork_protected)
		note_relative_gone(c, s->family);
	eventfd_write(c->main_fd, 1);
}

/* Content that the program has not got.  FILLING from a slot counts: if its fault is given up,
 * the page is swapped again. */
static int first_missing(void *userdata, uint64_t vpn, page_entry *e)
{
	uint64_t *ret = userdata;
	uint64_t v = atomic_load(e);

	if (PAGE_STATE(v) != PAGE_SWAPPED && PAGE_STATE(v) != PAGE_LOST &&
	    !(PAGE_STATE(v) == PAGE_FILLING && PAGE_VALUE(v)))
		return 0;
	*ret = vpn;
	return PAGE_STATE(v);
}

static int is_lazy(void *userdata, uint64_t vpn, page_entry *e)
{
	uint64_t v = atomic_load(e);

	(void)userdata;
	(void)vpn;
	return PAGE_STATE(v) == PAGE_RESIDENT && v & PAGE_LAZY;
}

/*
 * What is there and the kernel may drop would read as zeros later, when nobody serves its faults
 * any more.  True: there is none.
 */
static bool keeps_all(struct core *c, struct process *p)
{
	bool lazy;

	if (!process_latch(p))
		return false;
	lazy = page_visit(c->arena, p->number, 0, VPN_MAX, is_lazy, NULL);
	process_unlatch(p);
	if (!lazy)
		return true;
	if (++p->scan.lazy_ticks == LAZY_TICKS)
		log_event(LOG_WARNING,
			  &((struct usm_log_fields){.event = "detach",
						    .message_id = USM_MSG_STOP,
						    .process = p->shared->name,
						    .pid = p->shared->pid,
						    .policy = p->shared->policy}),
			  "%s (pid %d) cannot be let go yet: the kernel may drop pages of it that it "
			  "holds, and its agent %s; it stays managed until that has changed, or it ends",
			  p->shared->name, p->shared->pid,
			  p->shared->sock < 0 ? "is gone" : "cannot make them its own (stopped, or pinned)");
	reclaim_rescue(p);
	return false;
}

/* Everything back into the program. True: nothing of it is swapped any more. */
static bool bring_all_back(struct core *c, struct worker *w, struct process *p)
{
	uint64_t vpn = 0, last = UINT64_MAX;

	for (;;) {
		uint64_t found = 0;
		int r;

		if (atomic_load(&p->gone) || atomic_load(&p->killed))
			return false;
		if (!process_latch(p))
			return false;
		r = page_visit(c->arena, p->number, vpn, VPN_MAX, first_missing, &found);
		process_unlatch(p);
		if (!r) {
			if (vpn == 0 && !atomic_load(&p->nr_evicting))
				return keeps_all(c, p);
			if (vpn == 0)
				usleep(1000);
			vpn = 0; /* once more from the start: something may have left behind us */
			continue;
		}
		if (r == PAGE_LOST) {
			process_kill(p, VADDR(found), "it is to be let go, and a page of it is lost");
			return false;
		}
		/* Present already, in a forked child: it stays as it was the first time. */
		r = found == last ? fault_take_in(w, p, found) : fault_bring_back(w, p, found, true);
		last = found;
		if (r == -ESRCH || r == -EIO || r == -EBADMSG || r == -ENOMEM)
			return false;
		vpn = found + (r == -ENOENT ? 1 : 0);
		if (r == -ENOENT || r == -EAGAIN)
			usleep(100);
	}
}

static void unregister_all(struct core *c, struct process *p)
{
	if (!p->shared->attached)
		return; /* closing its userfaultfd, which nobody else has, does it */
	/* For the ranges only: nothing is taken in any more. */
	p->scan.next_audit_tick = UINT64_MAX;
	scan_mappings(c, p);
	for (unsigned i = 0; i < p->scan.nr_ranges; i++)
		userfault_unregister(p->shared->uffd, p->scan.ranges[2 * i],
				     p->scan.ranges[2 * i + 1]);
}

void detach_living(struct core *c, struct worker *w, struct process *p)
{
	struct usm_attach_msg m = {
		.magic = USM_ATTACH_MAGIC,
		.version = USM_ATTACH_VERSION,
		.type = USM_ATTACH_RELEASE,
	};
	uint64_t tick = now_tick();

	if (!p->shared->attached && !p->scan.has_claimed) {
		if (atomic_exchange(&p->claimed, true))
			return; /* it is just being attached */
		p->scan.has_claimed = true;
	}
	atomic_store(&p->no_evict, true);
	if (p->scan.release_tick && !atomic_load(&p->gone) &&
	    tick - p->scan.release_tick < RELEASE_TICKS)
		return;
	atomic_store(&p->gone, false);
	if (!bring_all_back(c, w, p))
		return;
	KILL_POINT("release-back");
	if (p->shared->sock >= 0 && !p->scan.release_tick) {
		p->scan.release_tick = tick;
		if (send(p->shared->sock, &m, sizeof(m), MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
			return;
	}
	KILL_POINT("release-told");
	unregister_all(c, p);
	KILL_POINT("release-unregistered");
	detach_dead(c, p);
}

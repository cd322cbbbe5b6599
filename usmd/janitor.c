/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "detach.h"
#include "event.h"
#include "family.h"
#include "fault.h"
#include "janitor.h"
#include "lib/cleanup.h"
#include "lib/log.h"
#include "mechanism-userfault.h"
#include "policy.h"
#include "process.h"
#include "reclaim.h"
#include "scan.h"
#include "worker.h"

#define TICK_MSEC 100
/* A forked child whose agent has not come by then has none: it is let go. */
#define CHILD_GRACE_USEC 3000000ull
/* A program whose agent has ended in the middle of an operation, and that lives on for so long, has
 * neither ended nor executed another one. */
#define GONE_TICKS 20
/* Threads of one process whose control blocks are looked up each tick. */
#define THREADS_MAX 1024
/* A fork that shares more than this part of all frames is worth a fault for each copy. */
#define PROTECT_PART 64
/* stat(2) */
#define ST_BLOCK 512
/* Runs of pages that a process brings back each tick from a device that is being removed. */
#define DRAIN_RUNS 256

static struct {
	pthread_t thread;
	_Atomic bool stop;
	bool started;
	struct worker worker;
} janitor;

/* --- threads ----------------------------------------------------------------------- */

static void pin(struct usm_agent_ops *ops, uint64_t addr)
{
	unsigned n = MIN(atomic_load(&ops->nr_pins), USM_OPS_PINS);
	uint64_t page = addr & ~(USM_PAGE_SIZE - 1), empty = 0;

	for (unsigned i = 0; i < n; i++)
		if ((atomic_load(&ops->pins[i]) & ~(USM_PAGE_SIZE - 1)) == page)
			return;
	for (unsigned i = 0; i < USM_OPS_PINS; i++) {
		empty = 0;
		if (!atomic_compare_exchange_strong(&ops->pins[i], &empty, addr))
			continue;
		n = atomic_load(&ops->nr_pins);
		while (n < i + 1 && !atomic_compare_exchange_weak(&ops->nr_pins, &n, i + 1))
			;
		return;
	}
}

/* Threads that were not made by the tagger's pthread_create: their robust list's head
 * lies in their control block. */
static void pin_threads(struct process *p)
{
	_cleanup_closedir_ DIR *d = NULL;
	char path[64];
	struct dirent *de;
	unsigned n = 0;

	if (!p->ops)
		return;
	snprintf(path, sizeof(path), "/proc/%d/task", p->shared->pid);
	d = opendir(path);
	if (!d)
		return;
	while ((de = readdir(d)) && n++ < THREADS_MAX) {
		int tid = atoi(de->d_name);
		void *head = NULL;
		size_t len;

		if (tid > 0 && syscall(SYS_get_robust_list, tid, &head, &len) == 0 && head)
			pin(p->ops, (uint64_t)(uintptr_t)head);
	}
}

/* The address space is still there? (exec and exit end it without any event) */
static bool is_alive(struct process *p)
{
	struct pollfd pfd = {.fd = p->shared->pidfd, .events = POLLIN};

	if (pfd.fd >= 0 && poll(&pfd, 1, 0) > 0)
		return false;
	return userfault_protect(p->shared->uffd, VPN(0x10000), 1, false) != -ESRCH;
}

/*
 * The operation memory is sealed, but a program can make holes in it.  Those read as zeros, which
 * is not what its pages held, and we wait for each as long as it is being made.
 */
static bool has_holes(const struct arena_process *s)
{
	struct stat st;

	return s->opsfd >= 0 && fstat(s->opsfd, &st) == 0 &&
	       (uint64_t)st.st_blocks * ST_BLOCK < USM_OPS_BYTES;
}

/* Its last relative has ended: it shares nothing any more, and its writes need no faults. */
static void lift_protection(struct process *p)
{
	uint32_t done = USM_PROTECT_DONE, i = 0;
	struct process *relative;
	int r = 0;

	if (!process_try_latch_exclusive(p))
		return; /* the next tick */
	relative = family_next(p, &i);
	if (relative) {
		/* It has forked again meanwhile. */
		process_put(relative);
		atomic_store(&p->lift, false);
		event_read_latched(p);
		return;
	}
	/* What LAZYFREE has in hand stays protected. */
	if (p->journal.n || (atomic_load(&p->shared->op_state) != OP_IDLE &&
			     p->shared->op_kind == USM_OPS_LAZYFREE))
		r = -EAGAIN;
	for (unsigned i = 0; r != -EAGAIN && i < p->scan.nr_ranges; i++)
		r = userfault_protect(p->shared->uffd, VPN(p->scan.ranges[2 * i]),
				      VPN(p->scan.ranges[2 * i + 1] - p->scan.ranges[2 * i]), false);
	if (r != -EAGAIN) {
		p->shared->fork_protected = 0;
		atomic_store(&p->lift, false);
		if (p->ops)
			atomic_compare_exchange_strong(&p->ops->protect_fork, &done,
						       USM_PROTECT_WANTED);
	}
	event_read_latched(p);
}

/* What a program may share by forking is worth faults if it is more than a small part of what
 * all may have. */
static void want_protection(struct core *c, struct process *p)
{
	bool want = atomic_load(&c->evict_modes) &&
		    atomic_load(&p->nr_resident) > atomic_load(&c->nr_budget) / PROTECT_PART;
	uint32_t is = want ? USM_PROTECT_NO : USM_PROTECT_WANTED;

	if (atomic_load_explicit(&p->ops->protect_fork, memory_order_relaxed) == is)
		atomic_compare_exchange_strong(&p->ops->protect_fork, &is,
					       want ? USM_PROTECT_WANTED : USM_PROTECT_NO);
}

static void look_after(struct core *c, struct process *p)
{
	struct arena_process *s = p->shared;

	if (!is_alive(p)) {
		detach_dead(c, p);
		return;
	}
	if (has_holes(s))
		process_kill(p, 0, "it made holes in the memory that it shares with usmd");
	if (atomic_load(&p->killed) || p->held)
		return;
	if (atomic_load(&p->barrier)) {
		event_readable(p);
		return;
	}
	process_unpark(p);
	if (atomic_load(&p->release) ||
	    (s->is_child && !s->attached && now_nsec() / 1000 - s->forked_usec > CHILD_GRACE_USEC)) {
		detach_living(c, &janitor.worker, p);
		return;
	}
	if (atomic_load(&p->gone)) {
		/* Its agent is gone or its userfaultfd fails, but it lives: without the agent no
		 * page can leave.  What was under way when the agent ended cannot be told.  At exec and
		 * exit the other threads end first: then it is just not over yet. */
		if (atomic_load(&s->op_state) != OP_IDLE) {
			if (p->scan.gone_ticks++ < GONE_TICKS)
				return;
			process_kill(p, 0, "its agent ended in the middle of an eviction");
		}
		atomic_store(&p->no_evict, true);
		atomic_store(&p->unevictable_reason, "its agent is gone");
		atomic_store(&p->gone, false);
	}
	if (s->attached && s->pid > 0) {
		pin_threads(p);
		scan_mappings(c, p);
		reclaim_check_limit(p);
		want_protection(c, p);
		if (atomic_load(&p->lift))
			lift_protection(p);
	}
}

/* --- removing a swap device --------------------------------------------------------- */

static int first_draining(void *userdata, uint64_t vpn, page_entry *e)
{
	struct {
		struct core *c;
		uint64_t vpn;
	} *found = userdata;
	uint64_t v = atomic_load(e);

	if (PAGE_STATE(v) != PAGE_SWAPPED || !usm_swap_slot_draining(found->c->swap, PAGE_VALUE(v)))
		return 0;
	found->vpn = vpn;
	return 1;
}

/* Brings back what of a process is on a device that is being removed, some pages a tick. */
static void drain_process(struct core *c, struct process *p)
{
	struct {
		struct core *c;
		uint64_t vpn;
	} found = {.c = c};
	uint64_t slots, used, errors;

	for (unsigned i = 0; i < DRAIN_RUNS; i++) {
		int r;

		if (!process_latch(p))
			return;
		r = page_visit(c->arena, p->number, found.vpn, VPN_MAX, first_draining, &found);
		process_unlatch(p);
		if (!r)
			return;
		r = fault_bring_back(&janitor.worker, p, found.vpn, false);
		if (r != -ENOMEM)
			continue;
		/* Other pages must leave first; if no device is left for them, the pool is exceeded. */
		usm_swap_totals(c->swap, &slots, &used, &errors);
		if (used < slots) {
			reclaim_wait(c);
			return;
		}
		fault_bring_back(&janitor.worker, p, found.vpn, true);
	}
}

static void finish_removals(struct core *c)
{
	struct usm_swap_info info[USM_SWAP_DEVICES];
	unsigned n, left = 0;

	/* Before the look: a removal that begins from now on sets it again. */
	atomic_store(&c->drain_swap, false);
	n = usm_swap_list(c->swap, info, USM_SWAP_DEVICES);
	reclaim_drop_draining(c);
	for (unsigned i = 0; i < n; i++) {
		if (!info[i].draining)
			continue;
		if (usm_swap_remove_finish(c->swap, info[i].path, false) < 0)
			left++;
		else
			log_event(LOG_NOTICE,
				  &((struct usm_log_fields){.event = "swap",
							    .message_id = USM_MSG_SWAP}),
				  "Swap file %s is not used any more; delete it if you like",
				  info[i].path);
	}
	if (left)
		atomic_store(&c->drain_swap, true);
}

static void *janitor_main(void *arg)
{
	struct core *c = arg;
	bool any = true;

	pthread_setname_np(pthread_self(), "usmd-janitor");
	janitor.worker.record->tid = (uint32_t)syscall(SYS_gettid);
	policy_thread(janitor.worker.record);
	while (!atomic_load(&janitor.stop)) {
		struct pollfd pfd = {.fd = c->janitor_fd, .events = POLLIN};
		eventfd_t v;

		if (poll(&pfd, 1, any ? TICK_MSEC : -1) > 0)
			eventfd_read(c->janitor_fd, &v);
		any = false;
		for (uint32_t i = 0; i < arena_processes(c->arena) && !atomic_load(&janitor.stop); i++) {
			struct process *p = &c->process[i];

			if (atomic_load(&p->shared->state) != PROCESS_LIVE)
				continue;
			any = true;
			look_after(c, p);
			if (atomic_load(&c->drain_swap) && atomic_load(&p->shared->state) == PROCESS_LIVE)
				drain_process(c, p);
		}
		if (atomic_load(&c->drain_swap)) {
			finish_removals(c);
			any = true;
		}
	}
	return NULL;
}

int janitor_start(struct core *c)
{
	int r = worker_init(c, ARENA_WORKERS - 2, &janitor.worker);

	if (r < 0)
		return r;
	r = pthread_create(&janitor.thread, NULL, janitor_main, c);
	janitor.started = r == 0;
	return -r;
}

void janitor_stop(struct core *c)
{
	atomic_store(&janitor.stop, true);
	if (!janitor.started)
		return;
	eventfd_write(c->janitor_fd, 1);
	pthread_join(janitor.thread, NULL);
	worker_done(&janitor.worker);
}

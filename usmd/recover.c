/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "attach.h"
#include "closer.h"
#include "event.h"
#include "kill-point.h"
#include "lib/cleanup.h"
#include "lib/log.h"
#include "mechanism-userfault.h"
#include "policy.h"
#include "pool.h"
#include "process.h"
#include "reclaim.h"
#include "recover.h"
#include "store.h"
#include "worker.h"

/* A resident page as the scan found it. */
struct resident {
	uint32_t process, frame;
	uint64_t vpn;
	uint32_t born_msec, clean_slot;
	bool evicting;
};

struct scan {
	struct core *c;
	struct process *p;
	struct resident *list;
	size_t n, cap;
	int error;
};

static struct scan residents;

static void mark(uint8_t *known, unsigned n, int fd)
{
	if (fd >= 0 && (unsigned)fd < n)
		known[fd] = 1;
}

int recover_note_descriptors(struct core *c, const uint8_t *keep, unsigned nr_keep, uint8_t **ret,
			     unsigned *ret_n)
{
	unsigned n = MIN((unsigned)sysconf(_SC_OPEN_MAX), 1u << 20);
	_cleanup_free_ uint8_t *stale = calloc(1, n), *known = calloc(1, n);
	_cleanup_closedir_ DIR *d = opendir("/proc/self/fd");
	struct arena_header *h = c->arena->h;
	struct dirent *de;

	if (!d || !known || !stale)
		return -ENOMEM;
	memset(known, 1, 3);
	for (unsigned i = 0; i < MIN(n, nr_keep); i++)
		known[i] |= keep[i];
	mark(known, n, c->arena->fd);
	mark(known, n, h->dev_fd);
	mark(known, n, h->attach_fd);
	mark(known, n, h->control_fd);
	mark(known, n, h->runtime_lock_fd);
	mark(known, n, h->wake_fd);
	mark(known, n, dirfd(d));
	arena_mark_descriptors(c->arena, known, n);
	while ((de = readdir(d))) {
		int fd = atoi(de->d_name);

		if (de->d_name[0] != '.' && fd >= 0 && (unsigned)fd < n && !known[fd])
			stale[fd] = 1;
	}
	*ret = TAKE_PTR(stale);
	*ret_n = n;
	return 0;
}

void recover_close_descriptors(struct core *c, const uint8_t *stale, unsigned n)
{
	for (unsigned fd = 0; fd < n; fd++) {
		if (!stale[fd])
			continue;
		if (arena_fd_is(c->arena->h->told, (int)fd))
			store_close((int)fd);
		else
			closer_close((int)fd); /* of whom it was is not known */
	}
}

/* Its pidfd, if systemd has not got it: its number may be another's by now.  False: it has ended. */
static bool find_again(struct arena_process *s)
{
	uint64_t starttime;
	int fd;

	if (s->pidfd >= 0)
		return true;
	fd = (int)syscall(SYS_pidfd_open, s->pid, 0);
	if (fd < 0)
		return false;
	if (attach_starttime(s->pid, &starttime) < 0 || starttime != s->starttime) {
		close(fd);
		return false;
	}
	s->pidfd = fd;
	return true;
}

/* Its userfaultfd was in the hands of usmd alone, and went with it. */
static void report_lost_child(struct core *c, const struct arena_process *s)
{
	log_event(LOG_CRIT,
		  &((struct usm_log_fields){.event = "kill", .message_id = USM_MSG_KILL, .process = s->name}),
		  "%s: usmd was killed as a whole while this program forked, before systemd had the child's "
		  "userfaultfd, and which process it is is not known. What it had on swap devices reads as "
		  "zeros: end it", s->name);
	atomic_fetch_add(&c->arena->h->nr_errors, 1);
}

/* Its children's userfaultfds stay open: they wait for ever, and see no wrong data. */
static void drop_journal(struct core *c, struct arena_process *s)
{
	for (unsigned k = 0; k < ARENA_JOURNAL; k++) {
		if (s->journal[k].event == UFFD_EVENT_FORK)
			arena_fd_set(c->arena->h->orphan, (int)s->journal[k].arg.fork.ufd, true);
		s->journal[k].event = 0;
	}
	atomic_store(&s->journal_applied, 0);
}

void recover_missing(struct core *c)
{
	for (uint32_t i = 0; i < arena_processes(c->arena); i++) {
		struct process *p = &c->process[i];
		struct arena_process *s = p->shared;
		bool whole = s->uffd >= 0 && (!s->attached || (s->sock >= 0 && s->opsfd >= 0 && s->pidfd >= 0));

		if (s->state == PROCESS_FREE || whole)
			continue;
		if (s->state == PROCESS_LIVE && (s->ever_swapped || s->op_state != OP_IDLE)) {
			if (s->pid <= 0)
				report_lost_child(c, s);
			else if (find_again(s))
				process_kill(p, 0, "usmd was killed as a whole before systemd had all "
						   "descriptors of it");
		}
		drop_journal(c, s);
		s->state = PROCESS_DYING;
	}
}

static int add_resident(struct scan *s, uint64_t vpn, uint32_t frame, bool evicting)
{
	struct arena_frame *f = pool_frame(s->c, frame);
	bool ours = frame && frame < s->c->arena->h->nr_frames_assigned &&
		    f->owner == ARENA_OWNER(s->p->number, vpn);

	if (s->n == s->cap) {
		size_t cap = s->cap ? 2 * s->cap : 65536;
		struct resident *l = realloc(s->list, cap * sizeof(*l));

		if (!l)
			return -ENOMEM;
		s->list = l;
		s->cap = cap;
	}
	/* A frame that does not name the page back was being renumbered by an engine that died
	 * while it recovered: the page is there all the same, only its clean slot is forgotten. */
	s->list[s->n++] = (struct resident){
		.process = s->p->number,
		.vpn = vpn,
		.frame = ours ? frame : 0,
		.born_msec = ours ? f->born_msec : 0,
		.clean_slot = ours ? f->clean_slot : 0,
		.evicting = evicting,
	};
	return 0;
}

static bool in_operation(const struct process *p, uint64_t vpn)
{
	const struct arena_process *s = p->shared;

	if (s->op_state == OP_IDLE || s->op_kind == USM_OPS_UNSHARE)
		return false;
	for (unsigned i = 0; i < MIN(s->op_n, USM_OPS_BATCH); i++)
		if (s->op_vpn[i] == vpn)
			return true;
	return false;
}

/* Brings one entry into a state that the new engine can own, and counts what it names. */
static int scan_page(void *userdata, uint64_t vpn, page_entry *e)
{
	struct scan *s = userdata;
	struct process *p = s->p;
	uint64_t v = *e;
	uint32_t slot = 0;

	switch (PAGE_STATE(v)) {
	case PAGE_FILLING:
		/* Installed or not: a fault finds out.  SWAPPED may be present too. */
		slot = v & PAGE_GONE ? 0 : PAGE_VALUE(v);
		v = slot ? PAGE_ENTRY(PAGE_SWAPPED, slot) : 0;
		break;
	case PAGE_RESIDENT:
		if (v & PAGE_LAZY && PAGE_VALUE(v) < s->c->arena->h->nr_frames_assigned)
			slot = pool_frame(s->c, PAGE_VALUE(v))->clean_slot;
		if (slot)
			v = PAGE_ENTRY(PAGE_SWAPPED, slot);
		break;
	case PAGE_EVICTING:
		if (in_operation(p, vpn)) {
			v &= ~PAGE_WANTED; /* everybody is woken */
			break;
		}
		/* Claimed, and the agent never heard of it. */
		if (v & PAGE_LAZY && !(v & (PAGE_GONE | PAGE_DISCARD | PAGE_FREED)) &&
		    PAGE_VALUE(v) < s->c->arena->h->nr_frames_assigned)
			slot = pool_frame(s->c, PAGE_VALUE(v))->clean_slot;
		if (slot)
			v = PAGE_ENTRY(PAGE_SWAPPED, slot);
		else if (v & PAGE_GONE)
			v = 0;
		else if (v & (PAGE_DISCARD | PAGE_FREED))
			v = PAGE_WITH_STAMP(PAGE_ENTRY(PAGE_RESIDENT, PAGE_VALUE(v)) | PAGE_REMOVED,
					    now_tick());
		else
			v = PAGE_ENTRY(PAGE_RESIDENT, PAGE_VALUE(v)) | (v & PAGE_LAZY);
		break;
	case PAGE_SWAPPED:
		slot = PAGE_VALUE(v);
		break;
	case PAGE_LOST:
		break;
	default:
		v = 0;
		break;
	}
	if (slot) {
		if (usm_swap_ref_recovered(s->c->swap, slot) < 0) {
			s->error = -EBADMSG;
			*e = PAGE_ENTRY(PAGE_LOST, 0);
			return 0;
		}
		atomic_fetch_add(&p->nr_swapped, 1);
	}
	*e = v;
	if (PAGE_STATE(v) == PAGE_RESIDENT || PAGE_STATE(v) == PAGE_EVICTING) {
		if (PAGE_VALUE(v) >= s->c->arena->h->nr_frames_assigned) {
			s->error = -EBADMSG;
			*e = PAGE_ENTRY(PAGE_LOST, 0);
			return 0;
		}
		return add_resident(s, vpn, PAGE_VALUE(v), PAGE_STATE(v) == PAGE_EVICTING);
	}
	return 0;
}

static int recover_process(struct core *c, uint32_t number)
{
	struct process *p = &c->process[number];
	int r;

	if (p->shared->opsfd >= 0) {
		r = process_map_ops(p);
		if (r < 0)
			return r;
		/* What the agent is told may not have come to it. */
		atomic_store(&p->ops->nr_swapped, atomic_load(&p->shared->ever_swapped));
	}
	/* Recorded, but the agent was never asked. */
	if (p->ops && p->shared->op_state != OP_IDLE && atomic_load(&p->ops->req) != p->shared->op_seq)
		p->shared->op_state = OP_IDLE;
	if (p->ops && p->shared->op_state == OP_IDLE)
		atomic_store(&p->ops->inflight, 0);
	event_hold(p);
	p->held = true;
	residents.p = p;
	residents.error = 0;
	r = page_visit(c->arena, number, 0, VPN_MAX, scan_page, &residents);
	if (r < 0)
		return r;
	if (p->shared->op_state != OP_IDLE && p->shared->op_kind != USM_OPS_UNSHARE)
		atomic_store(&p->nr_evicting, MIN(p->shared->op_n, USM_OPS_BATCH));
	atomic_store(&p->posted_nsec, now_nsec());
	if (residents.error < 0)
		process_kill(p, 0, "its page table holds an invalid entry after the engine's death");
	return 0;
}

/* What the handshake gave; its agent sees the end of file, and begins a new one. */
static void close_connection(struct arena_process *s)
{
	_Atomic int32_t *fds[] = {&s->opsfd, &s->pidfd};
	int sock = s->sock;

	s->sock = -1;
	store_hang_up(sock);
	for (unsigned i = 0; i < ARRAY_SIZE(fds); i++)
		store_close(atomic_exchange(fds[i], -1));
}

static void close_recorded(struct arena_process *s)
{
	int fd = s->uffd;

	s->uffd = -1;
	store_close(fd);
	close_connection(s);
}

static bool has_unapplied(const struct arena_process *s)
{
	for (unsigned i = MIN(atomic_load(&s->journal_applied), ARENA_JOURNAL); i < ARENA_JOURNAL; i++)
		if (s->journal[i].event)
			return true;
	return false;
}

int recover_processes(struct core *c)
{
	_cleanup_free_ uint8_t *nodes = calloc(1, c->arena->h->nr_nodes);
	uint32_t top = 1;

	if (!nodes)
		return -ENOMEM;
	residents = (struct scan){.c = c};
	for (uint32_t i = 0; i < arena_processes(c->arena); i++) {
		struct arena_process *s = &c->arena->process[i];

		if (s->state == PROCESS_FREE)
			continue;
		process_init(c, i);
		/* Node numbers in use must be known before a journal makes new ones. */
		if (page_table_mark(c->arena, i, nodes, &top) < 0) {
			process_kill(&c->process[i], 0,
				     "its page table is damaged after the engine's death");
			page_table_free(c->arena, i);
		}
	}
	KILL_POINT("recover-marked");
	arena_nodes_recover(c->arena, nodes, top);
	for (uint32_t i = 0; i < arena_processes(c->arena); i++) {
		struct arena_process *s = &c->arena->process[i];
		int r;

		if (s->state == PROCESS_BUILDING && s->is_child) {
			/* Its FORK is still in its parent's journal and is applied again. */
			page_table_free(c->arena, i);
			continue;
		}
		if (s->state == PROCESS_BUILDING ||
		    (s->state == PROCESS_LIVE && !s->attached && !s->is_child)) {
			/* A handshake that died with the engine: nothing can have been evicted. */
			close_recorded(s);
			page_table_free(c->arena, i);
			s->state = PROCESS_FREE;
			continue;
		}
		/* What it had may be what a child in its journal gets; then it is found dead again. */
		if (s->state == PROCESS_DYING && has_unapplied(s))
			s->state = PROCESS_LIVE;
		if (s->state == PROCESS_DYING) {
			/* It has ended, or everything was brought back into it: what its table still
			 * names is not counted, and so is free. */
			page_table_free(c->arena, i);
			close_recorded(s);
			s->state = PROCESS_FREE;
		}
		if (s->state == PROCESS_FREE)
			continue;
		if (!s->attached)
			close_connection(s);
		r = recover_process(c, i);
		if (r < 0)
			return r;
	}
	return 0;
}

static int compare_age(const void *a, const void *b)
{
	int32_t d = (int32_t)(((const struct resident *)a)->born_msec -
			      ((const struct resident *)b)->born_msec);

	return d < 0 ? -1 : d > 0;
}

/* The frame for a page that is resident already. */
static uint32_t restore_frame(struct core *c, struct pool *pool, const struct resident *l)
{
	uint32_t frame = 0;

	if (policy_alloc(pool, l->process, &l->vpn, 1, USM_EVENT_RESTORE, &frame) == 1 ||
	    pool_take_any(pool, l->process, l->vpn, &frame) ||
	    pool_take_lent(pool, l->process, l->vpn, &frame))
		return frame;
	(void)c;
	return 0;
}

int recover_frames(struct core *c)
{
	struct scan *s = &residents;

	KILL_POINT("recover-scanned");
	for (uint32_t i = 0; i < arena_processes(c->arena); i++) {
		struct process *p = &c->process[i];

		if (p->shared->state == PROCESS_FREE)
			continue;
		if (p->shared->pool >= ARENA_POOLS || !c->pool[p->shared->pool])
			return -EBADMSG;
		policy_serve(p, c->pool[p->shared->pool], p->shared->policy);
	}
	if (s->n)
		qsort(s->list, s->n, sizeof(*s->list), compare_age);
	/* Frames are told to the policies anew, oldest first, and may get other numbers. */
	for (unsigned i = 0; i < ARENA_POOLS; i++) {
		struct pool *pool = c->pool[i];

		for (uint32_t k = 0; pool && k < 2 * pool->nr; k++)
			atomic_store_explicit(&pool_frame(c, pool->first + k)->owner, 0,
					      memory_order_relaxed);
	}
	for (size_t i = 0; i < s->n; i++) {
		struct resident *l = &s->list[i];
		struct process *p = &c->process[l->process];
		struct pool *pool = c->pool[p->shared->pool];
		page_entry *e = process_page(p, l->vpn, false);
		uint32_t frame;

		if (!pool || !e)
			return -EBADMSG;
		frame = restore_frame(c, pool, l);
		if (!frame)
			return -ENOMEM;
		if (l->clean_slot && usm_swap_ref_recovered(c->swap, l->clean_slot) >= 0)
			atomic_store(&pool_frame(c, frame)->clean_slot, l->clean_slot);
		KILL_POINT("recover-renumbering");
		pool_frame(c, frame)->born_msec = l->born_msec;
		*e = (*e & 0xffffffffull) | (uint64_t)frame << 32;
		atomic_fetch_add(&p->nr_resident, 1);
	}
	KILL_POINT("recover-renumbered");
	free(s->list);
	residents = (struct scan){0};
	for (uint32_t i = 0; i < arena_processes(c->arena); i++) {
		struct process *p = &c->process[i];
		int r;

		if (p->shared->state != PROCESS_LIVE)
			continue;
		atomic_store(&p->maps_changed, true);
		r = process_publish(p);
		if (r < 0)
			return r;
	}
	return 0;
}

void recover_wake(struct core *c)
{
	for (uint32_t i = 0; i < arena_processes(c->arena); i++) {
		struct process *p = &c->process[i];

		if (p->shared->state != PROCESS_LIVE)
			continue;
		if (p->shared->sock >= 0 && p->ops) {
			attach_say_go(p);
			reclaim_add(p);
		}
		process_wake_all(p);
	}
	KILL_POINT("recover-woken");
	for (uint32_t i = 0; i < arena_processes(c->arena); i++) {
		struct process *p = &c->process[i];

		if (p->shared->state != PROCESS_LIVE || !p->held)
			continue;
		p->held = false;
		event_resume(p);
	}
}

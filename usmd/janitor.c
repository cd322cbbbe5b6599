/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "event.h"
#include "family.h"
#include "fault.h"
#include "janitor.h"
#include "lib/cleanup.h"
#include "lib/log.h"
#include "mechanism-userfault.h"
#include "policy.h"
#include "pool.h"
#include "process.h"
#include "reclaim.h"
#include "worker.h"

#define TICK_MSEC 100
/* A forked child whose agent has not come by then has none: it is let go. */
#define CHILD_GRACE_USEC 3000000ull
/* How often, in ticks, all of a process's present pages are looked at. */
#define AUDIT_TICKS	  20
#define AUDIT_TICKS_CHILD 2
/* Threads of one process whose control blocks are looked up each tick. */
#define THREADS_MAX 1024
/* A fork that shares more than this part of all frames is worth a fault for each copy. */
#define PROTECT_PART 64
/* How long an agent that was told to go may take. */
#define RELEASE_TICKS 10
/* Runs of pages that a process brings back each tick from a device that is being removed. */
#define DRAIN_RUNS 256
#define PAGEMAP_PRESENT	  (1ull << 63)
#define PAGEMAP_SWAPPED	  (1ull << 62)
#define PAGEMAP_FILE	  (1ull << 61)
#define PAGEMAP_EXCLUSIVE (1ull << 56)

static struct {
	pthread_t thread;
	_Atomic bool stop;
	bool started;
	struct worker worker;
} janitor;

/* --- mappings ---------------------------------------------------------------------- */

struct map {
	uint64_t start, end;
	bool private, anonymous, special;
};

static const char *parse_map(const char *s, struct map *ret)
{
	char perms[5] = "", *end;
	unsigned long inode;
	const char *name, *eol = strchr(s, '\n');

	if (!eol)
		return NULL;
	ret->start = strtoull(s, &end, 16);
	ret->end = strtoull(end + 1, &end, 16);
	memcpy(perms, end + 1, 4);
	end = strchr(end + 6, ' ');		/* offset */
	end = end ? strchr(end + 1, ' ') : NULL; /* device */
	if (!end)
		return NULL;
	inode = strtoul(end + 1, &end, 10);
	for (name = end; name < eol && *name == ' '; name++)
		;
	ret->private = perms[3] == 'p';
	ret->anonymous = inode == 0 && (name == eol || *name == '[');
	ret->special = name < eol && *name == '[' && strncmp(name, "[heap]", 6) &&
		       strncmp(name, "[stack]", 7) && strncmp(name, "[anon:", 6);
	return eol + 1;
}

static int read_all(int fd, char **buf, size_t *size)
{
	size_t n = 0;

	if (lseek(fd, 0, SEEK_SET) < 0)
		return -errno;
	for (;;) {
		ssize_t r;

		if (*size - n < 8192) {
			size_t want = *size ? *size * 2 : 65536;
			char *b = realloc(*buf, want);

			if (!b)
				return -ENOMEM;
			*buf = b;
			*size = want;
		}
		r = read(fd, *buf + n, *size - n - 1);
		if (r < 0 && errno != EINTR)
			return -errno;
		if (r == 0)
			break;
		if (r > 0)
			n += (size_t)r;
	}
	(*buf)[n] = '\0';
	return 0;
}

static bool is_ours(const struct arena_process *s, const struct map *m)
{
	uint64_t len = USM_OPS_BATCH * USM_PAGE_SIZE;

	return (s->staging && m->start < s->staging + len && m->end > s->staging) ||
	       (s->trash && m->start < s->trash + len && m->end > s->trash);
}

static bool was_seen(const struct process *p, uint64_t start, uint64_t end)
{
	unsigned lo = 0, hi = p->scan.nr_ranges;

	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;

		if (p->scan.ranges[2 * mid] < start)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < p->scan.nr_ranges && p->scan.ranges[2 * lo] == start &&
	       p->scan.ranges[2 * lo + 1] == end;
}

/* --- adoption ---------------------------------------------------------------------- */

static int open_proc(const struct process *p, const char *file, int *fd)
{
	char path[64];

	if (*fd >= 0)
		return 0;
	snprintf(path, sizeof(path), "/proc/%d/%s", p->shared->pid, file);
	*fd = open(path, O_RDONLY | O_CLOEXEC);
	return *fd < 0 ? -errno : 0;
}

/*
 * Takes in what is present but NONE: pages from before the program was managed, or
 * that became a forked child's own.  Pages shared by copy-on-write are accounted for
 * by the process that had them first.
 */
static void adopt(struct core *c, struct process *p, uint64_t start, uint64_t end)
{
	uint64_t map[LEAF_PAGES];

	if (open_proc(p, "pagemap", &p->scan.pagemap_fd) < 0)
		return;
	for (uint64_t vpn = VPN(start); vpn < VPN(end);) {
		uint64_t n = MIN(VPN(end) - vpn, LEAF_PAGES - vpn % LEAF_PAGES);
		ssize_t r = pread(p->scan.pagemap_fd, map, n * sizeof(map[0]),
				  (off_t)(vpn * sizeof(map[0])));

		if (r <= 0 || atomic_load(&p->gone) || atomic_load(&janitor.stop))
			return;
		for (uint64_t i = 0; i < (uint64_t)r / sizeof(map[0]); i++) {
			page_entry *e;
			bool none;

			if (!(map[i] & PAGEMAP_PRESENT) || map[i] & PAGEMAP_FILE ||
			    !(map[i] & PAGEMAP_EXCLUSIVE))
				continue;
			process_latch(p);
			e = process_page(p, vpn + i, false);
			none = !e || !atomic_load(e);
			process_unlatch(p);
			if (none && fault_adopt(p, vpn + i) == -ENOMEM) {
				reclaim_kick(c);
				return; /* the next audit goes on */
			}
		}
		vpn += (uint64_t)r / sizeof(map[0]);
	}
}

/* Pages that were announced as removed (PAGE_REMOVED), one look at the table. */
struct removed {
	uint64_t vpn[LEAF_PAGES];
	unsigned n;
};

static int note_removed(void *userdata, uint64_t vpn, page_entry *e)
{
	struct removed *list = userdata;
	uint64_t v = atomic_load(e);

	if (PAGE_STATE(v) == PAGE_RESIDENT && v & PAGE_REMOVED && !(v & PAGE_LAZY))
		list->vpn[list->n++] = vpn;
	return list->n == LEAF_PAGES;
}

/*
 * n consecutive pages: those that are absent now are nobody's, and their frames are free.
 * Returns how many are present and may still be zapped.
 */
static unsigned free_run(struct core *c, struct process *p, uint64_t vpn, unsigned n)
{
	uint64_t map[LEAF_PAGES], old[LEAF_PAGES];
	bool known;
	unsigned left = 0;

	process_latch(p);
	for (unsigned i = 0; i < n; i++) {
		page_entry *e = process_page(p, vpn + i, false);
		uint64_t v = e ? atomic_load(e) : 0;

		/* Claimed: nobody installs it while we look. */
		if (PAGE_STATE(v) != PAGE_RESIDENT || !(v & PAGE_REMOVED) || v & PAGE_LAZY ||
		    !atomic_compare_exchange_strong(e, &v, PAGE_ENTRY(PAGE_FILLING, 0)))
			v = 0;
		old[i] = v;
	}
	process_unlatch(p);
	known = pread(p->scan.pagemap_fd, map, n * sizeof(map[0]), (off_t)(vpn * sizeof(map[0]))) ==
		(ssize_t)(n * sizeof(map[0]));
	process_latch(p);
	for (unsigned i = 0; i < n; i++) {
		page_entry *e;

		if (!old[i])
			continue;
		e = process_page(p, vpn + i, false);
		if ((known && !(map[i] & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED))) ||
		    atomic_load(e) & PAGE_GONE) {
			atomic_store(e, 0);
			atomic_fetch_sub(&p->nr_resident, 1);
			pool_release(c, PAGE_VALUE(old[i]));
		} else if (page_removed_recently(old[i])) {
			atomic_store(e, old[i]);
			left++;
		} else {
			/* madvise(FREE): still there, and now it is a page like any other. */
			atomic_store(e, PAGE_ENTRY(PAGE_RESIDENT, PAGE_VALUE(old[i])));
		}
	}
	userfault_wake(p->shared->uffd, vpn, n);
	process_unlatch(p);
	return left;
}

static void free_removed(struct core *c, struct process *p)
{
	struct removed list;
	uint64_t from = 0;
	unsigned left = 0;
	bool more;

	if (!atomic_exchange(&p->has_removed, false) ||
	    open_proc(p, "pagemap", &p->scan.pagemap_fd) < 0)
		return;
	do {
		list.n = 0;
		process_latch(p);
		more = page_visit(c->arena, p->number, from, VPN_MAX, note_removed, &list);
		process_unlatch(p);
		for (unsigned i = 0, j; i < list.n; i = j) {
			for (j = i + 1; j < list.n && list.vpn[j] == list.vpn[j - 1] + 1;)
				j++;
			left += free_run(c, p, list.vpn[i], j - i);
		}
		if (list.n)
			from = list.vpn[list.n - 1] + 1;
	} while (more && !atomic_load(&p->gone));
	if (left || more)
		atomic_store(&p->has_removed, true);
	pool_flush(atomic_load(&p->pool));
}

int janitor_scan(struct core *c, struct process *p)
{
	_cleanup_free_ char *buf = NULL;
	size_t size = 0;
	bool all = atomic_exchange(&p->maps_changed, false), audit;
	uint64_t *ranges = NULL, tick = now_tick();
	unsigned n = 0, cap = 0;
	struct map m;
	int r;

	r = open_proc(p, "maps", &p->scan.maps_fd);
	if (r >= 0)
		r = read_all(p->scan.maps_fd, &buf, &size);
	if (r < 0)
		return r;
	audit = tick >= p->scan.next_audit_tick;
	if (audit)
		p->scan.next_audit_tick =
			tick + (p->shared->is_child ? AUDIT_TICKS_CHILD : AUDIT_TICKS);
	for (const char *s = buf; (s = parse_map(s, &m));) {
		bool seen;

		if (!m.private || !m.anonymous || m.special || is_ours(p->shared, &m) ||
		    m.end > VADDR(VPN_MAX))
			continue;
		seen = was_seen(p, m.start, m.end);
		if (!seen || all) {
			r = userfault_register(p->shared->uffd, m.start, m.end, c->register_mode);
			if (r == -ENOMEM || r == -ESRCH)
				break; /* unmapped meanwhile, or the program has ended */
			if (r < 0)
				continue; /* another userfaultfd's, or of a kind that cannot be */
		}
		if (n == cap) {
			uint64_t *x;

			cap = cap ? 2 * cap : 64;
			x = realloc(ranges, 2 * cap * sizeof(*x));
			if (!x)
				break;
			ranges = x;
		}
		ranges[2 * n] = m.start;
		ranges[2 * n++ + 1] = m.end;
	}
	free(p->scan.ranges);
	p->scan.ranges = ranges;
	p->scan.nr_ranges = n;
	for (unsigned i = 0; audit && i < n; i++)
		adopt(c, p, ranges[2 * i], ranges[2 * i + 1]);
	free_removed(c, p);
	return 0;
}

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

/* --- endings ----------------------------------------------------------------------- */

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
	if (n >= 0)
		close(n);
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

static void tear_down(struct core *c, struct process *p)
{
	struct arena_process *s = p->shared;
	struct pool *pool = atomic_load(&p->pool);
	struct usm_agent_ops *ops = p->ops;

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
	family_hand_over(p, 0, VPN_MAX);
	page_visit(c->arena, p->number, 0, VPN_MAX, drop_all, p);
	page_table_free(c->arena, p->number);
	p->ops = NULL;
	if (ops)
		munmap(ops, USM_OPS_BYTES);
	free(p->scan.ranges);
	p->scan.ranges = NULL;
	close_fd(&p->scan.maps_fd);
	close_fd(&p->scan.pagemap_fd);
	close_fd(&s->uffd);
	close_fd(&s->sock);
	close_fd(&s->opsfd);
	close_fd(&s->pidfd);
	if (pool)
		pool_flush(pool);
	atomic_store(&s->state, PROCESS_FREE);
	if (s->fork_protected)
		note_relative_gone(c, s->family);
	eventfd_write(c->main_fd, 1);
}

/* FILLING from a slot counts: if its fault is given up, the page is swapped again. */
static int first_swapped(void *userdata, uint64_t vpn, page_entry *e)
{
	uint64_t *ret = userdata;
	uint64_t v = atomic_load(e);

	if (PAGE_STATE(v) != PAGE_SWAPPED && !(PAGE_STATE(v) == PAGE_FILLING && PAGE_VALUE(v)))
		return 0;
	*ret = vpn;
	return 1;
}

/* Everything back into the program. True: nothing of it is swapped any more. */
static bool bring_all_back(struct core *c, struct process *p)
{
	uint64_t vpn = 0;

	for (;;) {
		uint64_t found = 0;
		int r;

		if (atomic_load(&p->gone) || atomic_load(&p->killed))
			return false;
		process_latch(p);
		r = page_visit(c->arena, p->number, vpn, VPN_MAX, first_swapped, &found);
		process_unlatch(p);
		if (!r) {
			if (vpn == 0 && !atomic_load(&p->nr_evicting))
				return true;
			if (vpn == 0)
				usleep(1000);
			vpn = 0; /* once more from the start: something may have left behind us */
			continue;
		}
		r = fault_bring_back(&janitor.worker, p, found, true);
		if (r == -ESRCH || r == -EIO || r == -EBADMSG)
			return false;
		if (r == -ENOMEM)
			return false;
		vpn = found + (r == -ENOENT ? 1 : 0);
		if (r == -ENOENT || r == -EAGAIN)
			usleep(100);
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

static void unregister_all(struct core *c, struct process *p)
{
	if (!p->shared->attached)
		return; /* closing its userfaultfd, which nobody else has, does it */
	/* For the ranges only: nothing is taken in any more. */
	p->scan.next_audit_tick = UINT64_MAX;
	janitor_scan(c, p);
	for (unsigned i = 0; i < p->scan.nr_ranges; i++)
		userfault_unregister(p->shared->uffd, p->scan.ranges[2 * i],
				     p->scan.ranges[2 * i + 1]);
}

/*
 * Lets a living process go, in steps of one tick: its pages come back; its agent is told,
 * after which the tagger's hooks register nothing more, and ends; what is registered is
 * unregistered.  Faults are served until then.
 */
static void release(struct core *c, struct process *p)
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
	if (!bring_all_back(c, p))
		return;
	if (p->shared->sock >= 0 && !p->scan.release_tick) {
		p->scan.release_tick = tick;
		if (send(p->shared->sock, &m, sizeof(m), MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
			return;
	}
	unregister_all(c, p);
	tear_down(c, p);
}

/* Its last relative has ended: it shares nothing any more, and its writes need no faults. */
static void lift_protection(struct process *p)
{
	uint32_t done = USM_PROTECT_DONE;
	int r = 0;

	if (!process_try_latch_exclusive(p))
		return; /* the next tick */
	/* What LAZYFREE has in hand stays protected. */
	if (atomic_load(&p->shared->op_state) != OP_IDLE && p->shared->op_kind == USM_OPS_LAZYFREE)
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
		tear_down(c, p);
		return;
	}
	/* Its latch is not to be had as long as its agent has not ended an operation. */
	if (atomic_load(&p->killed) || p->held || atomic_load(&p->barrier))
		return;
	if (atomic_load(&p->release) ||
	    (s->is_child && !s->attached && now_nsec() / 1000 - s->forked_usec > CHILD_GRACE_USEC)) {
		release(c, p);
		return;
	}
	if (atomic_load(&p->gone)) {
		/* Its agent is gone or its userfaultfd fails, but it lives: without the agent no
		 * page can leave.  What was under way when the agent ended cannot be told. */
		if (atomic_load(&s->op_state) != OP_IDLE)
			process_kill(p, 0, "its agent ended in the middle of an eviction");
		atomic_store(&p->no_evict, true);
		atomic_store(&p->unevictable_reason, "its agent is gone");
		atomic_store(&p->gone, false);
	}
	if (s->attached && s->pid > 0) {
		pin_threads(p);
		janitor_scan(c, p);
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

		process_latch(p);
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
			reclaim_wait(c, NULL);
			return;
		}
		fault_bring_back(&janitor.worker, p, found.vpn, true);
	}
}

static void finish_removals(struct core *c)
{
	struct usm_swap_info info[USM_SWAP_DEVICES];
	unsigned n = usm_swap_list(c->swap, info, USM_SWAP_DEVICES), left = 0;

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
	if (!left)
		atomic_store(&c->drain_swap, false);
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

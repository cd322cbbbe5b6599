/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fault.h"
#include "kill-point.h"
#include "lib/cleanup.h"
#include "mechanism-userfault.h"
#include "pagemap.h"
#include "pool.h"
#include "process.h"
#include "reclaim.h"
#include "scan.h"

/* How often, in ticks, all of a process's present pages are looked at. */
#define AUDIT_TICKS	  20
#define AUDIT_TICKS_CHILD 2

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

		if (r <= 0 || atomic_load(&p->gone))
			return;
		for (uint64_t i = 0; i < (uint64_t)r / sizeof(map[0]); i++) {
			page_entry *e;
			bool none;

			if (!(map[i] & PAGEMAP_PRESENT) || map[i] & PAGEMAP_FILE ||
			    !(map[i] & PAGEMAP_EXCLUSIVE))
				continue;
			if (!process_latch(p))
				return;
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
	bool known, barrier;
	unsigned left = 0;

	if (!process_latch(p))
		return n;
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
	KILL_POINT("removed-claimed");
	known = pread(p->scan.pagemap_fd, map, n * sizeof(map[0]), (off_t)(vpn * sizeof(map[0]))) ==
		(ssize_t)(n * sizeof(map[0]));
	barrier = !process_latch_claimed(p);
	for (unsigned i = 0; i < n; i++) {
		page_entry *e;

		if (!old[i])
			continue;
		e = process_page(p, vpn + i, false);
		if (barrier && !(atomic_load(e) & PAGE_GONE)) {
			atomic_store(e, old[i]);
			left++;
		} else if ((known && !(map[i] & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED))) ||
			   atomic_load(e) & PAGE_GONE) {
			atomic_store(e, 0);
			KILL_POINT("removed-freed");
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
		if (!process_latch(p)) {
			more = true;
			break;
		}
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

int scan_mappings(struct core *c, struct process *p)
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

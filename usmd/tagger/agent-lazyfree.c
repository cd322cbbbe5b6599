/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * LAZYFREE of attach.h: the kernel's own reclaim drops a page that was copied, if nobody pins it
 * and nobody wrote it since.
 *
 * MADV_FREE acts on whatever lies at the address when it runs.  Hooked mapping calls are kept out
 * by the mapping lock; for raw ones the page is compared with its copy once it is marked: a page
 * that replaced the copied one differs, and is marked as written again.  Whoever writes after the
 * mark keeps the page by that write.
 *
 * Pages are read through /proc/self/mem, which fails where a load would wait for the daemon.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "agent.h"
#include "sys.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

/* A hooked call can itself wait for the daemon: never wait for it longer than a batch takes. */
#define MAPLOCK_WAIT_USEC 2000

#define PM_PRESENT (1ull << 63)
#define PM_SWAPPED (1ull << 62)
#define PM_UFFD_WP (1ull << 57)
#define PM_MMAP_EXCLUSIVE (1ull << 56)

/* Enough for 8192 processors. */
struct cpu_mask {
	uint64_t bits[128];
};

static void set_result(struct usm_agent *a, uint32_t i, long result)
{
	atomic_store_explicit(&a->ops->res[i], (int32_t)result, memory_order_relaxed);
}

static bool mappings_lock(struct usm_agent *a)
{
	uint64_t until = sys_now_usec() + MAPLOCK_WAIT_USEC;
	uint32_t is;

	atomic_fetch_or(&a->maplock, USM_MAPLOCK_AGENT);
	while ((is = atomic_load(&a->maplock)) != USM_MAPLOCK_AGENT) {
		if (sys_now_usec() >= until) {
			atomic_fetch_and(&a->maplock, ~USM_MAPLOCK_AGENT);
			sys_futex_wake(&a->maplock);
			return false;
		}
		sys_futex_wait(&a->maplock, is, MAPLOCK_WAIT_USEC);
	}
	return true;
}

static void mappings_unlock(struct usm_agent *a)
{
	atomic_fetch_and(&a->maplock, ~USM_MAPLOCK_AGENT);
	sys_futex_wake(&a->maplock);
}

/*
 * MADV_FREE leaves pages in a list of the processor, and MADV_PAGEOUT finds them only there.
 * Returns the size of the old mask, or a negative errno (then nothing changed).
 */
static long stay_on_processor(struct cpu_mask *old)
{
	struct cpu_mask one = { { 0 } };
	uint32_t cpu = 0;
	long bytes = sys3(SYS_sched_getaffinity, 0, sizeof(*old), old), r;

	if (bytes < 0)
		return bytes;
	r = sys3(SYS_getcpu, &cpu, NULL, NULL);
	if (r < 0 || cpu >= sizeof(one) * 8)
		return -EINVAL;
	one.bits[cpu / 64] = 1ull << cpu % 64;
	r = sys3(SYS_sched_setaffinity, 0, sizeof(one), &one);
	return r < 0 ? r : bytes;
}

static int open_proc(const char *path)
{
	long r = sys4(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);

	return r < 0 ? -1 : (int)r;
}

/* The pagemap entry; a page counts as present when that cannot be read. */
static uint64_t page_state(struct usm_agent *a, uint64_t addr)
{
	uint64_t entry = 0;

	if (sys4(SYS_pread64, a->pagemap_fd, &entry, 8, addr / USM_PAGE_SIZE * 8) != 8)
		return PM_PRESENT;
	return entry;
}

static bool read_page(struct usm_agent *a, void *buf, uint64_t addr)
{
	return sys4(SYS_pread64, a->mem_fd, buf, USM_PAGE_SIZE, addr) == (long)USM_PAGE_SIZE;
}

static bool same_page(const char *p, const char *q)
{
	const uint64_t *x = (const uint64_t *)p, *y = (const uint64_t *)q;

	for (uint32_t i = 0; i < USM_PAGE_SIZE / 8; i++)
		if (x[i] != y[i])
			return false;
	return true;
}

/*
 * The mark is on: true if page i is what was copied.  Otherwise it is written, changing nothing,
 * so that reclaim keeps it.  A page that is still write-protected cannot have been replaced: it
 * is one whose owner writes by DMA, and reclaim does not take pages that are pinned.
 */
static bool verify_page(struct usm_agent *a, uint32_t i)
{
	char *copy = (char *)a->ops + USM_OPS_DATA + i * USM_PAGE_SIZE;

	if (!read_page(a, a->verify, a->addr[i]))
		return false;
	if (same_page(a->verify, copy))
		return true;
	if ((page_state(a, a->addr[i]) & (PM_PRESENT | PM_UFFD_WP)) == PM_PRESENT)
		atomic_fetch_or((_Atomic uint8_t *)a->addr[i], 0);
	return false;
}

/* Pages from..to are consecutive and copied. */
static void free_run(struct usm_agent *a, uint32_t from, uint32_t to)
{
	/* Even when this fails part of the way, what is marked must be verified, and what is not
	 * marked does no harm when it counts as marked. */
	sys_madvise(a->addr[from], (to - from) * USM_PAGE_SIZE, MADV_FREE);

	for (uint32_t i = from; i < to; i++)
		set_result(a, i, verify_page(a, i) ? 0 : -EBUSY);
	for (uint32_t i = from; i < to; i++) {
		uint32_t first = i;

		while (i < to && atomic_load(&a->ops->res[i]) == 0)
			i++;
		if (i > first)
			sys_madvise(a->addr[first], (i - first) * USM_PAGE_SIZE, MADV_PAGEOUT);
	}
	/* Gone is gone, whoever took it: a page that the program dropped comes with an event. */
	for (uint32_t i = from; i < to; i++) {
		uint64_t state = page_state(a, a->addr[i]);

		if (!(state & (PM_PRESENT | PM_SWAPPED)))
			set_result(a, i, 0);
		else
			set_result(a, i, state & PM_MMAP_EXCLUSIVE ? -EBUSY : -EMLINK);
	}
}

static bool copy_out(struct usm_agent *a, uint32_t i)
{
	char *copy = (char *)a->ops + USM_OPS_DATA + i * USM_PAGE_SIZE;

	if ((page_state(a, a->addr[i]) & PM_PRESENT) && read_page(a, copy, a->addr[i]))
		return true;
	set_result(a, i, -ENOENT);
	return false;
}

static void free_pages(struct usm_agent *a, uint32_t req)
{
	uint32_t i = 0;

	while (i < a->n) {
		uint32_t from = i;

		/* Each run makes an event, and the daemon keeps only so many unapplied. */
		if (atomic_load(&a->ops->hurry) == req) {
			for (; i < a->n; i++)
				set_result(a, i, -ECANCELED);
			return;
		}
		if (!copy_out(a, i++))
			continue;
		while (i < a->n && a->addr[i] == a->addr[i - 1] + USM_PAGE_SIZE && copy_out(a, i))
			i++;
		free_run(a, from, i);
		/* The page at which the run ended for want of a copy has its result already. */
		if (i < a->n && a->addr[i] == a->addr[i - 1] + USM_PAGE_SIZE)
			i++;
	}
}

void usm_agent_lazyfree(struct usm_agent *a, uint32_t req)
{
	struct cpu_mask old;
	long mask_bytes, error = 0;

	if (a->pagemap_fd < 0)
		a->pagemap_fd = open_proc("/proc/self/pagemap");
	if (a->mem_fd < 0)
		a->mem_fd = open_proc("/proc/self/mem");
	if (a->pagemap_fd < 0 || a->mem_fd < 0 || atomic_load(&a->hooked) == 0)
		error = -EPERM;
	else if (!mappings_lock(a))
		error = -EAGAIN;
	if (error) {
		for (uint32_t i = 0; i < a->n; i++)
			set_result(a, i, error);
		return;
	}
	mask_bytes = stay_on_processor(&old);
	free_pages(a, req);
	if (mask_bytes > 0)
		sys3(SYS_sched_setaffinity, 0, mask_bytes, &old);
	mappings_unlock(a);
}

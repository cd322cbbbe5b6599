/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The program's mapping calls, as interposed symbols and (patch.c) as the targets of libc's own.
 * They do what libc's do, with the same results; besides, fresh private anonymous memory is
 * registered before its first touch, and none runs while the agent needs mappings to stand still.
 *
 * They may run before the constructor, in a signal handler and in a vfork child: no lock of libc's,
 * no allocation, errno as libc leaves it.
 */
#include <errno.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sys.h"
#include "tagger.h"

#define EXPORT __attribute__((visibility("default")))
/* A hook looks again after this long even if nobody wakes it. */
#define MAPLOCK_STEP_USEC 1000

/* libc's own record of the break, which sbrk reads. */
extern void *__curbrk __attribute__((weak));

static uint64_t page_end(uint64_t addr)
{
	return (addr + USM_PAGE_SIZE - 1) & ~(USM_PAGE_SIZE - 1);
}

struct mapping_call {
	struct usm_agent *agent; /* NULL: nobody needs to know of the call */
	bool in_order, counted;
};

/* Shared among hooks, exclusive for the agent's LAZYFREE. */
static void count_in(struct usm_agent *a)
{
	uint32_t is = atomic_load(&a->maplock);

	for (;;) {
		if (is & USM_MAPLOCK_AGENT) {
			sys_futex_wait(&a->maplock, is, MAPLOCK_STEP_USEC);
			is = atomic_load(&a->maplock);
		} else if (atomic_compare_exchange_weak(&a->maplock, &is, is + 1)) {
			return;
		}
	}
}

/* takes: mappings are taken away or moved. */
static struct mapping_call mappings_enter(bool takes)
{
	struct mapping_call c = { .agent = usm_tagger ? usm_tagger->agent : NULL };

	if (!c.agent || atomic_load(&c.agent->life) != USM_LIFE_MANAGED)
		return (struct mapping_call){ .agent = NULL };
	c.in_order = takes && usm_order_enter(c.agent);
	c.counted = c.agent->evict_modes & USM_EVICT_LAZYFREE;
	if (c.counted)
		count_in(c.agent);
	return c;
}

static void mappings_leave(struct mapping_call c)
{
	if (c.counted && atomic_fetch_sub(&c.agent->maplock, 1) == (USM_MAPLOCK_AGENT | 1))
		sys_futex_wake(&c.agent->maplock);
	if (c.in_order)
		usm_order_leave(c.agent);
}

static long finish(long r)
{
	if (!sys_is_error(r))
		return r;
	errno = (int)-r;
	return -1;
}

static bool is_candidate(int flags)
{
	return (flags & MAP_ANONYMOUS) && (flags & MAP_TYPE) == MAP_PRIVATE &&
	       !(flags & (MAP_HUGETLB | MAP_GROWSDOWN | MAP_LOCKED));
}

EXPORT void *mmap(void *addr, size_t bytes, int prot, int flags, int fd, off_t off)
{
	bool ours = is_candidate(flags) && usm_tagger_ready(), populate = false;
	struct mapping_call c;
	long r;

	/* Populating comes after the registration, so that the daemon provides the pages. */
	if (ours && (flags & MAP_POPULATE)) {
		populate = true;
		flags &= ~MAP_POPULATE;
	}
	c = mappings_enter(flags & MAP_FIXED);
	r = sys_mmap((uint64_t)addr, bytes, prot, flags, fd, off);
	mappings_leave(c);
	if (ours && !sys_is_error(r)) {
		usm_tagger_register((uint64_t)r, page_end(bytes));
		if (populate && (prot & PROT_WRITE))
			sys_madvise((uint64_t)r, page_end(bytes), MADV_POPULATE_WRITE);
		else if (populate && prot != PROT_NONE)
			sys_madvise((uint64_t)r, page_end(bytes), MADV_POPULATE_READ);
	}
	return (void *)finish(r);
}

EXPORT void *mmap64(void *addr, size_t bytes, int prot, int flags, int fd, off_t off)
	__attribute__((alias("mmap")));

EXPORT int munmap(void *addr, size_t bytes)
{
	struct mapping_call c = mappings_enter(true);
	long r = sys2(SYS_munmap, addr, bytes);

	mappings_leave(c);
	return (int)finish(r);
}

EXPORT void *mremap(void *addr, size_t old_bytes, size_t bytes, int flags, ...)
{
	void *target = NULL;
	struct mapping_call c;
	va_list args;
	long r;

	if (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) {
		va_start(args, flags);
		target = va_arg(args, void *);
		va_end(args);
	}
	if (flags & MREMAP_MAYMOVE)
		usm_pin_move((uint64_t)addr, old_bytes);
	c = mappings_enter(true);
	r = sys5(SYS_mremap, addr, old_bytes, bytes, flags, target);
	mappings_leave(c);
	return (void *)finish(r);
}

static bool drops_pages(int advice)
{
	return advice == MADV_DONTNEED || advice == MADV_DONTNEED_LOCKED || advice == MADV_FREE ||
	       advice == MADV_REMOVE;
}

EXPORT int madvise(void *addr, size_t bytes, int advice)
{
	struct mapping_call c;
	long r;

	if (advice == MADV_WIPEONFORK || advice == MADV_DONTFORK)
		usm_pin_uninherited((uint64_t)addr, bytes);
	if (!drops_pages(advice))
		return (int)finish(sys_madvise((uint64_t)addr, bytes, advice));
	c = mappings_enter(false);
	r = sys_madvise((uint64_t)addr, bytes, advice);
	mappings_leave(c);
	return (int)finish(r);
}

EXPORT int brk(void *end)
{
	uint64_t old, now;
	struct mapping_call c;
	bool ours;

	if (!&__curbrk) {
		errno = ENOSYS;
		return -1;
	}
	ours = usm_tagger_ready();
	c = mappings_enter(__curbrk && end < __curbrk);
	old = __curbrk ? (uint64_t)__curbrk : (uint64_t)sys1(SYS_brk, 0);
	now = (uint64_t)sys1(SYS_brk, end);
	mappings_leave(c);
	__curbrk = (void *)now;
	if (now < (uint64_t)end) {
		errno = ENOMEM;
		return -1;
	}
	if (ours && page_end(now) > page_end(old))
		usm_tagger_register(page_end(old), page_end(now) - page_end(old));
	return 0;
}

const struct usm_patch usm_hook_patches[] = {
	{ "mmap", mmap },     { "munmap", munmap },   { "mremap", mremap },
	{ "madvise", madvise }, { "brk", brk },
};
const size_t usm_nr_hook_patches = sizeof(usm_hook_patches) / sizeof(usm_hook_patches[0]);

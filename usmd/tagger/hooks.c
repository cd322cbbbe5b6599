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

/* Shared among hooks, exclusive for the agent's LAZYFREE.  NULL when nobody needs it. */
static struct usm_agent *mappings_enter(void)
{
	struct usm_agent *a = usm_tagger ? usm_tagger->agent : NULL;
	uint32_t is;

	if (!a || atomic_load(&a->life) != USM_LIFE_MANAGED ||
	    !(a->evict_modes & USM_EVICT_LAZYFREE))
		return NULL;
	is = atomic_load(&a->maplock);
	for (;;) {
		if (is & USM_MAPLOCK_AGENT) {
			sys_futex_wait(&a->maplock, is, MAPLOCK_STEP_USEC);
			is = atomic_load(&a->maplock);
		} else if (atomic_compare_exchange_weak(&a->maplock, &is, is + 1)) {
			return a;
		}
	}
}

static void mappings_leave(struct usm_agent *a)
{
	if (a && atomic_fetch_sub(&a->maplock, 1) == (USM_MAPLOCK_AGENT | 1))
		sys_futex_wake(&a->maplock);
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
	struct usm_agent *a;
	long r;

	/* Populating comes after the registration, so that the daemon provides the pages. */
	if (ours && (flags & MAP_POPULATE)) {
		populate = true;
		flags &= ~MAP_POPULATE;
	}
	a = mappings_enter();
	r = sys_mmap((uint64_t)addr, bytes, prot, flags, fd, off);
	mappings_leave(a);
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
	struct usm_agent *a = mappings_enter();
	long r = sys2(SYS_munmap, addr, bytes);

	mappings_leave(a);
	return (int)finish(r);
}

EXPORT void *mremap(void *addr, size_t old_bytes, size_t bytes, int flags, ...)
{
	void *target = NULL;
	struct usm_agent *a;
	va_list args;
	long r;

	if (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) {
		va_start(args, flags);
		target = va_arg(args, void *);
		va_end(args);
	}
	if (flags & MREMAP_MAYMOVE)
		usm_pin_move((uint64_t)addr, old_bytes);
	a = mappings_enter();
	r = sys5(SYS_mremap, addr, old_bytes, bytes, flags, target);
	mappings_leave(a);
	return (void *)finish(r);
}

static bool drops_pages(int advice)
{
	return advice == MADV_DONTNEED || advice == MADV_DONTNEED_LOCKED || advice == MADV_FREE ||
	       advice == MADV_REMOVE;
}

EXPORT int madvise(void *addr, size_t bytes, int advice)
{
	struct usm_agent *a;
	long r;

	if (advice == MADV_WIPEONFORK || advice == MADV_DONTFORK)
		usm_pin_uninherited((uint64_t)addr, bytes);
	if (!drops_pages(advice))
		return (int)finish(sys_madvise((uint64_t)addr, bytes, advice));
	a = mappings_enter();
	r = sys_madvise((uint64_t)addr, bytes, advice);
	mappings_leave(a);
	return (int)finish(r);
}

EXPORT int brk(void *end)
{
	uint64_t old, now;
	struct usm_agent *a;
	bool ours;

	if (!&__curbrk) {
		errno = ENOSYS;
		return -1;
	}
	ours = usm_tagger_ready();
	a = mappings_enter();
	old = __curbrk ? (uint64_t)__curbrk : (uint64_t)sys1(SYS_brk, 0);
	now = (uint64_t)sys1(SYS_brk, end);
	mappings_leave(a);
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

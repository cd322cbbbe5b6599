/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Raw system calls.  The agent thread shares its creator's thread pointer, so nothing that it
 * runs may use errno or any other thread-local variable; the hooks use them too, because they
 * must leave errno alone.  All return the kernel's value: 0/positive or a negative errno.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <linux/userfaultfd.h>

#ifndef __x86_64__
#error "libusm-tagger knows the system calls of x86-64 only"
#endif

/* Kernel interfaces that are younger than the headers of the oldest supported release. */
#ifndef UFFDIO_MOVE
struct uffdio_move {
	uint64_t dst;
	uint64_t src;
	uint64_t len;
	uint64_t mode;
	int64_t move;
};
#define UFFDIO_MOVE		_IOWR(UFFDIO, 0x05, struct uffdio_move)
#define UFFDIO_MOVE_MODE_DONTWAKE ((uint64_t)1 << 0)
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW	_IO(0xAA, 0x00)
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ	22
#define MADV_POPULATE_WRITE	23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED	24
#endif

static inline long sys6(long nr, long a, long b, long c, long d, long e, long f)
{
	long ret;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

#define SYS_ARG(x) ((long)(x))
#define sys0(nr)                sys6(nr, 0, 0, 0, 0, 0, 0)
#define sys1(nr, a)             sys6(nr, SYS_ARG(a), 0, 0, 0, 0, 0)
#define sys2(nr, a, b)          sys6(nr, SYS_ARG(a), SYS_ARG(b), 0, 0, 0, 0)
#define sys3(nr, a, b, c)       sys6(nr, SYS_ARG(a), SYS_ARG(b), SYS_ARG(c), 0, 0, 0)
#define sys4(nr, a, b, c, d)    sys6(nr, SYS_ARG(a), SYS_ARG(b), SYS_ARG(c), SYS_ARG(d), 0, 0)
#define sys5(nr, a, b, c, d, e) \
	sys6(nr, SYS_ARG(a), SYS_ARG(b), SYS_ARG(c), SYS_ARG(d), SYS_ARG(e), 0)

static inline int sys_is_error(long ret)
{
	return (unsigned long)ret > -4096ul;
}

static inline long sys_mmap(uint64_t addr, size_t bytes, int prot, int flags, int fd, long off)
{
	return sys6(SYS_mmap, (long)addr, (long)bytes, prot, flags, fd, off);
}

static inline long sys_madvise(uint64_t addr, size_t bytes, int advice)
{
	return sys3(SYS_madvise, addr, bytes, advice);
}

static inline void sys_close(int fd)
{
	if (fd >= 0)
		sys1(SYS_close, fd);
}

static inline uint64_t sys_now_usec(void)
{
	struct timespec t = { 0, 0 };

	sys2(SYS_clock_gettime, CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static inline void sys_sleep_usec(uint64_t usec)
{
	struct timespec t = { (time_t)(usec / 1000000), (long)(usec % 1000000) * 1000 };

	sys2(SYS_nanosleep, &t, NULL);
}

/* Waits while *word is value, at most usec. */
static inline long sys_futex_wait(const void *word, uint32_t value, uint64_t usec)
{
	struct timespec t = { (time_t)(usec / 1000000), (long)(usec % 1000000) * 1000 };

	return sys4(SYS_futex, word, 0 /* FUTEX_WAIT: the ops memory is shared */, value, &t);
}

static inline void sys_futex_wake(const void *word)
{
	sys3(SYS_futex, word, 1 /* FUTEX_WAKE */, 0x7fffffff);
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the small test programs share: a check that ends the program with the
 * place and the values, pages filled with words that say where they belong, and
 * the argument "size in MiB".
 */
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul

#define CHECK(cond) \
	do { \
		if (!(cond)) { \
			fprintf(stderr, "%s:%d: process %d: failed: %s (errno: %s)\n", __FILE__, \
				__LINE__, (int)getpid(), #cond, strerror(errno)); \
			_exit(1); \
		} \
	} while (0)

/*
 * A page that is wrong is shown with what stands in it: whose it is tells the fault.  The kernel's
 * view comes after a look at the page table, which tells a page that is there from one that only
 * the processor still sees.
 */
static inline void check_show(const char *file, int line, const void *at, uint64_t is, uint64_t expected)
{
	volatile uint64_t *page = (uint64_t *)((uintptr_t)at & ~(PAGE - 1));
	uint64_t map[9] = {0}, kernel = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uintptr_t first = (uintptr_t)page / PAGE - 4;

	if (fd < 0 || pread(fd, map, sizeof(map), (off_t)(first * 8)) < 0)
		map[4] = 1;
	fprintf(stderr, "%s:%d: process %d: %p holds %#lx, expected %#lx; its page: %#lx %#lx %#lx ... %#lx",
		file, line, (int)getpid(), at, (unsigned long)is, (unsigned long)expected,
		(unsigned long)page[0], (unsigned long)page[8], (unsigned long)page[16],
		(unsigned long)page[PAGE / 8 - 1]);
	fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	if (fd < 0 || pread(fd, &kernel, sizeof(kernel), (off_t)(uintptr_t)at) < 0)
		kernel = 1;
	fprintf(stderr, "; the kernel reads %#lx; pagemap from 4 pages before:", (unsigned long)kernel);
	for (unsigned i = 0; i < 9; i++)
		fprintf(stderr, " %lx", (unsigned long)(map[i] >> 52));
	fprintf(stderr, "; now %#lx\n", (unsigned long)*(volatile uint64_t *)at);
}

#define CHECK_WORD(p, expected) \
	do { \
		uint64_t is_ = *(volatile uint64_t *)(p), should_ = (expected); \
		if (is_ != should_) { \
			check_show(__FILE__, __LINE__, (p), is_, should_); \
			_exit(1); \
		} \
	} while (0)

static inline size_t size_arg(int argc, char **argv)
{
	CHECK(argc == 2 && atoi(argv[1]) > 0);
	return (size_t)atoi(argv[1]) << 20;
}

static inline char *map_anonymous(size_t size)
{
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(p != MAP_FAILED);
	return p;
}

/* The word of page i under a tag; never zero, and differs for each page and tag. */
static inline uint64_t page_word(uint64_t tag, uint64_t i)
{
	return (tag << 40 ^ i) * 0x9e3779b97f4a7c15ull | 1;
}

/* The first and the last word: a page that was put together from two is seen. */
static inline void fill(char *p, size_t size, uint64_t tag)
{
	for (size_t i = 0; i < size / PAGE; i++) {
		*(volatile uint64_t *)(p + i * PAGE) = page_word(tag, i);
		*(volatile uint64_t *)(p + i * PAGE + PAGE - 8) = page_word(tag, i);
	}
}

static inline void check_filled(char *p, size_t size, uint64_t tag)
{
	for (size_t i = 0; i < size / PAGE; i++) {
		CHECK_WORD(p + i * PAGE, page_word(tag, i));
		CHECK_WORD(p + i * PAGE + PAGE - 8, page_word(tag, i));
	}
}

static inline void wait_ok(pid_t pid)
{
	int status;

	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Everything that a program does to its mappings: MADV_DONTNEED and a new
 * mapping give zeros, mremap moves and grows with the content, MAP_FIXED and
 * munmap drop it, mprotect and MADV_FREE keep what they must, whatever faults are still
 * being served there.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "check.h"

static void check_zero(char *p, size_t size)
{
	for (size_t i = 0; i < size / PAGE; i++) {
		CHECK_WORD(p + i * PAGE, 0);
		CHECK_WORD(p + i * PAGE + PAGE - 8, 0);
	}
}

static void test_dontneed(size_t size)
{
	char *p = map_anonymous(size);

	fill(p, size, 1);
	CHECK(!madvise(p + size / 4, size / 2, MADV_DONTNEED));
	check_filled(p, size / 4, 1);
	check_zero(p + size / 4, size / 2);
	fill(p + size / 4, size / 2, 2);
	check_filled(p + size / 4, size / 2, 2);
	/* Page by page, between pages that stay. */
	fill(p, size, 3);
	for (size_t i = 0; i < size / PAGE; i += 7)
		CHECK(!madvise(p + i * PAGE, PAGE, MADV_DONTNEED));
	for (size_t i = 0; i < size / PAGE; i++)
		CHECK_WORD(p + i * PAGE, i % 7 ? page_word(3, i) : 0);
	CHECK(!munmap(p, size));
}

static void test_free(size_t size)
{
	char *p = map_anonymous(size);

	fill(p, size, 1);
	CHECK(!madvise(p, size, MADV_FREE));
	/* Each page is as it was, or zero; a write after the call must stay. */
	for (size_t i = 0; i < size / PAGE; i++) {
		uint64_t word = *(volatile uint64_t *)(p + i * PAGE);

		CHECK(word == 0 || word == page_word(1, i));
	}
	fill(p, size, 2);
	check_filled(p, size, 2);
	CHECK(!munmap(p, size));
}

static void test_mremap(size_t size)
{
	char *p = map_anonymous(size), *target = map_anonymous(2 * size), *moved;

	fill(p, size, 1);
	fill(target, 2 * size, 2);
	/* Onto a place that was in use. */
	moved = mremap(p, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, target);
	CHECK(moved == target);
	check_filled(moved, size, 1);
	for (size_t i = size / PAGE; i < 2 * size / PAGE; i++)
		CHECK_WORD(target + i * PAGE, page_word(2, i));
	/* Shrink, grow; what is new is zero. */
	CHECK(mremap(moved, size, size / 2, 0) == moved);
	CHECK(!munmap(moved + size, size));
	moved = mremap(moved, size / 2, size, MREMAP_MAYMOVE);
	CHECK(moved != MAP_FAILED);
	check_filled(moved, size / 2, 1);
	check_zero(moved + size / 2, size / 2);
	for (unsigned i = 0; i < 50; i++) {
		char *q = mremap(moved, size, size, MREMAP_MAYMOVE | MREMAP_DONTUNMAP);

		if (q == MAP_FAILED) /* the kernel may refuse this one on a registered range */
			break;
		check_filled(q, size / 2, 1);
		check_zero(moved, size);
		CHECK(!munmap(moved, size));
		moved = q;
	}
	check_filled(moved, size / 2, 1);
	CHECK(!munmap(moved, size));
}

/* --- faults under way where a mapping goes ------------------------------------------- */

#define CHUNK	    (64 * PAGE)
#define BELOW_PAGES 64

static _Atomic bool moved_all;

/* Faults of a thread that goes on in order are served ahead: beyond what it touches, too. */
static void *touch_in_order(void *arg)
{
	char *below = arg;

	while (!atomic_load(&moved_all)) {
		CHECK(!madvise(below, BELOW_PAGES * PAGE, MADV_DONTNEED));
		for (size_t k = 0; k < BELOW_PAGES; k++)
			CHECK_WORD(below + k * PAGE, 0);
	}
	return NULL;
}

static void test_mremap_over_faults(size_t size)
{
	char *below = map_anonymous(BELOW_PAGES * PAGE + CHUNK), *target = below + BELOW_PAGES * PAGE;
	size_t n = size / CHUNK;
	char **p = calloc(n, sizeof(*p));
	pthread_t thread;

	CHECK(p);
	for (size_t i = 0; i < n; i++) {
		p[i] = map_anonymous(CHUNK);
		fill(p[i], CHUNK, i + 1);
	}
	CHECK(!pthread_create(&thread, NULL, touch_in_order, below));
	for (size_t round = 0; round < 4 * n; round++) {
		size_t i = round % n;
		char *home = map_anonymous(CHUNK);

		CHECK(mremap(p[i], CHUNK, CHUNK, MREMAP_MAYMOVE | MREMAP_FIXED, target) == target);
		check_filled(target, CHUNK, i + 1);
		CHECK(mremap(target, CHUNK, CHUNK, MREMAP_MAYMOVE | MREMAP_FIXED, home) == home);
		CHECK(mmap(target, CHUNK, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == target);
		p[i] = home;
	}
	atomic_store(&moved_all, true);
	CHECK(!pthread_join(thread, NULL));
	for (size_t i = 0; i < n; i++) {
		check_filled(p[i], CHUNK, i + 1);
		CHECK(!munmap(p[i], CHUNK));
	}
	CHECK(!munmap(below, BELOW_PAGES * PAGE + CHUNK));
	free(p);
}

static void test_fixed(size_t size)
{
	char *p = map_anonymous(size);

	for (unsigned round = 0; round < 8; round++) {
		fill(p, size, round + 1);
		CHECK(mmap(p + size / 4, size / 2, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p + size / 4);
		check_zero(p + size / 4, size / 2);
		check_filled(p, size / 4, round + 1);
	}
	CHECK(!munmap(p + size / 4, size / 4));
	check_filled(p, size / 4, 8);
	CHECK(!munmap(p, size));
}

static void test_protect(size_t size)
{
	char *p = map_anonymous(size);

	fill(p, size, 1);
	CHECK(!mprotect(p, size, PROT_READ));
	check_filled(p, size, 1);
	CHECK(!mprotect(p, size, PROT_NONE));
	CHECK(!mprotect(p, size, PROT_READ | PROT_WRITE));
	check_filled(p, size, 1);
	fill(p, size, 2);
	check_filled(p, size, 2);
	CHECK(!munmap(p, size));
}

static void test_brk(size_t size)
{
	char *p = sbrk((intptr_t)size);
	size_t head = -(uintptr_t)p % PAGE;

	CHECK(p != (void *)-1);
	fill(p + head, size - PAGE, 1);
	check_filled(p + head, size - PAGE, 1);
	CHECK(sbrk(-(intptr_t)size) != (void *)-1);
}

int main(int argc, char **argv)
{
	size_t size = size_arg(argc, argv);

	test_dontneed(size);
	test_free(size);
	test_mremap(size / 2);
	test_mremap_over_faults(size);
	test_fixed(size);
	test_protect(size);
	test_brk(size);
	puts("ok");
	return 0;
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * huge MIB: memory that becomes huge pages while its pages come and go, as khugepaged does where a
 * program wants it or the system is configured so; and is forked and partly given back.
 */
#include <sys/mman.h>

#include "check.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#define HUGE   (2ul << 20)
#define ROUNDS 4

static unsigned collapsed;

/* Its pages may leave faster than they come together. */
static void fill_huge(char *p, uint64_t tag)
{
	for (unsigned i = 0; i < 3; i++) {
		fill(p, HUGE, tag);
		if (!madvise(p, HUGE, MADV_COLLAPSE)) {
			collapsed++;
			return;
		}
		CHECK(errno == EINVAL || errno == EAGAIN || errno == EBUSY || errno == ENOMEM);
	}
}

int main(int argc, char **argv)
{
	size_t size = size_arg(argc, argv), n = size / HUGE;
	char *p = map_anonymous(size + HUGE);
	pid_t pid;

	p = (char *)(((uintptr_t)p + HUGE - 1) & ~(HUGE - 1));
	madvise(p, size, MADV_HUGEPAGE);
	for (uint64_t round = 1; round <= ROUNDS; round++) {
		for (size_t i = 0; i < n; i++)
			fill_huge(p + i * HUGE, round * 100 + i);
		for (size_t i = 0; i < n; i++)
			check_filled(p + i * HUGE, HUGE, round * 100 + i);
		pid = fork();
		CHECK(pid >= 0);
		if (!pid) {
			for (size_t i = 0; i < n; i++)
				check_filled(p + i * HUGE, HUGE, round * 100 + i);
			_exit(0);
		}
		for (size_t i = 0; i < n; i += 2)
			fill_huge(p + i * HUGE, round * 100 + 50 + i);
		wait_ok(pid);
		for (size_t i = 0; i < n; i++)
			check_filled(p + i * HUGE, HUGE, round * 100 + (i % 2 ? i : 50 + i));
	}
	printf("%u collapsed\nok\n", collapsed);
	return 0;
}

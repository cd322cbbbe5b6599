/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a forked child does not get: zeros where its parent said MADV_WIPEONFORK, and
 * zeros in a new mapping where its parent has memory under MADV_DONTFORK.
 */
#include "check.h"

#define ROUNDS 5

static void check_zero(const char *p, size_t size)
{
	for (size_t i = 0; i < size / PAGE; i++)
		CHECK_WORD(p + i * PAGE, 0);
}

static void child(char *wiped, char *left_out, size_t size)
{
	check_zero(wiped, size);
	CHECK(mmap(left_out, size, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == left_out);
	check_zero(left_out, size);
	_exit(0);
}

static void check_words(const char *p, size_t size, uint64_t tag)
{
	for (size_t i = 0; i < size / PAGE; i++)
		CHECK_WORD(p + i * PAGE, page_word(tag, i));
}

int main(int argc, char **argv)
{
	size_t size = size_arg(argc, argv);
	char *wiped = map_anonymous(size), *left_out = map_anonymous(size);
	int status;

	CHECK(!madvise(wiped, size, MADV_WIPEONFORK));
	CHECK(!madvise(left_out, size, MADV_DONTFORK));
	for (size_t i = 0; i < size / PAGE; i++) {
		*(uint64_t *)(wiped + i * PAGE) = page_word(1, i);
		*(uint64_t *)(left_out + i * PAGE) = page_word(2, i);
	}
	for (unsigned i = 0; i < ROUNDS; i++) {
		pid_t pid = fork();

		CHECK(pid >= 0);
		if (!pid)
			child(wiped, left_out, size);
		CHECK(waitpid(pid, &status, 0) == pid && status == 0);
	}
	check_words(wiped, size, 1);
	check_words(left_out, size, 2);
	puts("ok");
	return 0;
}

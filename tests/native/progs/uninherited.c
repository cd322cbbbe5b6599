/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a forked child does not get: zeros where its parent said MADV_WIPEONFORK, and
 * zeros in a new mapping where its parent has memory under MADV_DONTFORK.
 *
 *   uninherited MIB        all of it is one range of each kind
 *   uninherited MIB small  ranges of a few pages, which then move, and more than any table has
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

/* Each is moved once it has been advised; what lies beside it pushes it out. */
static void small_ranges(size_t size)
{
	size_t bytes = 4 * PAGE, n = size / bytes / 4;
	char **range = calloc(n, sizeof(*range)), *other = map_anonymous(size);
	int status;
	pid_t pid;

	CHECK(range);
	for (size_t i = 0; i < n; i++) {
		/* Twice the room, so that no two are one mapping. */
		char *from = map_anonymous(2 * bytes), *to = map_anonymous(2 * bytes);

		CHECK(!madvise(from, bytes, MADV_WIPEONFORK));
		range[i] = mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to);
		CHECK(range[i] == to);
		fill(to, bytes, i);
	}
	for (unsigned round = 1; round <= ROUNDS; round++) {
		fill(other, size, round);
		pid = fork();
		CHECK(pid >= 0);
		if (!pid) {
			for (size_t i = 0; i < n; i++)
				check_zero(range[i], bytes);
			_exit(0);
		}
		CHECK(waitpid(pid, &status, 0) == pid && status == 0);
	}
	for (size_t i = 0; i < n; i++)
		check_filled(range[i], bytes, i);
	puts("ok");
}

int main(int argc, char **argv)
{
	size_t size = size_arg(argc > 2 ? 2 : argc, argv);
	char *wiped, *left_out;
	int status;

	if (argc > 2) {
		small_ranges(size);
		return 0;
	}
	wiped = map_anonymous(size);
	left_out = map_anonymous(size);
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

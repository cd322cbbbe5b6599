/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A tree of forked processes: each sees what its parent had at the fork, writes
 * a part of it, and no write is seen by anyone else.  vfork and exec as well.
 */
#include <spawn.h>

#include "check.h"

#define DEPTH 3
#define WIDTH 2

extern char **environ;

/* Own writes go to every third page, so that children hold shared and own ones. */
static void write_third(char *p, size_t size, uint64_t tag)
{
	for (size_t i = 0; i < size / PAGE; i += 3)
		*(volatile uint64_t *)(p + i * PAGE + 64) = page_word(tag, i);
}

static void check_third(char *p, size_t size, uint64_t tag)
{
	for (size_t i = 0; i < size / PAGE; i += 3)
		CHECK_WORD(p + i * PAGE + 64, page_word(tag, i));
}

static void grow(char *p, size_t size, unsigned depth, uint64_t tag)
{
	pid_t child[WIDTH];

	write_third(p, size, tag);
	for (unsigned i = 0; i < WIDTH && depth < DEPTH; i++) {
		child[i] = fork();
		CHECK(child[i] >= 0);
		if (!child[i]) {
			check_third(p, size, tag);
			grow(p, size, depth + 1, tag * WIDTH + i + 1);
			check_filled(p, size, 1);
			_exit(0);
		}
	}
	/* Writes after the fork must not reach the children, which check above. */
	for (size_t i = 1; i < size / PAGE; i += 3)
		*(volatile uint64_t *)(p + i * PAGE + 128) = tag;
	check_third(p, size, tag);
	for (unsigned i = 0; i < WIDTH && depth < DEPTH; i++)
		wait_ok(child[i]);
	check_third(p, size, tag);
	for (size_t i = 1; i < size / PAGE; i += 3)
		CHECK_WORD(p + i * PAGE + 128, tag);
}

int main(int argc, char **argv)
{
	size_t size = size_arg(argc, argv);
	char *p = map_anonymous(size);
	char *const exec_argv[] = { "true", NULL };

	fill(p, size, 1);
	grow(p, size, 0, 1);
	check_filled(p, size, 1);
	for (unsigned i = 0; i < 20; i++) {
		pid_t pid;

		CHECK(!posix_spawnp(&pid, "true", NULL, NULL, exec_argv, environ));
		wait_ok(pid);
		pid = vfork();
		CHECK(pid >= 0);
		if (!pid) {
			execvp("true", exec_argv);
			_exit(127);
		}
		wait_ok(pid);
	}
	check_filled(p, size, 1);
	puts("ok");
	return 0;
}

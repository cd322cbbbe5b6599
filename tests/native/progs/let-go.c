/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * let-go MIB: fills memory, makes half of it read-only, forks a child that has all of it too, and
 * says "ready".  Each line on standard input is done and answered with "ok":
 *
 *   check           all of it is read, by the child first
 *   child, parent   that one ends; the other goes on
 *   drop            the kernel is asked to drop what it may drop; then all of it is read
 *
 * What the kernel may drop (MADV_FREE) and drops reads as zeros, unless somebody serves the fault.
 */
#include <signal.h>

#include "check.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

static char *base;
static size_t size;

static void drop(void)
{
	CHECK(!madvise(base, size, MADV_PAGEOUT));
	check_filled(base, size, 1);
}

/* Reads lines from the parent until it ends, then from where the parent had them. */
static void child(int from, int to)
{
	char c;

	while (read(from, &c, 1) == 1) {
		check_filled(base, size, 1);
		CHECK(write(to, &c, 1) == 1);
	}
}

int main(int argc, char **argv)
{
	int down[2], up[2], status;
	char line[64], c = 'c';
	pid_t pid;

	size = size_arg(argc, argv);
	base = map_anonymous(size);
	setvbuf(stdout, NULL, _IOLBF, 0);
	fill(base, size, 1);
	CHECK(!mprotect(base, size / 2, PROT_READ));
	CHECK(!pipe(down) && !pipe(up));
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		close(down[1]);
		child(down[0], up[1]);
	} else {
		printf("ready %d\n", (int)pid);
	}
	while (fgets(line, sizeof(line), stdin)) {
		if (pid && !strcmp(line, "check\n")) {
			CHECK(write(down[1], &c, 1) == 1);
			CHECK(read(up[0], &c, 1) == 1);
			check_filled(base, size, 1);
		} else if (!strcmp(line, "drop\n")) {
			drop();
		} else if (!strcmp(line, "parent\n")) {
			puts("ok");
			_exit(0);
		} else if (pid && !strcmp(line, "child\n")) {
			kill(pid, SIGKILL);
			CHECK(waitpid(pid, &status, 0) == pid);
		} else {
			CHECK(!"a known line");
		}
		puts("ok");
	}
	return 0;
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Fills memory, says "ready", checks all of it each time a line comes on
 * standard input (and answers "ok"), and ends at the end of it.  What the tests
 * of usmctl are done on.  At the line "unmap" it unmaps a page instead, which
 * ends when usmd has read of it, and needs no frame; at the line "fork" children check.
 */
#include "check.h"

#define FORKS 200ul

/* One child after the other, each for a part of it, and the last for all. */
static void fork_and_check(char *p, size_t size)
{
	for (size_t i = 0; i <= FORKS; i++) {
		pid_t child = fork();

		CHECK(child >= 0);
		if (child == 0) {
			/* The sooner it ends, the more of the time is spent in fork(). */
			for (size_t k = i; k < size / PAGE; k += i < FORKS ? size / PAGE / 4 : 1)
				CHECK_WORD(p + k * PAGE, page_word(1, k));
			_exit(0);
		}
		wait_ok(child);
	}
}

int main(int argc, char **argv)
{
	size_t size = size_arg(argc, argv);
	char *p = map_anonymous(size), *spare = map_anonymous(PAGE), line[64];

	setvbuf(stdout, NULL, _IOLBF, 0);
	fill(p, size, 1);
	*spare = 1;
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		if (!strcmp(line, "unmap\n"))
			munmap(spare, PAGE);
		else if (!strcmp(line, "fork\n"))
			fork_and_check(p, size);
		else
			check_filled(p, size, 1);
		puts("ok");
	}
	check_filled(p, size, 1);
	return 0;
}

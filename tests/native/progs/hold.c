/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Fills memory, says "ready", checks all of it each time a line comes on
 * standard input (and answers "ok"), and ends at the end of it.  What the tests
 * of usmctl are done on.  At the line "unmap" it unmaps a page instead, which
 * ends when usmd has read of it, and needs no frame.
 */
#include "check.h"

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
		else
			check_filled(p, size, 1);
		puts("ok");
	}
	check_filled(p, size, 1);
	return 0;
}

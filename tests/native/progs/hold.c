/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Fills memory, says "ready", checks all of it each time a line comes on
 * standard input (and answers "ok"), and ends at the end of it.  What the tests
 * of usmctl are done on.
 */
#include "check.h"

int main(int argc, char **argv)
{
	size_t size = size_arg(argc, argv);
	char *p = map_anonymous(size), line[64];

	setvbuf(stdout, NULL, _IOLBF, 0);
	fill(p, size, 1);
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		check_filled(p, size, 1);
		puts("ok");
	}
	check_filled(p, size, 1);
	return 0;
}

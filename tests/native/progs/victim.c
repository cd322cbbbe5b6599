/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * victim MIB PASSES: a program beside which others do what they should not.  Each pass writes all
 * of its memory anew and checks what it wrote, with a thread that does the same to a part of its
 * own, and a child of each pass that sees what its parent had.
 */
#include <pthread.h>

#include "check.h"

static size_t size;
static unsigned passes;

static void *beside(void *arg)
{
	char *own = map_anonymous(size / 8);

	for (unsigned i = 1; i <= passes; i++) {
		fill(own, size / 8, 1000 + i);
		check_filled(own, size / 8, 1000 + i);
	}
	return arg;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	char *p;

	CHECK(argc == 3);
	size = (size_t)atoi(argv[1]) << 20;
	passes = (unsigned)atoi(argv[2]);
	p = map_anonymous(size);
	CHECK(!pthread_create(&thread, NULL, beside, NULL));
	for (unsigned i = 1; i <= passes; i++) {
		pid_t pid;

		fill(p, size, i);
		pid = fork();
		CHECK(pid >= 0);
		if (pid == 0) {
			check_filled(p, size / 4, i);
			_exit(0);
		}
		check_filled(p, size, i);
		wait_ok(pid);
	}
	CHECK(!pthread_join(thread, NULL));
	puts("ok");
	return 0;
}

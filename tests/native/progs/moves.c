/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * moves SECONDS THREADS: threads move mappings and let some go, all at once, so that the kernel gives
 * one of them the addresses that another has just left, and children are forked in the middle of it,
 * who get such addresses too.  Each checks its own memory.
 */
#include <pthread.h>
#include <time.h>

#include "check.h"

#define PAGES 24

static time_t end;

/* There and back again; what stays behind reads as zeros. */
static void move_and_keep(char *p, uint64_t tag)
{
	size_t bytes = PAGES * PAGE;
	char *to = mremap(p, bytes, bytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);

	CHECK(to != MAP_FAILED);
	for (size_t i = 0; i < PAGES; i++)
		CHECK_WORD(p + i * PAGE, 0ul);
	check_filled(to, bytes, tag);
	CHECK(mremap(to, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, p) == p);
	check_filled(p, bytes, tag);
}

/* As realloc() and free() do with large memory. */
static void grow_and_free(uint64_t tag)
{
	size_t bytes = PAGES * PAGE;
	char *p = map_anonymous(bytes), *q;

	fill(p, bytes, tag);
	q = mremap(p, bytes, 2 * bytes, MREMAP_MAYMOVE);
	CHECK(q != MAP_FAILED);
	check_filled(q, bytes, tag);
	for (size_t i = PAGES; i < 2 * PAGES; i++)
		CHECK_WORD(q + i * PAGE, 0ul);
	CHECK(!munmap(q, 2 * bytes));
}

static void *run(void *arg)
{
	uint64_t tag = (uint64_t)(uintptr_t)arg * 1000000;
	char *p = map_anonymous(PAGES * PAGE);

	fill(p, PAGES * PAGE, tag);
	for (uint64_t n = 1; time(NULL) < end; n++) {
		move_and_keep(p, tag);
		grow_and_free(tag + n % 1000000);
	}
	return NULL;
}

/* What is new in a child reads as zeros, also where its parent has had something. */
static void *run_fork(void *arg)
{
	(void)arg;
	while (time(NULL) < end) {
		pid_t pid = fork();

		CHECK(pid >= 0);
		if (!pid) {
			for (unsigned k = 0; k < 16; k++) {
				char *p = map_anonymous(2 * PAGES * PAGE);

				for (size_t i = 0; i < 2 * PAGES; i++)
					CHECK_WORD(p + i * PAGE, 0ul);
			}
			_exit(0);
		}
		wait_ok(pid);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	unsigned threads;
	pthread_t *t;

	CHECK(argc == 3);
	end = time(NULL) + atoi(argv[1]);
	threads = (unsigned)atoi(argv[2]);
	t = calloc(threads + 1, sizeof(*t));
	CHECK(t);
	for (unsigned i = 0; i < threads; i++)
		CHECK(!pthread_create(&t[i], NULL, run, (void *)(uintptr_t)(i + 1)));
	CHECK(!pthread_create(&t[threads], NULL, run_fork, NULL));
	for (unsigned i = 0; i <= threads; i++)
		CHECK(!pthread_join(t[i], NULL));
	puts("ok");
	return 0;
}

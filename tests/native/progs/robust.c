/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * robust MIB: who holds a robust mutex ends, and the page of the mutex, or of another one that he
 * holds too, would long have left.  The kernel marks them without waiting for a page.
 */
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include "check.h"

#define ROUNDS	4
#define SECONDS 20

static size_t size;
static char *other;

static pthread_mutex_t *new_mutex(int flags)
{
	pthread_mutex_t *m = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
	pthread_mutexattr_t attr;

	CHECK(m != MAP_FAILED);
	CHECK(!pthread_mutexattr_init(&attr));
	CHECK(!pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST));
	if (flags & MAP_SHARED)
		CHECK(!pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED));
	CHECK(!pthread_mutex_init(m, &attr));
	return m;
}

/* All else has been needed since. */
static void push_out(uint64_t tag)
{
	fill(other, size, tag);
	check_filled(other, size, tag);
}

static void must_be_dead(pthread_mutex_t *m)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += SECONDS;
	CHECK(pthread_mutex_timedlock(m, &until) == EOWNERDEAD);
	CHECK(!pthread_mutex_consistent(m));
	CHECK(!pthread_mutex_unlock(m));
}

static void *end_with_it(void *m)
{
	CHECK(!pthread_mutex_lock(m));
	push_out(1);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_mutex_t *own, *shared = new_mutex(MAP_SHARED);
	pthread_t thread;
	pid_t pid;

	size = size_arg(argc, argv);
	other = map_anonymous(size);
	for (unsigned i = 0; i < ROUNDS; i++) {
		own = new_mutex(MAP_PRIVATE);
		CHECK(!pthread_create(&thread, NULL, end_with_it, own));
		CHECK(!pthread_join(thread, NULL));
		must_be_dead(own);
	}
	for (unsigned i = 0; i < ROUNDS; i++) {
		pid = fork();
		CHECK(pid >= 0);
		if (!pid) {
			CHECK(!pthread_mutex_lock(shared));
			/* The kernel begins with the last one, and goes on from there. */
			CHECK(!pthread_mutex_lock(i % 2 ? own : new_mutex(MAP_PRIVATE)));
			push_out(2);
			if (i % 4 < 2)
				raise(SIGKILL);
			_exit(0);
		}
		CHECK(waitpid(pid, NULL, 0) == pid);
		must_be_dead(shared);
	}
	puts("ok");
	return 0;
}

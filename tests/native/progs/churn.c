/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * churn MIB THREADS: so many threads start, end and are joined, some at a time, while memory is
 * evicted: joined or detached, by return, pthread_exit() or cancellation; each passes a futex on
 * to the next, private and shared, and is interrupted by signals in reads into evicted memory.
 */
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <time.h>

#include "check.h"

#define AT_ONCE 16

static char *memory;
static size_t size;
static pthread_mutex_t *lock[2]; /* private, shared */
static uint64_t *count[2];
static _Atomic uint64_t nr_signals, nr_detached;

static void on_signal(int sig)
{
	(void)sig;
	nr_signals++;
}

/* A lock and what it guards, on a page of their own that is evicted like any other. */
static void make_lock(int i, int shared)
{
	pthread_mutexattr_t attr;

	lock[i] = (pthread_mutex_t *)map_anonymous(PAGE);
	count[i] = (uint64_t *)(lock[i] + 1);
	CHECK(!pthread_mutexattr_init(&attr) && !pthread_mutexattr_setpshared(&attr, shared));
	CHECK(!pthread_mutex_init(lock[i], &attr));
}

static void *work(void *arg)
{
	uintptr_t n = (uintptr_t)arg;
	size_t pages = size / PAGE;
	int fd[2];

	for (size_t i = n % 97; i < pages; i += 97)
		CHECK_WORD(memory + i * PAGE, page_word(1, i));
	for (int i = 0; i < 2; i++) {
		CHECK(!pthread_mutex_lock(lock[i]));
		++*count[i];
		CHECK(!pthread_mutex_unlock(lock[i]));
	}
	/* The kernel writes to a page that is out, and a signal comes meanwhile. */
	if (n % 8 == 0) {
		char *p = memory + n % pages * PAGE + 8;

		CHECK(pipe(fd) == 0 && write(fd[1], "12345678", 8) == 8);
		CHECK(!pthread_kill(pthread_self(), SIGUSR1));
		CHECK(read(fd[0], p, 8) == 8 && !memcmp(p, "12345678", 8));
		close(fd[0]);
		close(fd[1]);
	}
	if (n % 5 == 0) {
		nr_detached--;
		pthread_exit(NULL);
	}
	while (n % 5 == 1)
		usleep(1000); /* until it is cancelled */
	return arg;
}

int main(int argc, char **argv)
{
	const struct sigaction sa = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
	uint64_t threads, done = 0;
	pthread_t thread[AT_ONCE];

	CHECK(argc == 3);
	size = (size_t)atoi(argv[1]) << 20;
	threads = (uint64_t)atoi(argv[2]) / AT_ONCE * AT_ONCE;
	memory = map_anonymous(size);
	fill(memory, size, 1);
	make_lock(0, PTHREAD_PROCESS_PRIVATE);
	make_lock(1, PTHREAD_PROCESS_SHARED);
	CHECK(sigaction(SIGUSR1, &sa, NULL) == 0);
	while (done < threads) {
		for (unsigned i = 0; i < AT_ONCE; i++) {
			CHECK(!pthread_create(&thread[i], NULL, work, (void *)(done + i)));
			if ((done + i) % 5 == 0) {
				nr_detached++;
				CHECK(!pthread_detach(thread[i]));
			}
		}
		for (unsigned i = 0; i < AT_ONCE; i++, done++) {
			void *ret;

			if (done % 8 == 3)
				pthread_kill(pthread_self(), SIGUSR1);
			if (done % 5 == 0)
				continue;
			if (done % 5 == 1) {
				/* Not while it has a lock. */
				while (*(volatile uint64_t *)count[1] < done / AT_ONCE * AT_ONCE + AT_ONCE)
					usleep(100);
				CHECK(!pthread_cancel(thread[i]));
			}
			CHECK(!pthread_join(thread[i], &ret));
			CHECK(ret == (done % 5 == 1 ? PTHREAD_CANCELED : (void *)done));
		}
	}
	while (nr_detached)
		usleep(1000);
	CHECK(*count[0] == threads && *count[1] == threads);
	CHECK(nr_signals >= threads / 8);
	check_filled(memory, size / PAGE * PAGE, 1);
	puts("ok");
	return 0;
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Threads start and end all the time while memory is evicted: each uses its
 * stack, thread-local memory and a heap arena of its own, and is joined (the
 * kernel clears the thread's id in its control block: were that page out, join
 * would wait for ever).  Others pass a futex around in managed memory.
 */
#include <pthread.h>

#include "check.h"

#define ROUNDS  60
#define THREADS 16
#define CHUNK   (256 * 1024)

static char *shared;
static size_t shared_size;
static __thread uint64_t local[512];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t counter;

static void *work(void *arg)
{
	uint64_t tag = (uintptr_t)arg;
	volatile uint64_t stack[2048];
	char *heap = malloc(CHUNK);

	CHECK(heap);
	for (unsigned i = 0; i < 512; i++)
		local[i] = tag + i;
	for (unsigned i = 0; i < 2048; i++)
		stack[i] = tag ^ i;
	memset(heap, (int)tag, CHUNK);
	/* Walks over all pages, so that others' pages leave meanwhile. */
	for (size_t i = tag % 64; i < shared_size / PAGE; i += 64)
		CHECK_WORD(shared + i * PAGE, page_word(1, i));
	pthread_mutex_lock(&lock);
	counter++;
	pthread_mutex_unlock(&lock);
	for (unsigned i = 0; i < 512; i++)
		CHECK(local[i] == tag + i);
	for (unsigned i = 0; i < 2048; i++)
		CHECK(stack[i] == (tag ^ i));
	for (size_t i = 0; i < CHUNK; i += 512)
		CHECK(heap[i] == (char)tag);
	free(heap);
	return arg;
}

int main(int argc, char **argv)
{
	pthread_t thread[THREADS];

	shared_size = size_arg(argc, argv);
	shared = map_anonymous(shared_size);
	fill(shared, shared_size, 1);
	for (uintptr_t round = 0; round < ROUNDS; round++) {
		for (uintptr_t i = 0; i < THREADS; i++)
			CHECK(!pthread_create(&thread[i], NULL, work,
					      (void *)(round * THREADS + i)));
		for (uintptr_t i = 0; i < THREADS; i++) {
			void *ret;

			CHECK(!pthread_join(thread[i], &ret));
			CHECK((uintptr_t)ret == round * THREADS + i);
		}
	}
	CHECK(counter == ROUNDS * THREADS);
	check_filled(shared, shared_size, 1);
	puts("ok");
	return 0;
}

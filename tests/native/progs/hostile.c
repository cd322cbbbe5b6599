/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * hostile SCENE [ARGUMENT]: programs that do to usmd what none should, or what odd ones do.
 * Each says "ready PID" when it has begun, and goes on until it is killed, or told to end by the end
 * of its standard input, when it checks its memory and says "ok".
 */
#include <pthread.h>

#include "check.h"

static char *memory;
static size_t size;
static _Atomic int over;

static void begin(const char *mib)
{
	size = (size_t)atoi(mib ? mib : "16") << 20;
	memory = map_anonymous(size);
	fill(memory, size, 1);
}

static void ready(void)
{
	printf("ready %d\n", (int)getpid());
	fflush(stdout);
}

/* Needs one page after the other, so that its faults come at any time. */
static void *need(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;

	while (!over) {
		size_t i = (size_t)rand_r(&seed) % (size / PAGE);

		CHECK_WORD(memory + i * PAGE, page_word(1, i));
	}
	return arg;
}

/* At each line one thing for which usmd has to put its pages in order. */
static void scene_barrier(const char *how, const char *mib)
{
	pthread_t thread[8];
	char line[16], *moved;

	begin(mib);
	for (uintptr_t i = 0; i < 8; i++)
		CHECK(!pthread_create(&thread[i], NULL, need, (void *)(i + 1)));
	ready();
	while (fgets(line, sizeof(line), stdin)) {
		pid_t pid;

		if (!strcmp(how, "remap")) {
			char *own = map_anonymous(PAGE * 16);

			fill(own, PAGE * 16, 2);
			moved = mremap(own, PAGE * 16, PAGE * 16, MREMAP_MAYMOVE | MREMAP_FIXED,
				       map_anonymous(PAGE * 16));
			CHECK(moved != MAP_FAILED);
			check_filled(moved, PAGE * 16, 2);
			continue;
		}
		pid = fork();
		CHECK(pid >= 0);
		if (pid == 0) {
			check_filled(memory, size, 1);
			_exit(0);
		}
		wait_ok(pid);
	}
	over = 1;
	for (unsigned i = 0; i < 8; i++)
		CHECK(!pthread_join(thread[i], NULL));
	check_filled(memory, size, 1);
	puts("ok");
}

static void scene_fork(const char *mib)
{
	scene_barrier("fork", mib);
}

static void scene_remap(const char *mib)
{
	scene_barrier("remap", mib);
}

static const struct {
	const char *name;
	void (*run)(const char *arg);
} scenes[] = {
	{"fork", scene_fork},
	{"remap", scene_remap},
};

int main(int argc, char **argv)
{
	for (unsigned i = 0; argc > 1 && i < sizeof(scenes) / sizeof(scenes[0]); i++)
		if (!strcmp(scenes[i].name, argv[1])) {
			scenes[i].run(argc > 2 ? argv[2] : NULL);
			return 0;
		}
	fprintf(stderr, "hostile: no such scene\n");
	return 2;
}

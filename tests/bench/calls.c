/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * System calls that a manager of memory hears of:
 *
 *   calls [OPTIONS] map N    mmap of 64 KiB, one write, munmap
 *   calls [OPTIONS] fork N   fork of a process with 16 MiB, exit, wait
 */
#include "bench.h"

#define MAP_BYTES  (64 * 1024ul)
#define FORK_BYTES (16ul << 20)

static void map_once(void)
{
	char *p = mmap(NULL, MAP_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	bench_need(p != MAP_FAILED, "mmap");
	*(volatile char *)p = 1;
	munmap(p, MAP_BYTES);
}

static void fork_once(void)
{
	pid_t pid = fork();
	int status;

	bench_need(pid >= 0, "fork");
	if (!pid)
		_exit(0);
	bench_need(waitpid(pid, &status, 0) == pid && !status, "the child");
}

int main(int argc, char **argv)
{
	int i = bench_options(argc, argv), n;
	bool map;
	double start;

	bench_need(argc - i == 2, "usage: calls [OPTIONS] map|fork N");
	map = !strcmp(argv[i], "map");
	n = atoi(argv[i + 1]);
	memset(bench_map(FORK_BYTES), 1, FORK_BYTES);
	start = bench_nsec();
	for (int k = 0; k < n; k++)
		if (map)
			map_once();
		else
			fork_once();
	return bench_result((bench_nsec() - start) / n);
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the benchmark programs share.  Each takes its parameters as arguments,
 * prints one number (nanoseconds an operation) and nothing else, and does the
 * same work whoever serves its faults: the kernel, usmd (by the preloaded
 * tagger) or, with "--uffd BATCH", a bare userfaultfd loop in a second process.
 *
 *   --cpu N       runs (with the bare loop) on this processor alone
 *   --thp never   without transparent huge pages; else as the machine is set up
 *   --uffd N      bare loop that resolves N consecutive pages for each fault
 */
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul

static int bench_uffd_batch;
static pid_t bench_loop;

static inline void bench_need(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	if (bench_loop > 0)
		kill(bench_loop, SIGKILL);
	exit(1);
}

static inline double bench_nsec(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

/* Takes the options off the front; returns the index of the first other argument. */
static inline int bench_options(int argc, char **argv)
{
	int i = 1;

	for (; i + 1 < argc && !strncmp(argv[i], "--", 2); i += 2) {
		if (!strcmp(argv[i], "--cpu")) {
			cpu_set_t set;

			CPU_ZERO(&set);
			CPU_SET(atoi(argv[i + 1]), &set);
			bench_need(!sched_setaffinity(0, sizeof(set), &set), "sched_setaffinity");
		} else if (!strcmp(argv[i], "--thp")) {
			bench_need(!strcmp(argv[i + 1], "never") &&
				   !prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), "--thp");
		} else if (!strcmp(argv[i], "--uffd")) {
			bench_uffd_batch = atoi(argv[i + 1]);
		} else {
			break;
		}
	}
	return i;
}

/* xorshift64: the same sequence in every run. */
static inline uint64_t bench_random(void)
{
	static uint64_t s = 88172645463325252ull;

	s ^= s << 13;
	s ^= s >> 7;
	s ^= s << 17;
	return s;
}

/* The bare loop: reads faults, copies zeros to them, sleeps in poll. */
static inline void bench_serve(int uffd, char *start, size_t size)
{
	static char zeros[256 * PAGE] __attribute__((aligned(4096)));
	struct pollfd p = { .fd = uffd, .events = POLLIN };
	struct uffd_msg msg[16];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	memset(zeros, 0, sizeof(zeros));
	for (;;) {
		ssize_t n = read(uffd, msg, sizeof(msg));

		if (n < 0)
			poll(&p, 1, -1);
		for (unsigned i = 0; n > 0 && i < n / sizeof(*msg); i++) {
			uint64_t at = msg[i].arg.pagefault.address & -PAGE;
			uint64_t left = (uint64_t)(uintptr_t)start + size - at;
			struct uffdio_copy copy = {
				.dst = at,
				.src = (uintptr_t)zeros,
				.len = PAGE * bench_uffd_batch,
			};

			if (copy.len > left)
				copy.len = left;
			/* A neighbour that is there already ends a batch: go on with the one. */
			if (ioctl(uffd, UFFDIO_COPY, &copy) < 0 && copy.len > PAGE) {
				copy.len = PAGE;
				ioctl(uffd, UFFDIO_COPY, &copy);
			}
		}
	}
}

/* Anonymous memory, served as the options say. */
static inline char *bench_map(size_t size)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		       -1, 0);
	int uffd;

	bench_need(p != MAP_FAILED, "mmap");
	if (!bench_uffd_batch)
		return p;
	bench_need(bench_uffd_batch <= 256, "--uffd above 256");
	uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	bench_need(uffd >= 0, "userfaultfd");
	bench_need(!ioctl(uffd, UFFDIO_API, &api), "UFFDIO_API");
	reg.range.start = (uintptr_t)p;
	reg.range.len = size;
	bench_need(!ioctl(uffd, UFFDIO_REGISTER, &reg), "UFFDIO_REGISTER");
	bench_loop = fork();
	bench_need(bench_loop >= 0, "fork");
	if (!bench_loop)
		bench_serve(uffd, p, size);
	return p;
}

static inline int bench_result(double nsec)
{
	if (bench_loop > 0) {
		kill(bench_loop, SIGKILL);
		waitpid(bench_loop, NULL, 0);
	}
	printf("%.1f\n", nsec);
	return 0;
}

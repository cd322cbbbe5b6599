/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Watches managed programs from outside, through /proc alone, so that a test
 * need not believe usmd's own counters.
 *
 *   sampler TAGGER KEEPER_PID OUTPUT
 *
 * Managed programs are the processes that have the file TAGGER mapped and that
 * started after the sampler (each test has a copy of the tagger of its own, so
 * other instances on the machine do not mix in).  Until SIGTERM, ten times a
 * second, lines go to OUTPUT:
 *
 *   rss MSEC NR_PROCESSES KIB        anonymous resident memory of all of them
 *   io MSEC READ_BYTES WRITE_BYTES   storage I/O of all engines of this keeper
 *   cover MSEC PID KIB REGISTERED    every third time: private writable anonymous
 *                                    memory, and how much userfaultfd has of it
 *
 * The memory of all is the smallest of three sums, because each can be too high by
 * itself:  RssAnon counts pages that a forked family shares copy-on-write in each of its
 * members.  Pss_Anon of smaps_rollup divides them by their sharers, but is
 * gathered in a walk that takes milliseconds, so a page that leaves behind the
 * walker for one that comes ahead of it is counted twice (seen: 7 % too much
 * while stress-ng sweeps over its memory, with RssAnon lower before and after).  It is
 * taken twice: on a busy machine a parent's may be of before a fork, and its child's of after.
 */
#include <ctype.h>
#include <dirent.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PID_LIMIT    (4 << 20) /* the kernel's own upper bound */
#define INTERVAL_MS  100
#define COVER_EVERY  3 /* samples */
#define MANAGED_MAX  512
#define PSS_PASSES   2
#define ENGINES_MAX  1024

static unsigned char ignored[PID_LIMIT]; /* processes that were there before us */
static volatile sig_atomic_t stopped;

struct engine {
	int pid;
	uint64_t read_bytes, write_bytes;
};

static struct engine engines[ENGINES_MAX];
static unsigned nr_engines;

static void on_term(int sig)
{
	(void)sig;
	stopped = 1;
}

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static FILE *open_proc(int pid, const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	return fopen(path, "re");
}

/* The number after "KEY:" in a /proc file; 0 if the process is gone. */
static uint64_t proc_value(int pid, const char *file, const char *key)
{
	FILE *f = open_proc(pid, file);
	size_t len = strlen(key);
	uint64_t value = 0;
	char line[256];

	if (!f)
		return 0;
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, key, len) && line[len] == ':') {
			value = strtoull(line + len + 1, NULL, 10);
			break;
		}
	fclose(f);
	return value;
}

static bool maps_file(int pid, const char *path)
{
	FILE *f = open_proc(pid, "maps");
	char *line = NULL;
	size_t size = 0;
	bool found = false;

	if (!f)
		return false;
	while (!found && getline(&line, &size, f) > 0)
		found = strstr(line, path);
	free(line);
	fclose(f);
	return found;
}

/* The processes with the tagger that did not exist when the sampler started. */
static unsigned find_managed(const char *tagger, int *pids)
{
	DIR *d = opendir("/proc");
	struct dirent *e;
	unsigned n = 0;

	while (d && (e = readdir(d)) && n < MANAGED_MAX) {
		int pid = isdigit((unsigned char)e->d_name[0]) ? atoi(e->d_name) : 0;

		if (pid > 0 && pid < PID_LIMIT && !ignored[pid] && maps_file(pid, tagger))
			pids[n++] = pid;
	}
	if (d)
		closedir(d);
	return n;
}

static void ignore_present(void)
{
	DIR *d = opendir("/proc");
	struct dirent *e;

	while (d && (e = readdir(d)))
		if (isdigit((unsigned char)e->d_name[0]) && atoi(e->d_name) < PID_LIMIT)
			ignored[atoi(e->d_name)] = 1;
	if (d)
		closedir(d);
}

static void write_cover(FILE *out, uint64_t ms, int pid)
{
	FILE *f = open_proc(pid, "smaps");
	uint64_t total = 0, registered = 0, size = 0;
	char *line = NULL;
	size_t len = 0;
	bool counts = false;

	if (!f)
		return;
	while (getline(&line, &len, f) > 0) {
		unsigned long start, end, inode;
		char perms[5];
		int name = 0;

		if (sscanf(line, "%lx-%lx %4s %*s %*s %lu %n", &start, &end, perms, &inode,
			   &name) == 4) {
			const char *p = name ? line + name : "";

			size = (end - start) >> 10;
			/* [vvar] and its like are the kernel's own special mappings. */
			counts = perms[1] == 'w' && perms[3] == 'p' && !inode &&
				 strncmp(p, "[v", 2) && *p != '/';
		} else if (counts && !strncmp(line, "VmFlags:", 8)) {
			total += size;
			if (strstr(line, " um") || strstr(line, " uw"))
				registered += size;
		}
	}
	free(line);
	fclose(f);
	if (total)
		fprintf(out, "cover %" PRIu64 " %d %" PRIu64 " %" PRIu64 "\n", ms, pid, total,
			registered);
}

static void write_rss(FILE *out, uint64_t ms, const int *pids, unsigned n)
{
	uint64_t kib = 0;

	for (unsigned i = 0; i < n; i++)
		kib += proc_value(pids[i], "status", "RssAnon");
	for (unsigned pass = 0; n > 1 && pass < PSS_PASSES; pass++) {
		uint64_t pss_kib = 0;

		for (unsigned i = 0; i < n; i++)
			pss_kib += proc_value(pids[i], "smaps_rollup", "Pss_Anon");
		if (pss_kib < kib)
			kib = pss_kib;
	}
	fprintf(out, "rss %" PRIu64 " %u %" PRIu64 "\n", ms, n, kib);
}

/* An engine that was killed keeps what was last seen of it. */
static void note_engine(int pid)
{
	unsigned i = 0;
	uint64_t value;

	while (i < nr_engines && engines[i].pid != pid)
		i++;
	if (i == ENGINES_MAX)
		return;
	if (i == nr_engines)
		engines[nr_engines++].pid = pid;
	value = proc_value(pid, "io", "read_bytes");
	if (value > engines[i].read_bytes)
		engines[i].read_bytes = value;
	value = proc_value(pid, "io", "write_bytes");
	if (value > engines[i].write_bytes)
		engines[i].write_bytes = value;
}

static void write_io(FILE *out, uint64_t ms, int keeper)
{
	uint64_t read_bytes = 0, write_bytes = 0;
	char name[64];
	FILE *f;
	int pid;

	snprintf(name, sizeof(name), "task/%d/children", keeper);
	f = open_proc(keeper, name);
	while (f && fscanf(f, "%d", &pid) == 1)
		note_engine(pid);
	if (f)
		fclose(f);
	for (unsigned i = 0; i < nr_engines; i++) {
		read_bytes += engines[i].read_bytes;
		write_bytes += engines[i].write_bytes;
	}
	fprintf(out, "io %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", ms, read_bytes, write_bytes);
}

int main(int argc, char **argv)
{
	struct sigaction sa = { .sa_handler = on_term };
	struct timespec pause = { .tv_nsec = INTERVAL_MS * 1000000L };
	static int pids[MANAGED_MAX];
	FILE *out;

	if (argc != 4) {
		fprintf(stderr, "usage: sampler TAGGER KEEPER_PID OUTPUT\n");
		return 2;
	}
	out = fopen(argv[3], "we");
	if (!out) {
		perror(argv[3]);
		return 1;
	}
	setvbuf(out, NULL, _IOLBF, 0);
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);
	ignore_present();
	fprintf(out, "ready\n");
	for (unsigned round = 0; !stopped; round++) {
		unsigned n = find_managed(argv[1], pids);
		uint64_t ms = now_ms();

		write_rss(out, ms, pids, n);
		write_io(out, ms, atoi(argv[2]));
		for (unsigned i = 0; i < n && round % COVER_EVERY == COVER_EVERY - 1; i++)
			write_cover(out, ms, pids[i]);
		nanosleep(&pause, NULL);
	}
	fclose(out);
	return 0;
}

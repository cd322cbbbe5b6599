/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * halt PID...: stops the usm-agent threads of these processes, and nothing else of them, as a
 * debugger may.  Says "halted", and lets them go at the end of standard input.
 */
#include <dirent.h>
#include <sys/ptrace.h>

#include "check.h"

static pid_t agent_of(const char *pid)
{
	char path[300], comm[32];
	struct dirent *de;
	pid_t tid = 0;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%s/task", pid);
	d = opendir(path);
	CHECK(d);
	while (!tid && (de = readdir(d))) {
		FILE *f;

		snprintf(path, sizeof(path), "/proc/%s/task/%s/comm", pid, de->d_name);
		f = fopen(path, "r");
		if (!f)
			continue;
		if (fgets(comm, sizeof(comm), f) && !strcmp(comm, "usm-agent\n"))
			tid = atoi(de->d_name);
		fclose(f);
	}
	closedir(d);
	CHECK(tid > 0);
	return tid;
}

int main(int argc, char **argv)
{
	pid_t tid[64];
	int status;

	CHECK(argc > 1 && argc <= 64);
	for (int i = 1; i < argc; i++) {
		tid[i] = agent_of(argv[i]);
		CHECK(ptrace(PTRACE_SEIZE, tid[i], 0, 0) == 0);
		CHECK(ptrace(PTRACE_INTERRUPT, tid[i], 0, 0) == 0);
		CHECK(waitpid(tid[i], &status, __WALL) == tid[i]);
	}
	puts("halted");
	fflush(stdout);
	while (getchar() != EOF)
		;
	for (int i = 1; i < argc; i++)
		ptrace(PTRACE_DETACH, tid[i], 0, 0);
	return 0;
}

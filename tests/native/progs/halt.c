/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * halt PID...: stops the usm-agent threads of these processes, and nothing else of them, as a
 * debugger may.  Says "halted", and lets them go at the end of standard input.
 *
 * halt --calls N PID: the one of this process, so many system calls after it has moved pages out.
 * Says "waits" first.
 */
#include <dirent.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

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

static void seize(pid_t tid)
{
	int status;

	CHECK(ptrace(PTRACE_SEIZE, tid, 0, PTRACE_O_TRACESYSGOOD) == 0);
	CHECK(ptrace(PTRACE_INTERRUPT, tid, 0, 0) == 0);
	CHECK(waitpid(tid, &status, __WALL) == tid && WIFSTOPPED(status));
}

/* Until the thread begins a system call. */
static struct __ptrace_syscall_info next_call(pid_t tid)
{
	struct __ptrace_syscall_info info = {.op = PTRACE_SYSCALL_INFO_NONE};
	int status;

	while (info.op != PTRACE_SYSCALL_INFO_ENTRY) {
		CHECK(ptrace(PTRACE_SYSCALL, tid, 0, 0) == 0);
		CHECK(waitpid(tid, &status, __WALL) == tid && WIFSTOPPED(status));
		CHECK(ptrace(PTRACE_GET_SYSCALL_INFO, tid, sizeof(info), &info) > 0);
	}
	return info;
}

/* UFFDIO_MOVE, which headers before Linux 6.8 do not have. */
static int is_move(uint64_t request)
{
	return (uint32_t)request == 0xc028aa05u;
}

static void stop_after_move(pid_t tid, unsigned calls)
{
	struct __ptrace_syscall_info info;

	puts("waits");
	fflush(stdout);
	do
		info = next_call(tid);
	while (info.entry.nr != SYS_ioctl || !is_move(info.entry.args[1]));
	while (calls--)
		next_call(tid);
}

int main(int argc, char **argv)
{
	int first = argc > 3 && !strcmp(argv[1], "--calls") ? 3 : 1;
	pid_t tid[64];

	CHECK(argc > 1 && argc <= 64);
	for (int i = first; i < argc; i++) {
		tid[i] = agent_of(argv[i]);
		seize(tid[i]);
	}
	if (first > 1)
		stop_after_move(tid[first], (unsigned)atoi(argv[2]));
	puts("halted");
	fflush(stdout);
	while (getchar() != EOF)
		;
	for (int i = first; i < argc; i++)
		ptrace(PTRACE_DETACH, tid[i], 0, 0);
	return 0;
}

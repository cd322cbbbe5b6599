/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the program can do to the agent: lock all memory, so that staging fills with pages of its
 * own and nothing can be dropped, or filter the system calls of all threads.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "agent.h"
#include "sys.h"

/* A filter is set once in a program's life: often enough, and no cost for a batch. */
#define WATCH_USEC 100000

/* The number after "name" in /proc/thread-self/status, 0 when there is none. */
static uint32_t status_number(struct usm_agent *a, const char *name)
{
	/* The verify buffer is free between operations; status has about 1.5 KiB. */
	char *buf = a->verify, *end;
	long r = a->status_fd < 0 ? 0 : sys4(SYS_pread64, a->status_fd, buf, 4096, 0);
	uint32_t value = 0;

	if (r <= 0)
		return 0;
	end = buf + r;
	for (char *line = buf; line < end;) {
		const char *want = name;
		char *p = line;

		while (p < end && *want && *p == *want) {
			p++;
			want++;
		}
		if (!*want) {
			while (p < end && (*p == ' ' || *p == '\t'))
				p++;
			while (p < end && *p >= '0' && *p <= '9' && value < 1000000)
				value = value * 10 + (uint32_t)(*p++ - '0');
			return value;
		}
		while (p < end && *p != '\n')
			p++;
		line = p + 1;
	}
	return 0;
}

void usm_agent_watch_start(struct usm_agent *a)
{
	long r = sys4(SYS_openat, AT_FDCWD, "/proc/thread-self/status", O_RDONLY | O_CLOEXEC, 0);

	a->status_fd = r < 0 ? -1 : (int)r;
	a->seccomp_filters = status_number(a, "Seccomp_filters:");
}

enum usm_agent_state usm_agent_watch(struct usm_agent *a)
{
	/* The first system call after a filter appears: one that hardly any filter refuses. */
	uint64_t now = sys_now_usec();

	if (atomic_load_explicit(&a->ops->agent_state, memory_order_relaxed) == USM_AGENT_SECCOMP)
		return USM_AGENT_SECCOMP; /* a filter never goes away */
	if (now - a->watched_usec >= WATCH_USEC) {
		a->watched_usec = now;
		if (status_number(a, "Seccomp_filters:") > a->seccomp_filters)
			return USM_AGENT_SECCOMP;
	}
	/*
	 * mlockall locks trash like everything else, and then a drop is refused; VmLck alone
	 * would also count the few pages that programs lock for their keys.
	 */
	if (sys_madvise(a->trash, USM_PAGE_SIZE, MADV_DONTNEED) == -EINVAL)
		return USM_AGENT_LOCKED;
	return USM_AGENT_RUNNING;
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "kill-point.h"

#ifdef USM_KILL_POINTS
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/cleanup.h"

/* The file that $USM_KILL_PLAN names: the test writes it, and sets `armed` last. */
struct plan {
	_Atomic uint32_t armed;
	_Atomic int32_t skip; /* how often the point is passed before */
	_Atomic uint32_t deaths;
	char name[52];
};

static struct plan *plan;

__attribute__((constructor)) static void map_plan(void)
{
	const char *path = getenv("USM_KILL_PLAN");
	_cleanup_close_ int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	void *m;

	if (fd < 0)
		return;
	m = mmap(NULL, sizeof(*plan), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (m != MAP_FAILED)
		plan = m;
}

void kill_point(const char *name)
{
	if (!plan || !atomic_load(&plan->armed) || strcmp(name, plan->name) != 0 ||
	    atomic_fetch_sub(&plan->skip, 1) != 0)
		return;
	atomic_store(&plan->armed, 0);
	atomic_fetch_add(&plan->deaths, 1);
	kill(getpid(), SIGKILL);
	for (;;)
		pause();
}
#endif

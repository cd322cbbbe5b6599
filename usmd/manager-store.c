/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What becomes of the programs when the service ends: are they handed over to the next usmd? */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/cleanup.h"
#include "lib/log.h"
#include "manager-internal.h"
#include "process.h"
#include "service.h"
#include "store.h"

/* How long the usmd that is installed may take to say whether it can take over. */
#define SUCCESSOR_MSEC 5000

int manager_start_store(struct manager *m)
{
	struct arena_header *h = m->core.arena->h;
	unsigned max = 0;
	int r;

	r = service_store_max(&max);
	if (r < 0 && !h->inherited) {
		log_warning_errno(r, "Cannot ask systemd for its descriptor store: %m. A restart of usmd "
				     "brings all pages back into the programs first, ignoring");
		return 0;
	}
	/* What systemd has of us it must be told to drop, whatever it says now. */
	if (r < 0)
		max = UINT_MAX;
	if (max > 0 && max < STORE_MIN) {
		log_warning("FileDescriptorStoreMax=%u of usmd.service is too small: managed programs need "
			    "four each, and usmd at least %u. It is not used, and a restart of usmd brings all "
			    "pages back into the programs first", max, STORE_MIN);
		max = h->inherited ? UINT_MAX : 0;
	}
	r = store_start(m->core.arena, max);
	if (r < 0)
		return log_error_errno(r, "Cannot use systemd's descriptor store: %m");
	return 0;
}

/* Does what is installed at our path now know this arena, and like its configuration? */
static bool successor_takes_over(struct manager *m)
{
	const struct keeper_options *o = m->options;
	char id[ARENA_ID_MAX + 1];
	char *argv[16] = {(char *)o->exe, (char *)"--takes-over", id}, *const environ_[] = {NULL};
	unsigned n = 3;
	sigset_t none;
	posix_spawnattr_t attr;
	struct pollfd ended = {.events = POLLIN};
	int status, r;
	pid_t pid;

	arena_id(id);
	if (o->config_file) {
		argv[n++] = (char *)"--config";
		argv[n++] = (char *)o->config_file;
	}
	if (o->is_private) {
		argv[n++] = (char *)"--runtime-dir";
		argv[n++] = (char *)o->runtime_dir;
	}
	sigemptyset(&none);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
	r = posix_spawn(&pid, o->exe, NULL, &attr, argv, environ_);
	posix_spawnattr_destroy(&attr);
	if (r != 0) {
		log_warning_errno(r, "%s: %m", o->exe);
		return false;
	}
	ended.fd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (ended.fd < 0 || poll(&ended, 1, SUCCESSOR_MSEC) <= 0)
		kill(pid, SIGKILL);
	if (ended.fd >= 0)
		close(ended.fd);
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return false;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static bool keeper_has_ended(struct manager *m)
{
	struct pollfd pfd = {.fd = m->core.arena->h->keeper_pidfd, .events = POLLIN};

	return poll(&pfd, 1, 0) > 0;
}

static bool has_processes(struct manager *m)
{
	for (uint32_t i = 0; i < arena_processes(m->core.arena); i++)
		if (atomic_load(&m->core.process[i].shared->state) != PROCESS_FREE)
			return true;
	return false;
}

bool manager_may_hand_over(struct manager *m)
{
	int r;

	if (!store_is_on())
		return false;
	/* systemd ends what is left, and starts the service again. */
	if (keeper_has_ended(m))
		return true;
	/* Nothing is lost, and the next has a new pool. */
	if (!has_processes(m))
		return false;
	r = service_is_restarting();
	if (r < 0)
		log_warning_errno(r, "Cannot ask systemd whether usmd is restarted or stopped: %m. It is stopped");
	if (r <= 0)
		return false;
	if (!successor_takes_over(m)) {
		log_warning("%s as it is installed now cannot take the managed programs over: it is of another "
			    "version, or its configuration has errors. All pages are brought back into the "
			    "programs, which go on unmanaged",
			    m->options->exe);
		return false;
	}
	r = store_flush();
	if (r < 0)
		log_warning_errno(r, "systemd's descriptor store has not got all: %m. All pages are brought "
				     "back into the programs, which go on unmanaged");
	return r >= 0;
}

void manager_hand_over(struct manager *m)
{
	unsigned n = 0;
	uint64_t swapped = 0;

	for (uint32_t i = 0; i < arena_processes(m->core.arena); i++) {
		struct process *p = &m->core.process[i];

		if (atomic_load(&p->shared->state) == PROCESS_FREE)
			continue;
		n++;
		swapped += (uint64_t)MAX(atomic_load(&p->nr_swapped), (int64_t)0);
	}
	log_notice("%u programs with %llu MiB on swap devices wait for the next usmd", n,
		   (unsigned long long)(swapped >> 8));
	atomic_store(&m->core.arena->h->death_nsec, now_nsec());
	atomic_store(&m->core.arena->h->stop, STOP_HAND_OVER);
	sd_event_exit(m->event, 0);
}

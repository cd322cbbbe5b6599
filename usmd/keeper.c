/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "core.h"
#include "keeper.h"
#include "lib/cleanup.h"
#include "lib/log.h"
#include "store.h"

/* The engine's loop turns at least once a second; after this it hangs. */
#define HANG_NSEC 10000000000ull
/* One decision of a policy takes microseconds; after this it hangs. */
#define POLICY_HANG_NSEC 5000000000ull
#define CHECK_SEC 1
/* A start may take as long as it gets on; then systemd waits for so long. */
#define START_USEC "90000000"
/* An engine that lived shorter than this counts as failing to start; the pause grows. */
#define SHORT_LIFE_NSEC 2000000000ull
#define PAUSE_MIN_MSEC	10u
#define PAUSE_MAX_MSEC	5000u

static int listen_at(const char *dir, const char *name, int type, int *ret)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	_cleanup_close_ int fd = -1;

	if (snprintf(sa.sun_path, sizeof(sa.sun_path), "%s/%s", dir, name) >= (int)sizeof(sa.sun_path))
		return log_error_errno(-ENAMETOOLONG, "%s: too long for a socket's path, %m", dir);
	fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return log_error_errno(-errno, "socket: %m");
	if (unlink(sa.sun_path) < 0 && errno != ENOENT)
		return log_error_errno(-errno, "Cannot remove the old %s: %m", sa.sun_path);
	if (bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 || chmod(sa.sun_path, 0666) < 0 ||
	    listen(fd, 128) < 0)
		return log_error_errno(-errno, "Cannot listen on %s: %m", sa.sun_path);
	*ret = TAKE_FD(fd);
	return 0;
}

static int take_sockets(struct arena *a, const struct keeper_options *o,
			const struct store_received *received)
{
	int r;

	a->h->attach_fd = received->attach_fd;
	a->h->control_fd = received->control_fd;
	if (a->h->attach_fd < 0) {
		r = listen_at(o->runtime_dir, USM_ATTACH_SOCKET, SOCK_SEQPACKET, &a->h->attach_fd);
		if (r < 0)
			return r;
	}
	if (a->h->control_fd < 0)
		return listen_at(o->runtime_dir, "io.usmd.Manager", SOCK_STREAM, &a->h->control_fd);
	return 0;
}

/* For who wants to know whether an upgrade can be started (usmd --takes-over). */
static int write_id(const struct arena *a, const char *dir)
{
	char path[4096];
	_cleanup_fclose_ FILE *f = NULL;

	snprintf(path, sizeof(path), "%s/arena", dir);
	f = fopen(path, "we");
	if (!f || fprintf(f, "%s\n", a->h->id) < 0 || fflush(f) != 0)
		return log_error_errno(-errno, "Cannot write %s: %m", path);
	return 0;
}

/* Whoever owns it could put a socket of his own in place of ours; that of a private instance is the
 * business of who has started it. */
static int make_runtime_dir(const struct keeper_options *o)
{
	struct stat st;

	if (mkdir(o->runtime_dir, 0755) < 0 && errno != EEXIST)
		return log_error_errno(-errno, "Cannot make the runtime directory %s: %m",
				       o->runtime_dir);
	if (stat(o->runtime_dir, &st) < 0)
		return log_error_errno(-errno, "Cannot look at the runtime directory %s: %m",
				       o->runtime_dir);
	if (!o->is_private && (st.st_uid != geteuid() || st.st_mode & 022))
		return log_error_errno(-EPERM,
				       "The runtime directory %s belongs to user %u and has mode %04o, but "
				       "only root may write to it; remove it, or: chown root %s; chmod 755 %s",
				       o->runtime_dir, st.st_uid, st.st_mode & 07777, o->runtime_dir,
				       o->runtime_dir);
	return 0;
}

/* -ENODEV: this kernel has none. */
static int open_mechanism(struct arena *a)
{
	a->h->dev_fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (a->h->dev_fd >= 0)
		return 0;
	log_error_errno(-errno, "Cannot open /dev/userfaultfd: %m. usmd needs Linux 6.1 or later with "
				"CONFIG_USERFAULTFD, and to run as root");
	return errno == ENOENT || errno == ENXIO || errno == ENODEV ? -ENODEV : -errno;
}

int keeper_open(struct arena *a, const struct keeper_options *o, const struct store_received *received)
{
	char path[4096];
	int r;

	r = make_runtime_dir(o);
	if (r < 0)
		return r;
	snprintf(path, sizeof(path), "%s/lock", o->runtime_dir);
	a->h->runtime_lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (a->h->runtime_lock_fd < 0)
		return log_error_errno(-errno, "Cannot open %s: %m", path);
	if (flock(a->h->runtime_lock_fd, LOCK_EX | LOCK_NB) < 0)
		return log_error_errno(-errno,
				       "Another usmd runs in %s. End it, or give this one a folder "
				       "of its own: usmd --runtime-dir DIR --state-dir DIR",
				       o->runtime_dir);
	if (write_id(a, o->runtime_dir) < 0)
		return -EIO;
	r = open_mechanism(a);
	if (r < 0)
		return r;
	return take_sockets(a, o, received);
}

/* What systemd has as well is the arena's, and not always open. */
static void note_descriptors(struct keeper_options *o, struct arena *a)
{
	_cleanup_closedir_ DIR *d = opendir("/proc/self/fd");
	struct dirent *de;

	while (d && (de = readdir(d))) {
		int fd = atoi(de->d_name);

		if (fd >= 0 && fd < KEEPER_FDS && fd != dirfd(d) && !arena_fd_is(a->h->told, fd))
			o->keep[fd] = 1;
	}
}

/* Not fork(): the descriptor table is shared, so that whatever the engine opens is still
 * open when it has been killed. */
static pid_t clone_engine(void)
{
	return (pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, NULL);
}

/* The pool whose policy hangs, + 1, or 0. */
static uint32_t hanging_policy(struct arena *a)
{
	uint64_t now = now_nsec();

	for (unsigned i = 0; i < ARENA_WORKERS; i++) {
		uint64_t since = atomic_load(&a->h->worker[i].since_nsec);

		if (since && now > since && now - since > POLICY_HANG_NSEC)
			return atomic_load(&a->h->worker[i].pool);
	}
	return 0;
}

static void set_aside(struct arena *a, uint32_t pool_plus_1, const char *why)
{
	struct arena_pool *pool;

	if (!pool_plus_1 || pool_plus_1 > ARENA_POOLS)
		return;
	pool = &a->h->pool[pool_plus_1 - 1];
	if (!pool->file[0] || pool->set_aside)
		return;
	pool->set_aside = 1;
	log_event(LOG_ERR,
		  &((struct usm_log_fields){
			  .event = "policy", .message_id = USM_MSG_SET_ASIDE, .policy = pool->name}),
		  "Policy %s (%s) %s; it is set aside until it is loaded again, its processes go on "
		  "with first-fit and FIFO",
		  pool->name, pool->file, why);
}

/* A fatal signal in a policy's code is the policy's fault; a kill from outside is not. */
static void judge_death(struct arena *a, int status)
{
	uint32_t worker = atomic_exchange(&a->h->crashed_worker, 0), pool = 0;
	struct usm_log_fields f = {.event = "crash", .message_id = USM_MSG_CRASH};

	if (worker && worker <= ARENA_WORKERS)
		pool = atomic_load(&a->h->worker[worker - 1].pool);
	if (pool && pool <= ARENA_POOLS)
		f.policy = a->h->pool[pool - 1].name;
	if (WIFSIGNALED(status))
		log_event(LOG_ERR, &f,
			  "The engine died of signal %d (%s); starting a new one", WTERMSIG(status),
			  strsignal(WTERMSIG(status)));
	else
		log_event(LOG_ERR, &f,
			  "The engine ended with status %d; starting a new one", WEXITSTATUS(status));
	set_aside(a, pool, "crashed the engine");
	for (unsigned i = 0; i < ARENA_WORKERS; i++) {
		atomic_store(&a->h->worker[i].since_nsec, 0);
		atomic_store(&a->h->worker[i].pool, 0);
	}
}

static void pause_msec(unsigned msec)
{
	struct timespec ts = {.tv_sec = msec / 1000, .tv_nsec = (long)(msec % 1000) * 1000000};

	nanosleep(&ts, NULL);
}

/* Not exit(): what would run at the end is the keeper's. */
static _Noreturn void engine_exit(int status)
{
#ifdef USM_COVERAGE
	void __gcov_dump(void);

	__gcov_dump();
#endif
	_exit(status);
}

int keeper_run(struct arena *a, struct keeper_options *o,
	       int (*engine)(struct arena *a, const struct keeper_options *o))
{
	struct timespec check = {.tv_sec = CHECK_SEC};
	uint64_t started, beat = 0, beat_nsec = 0;
	unsigned pause = 0;
	bool stopping = false, ready = false;
	sigset_t set;
	pid_t pid;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGUSR1); /* the engine: look at ready */
	sigprocmask(SIG_BLOCK, &set, NULL);
	a->h->keeper_pid = getpid();
	a->h->keeper_pidfd = (int)syscall(SYS_pidfd_open, a->h->keeper_pid, 0);
	if (a->h->keeper_pidfd < 0)
		return log_error_errno(-errno, "pidfd_open: %m") ? EXIT_FAILURE : 0;
	note_descriptors(o, a);
	for (;;) {
		int status = 0;
		bool died = false;

		started = now_nsec();
		beat_nsec = started;
		pid = clone_engine();
		if (pid < 0)
			return log_error_errno(-errno, "Cannot start the engine: %m") ? EXIT_FAILURE : 0;
		if (pid == 0)
			engine_exit(engine(a, o));
		atomic_store(&a->h->engine_pid, pid);
		while (!died) {
			siginfo_t si;
			int sig = sigtimedwait(&set, &si, &check);
			uint32_t pool;

			if (sig == SIGTERM || sig == SIGINT) {
				if (!stopping)
					sd_notify(0, "STOPPING=1");
				stopping = true;
				atomic_fetch_add(&a->h->nr_stops, 1);
				kill(pid, SIGTERM);
			} else if (sig == SIGHUP) {
				kill(pid, SIGHUP);
			}
			if (waitpid(pid, &status, WNOHANG) == pid) {
				died = true;
				break;
			}
			if (!ready && atomic_load(&a->h->ready)) {
				ready = true;
				sd_notify(0, "READY=1");
			}
			if (beat != atomic_load(&a->h->heartbeat)) {
				beat = atomic_load(&a->h->heartbeat);
				beat_nsec = now_nsec();
				sd_notify(0, ready ? "WATCHDOG=1" : "EXTEND_TIMEOUT_USEC=" START_USEC);
			}
			pool = hanging_policy(a);
			if (pool) {
				set_aside(a, pool, "takes too long for a decision");
				kill(pid, SIGKILL);
			} else if (now_nsec() - beat_nsec > HANG_NSEC) {
				log_error("The engine hangs; killing it");
				kill(pid, SIGKILL);
				beat_nsec = now_nsec();
			}
		}
		/* However it ended: it did not change anything any more. */
		if (atomic_load(&a->h->stop) == STOP_HAND_OVER)
			return EXIT_SUCCESS;
		if (WIFEXITED(status) && (WEXITSTATUS(status) == 0 || !ready || stopping)) {
			if (WEXITSTATUS(status) == 0)
				store_clear(a);
			return WEXITSTATUS(status);
		}
		atomic_store(&a->h->death_nsec, now_nsec());
		judge_death(a, status);
		atomic_fetch_add(&a->h->nr_restarts, 1);
		if (now_nsec() - started < SHORT_LIFE_NSEC && WIFEXITED(status)) {
			pause = pause ? MIN(pause * 2, PAUSE_MAX_MSEC) : PAUSE_MIN_MSEC;
			pause_msec(pause);
		} else {
			pause = 0;
		}
	}
}

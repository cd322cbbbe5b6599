/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "closer.h"
#include "core.h"
#include "lib/cleanup.h"
#include "lib/log.h"

#define ARENA_NAME "arena"
/* systemd answers within a millisecond; where it reloads all its units, within seconds. */
#define BARRIER_USEC 10000000ull
/* So many are told before systemd is asked whether it has read them. */
#define BATCH 64u

enum want { WANT_NOTHING, WANT_ADD, WANT_CLOSE };

static struct {
	struct arena *arena;
	bool on, started, stop;
	int notify_fd;
	unsigned max;
	pthread_t thread;
	pthread_mutex_t lock; /* of all below */
	unsigned nr; /* what it has */
	unsigned nr_failed;
	pthread_cond_t cond;  /* queue is not empty, or stop */
	pthread_cond_t idle;  /* it is, and nothing is under way */
	uint8_t want[ARENA_FDS];
	uint16_t queue[ARENA_FDS]; /* each at most once: who is in it wants something */
	unsigned head, nr_queue;
	bool busy;
} store = {
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.cond = PTHREAD_COND_INITIALIZER,
	.idle = PTHREAD_COND_INITIALIZER,
};

/* --- messages ------------------------------------------------------------------------ */

static int connect_notify(void)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	const char *path = getenv("NOTIFY_SOCKET");
	_cleanup_close_ int fd = -1;
	size_t n = path ? strlen(path) : 0;

	if (n < 2 || n >= sizeof(sa.sun_path) || (path[0] != '/' && path[0] != '@'))
		return -EINVAL;
	memcpy(sa.sun_path, path, n);
	if (path[0] == '@')
		sa.sun_path[0] = '\0';
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&sa, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n)) < 0)
		return -errno;
	return TAKE_FD(fd);
}

/* Not sd_pid_notify_with_fds(), which may wait.  -EAGAIN: with MSG_DONTWAIT, systemd is behind. */
static int tell_add(int notify_fd, const char *name, int fd, int flags)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {};
	char text[64];
	struct iovec iov = {.iov_base = text};
	struct msghdr h = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	struct cmsghdr *c = CMSG_FIRSTHDR(&h);

	/* FDPOLL=0: a program that has ended is for the next engine to find. */
	iov.iov_len = (size_t)snprintf(text, sizeof(text), "FDSTORE=1\nFDPOLL=0\nFDNAME=%s", name);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(int));
	while (sendmsg(notify_fd, &h, flags | MSG_NOSIGNAL) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

static int tell_remove(const char *name)
{
	char text[64];

	snprintf(text, sizeof(text), "FDSTOREREMOVE=1\nFDNAME=%s", name);
	return sd_notify(0, text);
}

static const char *name_of(int fd, char name[16])
{
	snprintf(name, 16, "fd%d", fd);
	return name;
}

/* -1: it is not one of ours. */
static int number_of(const char *name)
{
	unsigned long n;
	char *end;

	if (strncmp(name, "fd", 2) != 0 || name[2] < '0' || name[2] > '9')
		return -1;
	n = strtoul(name + 2, &end, 10);
	return *end || n < 3 || n >= ARENA_FDS ? -1 : (int)n;
}

/* --- the keeper ---------------------------------------------------------------------- */

struct passed {
	int fd;
	char name[64];
};

static int move_to(int fd, int number)
{
	int r = dup3(fd, number, O_CLOEXEC);

	close(fd);
	return r < 0 ? -errno : r;
}

static int move_above(int fd, int number)
{
	int r = fcntl(fd, F_DUPFD_CLOEXEC, number);

	if (r < 0)
		return -errno; /* it stays */
	close(fd);
	return r;
}

/* All to their numbers, and what has none to any that is free. */
static int renumber(struct passed *list, int n)
{
	int top = SD_LISTEN_FDS_START + n;

	for (int i = 0; i < n; i++)
		top = MAX(top, number_of(list[i].name) + 1);
	for (int i = 0; i < n; i++) {
		list[i].fd = move_above(list[i].fd, top);
		if (list[i].fd < 0)
			return list[i].fd;
	}
	for (int i = 0; i < n; i++)
		if (number_of(list[i].name) >= 0) {
			list[i].fd = move_to(list[i].fd, number_of(list[i].name));
			if (list[i].fd < 0)
				return list[i].fd;
		}
	for (int i = 0; i < n; i++)
		if (number_of(list[i].name) < 0) {
			list[i].fd = move_above(list[i].fd, SD_LISTEN_FDS_START);
			if (list[i].fd < 0)
				return list[i].fd;
		}
	return 0;
}

static void forget(_Atomic int32_t *fd, const uint8_t *passed)
{
	int n = atomic_load(fd);

	if (n >= 0 && (n >= (int)ARENA_FDS || !passed[n]))
		atomic_store(fd, -1);
}

/* The numbers of what systemd does not have may be another's by now. */
static void forget_missing(struct arena *a, const uint8_t *passed)
{
	for (unsigned i = 0; i < USM_SWAP_DEVICES; i++) {
		struct usm_swap_device_shared *d = &a->h->swap.device[i];

		if (d->fd >= 0 && (d->fd >= (int)ARENA_FDS || !passed[d->fd]))
			d->fd = -1;
	}
	for (unsigned i = 0; i < arena_processes(a); i++) {
		struct arena_process *s = &a->process[i];

		if (s->state == PROCESS_FREE)
			continue;
		if (s->uffd >= 0 && (s->uffd >= (int)ARENA_FDS || !passed[s->uffd]))
			s->uffd = -1;
		forget(&s->sock, passed);
		forget(&s->opsfd, passed);
		forget(&s->pidfd, passed);
		for (unsigned k = 0; k < ARENA_JOURNAL; k++) {
			struct uffd_msg *m = &s->journal[k];

			if (m->event == UFFD_EVENT_FORK &&
			    (m->arg.fork.ufd >= ARENA_FDS || !passed[m->arg.fork.ufd]))
				m->arg.fork.ufd = (uint32_t)-1;
		}
	}
}

/* What the last keeper and engine said of themselves. */
static void reset_supervision(struct arena *a)
{
	struct arena_header *h = a->h;

	if (atomic_load(&h->stop) != STOP_HAND_OVER)
		atomic_store(&h->death_nsec, now_nsec()); /* before that, but when is not known */
	atomic_store(&h->ready, 0);
	atomic_store(&h->stop, STOP_NO);
	atomic_store(&h->nr_stops, 0);
	atomic_store(&h->crashed_worker, 0);
	memset(h->worker, 0, sizeof(h->worker));
	h->dev_fd = h->attach_fd = h->control_fd = h->runtime_lock_fd = h->wake_fd = -1;
	h->keeper_pidfd = -1;
	h->inherited = 1;
}

/* Drops those that are stored by a number which the arena does not name. */
static void drop_unnamed(struct passed *list, int n, const uint8_t *named)
{
	bool dropped = false;

	for (int i = 0; i < n; i++) {
		int number = number_of(list[i].name);

		if (number < 0 || named[number])
			continue;
		tell_remove(list[i].name);
		dropped = true;
		close(list[i].fd);
		list[i].fd = -1;
	}
	/* A swap file is locked as long as anybody has it open. */
	if (dropped)
		sd_notify_barrier(0, BARRIER_USEC);
}

static void adopt(struct arena *a, struct passed *list, int n)
{
	static uint8_t named[ARENA_FDS], passed[ARENA_FDS];

	arena_mark_descriptors(a, named, ARENA_FDS);
	for (int i = 0; i < (int)ARENA_FDS / 64; i++)
		atomic_store(&a->h->told[i], 0);
	for (int i = 0; i < n; i++) {
		int number = number_of(list[i].name);

		if (number < 0)
			continue;
		passed[number] = 1;
		if (named[number])
			arena_fd_set(a->h->told, number, true);
	}
	drop_unnamed(list, n, named);
	forget_missing(a, passed);
	reset_supervision(a);
}

static int sort_out(struct store_received *ret, struct passed *list, int n)
{
	static const uint8_t none[ARENA_FDS];
	int arena_fd = -1, r;

	r = renumber(list, n);
	if (r < 0)
		return r;
	for (int i = 0; i < n; i++) {
		int fd = list[i].fd;

		if (number_of(list[i].name) >= 0)
			continue;
		if (strcmp(list[i].name, ARENA_NAME) == 0)
			arena_fd = fd;
		else if (sd_is_socket(fd, AF_UNIX, SOCK_SEQPACKET, 1) > 0)
			ret->attach_fd = fd;
		else if (sd_is_socket(fd, AF_UNIX, SOCK_STREAM, 1) > 0)
			ret->control_fd = fd;
	}
	if (arena_fd < 0) {
		/* Nothing can be done with what it named. */
		drop_unnamed(list, n, none);
		return 0;
	}
	r = arena_open(arena_fd, &ret->arena, ret->id);
	if (r < 0)
		return r;
	adopt(ret->arena, list, n);
	return 0;
}

int store_receive(struct store_received *ret)
{
	char **names = NULL;
	int n = sd_listen_fds_with_names(1, &names), r;
	_cleanup_free_ struct passed *list = NULL;

	*ret = (struct store_received){.attach_fd = -1, .control_fd = -1};
	if (n <= 0)
		return n;
	list = calloc((size_t)n, sizeof(*list));
	for (int i = 0; i < n; i++) {
		if (list) {
			list[i].fd = SD_LISTEN_FDS_START + i;
			snprintf(list[i].name, sizeof(list[i].name), "%s", names[i]);
		}
		free(names[i]);
	}
	free(names);
	r = list ? sort_out(ret, list, n) : -ENOMEM;
	return r;
}

void store_clear(struct arena *a)
{
	char name[16];

	for (int fd = 0; fd < (int)ARENA_FDS; fd++)
		if (arena_fd_is(a->h->told, fd))
			tell_remove(name_of(fd, name));
	if (tell_remove(ARENA_NAME) > 0)
		sd_notify_barrier(0, BARRIER_USEC);
}

/* --- the engine ---------------------------------------------------------------------- */

bool store_is_on(void)
{
	return store.on;
}

unsigned store_room(void)
{
	unsigned n;

	pthread_mutex_lock(&store.lock);
	n = store.max - MIN(store.nr, store.max);
	pthread_mutex_unlock(&store.lock);
	return n;
}

/* Nothing that was begun may be lost in silence: a restart of the service would lose it. */
static void failed_locked(int fd, int error)
{
	if (!store.nr_failed++)
		log_error_errno(error,
				"Descriptor %d does not get into systemd's descriptor store: %m. Until usmd "
				"is started anew, a restart of it brings all pages back first, and if it is "
				"killed as a whole, programs may be, too", fd);
}

/* False: no room. */
static bool book_locked(int fd)
{
	if (arena_fd_is(store.arena->h->told, fd))
		return true;
	if (store.nr >= store.max) {
		failed_locked(fd, -ENOSPC);
		return false;
	}
	store.nr++;
	arena_fd_set(store.arena->h->told, fd, true);
	return true;
}

/* It is booked, and systemd was behind then. */
static void add_now(int fd)
{
	char name[16];
	int r = tell_add(store.notify_fd, name_of(fd, name), fd, 0);

	if (r < 0) {
		pthread_mutex_lock(&store.lock);
		failed_locked(fd, r);
		pthread_mutex_unlock(&store.lock);
	}
}

/* True: systemd has been asked to drop it, and it must stay open until that is done. */
static bool drop_now(int fd)
{
	char name[16];

	if (!arena_fd_is(store.arena->h->told, fd))
		return false;
	tell_remove(name_of(fd, name));
	return true;
}

static void close_dropped(const uint16_t *fds, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		if (arena_fd_is(store.arena->h->told, fds[i])) {
			arena_fd_set(store.arena->h->told, fds[i], false);
			pthread_mutex_lock(&store.lock);
			store.nr--;
			pthread_mutex_unlock(&store.lock);
		}
		closer_close(fds[i]);
	}
}

/* What some wanted at one moment. */
static void serve(const uint16_t *fds, const uint8_t *want, unsigned n)
{
	uint16_t closing[BATCH];
	unsigned nr_closing = 0;
	bool asked = false;
	int r = 0;

	for (unsigned i = 0; i < n; i++) {
		if (want[i] == WANT_ADD) {
			add_now(fds[i]);
			continue;
		}
		asked |= drop_now(fds[i]);
		closing[nr_closing++] = fds[i];
	}
	/* A number is not free for another before systemd has forgotten it. */
	while (asked && (r = sd_notify_barrier(0, BARRIER_USEC)) < 0) {
		log_warning_errno(r, "systemd does not answer: %m, waiting");
		if (r != -ETIMEDOUT)
			usleep(100000);
	}
	close_dropped(closing, nr_closing);
}

static void *store_main(void *unused)
{
	uint16_t fds[BATCH];
	uint8_t want[BATCH];

	(void)unused;
	pthread_mutex_lock(&store.lock);
	for (;;) {
		unsigned n = 0;

		while (!store.nr_queue && !store.stop) {
			pthread_cond_broadcast(&store.idle);
			pthread_cond_wait(&store.cond, &store.lock);
		}
		if (!store.nr_queue)
			break;
		while (n < BATCH && store.nr_queue) {
			fds[n] = store.queue[store.head];
			want[n] = store.want[fds[n]];
			store.want[fds[n++]] = WANT_NOTHING;
			store.head = (store.head + 1) % ARENA_FDS;
			store.nr_queue--;
		}
		store.busy = true;
		pthread_mutex_unlock(&store.lock);
		serve(fds, want, n);
		pthread_mutex_lock(&store.lock);
		store.busy = false;
	}
	pthread_cond_broadcast(&store.idle);
	pthread_mutex_unlock(&store.lock);
	return NULL;
}

static void want_locked(int fd, enum want what)
{
	if (store.want[fd] == WANT_NOTHING) {
		store.queue[(store.head + store.nr_queue++) % ARENA_FDS] = (uint16_t)fd;
		pthread_cond_signal(&store.cond);
	}
	store.want[fd] = (uint8_t)what;
}

void store_add(int fd)
{
	char name[16];
	int r;

	if (!store.on || fd < 0)
		return;
	pthread_mutex_lock(&store.lock);
	if (fd >= (int)ARENA_FDS) {
		failed_locked(fd, -ENOSPC);
	} else if (book_locked(fd)) {
		/* At once: usmd may be killed at any moment. */
		r = tell_add(store.notify_fd, name_of(fd, name), fd, MSG_DONTWAIT);
		if (r == -EAGAIN)
			want_locked(fd, WANT_ADD);
		else if (r < 0)
			failed_locked(fd, r);
	}
	pthread_mutex_unlock(&store.lock);
}

void store_close(int fd)
{
	if (fd < 0)
		return;
	if (!store.on || fd >= (int)ARENA_FDS || !arena_fd_is(store.arena->h->told, fd)) {
		close(fd);
		return;
	}
	pthread_mutex_lock(&store.lock);
	want_locked(fd, WANT_CLOSE);
	pthread_mutex_unlock(&store.lock);
}

void store_hang_up(int fd)
{
	if (!store.on || !arena_fd_is(store.arena->h->told, fd)) {
		closer_hang_up(fd);
		return;
	}
	if (fd >= 0)
		shutdown(fd, SHUT_RDWR);
	store_close(fd);
}

/* Which of them systemd has got is not known: a message of who has ended is not read. */
static void tell_again(struct arena *a)
{
	static uint8_t named[ARENA_FDS];

	memset(named, 0, sizeof(named));
	arena_mark_descriptors(a, named, ARENA_FDS);
	for (int fd = 0; fd < (int)ARENA_FDS; fd++) {
		if (arena_fd_is(a->h->told, fd))
			store.nr++;
		if (named[fd] && fcntl(fd, F_GETFD) >= 0)
			store_add(fd);
	}
}

int store_start(struct arena *a, unsigned max)
{
	int r;

	if (!max)
		return 0;
	store.arena = a;
	store.max = max;
	store.nr = 1;
	store.notify_fd = connect_notify();
	if (store.notify_fd < 0)
		return store.notify_fd;
	r = tell_add(store.notify_fd, ARENA_NAME, a->fd, 0);
	if (r < 0)
		return r;
	r = pthread_create(&store.thread, NULL, store_main, NULL);
	if (r != 0)
		return -r;
	store.started = store.on = true;
	tell_again(a);
	return 0;
}

int store_flush(void)
{
	unsigned nr_failed;

	if (!store.started)
		return 0;
	pthread_mutex_lock(&store.lock);
	while (store.nr_queue || store.busy)
		pthread_cond_wait(&store.idle, &store.lock);
	nr_failed = store.nr_failed;
	pthread_mutex_unlock(&store.lock);
	return nr_failed ? -ENOSPC : sd_notify_barrier(0, BARRIER_USEC);
}

int store_stop(void)
{
	int r;

	if (!store.started)
		return 0;
	r = store_flush();
	pthread_mutex_lock(&store.lock);
	store.stop = true;
	pthread_cond_signal(&store.cond);
	pthread_mutex_unlock(&store.lock);
	pthread_join(store.thread, NULL);
	store.started = store.on = false;
	return r;
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "closer.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* So many descriptors that never close are needed before the others wait for them. */
#define THREADS_MAX 8u
/* It calls close() alone; what usmd touches stays in memory. */
#define STACK_BYTES (64u << 10)

#ifdef USM_TESTING /* 0: all are closed at once, so that what is left open shows */
unsigned closer_threads_max = THREADS_MAX;
#else
static const unsigned closer_threads_max = THREADS_MAX;
#endif

static struct {
	pthread_mutex_t lock; /* of all below */
	pthread_cond_t cond;  /* queue is not empty */
	int queue[CLOSER_QUEUE_MAX];
	unsigned head, nr;
	unsigned nr_threads, nr_idle;
} closer = { .lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER };

static void *closer_main(void *unused)
{
	(void)unused;
	pthread_mutex_lock(&closer.lock);
	for (;;) {
		int fd;

		while (closer.nr == 0) {
			closer.nr_idle++;
			pthread_cond_wait(&closer.cond, &closer.lock);
			closer.nr_idle--;
		}
		fd = closer.queue[closer.head];
		closer.head = (closer.head + 1) % CLOSER_QUEUE_MAX;
		closer.nr--;
		pthread_mutex_unlock(&closer.lock);
		close(fd);
		pthread_mutex_lock(&closer.lock);
	}
	return NULL;
}

/* One more if all are busy, as far as there may be more. */
static void add_thread_locked(void)
{
	pthread_attr_t attr;
	pthread_t thread;

	if (closer.nr_idle > 0 || closer.nr_threads >= closer_threads_max || pthread_attr_init(&attr) != 0)
		return;
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	if (pthread_create(&thread, &attr, closer_main, NULL) == 0)
		closer.nr_threads++;
	pthread_attr_destroy(&attr);
}

void closer_close(int fd)
{
	bool queued = false;

	if (fd < 0)
		return;
	pthread_mutex_lock(&closer.lock);
	if (closer.nr < CLOSER_QUEUE_MAX) {
		add_thread_locked();
		if (closer.nr_threads > 0) {
			closer.queue[(closer.head + closer.nr++) % CLOSER_QUEUE_MAX] = fd;
			pthread_cond_signal(&closer.cond);
			queued = true;
		}
	}
	pthread_mutex_unlock(&closer.lock);
	if (!queued)
		close(fd);
}

void closer_hang_up(int fd)
{
	if (fd >= 0)
		shutdown(fd, SHUT_RDWR);
	closer_close(fd);
}

bool closer_is_behind(void)
{
	bool behind;

	pthread_mutex_lock(&closer.lock);
	behind = closer.nr > CLOSER_QUEUE_MAX / 2;
	pthread_mutex_unlock(&closer.lock);
	return behind;
}

ssize_t closer_recv(int fd, void *buf, size_t size)
{
	union closer_control control;
	struct iovec iov = { buf, size };
	struct msghdr h = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	ssize_t n;

	do
		n = recvmsg(fd, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&h); c; c = CMSG_NXTHDR(&h, c)) {
		int fds[CLOSER_MESSAGE_FDS];
		size_t nr_fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		memcpy(fds, CMSG_DATA(c), nr_fds * sizeof(int));
		for (size_t i = 0; i < nr_fds; i++)
			closer_close(fds[i]);
	}
	return n;
}

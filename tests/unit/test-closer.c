/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* links: usmd/closer.c */
/* Descriptors whose last close() takes long: whoever hands them over does not wait. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "closer.h"

#define LINGER_SEC 4
/* A hand-over takes microseconds; the machine may be busy. */
#define AT_ONCE_MSEC 2000
#define PATIENCE_MSEC (10 * LINGER_SEC * 1000)

static uint64_t now_msec(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

static void wait_closed(int fd)
{
	uint64_t begin = now_msec();

	while (is_open(fd)) {
		assert_true(now_msec() - begin < PATIENCE_MSEC);
		usleep(10000);
	}
}

/* A connection whose peer, *ret_peer, reads nothing of what it was sent. */
static int lingering(int *ret_peer)
{
	struct linger linger = { .l_onoff = 1, .l_linger = LINGER_SEC };
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t len = sizeof(address);
	static const char bytes[65536];
	int listener = socket(AF_INET, SOCK_STREAM, 0), fd = socket(AF_INET, SOCK_STREAM, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	assert_int_equal(bind(listener, (void *)&address, sizeof(address)), 0);
	assert_int_equal(getsockname(listener, (void *)&address, &len), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(connect(fd, (void *)&address, sizeof(address)), 0);
	*ret_peer = accept(listener, NULL, NULL);
	assert_true(*ret_peer >= 0);
	close(listener);
	while (send(fd, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
		;
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)), 0);
	return fd;
}

/* Sends a byte with n descriptors and closes them. */
static void pass(int sock, const int *fds, unsigned n)
{
	union closer_control control = {};
	struct iovec iov = { "x", 1 };
	struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.buf,
			    .msg_controllen = CMSG_SPACE(n * sizeof(int)) };

	control.align.cmsg_level = SOL_SOCKET;
	control.align.cmsg_type = SCM_RIGHTS;
	control.align.cmsg_len = CMSG_LEN(n * sizeof(int));
	memcpy(CMSG_DATA(&control.align), fds, n * sizeof(int));
	assert_int_equal(sendmsg(sock, &h, 0), 1);
	for (unsigned i = 0; i < n; i++)
		close(fds[i]);
}

static void test_passed(void **state)
{
	int sock[2], peer[3], fds[CLOSER_MESSAGE_FDS], free_fd;
	uint64_t begin;
	char c;

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sock), 0);
	for (unsigned i = 0; i < 3; i++)
		fds[i] = lingering(&peer[i]);
	free_fd = fds[0];
	pass(sock[1], fds, 2);
	pass(sock[1], fds + 2, 1);
	begin = now_msec();
	assert_int_equal(closer_recv(sock[0], &c, 1), 1);
	/* The other one is in a message that nobody reads. */
	closer_close(sock[0]);
	assert_true(now_msec() - begin < AT_ONCE_MSEC);
	close(sock[1]);
	/* Its number is free at once; what it held goes later. */
	wait_closed(sock[0]);
	wait_closed(free_fd);
	for (unsigned i = 0; i < 3; i++)
		close(peer[i]);

	/* As many as a message can have, and nothing. */
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sock), 0);
	for (unsigned i = 0; i < CLOSER_MESSAGE_FDS; i++)
		fds[i] = dup(sock[1]);
	free_fd = fds[0];
	pass(sock[1], fds, CLOSER_MESSAGE_FDS);
	assert_int_equal(closer_recv(sock[0], &c, 1), 1);
	assert_int_equal(closer_recv(sock[0], &c, 1), -EAGAIN);
	for (unsigned i = 0; i < CLOSER_MESSAGE_FDS; i++)
		wait_closed(fds[i]);
	close(sock[1]);
	assert_int_equal(closer_recv(sock[0], &c, 1), 0);
	close(sock[0]);
}

static void test_many(void **state)
{
	int peer[12], fds[12];
	uint64_t begin = now_msec();

	(void)state;
	closer_close(-1);
	for (unsigned i = 0; i < 12; i++)
		fds[i] = lingering(&peer[i]);
	begin = now_msec();
	for (unsigned i = 0; i < 12; i++)
		closer_close(fds[i]);
	assert_true(now_msec() - begin < AT_ONCE_MSEC);
	assert_false(closer_is_behind());
	/* All threads wait; what comes now waits for them, but nobody else does. */
	for (unsigned i = 0; i <= CLOSER_QUEUE_MAX / 2; i++)
		closer_close(1000000);
	assert_true(closer_is_behind());
	/* Beyond what may wait, the caller closes itself. */
	for (unsigned i = 0; i <= CLOSER_QUEUE_MAX / 2; i++)
		closer_close(1000000);
	fds[0] = dup(peer[0]);
	closer_close(fds[0]);
	assert_false(is_open(fds[0]));
	for (unsigned i = 1; i < 12; i++)
		wait_closed(fds[i]);
	begin = now_msec();
	while (closer_is_behind())
		assert_true(now_msec() - begin < PATIENCE_MSEC);
	for (unsigned i = 0; i < 12; i++)
		close(peer[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_passed),
		cmocka_unit_test(test_many),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

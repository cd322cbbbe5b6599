/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a keeper makes of the descriptors that systemd gives it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arena.h"
#include "store.h"

/* In a process of its own, whose descriptors from 3 on are what the test says. */
#define EXPECT(cond) \
	do { \
		if (!(cond)) { \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #cond); \
			_exit(1); \
		} \
	} while (0)

#define HIGH 100 /* where a test's own are */

/* A file that is known again by its size. */
static int file_of(int size)
{
	int fd = memfd_create("test", MFD_CLOEXEC), high;

	EXPECT(fd >= 0 && ftruncate(fd, size) == 0);
	high = fcntl(fd, F_DUPFD_CLOEXEC, HIGH);
	close(fd);
	return high;
}

static int listening_socket(void)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), high;

	EXPECT(fd >= 0 && bind(fd, (struct sockaddr *)&sa, sizeof(sa_family_t)) == 0 && listen(fd, 1) == 0);
	high = fcntl(fd, F_DUPFD_CLOEXEC, HIGH);
	close(fd);
	return high;
}

static off_t size_of(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 ? st.st_size : -1;
}

/* fds are the test's own, above HIGH. */
static void pass(const int *fds, int n, const char *names)
{
	char text[16];

	for (int i = 0; i < n; i++) {
		EXPECT(dup2(fds[i], 3 + i) == 3 + i);
		close(fds[i]);
	}
	snprintf(text, sizeof(text), "%d", getpid());
	setenv("LISTEN_PID", text, 1);
	snprintf(text, sizeof(text), "%d", n);
	setenv("LISTEN_FDS", text, 1);
	setenv("LISTEN_FDNAMES", names, 1);
}

/* A copy of the arena's descriptor; a keeper that has ended has none of its own any more. */
static int arena_fd(struct arena *a)
{
	int fd = fcntl(a->fd, F_DUPFD_CLOEXEC, HIGH);

	EXPECT(fd >= 0);
	close(a->fd);
	return fd;
}

static void numbers_are_exchanged(void)
{
	struct store_received received;
	struct arena_process *s;
	struct arena *a;

	EXPECT(arena_new(&a) == 0);
	a->h->nr_processes = 1;
	s = &a->process[0];
	s->state = PROCESS_LIVE;
	s->uffd = 5;
	s->sock = 3;
	s->opsfd = 300;
	s->pidfd = -1;
	s->journal[0].event = UFFD_EVENT_FORK;
	s->journal[0].arg.fork.ufd = 7;
	a->h->swap.device[0].in_use = 1;
	a->h->swap.device[0].fd = 4;
	atomic_store(&a->h->ready, 1);
	atomic_store(&a->h->stop, STOP_HAND_OVER);

	/* 9 is nobody's, 300 has not come. */
	pass((int[]){file_of(5), file_of(3), file_of(4), arena_fd(a), file_of(9), listening_socket(),
		     file_of(7)}, 7, "fd5:fd3:fd4:arena:fd9:usmd.socket:fd7");
	EXPECT(store_receive(&received) == 0);
	EXPECT(received.arena && received.arena->h->inherited);
	s = &received.arena->process[0];
	EXPECT(s->uffd == 5 && size_of(5) == 5);
	EXPECT(s->sock == 3 && size_of(3) == 3);
	EXPECT(received.arena->h->swap.device[0].fd == 4 && size_of(4) == 4);
	EXPECT(s->journal[0].arg.fork.ufd == 7 && size_of(7) == 7);
	EXPECT(s->opsfd == -1 && s->pidfd == -1);
	for (int fd = 3; fd < 2 * HIGH; fd++)
		EXPECT(size_of(fd) != 9);
	EXPECT(received.control_fd >= 0 && received.attach_fd == -1);
	for (int fd = 0; fd < 300; fd++)
		EXPECT(arena_fd_is(received.arena->h->told, fd) == (fd == 3 || fd == 4 || fd == 5 || fd == 7));
	EXPECT(received.arena->h->ready == 0 && received.arena->h->stop == STOP_NO);
}

static void another_arena_is_left_alone(void)
{
	struct store_received received;
	struct arena *a;

	EXPECT(arena_new(&a) == 0);
	a->h->version++;
	strcpy(a->h->id, "of another");
	pass((int[]){arena_fd(a), file_of(9)}, 2, "arena:fd9");
	EXPECT(store_receive(&received) == -EPROTONOSUPPORT);
	EXPECT(strcmp(received.id, "of another") == 0);
	/* Nothing was said to systemd, and nothing written. */
	EXPECT(size_of(9) == 9);
	EXPECT(a->h->inherited == 0);
}

static void without_an_arena_all_is_dropped(void)
{
	struct store_received received;

	pass((int[]){file_of(9), listening_socket()}, 2, "fd9:usmd.socket");
	EXPECT(store_receive(&received) == 0);
	EXPECT(!received.arena && received.control_fd >= 0);
	for (int fd = 3; fd < 2 * HIGH; fd++)
		EXPECT(size_of(fd) != 9);
}

static void in_child(void (*test)(void))
{
	pid_t pid = fork();
	int status;

	assert_true(pid >= 0);
	if (pid == 0) {
		unsetenv("NOTIFY_SOCKET");
		test();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void test_numbers(void **state)
{
	(void)state;
	in_child(numbers_are_exchanged);
}

static void test_another_arena(void **state)
{
	(void)state;
	in_child(another_arena_is_left_alone);
}

static void test_without_arena(void **state)
{
	(void)state;
	in_child(without_an_arena_all_is_dropped);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_numbers),
		cmocka_unit_test(test_another_arena),
		cmocka_unit_test(test_without_arena),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * liar SCENE SOCKET: speaks the attach protocol itself, without libusm-tagger, and does not keep
 * to it.  Says "ready PID" when it has begun, and goes on until it is killed.
 */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <linux/sched.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include "../../../usmd/lib/attach.h"
#include "check.h"

#define THREADS 8
#define MANY	(64ul << 20)

static const char *path;

static int reach(void)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	CHECK(fd >= 0);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	CHECK(connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0);
	return fd;
}

static void say(int fd, struct usm_attach_msg m, const int *fds, unsigned n)
{
	union {
		char buf[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec iov = {.iov_base = &m, .iov_len = sizeof(m)};
	struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};

	m.magic = USM_ATTACH_MAGIC;
	m.version = USM_ATTACH_VERSION;
	if (n) {
		h.msg_control = control.buf;
		h.msg_controllen = CMSG_SPACE(n * sizeof(int));
		CMSG_FIRSTHDR(&h)->cmsg_level = SOL_SOCKET;
		CMSG_FIRSTHDR(&h)->cmsg_type = SCM_RIGHTS;
		CMSG_FIRSTHDR(&h)->cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&h)), fds, n * sizeof(int));
	}
	CHECK(sendmsg(fd, &h, MSG_NOSIGNAL) == sizeof(m));
}

/* The type of the answer, 0 at the end of file; its descriptors. */
static unsigned hear(int fd, int fds[2])
{
	union {
		char buf[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct usm_attach_msg m;
	struct iovec iov = {.iov_base = &m, .iov_len = sizeof(m)};
	struct msghdr h = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};

	if (recvmsg(fd, &h, 0) != sizeof(m))
		return 0;
	if (m.type == USM_ATTACH_FDS)
		memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&h)), 2 * sizeof(int));
	return m.type;
}

static void *touch(void *arg)
{
	char *p = arg;

	for (size_t i = 0; i < MANY / THREADS; i += PAGE)
		*(volatile char *)(p + i) = 1;
	return arg;
}

/* The handshake, with the caller as the agent; the answers to all that comes are left out. */
static void attach(void)
{
	int fd = reach(), fds[2] = {-1, -1}, u[2];
	struct usm_attach_msg m = {.type = USM_ATTACH_HELLO};

	say(fd, m, NULL, 0);
	CHECK(hear(fd, fds) == USM_ATTACH_FDS);
	for (int i = 0; i < 2; i++) {
		u[i] = ioctl(fds[0], USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		CHECK(u[i] >= 0);
	}
	m = (struct usm_attach_msg){.type = USM_ATTACH_READY, .tid = (int32_t)syscall(SYS_gettid)};
	m.staging = (uintptr_t)map_anonymous(USM_OPS_BATCH * PAGE);
	m.trash = (uintptr_t)map_anonymous(USM_OPS_BATCH * PAGE);
	m.marker = (uintptr_t)map_anonymous(PAGE);
	say(fd, m, u, 2);
	CHECK(hear(fd, fds) == USM_ATTACH_GO);
}

/* Has no agent, and more than its limit: nothing of it can leave. */
static void scene_mute(void)
{
	char *p = map_anonymous(MANY);
	pthread_t thread;

	attach();
	printf("ready %d\n", (int)getpid());
	fflush(stdout);
	for (unsigned i = 1; i < THREADS; i++)
		CHECK(!pthread_create(&thread, NULL, touch, p + i * (MANY / THREADS)));
	/* The thread that it has named as its agent. */
	touch(p);
	pause();
}

/* Handshakes that are begun and never finished. */
static void scene_silent(void)
{
	struct usm_attach_msg m = {.type = USM_ATTACH_HELLO};

	for (unsigned i = 0; i < 500; i++) {
		int fd = reach();

		if (i % 2)
			send(fd, &m, i % sizeof(m), MSG_NOSIGNAL);
	}
	printf("ready %d\n", (int)getpid());
	fflush(stdout);
	pause();
}

/* A process with this number, which waits. */
static void take_number(pid_t pid)
{
	pid_t numbers[] = {pid};
	struct clone_args args = {
		.exit_signal = SIGCHLD,
		.set_tid = (uintptr_t)numbers,
		.set_tid_size = 1,
	};
	long r = syscall(SYS_clone3, &args, sizeof(args));

	CHECK(r >= 0);
	if (r == 0)
		for (;;)
			pause();
}

/* Who has connected ends, another process gets its number, and a third one speaks. */
static void scene_recycled(void)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), fds[2] = {-1, -1}, status;
	pid_t pid = fork();

	CHECK(fd >= 0 && pid >= 0);
	if (pid == 0) {
		struct sockaddr_un addr = {.sun_family = AF_UNIX};

		snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
		_exit(connect(fd, (struct sockaddr *)&addr, sizeof(addr)) != 0);
	}
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
	take_number(pid);
	say(fd, (struct usm_attach_msg){.type = USM_ATTACH_HELLO}, NULL, 0);
	CHECK(hear(fd, fds) == 0);
	CHECK(kill(pid, 0) == 0);
	printf("ready %d\n", (int)pid);
	fflush(stdout);
	pause();
}

int main(int argc, char **argv)
{
	CHECK(argc == 3);
	path = argv[2];
	if (!strcmp(argv[1], "mute"))
		scene_mute();
	else if (!strcmp(argv[1], "silent"))
		scene_silent();
	else if (!strcmp(argv[1], "recycled"))
		scene_recycled();
	return 2;
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Packets with descriptors, by raw system calls: used by the agent and by the program's side. */
#include <errno.h>
#include <sys/socket.h>

#include "agent.h"
#include "sys.h"

union control {
	char buf[CMSG_SPACE(2 * sizeof(int))];
	struct cmsghdr align;
};

int usm_message_send(int sock, const void *buf, uint32_t bytes, const int *fds, uint32_t nr_fds)
{
	union control control;
	struct iovec iov = { (void *)buf, bytes };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	long r;

	if (nr_fds > 0) {
		struct cmsghdr *c = &control.align;

		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(nr_fds * sizeof(int));
		for (uint32_t i = 0; i < nr_fds; i++)
			((int *)CMSG_DATA(c))[i] = fds[i];
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(nr_fds * sizeof(int));
	}
	do {
		r = sys3(SYS_sendmsg, sock, &msg, MSG_NOSIGNAL);
	} while (r == -EINTR);
	if (r < 0)
		return (int)r;
	return r == bytes ? 0 : -EPROTO;
}

int usm_message_recv(int sock, void *buf, uint32_t bytes, int fds[2])
{
	union control control;
	struct iovec iov = { buf, bytes };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *c = &control.align;
	int nr = 0;
	long r;

	do {
		r = sys3(SYS_recvmsg, sock, &msg, MSG_CMSG_CLOEXEC);
	} while (r == -EINTR);
	if (r < 0)
		return (int)r;
	if (msg.msg_controllen >= sizeof(*c) && c->cmsg_level == SOL_SOCKET &&
	    c->cmsg_type == SCM_RIGHTS) {
		nr = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		if (nr > 2)
			nr = 2; /* the buffer takes no more; the kernel closed the rest */
		for (int i = 0; i < nr; i++)
			fds[i] = ((int *)CMSG_DATA(c))[i];
	}
	if (r == bytes && !(msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
		return nr;
	for (int i = 0; i < nr; i++)
		sys_close(fds[i]);
	return r == 0 ? -ECONNRESET : -EPROTO;
}

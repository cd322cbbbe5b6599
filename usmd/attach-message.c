/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "attach-message.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>

#define USER_SPACE_END (1ull << 47)

int attach_message_send(int fd, struct usm_attach_msg *m, const int *fds, unsigned n)
{
	union closer_control control = {0};
	struct iovec iov = {.iov_base = m, .iov_len = sizeof(*m)};
	struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};

	m->magic = USM_ATTACH_MAGIC;
	m->version = USM_ATTACH_VERSION;
	if (n) {
		struct cmsghdr *c;

		h.msg_control = control.buf;
		h.msg_controllen = CMSG_SPACE(n * sizeof(int));
		c = CMSG_FIRSTHDR(&h);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(c), fds, n * sizeof(int));
	}
	return sendmsg(fd, &h, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

/* They are ours now, whatever came with them. */
static void take_descriptors(struct attach_packet *p, struct msghdr *h)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c)) {
		size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		/* The kernel puts all into one, and no more than the buffer has room for. */
		memcpy(p->fds, CMSG_DATA(c), n * sizeof(int));
		p->nr_fds = (unsigned)n;
	}
}

int attach_packet_receive(int fd, struct attach_packet *ret)
{
	struct attach_packet p = {};
	union closer_control control;
	struct iovec iov = {.iov_base = &p.m, .iov_len = sizeof(p.m)};
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
	/* An empty packet can have descriptors, too. */
	take_descriptors(&p, &h);
	if (n != sizeof(p.m) || (h.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
		attach_packet_done(&p);
		return n == 0 ? 0 : -EBADMSG;
	}
	*ret = p;
	return 1;
}

void attach_packet_done(struct attach_packet *p)
{
	for (unsigned i = 0; i < p->nr_fds; i++)
		closer_close(p->fds[i]);
	p->nr_fds = 0;
}

static bool is_area(uint64_t start, uint64_t pages)
{
	return start && start % USM_PAGE_SIZE == 0 && start < USER_SPACE_END &&
	       start + pages * USM_PAGE_SIZE <= USER_SPACE_END;
}

static int check_ready(const struct attach_packet *p, enum attach_step step)
{
	/* A child's first userfaultfd came with the FORK event. */
	unsigned nr_fds = step == ATTACH_GREETED_CHILD ? 1 : 2;

	if (step == ATTACH_SILENT || p->nr_fds != nr_fds || !is_area(p->m.staging, USM_OPS_BATCH) ||
	    !is_area(p->m.trash, USM_OPS_BATCH) || !is_area(p->m.marker, 1))
		return -EBADMSG;
	return 0;
}

int attach_packet_check(const struct attach_packet *p, enum attach_step step)
{
	if (p->m.magic != USM_ATTACH_MAGIC)
		return -EBADMSG;
	if (p->m.version != USM_ATTACH_VERSION)
		return -EPROTONOSUPPORT;
	switch (p->m.type) {
	case USM_ATTACH_HELLO:
		return step == ATTACH_SILENT && p->nr_fds == 0 ? 0 : -EBADMSG;
	case USM_ATTACH_READY:
		return check_ready(p, step);
	case USM_ATTACH_REJOIN:
		return 0;
	default:
		return -EBADMSG;
	}
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* links: usmd/attach-message.c usmd/closer.c */
/*
 * Any packets to the attach socket, with any number of descriptors.  Each begins with one byte,
 * how many descriptors come with it, and two, its length.  What passes is what the protocol allows
 * there, and no descriptor is left behind.
 */
#include "fuzz.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>

#include "attach-message.h"
#include "lib/cleanup.h"

#define HEADER_BYTES 3
#define FDS_MAX	     8
#define PACKET_MAX   1024

extern unsigned closer_threads_max;

static void check_area(uint64_t start, uint64_t pages)
{
	FUZZ_CHECK(start > 0 && start % 4096 == 0 && start <= (1ull << 47) - pages * 4096);
}

/* Says what the connection has said now, or stops. */
static bool take(const struct attach_packet *p, enum attach_step *step)
{
	int r = attach_packet_check(p, *step);

	FUZZ_CHECK(p->nr_fds <= ATTACH_MESSAGE_FDS);
	FUZZ_CHECK(r == 0 || r == -EBADMSG || r == -EPROTONOSUPPORT);
	if (r < 0)
		return false;
	FUZZ_CHECK(p->m.magic == USM_ATTACH_MAGIC && p->m.version == USM_ATTACH_VERSION);
	if (p->m.type == USM_ATTACH_HELLO) {
		FUZZ_CHECK(*step == ATTACH_SILENT && p->nr_fds == 0);
		*step = p->m.flags & USM_ATTACH_F_CHILD ? ATTACH_GREETED_CHILD : ATTACH_GREETED;
		return true;
	}
	if (p->m.type == USM_ATTACH_READY) {
		FUZZ_CHECK(*step != ATTACH_SILENT);
		FUZZ_CHECK(p->nr_fds == (*step == ATTACH_GREETED ? 2 : 1));
		check_area(p->m.staging, USM_OPS_BATCH);
		check_area(p->m.trash, USM_OPS_BATCH);
		check_area(p->m.marker, 1);
	} else {
		FUZZ_CHECK(p->m.type == USM_ATTACH_REJOIN);
	}
	return false;
}

static void send_packet(int fd, const uint8_t *bytes, size_t n, unsigned nr_fds)
{
	union {
		char buf[CMSG_SPACE(FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control = {};
	struct iovec iov = { (void *)bytes, n };
	struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (nr_fds > 0) {
		h.msg_control = control.buf;
		h.msg_controllen = CMSG_SPACE(nr_fds * sizeof(int));
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		control.align.cmsg_len = CMSG_LEN(nr_fds * sizeof(int));
		for (unsigned i = 0; i < nr_fds; i++)
			((int *)CMSG_DATA(&control.align))[i] = STDERR_FILENO;
	}
	FUZZ_CHECK(sendmsg(fd, &h, 0) == (ssize_t)n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	enum attach_step step = ATTACH_SILENT;
	int fd[2], free_fd = fuzz_free_fd();
	bool more = true;

	closer_threads_max = 0;
	FUZZ_CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fd) == 0);
	while (more && size >= HEADER_BYTES) {
		struct attach_packet p;
		unsigned nr_fds = data[0] % (FDS_MAX + 1);
		size_t n = MIN((size_t)(data[1] | data[2] << 8) % PACKET_MAX, size - HEADER_BYTES);
		int r;

		send_packet(fd[1], data + HEADER_BYTES, n, nr_fds);
		data += HEADER_BYTES + n;
		size -= HEADER_BYTES + n;

		r = attach_packet_receive(fd[0], &p);
		if (n == 0)
			FUZZ_CHECK(r == 0);
		else if (n != sizeof(p.m))
			FUZZ_CHECK(r == -EBADMSG);
		else
			FUZZ_CHECK(r == 1 && p.nr_fds == nr_fds);
		more = r > 0 && take(&p, &step);
		if (r > 0)
			attach_packet_done(&p);
		FUZZ_CHECK(attach_packet_receive(fd[0], &p) == -EAGAIN);
	}
	close(fd[0]);
	close(fd[1]);
	FUZZ_CHECK(fuzz_free_fd() == free_fd);
	return 0;
}

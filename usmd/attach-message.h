/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The packets of lib/attach.h as the daemon sends and receives them.  What is received may come
 * from anybody: nothing in it counts before attach_packet_check().
 */
#pragma once

#include "closer.h"
#include "lib/attach.h"

/* READY has two; all that may come are taken in, as closer.h says. */
#define ATTACH_MESSAGE_FDS CLOSER_MESSAGE_FDS

/* What a connection has said until now. */
enum attach_step {
	ATTACH_SILENT,
	ATTACH_GREETED,	      /* HELLO, answered by FDS */
	ATTACH_GREETED_CHILD, /* the same with USM_ATTACH_F_CHILD */
};

struct attach_packet {
	struct usm_attach_msg m;
	int fds[ATTACH_MESSAGE_FDS]; /* nr_fds of them; -1 when somebody has taken it over */
	unsigned nr_fds;
};

/* Fills in magic and version.  Never waits; -errno of the socket. */
int attach_message_send(int fd, struct usm_attach_msg *m, const int *fds, unsigned n);

/*
 * 1: *ret is a packet of the right size, to be ended by attach_packet_done().  0: the peer has
 * closed, or has sent an empty packet, which looks the same.  -EAGAIN: nothing is there.
 * -EBADMSG: a packet of the wrong size, or descriptors were lost.  -errno of the socket.
 * Unless 1 is returned *ret has nothing that must be ended.
 */
int attach_packet_receive(int fd, struct attach_packet *ret);
/* Closes the descriptors that nobody has taken over. */
void attach_packet_done(struct attach_packet *p);

/*
 * May a connection say this at that step?  0, -EPROTONOSUPPORT for another version of the
 * protocol, else -EBADMSG.  A READY that passes has the descriptors it must have (of which kind
 * is not known yet) and areas that are page-aligned addresses of user space.
 */
int attach_packet_check(const struct attach_packet *p, enum attach_step step);

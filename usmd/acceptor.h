/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A listening socket on the event loop: accepts one connection a turn and finds out whose it
 * is.  When there is no descriptor for a connection, which then stays in the queue and would wake
 * the loop for ever, or while too many descriptors wait to be closed, it looks away for a second.
 */
#pragma once

#include <sys/socket.h>
#include <systemd/sd-event.h>

struct acceptor;

/* fd (non-blocking) is the callee's, also where it does not want it: closer_hang_up(). */
typedef void (*acceptor_accepted_t)(void *userdata, int fd, const struct ucred *peer);

/* name: "control", in log lines.  listen_fd stays the caller's.  -errno. */
int acceptor_new(sd_event *event, int listen_fd, const char *name, acceptor_accepted_t accepted,
		 void *userdata, struct acceptor **ret);
/* Accepts NULL, returns NULL. */
struct acceptor *acceptor_free(struct acceptor *a);

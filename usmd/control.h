/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The control socket: the Varlink service io.usmd.Manager. */
#pragma once

#include <systemd/sd-event.h>

struct manager;
struct control;

/*
 * Serves connections to listen_fd (a listening, non-blocking AF_UNIX stream
 * socket; stays the caller's) on the manager's event loop.  -errno.
 */
int control_new(struct manager *m, int listen_fd, struct control **ret);
/* Closes all clients.  Accepts NULL, returns NULL. */
struct control *control_free(struct control *c);

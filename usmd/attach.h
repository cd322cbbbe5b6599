/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Attaching: the daemon's side of the handshake of lib/attach.h, on the engine's
 * event loop.  Who connects is checked by the kernel's word (SO_PEERCRED, a pidfd
 * that is re-checked after /proc was read), never by its own.
 */
#pragma once

#include <systemd/sd-event.h>

#include "config.h"
#include "core.h"

struct attach;
struct process;

/* When it was started, in clock ticks: a number and this are nobody else's.  -errno. */
int attach_starttime(pid_t pid, uint64_t *ret);

struct attach_ops {
	/*
	 * May this process be managed, and by which policy?  name: basename of its
	 * executable, argv0: of its first argument, unit and rule_uid: whose it is, exe: full
	 * path.  0: *ret_pool and
	 * the other fields of s (policy, limit_pages, priority) are set.  -errno with text
	 * (at most size bytes) for the program's stderr; an empty text says nothing.
	 */
	int (*admit)(void *userdata, struct arena_process *s, const char *exe, struct pool **ret_pool,
		     char *text, size_t size);
	void (*attached)(void *userdata, struct process *p);
	void *userdata;
};

/* Tells the agent that its handshake is done: when it is, and again by a new engine, as the dead
 * one may not have got to it.  -errno of the socket. */
int attach_say_go(struct process *p);

int attach_new(struct core *c, sd_event *event, int listen_fd, const struct attach_ops *ops,
	       struct attach **ret);
struct attach *attach_free(struct attach *a);

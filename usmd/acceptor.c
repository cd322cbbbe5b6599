/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "acceptor.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "closer.h"
#include "lib/log.h"

/* How long to leave connections waiting when there is no descriptor for one. */
#define PAUSE_USEC 1000000u

struct acceptor {
	sd_event_source *listen;
	sd_event_source *timer; /* while it looks away */
	const char *name;
	acceptor_accepted_t accepted;
	void *userdata;
	bool is_away; /* said once, until a connection is accepted again */
};

static int on_again(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct acceptor *a = userdata;

	(void)source;
	(void)usec;
	a->timer = sd_event_source_disable_unref(a->timer);
	(void)sd_event_source_set_enabled(a->listen, SD_EVENT_ON);
	return 0;
}

static void look_away(struct acceptor *a, int err)
{
	if (!a->is_away)
		log_warning_errno(err, "Cannot accept %s clients: %m; trying again each second.",
				  a->name);
	a->is_away = true;
	if (a->timer ||
	    sd_event_add_time_relative(sd_event_source_get_event(a->listen), &a->timer,
				       CLOCK_MONOTONIC, PAUSE_USEC, 0, on_again, a) < 0)
		return;
	(void)sd_event_source_set_enabled(a->listen, SD_EVENT_OFF);
}

static int on_connection(sd_event_source *source, int listen_fd, uint32_t revents, void *userdata)
{
	struct acceptor *a = userdata;
	struct ucred peer;
	socklen_t len = sizeof(peer);
	int fd;

	(void)source;
	(void)revents;
	if (closer_is_behind()) {
		look_away(a, -EBUSY);
		return 0;
	}
	fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0) {
		if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
			look_away(a, -errno);
		/* All else is about that one connection, which is gone. */
		return 0;
	}
	a->is_away = false;
	/* Without a pid it is of another pid namespace: nothing could be found out about it. */
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 || peer.pid <= 0)
		closer_hang_up(fd);
	else
		a->accepted(a->userdata, fd, &peer);
	return 0;
}

int acceptor_new(sd_event *event, int listen_fd, const char *name, acceptor_accepted_t accepted,
		 void *userdata, struct acceptor **ret)
{
	struct acceptor *a = calloc(1, sizeof(*a));
	int r;

	if (!a)
		return -ENOMEM;
	a->name = name;
	a->accepted = accepted;
	a->userdata = userdata;
	r = sd_event_add_io(event, &a->listen, listen_fd, EPOLLIN, on_connection, a);
	if (r < 0) {
		free(a);
		return r;
	}
	*ret = a;
	return 0;
}

struct acceptor *acceptor_free(struct acceptor *a)
{
	if (!a)
		return NULL;
	sd_event_source_disable_unref(a->timer);
	sd_event_source_disable_unref(a->listen);
	free(a);
	return NULL;
}

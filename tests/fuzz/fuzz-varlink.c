/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* links: usmd/control*.c usmd/acceptor.c usmd/closer.c usmd/offence.c usmd/lib/varlink.c usmd/lib/fields.c usmd/lib/parse.c */
/*
 * Any bytes to the control socket, as root: the whole service on a manager that is made up.  The
 * first byte says how long the pieces are in which they come.  Replies are whole JSON objects,
 * nothing is left behind, and another client is served as if nothing had been.
 */
#include "fuzz.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "../unit/fake-manager.h"
#include "control.h"
#include "lib/varlink.h"

#define GET_STATUS "{\"method\":\"io.usmd.Manager.GetStatus\"}"
/* No request is longer, and an input with two of that length tells no more. */
#define INPUT_MAX (2 * USM_VARLINK_REQUEST_MAX)
#define PIECE_UNIT 16

extern unsigned closer_threads_max;

static struct manager manager;
static struct control *control;
static struct sockaddr_un address;
static socklen_t address_len;
static int kept = -1; /* the other client */

static void pump(void)
{
	while (sd_event_run(manager.event, 0) > 0)
		;
}

static int dial(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	FUZZ_CHECK(fd >= 0 && connect(fd, (void *)&address, address_len) == 0);
	pump();
	return fd;
}

static void begin(void)
{
	int fd;

	if (control)
		return;
	closer_threads_max = 0;
	fake_manager_init(&manager);
	manager.evict_at_once = true;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	/* An address without a file, which the kernel chooses. */
	address.sun_family = AF_UNIX;
	FUZZ_CHECK(bind(fd, (void *)&address, sizeof(address.sun_family)) == 0);
	address_len = sizeof(address);
	FUZZ_CHECK(getsockname(fd, (void *)&address, &address_len) == 0 && listen(fd, 8) == 0);
	FUZZ_CHECK(control_new(&manager, fd, &control) == 0);
	kept = dial();
}

/* Takes in what has come; true at the end. */
static bool hear(int fd, struct usm_varlink_reader *replies)
{
	struct json_object *o;
	int r;

	do {
		r = usm_varlink_reader_fill(replies, fd);
		if (r == 0 || r == -ECONNRESET)
			return true;
		FUZZ_CHECK(r > 0 || r == -EAGAIN);
		while (r > 0 && (r = usm_varlink_reader_next(replies, &o)) > 0) {
			struct json_object *parameters;

			FUZZ_CHECK(json_object_object_get_ex(o, "parameters", &parameters));
			json_object_put(o);
		}
		FUZZ_CHECK(r == 0 || r == -EAGAIN);
		pump();
	} while (r != -EAGAIN);
	return false;
}

static void check_kept(void)
{
	char reply[1024];
	ssize_t n;

	FUZZ_CHECK(send(kept, GET_STATUS, sizeof(GET_STATUS), 0) == sizeof(GET_STATUS));
	pump();
	n = recv(kept, reply, sizeof(reply), 0);
	FUZZ_CHECK(n > 0 && reply[n - 1] == '\0' && strstr(reply, "\"version\":\"9.8.7\""));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct usm_varlink_reader replies;
	size_t piece, n;
	int fd, free_fd;
	bool over = false;

	if (size == 0 || size > INPUT_MAX)
		return -1;
	begin();
	free_fd = fuzz_free_fd();
	usm_varlink_reader_init(&replies, USM_VARLINK_QUEUE_MAX);
	fd = dial();
	piece = data[0] ? data[0] * PIECE_UNIT : size;
	for (size_t at = 1; at < size && !over; at += n) {
		n = MIN(piece, size - at);
		if (send(fd, data + at, n, MSG_NOSIGNAL) != (ssize_t)n)
			break;
		pump();
		over = hear(fd, &replies);
	}
	close(fd);
	pump();
	usm_varlink_reader_done(&replies);
	check_kept();
	FUZZ_CHECK(fuzz_free_fd() == free_fd);
	return 0;
}

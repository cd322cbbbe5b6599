/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>

#include "format.h"
#include "lib/cleanup.h"
#include "lib/fields.h"
#include "lib/varlink.h"

/* A reply of the service is at most its queue. */
#define REPLY_MAX_BYTES USM_VARLINK_QUEUE_MAX

struct client {
	int fd;
	struct usm_varlink_reader reader;
	struct usm_varlink_writer writer;
};

void reply_done(struct reply *r)
{
	json_object_put(r->message);
	*r = (struct reply){};
}

struct client *client_free(struct client *c)
{
	if (!c)
		return NULL;
	usm_varlink_reader_done(&c->reader);
	usm_varlink_writer_done(&c->writer);
	if (c->fd >= 0)
		close(c->fd);
	free(c);
	return NULL;
}

static int problem(char **ret_problem, int err, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

static int problem(char **ret_problem, int err, const char *fmt, ...)
{
	char *text;
	va_list ap;

	va_start(ap, fmt);
	*ret_problem = vasprintf(&text, fmt, ap) < 0 ? NULL : text;
	va_end(ap);
	return err;
}

static int connect_problem(int err, const char *path, const char *dir, bool is_default,
			   char **ret_problem)
{
	if (err == -EAGAIN)
		return problem(ret_problem, err,
			       "usmd takes no connections at %s; 'journalctl -u usmd' may say why",
			       path);
	if (err != -ENOENT && err != -ECONNREFUSED)
		return problem(ret_problem, err, "cannot connect to %s: %s", path, strerror(-err));
	if (is_default)
		return problem(ret_problem, err,
			       "usmd is not running (nobody answers at %s); start it with "
			       "'systemctl start usmd'", path);
	return problem(ret_problem, err,
		       "no usmd runs with this runtime directory (nobody answers at %s); start one "
		       "with 'usmd --runtime-dir %s', or name another by --runtime-dir or "
		       "USMD_RUNTIME_DIR", path, dir);
}

int client_open(const char *runtime_dir, bool is_default, struct client **ret, char **ret_problem)
{
	/* connect() waits for so long when usmd takes no connections. */
	const struct timeval timeout = { .tv_sec = CLIENT_TIMEOUT_MSEC / 1000 };
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct client *c;
	int n, err;

	n = snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s", runtime_dir,
		     USM_VARLINK_SOCKET);
	if (n < 0 || (size_t)n >= sizeof(address.sun_path))
		return problem(ret_problem, -ENAMETOOLONG,
			       "the runtime directory's path is too long for a socket: %s",
			       runtime_dir);

	c = calloc(1, sizeof(*c));
	if (!c)
		return problem(ret_problem, -ENOMEM, "out of memory");
	usm_varlink_reader_init(&c->reader, REPLY_MAX_BYTES);
	usm_varlink_writer_init(&c->writer, USM_VARLINK_REQUEST_MAX);
	c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->fd < 0 ||
	    setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout)) < 0 ||
	    connect(c->fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		err = -errno;
		client_free(c);
		return connect_problem(err, address.sun_path, runtime_dir, is_default, ret_problem);
	}
	/* Only now: a socket that is not blocking would not wait for its turn. */
	if (fcntl(c->fd, F_SETFL, O_NONBLOCK) < 0) {
		err = -errno;
		client_free(c);
		return problem(ret_problem, err, "cannot use the connection: %s", strerror(-err));
	}
	*ret = c;
	return 0;
}

/* 0 when the descriptor is ready, or -ETIMEDOUT, -errno. */
static int wait_for(int fd, short events, int timeout_msec)
{
	struct pollfd p = { .fd = fd, .events = events };
	int r;

	do
		r = poll(&p, 1, timeout_msec);
	while (r < 0 && errno == EINTR);
	if (r < 0)
		return -errno;
	return r == 0 ? -ETIMEDOUT : 0;
}

static int connection_problem(int err, char **ret_problem)
{
	if (err == -ETIMEDOUT)
		return problem(ret_problem, err,
			       "usmd did not answer within %d seconds; 'journalctl -u usmd' may say "
			       "why", CLIENT_TIMEOUT_MSEC / 1000);
	if (err == -EBADMSG || err == -EMSGSIZE)
		return problem(ret_problem, err,
			       "what answers is not usmd, or of another version: bad reply");
	if (err == -ENOBUFS)
		return problem(ret_problem, err, "the request is too long");
	return problem(ret_problem, err,
		       "the connection to usmd was lost (%s); try again, 'journalctl -u usmd' may "
		       "say why", err == -ECONNRESET ? "usmd closed it" : strerror(-err));
}

int client_send(struct client *c, const char *method, struct json_object *params, bool more,
		char **ret_problem)
{
	char name[128];
	struct json_object *message = json_object_new_object();
	int err = -ENOMEM;

	snprintf(name, sizeof(name), "%s.%s", USM_VARLINK_INTERFACE, method);
	if (!message ||
	    usm_fields_add(message, "method", json_object_new_string(name)) < 0 ||
	    (more && usm_fields_add(message, "more", json_object_new_boolean(true)) < 0))
		json_object_put(params);
	else
		err = params ? usm_fields_add(message, "parameters", params) : 0;

	if (err >= 0)
		err = usm_varlink_writer_put(&c->writer, message);
	json_object_put(message);
	while (err >= 0) {
		err = usm_varlink_writer_flush(&c->writer, c->fd);
		if (err > 0)
			return 0;
		if (err == 0)
			err = wait_for(c->fd, POLLOUT, CLIENT_TIMEOUT_MSEC);
	}
	/* A service that is full says so before it hangs up. */
	if (err == -EPIPE || err == -ECONNRESET)
		return 0;
	return connection_problem(err, ret_problem);
}

static int reply_parse(struct json_object *message, struct reply *ret)
{
	struct json_object *parameters = json_object_object_get(message, "parameters");
	struct json_object *error = json_object_object_get(message, "error");

	if (!parameters) {
		parameters = json_object_new_object();
		if (usm_fields_add(message, "parameters", parameters) < 0)
			return -ENOMEM;
	}
	if (!json_object_is_type(parameters, json_type_object) ||
	    (error && !json_object_is_type(error, json_type_string)))
		return -EBADMSG;
	*ret = (struct reply){
		.message = message,
		.parameters = parameters,
		.error = error ? json_object_get_string(error) : NULL,
		.continues = json_object_get_boolean(json_object_object_get(message, "continues")),
	};
	return 0;
}

static uint64_t now_msec(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

int client_receive(struct client *c, int timeout_msec, struct reply *ret, char **ret_problem)
{
	uint64_t end = now_msec() + (uint64_t)MAX(timeout_msec, 0);
	struct json_object *message;
	int r;

	for (;;) {
		r = usm_varlink_reader_next(&c->reader, &message);
		if (r != 0)
			break;
		r = usm_varlink_reader_fill(&c->reader, c->fd);
		if (r == 0)
			r = -ECONNRESET;
		if (r == -EAGAIN) {
			uint64_t now = now_msec();

			if (timeout_msec >= 0 && now >= end)
				r = -ETIMEDOUT;
			else
				r = wait_for(c->fd, POLLIN,
					     timeout_msec < 0 ? -1 : (int)(end - now));
		}
		if (r < 0)
			break;
	}
	if (r > 0) {
		r = reply_parse(message, ret);
		if (r == 0)
			return 0;
		json_object_put(message);
	}
	return connection_problem(r, ret_problem);
}

bool reply_is_error(const struct reply *r, const char *name)
{
	static const char prefix[] = USM_VARLINK_INTERFACE ".";

	return r->error && strncmp(r->error, prefix, sizeof(prefix) - 1) == 0 &&
	       strcmp(r->error + sizeof(prefix) - 1, name) == 0;
}

char *reply_explain(const struct reply *r)
{
	/* What each error means; %s is its parameter. */
	static const struct {
		const char *error, *parameter, *before, *after;
	} texts[] = {
		{ USM_VARLINK_INTERFACE ".NoSuchProcess", NULL,
		  "no managed process has that name or id; 'usmctl list processes' shows them, "
		  "'usmctl run -- COMMAND' starts one", "" },
		{ USM_VARLINK_INTERFACE ".NoSuchPolicy", "name", "there is no policy '",
		  "'; 'usmctl list policies' shows them, 'usmctl policy load FILE' adds some" },
		{ USM_VARLINK_INTERFACE ".NoSuchAssignment", "name", "nothing is assigned to '",
		  "'; 'usmctl list assignments' shows what is" },
		{ USM_VARLINK_INTERFACE ".NoSuchSwap", "path", "there is no swap device '",
		  "'; 'usmctl list swap' shows them" },
		{ USM_VARLINK_INTERFACE ".NotPermitted", "reason", "not permitted: ", "" },
		{ USM_VARLINK_INTERFACE ".Failed", "reason", "", "" },
		{ "org.varlink.service.InvalidParameter", "parameter",
		  "usmd does not accept the value of '", "'; see usmctl(1)" },
		{ "org.varlink.service.MethodNotFound", "method", "this usmd is too old for '",
		  "'; restart it after the upgrade" },
	};
	char *text;

	for (unsigned i = 0; i < ARRAY_SIZE(texts); i++) {
		if (strcmp(r->error, texts[i].error) != 0)
			continue;
		return asprintf(&text, "%s%s%s", texts[i].before,
				texts[i].parameter ? json_text(r->parameters, texts[i].parameter) :
						     "",
				texts[i].after) < 0 ? NULL : text;
	}
	return asprintf(&text, "usmd answered with the error %s", r->error) < 0 ? NULL : text;
}

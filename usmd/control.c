/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Clients of the control socket: accepting, framing, access, dispatch. */
#include "control.h"

#include <errno.h>
#include <grp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "closer.h"
#include "control-internal.h"
#include "lib/cleanup.h"
#include "lib/log.h"

#define USM_GROUP "usm"

#define CLIENTS_MAX         128u
#define CLIENTS_PER_UID_MAX 16u
/* Kept free of others, so that root can always look. */
#define CLIENTS_ROOT 16u
/* A user in more groups than this has the rank of its other credentials. */
#define PEER_GROUPS_MAX 1024u
/* A message that has begun must have ended by then: who sends half of one and falls silent would
 * keep a client's place for ever. */
#define MESSAGE_USEC 10000000u

static struct control_client *client_free(struct control_client *client)
{
	if (!client)
		return NULL;
	control_async_forget(client);
	sd_event_source_disable_unref(client->io_source);
	sd_event_source_disable_unref(client->next_source);
	sd_event_source_disable_unref(client->message_timer);
	usm_varlink_reader_done(&client->reader);
	usm_varlink_writer_done(&client->writer);
	list_del(&client->item);
	client->control->nr_clients--;
	closer_hang_up(client->fd);
	free(client);
	return NULL;
}

#ifdef USM_TESTING /* tests have less time */
uint64_t control_message_usec = MESSAGE_USEC;
#else
static const uint64_t control_message_usec = MESSAGE_USEC;
#endif

static int on_message_late(sd_event_source *source, uint64_t usec, void *userdata);

static bool client_is_waiting(const struct control_client *client)
{
	return client->evict || client->monitoring;
}

/* Gives half a message its time; one that goes on has no more of it. */
static int client_time_message(struct control_client *client, bool begun)
{
	int enabled = SD_EVENT_OFF, r;

	if (client->message_timer) {
		r = sd_event_source_get_enabled(client->message_timer, &enabled);
		if (r < 0)
			return r;
	}
	if (begun == (enabled != SD_EVENT_OFF))
		return 0;
	if (!begun)
		return sd_event_source_set_enabled(client->message_timer, SD_EVENT_OFF);
	if (!client->message_timer)
		return sd_event_add_time_relative(manager_event(client->control->manager),
						  &client->message_timer, CLOCK_MONOTONIC,
						  control_message_usec, 0, on_message_late, client);
	r = sd_event_source_set_time_relative(client->message_timer, control_message_usec);
	return r < 0 ? r : sd_event_source_set_enabled(client->message_timer, SD_EVENT_ONESHOT);
}

void control_client_settle(struct control_client *client)
{
	int flushed = -ECONNRESET;
	bool pending, listening;
	uint32_t events = 0;

	if (client->dispatching)
		return;
	if (!client->dead)
		flushed = usm_varlink_writer_flush(&client->writer, client->fd);
	/* Answers come in the order of the calls: the next one waits. */
	pending = !client_is_waiting(client) && usm_varlink_reader_pending(&client->reader);
	if (flushed < 0 ||
	    (flushed > 0 && client->eof && !pending && !client_is_waiting(client))) {
		client_free(client);
		return;
	}

	listening = !client->eof && !pending && !client_is_waiting(client);
	if (listening)
		events |= EPOLLIN;
	if (flushed == 0)
		events |= EPOLLOUT;
	if (client_time_message(client, listening && client->reader.len > 0) < 0 ||
	    sd_event_source_set_io_events(client->io_source, events) < 0 ||
	    sd_event_source_set_enabled(client->next_source,
					pending ? SD_EVENT_ONESHOT : SD_EVENT_OFF) < 0)
		client_free(client);
}

static int queue_message(struct control_call *call, const char *error, struct json_object *params,
			 bool continues)
{
	struct control_client *client = call->client;
	struct json_object *message;
	int err = -ENOMEM;

	if (call->oneway) {
		json_object_put(params);
		return 0;
	}
	message = json_object_new_object();
	if (!message) {
		json_object_put(params);
		return -ENOMEM;
	}
	if (error && usm_fields_add(message, "error", json_object_new_string(error)) < 0)
		json_object_put(params);
	else if (usm_fields_add(message, "parameters", params ?: json_object_new_object()) >= 0 &&
		 (!continues ||
		  usm_fields_add(message, "continues", json_object_new_boolean(true)) >= 0))
		err = usm_varlink_writer_put(&client->writer, message);
	json_object_put(message);

	if (err == -ENOBUFS) {
		offence_log(&client->control->offences, "control", &client->peer,
			    "does not read its replies, dropping it");
		client->dead = true;
		return 0;
	}
	return err;
}

int control_reply(struct control_call *call, struct json_object *params)
{
	return queue_message(call, NULL, params, false);
}

int control_reply_continues(struct control_call *call, struct json_object *params)
{
	return queue_message(call, NULL, params, true);
}

int control_error(struct control_call *call, const char *error, const char *field,
		  const char *value)
{
	struct json_object *params = json_object_new_object();

	if (!params)
		return -ENOMEM;
	if (field && usm_fields_add(params, field, json_object_new_string(value)) < 0) {
		json_object_put(params);
		return -ENOMEM;
	}
	return queue_message(call, error, params, false);
}

int control_invalid(struct control_call *call, const char *parameter)
{
	return control_error(call, VARLINK_ERROR("InvalidParameter"), "parameter", parameter);
}

int control_failed(struct control_call *call, int err, const char *message)
{
	struct json_object *params = json_object_new_object();

	if (!params)
		return -ENOMEM;
	if (usm_fields_add(params, "reason",
			   json_object_new_string(message ?: strerror(-err))) < 0 ||
	    usm_fields_add(params, "errno", json_object_new_int(-err)) < 0) {
		json_object_put(params);
		return -ENOMEM;
	}
	return queue_message(call, CONTROL_ERROR("Failed"), params, false);
}

static const char *rank_reason(enum control_rank needed)
{
	return needed == CONTROL_RANK_ROOT ?
		       "only root may do this; run it as root, for example with sudo" :
		       "only root and members of the group '" USM_GROUP "' may do this";
}

static int call_method(struct control_call *call, const struct control_method *method, bool more,
		       struct json_object *params)
{
	struct control_args args = {
		.pages = UINT64_MAX,
		.limit_bytes = UINT64_MAX,
		.count = CONTROL_ITEMS_MAX,
	};
	const char *bad;

	log_debug("Control: uid %u calls %s.", call->client->peer.uid, method->name);
	/* CONTROL_RANK_OWNER lets everyone in; the handler looks at whose it is. */
	if (method->access > CONTROL_RANK_OWNER && call->client->rank < method->access)
		return control_error(call, CONTROL_ERROR("NotPermitted"), "reason",
				     rank_reason(method->access));
	if (method->more && !more)
		return control_error(call, VARLINK_ERROR("ExpectedMore"), NULL, NULL);
	if (usm_fields_parse(method->fields, params, &args, &bad) < 0)
		return control_invalid(call, bad);
	return method->handler(call, &args);
}

static int call_dispatch(struct control_call *call, const char *name, bool more,
			 struct json_object *params)
{
	static const struct {
		const char *interface;
		const struct control_method *methods;
	} interfaces[] = {
		{ USM_VARLINK_INTERFACE, control_manager_methods },
		{ "org.varlink.service", control_service_methods },
	};
	const char *dot = strrchr(name, '.');
	size_t len = dot ? (size_t)(dot - name) : strlen(name);
	_cleanup_free_ char *interface = NULL;

	for (unsigned i = 0; dot && i < ARRAY_SIZE(interfaces); i++) {
		if (strlen(interfaces[i].interface) != len ||
		    memcmp(interfaces[i].interface, name, len) != 0)
			continue;
		for (const struct control_method *m = interfaces[i].methods; m->name; m++)
			if (strcmp(m->name, dot + 1) == 0)
				return call_method(call, m, more, params);
		return control_error(call, VARLINK_ERROR("MethodNotFound"), "method", name);
	}

	interface = strndup(name, len);
	if (!interface)
		return -ENOMEM;
	return control_error(call, VARLINK_ERROR("InterfaceNotFound"), "interface", interface);
}

/* A flag of a call: absent is false.  -EBADMSG if it is no boolean. */
static int message_flag(struct json_object *message, const char *name)
{
	struct json_object *value = json_object_object_get(message, name);

	if (!value)
		return 0;
	return json_object_is_type(value, json_type_boolean) ? json_object_get_boolean(value) :
							       -EBADMSG;
}

static int client_dispatch(struct control_client *client, struct json_object *message)
{
	struct json_object *method = json_object_object_get(message, "method");
	int more = message_flag(message, "more");
	int oneway = message_flag(message, "oneway");
	int upgrade = message_flag(message, "upgrade");
	struct control_call call = { .client = client, .oneway = oneway > 0 };
	int err;

	if (!json_object_is_type(method, json_type_string) || more < 0 || oneway < 0 ||
	    upgrade < 0 || (more && oneway))
		return -EBADMSG;
	if (upgrade)
		return control_error(&call, VARLINK_ERROR("MethodNotImplemented"), "method",
				     json_object_get_string(method));

	err = call_dispatch(&call, json_object_get_string(method), more,
			    json_object_object_get(message, "parameters"));
	return err < 0 ? control_failed(&call, err, NULL) : 0;
}

/* Answers what can't be taken for a call, and drops the client: where the next message begins is
 * not known. */
static void client_reject(struct control_client *client, int err)
{
	struct control_call call = { .client = client };
	char what[128], reason[112];

	if (client->dead)
		return;
	if (err == -EMSGSIZE)
		snprintf(reason, sizeof(reason), "a message is longer than %u bytes",
			 USM_VARLINK_REQUEST_MAX);
	else if (err == -ETIMEDOUT)
		snprintf(reason, sizeof(reason), "half a message came, and the rest not in time");
	else if (err == -EBADMSG)
		snprintf(reason, sizeof(reason), "a message is not a JSON object with a method");
	else
		snprintf(reason, sizeof(reason), "a message can't be taken in: %s", strerror(-err));
	/* As much of the answer as the socket takes: it isn't waited for. */
	if (control_failed(&call, err, reason) >= 0 && !client->dead)
		(void)usm_varlink_writer_flush(&client->writer, client->fd);
	client->dead = true;
	snprintf(what, sizeof(what), "is dropped: %s", reason);
	offence_log(&client->control->offences, "control", &client->peer, what);
}

/* One message only: other clients have their turn before the next one. */
static void client_take_one(struct control_client *client)
{
	struct json_object *message;
	int r;

	if (client_is_waiting(client))
		return;
	r = usm_varlink_reader_next(&client->reader, &message);
	if (r > 0) {
		/* What has come of the next message has its own time. */
		r = client_time_message(client, false);
		client->dispatching = true;
		if (r >= 0)
			r = client_dispatch(client, message);
		client->dispatching = false;
		json_object_put(message);
	}
	if (r < 0)
		client_reject(client, r);
}

static int on_message_late(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct control_client *client = userdata;

	(void)source;
	(void)usec;
	client_reject(client, -ETIMEDOUT);
	control_client_settle(client);
	return 0;
}

static int on_next(sd_event_source *source, void *userdata)
{
	struct control_client *client = userdata;

	(void)source;
	client_take_one(client);
	control_client_settle(client);
	return 0;
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct control_client *client = userdata;
	int r;

	(void)source;
	if (revents & EPOLLIN) {
		r = usm_varlink_reader_fill(&client->reader, fd);
		if (r == 0)
			client->eof = true;
		else if (r < 0 && r != -EAGAIN)
			client->dead = true;
		else
			client_take_one(client);
	} else if ((revents & (EPOLLHUP | EPOLLERR)) && client_is_waiting(client)) {
		client->dead = true; /* nobody is left to hear the answer */
	}
	control_client_settle(client);
	return 0;
}

/* The peer's supplementary groups and its own one, as of connect(). */
static bool peer_in_group(int fd, gid_t primary, gid_t group)
{
	gid_t groups[PEER_GROUPS_MAX];
	socklen_t len = sizeof(groups);

	if (primary == group)
		return true;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &len) < 0)
		return false;
	for (unsigned i = 0; i < len / sizeof(gid_t); i++)
		if (groups[i] == group)
			return true;
	return false;
}

static unsigned nr_clients_of(const struct control *c, uid_t uid)
{
	const struct control_client *client;
	unsigned n = 0;

	list_for_each_entry(client, &c->clients, item)
		n += client->peer.uid == uid;
	return n;
}

static bool has_room_for(const struct control *c, uid_t uid)
{
	if (uid == 0)
		return c->nr_clients < CLIENTS_MAX;
	return c->nr_clients < CLIENTS_MAX - CLIENTS_ROOT &&
	       nr_clients_of(c, uid) < CLIENTS_PER_UID_MAX;
}

static void on_connection(void *userdata, int fd, const struct ucred *peer)
{
	static const char full[] = "{\"error\":\"" USM_VARLINK_INTERFACE
				   ".Failed\",\"parameters\":{\"reason\":\"too many clients are "
				   "connected; try again later\",\"errno\":11}}";
	struct control *c = userdata;
	sd_event *event = manager_event(c->manager);
	struct control_client *client;

	if (!has_room_for(c, peer->uid)) {
		/* As the answer to its first call; it may as well be gone already. */
		(void)!send(fd, full, sizeof(full), MSG_NOSIGNAL | MSG_DONTWAIT);
		offence_log(&c->offences, "control", peer, "is one too many, refusing it");
		closer_hang_up(fd);
		return;
	}

	client = calloc(1, sizeof(*client));
	if (!client) {
		closer_hang_up(fd);
		return;
	}
	client->control = c;
	client->fd = fd;
	client->peer = *peer;
	client->rank = CONTROL_RANK_ANYONE;
	if (peer->uid == 0)
		client->rank = CONTROL_RANK_ROOT;
	else if (c->has_group && peer_in_group(client->fd, peer->gid, c->group))
		client->rank = CONTROL_RANK_GROUP;
	usm_varlink_reader_init(&client->reader, USM_VARLINK_REQUEST_MAX);
	client->reader.receive = closer_recv;
	usm_varlink_writer_init(&client->writer, USM_VARLINK_QUEUE_MAX);
	list_add_tail(&client->item, &c->clients);
	c->nr_clients++;

	if (sd_event_add_io(event, &client->io_source, client->fd, EPOLLIN, on_io, client) < 0 ||
	    sd_event_add_defer(event, &client->next_source, on_next, client) < 0 ||
	    sd_event_source_set_enabled(client->next_source, SD_EVENT_OFF) < 0)
		client_free(client);
}

void control_refresh_group(struct control *c)
{
	const struct group *group = getgrnam(USM_GROUP);

	c->has_group = group;
	c->group = group ? group->gr_gid : 0;
}

int control_new(struct manager *m, int listen_fd, struct control **ret)
{
	struct control *c;
	int err;

	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->manager = m;
	INIT_LIST_HEAD(&c->clients);
	INIT_LIST_HEAD(&c->evicts);
	control_refresh_group(c);

	err = acceptor_new(manager_event(m), listen_fd, "control", on_connection, c, &c->acceptor);
	if (err < 0) {
		control_free(c);
		return err;
	}
	*ret = c;
	return 0;
}

struct control *control_free(struct control *c)
{
	struct control_client *client, *following;

	if (!c)
		return NULL;
	list_for_each_entry_safe(client, following, &c->clients, item)
		client_free(client);
	control_async_done(c);
	acceptor_free(c->acceptor);
	free(c);
	return NULL;
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Methods that are answered later: Evict, Monitor. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "control-internal.h"
#include "lib/cleanup.h"
#include "lib/log.h"
#include "lib/parse.h"

#define MONITOR_INTERVAL_USEC 1000000u
/* sd-event may join the timer with others that are due about then. */
#define MONITOR_ACCURACY_USEC 50000u

#ifdef USM_TESTING /* tests have less time */
uint64_t control_monitor_usec = MONITOR_INTERVAL_USEC;
#else
static const uint64_t control_monitor_usec = MONITOR_INTERVAL_USEC;
#endif

/*
 * One eviction that the manager works on.  It lives until the manager calls
 * back, whatever becomes of the client and of the service meanwhile.
 */
struct control_evict {
	struct list_head item;         /* of control.evicts; alone once that is gone */
	struct control_client *client; /* NULL: nobody waits for the answer */
	uid_t uid;
};

void control_async_forget(struct control_client *client)
{
	struct control *c = client->control;
	const struct control_client *other;
	bool monitored = false;

	if (client->evict)
		client->evict->client = NULL;
	client->evict = NULL;

	client->monitoring = false;
	list_for_each_entry(other, &c->clients, item)
		monitored |= other->monitoring;
	if (!monitored)
		c->monitor_timer = sd_event_source_disable_unref(c->monitor_timer);
}

void control_async_done(struct control *c)
{
	struct control_evict *e, *following;

	list_for_each_entry_safe(e, following, &c->evicts, item)
		list_del_init(&e->item);
	c->monitor_timer = sd_event_source_disable_unref(c->monitor_timer);
}

struct evict_reply {
	uint64_t evicted;
	const char *reason;
};

static const struct usm_field evict_reply_fields[] = {
	{ "evicted", USM_FIELD_U64, offsetof(struct evict_reply, evicted), 0, 0, 0 },
	{ "reason", USM_FIELD_STRING, offsetof(struct evict_reply, reason), USM_FIELD_OMIT_EMPTY, 0,
	  0 },
	{}
};

static int reply_evicted(struct control_call *call, uint64_t evicted, const char *reason)
{
	struct evict_reply reply = { evicted, reason };
	struct json_object *params = json_object_new_object();

	if (!params)
		return -ENOMEM;
	if (usm_fields_build(evict_reply_fields, &reply, params) < 0) {
		json_object_put(params);
		return -ENOMEM;
	}
	return control_reply(call, params);
}

static void on_evicted(void *userdata, uint64_t evicted, const char *reason)
{
	struct control_evict *e = userdata;
	struct control_client *client = e->client;

	list_del(&e->item);
	free(e);
	if (!client)
		return;

	client->evict = NULL;
	if (reply_evicted(&(struct control_call){ .client = client }, evicted, reason) < 0)
		client->dead = true; /* without an answer it would wait for ever */
	control_client_settle(client);
}

static bool evict_has_room(const struct control *c, uid_t uid)
{
	const struct control_evict *e;
	unsigned all = 0, own = 0;

	list_for_each_entry(e, &c->evicts, item) {
		all++;
		own += e->uid == uid;
	}
	return all < CONTROL_EVICTS_MAX && (uid == 0 || own < CONTROL_EVICTS_PER_UID_MAX);
}

int control_check_owner(struct control_call *call, pid_t pid, const char *name)
{
	struct control *c = call->client->control;
	_cleanup_free_ struct usm_process_info *info = NULL;
	const char *reason = NULL;
	unsigned n = 0, own = 0, foreign = 0;
	int err;

	if (call->client->rank >= CONTROL_RANK_GROUP)
		return 0;
	if (pid != 0) {
		uid_t uid;

		err = manager_process_uid(c->manager, pid, &uid);
		if (err < 0)
			return err;
		if (uid != call->client->peer.uid)
			reason = "that process is not yours";
	} else if (name) {
		err = manager_list_processes(c->manager, &info, &n);
		if (err < 0)
			return err;
		for (unsigned i = 0; i < n; i++) {
			if (strcmp(info[i].name, name) != 0)
				continue;
			if (info[i].uid == call->client->peer.uid)
				own++;
			else
				foreign++;
		}
		if (foreign > 0)
			reason = own > 0 ? "other users have processes of that name too; give the "
					   "process id of one of yours" :
					   "the processes of that name are not yours";
	} else {
		reason = "only root and members of the group 'usm' may list them all; name a "
			 "process of yours";
	}
	if (!reason)
		return 0;
	err = control_error(call, CONTROL_ERROR("NotPermitted"), "reason", reason);
	return err < 0 ? err : 1;
}

int control_method_evict(struct control_call *call, const struct control_args *args)
{
	struct control_client *client = call->client;
	struct control *c = client->control;
	struct control_evict *e;
	int r;

	if ((args->pid != 0) == (args->name != NULL))
		return control_invalid(call, args->name ? "name" : "pid");
	if (args->name && !usm_name_is_valid(args->name))
		return control_invalid(call, "name");

	r = control_check_owner(call, args->pid, args->name);
	if (r == -ESRCH)
		return control_error(call, CONTROL_ERROR("NoSuchProcess"), NULL, NULL);
	if (r != 0)
		return r < 0 ? r : 0;
	if (!evict_has_room(c, client->peer.uid))
		return control_failed(call, -EBUSY,
				      "too many evictions are under way; try again when they are done");

	e = calloc(1, sizeof(*e));
	if (!e)
		return -ENOMEM;
	e->uid = client->peer.uid;
	list_add_tail(&e->item, &c->evicts);
	/* Linked before the call: the manager may be done at once. */
	if (!call->oneway) {
		e->client = client;
		client->evict = e;
	}
	r = manager_evict(c->manager, args->pid, args->name, args->pages, on_evicted, e);
	if (r < 0) {
		if (!call->oneway)
			client->evict = NULL;
		list_del(&e->item);
		free(e);
		return r == -ESRCH ? control_error(call, CONTROL_ERROR("NoSuchProcess"), NULL, NULL) :
				     control_failed(call, r, NULL);
	}
	return 0;
}

/* The item of now, as parameters; NULL when there is no memory. */
static struct json_object *monitor_item(struct control *c)
{
	struct json_object *params, *status;
	struct usm_status s = {};
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	manager_get_status(c->manager, &s);

	params = json_object_new_object();
	status = json_object_new_object();
	if (!params || !status || control_build_status(&s, status) < 0 ||
	    usm_fields_add(params, "timeUsec",
			   json_object_new_int64((int64_t)now.tv_sec * 1000000 +
						 now.tv_nsec / 1000)) < 0) {
		json_object_put(status);
		json_object_put(params);
		return NULL;
	}
	if (usm_fields_add(params, "status", status) < 0) {
		json_object_put(params);
		return NULL;
	}
	return params;
}

static int on_monitor(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct control *c = userdata;
	struct control_client *client, *following;
	struct json_object *item = monitor_item(c);

	if (!item)
		log_warning_errno(-ENOMEM, "Cannot report to monitoring clients: %m, ignoring.");
	/* Before the clients: the last one that goes takes the timer along. */
	if (sd_event_source_set_time(source, usec + control_monitor_usec) < 0 ||
	    sd_event_source_set_enabled(source, SD_EVENT_ONESHOT) < 0)
		log_warning("Cannot set the timer of monitoring clients, ignoring.");

	list_for_each_entry_safe(client, following, &c->clients, item) {
		if (!client->monitoring || !item)
			continue;
		if (control_reply_continues(&(struct control_call){ .client = client },
					    json_object_get(item)) < 0)
			client->dead = true;
		control_client_settle(client);
	}
	json_object_put(item);
	return 0;
}

int control_method_monitor(struct control_call *call, const struct control_args *args)
{
	struct control *c = call->client->control;
	struct json_object *item;
	int err;

	(void)args;
	if (!c->monitor_timer) {
		err = sd_event_add_time_relative(manager_event(c->manager), &c->monitor_timer,
						 CLOCK_MONOTONIC, control_monitor_usec,
						 MONITOR_ACCURACY_USEC, on_monitor, c);
		if (err < 0)
			return err;
	}
	call->client->monitoring = true;
	item = monitor_item(c);
	err = item ? control_reply_continues(call, item) : -ENOMEM;
	if (err < 0)
		control_async_forget(call->client);
	return err;
}

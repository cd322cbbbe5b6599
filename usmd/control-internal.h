/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the parts of the control service share: control.c (clients, framing,
 * dispatch), control-methods.c (the method table, lists and changes),
 * control-async.c (what is answered later) and control-interface.c (the
 * interface descriptions).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#include "acceptor.h"
#include "control.h"
#include "lib/fields.h"
#include <usm/list.h>
#include "lib/varlink.h"
#include "manager.h"
#include "offence.h"

/* Items of one list reply: with the longest names about half of the queue. */
#define CONTROL_ITEMS_MAX 1000u
/* Evictions under way at a time, also for clients that went away. */
#define CONTROL_EVICTS_MAX         256u
#define CONTROL_EVICTS_PER_UID_MAX 16u

#define CONTROL_ERROR(name)  USM_VARLINK_INTERFACE "." name
#define VARLINK_ERROR(name) "org.varlink.service." name

struct control {
	struct manager *manager; /* not owned */
	struct acceptor *acceptor;
	sd_event_source *monitor_timer; /* while anyone listens to Monitor */
	struct list_head clients; /* struct control_client.item */
	unsigned nr_clients;
	struct offences offences;
	struct list_head evicts; /* struct control_evict.item */
	bool has_group;
	gid_t group; /* of USM_GROUP */
};

/* Ascending: who may do what a rank may, a higher rank may too. */
enum control_rank {
	CONTROL_RANK_ANYONE,
	CONTROL_RANK_OWNER, /* in the method table only: anyone, for own processes */
	CONTROL_RANK_GROUP,
	CONTROL_RANK_ROOT,
};

struct control_client {
	struct control *control;
	struct list_head item;
	int fd;
	struct ucred peer;
	enum control_rank rank;
	struct usm_varlink_reader reader;
	struct usm_varlink_writer writer;
	sd_event_source *io_source;
	sd_event_source *next_source; /* takes the next message that is already here */
	sd_event_source *message_timer; /* on while half a message is here; NULL: never yet */
	struct control_evict *evict;  /* what it waits for */
	bool monitoring;
	bool eof;         /* it will send no more */
	bool dead;        /* freed as soon as nothing uses it */
	bool dispatching; /* a handler runs: it may be marked dead, not freed */
};

/* All parameters that any method has; a method's field table names its own. */
struct control_args {
	const char *name, *policy, *role, *path, *file, *state, *interface;
	uint64_t pages;       /* UINT64_MAX: all */
	uint64_t limit_bytes; /* UINT64_MAX: keep */
	uint64_t size_bytes;
	uint64_t offset, count;
	pid_t pid; /* 0: not given */
	int32_t priority;
	bool allow, runtime;
};

struct control_call {
	struct control_client *client;
	bool oneway; /* nothing is to be answered */
};

struct control_method {
	const char *name; /* without the interface; NULL ends a table */
	enum control_rank access;
	bool more; /* answers more than once: must be called with more */
	const struct usm_field *fields;
	/* Answers by one of the functions below, now or later.  Returns 0, or
	 * -errno when it has not answered. */
	int (*handler)(struct control_call *call, const struct control_args *args);
};

extern const struct control_method control_manager_methods[];
extern const struct control_method control_service_methods[];
extern const char control_manager_description[];
extern const char control_service_description[];

/*
 * Answers.  params and value are taken over; NULL params is an empty object.  A
 * client whose queue is full is marked dead, which is no error.  All return 0 or
 * -ENOMEM.
 */
int control_reply(struct control_call *call, struct json_object *params);
int control_reply_continues(struct control_call *call, struct json_object *params);
/* error: full name.  field NULL: without parameters. */
int control_error(struct control_call *call, const char *error, const char *field,
		  const char *value);
int control_invalid(struct control_call *call, const char *parameter);
/* Failed(reason, errno); message NULL: the text of err. */
int control_failed(struct control_call *call, int err, const char *message);

/* Looks the group up again. */
void control_refresh_group(struct control *c);
/* To be called when anything was queued or marked outside of a handler: sends,
 * sets what to wait for, and frees the client if it is dead. */
void control_client_settle(struct control_client *client);

/* control-async.c */
int control_method_evict(struct control_call *call, const struct control_args *args);
int control_method_monitor(struct control_call *call, const struct control_args *args);
/* The client goes: what it waits for is not answered. */
void control_async_forget(struct control_client *client);
/* The service goes. */
void control_async_done(struct control *c);
/* May the client act on the processes that pid and name say?  0, or 1 when it
 * has been told why not, or -errno. */
int control_check_owner(struct control_call *call, pid_t pid, const char *name);
int control_build_status(const struct usm_status *status, struct json_object *into);

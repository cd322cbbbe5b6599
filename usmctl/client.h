/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The client's side of the control protocol: one connection, one call at a time. */
#pragma once

#include <json-c/json.h>
#include <stdbool.h>

struct client;

struct reply {
	struct json_object *message;    /* owned */
	struct json_object *parameters; /* borrowed from message; never NULL */
	const char *error;              /* full name, borrowed; NULL: the call succeeded */
	bool continues;                 /* more replies follow */
};

void reply_done(struct reply *r);

/* usmd answers all but Evict at once; this is long even for a machine that swaps. */
#define CLIENT_TIMEOUT_MSEC 30000
#define CLIENT_NO_TIMEOUT   (-1)

/*
 * All return 0 or -errno; on failure *ret_problem is a malloc'd sentence for the
 * user that says what to do next.  A reply that is an error is no failure here.
 */
int client_open(const char *runtime_dir, bool is_default, struct client **ret,
		char **ret_problem);
struct client *client_free(struct client *c);
/* method: without the interface.  params are taken over, NULL: none. */
int client_send(struct client *c, const char *method, struct json_object *params, bool more,
		char **ret_problem);
int client_receive(struct client *c, int timeout_msec, struct reply *ret, char **ret_problem);

/* Does the reply say the error "io.usmd.Manager.<name>"? */
bool reply_is_error(const struct reply *r, const char *name);
/* What an error reply means and what to do; malloc'd, NULL without memory. */
char *reply_explain(const struct reply *r);

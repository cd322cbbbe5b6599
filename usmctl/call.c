/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Calls of the commands: parameters, replies, complaints. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "format.h"
#include "lib/cleanup.h"
#include "lib/fields.h"
#include "lib/varlink.h"
#include "usmctl.h"

static int call(struct usmctl *ctl, const char *method, struct json_object *params,
		int timeout_msec, struct reply *ret, char **ret_problem)
{
	int err = 0;

	if (!ctl->client)
		err = client_open(ctl->runtime_dir, ctl->runtime_dir_is_default, &ctl->client,
				  ret_problem);
	if (err < 0) {
		json_object_put(params);
		return err;
	}
	err = client_send(ctl->client, method, params, false, ret_problem);
	if (err < 0)
		return err;
	return client_receive(ctl->client, timeout_msec, ret, ret_problem);
}

int usmctl_try(struct usmctl *ctl, const char *method, struct json_object *params, int timeout_msec,
	       struct reply *ret, char **ret_error, char **ret_problem)
{
	struct reply reply = {};
	const char *dot;
	int err;

	if (ret_error)
		*ret_error = NULL;
	err = call(ctl, method, params, timeout_msec, &reply, ret_problem);
	if (err < 0)
		return err;
	if (!reply.error) {
		*ret = reply;
		return 0;
	}

	*ret_problem = reply_explain(&reply);
	dot = strrchr(reply.error, '.');
	if (ret_error)
		*ret_error = strdup(dot ? dot + 1 : reply.error);
	reply_done(&reply);
	return -EREMOTEIO;
}

void print_json(struct json_object *o)
{
	puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN |
						       JSON_C_TO_STRING_NOSLASHESCAPE));
	/* Each line at once: somebody may be waiting for it at the end of a pipe. */
	fflush(stdout);
}

/* reason may hold what other programs are called. */
static void complain_safely(const char *problem)
{
	fputs("usmctl: ", stderr);
	print_safely(stderr, problem ?: "out of memory");
	fputc('\n', stderr);
}

static int call_for_command(struct usmctl *ctl, const char *method, struct json_object *params,
			    int timeout_msec, struct reply *ret)
{
	_cleanup_free_ char *text = NULL;
	struct reply reply = {};
	int err;

	err = call(ctl, method, params, timeout_msec, &reply, &text);
	if (err >= 0 && ctl->json)
		print_json(reply.error ? reply.message : reply.parameters);
	if (err >= 0 && reply.error) {
		text = reply_explain(&reply);
		reply_done(&reply);
		err = -EREMOTEIO;
	}
	if (err < 0) {
		complain_safely(text);
		return err;
	}
	*ret = reply;
	return 0;
}

int usmctl_call(struct usmctl *ctl, const char *method, struct json_object *params,
		struct reply *ret)
{
	return call_for_command(ctl, method, params, CLIENT_TIMEOUT_MSEC, ret);
}

int usmctl_call_slow(struct usmctl *ctl, const char *method, struct json_object *params,
		     struct reply *ret)
{
	return call_for_command(ctl, method, params, CLIENT_NO_TIMEOUT, ret);
}

enum usmctl_status usmctl_do(struct usmctl *ctl, const char *method, struct json_object *params)
{
	struct reply reply;

	if (usmctl_call_slow(ctl, method, params, &reply) < 0)
		return USMCTL_FAILED;
	reply_done(&reply);
	return USMCTL_DONE;
}

static void no_memory(void)
{
	complain("out of memory");
	exit(USMCTL_FAILED);
}

struct json_object *params_new(void)
{
	struct json_object *params = json_object_new_object();

	if (!params)
		no_memory();
	return params;
}

void params_text(struct json_object *params, const char *name, const char *value)
{
	if (usm_fields_add(params, name, json_object_new_string(value)) < 0)
		no_memory();
}

void params_number(struct json_object *params, const char *name, uint64_t value)
{
	if (usm_fields_add(params, name,
			   json_object_new_int64((int64_t)MIN(value, (uint64_t)INT64_MAX))) < 0)
		no_memory();
}

void params_flag(struct json_object *params, const char *name, bool value)
{
	if (usm_fields_add(params, name, json_object_new_boolean(value)) < 0)
		no_memory();
}

void params_process(struct json_object *params, const char *word)
{
	/* Ten digits hold every process id; longer words are names. */
	if (word[0] && strspn(word, "0123456789") == strlen(word) && strlen(word) <= 10)
		params_number(params, "pid", strtoull(word, NULL, 10));
	else
		params_text(params, "name", word);
}

char *absolute_path(const char *word)
{
	_cleanup_free_ char *cwd = NULL;
	char *path;

	if (word[0] == '/')
		path = strdup(word);
	else {
		cwd = getcwd(NULL, 0);
		if (!cwd)
			path = strdup(word);
		else if (asprintf(&path, "%s/%s", cwd, word) < 0)
			path = NULL;
	}
	if (!path)
		no_memory();
	return path;
}

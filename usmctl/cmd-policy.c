/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* policy load, unload, reload. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"
#include "lib/cleanup.h"
#include "usmctl.h"

static enum usmctl_status load(struct usmctl *ctl, const char *file)
{
	struct json_object *params = params_new();
	enum usmctl_status status;

	params_text(params, "file", file);
	status = usmctl_do(ctl, "LoadPolicy", params);
	if (status == USMCTL_DONE && !ctl->json)
		printf("%s is loaded; 'usmctl list policies' shows what it has.\n", file);
	return status;
}

static enum usmctl_status unload(struct usmctl *ctl, const char *name)
{
	struct json_object *params = params_new();

	params_text(params, "name", name);
	return usmctl_do(ctl, "UnloadPolicy", params);
}

enum usmctl_status cmd_policy_load(struct usmctl *ctl)
{
	_cleanup_free_ char *file = absolute_path(ctl->argv[0]);

	return load(ctl, file);
}

enum usmctl_status cmd_policy_unload(struct usmctl *ctl)
{
	enum usmctl_status status = unload(ctl, ctl->argv[0]);

	if (status == USMCTL_DONE && !ctl->json)
		printf("%s is unloaded.\n", ctl->argv[0]);
	return status;
}

/* The file of a policy, malloc'd; NULL after a complaint. */
static char *policy_file(struct usmctl *ctl, const char *name)
{
	_cleanup_free_ char *problem = NULL;
	struct json_object *policies;
	struct reply reply;
	char *file = NULL;
	bool known = false;

	if (usmctl_try(ctl, "ListPolicies", NULL, CLIENT_TIMEOUT_MSEC, &reply, NULL, &problem) < 0) {
		complain("%s", problem ?: "out of memory");
		return NULL;
	}
	policies = json_object_object_get(reply.parameters, "policies");
	for (size_t i = 0; json_object_is_type(policies, json_type_array) &&
			   i < json_object_array_length(policies); i++) {
		struct json_object *p = json_object_array_get_idx(policies, i);

		if (strcmp(json_text(p, "name"), name) != 0)
			continue;
		known = true;
		if (json_text(p, "file")[0])
			file = strdup(json_text(p, "file"));
	}
	reply_done(&reply);
	if (!known)
		complain("there is no policy '%s'; 'usmctl list policies' shows them", name);
	else if (!file)
		complain("'%s' comes with usmd, which loads it itself; 'systemctl restart usmd' "
			 "loads a new one", name);
	return file;
}

enum usmctl_status cmd_policy_reload(struct usmctl *ctl)
{
	_cleanup_free_ char *file = policy_file(ctl, ctl->argv[0]);
	enum usmctl_status status;

	if (!file)
		return USMCTL_FAILED;
	status = unload(ctl, ctl->argv[0]);
	return status == USMCTL_DONE ? load(ctl, file) : status;
}

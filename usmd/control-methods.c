/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The method table of the control service and the methods that answer at once. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "control-internal.h"
#include "lib/cleanup.h"
#include "lib/parse.h"

/* Replies. */

#define STATUS(type_, name_, member_) \
	{ name_, USM_FIELD_##type_, offsetof(struct usm_status, member_), 0, 0, 0 }
static const struct usm_field status_fields[] = {
	STATUS(CHARS, "version", version),
	STATUS(STRING, "mechanism", mechanism),
	STATUS(STRING, "eviction", eviction),
	STATUS(STRING, "io", io),
	STATUS(S32, "keeperPid", keeper_pid),
	STATUS(S32, "enginePid", engine_pid),
	STATUS(U64, "engineRestarts", engine_restarts),
	STATUS(U64, "framesTotal", frames_total),
	STATUS(U64, "framesFree", frames_free),
	STATUS(U64, "processes", processes),
	STATUS(U64, "faults", faults),
	STATUS(U64, "evictions", evictions),
	STATUS(U64, "swapIns", swap_ins),
	STATUS(U64, "slotsTotal", slots_total),
	STATUS(U64, "slotsUsed", slots_used),
	STATUS(U64, "errors", errors),
	STATUS(U64, "policyErrors", policy_errors),
	STATUS(U64, "exceeded", exceeded),
	STATUS(U64, "lastRecoveryUsec", last_recovery_usec),
	{}
};

#define PROCESS(type_, name_, member_, flags_) \
	{ name_, USM_FIELD_##type_, offsetof(struct usm_process_info, member_), flags_, 0, 0 }
static const struct usm_field process_fields[] = {
	PROCESS(S32, "pid", pid, 0),
	PROCESS(U32, "uid", uid, 0),
	PROCESS(CHARS, "name", name, 0),
	PROCESS(CHARS, "policy", policy, 0),
	PROCESS(U64, "resident", resident, 0),
	PROCESS(U64, "swapped", swapped, 0),
	PROCESS(U64, "unevictable", unevictable, 0),
	PROCESS(STRING, "unevictableReason", unevictable_reason, USM_FIELD_OMIT_EMPTY),
	PROCESS(U64, "limit", limit, 0),
	PROCESS(U64, "faults", faults, 0),
	PROCESS(U64, "evictions", evictions, 0),
	PROCESS(U64, "swapIns", swap_ins, 0),
	PROCESS(U64, "faultUsecP50", fault_usec_p50, 0),
	PROCESS(U64, "faultUsecP99", fault_usec_p99, 0),
	PROCESS(U64, "faultUsecMax", fault_usec_max, 0),
	{}
};

#define FRAME(type_, name_, member_) \
	{ name_, USM_FIELD_##type_, offsetof(struct usm_frame_info, member_), 0, 0, 0 }
static const struct usm_field free_frame_fields[] = {
	FRAME(U64, "frame", frame),
	{}
};
static const struct usm_field used_frame_fields[] = {
	FRAME(U64, "frame", frame),
	FRAME(U64, "addr", addr),
	FRAME(S32, "pid", pid),
	FRAME(CHARS, "name", name),
	FRAME(U64, "ageMsec", age_msec),
	{}
};

#define ASSIGNMENT(type_, name_, member_, flags_) \
	{ name_, USM_FIELD_##type_, offsetof(struct usm_config_process, member_), flags_, 0, 0 }
static const struct usm_field assignment_fields[] = {
	ASSIGNMENT(CHARS, "name", name, 0),
	ASSIGNMENT(CHARS, "allocPolicy", alloc_policy, USM_FIELD_OMIT_EMPTY),
	ASSIGNMENT(CHARS, "swapPolicy", swap_policy, USM_FIELD_OMIT_EMPTY),
	ASSIGNMENT(U64, "limitBytes", limit_bytes, 0),
	ASSIGNMENT(S32, "priority", priority, 0),
	ASSIGNMENT(STRING, "file", file, USM_FIELD_OMIT_EMPTY),
	ASSIGNMENT(U32, "line", line, 0),
	{}
};

#define SWAP(type_, name_, member_) \
	{ name_, USM_FIELD_##type_, offsetof(struct usm_swap_info, member_), 0, 0, 0 }
static const struct usm_field swap_fields[] = {
	SWAP(CHARS, "path", path),
	SWAP(U64, "slots", nr_slots),
	SWAP(U64, "used", nr_used),
	SWAP(U64, "reads", nr_reads),
	SWAP(U64, "writes", nr_writes),
	SWAP(U64, "errors", nr_errors),
	SWAP(S32, "priority", priority),
	SWAP(BOOL, "draining", draining),
	SWAP(BOOL, "direct", direct),
	SWAP(BOOL, "uring", uring),
	{}
};

#define POLICY(type_, name_, member_, flags_) \
	{ name_, USM_FIELD_##type_, offsetof(struct usm_policy_info, member_), flags_, 0, 0 }
static const struct usm_field policy_fields[] = {
	POLICY(CHARS, "name", name, 0),
	POLICY(CHARS, "file", file, USM_FIELD_OMIT_EMPTY),
	POLICY(BOOL, "alloc", is_alloc, 0),
	POLICY(BOOL, "swap", is_swap, 0),
	POLICY(BOOL, "setAside", set_aside, 0),
	POLICY(U64, "processes", processes, 0),
	POLICY(U64, "allocs", allocs, 0),
	POLICY(U64, "errors", errors, 0),
	POLICY(U64, "decisionNsecMean", decision_nsec_mean, 0),
	POLICY(U64, "decisionNsecMax", decision_nsec_max, 0),
	{}
};

/* Parameters. */

#define STRING_ARG(name_, member_, flags_) \
	{ name_, USM_FIELD_STRING, offsetof(struct control_args, member_), flags_, 0, 0 }
#define U64_ARG(name_, member_, flags_, min_) \
	{ name_, USM_FIELD_U64, offsetof(struct control_args, member_), flags_, min_, INT64_MAX }
#define PID_ARG { "pid", USM_FIELD_S32, offsetof(struct control_args, pid), 0, 1, INT32_MAX }
#define LIST_ARGS U64_ARG("offset", offset, 0, 0), U64_ARG("count", count, 0, 0)

static const struct usm_field no_args[] = { {} };
static const struct usm_field list_args[] = { LIST_ARGS, {} };
static const struct usm_field list_frames_args[] = {
	STRING_ARG("state", state, USM_FIELD_MANDATORY),
	PID_ARG,
	STRING_ARG("name", name, 0),
	LIST_ARGS,
	{}
};
static const struct usm_field assign_args[] = {
	STRING_ARG("name", name, USM_FIELD_MANDATORY),
	STRING_ARG("policy", policy, 0),
	STRING_ARG("role", role, 0),
	U64_ARG("limitBytes", limit_bytes, 0, 0),
	{ "allow", USM_FIELD_BOOL, offsetof(struct control_args, allow), 0, 0, 0 },
	{ "runtime", USM_FIELD_BOOL, offsetof(struct control_args, runtime), 0, 0, 0 },
	{}
};
static const struct usm_field name_args[] = {
	STRING_ARG("name", name, USM_FIELD_MANDATORY),
	{}
};
static const struct usm_field evict_args[] = {
	PID_ARG,
	STRING_ARG("name", name, 0),
	U64_ARG("pages", pages, 0, 1),
	{}
};
static const struct usm_field add_swap_args[] = {
	STRING_ARG("path", path, USM_FIELD_MANDATORY),
	U64_ARG("sizeBytes", size_bytes, USM_FIELD_MANDATORY, 1),
	/* The range that usmd.conf(5) has. */
	{ "priority", USM_FIELD_S32, offsetof(struct control_args, priority), 0, -32768, 32767 },
	{}
};
static const struct usm_field path_args[] = {
	STRING_ARG("path", path, USM_FIELD_MANDATORY),
	{}
};
static const struct usm_field file_args[] = {
	STRING_ARG("file", file, USM_FIELD_MANDATORY),
	{}
};
static const struct usm_field interface_args[] = {
	STRING_ARG("interface", interface, USM_FIELD_MANDATORY),
	{}
};

int control_build_status(const struct usm_status *status, struct json_object *into)
{
	return usm_fields_build(status_fields, status, into);
}

/* {key: [n items], "total": total}; NULL when there is no memory. */
static struct json_object *build_list(const char *key, const struct usm_field *fields,
				      const void *items, size_t n, size_t size, uint64_t total)
{
	struct json_object *params = json_object_new_object(), *array = NULL;

	if (!params)
		return NULL;
	if (usm_fields_build_array(fields, items, n, size, &array) < 0 ||
	    usm_fields_add(params, key, array) < 0 ||
	    usm_fields_add(params, "total", json_object_new_int64((int64_t)total)) < 0) {
		json_object_put(params);
		return NULL;
	}
	return params;
}

/* The part of an array of total items that was asked for. */
static struct json_object *build_part(const char *key, const struct usm_field *fields,
				      const void *items, size_t size, uint64_t total,
				      const struct control_args *args)
{
	uint64_t offset = MIN(args->offset, total);
	uint64_t n = MIN(MIN(args->count, (uint64_t)CONTROL_ITEMS_MAX), total - offset);

	/* An empty array may be NULL: no offset into that. */
	return build_list(key, fields, n > 0 ? (const char *)items + offset * size : NULL, n, size,
			  total);
}

static int reply_or_nomem(struct control_call *call, struct json_object *params)
{
	return params ? control_reply(call, params) : -ENOMEM;
}

static int method_get_status(struct control_call *call, const struct control_args *args)
{
	struct json_object *params = json_object_new_object();
	struct usm_status status = {};

	(void)args;
	if (!params)
		return -ENOMEM;
	manager_get_status(call->client->control->manager, &status);
	if (control_build_status(&status, params) < 0) {
		json_object_put(params);
		return -ENOMEM;
	}
	return control_reply(call, params);
}

static int method_list_processes(struct control_call *call, const struct control_args *args)
{
	const struct control_client *client = call->client;
	_cleanup_free_ struct usm_process_info *info = NULL;
	unsigned n = 0;
	int err;

	err = manager_list_processes(client->control->manager, &info, &n);
	if (err < 0)
		return err;
	if (client->rank < CONTROL_RANK_GROUP) {
		unsigned own = 0;

		for (unsigned i = 0; i < n; i++)
			if (info[i].uid == client->peer.uid)
				info[own++] = info[i];
		n = own;
	}
	return reply_or_nomem(call, build_part("processes", process_fields, info, sizeof(*info), n,
					       args));
}

static int method_list_frames(struct control_call *call, const struct control_args *args)
{
	_cleanup_free_ struct usm_frame_info *info = NULL;
	bool used = strcmp(args->state, "used") == 0;
	uint64_t total = 0;
	unsigned n = 0;
	int r;

	if (!used && strcmp(args->state, "free") != 0)
		return control_invalid(call, "state");
	if (args->name && (!used || args->pid != 0 || !usm_name_is_valid(args->name)))
		return control_invalid(call, "name");
	if (args->pid != 0 && !used)
		return control_invalid(call, "pid");

	r = control_check_owner(call, args->pid, args->name);
	if (r == 0)
		r = manager_list_frames(call->client->control->manager, used, args->pid, args->name,
					args->offset,
					(unsigned)MIN(args->count, (uint64_t)CONTROL_ITEMS_MAX),
					&info, &n, &total);
	if (r == -ESRCH)
		return control_error(call, CONTROL_ERROR("NoSuchProcess"), NULL, NULL);
	if (r != 0)
		return r < 0 ? r : 0;
	return reply_or_nomem(call, build_list("frames",
					       used ? used_frame_fields : free_frame_fields, info, n,
					       sizeof(*info), total));
}

static int method_assign(struct control_call *call, const struct control_args *args)
{
	struct usm_assign_result result = {};
	_cleanup_free_ char *message = NULL;
	struct json_object *params;
	char which = 'b';
	int err, kind = usm_rule_parse(args->name, NULL);

	if (kind < 0)
		return control_invalid(call, "name");
	if (args->allow && kind != USM_RULE_UNIT)
		return control_invalid(call, "allow");
	/* Whose programs may be managed at all is not for the group to say. */
	if (args->allow && call->client->rank < CONTROL_RANK_ROOT)
		return control_error(call, CONTROL_ERROR("NotPermitted"), "reason",
				     "only root may allow a unit's programs to be managed");
	if (args->policy ? !usm_name_is_valid(args->policy) : args->limit_bytes == UINT64_MAX)
		return control_invalid(call, "policy");
	if (args->role) {
		if (strcmp(args->role, "alloc") != 0 && strcmp(args->role, "swap") != 0 &&
		    strcmp(args->role, "both") != 0)
			return control_invalid(call, "role");
		which = args->role[0];
	}

	err = manager_assign(call->client->control->manager, args->name, which, args->policy,
			     args->limit_bytes, args->allow, args->runtime, &result, &message);
	if (err == -ENOENT && args->policy)
		return control_error(call, CONTROL_ERROR("NoSuchPolicy"), "name", args->policy);
	if (err < 0)
		return control_failed(call, err, message);

	params = json_object_new_object();
	if (!params)
		return -ENOMEM;
	if (usm_fields_add(params, "takenOver", json_object_new_int64(result.taken_over)) < 0 ||
	    usm_fields_add(params, "unmanaged", json_object_new_int64(result.unmanaged)) < 0) {
		json_object_put(params);
		return -ENOMEM;
	}
	return control_reply(call, params);
}

static int method_unassign(struct control_call *call, const struct control_args *args)
{
	_cleanup_free_ char *message = NULL;
	int err;

	if (usm_rule_parse(args->name, NULL) < 0)
		return control_invalid(call, "name");
	err = manager_unassign(call->client->control->manager, args->name, &message);
	if (err == -ENOENT)
		return control_error(call, CONTROL_ERROR("NoSuchAssignment"), "name", args->name);
	if (err == -EPERM)
		return control_error(call, CONTROL_ERROR("NotPermitted"), "reason",
				     message ?: "an administrator's file says it");
	return err < 0 ? control_failed(call, err, message) : control_reply(call, NULL);
}

static int method_list_assignments(struct control_call *call, const struct control_args *args)
{
	const struct usm_config *config = manager_config(call->client->control->manager);
	struct json_object *params;

	params = build_part("assignments", assignment_fields, config->processes,
			    sizeof(*config->processes), config->nr_processes, args);
	if (!params)
		return -ENOMEM;
	if (usm_fields_add(params, "defaultPolicy",
			   json_object_new_string(config->default_policy)) < 0) {
		json_object_put(params);
		return -ENOMEM;
	}
	return control_reply(call, params);
}

static int method_add_swap(struct control_call *call, const struct control_args *args)
{
	_cleanup_free_ char *message = NULL;
	int err;

	if (args->path[0] != '/' || strlen(args->path) > USM_SWAP_PATH_MAX)
		return control_invalid(call, "path");
	err = manager_swap_add(call->client->control->manager, args->path, args->size_bytes,
			       args->priority, &message);
	return err < 0 ? control_failed(call, err, message) : control_reply(call, NULL);
}

static int method_remove_swap(struct control_call *call, const struct control_args *args)
{
	_cleanup_free_ char *message = NULL;
	struct json_object *params;
	int err;

	err = manager_swap_remove(call->client->control->manager, args->path, &message);
	if (err == -ENOENT)
		return control_error(call, CONTROL_ERROR("NoSuchSwap"), "path", args->path);
	if (err < 0 && err != -EBUSY)
		return control_failed(call, err, message);

	params = json_object_new_object();
	if (!params)
		return -ENOMEM;
	if (usm_fields_add(params, "finished", json_object_new_boolean(err == 0)) < 0) {
		json_object_put(params);
		return -ENOMEM;
	}
	return control_reply(call, params);
}

static int method_list_swaps(struct control_call *call, const struct control_args *args)
{
	struct usm_swap_info info[USM_SWAP_DEVICES];
	struct json_object *params, *array;
	unsigned n;

	(void)args;
	n = manager_list_swaps(call->client->control->manager, info, ARRAY_SIZE(info));
	params = json_object_new_object();
	if (!params)
		return -ENOMEM;
	if (usm_fields_build_array(swap_fields, info, n, sizeof(*info), &array) < 0 ||
	    usm_fields_add(params, "swaps", array) < 0) {
		json_object_put(params);
		return -ENOMEM;
	}
	return control_reply(call, params);
}

static int method_load_policy(struct control_call *call, const struct control_args *args)
{
	_cleanup_free_ char *message = NULL;
	int err;

	/* The daemon's own directory is no place to start from. */
	if (args->file[0] != '/')
		return control_invalid(call, "file");
	err = manager_policy_load(call->client->control->manager, args->file, &message);
	return err < 0 ? control_failed(call, err, message) : control_reply(call, NULL);
}

static int method_unload_policy(struct control_call *call, const struct control_args *args)
{
	_cleanup_free_ char *message = NULL;
	int err;

	err = manager_policy_unload(call->client->control->manager, args->name, &message);
	if (err == -ENOENT)
		return control_error(call, CONTROL_ERROR("NoSuchPolicy"), "name", args->name);
	return err < 0 ? control_failed(call, err, message) : control_reply(call, NULL);
}

static int method_list_policies(struct control_call *call, const struct control_args *args)
{
	_cleanup_free_ struct usm_policy_info *info = NULL;
	unsigned n = 0;
	int err;

	err = manager_list_policies(call->client->control->manager, &info, &n);
	if (err < 0)
		return err;
	return reply_or_nomem(call, build_part("policies", policy_fields, info, sizeof(*info), n,
					       args));
}

static int method_reload(struct control_call *call, const struct control_args *args)
{
	struct control *c = call->client->control;
	_cleanup_free_ char *message = NULL;
	int err;

	(void)args;
	control_refresh_group(c);
	err = manager_reload(c->manager, &message);
	return err < 0 ? control_failed(call, err, message) : control_reply(call, NULL);
}

static int method_get_info(struct control_call *call, const struct control_args *args)
{
	struct json_object *params = json_object_new_object();
	struct json_object *interfaces = json_object_new_array();
	struct usm_status status = {};

	(void)args;
	manager_get_status(call->client->control->manager, &status);
	if (!params || !interfaces ||
	    json_object_array_add(interfaces, json_object_new_string("org.varlink.service")) < 0 ||
	    json_object_array_add(interfaces, json_object_new_string(USM_VARLINK_INTERFACE)) < 0 ||
	    usm_fields_add(params, "vendor", json_object_new_string("usmd")) < 0 ||
	    usm_fields_add(params, "product", json_object_new_string("usmd")) < 0 ||
	    usm_fields_add(params, "version", json_object_new_string(status.version)) < 0 ||
	    usm_fields_add(params, "url", json_object_new_string("")) < 0) {
		json_object_put(interfaces);
		json_object_put(params);
		return -ENOMEM;
	}
	if (usm_fields_add(params, "interfaces", interfaces) < 0) {
		json_object_put(params);
		return -ENOMEM;
	}
	return control_reply(call, params);
}

static int method_get_interface_description(struct control_call *call,
					    const struct control_args *args)
{
	const char *description;
	struct json_object *params;

	if (strcmp(args->interface, USM_VARLINK_INTERFACE) == 0)
		description = control_manager_description;
	else if (strcmp(args->interface, "org.varlink.service") == 0)
		description = control_service_description;
	else
		return control_error(call, VARLINK_ERROR("InterfaceNotFound"), "interface",
				     args->interface);

	params = json_object_new_object();
	if (!params)
		return -ENOMEM;
	if (usm_fields_add(params, "description", json_object_new_string(description)) < 0) {
		json_object_put(params);
		return -ENOMEM;
	}
	return control_reply(call, params);
}

const struct control_method control_manager_methods[] = {
	{ "GetStatus", CONTROL_RANK_ANYONE, false, no_args, method_get_status },
	{ "ListProcesses", CONTROL_RANK_OWNER, false, list_args, method_list_processes },
	{ "ListFrames", CONTROL_RANK_OWNER, false, list_frames_args, method_list_frames },
	{ "Assign", CONTROL_RANK_GROUP, false, assign_args, method_assign },
	{ "Unassign", CONTROL_RANK_GROUP, false, name_args, method_unassign },
	{ "ListAssignments", CONTROL_RANK_GROUP, false, list_args, method_list_assignments },
	{ "Evict", CONTROL_RANK_OWNER, false, evict_args, control_method_evict },
	{ "AddSwap", CONTROL_RANK_ROOT, false, add_swap_args, method_add_swap },
	{ "RemoveSwap", CONTROL_RANK_ROOT, false, path_args, method_remove_swap },
	{ "ListSwaps", CONTROL_RANK_GROUP, false, no_args, method_list_swaps },
	{ "LoadPolicy", CONTROL_RANK_ROOT, false, file_args, method_load_policy },
	{ "UnloadPolicy", CONTROL_RANK_ROOT, false, name_args, method_unload_policy },
	{ "ListPolicies", CONTROL_RANK_GROUP, false, list_args, method_list_policies },
	{ "Monitor", CONTROL_RANK_GROUP, true, no_args, control_method_monitor },
	{ "Reload", CONTROL_RANK_ROOT, false, no_args, method_reload },
	{}
};

const struct control_method control_service_methods[] = {
	{ "GetInfo", CONTROL_RANK_ANYONE, false, no_args, method_get_info },
	{ "GetInterfaceDescription", CONTROL_RANK_ANYONE, false, interface_args,
	  method_get_interface_description },
	{}
};

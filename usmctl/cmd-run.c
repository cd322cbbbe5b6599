/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * run: checks that the program can and will be managed, then becomes it.  Until
 * execvp() nothing may change what the program inherits but the environment.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-login.h>
#include <unistd.h>

#include "format.h"
#include "lib/cleanup.h"
#include "lib/parse.h"
#include "program.h"
#include "tagger.h"
#include "usmctl.h"

static int preload_set(const char *tagger)
{
	_cleanup_free_ char *list = tagger_preload(tagger, getenv("LD_PRELOAD") ?: "");

	return !list || setenv("LD_PRELOAD", list, 1) < 0 ? -ENOMEM : 0;
}

/* The program must find the same usmd, wherever it changes its directory to. */
static int runtime_dir_set(const struct usmctl *ctl)
{
	_cleanup_free_ char *dir = NULL;

	if (ctl->runtime_dir_is_default)
		return unsetenv("USMD_RUNTIME_DIR") < 0 ? -errno : 0;
	dir = absolute_path(ctl->runtime_dir);
	return setenv("USMD_RUNTIME_DIR", dir, 1) < 0 ? -errno : 0;
}

static bool is_policy(const char *name)
{
	return name[0] && strcmp(name, "none") != 0;
}

/* What usmd will look rules up for: this process, once it has become the program. */
struct identity {
	const struct program *program;
	char *unit; /* malloc'd; NULL: none */
	uid_t uid;
};

static void identity_done(struct identity *id)
{
	free(id->unit);
}

/* How wide a rule is that is for it: the narrower goes before; RULE_NOT: it is not for it. */
enum { RULE_FILE, RULE_CALLED, RULE_UNIT, RULE_TEMPLATE, RULE_USER, RULE_DEFAULT, RULE_NOT };

static unsigned rule_width(const char *rule, const struct identity *id)
{
	const char *what;
	uid_t uid;

	switch (usm_rule_parse(rule, &what)) {
	case USM_RULE_PROCESS:
		if (strcmp(what, id->program->file) == 0)
			return RULE_FILE;
		return strcmp(what, id->program->called) == 0 ? RULE_CALLED : RULE_NOT;
	case USM_RULE_UNIT:
		if (!id->unit || !usm_unit_is(what, id->unit))
			return RULE_NOT;
		return strcmp(what, id->unit) == 0 ? RULE_UNIT : RULE_TEMPLATE;
	case USM_RULE_USER:
		return usm_find_user(what, &uid) >= 0 && uid == id->uid ? RULE_USER : RULE_NOT;
	default:
		return RULE_NOT;
	}
}

/* What the narrowest rule says of one half of a policy set. */
struct half {
	unsigned width;
	bool is_policy;
};

static void half_consider(struct half *h, unsigned width, const char *policy)
{
	if (policy[0] && width < h->width)
		*h = (struct half){ .width = width, .is_policy = is_policy(policy) };
}

/* Is there a policy for the program, its unit or its user?  1 yes, 0 no, or -errno with the
 * problem. */
static int has_policy(struct usmctl *ctl, const struct program *program, char **ret_problem)
{
	_cleanup_(identity_done) struct identity id = { .program = program, .uid = geteuid() };
	struct half alloc = { .width = RULE_NOT }, swap = { .width = RULE_NOT };
	uint64_t offset = 0;

	(void)sd_pid_get_unit(0, &id.unit);
	for (;;) {
		_cleanup_free_ char *error = NULL;
		struct json_object *params = params_new(), *rules;
		struct reply reply;
		size_t n;
		int err;

		params_number(params, "offset", offset);
		err = usmctl_try(ctl, "ListAssignments", params, CLIENT_TIMEOUT_MSEC, &reply, &error,
				 ret_problem);
		if (err < 0 && error && strcmp(error, "NotPermitted") == 0) {
			/* Rules are not everyone's to read; usmd looks them up at attach. */
			free(TAKE_PTR(*ret_problem));
			return 1;
		}
		if (err < 0)
			return err;
		half_consider(&alloc, RULE_DEFAULT, json_text(reply.parameters, "defaultPolicy"));
		rules = json_object_object_get(reply.parameters, "assignments");
		n = json_object_is_type(rules, json_type_array) ? json_object_array_length(rules) :
								  0;
		for (size_t i = 0; i < n; i++) {
			struct json_object *rule = json_object_array_get_idx(rules, i);
			unsigned width = rule_width(json_text(rule, "name"), &id);

			/* A rule may say a limit only. */
			half_consider(&alloc, width, json_text(rule, "allocPolicy"));
			half_consider(&swap, width, json_text(rule, "swapPolicy"));
		}
		offset += n;
		if (n == 0 || offset >= json_number(reply.parameters, "total")) {
			reply_done(&reply);
			return alloc.is_policy || swap.is_policy;
		}
		reply_done(&reply);
	}
}

static int assign(struct usmctl *ctl, const char *name, uint64_t limit_bytes, char **ret_problem)
{
	struct json_object *params = params_new();
	struct reply reply;
	int err;

	params_text(params, "name", name);
	if (ctl->option[RUN_POLICY])
		params_text(params, "policy", ctl->option[RUN_POLICY]);
	if (ctl->option[RUN_LIMIT])
		params_number(params, "limitBytes", limit_bytes);
	params_flag(params, "runtime", true);
	err = usmctl_try(ctl, "Assign", params, CLIENT_TIMEOUT_MSEC, &reply, NULL, ret_problem);
	if (err >= 0)
		reply_done(&reply);
	return err;
}

/* Everything but the exec itself.  0, or -errno with the reason why not. */
static int prepare(struct usmctl *ctl, const char *path, uint64_t limit_bytes, char **ret_reason)
{
	_cleanup_(tagger_done) struct tagger tagger = {};
	struct program program;
	struct reply reply;
	int r;

	r = program_inspect(path, &program, ret_reason);
	if (r < 0)
		return r;
	r = tagger_find(&tagger, ret_reason);
	if (r < 0)
		return r;
	r = usmctl_try(ctl, "GetStatus", NULL, CLIENT_TIMEOUT_MSEC, &reply, NULL, ret_reason);
	if (r < 0)
		return r;
	reply_done(&reply);

	if (ctl->option[RUN_POLICY] && !is_policy(ctl->option[RUN_POLICY])) {
		*ret_reason = say("the policy 'none' means unmanaged");
		return -EINVAL;
	}
	if (!ctl->option[RUN_POLICY]) {
		r = has_policy(ctl, &program, ret_reason);
		if (r == 0) {
			*ret_reason = say("no policy is assigned to '%s': 'usmctl assign %s POLICY' does "
					  "that for good, 'usmctl run --policy POLICY -- ...' until the "
					  "next boot; 'usmctl list policies' shows them", program.called,
					  program.called);
			return -ENOENT;
		}
		if (r < 0)
			return r;
	}
	if (ctl->option[RUN_POLICY] || ctl->option[RUN_LIMIT]) {
		r = assign(ctl, program.called, limit_bytes, ret_reason);
		if (r < 0)
			return r;
	}

	r = runtime_dir_set(ctl);
	if (r >= 0)
		r = preload_set(tagger.path);
	if (r < 0)
		*ret_reason = say("cannot set its environment: %s", strerror(-r));
	return r;
}

static enum usmctl_status not_run(const char *command, int err)
{
	complain("cannot run '%s': %s", command, strerror(-err));
	return err == -ENOENT || err == -ENOTDIR ? USMCTL_RUN_NOT_FOUND : USMCTL_RUN_NOT_EXECUTABLE;
}

enum usmctl_status cmd_run(struct usmctl *ctl)
{
	_cleanup_free_ char *reason = NULL;
	const char *limit = ctl->option[RUN_LIMIT];
	uint64_t limit_bytes = 0;
	char path[PATH_MAX];
	int err;

	if (limit && (usm_parse_size(limit, 1, 0, &limit_bytes) < 0 || limit_bytes > INT64_MAX))
		return usage_error(ctl, "--limit: expected a size such as 512M, or 0");
	err = program_find(ctl->argv[0], path);
	if (err < 0)
		return not_run(ctl->argv[0], err);

	err = prepare(ctl, path, limit_bytes, &reason);
	if (err < 0 && !ctl->option[RUN_OR_UNMANAGED]) {
		complain("'%s' is not run, it would not be managed: %s", ctl->argv[0],
			 reason ?: "out of memory");
		fputs("usmctl: 'usmctl run --or-unmanaged' runs it all the same\n", stderr);
		return USMCTL_RUN_FAILED;
	}
	if (err < 0)
		complain("'%s' runs unmanaged: %s", ctl->argv[0], reason ?: "out of memory");

	/* The connection is closed by exec; output is empty so far. */
	execvp(ctl->argv[0], ctl->argv);
	return not_run(ctl->argv[0], -errno);
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* attach-unit, detach-unit: services that are managed from their next start. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "drop-in.h"
#include "format.h"
#include "lib/cleanup.h"
#include "lib/parse.h"
#include "program.h"
#include "systemd.h"
#include "tagger.h"
#include "unit-files.h"
#include "usmctl.h"

/* A unit that a command is about, and who can be asked about it. */
struct target {
	const char *root;	/* "" or that of --root */
	struct systemd *systemd; /* NULL: files alone */
	struct unit_settings settings;
	char *rule; /* "unit:NAME"; malloc'd */
};

static void target_done(struct target *t)
{
	systemd_close(t->systemd);
	unit_settings_done(&t->settings);
	free(t->rule);
}

static const char *unit_of(const struct target *t)
{
	return t->settings.id;
}

static enum usmctl_status out_of_memory(void)
{
	complain("out of memory");
	return USMCTL_FAILED;
}

/* What can be said of the command line without looking at the unit. */
static enum usmctl_status check_command(struct usmctl *ctl, const char *root)
{
	static const char type[] = ".service";
	const char *name = ctl->argv[0];
	size_t n = strlen(name);

	if (!usm_unit_name_is_valid(name) || n < sizeof(type) ||
	    strcmp(name + n - strlen(type), type) != 0)
		return usage_error(ctl, "'%s' is no service: expected the full name of one, such as "
					"redis-server.service", name);
	if (root && (root[0] != '/' || access(root, F_OK) < 0))
		return usage_error(ctl, "--root: expected the full path of a directory");
	if (!root && geteuid() != 0) {
		complain("only root may change units");
		return USMCTL_FAILED;
	}
	return USMCTL_DONE;
}

/*
 * Opens the target.  must_be: the unit must be there; else its name as it was given is good
 * enough, as what is left of a unit that was removed can be cleaned up.
 */
static enum usmctl_status target_open(struct usmctl *ctl, const char *root, bool must_be,
				      struct target *t)
{
	_cleanup_free_ char *problem = NULL;
	const char *name = ctl->argv[0];
	int r = 0;

	t->root = root && strcmp(root, "/") != 0 ? root : "";
	if (!root && sd_booted() > 0) {
		r = systemd_open(&t->systemd, &problem);
		if (r >= 0)
			r = systemd_unit(t->systemd, name, &t->settings, &problem);
	} else if (must_be) {
		r = unit_files_read(t->root, name, &t->settings, &problem);
	}
	if (r < 0 && (must_be || r != -ENOENT)) {
		complain("%s", problem ?: "out of memory");
		return USMCTL_FAILED;
	}
	if (!t->settings.id)
		t->settings.id = strdup(name);
	t->rule = t->settings.id ? say(USM_RULE_UNIT_PREFIX "%s", t->settings.id) : NULL;
	return t->rule ? USMCTL_DONE : out_of_memory();
}

static int make_plan(struct usmctl *ctl, const struct target *t, struct drop_in *ret,
		     char **ret_reason)
{
	_cleanup_(tagger_done) struct tagger tagger = {};
	_cleanup_free_ char *dir = absolute_path(ctl->runtime_dir);
	struct drop_in_paths paths;
	struct program program;
	int r;

	r = tagger_find(&tagger, ret_reason);
	if (r < 0)
		return r;
	/* In another root it may be another program. */
	if (t->settings.program && !t->root[0]) {
		r = program_inspect(t->settings.program, &program, ret_reason);
		if (r < 0)
			return r;
	}
	paths = (struct drop_in_paths){ .tagger = tagger.path, .tagger_file = tagger.file,
					.runtime_dir = dir,
					.runtime_dir_is_default = ctl->runtime_dir_is_default };
	return drop_in_plan(&t->settings, &paths, ret, ret_reason);
}

/* Where it is attached already: a place, NR_UNIT_PLACES for nowhere, or -errno after a complaint. */
static int find_attached(const struct target *t, enum unit_place wanted)
{
	int found = NR_UNIT_PLACES;

	for (int i = 0; i < NR_UNIT_PLACES; i++) {
		_cleanup_free_ char *path = unit_file_path(t->root, unit_of(t), (enum unit_place)i);
		int state = path ? unit_file_state(path) : -ENOMEM;

		if (state < 0) {
			complain("%s: %s", path ?: unit_of(t), strerror(-state));
			return state;
		}
		if (state == UNIT_FILE_FOREIGN && i == (int)wanted) {
			complain("%s is there, and not of usmctl's making: it is left alone", path);
			return -EEXIST;
		}
		if (state == UNIT_FILE_OURS)
			found = i;
	}
	return found;
}

static int assign(struct usmctl *ctl, const struct target *t, uint64_t limit_bytes, bool runtime,
		  struct reply *ret)
{
	struct json_object *params = params_new();

	params_text(params, "name", t->rule);
	params_text(params, "policy", ctl->option[ATTACH_POLICY]);
	if (ctl->option[ATTACH_LIMIT])
		params_number(params, "limitBytes", limit_bytes);
	/* Whoever's its programs are: root has said so by this command. */
	params_flag(params, "allow", true);
	params_flag(params, "runtime", runtime);
	return usmctl_call(ctl, "Assign", params, ret);
}

/* Another drop-in, or one of a template, may have said something else after ours. */
static void check_in_force(struct target *t, const struct drop_in *d)
{
	_cleanup_(unit_settings_done) struct unit_settings now = {};
	_cleanup_free_ char *problem = NULL;

	if (systemd_unit(t->systemd, unit_of(t), &now, &problem) < 0)
		complain("%s", problem ?: "out of memory");
	else if (!now.preload || strcmp(now.preload, d->preload) != 0)
		complain("LD_PRELOAD of %s is '%s' all the same, another drop-in sets it after ours: "
			 "'systemctl cat %s' shows which", unit_of(t), now.preload ?: "", unit_of(t));
}

static void print_attached(struct usmctl *ctl, const struct target *t, const char *path,
			   const struct drop_in *d, uint64_t unmanaged)
{
	const char *unit = unit_of(t), *option = t->root[0] ? " --root " : "";

	printf("%s: %s%s%s%s.\n", unit, ctl->option[ATTACH_POLICY],
	       ctl->option[ATTACH_LIMIT] ? ", limit " : "", ctl->option[ATTACH_LIMIT] ?: "",
	       ctl->option[ATTACH_RUNTIME] ? ", until the next boot" : "");
	if (d) {
		printf("%s has it managed from its next start.\n", path);
		drop_in_explain(d, stdout);
	} else {
		printf("It was attached already; %s stays as it is.\n", path);
	}
	if (d || unmanaged > 0)
		printf("To have it managed now: systemctl restart %s\n", unit);
	printf("To undo all of this: usmctl detach-unit%s%s %s\n", option, t->root, unit);
}

static enum usmctl_status report(struct usmctl *ctl, const struct target *t, const char *path,
				 const struct drop_in *d, struct reply *reply)
{
	if (!ctl->json)
		print_attached(ctl, t, path, d, json_number(reply->parameters, "unmanaged"));
	reply_done(reply);
	return USMCTL_DONE;
}

/* Attached before, with the drop-in that was right then: only the rule is new. */
static enum usmctl_status attach_again(struct usmctl *ctl, const struct target *t, int place,
				       uint64_t limit_bytes)
{
	_cleanup_free_ char *path = unit_file_path(t->root, unit_of(t), (enum unit_place)place);
	bool runtime = ctl->option[ATTACH_RUNTIME];
	struct reply reply;

	if (runtime != (place == UNIT_PLACE_RUN)) {
		complain("%s is attached %s; 'usmctl detach-unit %s' first", unit_of(t),
			 runtime ? "for good" : "until the next boot", unit_of(t));
		return USMCTL_FAILED;
	}
	if (assign(ctl, t, limit_bytes, runtime, &reply) < 0)
		return USMCTL_FAILED;
	return report(ctl, t, path ?: "the drop-in", NULL, &reply);
}

static enum usmctl_status attach(struct usmctl *ctl, struct target *t, uint64_t limit_bytes)
{
	bool runtime = ctl->option[ATTACH_RUNTIME];
	enum unit_place place = runtime ? UNIT_PLACE_RUN : UNIT_PLACE_ETC;
	_cleanup_free_ char *path = unit_file_path(t->root, unit_of(t), place), *reason = NULL;
	_cleanup_(unit_file_done) struct unit_file file = {};
	_cleanup_(drop_in_done) struct drop_in d = {};
	struct reply reply;
	int r;

	r = find_attached(t, place);
	if (r < 0)
		return USMCTL_FAILED;
	if (r < NR_UNIT_PLACES)
		return attach_again(ctl, t, r, limit_bytes);
	r = path ? make_plan(ctl, t, &d, &reason) : -ENOMEM;
	if (r < 0) {
		complain("%s cannot be managed: %s", unit_of(t), reason ?: "out of memory");
		return USMCTL_FAILED;
	}
	r = unit_file_prepare(path, &d, &file);
	if (r < 0) {
		complain("cannot write %s: %s", path, strerror(-r));
		return USMCTL_FAILED;
	}
	/* All that can fail for a reason that the user can do something about was done by now. */
	if (assign(ctl, t, limit_bytes, runtime, &reply) < 0)
		return USMCTL_FAILED;
	r = unit_file_commit(&file);
	if (r < 0) {
		complain("cannot write %s: %s; 'usmctl unassign %s' takes the rule back", path,
			 strerror(-r), t->rule);
		reply_done(&reply);
		return USMCTL_FAILED;
	}
	if (t->systemd && systemd_reload(t->systemd, &reason) < 0) {
		complain("%s; 'systemctl daemon-reload' does it", reason ?: "out of memory");
		reply_done(&reply);
		return USMCTL_FAILED;
	}
	if (t->systemd)
		check_in_force(t, &d);
	return report(ctl, t, path, &d, &reply);
}

enum usmctl_status cmd_attach_unit(struct usmctl *ctl)
{
	_cleanup_(target_done) struct target t = {};
	const char *policy = ctl->option[ATTACH_POLICY], *limit = ctl->option[ATTACH_LIMIT];
	const char *root = ctl->option[ATTACH_ROOT];
	uint64_t limit_bytes = 0;
	enum usmctl_status status;

	if (!policy || !usm_name_is_valid(policy) || strcmp(policy, "none") == 0)
		return usage_error(ctl, "say under which policy: --policy POLICY");
	if (limit && (usm_parse_size(limit, 1, 0, &limit_bytes) < 0 || limit_bytes > INT64_MAX))
		return usage_error(ctl, "--limit: expected a size such as 512M, or 0");
	status = check_command(ctl, root);
	if (status == USMCTL_DONE)
		status = target_open(ctl, root, true, &t);
	return status == USMCTL_DONE ? attach(ctl, &t, limit_bytes) : status;
}

/* 1: removed, 0: there is none, -errno after a complaint. */
static int remove_files(const struct target *t)
{
	int found = 0;

	for (int i = 0; i < NR_UNIT_PLACES; i++) {
		_cleanup_free_ char *path = unit_file_path(t->root, unit_of(t), (enum unit_place)i);
		int r = path ? unit_file_state(path) : -ENOMEM;

		if (r == UNIT_FILE_FOREIGN) {
			complain("%s is not of usmctl's making: it is left alone", path);
			continue;
		}
		if (r == UNIT_FILE_OURS) {
			r = unit_file_remove(path);
			found = 1;
		}
		if (r < 0) {
			complain("cannot remove %s: %s", path ?: unit_of(t), strerror(-r));
			return r;
		}
	}
	return found;
}

/* 1: it had a rule, 0: it had none that is ours, -errno after a complaint. */
static int unassign(struct usmctl *ctl, const struct target *t)
{
	_cleanup_free_ char *problem = NULL, *error = NULL;
	struct json_object *params = params_new();
	struct reply reply;
	int r;

	params_text(params, "name", t->rule);
	r = usmctl_try(ctl, "Unassign", params, CLIENT_TIMEOUT_MSEC, &reply, &error, &problem);
	if (r >= 0) {
		reply_done(&reply);
		return 1;
	}
	if (error && strcmp(error, "NoSuchAssignment") == 0)
		return 0;
	complain("%s", problem ?: "out of memory");
	/* An administrator's own line was not attach-unit's. */
	if (error && strcmp(error, "NotPermitted") == 0)
		return 0;
	complain("the rule for %s is still there: 'usmctl unassign %s' when usmd runs", t->rule, t->rule);
	return r;
}

enum usmctl_status cmd_detach_unit(struct usmctl *ctl)
{
	_cleanup_(target_done) struct target t = {};
	const char *root = ctl->option[DETACH_ROOT];
	_cleanup_free_ char *reason = NULL;
	enum usmctl_status status;
	int files, rule;

	status = check_command(ctl, root);
	if (status == USMCTL_DONE)
		status = target_open(ctl, root, false, &t);
	if (status != USMCTL_DONE)
		return status;
	/* The file first: it must be possible without usmd. */
	files = remove_files(&t);
	if (files < 0)
		return USMCTL_FAILED;
	if (files > 0 && t.systemd && systemd_reload(t.systemd, &reason) < 0) {
		complain("%s; 'systemctl daemon-reload' does it", reason ?: "out of memory");
		status = USMCTL_FAILED;
	}
	rule = unassign(ctl, &t);
	if (rule < 0)
		return USMCTL_FAILED;
	if (files == 0 && rule == 0) {
		complain("%s is not attached", unit_of(&t));
		return USMCTL_FAILED;
	}
	if (ctl->json)
		puts("{}");
	else
		printf("%s is not attached any more. What runs of it goes on %s; after 'systemctl "
		       "restart %s' nothing of usmd is in it.\n", unit_of(&t),
		       rule > 0 ? "as other rules say, or unmanaged" : "as its rules say", unit_of(&t));
	return status;
}

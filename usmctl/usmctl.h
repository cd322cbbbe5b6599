/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What main.c and the commands share. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "client.h"

#define USMCTL_RUNTIME_DIR "/run/usmd"

enum usmctl_status {
	USMCTL_DONE = 0,
	USMCTL_FAILED = 1,
	USMCTL_USAGE = 2,
	/* Of "run" alone, as env(1) and timeout(1) have it: other values are the command's. */
	USMCTL_RUN_FAILED = 125,
	USMCTL_RUN_NOT_EXECUTABLE = 126,
	USMCTL_RUN_NOT_FOUND = 127,
};

#define USMCTL_OPTIONS_MAX 8

struct usmctl_option {
	const char *name;
	const char *value; /* what the help calls its value; NULL: takes none */
	const char *help;
};

struct usmctl {
	const char *runtime_dir;
	bool runtime_dir_is_default;
	bool json;
	bool color;
	struct client *client; /* connected by the first call */
	/* The command line: */
	const struct usmctl_command *command;
	const char *option[USMCTL_OPTIONS_MAX]; /* as in command->options; "" if without value */
	int argc;                               /* arguments that are no options */
	char **argv;
};

struct usmctl_command {
	const char *name, *verb; /* "swap", "add"; verb NULL: one word */
	int min_args, max_args;  /* max_args < 0: any number, and options end at the first */
	const char *args;
	const char *help;
	const struct usmctl_option *options;
	enum usmctl_status (*run)(struct usmctl *ctl);
	enum usmctl_status usage_status; /* for a wrong command line; 0: USMCTL_USAGE */
};

enum usmctl_status cmd_status(struct usmctl *ctl);
enum usmctl_status cmd_assign(struct usmctl *ctl);
enum usmctl_status cmd_unassign(struct usmctl *ctl);
enum usmctl_status cmd_list_processes(struct usmctl *ctl);
enum usmctl_status cmd_list_free(struct usmctl *ctl);
enum usmctl_status cmd_list_used(struct usmctl *ctl);
enum usmctl_status cmd_list_assignments(struct usmctl *ctl);
enum usmctl_status cmd_list_policies(struct usmctl *ctl);
enum usmctl_status cmd_list_swap(struct usmctl *ctl);
enum usmctl_status cmd_evict(struct usmctl *ctl);
enum usmctl_status cmd_run(struct usmctl *ctl);
enum usmctl_status cmd_attach_unit(struct usmctl *ctl);
enum usmctl_status cmd_detach_unit(struct usmctl *ctl);
enum usmctl_status cmd_swap_add(struct usmctl *ctl);
enum usmctl_status cmd_swap_remove(struct usmctl *ctl);
enum usmctl_status cmd_policy_load(struct usmctl *ctl);
enum usmctl_status cmd_policy_unload(struct usmctl *ctl);
enum usmctl_status cmd_policy_reload(struct usmctl *ctl);
enum usmctl_status cmd_monitor(struct usmctl *ctl);
enum usmctl_status cmd_reload(struct usmctl *ctl);

/* Positions in the option tables, which main.c has. */
enum { ASSIGN_ALLOC, ASSIGN_SWAP, ASSIGN_LIMIT, ASSIGN_RUNTIME };
enum { FRAMES_ALL, FRAMES_OFFSET, FRAMES_COUNT, FRAMES_PROCESS };
enum { EVICT_PAGES, EVICT_SIZE, EVICT_ALL };
enum { RUN_POLICY, RUN_LIMIT, RUN_OR_UNMANAGED };
enum { ATTACH_POLICY, ATTACH_LIMIT, ATTACH_RUNTIME, ATTACH_ROOT };
enum { DETACH_ROOT };
enum { SWAP_PRIORITY };
enum { SWAP_NO_WAIT };
enum { MONITOR_COUNT };

/* Prints "usmctl: ..." on stderr. */
void complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The same and how to get help; returns the command's status for a wrong command line. */
enum usmctl_status usage_error(const struct usmctl *ctl, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/*
 * Calls and waits.  params are taken over.  *ret is the reply, without error; the
 * caller calls reply_done.  Returns 0, or -errno after *ret_problem has got a
 * malloc'd sentence; ret_error, if not NULL, gets the last part of a Varlink
 * error's name ("NoSuchSwap"), malloc'd, or NULL if it was none.
 */
int usmctl_try(struct usmctl *ctl, const char *method, struct json_object *params, int timeout_msec,
	       struct reply *ret, char **ret_error, char **ret_problem);
/* The same for a command: complains itself, and prints the reply with --json. */
int usmctl_call(struct usmctl *ctl, const char *method, struct json_object *params,
		struct reply *ret);
int usmctl_call_slow(struct usmctl *ctl, const char *method, struct json_object *params,
		     struct reply *ret);
/* A call whose reply says nothing but that it is done. */
enum usmctl_status usmctl_do(struct usmctl *ctl, const char *method, struct json_object *params);
void print_json(struct json_object *o);

/* Parameters: {} or an object with one more member; out of memory ends the program. */
struct json_object *params_new(void);
void params_text(struct json_object *params, const char *name, const char *value);
void params_number(struct json_object *params, const char *name, uint64_t value);
void params_flag(struct json_object *params, const char *name, bool value);
/* "pid" if word is a number, else "name". */
void params_process(struct json_object *params, const char *word);
/* A file's absolute path, or the word itself where there is none. */
char *absolute_path(const char *word);

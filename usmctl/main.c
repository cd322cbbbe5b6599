/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The command table, the command line, help. */
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/cleanup.h"
#include "usmctl.h"

#ifndef USM_VERSION
#define USM_VERSION "unknown"
#endif

static const struct usmctl_option assign_options[] = {
	[ASSIGN_ALLOC] = { "alloc", NULL, "the allocation policy only" },
	[ASSIGN_SWAP] = { "swap", NULL, "the swap policy only" },
	[ASSIGN_LIMIT] = { "limit", "SIZE", "at most so much memory: 512M, 2G; 0: no limit" },
	[ASSIGN_RUNTIME] = { "runtime", NULL, "until the next boot only" },
	{}
};
static const struct usmctl_option free_options[] = {
	[FRAMES_ALL] = { "all", NULL, "all rows" },
	[FRAMES_OFFSET] = { "offset", "N", "begin with row N, counted from 0" },
	[FRAMES_COUNT] = { "count", "N", "so many rows (50)" },
	{}
};
static const struct usmctl_option used_options[] = {
	[FRAMES_ALL] = { "all", NULL, "all rows" },
	[FRAMES_OFFSET] = { "offset", "N", "begin with row N, counted from 0" },
	[FRAMES_COUNT] = { "count", "N", "so many rows (50)" },
	[FRAMES_PROCESS] = { "process", "NAME|PID", "frames of this process, or of all of that name" },
	{}
};
static const struct usmctl_option evict_options[] = {
	[EVICT_PAGES] = { "pages", "N", "so many pages" },
	[EVICT_SIZE] = { "size", "SIZE", "so much memory: 64M, 1G" },
	[EVICT_ALL] = { "all", NULL, "all that can leave" },
	{}
};
static const struct usmctl_option run_options[] = {
	[RUN_POLICY] = { "policy", "POLICY", "assign this policy first, until the next boot" },
	[RUN_LIMIT] = { "limit", "SIZE", "at most so much memory" },
	[RUN_OR_UNMANAGED] = { "or-unmanaged", NULL, "run it unmanaged where it cannot be managed" },
	{}
};
static const struct usmctl_option attach_options[] = {
	[ATTACH_POLICY] = { "policy", "POLICY", "the policy of the service's programs" },
	[ATTACH_LIMIT] = { "limit", "SIZE", "at most so much memory for each" },
	[ATTACH_RUNTIME] = { "runtime", NULL, "until the next boot only" },
	[ATTACH_ROOT] = { "root", "DIR", "the unit of a system that lies there, without systemd" },
	{}
};
static const struct usmctl_option detach_options[] = {
	[DETACH_ROOT] = { "root", "DIR", "the unit of a system that lies there, without systemd" },
	{}
};
static const struct usmctl_option swap_add_options[] = {
	[SWAP_PRIORITY] = { "priority", "N", "higher is used first (0)" },
	{}
};
static const struct usmctl_option swap_remove_options[] = {
	[SWAP_NO_WAIT] = { "no-wait", NULL, "do not wait until its pages are back" },
	{}
};
static const struct usmctl_option monitor_options[] = {
	[MONITOR_COUNT] = { "count", "N", "end after N lines" },
	{}
};
static const struct usmctl_option no_options[] = { {} };

static const struct usmctl_command commands[] = {
	{ "status", NULL, 0, 0, "", "what runs, and how full it is", no_options, cmd_status, 0 },
	{ "assign", NULL, 1, 2, "NAME [POLICY]", "put programs of a name, unit or user under a policy",
	  assign_options, cmd_assign, 0 },
	{ "unassign", NULL, 1, 1, "NAME", "take that back", no_options, cmd_unassign, 0 },
	{ "list", "processes", 0, 0, "", "managed processes", no_options, cmd_list_processes, 0 },
	{ "list", "free", 0, 0, "", "free frames", free_options, cmd_list_free, 0 },
	{ "list", "used", 0, 0, "", "used frames, next victim first", used_options, cmd_list_used,
	  0 },
	{ "list", "assignments", 0, 0, "", "which policy is for which name", no_options,
	  cmd_list_assignments, 0 },
	{ "list", "policies", 0, 0, "", "loaded policies", no_options, cmd_list_policies, 0 },
	{ "list", "swap", 0, 0, "", "swap devices", no_options, cmd_list_swap, 0 },
	{ "evict", NULL, 1, 1, "NAME|PID", "make pages leave", evict_options, cmd_evict, 0 },
	{ "run", NULL, 1, -1, "-- COMMAND [ARGUMENT...]", "run a program managed", run_options,
	  cmd_run, USMCTL_RUN_FAILED },
	{ "attach-unit", NULL, 1, 1, "UNIT.service", "have a service managed from its next start",
	  attach_options, cmd_attach_unit, 0 },
	{ "detach-unit", NULL, 1, 1, "UNIT.service", "take that back", detach_options,
	  cmd_detach_unit, 0 },
	{ "swap", "add", 2, 2, "FILE SIZE", "swap to a file too", swap_add_options, cmd_swap_add,
	  0 },
	{ "swap", "remove", 1, 1, "FILE", "stop to swap to it, bring its pages back",
	  swap_remove_options, cmd_swap_remove, 0 },
	{ "policy", "load", 1, 1, "FILE", "load a policy's code", no_options, cmd_policy_load, 0 },
	{ "policy", "unload", 1, 1, "POLICY", "unload it", no_options, cmd_policy_unload, 0 },
	{ "policy", "reload", 1, 1, "POLICY", "load its file again", no_options, cmd_policy_reload,
	  0 },
	{ "monitor", NULL, 0, 0, "", "a line each second", monitor_options, cmd_monitor, 0 },
	{ "reload", NULL, 0, 0, "", "read the configuration again", no_options, cmd_reload, 0 },
};

static const struct usmctl_option global_options[] = {
	{ "json", NULL, "print usmd's replies as they are" },
	{ "runtime-dir", "DIR", "talk to the usmd of this directory (" USMCTL_RUNTIME_DIR ")" },
	{ "no-color", NULL, "no bold text on a terminal" },
	{ "help", NULL, "this text, or that of a command" },
	{ "version", NULL, "print the version" },
	{}
};
enum { GLOBAL_JSON, GLOBAL_RUNTIME_DIR, GLOBAL_NO_COLOR, GLOBAL_HELP, GLOBAL_VERSION, NR_GLOBAL };

void complain(const char *fmt, ...)
{
	va_list ap;

	fputs("usmctl: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

static void print_command_name(FILE *f, const struct usmctl_command *c)
{
	fprintf(f, "%s%s%s", c->name, c->verb ? " " : "", c->verb ?: "");
}

enum usmctl_status usage_error(const struct usmctl *ctl, const char *fmt, ...)
{
	va_list ap;

	fputs("usmctl: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputs("; see 'usmctl ", stderr);
	if (ctl->command) {
		print_command_name(stderr, ctl->command);
		fputc(' ', stderr);
	}
	fputs("--help'\n", stderr);
	return ctl->command && ctl->command->usage_status ? ctl->command->usage_status :
							    USMCTL_USAGE;
}

static void print_options(const struct usmctl_option *options)
{
	for (const struct usmctl_option *o = options; o->name; o++) {
		char text[64];

		snprintf(text, sizeof(text), "--%s%s%s", o->name, o->value ? " " : "",
			 o->value ?: "");
		printf("  %-22s %s\n", text, o->help);
	}
}

static void print_help(void)
{
	puts("Usage: usmctl [OPTION...] COMMAND ...\n\nControls usmd, which pages the memory of "
	     "programs by policies.\n\nCommands:");
	for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
		char text[64];

		snprintf(text, sizeof(text), "%s%s%s %s", commands[i].name,
			 commands[i].verb ? " " : "", commands[i].verb ?: "", commands[i].args);
		printf("  %-30s %s\n", text, commands[i].help);
	}
	puts("\nOptions:");
	print_options(global_options);
	puts("\n'usmctl COMMAND --help' has the command's own options; usmctl(1) has examples.");
}

static void print_command_help(const struct usmctl_command *c)
{
	fputs("Usage: usmctl ", stdout);
	print_command_name(stdout, c);
	printf("%s%s%s\n\n%s\n", c->options->name ? " [OPTION...]" : "", c->args[0] ? " " : "",
	       c->args, c->help);
	puts("\nOptions:");
	print_options(c->options);
	print_options(global_options);
}

/* The command that the words begin, or NULL after a complaint. */
static const struct usmctl_command *command_find(const struct usmctl *ctl, int argc, char **argv)
{
	bool known = false;

	for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
		const struct usmctl_command *c = &commands[i];

		if (strcmp(c->name, argv[0]) != 0)
			continue;
		known = true;
		if (!c->verb || (argc > 1 && strcmp(c->verb, argv[1]) == 0))
			return c;
	}
	if (!known) {
		usage_error(ctl, "there is no command '%s'", argv[0]);
		return NULL;
	}

	fprintf(stderr, "usmctl: say which:");
	for (unsigned i = 0; i < ARRAY_SIZE(commands); i++)
		if (strcmp(commands[i].name, argv[0]) == 0)
			fprintf(stderr, " '%s %s'", commands[i].name, commands[i].verb);
	fputc('\n', stderr);
	return NULL;
}

static bool global_option(struct usmctl *ctl, int i, const char *value)
{
	switch (i) {
	case GLOBAL_JSON:
		ctl->json = true;
		return false;
	case GLOBAL_RUNTIME_DIR:
		ctl->runtime_dir = value;
		return false;
	case GLOBAL_NO_COLOR:
		ctl->color = false;
		return false;
	case GLOBAL_VERSION:
		puts("usmctl " USM_VERSION);
		return true;
	case GLOBAL_HELP:
		if (ctl->command)
			print_command_help(ctl->command);
		else
			print_help();
		return true;
	}
	return false;
}

/*
 * Takes the options of argv[1..]: the global ones, and own, which may be NULL.
 * Leaves optind at the first argument.  1: go on; 0: all is done; -1 after a
 * complaint.
 */
static int take_options(struct usmctl *ctl, const struct usmctl_option *own, bool stop_early,
			int argc, char **argv)
{
	struct option longs[NR_GLOBAL + USMCTL_OPTIONS_MAX + 1] = {};
	unsigned n = 0;
	int c;

	for (int i = 0; i < NR_GLOBAL; i++)
		longs[n++] = (struct option){ global_options[i].name,
					      global_options[i].value ? required_argument :
									no_argument,
					      NULL, i };
	for (int i = 0; own && own[i].name; i++)
		longs[n++] = (struct option){ own[i].name,
					      own[i].value ? required_argument : no_argument, NULL,
					      NR_GLOBAL + i };

	optind = 0; /* getopt starts anew */
	opterr = 0;
	while ((c = getopt_long(argc, argv, stop_early ? "+:h" : ":h", longs, NULL)) >= 0) {
		if (c == 'h')
			c = GLOBAL_HELP;
		if (c == ':') {
			usage_error(ctl, "'%s' needs a value", argv[optind - 1]);
			return -1;
		}
		if (c == '?') {
			usage_error(ctl, "unknown option '%s'", argv[optind - 1]);
			return -1;
		}
		if (c >= NR_GLOBAL)
			ctl->option[c - NR_GLOBAL] = optarg ?: "";
		else if (global_option(ctl, c, optarg))
			return 0;
	}
	return 1;
}

static void choose_runtime_dir(struct usmctl *ctl)
{
	if (!ctl->runtime_dir)
		ctl->runtime_dir = getenv("USMD_RUNTIME_DIR");
	if (!ctl->runtime_dir || !ctl->runtime_dir[0])
		ctl->runtime_dir = USMCTL_RUNTIME_DIR;
	ctl->runtime_dir_is_default = strcmp(ctl->runtime_dir, USMCTL_RUNTIME_DIR) == 0;
}

/* argv[0] is the last word of the command's name. */
static enum usmctl_status command_run(struct usmctl *ctl, int argc, char **argv)
{
	const struct usmctl_command *c = ctl->command;
	int r;

	r = take_options(ctl, c->options, c->max_args < 0, argc, argv);
	if (r < 0)
		return c->usage_status ?: USMCTL_USAGE;
	if (r == 0)
		return USMCTL_DONE;
	ctl->argc = argc - optind;
	ctl->argv = argv + optind;
	if (ctl->argc < c->min_args)
		return usage_error(ctl, "expected %s", c->args);
	if (c->max_args >= 0 && ctl->argc > c->max_args)
		return usage_error(ctl, "unexpected argument '%s'", ctl->argv[c->max_args]);

	choose_runtime_dir(ctl);
	return c->run(ctl);
}

int main(int argc, char **argv)
{
	struct usmctl ctl = { .color = isatty(STDOUT_FILENO) && !getenv("NO_COLOR") };
	enum usmctl_status status;
	int r, words;

	r = take_options(&ctl, NULL, true, argc, argv);
	if (r <= 0)
		return r < 0 ? USMCTL_USAGE : USMCTL_DONE;
	if (optind == argc)
		return (int)usage_error(&ctl, "no command");

	ctl.command = command_find(&ctl, argc - optind, argv + optind);
	if (!ctl.command)
		return USMCTL_USAGE;
	words = optind + (ctl.command->verb ? 1 : 0);
	status = command_run(&ctl, argc - words, argv + words);
	client_free(ctl.client);

	/* A full disk must not look like success. */
	if (fflush(stdout) != 0 && status == USMCTL_DONE) {
		complain("cannot write the output");
		status = USMCTL_FAILED;
	}
	return (int)status;
}

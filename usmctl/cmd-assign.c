/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* assign, unassign. */
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <systemd/sd-login.h>
#include <unistd.h>

#include "format.h"
#include "lib/cleanup.h"
#include "lib/parse.h"
#include "usmctl.h"

/* Running programs to write a command line for; more of them would only scroll. */
#define LINES_MAX 5u
/* Of a command line; a longer one is not repeated. */
#define COMMAND_MAX 4096u

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

/* Is it a program of that name, as usmd sees it: by its file or by argv[0]? */
static bool process_has_name(const char *pid, const char *name, const char *argv0)
{
	char path[64], exe[PATH_MAX];
	ssize_t n;

	if (strcmp(base_name(argv0), name) == 0)
		return true;
	snprintf(path, sizeof(path), "/proc/%.20s/exe", pid);
	n = readlink(path, exe, sizeof(exe) - 1);
	if (n < 0)
		return false;
	exe[n] = '\0';
	return strcmp(base_name(exe), name) == 0;
}

/* The arguments with a NUL after each; their length, 0 if there are none or too many. */
static size_t read_command(const char *pid, char *buf, size_t size)
{
	char path[64];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%.20s/cmdline", pid);
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return 0;
	n = read(fd, buf, size);
	return n > 0 && (size_t)n < size && buf[n - 1] == '\0' ? (size_t)n : 0;
}

static bool is_managed(struct json_object *processes, uint64_t pid)
{
	for (size_t i = 0; json_object_is_type(processes, json_type_array) &&
			   i < json_object_array_length(processes); i++)
		if (json_number(json_object_array_get_idx(processes, i), "pid") == pid)
			return true;
	return false;
}

static void print_run_prefix(const struct usmctl *ctl)
{
	fputs("  usmctl ", stdout);
	if (!ctl->runtime_dir_is_default) {
		fputs("--runtime-dir ", stdout);
		print_quoted(stdout, ctl->runtime_dir);
		putchar(' ');
	}
	fputs("run -- ", stdout);
}

/* The system's service that it belongs to, malloc'd; NULL: it was started otherwise. */
static char *service_of(pid_t pid)
{
	static const char type[] = ".service", user_manager[] = "user@";
	char *unit = NULL;
	size_t n;

	if (sd_booted() <= 0 || sd_pid_get_unit(pid, &unit) < 0)
		return NULL;
	n = strlen(unit);
	if (n > strlen(type) && strcmp(unit + n - strlen(type), type) == 0 &&
	    strncmp(unit, user_manager, strlen(user_manager)) != 0)
		return unit;
	free(unit);
	return NULL;
}

static void print_attach_line(const char *unit, const char *policy)
{
	fputs("  usmctl attach-unit ", stdout);
	print_quoted(stdout, unit);
	fputs(" --policy ", stdout);
	print_quoted(stdout, policy ?: "POLICY");
}

/* A line for each running program of that name which is not in processes. */
static unsigned print_run_lines(const struct usmctl *ctl, const char *name, const char *policy,
				struct json_object *processes)
{
	_cleanup_closedir_ DIR *proc = opendir("/proc");
	_cleanup_free_ char *last = NULL;
	unsigned lines = 0;
	struct dirent *d;

	while (proc && lines < LINES_MAX && (d = readdir(proc))) {
		char command[COMMAND_MAX];
		size_t n;

		if (!isdigit((unsigned char)d->d_name[0]) ||
		    is_managed(processes, strtoull(d->d_name, NULL, 10)))
			continue;
		n = read_command(d->d_name, command, sizeof(command));
		if (n == 0 || !process_has_name(d->d_name, name, command))
			continue;
		_cleanup_free_ char *service = service_of((pid_t)strtoul(d->d_name, NULL, 10));

		/* A service has many processes, mostly side by side. */
		if (service && last && strcmp(service, last) == 0)
			continue;
		if (service) {
			print_attach_line(service, policy);
			printf("   # now process %s\n", d->d_name);
			free(last);
			last = TAKE_PTR(service);
			lines++;
			continue;
		}
		print_run_prefix(ctl);
		for (size_t i = 0; i < n; i += strlen(command + i) + 1) {
			if (i > 0)
				putchar(' ');
			print_quoted(stdout, command + i);
		}
		printf("   # now process %s\n", d->d_name);
		lines++;
	}
	return lines;
}

static void explain_unmanaged_of(const char *name, const char *policy, uint64_t unmanaged)
{
	const char *what;
	bool is_unit = usm_rule_parse(name, &what) == USM_RULE_UNIT;

	printf("%" PRIu64 " running %s of that %s %s not managed; ", unmanaged,
	       unmanaged == 1 ? "program" : "programs", is_unit ? "unit" : "user",
	       unmanaged == 1 ? "is" : "are");
	if (is_unit) {
		puts("for those of a service, as root:");
		print_attach_line(what, policy);
		putchar('\n');
	} else {
		puts("programs that are started by 'usmctl run' are.");
	}
}

static void explain_unmanaged(struct usmctl *ctl, const char *name, const char *policy,
			      uint64_t unmanaged)
{
	_cleanup_free_ char *problem = NULL;
	struct reply reply = {};
	unsigned lines;

	printf("%" PRIu64 " running %s of that name %s not managed; started like this %s:\n",
	       unmanaged, unmanaged == 1 ? "program" : "programs", unmanaged == 1 ? "is" : "are",
	       unmanaged == 1 ? "it is" : "they are");
	/* Without the list, lines for managed ones may be printed too: they do no harm. */
	(void)usmctl_try(ctl, "ListProcesses", NULL, CLIENT_TIMEOUT_MSEC, &reply, NULL, &problem);
	lines = print_run_lines(ctl, name, policy,
				reply.parameters ?
					json_object_object_get(reply.parameters, "processes") :
					NULL);
	if (lines == 0) {
		print_run_prefix(ctl);
		printf("%s\n", name);
	}
	reply_done(&reply);
}

enum usmctl_status cmd_assign(struct usmctl *ctl)
{
	const char *name = ctl->argv[0], *policy = ctl->argc > 1 ? ctl->argv[1] : NULL;
	const char *limit = ctl->option[ASSIGN_LIMIT];
	struct json_object *params;
	struct reply reply;
	uint64_t bytes = 0, taken_over, unmanaged;

	if (!policy && !limit)
		return usage_error(ctl, "say which POLICY, or --limit SIZE, or both");
	if (usm_rule_parse(name, NULL) < 0)
		return usage_error(ctl, "'%s' is no program's name: expected the last part of its "
					"path, without spaces, or unit:NAME.service, or user:NAME", name);
	if (ctl->option[ASSIGN_ALLOC] && ctl->option[ASSIGN_SWAP])
		return usage_error(ctl, "--alloc and --swap exclude each other; without them it is "
					"both");
	if (limit && (usm_parse_size(limit, 1, 0, &bytes) < 0 || bytes > INT64_MAX))
		return usage_error(ctl, "--limit: expected a size such as 512M, or 0");

	params = params_new();
	params_text(params, "name", name);
	if (policy)
		params_text(params, "policy", policy);
	if (ctl->option[ASSIGN_ALLOC] || ctl->option[ASSIGN_SWAP])
		params_text(params, "role", ctl->option[ASSIGN_ALLOC] ? "alloc" : "swap");
	if (limit)
		params_number(params, "limitBytes", bytes);
	params_flag(params, "runtime", ctl->option[ASSIGN_RUNTIME]);
	if (usmctl_call(ctl, "Assign", params, &reply) < 0)
		return USMCTL_FAILED;

	taken_over = json_number(reply.parameters, "takenOver");
	unmanaged = json_number(reply.parameters, "unmanaged");
	reply_done(&reply);
	if (ctl->json)
		return USMCTL_DONE;

	printf("%s: %s%s%s%s, %s.\n", name, policy ?: "", policy && limit ? ", " : "",
	       limit ? "limit " : "", limit ?: "",
	       ctl->option[ASSIGN_RUNTIME] ? "until the next boot" : "kept across restarts");
	printf("%" PRIu64 " running %s taken over.\n", taken_over,
	       taken_over == 1 ? "process was" : "processes were");
	if (unmanaged > 0 && usm_rule_parse(name, NULL) == USM_RULE_PROCESS)
		explain_unmanaged(ctl, name, policy, unmanaged);
	else if (unmanaged > 0)
		explain_unmanaged_of(name, policy, unmanaged);
	return USMCTL_DONE;
}

enum usmctl_status cmd_unassign(struct usmctl *ctl)
{
	struct json_object *params = params_new();
	enum usmctl_status status;

	params_text(params, "name", ctl->argv[0]);
	status = usmctl_do(ctl, "Unassign", params);
	if (status == USMCTL_DONE && !ctl->json)
		printf("Nothing is assigned to %s any more.\n", ctl->argv[0]);
	return status;
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* list processes, free, used, assignments, policies, swap. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "format.h"
#include "lib/attach.h"
#include "lib/cleanup.h"
#include "lib/parse.h"
#include "usmctl.h"

/* Rows when nothing else is said: what fits a screen. */
#define ROWS_DEFAULT 50u

/* One kind of list: a method, the array in its reply, and how an item becomes a row. */
struct list_kind {
	const char *method, *key;
	const char *const *titles;
	unsigned nr_titles;
	void (*row)(struct table *t, struct json_object *item);
};

/*
 * Fetches count items from offset on, in as many calls as it takes, into t (NULL
 * with --json, which prints the replies).  Takes params over.  Returns 0 or
 * -errno after a complaint; *ret_total: how many there are in all.
 */
static int fetch(struct usmctl *ctl, const struct list_kind *kind, struct json_object *params,
		 uint64_t offset, uint64_t count, struct table *t, uint64_t *ret_total)
{
	int err = 0;

	for (;;) {
		struct json_object *items;
		struct reply reply;
		size_t n;

		params_number(params, "offset", offset);
		params_number(params, "count", count);
		err = usmctl_call(ctl, kind->method, json_object_get(params), &reply);
		if (err < 0)
			break;
		items = json_object_object_get(reply.parameters, kind->key);
		n = json_object_is_type(items, json_type_array) ? json_object_array_length(items) :
								  0;
		for (size_t i = 0; t && i < n; i++)
			kind->row(t, json_object_array_get_idx(items, i));
		*ret_total = json_number(reply.parameters, "total");
		reply_done(&reply);

		offset += n;
		count -= MIN(count, (uint64_t)n);
		if (n == 0 || count == 0 || offset >= *ret_total)
			break;
	}
	json_object_put(params);
	return err;
}

static enum usmctl_status list(struct usmctl *ctl, const struct list_kind *kind,
			       struct json_object *params, uint64_t offset, uint64_t count)
{
	struct table *t = ctl->json ? NULL : table_new(kind->titles, kind->nr_titles);
	uint64_t total = 0;
	int err;

	err = fetch(ctl, kind, params, offset, count, t, &total);
	if (err >= 0 && t) {
		table_print(t, stdout, ctl->color);
		if (offset + MIN(count, total) < total)
			fprintf(stderr, "%" PRIu64 " in all; --all or --offset shows the others.\n",
				total);
	}
	table_free(t);
	return err < 0 ? USMCTL_FAILED : USMCTL_DONE;
}

/* Seconds since the process started, 0 if it cannot be told. */
static double process_age(uint64_t pid)
{
	unsigned long long start;
	char path[64], line[1024];
	struct timespec now;
	const char *p;
	double age;

	snprintf(path, sizeof(path), "/proc/%" PRIu64 "/stat", pid);
	_cleanup_fclose_ FILE *f = fopen(path, "re");

	if (!f || !fgets(line, sizeof(line), f))
		return 0;
	/* The name, field 2, may hold anything; start, field 22, is in clock ticks since boot. */
	p = strrchr(line, ')');
	if (!p || sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d "
				"%*d %*d %llu", &start) != 1)
		return 0;
	clock_gettime(CLOCK_BOOTTIME, &now);
	age = (double)now.tv_sec + (double)now.tv_nsec / 1e9 -
	      (double)start / (double)sysconf(_SC_CLK_TCK);
	return age > 0 ? age : 0;
}

static void process_row(struct table *t, struct json_object *p)
{
	double age = process_age(json_number(p, "pid"));
	const char *reason = json_text(p, "unevictableReason");

	table_cell(t, "%s", json_text(p, "name"));
	table_cell(t, "%" PRIu64, json_number(p, "pid"));
	table_cell(t, "%s", json_text(p, "policy"));
	table_cell(t, "%" PRIu64, json_number(p, "resident"));
	table_cell(t, "%" PRIu64, json_number(p, "swapped"));
	if (json_number(p, "limit") > 0)
		table_cell(t, "%" PRIu64, json_number(p, "limit"));
	else
		table_cell(t, "-");
	table_cell(t, "%" PRIu64, json_number(p, "faults"));
	/* The mean of its whole life: usmd keeps no rates. */
	if (age > 0)
		table_cell(t, "%.1f", (double)json_number(p, "faults") / age);
	else
		table_cell(t, "-");
	table_cell(t, "%" PRIu64, json_number(p, "faultUsecP50"));
	table_cell(t, "%" PRIu64, json_number(p, "faultUsecP99"));
	table_cell(t, "%" PRIu64, json_number(p, "faultUsecMax"));
	table_cell(t, "%" PRIu64, json_number(p, "unevictable"));
	table_cell(t, "%s", reason);
}

enum usmctl_status cmd_list_processes(struct usmctl *ctl)
{
	static const char *const titles[] = {
		"NAME", ">PID", "POLICY", ">RESIDENT", ">SWAPPED", ">LIMIT", ">FAULTS",
		">FAULTS/S", ">P50us", ">P99us", ">MAXus", ">UNEVICTABLE", "WHY",
	};
	static const struct list_kind kind = { "ListProcesses", "processes", titles,
					       ARRAY_SIZE(titles), process_row };

	return list(ctl, &kind, params_new(), 0, UINT64_MAX);
}

static enum usmctl_status list_frames(struct usmctl *ctl, const struct list_kind *kind,
				      const char *state, const char *process)
{
	struct json_object *params;
	uint64_t offset = 0, count = ROWS_DEFAULT;

	if (ctl->option[FRAMES_ALL] && (ctl->option[FRAMES_OFFSET] || ctl->option[FRAMES_COUNT]))
		return usage_error(ctl, "--all goes with neither --offset nor --count");
	if (ctl->option[FRAMES_OFFSET] &&
	    usm_parse_u64(ctl->option[FRAMES_OFFSET], 0, INT64_MAX, &offset) < 0)
		return usage_error(ctl, "--offset: expected a number");
	if (ctl->option[FRAMES_COUNT] &&
	    usm_parse_u64(ctl->option[FRAMES_COUNT], 1, INT64_MAX, &count) < 0)
		return usage_error(ctl, "--count: expected a number from 1 on");
	if (ctl->option[FRAMES_ALL])
		count = UINT64_MAX;

	params = params_new();
	params_text(params, "state", state);
	if (process)
		params_process(params, process);
	return list(ctl, kind, params, offset, count);
}

static void free_frame_row(struct table *t, struct json_object *f)
{
	table_cell(t, "0x%" PRIx64, json_number(f, "frame"));
}

enum usmctl_status cmd_list_free(struct usmctl *ctl)
{
	static const char *const titles[] = { ">FRAME" };
	static const struct list_kind kind = { "ListFrames", "frames", titles, ARRAY_SIZE(titles),
					       free_frame_row };

	return list_frames(ctl, &kind, "free", NULL);
}

static void used_frame_row(struct table *t, struct json_object *f)
{
	uint64_t msec = json_number(f, "ageMsec");

	table_cell(t, "0x%" PRIx64, json_number(f, "frame"));
	table_cell(t, "0x%" PRIx64, json_number(f, "addr"));
	table_cell(t, "%" PRIu64, json_number(f, "pid"));
	table_cell(t, "%s", json_text(f, "name"));
	table_cell(t, "%" PRIu64 ".%03" PRIu64, msec / 1000, msec % 1000);
}

enum usmctl_status cmd_list_used(struct usmctl *ctl)
{
	static const char *const titles[] = { ">FRAME", ">ADDRESS", ">PID", "NAME", ">AGE(s)" };
	static const struct list_kind kind = { "ListFrames", "frames", titles, ARRAY_SIZE(titles),
					       used_frame_row };

	return list_frames(ctl, &kind, "used", ctl->option[FRAMES_PROCESS]);
}

static void assignment_row(struct table *t, struct json_object *a)
{
	uint64_t limit = json_number(a, "limitBytes"), line = json_number(a, "line");
	const char *file = json_text(a, "file");
	char size[32];

	table_cell(t, "%s", json_text(a, "name"));
	table_cell(t, "%s", json_text(a, "allocPolicy"));
	table_cell(t, "%s", json_text(a, "swapPolicy"));
	table_cell(t, "%s", limit > 0 ? usm_format_bytes(size, sizeof(size), limit) : "-");
	if (file[0] && line > 0)
		table_cell(t, "%s:%" PRIu64, file, line);
	else
		table_cell(t, "%s", file);
}

enum usmctl_status cmd_list_assignments(struct usmctl *ctl)
{
	static const char *const titles[] = { "NAME", "ALLOCATION", "SWAP", ">LIMIT", "FROM" };
	static const struct list_kind kind = { "ListAssignments", "assignments", titles,
					       ARRAY_SIZE(titles), assignment_row };

	return list(ctl, &kind, params_new(), 0, UINT64_MAX);
}

static void policy_row(struct table *t, struct json_object *p)
{
	bool alloc = json_flag(p, "alloc"), swap = json_flag(p, "swap");

	table_cell(t, "%s", json_text(p, "name"));
	table_cell(t, "%s", alloc && swap ? "alloc,swap" : alloc ? "alloc" : swap ? "swap" : "");
	table_cell(t, "%s", json_flag(p, "setAside") ? "set aside" : "ready");
	table_cell(t, "%" PRIu64, json_number(p, "processes"));
	table_cell(t, "%" PRIu64, json_number(p, "allocs"));
	table_cell(t, "%" PRIu64, json_number(p, "errors"));
	table_cell(t, "%" PRIu64, json_number(p, "decisionNsecMean"));
	table_cell(t, "%" PRIu64, json_number(p, "decisionNsecMax"));
	table_cell(t, "%s", json_text(p, "file"));
}

enum usmctl_status cmd_list_policies(struct usmctl *ctl)
{
	static const char *const titles[] = { "NAME", "KIND", "STATE", ">PROCESSES", ">ALLOCS",
					      ">ERRORS", ">MEANns", ">MAXns", "FILE" };
	static const struct list_kind kind = { "ListPolicies", "policies", titles,
					       ARRAY_SIZE(titles), policy_row };

	return list(ctl, &kind, params_new(), 0, UINT64_MAX);
}

static void swap_row(struct table *t, struct json_object *s)
{
	char size[32], used[32];

	table_cell(t, "%s", json_text(s, "path"));
	table_cell(t, "%s", usm_format_bytes(size, sizeof(size),
					     json_number(s, "slots") * USM_PAGE_SIZE));
	table_cell(t, "%s", usm_format_bytes(used, sizeof(used),
					     json_number(s, "used") * USM_PAGE_SIZE));
	table_cell(t, "%" PRId64,
		   json_object_get_int64(json_object_object_get(s, "priority")));
	table_cell(t, "%" PRIu64, json_number(s, "reads"));
	table_cell(t, "%" PRIu64, json_number(s, "writes"));
	table_cell(t, "%" PRIu64, json_number(s, "errors"));
	table_cell(t, "%s%s%s", json_flag(s, "uring") ? "io_uring" : "pread",
		   json_flag(s, "direct") ? ",direct" : "",
		   json_flag(s, "draining") ? ",being removed" : "");
}

enum usmctl_status cmd_list_swap(struct usmctl *ctl)
{
	static const char *const titles[] = { "FILE", ">SIZE", ">USED", ">PRIORITY", ">READS",
					      ">WRITES", ">ERRORS", "STATE" };
	struct json_object *swaps;
	struct reply reply;
	struct table *t;

	if (usmctl_call(ctl, "ListSwaps", NULL, &reply) < 0)
		return USMCTL_FAILED;
	if (!ctl->json) {
		swaps = json_object_object_get(reply.parameters, "swaps");
		t = table_new(titles, ARRAY_SIZE(titles));
		for (size_t i = 0;
		     json_object_is_type(swaps, json_type_array) && i < json_object_array_length(swaps);
		     i++)
			swap_row(t, json_object_array_get_idx(swaps, i));
		table_print(t, stdout, ctl->color);
		table_free(t);
	}
	reply_done(&reply);
	return USMCTL_DONE;
}

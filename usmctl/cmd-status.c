/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* status, monitor, reload. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "format.h"
#include "lib/attach.h"
#include "lib/cleanup.h"
#include "lib/parse.h"
#include "usmctl.h"

static void print_pages(const char *label, uint64_t free_pages, uint64_t total, const char *what)
{
	char a[32], b[32];

	printf("%-12s %" PRIu64 " pages (%s) of %" PRIu64 " (%s) %s\n", label, free_pages,
	       usm_format_bytes(a, sizeof(a), free_pages * USM_PAGE_SIZE), total,
	       usm_format_bytes(b, sizeof(b), total * USM_PAGE_SIZE), what);
}

static void print_status(struct json_object *s)
{
	uint64_t restarts = json_number(s, "engineRestarts");

	fputs("usmd         ", stdout);
	print_safely(stdout, json_text(s, "version"));
	printf(", keeper %" PRIu64 ", engine %" PRIu64, json_number(s, "keeperPid"),
	       json_number(s, "enginePid"));
	if (restarts > 0)
		printf(", restarted %" PRIu64 " times (the last one took %" PRIu64 " us)", restarts,
		       json_number(s, "lastRecoveryUsec"));
	fputs("\nmechanism    ", stdout);
	print_safely(stdout, json_text(s, "mechanism"));
	fputs(", eviction ", stdout);
	print_safely(stdout, json_text(s, "eviction"));
	fputs(", swap I/O by ", stdout);
	print_safely(stdout, json_text(s, "io"));
	printf("\nprocesses    %" PRIu64 " managed\n", json_number(s, "processes"));
	print_pages("frames", json_number(s, "framesFree"), json_number(s, "framesTotal"), "free");
	print_pages("swap", json_number(s, "slotsUsed"), json_number(s, "slotsTotal"), "used");
	printf("faults       %" PRIu64 "\nevictions    %" PRIu64 "\nswap-ins     %" PRIu64 "\n",
	       json_number(s, "faults"), json_number(s, "evictions"), json_number(s, "swapIns"));

	/* Trouble, where there is any. */
	if (json_number(s, "exceeded") > 0)
		printf("exceeded     %" PRIu64 " pages more than the pool has: swap is full or nothing "
		       "can be evicted; 'usmctl swap add' gives room\n", json_number(s, "exceeded"));
	if (json_number(s, "errors") > 0)
		printf("swap errors  %" PRIu64 "; 'journalctl -u usmd USM_EVENT=swap' says which\n",
		       json_number(s, "errors"));
	if (json_number(s, "policyErrors") > 0)
		printf("policies     gave %" PRIu64 " wrong answers; 'usmctl list policies' says "
		       "which\n", json_number(s, "policyErrors"));
}

enum usmctl_status cmd_status(struct usmctl *ctl)
{
	struct reply reply;

	if (usmctl_call(ctl, "GetStatus", NULL, &reply) < 0)
		return USMCTL_FAILED;
	if (!ctl->json)
		print_status(reply.parameters);
	reply_done(&reply);
	return USMCTL_DONE;
}

static const char *const monitor_counters[] = { "faults", "evictions", "swapIns" };

struct monitor {
	uint64_t lines;
	uint64_t usec; /* of the line before */
	uint64_t counter[ARRAY_SIZE(monitor_counters)];
};

static void print_rate(uint64_t before, uint64_t now, uint64_t usec, bool known)
{
	/* A new engine begins at 0 again. */
	if (known && now >= before && usec > 0)
		printf("%12.0f", (double)(now - before) * 1e6 / (double)usec);
	else
		printf("%12s", "-");
}

static void monitor_line(struct monitor *m, struct json_object *item)
{
	struct json_object *status = json_object_object_get(item, "status");
	uint64_t usec = json_number(item, "timeUsec");
	time_t seconds = (time_t)(usec / 1000000);
	char clock[16] = "-";
	struct tm tm;

	if (m->lines == 0)
		printf("%-8s%12s%12s%12s%12s%12s%12s\n", "TIME", "FAULTS/S", "EVICTED/S",
		       "SWAP-INS/S", "FREE", "SWAP-USED", "PROCESSES");
	if (localtime_r(&seconds, &tm))
		strftime(clock, sizeof(clock), "%H:%M:%S", &tm);
	printf("%-8s", clock);
	for (unsigned i = 0; i < ARRAY_SIZE(monitor_counters); i++) {
		uint64_t now = json_number(status, monitor_counters[i]);

		print_rate(m->counter[i], now, usec - m->usec, m->lines > 0 && usec > m->usec);
		m->counter[i] = now;
	}
	printf("%12" PRIu64 "%12" PRIu64 "%12" PRIu64 "\n", json_number(status, "framesFree"),
	       json_number(status, "slotsUsed"), json_number(status, "processes"));
	fflush(stdout);
	m->usec = usec;
}

enum usmctl_status cmd_monitor(struct usmctl *ctl)
{
	_cleanup_free_ char *problem = NULL;
	struct monitor m = {};
	uint64_t count = UINT64_MAX;
	int err;

	if (ctl->option[MONITOR_COUNT] &&
	    usm_parse_u64(ctl->option[MONITOR_COUNT], 1, UINT64_MAX, &count) < 0)
		return usage_error(ctl, "--count: expected a number from 1 on");

	err = client_open(ctl->runtime_dir, ctl->runtime_dir_is_default, &ctl->client, &problem);
	if (err >= 0)
		err = client_send(ctl->client, "Monitor", NULL, true, &problem);
	while (err >= 0 && m.lines < count) {
		struct reply reply;

		err = client_receive(ctl->client, CLIENT_NO_TIMEOUT, &reply, &problem);
		if (err < 0)
			break;
		if (reply.error) {
			problem = reply_explain(&reply);
			err = -1;
		} else if (ctl->json) {
			print_json(reply.parameters);
		} else {
			monitor_line(&m, reply.parameters);
		}
		reply_done(&reply);
		m.lines++;
		/* The reader at the other end of the pipe has gone. */
		if (ferror(stdout))
			return USMCTL_FAILED;
	}
	if (err < 0) {
		complain("%s", problem ?: "out of memory");
		return USMCTL_FAILED;
	}
	return USMCTL_DONE;
}

enum usmctl_status cmd_reload(struct usmctl *ctl)
{
	enum usmctl_status status = usmctl_do(ctl, "Reload", NULL);

	if (status == USMCTL_DONE && !ctl->json)
		puts("The configuration was read and is in force.");
	return status;
}

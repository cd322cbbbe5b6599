/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <inttypes.h>
#include <stdio.h>

#include "format.h"
#include "lib/attach.h"
#include "lib/parse.h"
#include "usmctl.h"

/* The pages that were asked for, UINT64_MAX: all.  0, or -1 after a complaint. */
static int wanted_pages(struct usmctl *ctl, uint64_t *ret)
{
	const char *pages = ctl->option[EVICT_PAGES], *size = ctl->option[EVICT_SIZE];
	uint64_t n = UINT64_MAX, bytes;

	if (!!pages + !!size + !!ctl->option[EVICT_ALL] != 1) {
		usage_error(ctl, "say how much: one of --pages N, --size SIZE, --all");
		return -1;
	}
	if (pages && usm_parse_u64(pages, 1, INT64_MAX, &n) < 0) {
		usage_error(ctl, "--pages: expected a number from 1 on");
		return -1;
	}
	if (size) {
		if (usm_parse_size(size, 1, 0, &bytes) < 0 || bytes == 0 || bytes > INT64_MAX) {
			usage_error(ctl, "--size: expected a size such as 64M or 1G");
			return -1;
		}
		n = (bytes + USM_PAGE_SIZE - 1) / USM_PAGE_SIZE;
	}
	*ret = n;
	return 0;
}

enum usmctl_status cmd_evict(struct usmctl *ctl)
{
	struct json_object *params;
	enum usmctl_status status = USMCTL_DONE;
	struct reply reply;
	uint64_t pages, evicted;
	const char *reason;
	char size[32];

	if (wanted_pages(ctl, &pages) < 0)
		return USMCTL_USAGE;
	params = params_new();
	params_process(params, ctl->argv[0]);
	if (pages != UINT64_MAX)
		params_number(params, "pages", pages);
	if (usmctl_call_slow(ctl, "Evict", params, &reply) < 0)
		return USMCTL_FAILED;

	evicted = json_number(reply.parameters, "evicted");
	reason = json_text(reply.parameters, "reason");
	if (!ctl->json)
		printf("%" PRIu64 " pages (%s) left memory.\n", evicted,
		       usm_format_bytes(size, sizeof(size), evicted * USM_PAGE_SIZE));
	/* With --all, a reason says that some stayed which should not have. */
	if (pages == UINT64_MAX ? reason[0] != '\0' : evicted < pages) {
		fputs("usmctl: not more left: ", stderr);
		print_safely(stderr, reason[0] ? reason : "the process has no more pages in memory");
		fputc('\n', stderr);
		status = USMCTL_FAILED;
	}
	reply_done(&reply);
	return status;
}

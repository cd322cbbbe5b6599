/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* swap add, swap remove. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lib/cleanup.h"
#include "lib/fields.h"
#include "lib/parse.h"
#include "format.h"
#include "usmctl.h"

/* How often to ask whether a device is empty: often enough for a prompt. */
#define REMOVE_POLL_MSEC 200

enum usmctl_status cmd_swap_add(struct usmctl *ctl)
{
	_cleanup_free_ char *path = absolute_path(ctl->argv[0]);
	struct json_object *params;
	enum usmctl_status status;
	uint64_t bytes;
	int priority = 0;
	const char *text = ctl->option[SWAP_PRIORITY];

	if (usm_parse_size(ctl->argv[1], 1, 0, &bytes) < 0 || bytes == 0 || bytes > INT64_MAX)
		return usage_error(ctl, "'%s': expected a size such as 4G", ctl->argv[1]);
	if (text && (usm_parse_int(text[0] == '-' ? text + 1 : text, 0, 32767, &priority) < 0))
		return usage_error(ctl, "--priority: expected a number from -32767 to 32767");
	if (text && text[0] == '-')
		priority = -priority;

	params = params_new();
	params_text(params, "path", path);
	params_number(params, "sizeBytes", bytes);
	if (usm_fields_add(params, "priority", json_object_new_int(priority)) < 0) {
		complain("out of memory");
		json_object_put(params);
		return USMCTL_FAILED;
	}
	status = usmctl_do(ctl, "AddSwap", params);
	if (status == USMCTL_DONE && !ctl->json)
		printf("%s is in use. A line 'swap %s %s' in /etc/usmd/usmd.conf keeps it across "
		       "restarts.\n", path, path, ctl->argv[1]);
	return status;
}

enum usmctl_status cmd_swap_remove(struct usmctl *ctl)
{
	_cleanup_free_ char *path = absolute_path(ctl->argv[0]);
	const struct timespec pause = { .tv_nsec = REMOVE_POLL_MSEC * 1000000l };
	bool finished = false, begun = false;

	while (!finished) {
		_cleanup_free_ char *error = NULL, *problem = NULL;
		struct json_object *params = params_new();
		struct reply reply;
		int err;

		params_text(params, "path", path);
		err = usmctl_try(ctl, "RemoveSwap", params, CLIENT_NO_TIMEOUT, &reply, &error,
				 &problem);
		/* Once begun, it may end between two questions. */
		if (err < 0 && begun && error && strcmp(error, "NoSuchSwap") == 0)
			break;
		if (err < 0) {
			complain("%s", problem ?: "out of memory");
			return USMCTL_FAILED;
		}
		finished = json_flag(reply.parameters, "finished");
		if (ctl->json && (finished || !begun))
			print_json(reply.parameters);
		reply_done(&reply);
		if (finished)
			break;
		if (!begun && !ctl->json) {
			printf("%s gets no new pages; those on it are being brought back%s.\n", path,
			       ctl->option[SWAP_NO_WAIT] ? "" : " (to interrupt is safe: it goes on)");
			fflush(stdout);
		}
		if (ctl->option[SWAP_NO_WAIT])
			return USMCTL_DONE;
		begun = true;
		nanosleep(&pause, NULL);
	}
	if (!ctl->json)
		printf("%s is removed.\n", path);
	return USMCTL_DONE;
}

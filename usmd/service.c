/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "service.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-bus.h>
#include <systemd/sd-login.h>

#include "lib/cleanup.h"

#define ADDRESS	    "unix:path=/run/systemd/private"
#define NAME	    "org.freedesktop.systemd1"
#define ANSWER_USEC 5000000ull

struct question {
	sd_bus *bus;
	char *path; /* of our unit */
};

static void question_done(struct question *q)
{
	sd_bus_close_unref(q->bus);
	free(q->path);
}

static int question_init(struct question *q)
{
	_cleanup_free_ char *unit = NULL;
	int r;

	r = sd_pid_get_unit(0, &unit);
	if (r >= 0)
		r = sd_bus_path_encode("/org/freedesktop/systemd1/unit", unit, &q->path);
	if (r >= 0)
		r = sd_bus_new(&q->bus);
	if (r >= 0)
		r = sd_bus_set_address(q->bus, ADDRESS);
	if (r >= 0)
		r = sd_bus_set_method_call_timeout(q->bus, ANSWER_USEC);
	return r < 0 ? r : sd_bus_start(q->bus);
}

int service_store_max(unsigned *ret)
{
	_cleanup_(question_done) struct question q = {};
	uint32_t max;
	int r;

	/* Without it there is nobody to be told. */
	if (!getenv("NOTIFY_SOCKET")) {
		*ret = 0;
		return 0;
	}
	r = question_init(&q);
	if (r >= 0)
		r = sd_bus_get_property_trivial(q.bus, NAME, q.path, NAME ".Service",
						"FileDescriptorStoreMax", NULL, 'u', &max);
	if (r >= 0)
		*ret = max;
	return r;
}

int service_is_restarting(void)
{
	_cleanup_(question_done) struct question q = {};
	sd_bus_message *reply = NULL;
	_cleanup_free_ char *type = NULL;
	const char *job;
	uint32_t number;
	int r;

	r = question_init(&q);
	if (r >= 0)
		r = sd_bus_get_property(q.bus, NAME, q.path, NAME ".Unit", "Job", NULL, &reply, "(uo)");
	if (r >= 0)
		r = sd_bus_message_read(reply, "(uo)", &number, &job);
	if (r > 0 && number > 0)
		r = sd_bus_get_property_string(q.bus, NAME, job, NAME ".Job", "JobType", NULL, &type);
	sd_bus_message_unref(reply);
	if (r < 0)
		return r;
	return type && strcmp(type, "restart") == 0;
}

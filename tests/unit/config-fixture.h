/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the tests of the configuration share: a directory of their own, files in it,
 * and what was logged. */
#pragma once

#include "capture.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "config.h"

/* A directory of the test's own; its name is cut from what is logged. */
static char root[64];
static struct capture capture;
static char logged[16384];

static int setup(void **state)
{
	(void)state;
	strcpy(root, "/tmp/test-config.XXXXXX");
	return mkdtemp(root) ? 0 : -1;
}

static int teardown(void **state)
{
	char command[96];

	(void)state;
	snprintf(command, sizeof(command), "rm -rf %s", root);
	return system(command);
}

/* Writes root/path, with the directories above it. */
static void put(const char *path, const char *text)
{
	char full[256];
	FILE *f;

	snprintf(full, sizeof(full), "%s/%s", root, path);
	for (char *slash = full + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		assert_true(mkdir(full, 0755) == 0 || errno == EEXIST);
		*slash = '/';
	}
	f = fopen(full, "w");
	assert_non_null(f);
	fputs(text, f);
	assert_int_equal(fclose(f), 0);
}

static void keep_log(void)
{
	const char *p = capture_end(&capture);
	size_t n = strlen(root), length = 0;

	for (; *p && length < sizeof(logged) - 1; ) {
		if (strncmp(p, root, n) == 0)
			p += n;
		else
			logged[length++] = *p++;
	}
	logged[length] = '\0';
}

static int load_file(const char *path, struct usm_config **ret)
{
	char full[256];
	int r;

	snprintf(full, sizeof(full), "%s/%s", root, path);
	capture_begin(&capture);
	r = usm_config_load(full, NULL, ret);
	keep_log();
	return r;
}

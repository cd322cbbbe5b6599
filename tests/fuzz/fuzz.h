/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the fuzz targets share.  Each is one file that is linked with what its "links:" line says. */
#pragma once

#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "lib/log.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Not assert(): what is wrong must be seen in every build. */
#define FUZZ_CHECK(what) \
	do { \
		if (!(what)) { \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #what); \
			abort(); \
		} \
	} while (0)

/* Lines are made, so that their arguments are looked at, and not written. */
int usm_log_level(void)
{
	return LOG_DEBUG;
}

int usm_log_full(int priority, int error, const struct usm_log_fields *f, const char *fmt, ...)
{
	char line[2048];
	va_list ap;

	(void)priority;
	(void)f;
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	return error < 0 ? error : -error;
}

/* The lowest descriptor that is free: the same before and after, or one was left open. */
static inline int fuzz_free_fd(void)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	FUZZ_CHECK(fd >= 0);
	close(fd);
	return fd;
}

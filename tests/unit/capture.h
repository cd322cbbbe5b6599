/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Catches what is logged to stderr, so that a test can compare its text. */
#pragma once

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

struct capture {
	int fd, stderr_fd;
	char text[16384];
};

static inline void capture_begin(struct capture *c)
{
	fflush(stderr);
	c->fd = memfd_create("stderr", MFD_CLOEXEC);
	c->stderr_fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
	assert_true(c->fd >= 0 && c->stderr_fd >= 0);
	assert_int_equal(dup2(c->fd, STDERR_FILENO), STDERR_FILENO);
}

/* The text since capture_begin; the test's own stderr is back. */
static inline const char *capture_end(struct capture *c)
{
	ssize_t n;

	fflush(stderr);
	dup2(c->stderr_fd, STDERR_FILENO);
	n = pread(c->fd, c->text, sizeof(c->text) - 1, 0);
	close(c->stderr_fd);
	close(c->fd);
	c->text[n < 0 ? 0 : n] = '\0';
	return c->text;
}

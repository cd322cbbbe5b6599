/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Scope-bound clean-up, after systemd's macros of the same idea. */
#pragma once

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(f) __attribute__((cleanup(f)))

static inline void usm_freep(void *p)
{
	free(*(void **)p);
}
static inline void usm_closep(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}
static inline void usm_fclosep(FILE **f)
{
	if (*f)
		fclose(*f);
}
static inline void usm_closedirp(DIR **d)
{
	if (*d)
		closedir(*d);
}

#define _cleanup_free_     _cleanup_(usm_freep)
#define _cleanup_close_    _cleanup_(usm_closep)
#define _cleanup_fclose_   _cleanup_(usm_fclosep)
#define _cleanup_closedir_ _cleanup_(usm_closedirp)

/* The value, and NULL/-1 left behind so that clean-up does nothing. */
#define TAKE_PTR(p) ({ typeof(p) *_pp = &(p); typeof(p) _v = *_pp; *_pp = NULL; _v; })
#define TAKE_FD(fd) ({ int *_fp = &(fd); int _v = *_fp; *_fp = -1; _v; })

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ({ typeof(a) _a = (a); typeof(b) _b = (b); _a < _b ? _a : _b; })
#define MAX(a, b) ({ typeof(a) _a = (a); typeof(b) _b = (b); _a > _b ? _a : _b; })
#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

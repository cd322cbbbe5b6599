/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A program file before it is run: what would really run, and can it be preloaded? */
#pragma once

#include <limits.h>

struct program {
	char path[PATH_MAX]; /* what exec loads in the end: of a script, its interpreter */
	/* The names by which usmd may know it: */
	char called[NAME_MAX + 1]; /* the last part of path, its argv[0] */
	char file[NAME_MAX + 1];   /* the same with links resolved, its /proc/PID/exe */
};

/*
 * Looks for word as execvp(3) does.  0, -ENOENT, or another -errno for a file
 * that is there but can't be run (-EACCES).
 */
int program_find(const char *word, char path[static PATH_MAX]);

/*
 * Follows "#!" from path to the binary and looks at it.  0: *ret is it, and
 * preloading works.  -errno otherwise, with a malloc'd reason in *ret_reason that
 * completes "it cannot be managed: ".
 */
int program_inspect(const char *path, struct program *ret, char **ret_reason);

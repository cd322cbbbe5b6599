/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Unit files on disk: our drop-in, and what can be seen of a unit where no systemd is asked. */
#pragma once

#include <stdbool.h>

#include "drop-in.h"

/* Where drop-ins of a unit lie: for good, and until the next boot. */
enum unit_place { UNIT_PLACE_ETC, UNIT_PLACE_RUN, NR_UNIT_PLACES };

enum unit_file_state { UNIT_FILE_NONE, UNIT_FILE_OURS, UNIT_FILE_FOREIGN };

/* root: "" or a directory in which a system lies, as systemctl --root has it. */
char *unit_file_path(const char *root, const char *unit, enum unit_place place);
/* What lies there now, or -errno. */
int unit_file_state(const char *path);

/* A file that is complete, but not yet in its place. */
struct unit_file {
	char *path, *temporary; /* malloc'd */
};

/* Makes the directory, too.  -errno, and nothing is left. */
int unit_file_prepare(const char *path, const struct drop_in *d, struct unit_file *ret);
/* Puts it there; -errno.  What is there already must be ours. */
int unit_file_commit(struct unit_file *f);
/* Takes back what has not been committed. */
void unit_file_done(struct unit_file *f);
/* Removes it and a directory that is empty then; -errno. */
int unit_file_remove(const char *path);

/*
 * What a unit's own files say, without systemd: 0, -ENOENT: there is no such unit, or another
 * -errno where only systemd can tell what they mean; with a malloc'd sentence.
 */
int unit_files_read(const char *root, const char *unit, struct unit_settings *ret, char **ret_reason);

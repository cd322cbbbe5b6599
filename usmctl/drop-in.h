/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The drop-in that has a service's programs managed: what it must say, given the unit's settings. */
#pragma once

#include <stdbool.h>
#include <stdio.h>

#define DROP_IN_FILE "50-usmd.conf"
/* The first line: whose file it is. */
#define DROP_IN_MARK "# Written by \"usmctl attach-unit\"; \"usmctl detach-unit\" removes it."

/* A list that is either all that is allowed, or all that is not. */
struct unit_filter {
	bool is_allow;
	char **names; /* NULL-terminated, or NULL: empty */
};

/* What bears on the preload library, with specifiers expanded.  Empty as it is: nothing is set. */
struct unit_settings {
	char *id;       /* its name, not that of an alias */
	char *preload;  /* LD_PRELOAD of Environment=; NULL: none */
	char *program;  /* of ExecStart=; NULL: none */
	char *root;     /* RootDirectory= or RootImage=; NULL: none */
	char *protect_home;
	bool private_tmp;
	char **env_files, **unset; /* EnvironmentFile=, UnsetEnvironment= */
	char **inaccessible, **tmpfs, **no_exec, **exec;
	struct unit_filter calls, families;
};

void unit_settings_done(struct unit_settings *s);

/* The preload library as LD_PRELOAD has it and as it lies here, and usmd's runtime directory. */
struct drop_in_paths {
	const char *tagger, *tagger_file, *runtime_dir;
	bool runtime_dir_is_default;
};

/* What the drop-in says besides the names of usmd's units; all malloc'd, NULL: nothing. */
struct drop_in {
	char *preload;
	char *runtime_dir;
	char *calls;    /* SystemCallFilter= */
	char *families; /* RestrictAddressFamilies= */
	char *bind;     /* BindReadOnlyPaths= */
	char *exec;     /* ExecPaths= */
};

/* 0, or -errno with a malloc'd reason in *ret_reason that completes "it cannot be managed: ". */
int drop_in_plan(const struct unit_settings *s, const struct drop_in_paths *p, struct drop_in *ret,
		 char **ret_reason);
void drop_in_done(struct drop_in *d);
/* The whole text of the file. */
void drop_in_write(const struct drop_in *d, FILE *f);
/* A line for the user for each thing that is done to the unit besides the preloading. */
void drop_in_explain(const struct drop_in *d, FILE *f);

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The reader of configuration files: what config.c and config-assign.c share. */
#pragma once

#include <stdint.h>
#include <stdio.h>

#include "config.h"

/* A line with its newline and NUL; a path of PATH_MAX does not fit, none that
 * anybody types is that long. */
#define CONFIG_LINE_MAX 1024u
/* More words than any directive takes, so that too many are noticed. */
#define CONFIG_WORDS_MAX 8u
/* A guard against reading a device or a log by mistake. */
#define CONFIG_FILE_MAX (1u << 20)

/* Below 1 MiB a pool or a limit holds less than a few faults with their
 * neighbours; above 128 TiB no program can have addresses for it. */
#define CONFIG_MEMORY_MIN (1ull << 20)
#define CONFIG_MEMORY_MAX (1ull << 47)

struct config_reader {
	struct usm_config *config;
	uint64_t ram_bytes; /* what % is of */
	const char *file;   /* read now; the caller's string */
	unsigned line;
	/* Where memory was said last, malloc'd "FILE:LINE"; NULL: nowhere. */
	char *memory_said;
	unsigned nr_errors; /* lines that were logged as wrong */
};

/*
 * Reads one file into r->config, on top of what is there.  Wrong lines are logged,
 * counted in r->nr_errors and skipped.  -ENOMEM, -EFBIG, or why the file could not
 * be opened or read; nothing is logged about these.
 */
int config_read_file(struct config_reader *r, const char *path);

/*
 * Cuts a line into words in place, without the comment; returns how many there
 * are, of which at most CONFIG_WORDS_MAX are stored.
 */
unsigned config_split(char *line, char *words[CONFIG_WORDS_MAX]);

/* Reads a line into buf (CONFIG_LINE_MAX bytes), without its newline.  1, 0 at the
 * end of the file, -EMSGSIZE for a line that is too long and -EILSEQ for one with
 * control characters (both are skipped up to the next line), -errno. */
int config_read_line(FILE *f, char *buf);

/* The record of a name, made if it is missing; NULL: no memory. */
struct usm_config_process *config_process(struct usm_config *c, const char *name);

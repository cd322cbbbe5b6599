/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What usmctl prints: tables, and the values of replies. */
#pragma once

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* Members of a reply's object; 0, "" or false if absent or of another type. */
uint64_t json_number(struct json_object *o, const char *name);
const char *json_text(struct json_object *o, const char *name);
bool json_flag(struct json_object *o, const char *name);

/*
 * A table is filled row by row and printed at its end: aligned columns on a
 * terminal, fields with one tab between them otherwise.  A title that begins
 * with '>' is aligned to the right.  Running out of memory ends the program.
 */
struct table;
struct table *table_new(const char *const *titles, unsigned nr_columns);
struct table *table_free(struct table *t);
/* The next cell of the row; control characters become '?', "" becomes "-". */
void table_cell(struct table *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void table_print(const struct table *t, FILE *f, bool color);

/* text with control characters as '?'; prints what comes from elsewhere. */
void print_safely(FILE *f, const char *text);
/* text as one word of a shell command line. */
void print_quoted(FILE *f, const char *text);

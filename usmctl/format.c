/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "format.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/cleanup.h"

struct table {
	const char *const *titles;
	unsigned nr_columns;
	unsigned nr_cells;
	char **cells;
};

uint64_t json_number(struct json_object *o, const char *name)
{
	struct json_object *value = json_object_object_get(o, name);

	if (!json_object_is_type(value, json_type_int) || json_object_get_int64(value) < 0)
		return 0;
	return (uint64_t)json_object_get_int64(value);
}

const char *json_text(struct json_object *o, const char *name)
{
	struct json_object *value = json_object_object_get(o, name);

	return json_object_is_type(value, json_type_string) ? json_object_get_string(value) : "";
}

bool json_flag(struct json_object *o, const char *name)
{
	struct json_object *value = json_object_object_get(o, name);

	return json_object_is_type(value, json_type_boolean) && json_object_get_boolean(value);
}

static void *must(void *p)
{
	if (!p) {
		fputs("usmctl: out of memory\n", stderr);
		exit(1);
	}
	return p;
}

static bool is_control(char c)
{
	return (unsigned char)c < ' ' || c == 0x7f;
}

struct table *table_new(const char *const *titles, unsigned nr_columns)
{
	struct table *t = must(calloc(1, sizeof(*t)));

	t->titles = titles;
	t->nr_columns = nr_columns;
	return t;
}

struct table *table_free(struct table *t)
{
	if (!t)
		return NULL;
	for (unsigned i = 0; i < t->nr_cells; i++)
		free(t->cells[i]);
	free(t->cells);
	free(t);
	return NULL;
}

void table_cell(struct table *t, const char *fmt, ...)
{
	char *text = NULL;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		text = NULL;
	va_end(ap);
	must(text);
	if (!text[0]) {
		free(text);
		text = must(strdup("-"));
	}
	for (char *p = text; *p; p++)
		if (is_control(*p))
			*p = '?';

	t->cells = must(reallocarray(t->cells, t->nr_cells + 1, sizeof(char *)));
	t->cells[t->nr_cells++] = text;
}

static const char *title(const struct table *t, unsigned column)
{
	return t->titles[column] + (t->titles[column][0] == '>');
}

static void print_aligned(const struct table *t, FILE *f, unsigned column, const char *text,
			  int width)
{
	bool last = column + 1 == t->nr_columns;

	if (t->titles[column][0] == '>')
		fprintf(f, "%*s%s", width, text, last ? "\n" : "  ");
	else if (last)
		fprintf(f, "%s\n", text);
	else
		fprintf(f, "%-*s  ", width, text);
}

void table_print(const struct table *t, FILE *f, bool color)
{
	bool aligned = isatty(fileno(f));
	_cleanup_free_ int *width = must(calloc(t->nr_columns, sizeof(int)));

	for (unsigned i = 0; i < t->nr_columns; i++)
		width[i] = (int)strlen(title(t, i));
	for (unsigned i = 0; i < t->nr_cells; i++) {
		int *w = &width[i % t->nr_columns];

		*w = MAX(*w, (int)strlen(t->cells[i]));
	}

	if (color)
		fputs("\033[1m", f);
	for (unsigned i = 0; i < t->nr_columns; i++) {
		if (aligned)
			print_aligned(t, f, i, title(t, i), width[i]);
		else
			fprintf(f, "%s%s", title(t, i), i + 1 == t->nr_columns ? "\n" : "\t");
	}
	if (color)
		fputs("\033[0m", f);
	for (unsigned i = 0; i < t->nr_cells; i++) {
		unsigned column = i % t->nr_columns;

		if (aligned)
			print_aligned(t, f, column, t->cells[i], width[column]);
		else
			fprintf(f, "%s%s", t->cells[i], column + 1 == t->nr_columns ? "\n" : "\t");
	}
}

void print_safely(FILE *f, const char *text)
{
	for (; *text; text++)
		fputc(is_control(*text) ? '?' : *text, f);
}

void print_quoted(FILE *f, const char *text)
{
	static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
				    "_@%+=:,./-";

	if (text[0] && strspn(text, plain) == strlen(text)) {
		fputs(text, f);
		return;
	}
	fputc('\'', f);
	for (; *text; text++) {
		if (*text == '\'')
			fputs("'\\''", f);
		else
			fputc(is_control(*text) ? '?' : *text, f);
	}
	fputc('\'', f);
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tagger.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/cleanup.h"

#ifndef USM_PREFIX
#define USM_PREFIX "/usr"
#endif
#ifndef USM_LIBDIR
#define USM_LIBDIR USM_PREFIX "/lib"
#endif
#define TAGGER "libusm-tagger.so"
/* What LD_PRELOAD gets: the dynamic linker of each program puts its own ABI's
 * folder in place of $LIB, so that those of other ABIs do not complain. */
#ifndef USM_TAGGER_PATH
#define USM_TAGGER_PATH USM_PREFIX "/$LIB/" TAGGER
#endif
/* Where that is for programs of usmctl's own ABI, to see whether it is installed. */
#ifndef USM_TAGGER_FILE
#define USM_TAGGER_FILE USM_LIBDIR "/" TAGGER
#endif

char *say(const char *fmt, ...)
{
	char *text;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&text, fmt, ap);
	va_end(ap);
	return n < 0 ? NULL : text;
}

void tagger_done(struct tagger *t)
{
	free(t->path);
	free(t->file);
}

/* Beside usmctl itself, as in a build tree: malloc'd, or NULL. */
static char *tagger_beside_us(void)
{
	char self[PATH_MAX], *slash, *path;
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (n < 0)
		return NULL;
	self[n] = '\0';
	slash = strrchr(self, '/');
	if (!slash)
		return NULL;
	*slash = '\0';
	path = say("%s/" TAGGER, self);
	if (path && access(path, R_OK) < 0) {
		free(path);
		path = NULL;
	}
	return path;
}

int tagger_find(struct tagger *ret, char **ret_reason)
{
	const char *named = getenv("USMD_TAGGER");
	struct tagger t = {};
	int err = -ENOENT;

	if (named && named[0]) {
		t.path = strdup(named);
	} else {
		t.path = tagger_beside_us();
		if (!t.path && access(USM_TAGGER_FILE, R_OK) == 0) {
			t.path = strdup(USM_TAGGER_PATH);
			t.file = strdup(USM_TAGGER_FILE);
		}
	}
	if (t.path && !t.file)
		t.file = strdup(t.path);
	if (!t.path || !t.file) {
		*ret_reason = say("the preload library is not installed (%s); install it, or name "
				  "it in USMD_TAGGER", USM_TAGGER_FILE);
	} else if (named && named[0] && !strchr(t.path, '$') && access(t.path, R_OK) < 0) {
		err = -errno;
		*ret_reason = say("USMD_TAGGER names %s: %s", t.path, strerror(errno));
	} else if (strpbrk(t.path, " :")) {
		err = -EINVAL;
		*ret_reason = say("LD_PRELOAD cannot hold a path with spaces or colons: %s", t.path);
	} else {
		*ret = t;
		return 0;
	}
	tagger_done(&t);
	return err;
}

char *tagger_preload(const char *path, const char *list)
{
	size_t length = strlen(path), used = length;
	char *text = malloc(length + strlen(list) + 2);

	if (!text)
		return NULL;
	memcpy(text, path, length + 1);
	for (;;) {
		size_t n;

		list += strspn(list, " :");
		n = strcspn(list, " :");
		if (n == 0)
			return text;
		/* It may be in the list already, of a program that we have started. */
		if (n != length || memcmp(list, path, n) != 0) {
			text[used++] = ':';
			memcpy(text + used, list, n);
			used += n;
			text[used] = '\0';
		}
		list += n;
	}
}

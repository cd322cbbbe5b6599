/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The preload library: where it is, and LD_PRELOAD. */
#pragma once

struct tagger {
	char *path; /* what LD_PRELOAD gets; malloc'd */
	char *file; /* where that is for programs of usmctl's own ABI; malloc'd */
};

/* 0, or -errno with the malloc'd reason why there is none. */
int tagger_find(struct tagger *ret, char **ret_reason);
void tagger_done(struct tagger *t);

/* malloc'd: the library in front of the others of the list, which are kept; NULL: no memory.
 * The first library's hooks are the ones that are called. */
char *tagger_preload(const char *path, const char *list);

/* malloc'd text; NULL without memory. */
char *say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

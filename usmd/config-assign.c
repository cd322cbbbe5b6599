/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What usmctl assign and unassign keep: 50-usmctl.conf. */
#define _GNU_SOURCE 1 /* asprintf */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "cleanup.h"
#include "config-parse.h"
#include "log.h"
#include "parse.h"

static const char first_lines[] =
	"# Written by \"usmctl assign\" and \"usmctl unassign\"; see usmd.conf(5).\n";

/* What the file says of a name. */
struct assignment {
	char alloc_policy[USM_NAME_MAX + 1];
	char swap_policy[USM_NAME_MAX + 1];
	uint64_t limit_bytes;
	bool has_limit; /* 0 can be said too: it lifts a limit of another file */
	bool allow;
};

/* The file that replaces the old one once it is complete. */
struct new_file {
	char *path;
	FILE *f;
};

static void new_file_done(struct new_file *n)
{
	if (n->f)
		fclose(n->f);
	if (n->path)
		unlink(n->path);
	free(n->path);
}

static int make_dir(const char *dir)
{
	_cleanup_free_ char *parent = NULL;
	char *slash;

	if (mkdir(dir, 0755) >= 0 || errno == EEXIST)
		return 0;
	if (errno != ENOENT)
		return -errno;

	/* Only the usmd directory above it can be missing, too. */
	parent = strdup(dir);
	if (!parent)
		return -ENOMEM;
	slash = strrchr(parent, '/');
	if (!slash || slash == parent)
		return -ENOENT;
	*slash = '\0';
	if (mkdir(parent, 0755) < 0 && errno != EEXIST)
		return -errno;
	return mkdir(dir, 0755) < 0 && errno != EEXIST ? -errno : 0;
}

static int new_file_open(struct new_file *n, const char *dir)
{
	_cleanup_close_ int fd = -1;

	if (asprintf(&n->path, "%s/.%s.XXXXXX", dir, USM_CONFIG_ASSIGN_FILE) < 0) {
		n->path = NULL;
		return -ENOMEM;
	}
	fd = mkostemp(n->path, O_CLOEXEC);
	if (fd < 0) {
		int r = -errno;

		free(n->path); /* nothing to unlink */
		n->path = NULL;
		return r;
	}
	if (fchmod(fd, 0644) < 0)
		return -errno;
	n->f = fdopen(fd, "w");
	if (!n->f)
		return -errno;
	TAKE_FD(fd);
	return 0;
}

/* After this the new content is there, also after a power failure; before, the old. */
static int new_file_commit(struct new_file *n, const char *dir, const char *path)
{
	_cleanup_close_ int dir_fd = -1;
	FILE *f;

	/* A write that failed before now has left its mark, not its reason. */
	if (ferror(n->f))
		return -EIO;
	if (fflush(n->f) != 0 || fsync(fileno(n->f)) < 0)
		return -errno;
	f = TAKE_PTR(n->f);
	if (fclose(f) != 0)
		return -errno;
	dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir_fd < 0)
		return -errno;
	if (rename(n->path, path) < 0)
		return -errno;
	free(n->path);
	n->path = NULL;
	return fsync(dir_fd) < 0 ? -errno : 0;
}

/* Is this one of the lines that assign a name? */
static bool assigns(char *const *words, unsigned n, const char *name)
{
	if (n == 2 && strcmp(words[0], "allow") == 0)
		return strcmp(words[1], name) == 0;
	if ((n == 3 || n == 4) && strcmp(words[0], "process") == 0)
		return strcmp(words[n - 2], name) == 0;
	return n == 3 && strcmp(words[0], "limit") == 0 && strcmp(words[1], name) == 0;
}

/*
 * Copies all lines but those that assign name, whose number is returned.  The file
 * has just been parsed without an error, so every line fits.
 */
static int copy_others(FILE *from, FILE *to, const char *name, struct assignment *a)
{
	char line[CONFIG_LINE_MAX], copy[CONFIG_LINE_MAX], *words[CONFIG_WORDS_MAX];
	int found = 0, r;

	for (;;) {
		unsigned n;

		r = config_read_line(from, line);
		if (r <= 0)
			return r < 0 ? r : found;
		strcpy(copy, line);
		n = config_split(copy, words);
		if (!assigns(words, n, name)) {
			fprintf(to, "%s\n", line);
			continue;
		}
		found++;
		if (strcmp(words[0], "allow") == 0)
			a->allow = true;
	}
}

static void write_limit(FILE *f, const char *name, uint64_t bytes)
{
	static const char suffixes[] = "KMGT";
	unsigned i = 0;
	uint64_t n;

	if (bytes == 0) {
		fprintf(f, "limit %s 0\n", name);
		return;
	}
	/* The largest unit that says it exactly; pages are whole K. */
	for (n = bytes / 1024; n % 1024 == 0 && suffixes[i + 1]; i++)
		n /= 1024;
	fprintf(f, "limit %s %llu%c\n", name, (unsigned long long)n, suffixes[i]);
}

static void write_assignment(FILE *f, const char *name, const struct assignment *a)
{
	if (a->alloc_policy[0] && strcmp(a->alloc_policy, a->swap_policy) == 0) {
		fprintf(f, "process %s %s\n", name, a->alloc_policy);
	} else {
		if (a->alloc_policy[0])
			fprintf(f, "process alloc %s %s\n", name, a->alloc_policy);
		if (a->swap_policy[0])
			fprintf(f, "process swap %s %s\n", name, a->swap_policy);
	}
	if (a->has_limit)
		write_limit(f, name, a->limit_bytes);
	if (a->allow)
		fprintf(f, "allow %s\n", name);
}

/* What the file at path says of name now.  -ENOENT: there is no such file. */
static int read_assignment(const char *path, const char *name, struct assignment *ret)
{
	const struct usm_config_process *p;
	struct usm_config *config;
	int r;

	if (access(path, F_OK) < 0)
		return -errno;
	/* A line that can't be understood could be about this name: such a file is
	 * left to whoever wrote it.  The lines have been logged. */
	r = usm_config_load(path, NULL, &config);
	if (r < 0)
		return r;
	p = usm_config_find(config, name);
	if (p) {
		strcpy(ret->alloc_policy, p->alloc_policy);
		strcpy(ret->swap_policy, p->swap_policy);
		ret->limit_bytes = p->limit_bytes;
		ret->has_limit = p->has_limit;
	}
	usm_config_free(config);
	return 0;
}

int usm_config_assign_set(const char *dir, const char *name, char which, const char *policy,
			  uint64_t limit_bytes, bool allow)
{
	int kind = usm_rule_parse(name, NULL);
	_cleanup_(new_file_done) struct new_file new_file = {};
	_cleanup_fclose_ FILE *old = NULL;
	_cleanup_free_ char *path = NULL;
	struct assignment a = {};
	int r;

	if (kind < 0 || (allow && kind != USM_RULE_UNIT) || (policy && !usm_name_is_valid(policy)) ||
	    (which != 'a' && which != 'b' && which != 's'))
		return -EINVAL;
	if (limit_bytes != UINT64_MAX && limit_bytes != 0 &&
	    (limit_bytes < CONFIG_MEMORY_MIN || limit_bytes > CONFIG_MEMORY_MAX))
		return -ERANGE;
	if (asprintf(&path, "%s/%s", dir, USM_CONFIG_ASSIGN_FILE) < 0) {
		path = NULL;
		return -ENOMEM;
	}

	r = make_dir(dir);
	if (r < 0)
		return r;
	r = read_assignment(path, name, &a);
	if (r < 0 && r != -ENOENT)
		return r;
	r = new_file_open(&new_file, dir);
	if (r < 0)
		return r;

	old = fopen(path, "re");
	if (!old && errno != ENOENT)
		return -errno;
	if (old) {
		r = copy_others(old, new_file.f, name, &a);
		if (r < 0)
			return r;
	} else {
		fputs(first_lines, new_file.f);
	}

	if (policy && which != 's')
		strcpy(a.alloc_policy, policy);
	if (policy && which != 'a')
		strcpy(a.swap_policy, policy);
	if (limit_bytes != UINT64_MAX) {
		a.limit_bytes = limit_bytes;
		a.has_limit = true;
	}
	a.allow |= allow;
	write_assignment(new_file.f, name, &a);
	return new_file_commit(&new_file, dir, path);
}

int usm_config_assign_unset(const char *dir, const char *name)
{
	_cleanup_(new_file_done) struct new_file new_file = {};
	_cleanup_fclose_ FILE *old = NULL;
	_cleanup_free_ char *path = NULL;
	struct assignment a = {};
	int r;

	if (usm_rule_parse(name, NULL) < 0)
		return -EINVAL;
	if (asprintf(&path, "%s/%s", dir, USM_CONFIG_ASSIGN_FILE) < 0) {
		path = NULL;
		return -ENOMEM;
	}

	r = read_assignment(path, name, &a);
	if (r < 0)
		return r;
	old = fopen(path, "re");
	if (!old)
		return -errno;
	r = new_file_open(&new_file, dir);
	if (r < 0)
		return r;
	r = copy_others(old, new_file.f, name, &a);
	if (r < 0)
		return r;
	if (r == 0)
		return -ENOENT;
	return new_file_commit(&new_file, dir, path);
}

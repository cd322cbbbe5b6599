/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "unit-files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/cleanup.h"
#include "lib/parse.h"
#include "tagger.h"

static const char *const places[NR_UNIT_PLACES] = {
	[UNIT_PLACE_ETC] = "/etc/systemd/system",
	[UNIT_PLACE_RUN] = "/run/systemd/system",
};

/* Where units come from, what goes before the rest first. */
static const char *const unit_dirs[] = {
	"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system",
	"/usr/lib/systemd/system", "/lib/systemd/system",
};

char *unit_file_path(const char *root, const char *unit, enum unit_place place)
{
	return say("%s%s/%s.d/" DROP_IN_FILE, root, places[place], unit);
}

int unit_file_state(const char *path)
{
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	char line[256] = "";

	if (!f)
		return errno == ENOENT || errno == ENOTDIR ? UNIT_FILE_NONE : -errno;
	if (fgets(line, sizeof(line), f) && strcmp(line, DROP_IN_MARK "\n") == 0)
		return UNIT_FILE_OURS;
	return UNIT_FILE_FOREIGN;
}

/* All directories above path. */
static int make_dirs(const char *path)
{
	_cleanup_free_ char *dir = strdup(path);

	if (!dir)
		return -ENOMEM;
	for (char *slash = dir + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		if (mkdir(dir, 0755) < 0 && errno != EEXIST)
			return -errno;
		*slash = '/';
	}
	return 0;
}

static void remove_dir_of(const char *path)
{
	char *dir = strdup(path), *slash = dir ? strrchr(dir, '/') : NULL;

	/* One that has something else in it stays. */
	if (slash) {
		*slash = '\0';
		(void)rmdir(dir);
	}
	free(dir);
}

void unit_file_done(struct unit_file *f)
{
	if (f->temporary) {
		unlink(f->temporary);
		remove_dir_of(f->temporary);
	}
	free(f->temporary);
	free(f->path);
	*f = (struct unit_file){};
}

static int write_drop_in(int fd, const struct drop_in *d)
{
	FILE *f = fdopen(fd, "w");
	int r;

	if (!f) {
		r = -errno;
		close(fd);
		return r;
	}
	drop_in_write(d, f);
	r = fflush(f) != 0 || fchmod(fd, 0644) < 0 || fsync(fd) < 0 ? -errno : 0;
	if (fclose(f) != 0 && r == 0)
		r = -errno;
	return r;
}

int unit_file_prepare(const char *path, const struct drop_in *d, struct unit_file *ret)
{
	_cleanup_(unit_file_done) struct unit_file f = {};
	char *temporary;
	int r, fd;

	f.path = strdup(path);
	/* systemd reads what ends in .conf alone. */
	temporary = say("%.*s.%s.XXXXXX", (int)(strrchr(path, '/') + 1 - path), path, DROP_IN_FILE);
	if (!f.path || !temporary) {
		free(temporary);
		return -ENOMEM;
	}
	r = make_dirs(path);
	fd = r < 0 ? -1 : mkostemp(temporary, O_CLOEXEC);
	if (fd < 0) {
		r = r < 0 ? r : -errno;
		remove_dir_of(path);
		free(temporary);
		return r;
	}
	f.temporary = temporary;
	r = write_drop_in(fd, d);
	if (r < 0)
		return r;
	*ret = f;
	f = (struct unit_file){};
	return 0;
}

int unit_file_commit(struct unit_file *f)
{
	if (rename(f->temporary, f->path) < 0)
		return -errno;
	free(TAKE_PTR(f->temporary));
	return 0;
}

int unit_file_remove(const char *path)
{
	if (unlink(path) < 0)
		return -errno;
	remove_dir_of(path);
	return 0;
}

/* The file of the unit, or of the template that it is an instance of. */
static char *find_unit(const char *root, const char *unit)
{
	char template[USM_UNIT_MAX + 1] = "";
	struct stat st;

	usm_unit_template(unit, template);
	for (unsigned k = 0; k < 2; k++)
		for (unsigned i = 0; i < ARRAY_SIZE(unit_dirs); i++) {
			const char *name = k == 0 ? unit : template;
			char *path = name[0] ? say("%s%s/%s", root, unit_dirs[i], name) : NULL;

			/* A link may lead out of root, and so nowhere; there is one. */
			if (path && lstat(path, &st) == 0 && !S_ISDIR(st.st_mode))
				return path;
			free(path);
		}
	return NULL;
}

/* The value of a line that sets key; NULL: it does not. */
static const char *value_of(const char *line, const char *key)
{
	size_t n = strlen(key);

	line += strspn(line, " \t");
	if (strncmp(line, key, n) != 0)
		return NULL;
	line += n + strspn(line + n, " \t");
	return *line == '=' ? line + 1 : NULL;
}

/* What systemd works out of several files, groups and specifiers is not guessed at. */
static int check_line(const char *path, const char *line, char **ret_reason)
{
	static const char *const keys[] = {
		"SystemCallFilter", "RestrictAddressFamilies", "RootDirectory", "RootImage",
		"EnvironmentFile", "InaccessiblePaths", "TemporaryFileSystem", "NoExecPaths",
	};
	const char *value = value_of(line, "Environment");

	if (value && strstr(value, "LD_PRELOAD")) {
		*ret_reason = say("%s sets LD_PRELOAD; attach the unit where systemd runs, or add the "
				  "library there by hand", path);
		return -EOPNOTSUPP;
	}
	for (unsigned i = 0; i < ARRAY_SIZE(keys); i++)
		if (value_of(line, keys[i])) {
			*ret_reason = say("%s has %s=, and only a running systemd can tell what must be "
					  "said besides; attach the unit there", path, keys[i]);
			return -EOPNOTSUPP;
		}
	return 0;
}

static int read_program(const char *line, struct unit_settings *s)
{
	const char *value = value_of(line, "ExecStart");
	size_t n;

	if (!value || s->program)
		return 0;
	/* "-": may fail; the others are about how it is started. */
	value += strspn(value, " \t-@:+!");
	n = strcspn(value, " \t\n");
	if (n == 0 || value[0] != '/' || memchr(value, '%', n))
		return 0;
	s->program = strndup(value, n);
	return s->program ? 0 : -ENOMEM;
}

int unit_files_read(const char *root, const char *unit, struct unit_settings *ret, char **ret_reason)
{
	_cleanup_(unit_settings_done) struct unit_settings s = {};
	_cleanup_free_ char *path = find_unit(root, unit);
	_cleanup_fclose_ FILE *f = NULL;
	char line[4096], target[PATH_MAX];
	ssize_t n;
	int r = 0;

	if (!path) {
		*ret_reason = say("there is no unit %s", unit);
		return -ENOENT;
	}
	n = readlink(path, target, sizeof(target) - 1);
	if (n > 0 && (size_t)n == strlen("/dev/null") && memcmp(target, "/dev/null", (size_t)n) == 0) {
		*ret_reason = say("the unit %s is masked", unit);
		return -ENOENT;
	}
	f = fopen(path, "re");
	if (!f) {
		r = -errno;
		*ret_reason = say("%s cannot be read: %s", path, strerror(-r));
		return r;
	}
	while (r == 0 && fgets(line, sizeof(line), f)) {
		r = check_line(path, line, ret_reason);
		if (r == 0)
			r = read_program(line, &s);
	}
	if (r == 0) {
		s.id = strdup(unit);
		r = s.id ? 0 : -ENOMEM;
	}
	if (r < 0)
		return r;
	*ret = s;
	s = (struct unit_settings){};
	return 0;
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The configuration as a whole: defaults, the search path, look-ups.  What a line
 * means is in config-parse.c. */
#define _GNU_SOURCE 1 /* asprintf */
#include "config.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "cleanup.h"
#include "config-parse.h"
#include "log.h"
#include "parse.h"

#define SHIPPED_MEMORY_DIVISOR 4u /* 25 % of RAM */
#define SHIPPED_WORKERS_MAX    4u
#define SHIPPED_FAULTAROUND    64u
#define SHIPPED_GRACE_SEC      120u
#define SHIPPED_LOW_PERMYRIAD  200u
#define SHIPPED_HIGH_PERMYRIAD 400u

#define MAIN_FILE "/etc/usmd/usmd.conf"

/* A later one wins. */
static const char *const conf_dirs[] = {
	"/usr/lib/usmd/conf.d",
	"/etc/usmd/conf.d",
	"/run/usmd/conf.d",
};

static uint64_t ram_bytes(void)
{
	return (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
}

int usm_config_new(struct usm_config **ret)
{
	long processors = sysconf(_SC_NPROCESSORS_ONLN);
	struct usm_config *c;

	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->memory_bytes = ram_bytes() / SHIPPED_MEMORY_DIVISOR & ~4095ull;
	c->workers = processors < 1 ? 1 : MIN((unsigned)processors, SHIPPED_WORKERS_MAX);
	c->faultaround = SHIPPED_FAULTAROUND;
	c->grace_sec = SHIPPED_GRACE_SEC;
	c->low_permyriad = SHIPPED_LOW_PERMYRIAD;
	c->high_permyriad = SHIPPED_HIGH_PERMYRIAD;
	c->oom = USM_OOM_EXCEED;
	strcpy(c->default_policy, "none");

	*ret = c;
	return 0;
}

struct usm_config *usm_config_free(struct usm_config *c)
{
	if (!c)
		return NULL;
	for (unsigned i = 0; i < c->nr_processes; i++)
		free(c->processes[i].file);
	for (unsigned i = 0; i < c->nr_swaps; i++)
		free(c->swaps[i].path);
	for (unsigned i = 0; i < c->nr_policies; i++)
		free(c->policies[i].path);
	for (unsigned i = 0; i < c->nr_allows; i++) {
		free(c->allows[i].path);
		free(c->allows[i].who);
	}
	free(c->processes);
	free(c->swaps);
	free(c->policies);
	free(c->allows);
	free(c);
	return NULL;
}

static void config_freep(struct usm_config **c)
{
	usm_config_free(*c);
}

/* The files of the conf.d directories. */
struct conf_file {
	char *name;     /* points into path */
	char *path;
	unsigned order; /* of its directory, for files of one name that both count */
	bool skip;      /* replaces an earlier one by nothing, as a link to /dev/null does */
};

struct conf_files {
	struct conf_file *file;
	unsigned n;
};

static void conf_files_done(struct conf_files *files)
{
	for (unsigned i = 0; i < files->n; i++)
		free(files->file[i].path);
	free(files->file);
}

static struct conf_file *conf_files_find(struct conf_files *files, const char *name)
{
	for (unsigned i = 0; i < files->n; i++)
		if (strcmp(files->file[i].name, name) == 0)
			return &files->file[i];
	return NULL;
}

static bool is_conf_name(const char *name)
{
	size_t length = strlen(name);

	/* Editors and our own temporary files begin with a dot. */
	return name[0] != '.' && length > 5 && strcmp(name + length - 5, ".conf") == 0;
}

static int conf_files_add(struct conf_files *files, const char *dir, const char *name,
			  unsigned order)
{
	_cleanup_free_ char *path = NULL;
	struct conf_file *file = NULL, *bigger;
	struct stat st;

	if (asprintf(&path, "%s/%s", dir, name) < 0) {
		path = NULL;
		return -ENOMEM;
	}
	if (stat(path, &st) < 0) {
		log_warning_errno(errno, "%s: %m, ignoring", path);
		return 0;
	}

	/* usmctl's own file does not replace its namesake: what is assigned until the
	 * next boot (/run) must not hide all that is assigned for good (/etc). */
	if (strcmp(name, USM_CONFIG_ASSIGN_FILE) != 0)
		file = conf_files_find(files, name);
	if (!file) {
		bigger = reallocarray(files->file, files->n + 1, sizeof(*bigger));
		if (!bigger)
			return -ENOMEM;
		files->file = bigger;
		file = &bigger[files->n++];
		file->path = NULL;
	}
	free(file->path);
	file->path = TAKE_PTR(path);
	file->name = file->path + strlen(dir) + 1;
	file->order = order;
	file->skip = !S_ISREG(st.st_mode);
	return 0;
}

/* A directory that is not there has no files. */
static int conf_files_add_dir(struct conf_files *files, const char *dir, unsigned order)
{
	_cleanup_closedir_ DIR *d = NULL;
	const struct dirent *entry;
	int r;

	d = opendir(dir);
	if (!d)
		return errno == ENOENT ? 0 : -errno;
	for (;;) {
		errno = 0;
		entry = readdir(d);
		if (!entry)
			return -errno;
		if (!is_conf_name(entry->d_name))
			continue;
		r = conf_files_add(files, dir, entry->d_name, order);
		if (r < 0)
			return r;
	}
}

static int compare_conf_files(const void *a, const void *b)
{
	const struct conf_file *x = a, *y = b;
	int r = strcmp(x->name, y->name);

	return r ? r : (int)x->order - (int)y->order;
}

/* Logs what config_read_file leaves to its caller.  A file that may be missing is
 * read as empty then. */
static int read_file(struct config_reader *reader, const char *path, bool may_miss)
{
	int r = config_read_file(reader, path);

	if (r == -ENOENT && may_miss)
		return 0;
	if (r < 0)
		log_error_errno(r, "%s: can't be read: %m", path);
	return r;
}

static int read_dirs(struct config_reader *reader, const char *root, const char *const *dirs,
		     unsigned n)
{
	_cleanup_(conf_files_done) struct conf_files files = {};
	int r;

	for (unsigned i = 0; i < n; i++) {
		_cleanup_free_ char *dir = NULL;

		if (asprintf(&dir, "%s%s", root, dirs[i]) < 0) {
			dir = NULL;
			return -ENOMEM;
		}
		r = conf_files_add_dir(&files, dir, i);
		if (r < 0)
			return log_error_errno(r, "%s: can't be read: %m", dir);
	}

	if (files.n > 0)
		qsort(files.file, files.n, sizeof(*files.file), compare_conf_files);
	for (unsigned i = 0; i < files.n; i++) {
		if (files.file[i].skip)
			continue;
		/* It may have gone since the directory was read. */
		r = read_file(reader, files.file[i].path, true);
		if (r < 0)
			return r;
	}
	return 0;
}

static int read_search_path(struct config_reader *reader, const char *root)
{
	_cleanup_free_ char *path = NULL;
	int r;

	if (asprintf(&path, "%s%s", root, MAIN_FILE) < 0) {
		path = NULL;
		return -ENOMEM;
	}
	r = read_file(reader, path, true);
	if (r < 0)
		return r;
	return read_dirs(reader, root, conf_dirs, ARRAY_SIZE(conf_dirs));
}

static int read_private(struct config_reader *reader, const char *file, const char *root)
{
	static const char *const dir = "/conf.d";
	int r;

	r = read_file(reader, file, false);
	if (r < 0 || !root || !*root)
		return r;
	return read_dirs(reader, root, &dir, 1);
}

/* What only the whole configuration can show. */
static void check_memory(struct config_reader *reader)
{
	char memory[16], ram[16];

	if (reader->config->memory_bytes <= reader->ram_bytes)
		return;
	usm_format_bytes(memory, sizeof(memory), reader->config->memory_bytes);
	usm_format_bytes(ram, sizeof(ram), reader->ram_bytes);

	/* The module takes its pool out of RAM at once, the userfault mechanism only
	 * counts, and the kernel's own reclaim takes the rest. */
	if (reader->config->mechanism == USM_MECHANISM_MODULE) {
		log_error("%s: memory %s is more than this machine has, expected at most %s "
			  "with mechanism module", reader->memory_said, memory, ram);
		reader->nr_errors++;
	} else {
		log_warning("%s: memory %s is more than this machine has, expected at most %s, "
			    "ignoring", reader->memory_said, memory, ram);
	}
}

int usm_config_load(const char *file, const char *root, struct usm_config **ret)
{
	_cleanup_(config_freep) struct usm_config *config = NULL;
	_cleanup_free_ char *memory_said = NULL;
	struct config_reader reader = {};
	int r;

	r = usm_config_new(&config);
	if (r < 0)
		return r;
	reader.config = config;
	reader.ram_bytes = ram_bytes();

	r = file ? read_private(&reader, file, root) : read_search_path(&reader, root ? root : "");
	memory_said = reader.memory_said;
	if (r < 0)
		return r;
	check_memory(&reader);
	if (reader.nr_errors > 0)
		return -EINVAL;

	*ret = TAKE_PTR(config);
	return 0;
}

const struct usm_config_process *usm_config_find(const struct usm_config *c, const char *name)
{
	for (unsigned i = 0; i < c->nr_processes; i++)
		if (strcmp(c->processes[i].name, name) == 0)
			return &c->processes[i];
	return NULL;
}

bool usm_config_is_meant(const char *rule, uid_t uid, const struct usm_config_subject *s)
{
	const char *what;

	switch (usm_rule_parse(rule, &what)) {
	case USM_RULE_PROCESS:
		return strcmp(what, s->name) == 0 || strcmp(what, s->argv0) == 0;
	case USM_RULE_UNIT:
		return usm_unit_is(what, s->unit);
	case USM_RULE_USER:
		return uid == s->uid;
	default:
		return false;
	}
}

/* A program can be called "unit:x": that is its name, and it is no unit's. */
static const struct usm_config_process *find_process(const struct usm_config *c, const char *name)
{
	return usm_rule_parse(name, NULL) == USM_RULE_PROCESS ? usm_config_find(c, name) : NULL;
}

static const struct usm_config_process *find_unit(const struct usm_config *c, const char *unit)
{
	char name[USM_RULE_MAX + 1];

	snprintf(name, sizeof(name), USM_RULE_UNIT_PREFIX "%s", unit);
	return usm_config_find(c, name);
}

static const struct usm_config_process *find_user(const struct usm_config *c, uid_t uid)
{
	for (unsigned i = 0; i < c->nr_processes; i++)
		if (c->processes[i].has_uid && c->processes[i].uid == uid)
			return &c->processes[i];
	return NULL;
}

void usm_config_rule_for(const struct usm_config *c, const struct usm_config_subject *s,
			 struct usm_config_rule *ret)
{
	const struct usm_config_process *rules[5];
	bool has_limit = false, has_priority = false;
	char template[USM_UNIT_MAX + 1];

	/* One program, what it says of itself, all of a service, all that a user runs. */
	rules[0] = find_process(c, s->name);
	rules[1] = find_process(c, s->argv0);
	rules[2] = s->unit[0] ? find_unit(c, s->unit) : NULL;
	rules[3] = usm_unit_template(s->unit, template) ? find_unit(c, template) : NULL;
	rules[4] = find_user(c, s->uid);

	*ret = (struct usm_config_rule){ .alloc_policy = "", .swap_policy = "", .swap_name = "" };
	for (unsigned i = 0; i < ARRAY_SIZE(rules); i++) {
		const struct usm_config_process *p = rules[i];

		if (!p)
			continue;
		if (!ret->alloc_policy[0])
			ret->alloc_policy = p->alloc_policy;
		if (!ret->swap_policy[0] && p->swap_policy[0]) {
			ret->swap_policy = p->swap_policy;
			ret->swap_name = p->name;
		}
		if (!has_limit && p->has_limit) {
			ret->limit_bytes = p->limit_bytes;
			has_limit = true;
		}
		if (!has_priority && p->has_priority) {
			ret->priority = p->priority;
			has_priority = true;
		}
	}
}

bool usm_config_allows(const struct usm_config *c, const char *exe_path, const char *unit, uid_t uid,
		       const gid_t *groups, unsigned nr_groups)
{
	if (uid == 0)
		return true;

	for (unsigned i = 0; i < c->nr_allows; i++) {
		const struct usm_config_allow *a = &c->allows[i];

		if (!a->path && usm_unit_is(a->who, unit))
			return true;
		if (!a->path || strcmp(a->path, exe_path) != 0)
			continue;
		if (!a->is_group && a->id == uid)
			return true;
		for (unsigned g = 0; a->is_group && g < nr_groups; g++)
			if (a->id == groups[g])
				return true;
	}
	return false;
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "drop-in.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lib/cleanup.h"
#include "tagger.h"

/*
 * Every system call that libusm-tagger.so makes, itself or through libc: one that the unit's filter
 * does not let pass would end the program, maybe only when usmd is stopped.
 * tests/native/attach-unit.bats compares it with the source.
 */
static const char *const tagger_calls[] = {
	"brk", "capget", "capset", "chdir", "clock_gettime", "clone", "close", "close_range",
	"connect", "eventfd2", "exit", "fcntl", "fstat", "futex", "get_robust_list", "getcpu",
	"getdents64", "getpid", "gettid", "ioctl", "kill", "lseek", "madvise", "mincore", "mmap",
	"mremap", "munmap", "nanosleep", "newfstatat", "openat", "pidfd_getfd", "pidfd_open",
	"ppoll", "prctl", "pread64", "process_vm_readv", "pwrite64", "read", "readlinkat",
	"recvfrom", "recvmsg", "rt_sigprocmask", "sched_getaffinity", "sched_setaffinity",
	"sendmsg", "setsockopt", "shutdown", "socket", "socketpair", "write", "writev", NULL
};
static const char *const tagger_families[] = { "AF_UNIX", NULL };

static void strv_free(char **list)
{
	for (char **s = list; s && *s; s++)
		free(*s);
	free(list);
}

void unit_settings_done(struct unit_settings *s)
{
	free(s->id);
	free(s->preload);
	free(s->program);
	free(s->root);
	free(s->protect_home);
	strv_free(s->env_files);
	strv_free(s->unset);
	strv_free(s->inaccessible);
	strv_free(s->tmpfs);
	strv_free(s->no_exec);
	strv_free(s->exec);
	strv_free(s->calls.names);
	strv_free(s->families.names);
}

void drop_in_done(struct drop_in *d)
{
	free(d->preload);
	free(d->runtime_dir);
	free(d->calls);
	free(d->families);
	free(d->bind);
	free(d->exec);
}

/* Entries of a filter may say with which error a call fails: "name:EPERM". */
static bool is_listed(char *const *list, const char *name)
{
	size_t n = strlen(name);

	for (; list && *list; list++)
		if (strncmp(*list, name, n) == 0 && (!(*list)[n] || (*list)[n] == ':'))
			return true;
	return false;
}

/* *words and one more, malloc'd; -ENOMEM. */
static int add_word(char **words, const char *word)
{
	char *longer = say("%s%s%s", *words ?: "", *words ? " " : "", word);

	if (!longer)
		return -ENOMEM;
	free(*words);
	*words = longer;
	return 0;
}

/*
 * Those that the filter does not let pass.  A name that is assigned once more is added to a list
 * of what is allowed, and taken out of one of what is not: the first assignment says which it is.
 */
static int add_refused(const struct unit_filter *filter, const char *const *names, char **words)
{
	for (; *names; names++)
		if (is_listed(filter->names, *names) != filter->is_allow && add_word(words, *names) < 0)
			return -ENOMEM;
	return 0;
}

/* The length of the longest path of the list that is path or above it; 0: none is. */
static size_t covered(char *const *list, const char *path)
{
	size_t longest = 0;

	for (; list && *list; list++) {
		/* "-": may be missing; "+": below RootDirectory=. */
		const char *above = *list + strspn(*list, "-+");
		size_t n = strlen(above);

		while (n > 1 && above[n - 1] == '/')
			n--;
		if (n == 1 || (strncmp(path, above, n) == 0 && (!path[n] || path[n] == '/')))
			longest = n > longest ? n : longest;
	}
	return longest;
}

static bool is_true(const char *value)
{
	return value && strcmp(value, "yes") == 0;
}

/* Is path below a mount of the unit's own that hides what lies there?  *ret_forbidden: by something
 * that cannot be opened for one path. */
static bool is_hidden(const struct unit_settings *s, const char *path, bool *ret_forbidden)
{
	static char *const homes[] = { "/home", "/root", "/run/user", NULL };
	static char *const temporary[] = { "/tmp", "/var/tmp", NULL };
	bool has_home = s->protect_home && strcmp(s->protect_home, "no") != 0 &&
			strcmp(s->protect_home, "read-only") != 0;

	*ret_forbidden = covered(s->inaccessible, path) ||
			 (is_true(s->protect_home) && covered(homes, path));
	return *ret_forbidden || covered(s->tmpfs, path) || (has_home && covered(homes, path)) ||
	       (s->private_tmp && covered(temporary, path));
}

static int plan_path(const struct unit_settings *s, const char *path, const char *what,
		     struct drop_in *d, char **ret_reason)
{
	bool forbidden;

	if (!is_hidden(s, path, &forbidden))
		return 0;
	if (forbidden) {
		*ret_reason = say("its sandbox (InaccessiblePaths=, ProtectHome=) hides %s, %s", what,
				  path);
		return -EACCES;
	}
	return add_word(&d->bind, path);
}

/* Does a file with variables set LD_PRELOAD?  It would take the place of ours. */
static bool sets_preload(const char *file)
{
	_cleanup_fclose_ FILE *f = fopen(file + strspn(file, "-"), "re");
	char line[4096];

	while (f && fgets(line, sizeof(line), f)) {
		const char *word = line + strspn(line, " \t");

		if (strncmp(word, "LD_PRELOAD", 10) == 0 && word[10 + strspn(word + 10, " \t")] == '=')
			return true;
	}
	return false;
}

static int check_environment(const struct unit_settings *s, const char *tagger, char **ret_reason)
{
	for (char **file = s->env_files; file && *file; file++)
		if (sets_preload(*file)) {
			*ret_reason = say("%s (EnvironmentFile=) sets LD_PRELOAD, which goes before what "
					  "a drop-in says; put %s in front of it there", *file, tagger);
			return -EEXIST;
		}
	if (is_listed(s->unset, "LD_PRELOAD")) {
		*ret_reason = say("the unit removes LD_PRELOAD (UnsetEnvironment=)");
		return -EPERM;
	}
	return 0;
}

int drop_in_plan(const struct unit_settings *s, const struct drop_in_paths *p, struct drop_in *ret,
		 char **ret_reason)
{
	_cleanup_(drop_in_done) struct drop_in d = {};
	int r;

	if (s->root) {
		*ret_reason = say("it runs in a root directory of its own, %s, without the preload "
				  "library and usmd's socket", s->root);
		return -EXDEV;
	}
	r = check_environment(s, p->tagger, ret_reason);
	if (r < 0)
		return r;
	r = plan_path(s, p->tagger_file, "the preload library", &d, ret_reason);
	if (r == 0)
		r = plan_path(s, p->runtime_dir, "usmd's socket", &d, ret_reason);
	if (r == 0)
		r = add_refused(&s->calls, tagger_calls, &d.calls);
	if (r == 0)
		r = add_refused(&s->families, tagger_families, &d.families);
	if (r == 0 && covered(s->no_exec, p->tagger_file) > covered(s->exec, p->tagger_file))
		r = add_word(&d.exec, p->tagger_file);
	if (r == 0) {
		d.preload = tagger_preload(p->tagger, s->preload ?: "");
		if (!p->runtime_dir_is_default)
			d.runtime_dir = strdup(p->runtime_dir);
		if (!d.preload || (!p->runtime_dir_is_default && !d.runtime_dir))
			r = -ENOMEM;
	}
	if (r < 0)
		return r;
	*ret = d;
	d = (struct drop_in){};
	return 0;
}

/* A value in quotes, with nothing in it that systemd would read as something else. */
static void write_quoted(FILE *f, const char *name, const char *value)
{
	fprintf(f, "Environment=\"%s=", name);
	for (; *value; value++) {
		if (*value == '"' || *value == '\\')
			fputc('\\', f);
		if (*value == '%')
			fputc('%', f);
		fputc(*value, f);
	}
	fputs("\"\n", f);
}

/* "-": what is missing, when usmd is not installed any more, keeps no service from starting. */
static void write_paths(FILE *f, const char *name, const char *paths)
{
	fprintf(f, "%s=-", name);
	for (; *paths; paths++) {
		fputc(*paths, f);
		if (*paths == ' ')
			fputc('-', f);
	}
	fputc('\n', f);
}

void drop_in_write(const struct drop_in *d, FILE *f)
{
	fputs(DROP_IN_MARK "\n", f);
	/* A private usmd is nobody's unit. */
	if (!d->runtime_dir)
		fputs("[Unit]\n# It starts all the same, unmanaged, when there is no usmd.\n"
		      "Wants=usmd.socket usmd.service\nAfter=usmd.socket usmd.service\n\n", f);
	fputs("[Service]\n", f);
	write_quoted(f, "LD_PRELOAD", d->preload);
	if (d->runtime_dir)
		write_quoted(f, "USMD_RUNTIME_DIR", d->runtime_dir);
	if (d->calls)
		fprintf(f, "# What the preload library calls and the unit does not let pass.\n"
			   "SystemCallFilter=%s\n", d->calls);
	if (d->families)
		fprintf(f, "# To reach usmd's socket.\nRestrictAddressFamilies=%s\n", d->families);
	if (d->bind) {
		fputs("# What a file system of the unit's own would hide.\n", f);
		write_paths(f, "BindReadOnlyPaths", d->bind);
	}
	if (d->exec)
		write_paths(f, "ExecPaths", d->exec);
}

void drop_in_explain(const struct drop_in *d, FILE *f)
{
	if (strchr(d->preload, ':'))
		fprintf(f, "What it preloads already stays: LD_PRELOAD=%s\n", d->preload);
	if (d->calls)
		fprintf(f, "Its system call filter lets these pass besides: %s\n", d->calls);
	if (d->families)
		fprintf(f, "It may use these address families besides: %s\n", d->families);
	if (d->bind)
		fprintf(f, "It sees these besides: %s\n", d->bind);
	if (d->exec)
		fprintf(f, "It may execute this besides: %s\n", d->exec);
}

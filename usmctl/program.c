/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "program.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "lib/cleanup.h"

/* The kernel follows so many scripts (BINPRM_BUF_SIZE and the depth are its own). */
#define SCRIPTS_MAX      5
#define SCRIPT_LINE_MAX  256
#define PROGRAM_HEADERS_MAX 64

#if defined(__x86_64__)
#define OWN_MACHINE EM_X86_64
#elif defined(__aarch64__)
#define OWN_MACHINE EM_AARCH64
#else
#error "not ported to this processor: name its ELF machine"
#endif

static int refuse(char **ret_reason, int err, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

static int refuse(char **ret_reason, int err, const char *fmt, ...)
{
	char *text;
	va_list ap;

	va_start(ap, fmt);
	*ret_reason = vasprintf(&text, fmt, ap) < 0 ? NULL : text;
	va_end(ap);
	return err;
}

static int path_check(const char *path)
{
	struct stat st;

	if (stat(path, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode) || access(path, X_OK) < 0)
		return -EACCES;
	return 0;
}

int program_find(const char *word, char path[static PATH_MAX])
{
	const char *dirs = getenv("PATH") ?: "/bin:/usr/bin";
	int err, found = -ENOENT;

	if (!word[0])
		return -ENOENT;
	if (strchr(word, '/')) {
		if (strlen(word) >= PATH_MAX)
			return -ENAMETOOLONG;
		strcpy(path, word);
		return path_check(path);
	}

	for (;;) {
		size_t len = strcspn(dirs, ":");
		char candidate[PATH_MAX];
		int n;

		/* An empty part is the current directory. */
		n = snprintf(candidate, sizeof(candidate), "%.*s%s%s", (int)len, dirs,
			     len > 0 ? "/" : "./", word);
		err = n > 0 && n < PATH_MAX ? path_check(candidate) : -ENOENT;
		if (err == 0) {
			strcpy(path, candidate);
			return 0;
		}
		/* A file that cannot be run does not end the search, but is the better reason. */
		if (err == -EACCES)
			found = err;
		if (!dirs[len])
			return found;
		dirs += len + 1;
	}
}

/*
 * The dynamic linker takes no preload library where exec gives privileges: set-id
 * bits that change an id, capabilities of the file.  Root has them all anyway.
 */
static int check_privileges(int fd, const char *path, char **ret_reason)
{
	struct stat st;
	bool changes;

	if (fstat(fd, &st) < 0)
		return refuse(ret_reason, -errno, "%s: %s", path, strerror(errno));
	changes = ((st.st_mode & S_ISUID) && st.st_uid != getuid()) ||
		  ((st.st_mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP) &&
		   st.st_gid != getgid());
	if (changes)
		return refuse(ret_reason, -EPERM,
			      "%s is a set-id program, and such take no preload library", path);
	if (getuid() != 0 && fgetxattr(fd, "security.capability", NULL, 0) > 0)
		return refuse(ret_reason, -EPERM,
			      "%s has file capabilities, and such programs take no preload library",
			      path);
	return 0;
}

static int check_interpreter(int fd, const Elf64_Phdr *ph, const char *path, char **ret_reason)
{
	char interpreter[PATH_MAX] = "";

	if (ph->p_filesz == 0 || ph->p_filesz >= sizeof(interpreter) ||
	    pread(fd, interpreter, ph->p_filesz, (off_t)ph->p_offset) != (ssize_t)ph->p_filesz)
		return refuse(ret_reason, -ENOEXEC, "%s: broken program header", path);
	if (strstr(interpreter, "/ld-musl"))
		return refuse(ret_reason, -ENOEXEC,
			      "%s is made for the musl C library, the preload library for glibc", path);
	return 0;
}

static int check_elf(int fd, const char *path, const unsigned char *ident, char **ret_reason)
{
	Elf64_Phdr ph[PROGRAM_HEADERS_MAX];
	Elf64_Ehdr eh;
	ssize_t size;

	if (ident[EI_CLASS] == ELFCLASS32)
		return refuse(ret_reason, -ENOEXEC, "%s is a 32-bit program", path);
	if (pread(fd, &eh, sizeof(eh), 0) != sizeof(eh) || ident[EI_CLASS] != ELFCLASS64 ||
	    eh.e_phentsize != sizeof(ph[0]) || eh.e_phnum > PROGRAM_HEADERS_MAX)
		return refuse(ret_reason, -ENOEXEC, "%s: not an ELF program that can be read", path);
	if (eh.e_machine != OWN_MACHINE)
		return refuse(ret_reason, -ENOEXEC, "%s is made for another processor", path);

	size = (ssize_t)(eh.e_phnum * sizeof(ph[0]));
	if (pread(fd, ph, (size_t)size, (off_t)eh.e_phoff) != size)
		return refuse(ret_reason, -ENOEXEC, "%s: broken program headers", path);
	for (unsigned i = 0; i < eh.e_phnum; i++)
		if (ph[i].p_type == PT_INTERP)
			return check_interpreter(fd, &ph[i], path, ret_reason);
	return refuse(ret_reason, -ENOEXEC,
		      "%s is statically linked, and such programs take no preload library", path);
}

/*
 * The program that a script's first line names.  "env NAME" is looked through: it
 * is what most scripts use to find their interpreter.
 */
static int script_interpreter(char *line, char path[static PATH_MAX])
{
	char *save = NULL, *word = strtok_r(line, " \t", &save);
	const char *base;

	if (!word)
		return -ENOEXEC;
	base = strrchr(word, '/');
	base = base ? base + 1 : word;
	if (strcmp(base, "env") == 0) {
		char *next;

		while ((next = strtok_r(NULL, " \t", &save)))
			if (next[0] != '-' && !strchr(next, '='))
				return program_find(next, path);
	}
	if (strlen(word) >= PATH_MAX)
		return -ENAMETOOLONG;
	strcpy(path, word);
	return path_check(path);
}

/* 1: it is a script, and next its interpreter; 0: a binary that is fine. */
static int inspect_one(const char *path, char next[static PATH_MAX], char **ret_reason)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	char head[SCRIPT_LINE_MAX + 1] = "";
	ssize_t n;
	int err;

	if (fd < 0)
		return refuse(ret_reason, -errno, "%s cannot be read: %s", path, strerror(errno));
	n = read(fd, head, SCRIPT_LINE_MAX);
	if (n < 0)
		return refuse(ret_reason, -errno, "%s cannot be read: %s", path, strerror(errno));

	if (n >= SELFMAG && memcmp(head, ELFMAG, SELFMAG) == 0) {
		err = check_privileges(fd, path, ret_reason);
		return err < 0 ? err : check_elf(fd, path, (unsigned char *)head, ret_reason);
	}
	if (n < 2 || memcmp(head, "#!", 2) != 0) {
		/* execvp gives what the kernel does not know to the shell. */
		strcpy(next, "/bin/sh");
		return 1;
	}
	head[strcspn(head, "\n")] = '\0';
	err = script_interpreter(head + 2, next);
	if (err < 0)
		return refuse(ret_reason, err, "the interpreter that %s names cannot be run: %s",
			      path, strerror(-err));
	return 1;
}

static void copy_base_name(char name[static NAME_MAX + 1], const char *path)
{
	const char *slash = strrchr(path, '/');

	/* A part of a path that exists is no longer than this. */
	snprintf(name, NAME_MAX + 1, "%.*s", NAME_MAX, slash ? slash + 1 : path);
}

int program_inspect(const char *path, struct program *ret, char **ret_reason)
{
	char current[PATH_MAX], next[PATH_MAX];

	snprintf(current, sizeof(current), "%s", path);
	for (int i = 0; i < SCRIPTS_MAX; i++) {
		int r = inspect_one(current, next, ret_reason);

		if (r < 0)
			return r;
		if (r == 0) {
			if (!realpath(current, next))
				return refuse(ret_reason, -errno, "%s: %s", current, strerror(errno));
			strcpy(ret->path, current);
			copy_base_name(ret->called, current);
			copy_base_name(ret->file, next);
			return 0;
		}
		strcpy(current, next);
	}
	return refuse(ret_reason, -ELOOP, "%s: too many scripts call each other", path);
}

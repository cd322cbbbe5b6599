/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* links: usmd/config.c usmd/config-parse.c usmd/config-assign.c usmd/lib/log.c usmd/lib/parse.c */
/* Which files are read, in which order, and the one that usmctl assign writes. */
#include "config-fixture.h"

#include <dirent.h>
#include <sched.h>
#include <sys/mount.h>

#define MIB 1048576ull

static const char *get(const char *path)
{
	static char text[8192];
	char full[256];
	size_t n;
	FILE *f;

	snprintf(full, sizeof(full), "%s/%s", root, path);
	f = fopen(full, "r");
	assert_non_null(f);
	n = fread(text, 1, sizeof(text) - 1, f);
	text[n] = '\0';
	fclose(f);
	return text;
}

static int load_path(struct usm_config **ret)
{
	int r;

	capture_begin(&capture);
	r = usm_config_load(NULL, root, ret);
	keep_log();
	return r;
}

/* No file at all is the shipped configuration. */
static void test_nothing(void **state)
{
	struct usm_config *c;

	(void)state;
	assert_int_equal(load_path(&c), 0);
	assert_string_equal(logged, "");
	assert_int_equal(c->faultaround, 64);
	usm_config_free(c);
}

/* All errors of all files, not the first alone. */
static void test_every_error(void **state)
{
	struct usm_config *c = NULL;

	(void)state;
	put("etc/usmd/usmd.conf", "workers 0\nmemory 64M\nfoult 1\n");
	put("run/usmd/conf.d/10-a.conf", "# a\n\noom never\n");
	assert_int_equal(load_path(&c), -EINVAL);
	assert_null(c);
	assert_string_equal(logged,
		"usmd: /etc/usmd/usmd.conf:1: bad value '0' for workers, expected a number from 1 "
		"to 64\n"
		"usmd: /etc/usmd/usmd.conf:3: unknown directive 'foult', expected one of memory, "
		"workers, page, process, priority, threshold, limit, default, swap, watermark, "
		"faultaround, mechanism, eviction, oom, grace, policy, allow\n"
		"usmd: /run/usmd/conf.d/10-a.conf:3: bad value 'never' for oom, expected wait, "
		"exceed or kill\n");
}

static void test_search_path(void **state)
{
	char null_link[96];
	struct usm_config *c;

	(void)state;
	/* The main file comes first, then by name, whatever the directory. */
	put("etc/usmd/usmd.conf", "workers 1\nfaultaround 1\noom wait\ndefault main\n");
	put("usr/lib/usmd/conf.d/20-b.conf", "workers 2\nprocess b lib\n");
	put("run/usmd/conf.d/10-a.conf", "workers 3\nfaultaround 2\nprocess a run\n");
	assert_int_equal(load_path(&c), 0);
	assert_int_equal(c->workers, 2);
	assert_int_equal(c->faultaround, 2);
	assert_int_equal(c->oom, USM_OOM_WAIT);
	assert_string_equal(usm_config_find(c, "b")->alloc_policy, "lib");
	usm_config_free(c);

	/* /etc replaces the file of /usr/lib, /run that of /etc, as a whole. */
	put("etc/usmd/conf.d/20-b.conf", "workers 4\n");
	assert_int_equal(load_path(&c), 0);
	assert_int_equal(c->workers, 4);
	assert_null(usm_config_find(c, "b"));
	usm_config_free(c);
	put("run/usmd/conf.d/20-b.conf", "workers 5\n");
	assert_int_equal(load_path(&c), 0);
	assert_int_equal(c->workers, 5);
	usm_config_free(c);

	/* Bytes, not letters of a language: upper case before lower. */
	put("etc/usmd/conf.d/Z.conf", "default upper\n");
	put("usr/lib/usmd/conf.d/a.conf", "default lower\n");
	assert_int_equal(load_path(&c), 0);
	assert_string_equal(c->default_policy, "lower");
	usm_config_free(c);

	/* Not read: other names, hidden files.  Replaced by nothing: a link to /dev/null. */
	put("etc/usmd/conf.d/.hidden.conf", "nonsense\n");
	put("etc/usmd/conf.d/z.conf.bak", "nonsense\n");
	put("etc/usmd/conf.d/.conf", "nonsense\n");
	put("run/usmd/conf.d/sub.conf/x", "nonsense\n");
	snprintf(null_link, sizeof(null_link), "%s/run/usmd/conf.d/a.conf", root);
	assert_int_equal(symlink("/dev/null", null_link), 0);
	assert_int_equal(load_path(&c), 0);
	assert_string_equal(logged, "");
	assert_string_equal(c->default_policy, "upper");
	usm_config_free(c);
}

static void test_merged_record(void **state)
{
	const struct usm_config_process *p;
	struct usm_config *c;
	char path[128];

	(void)state;
	put("etc/usmd/usmd.conf", "\nprocess a one\nlimit a 1G\n");
	put("etc/usmd/conf.d/10.conf", "priority a 3\nlimit a 2G\n");
	assert_int_equal(load_path(&c), 0);
	p = usm_config_find(c, "a");
	assert_string_equal(p->alloc_policy, "one");
	assert_int_equal(p->limit_bytes, 2147483648);
	assert_int_equal(p->priority, 3);
	/* Where the policy was said, not the limit. */
	snprintf(path, sizeof(path), "%s/etc/usmd/usmd.conf", root);
	assert_string_equal(p->file, path);
	assert_int_equal(p->line, 2);
	usm_config_free(c);

	/* Both files of usmctl count, what holds until the next boot last. */
	put("etc/usmd/conf.d/50-usmctl.conf", "process a etc\nprocess b etc\n");
	put("run/usmd/conf.d/50-usmctl.conf", "process a run\n");
	assert_int_equal(load_path(&c), 0);
	assert_string_equal(usm_config_find(c, "a")->alloc_policy, "run");
	assert_string_equal(usm_config_find(c, "b")->alloc_policy, "etc");
	usm_config_free(c);
}

static void test_unreadable(void **state)
{
	struct usm_config *c = (struct usm_config *)root;
	char link[96];

	(void)state;
	assert_int_equal(load_file("missing", &c), -ENOENT);
	assert_string_equal(logged, "usmd: /missing: can't be read: No such file or directory\n");
	put("d/x", "");
	assert_int_equal(load_file("d", &c), -EISDIR);
	assert_string_equal(logged, "usmd: /d: can't be read: Is a directory\n");
	put("etc/usmd/conf.d", "");
	assert_int_equal(load_path(&c), -ENOTDIR);
	assert_string_equal(logged, "usmd: /etc/usmd/conf.d: can't be read: Not a directory\n");
	assert_ptr_equal(c, root);

	/* A device without end. */
	capture_begin(&capture);
	assert_int_equal(usm_config_load("/dev/zero", NULL, &c), -EFBIG);
	assert_string_equal(capture_end(&capture),
			    "usmd: /dev/zero: can't be read: File too large\n");

	snprintf(link, sizeof(link), "%s/run/usmd/conf.d/x.conf", root);
	put("run/usmd/conf.d/y.conf", "");
	assert_int_equal(symlink("nowhere", link), 0);
	snprintf(link, sizeof(link), "%s/etc/usmd/conf.d", root);
	assert_int_equal(unlink(link), 0);
	assert_int_equal(load_path(&c), 0);
	assert_string_equal(logged, "usmd: /run/usmd/conf.d/x.conf: No such file or directory, "
				    "ignoring\n");
	usm_config_free(c);
}

/* --config FILE with a runtime directory: its conf.d is read after the file. */
static void test_private_instance(void **state)
{
	struct usm_config *c;
	char file[96];

	(void)state;
	put("f", "workers 2\nprocess a one\n");
	put("conf.d/50-usmctl.conf", "process a two\n");
	put("etc/usmd/usmd.conf", "nonsense\n");
	snprintf(file, sizeof(file), "%s/f", root);
	assert_int_equal(usm_config_load(file, root, &c), 0);
	assert_int_equal(c->workers, 2);
	assert_string_equal(usm_config_find(c, "a")->alloc_policy, "two");
	usm_config_free(c);
	assert_int_equal(usm_config_load(file, "", &c), 0);
	assert_string_equal(usm_config_find(c, "a")->alloc_policy, "one");
	usm_config_free(c);
}

#define HEADER "# Written by \"usmctl assign\" and \"usmctl unassign\"; see usmd.conf(5).\n"
#define ASSIGN_FILE "etc/usmd/conf.d/50-usmctl.conf"

static const char *dir(void)
{
	static char path[96];

	snprintf(path, sizeof(path), "%s/etc/usmd/conf.d", root);
	return path;
}

/* The assignments' directory holds that one file, readable by all: no litter. */
static void assert_clean(void)
{
	struct dirent *entry;
	char path[160];
	struct stat st;
	DIR *d = opendir(dir());

	assert_non_null(d);
	while ((entry = readdir(d)))
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			assert_string_equal(entry->d_name, "50-usmctl.conf");
	closedir(d);
	snprintf(path, sizeof(path), "%s/50-usmctl.conf", dir());
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0644);
}

static void test_assign_set(void **state)
{
	const struct usm_config_process *p;
	struct usm_config *c;

	(void)state;
	/* The directory is made, too, but only usmd's own part of the path. */
	assert_int_equal(usm_config_assign_set(dir(), "a", 'b', "one", UINT64_MAX, false), -ENOENT);
	put("etc/other", "");
	assert_int_equal(usm_config_assign_set(dir(), "a", 'b', "one", UINT64_MAX, false), 0);
	assert_string_equal(get(ASSIGN_FILE), HEADER "process a one\n");
	assert_clean();

	assert_int_equal(usm_config_assign_set(dir(), "b", 'b', "two", 64 * MIB, false), 0);
	assert_string_equal(get(ASSIGN_FILE), HEADER "process a one\nprocess b two\nlimit b 64M\n");

	/* NULL and UINT64_MAX keep. */
	assert_int_equal(usm_config_assign_set(dir(), "a", 's', "three", UINT64_MAX, false), 0);
	assert_string_equal(get(ASSIGN_FILE), HEADER "process b two\nlimit b 64M\n"
			    "process alloc a one\nprocess swap a three\n");
	assert_int_equal(usm_config_assign_set(dir(), "a", 'b', NULL, 1536 * 1024, false), 0);
	assert_string_equal(get(ASSIGN_FILE), HEADER "process b two\nlimit b 64M\n"
			    "process alloc a one\nprocess swap a three\nlimit a 1536K\n");
	assert_int_equal(usm_config_assign_set(dir(), "a", 'a', "three", UINT64_MAX, false), 0);
	assert_int_equal(usm_config_assign_set(dir(), "b", 'b', "four", 0, false), 0);
	assert_int_equal(usm_config_assign_set(dir(), "c", 'a', "five", 1ull << 40, false), 0);
	assert_string_equal(get(ASSIGN_FILE), HEADER "process a three\nlimit a 1536K\n"
			    "process b four\nlimit b 0\n"
			    "process alloc c five\nlimit c 1T\n");
	/* "No limit" stays said. */
	assert_int_equal(usm_config_assign_set(dir(), "b", 's', "six", UINT64_MAX, false), 0);
	assert_string_equal(get(ASSIGN_FILE), HEADER "process a three\nlimit a 1536K\n"
			    "process alloc c five\nlimit c 1T\n"
			    "process alloc b four\nprocess swap b six\nlimit b 0\n");
	assert_clean();

	/* The round trip. */
	assert_int_equal(load_path(&c), 0);
	assert_string_equal(logged, "");
	assert_int_equal(c->nr_processes, 3);
	p = usm_config_find(c, "a");
	assert_string_equal(p->alloc_policy, "three");
	assert_string_equal(p->swap_policy, "three");
	assert_int_equal(p->limit_bytes, 1572864);
	p = usm_config_find(c, "b");
	assert_string_equal(p->alloc_policy, "four");
	assert_string_equal(p->swap_policy, "six");
	assert_int_equal(p->limit_bytes, 0);
	p = usm_config_find(c, "c");
	assert_string_equal(p->alloc_policy, "five");
	assert_string_equal(p->swap_policy, "");
	assert_int_equal(p->limit_bytes, 1099511627776);
	usm_config_free(c);
}

static void test_assign_invalid(void **state)
{
	(void)state;
	put(ASSIGN_FILE, "process a one\n");
	assert_int_equal(usm_config_assign_set(dir(), "a b", 'b', "one", UINT64_MAX, false), -EINVAL);
	assert_int_equal(usm_config_assign_set(dir(), "a\nworkers", 'b', "one", 0, false), -EINVAL);
	assert_int_equal(usm_config_assign_set(dir(), "", 'b', "one", UINT64_MAX, false), -EINVAL);
	assert_int_equal(usm_config_assign_set(dir(), "a", 'b', "o/ne", UINT64_MAX, false), -EINVAL);
	assert_int_equal(usm_config_assign_set(dir(), "a", 'x', "one", UINT64_MAX, false), -EINVAL);
	assert_int_equal(usm_config_assign_set(dir(), "a", 'b', "one", MIB - 1, false), -ERANGE);
	assert_int_equal(usm_config_assign_set(dir(), "a", 'b', "one", (1ull << 47) + 1, false), -ERANGE);
	assert_int_equal(usm_config_assign_unset(dir(), "a/b"), -EINVAL);
	assert_string_equal(get(ASSIGN_FILE), "process a one\n");
	assert_clean();
}

static void test_assign_unset(void **state)
{
	(void)state;
	assert_int_equal(usm_config_assign_unset(dir(), "a"), -ENOENT);
	put(ASSIGN_FILE, "");
	assert_int_equal(usm_config_assign_unset(dir(), "a"), -ENOENT);

	assert_int_equal(usm_config_assign_set(dir(), "a", 'a', "one", 64 * MIB, false), 0);
	assert_int_equal(usm_config_assign_set(dir(), "aa", 'b', "two", UINT64_MAX, false), 0);
	assert_int_equal(usm_config_assign_set(dir(), "alloc", 'b', "two", UINT64_MAX, false), 0);
	assert_int_equal(usm_config_assign_unset(dir(), "b"), -ENOENT);
	assert_int_equal(usm_config_assign_unset(dir(), "two"), -ENOENT);
	assert_int_equal(usm_config_assign_unset(dir(), "a"), 0);
	assert_string_equal(get(ASSIGN_FILE), "process aa two\nprocess alloc two\n");
	assert_int_equal(usm_config_assign_unset(dir(), "a"), -ENOENT);
	assert_int_equal(usm_config_assign_unset(dir(), "alloc"), 0);
	assert_int_equal(usm_config_assign_unset(dir(), "aa"), 0);
	assert_string_equal(get(ASSIGN_FILE), "");
	assert_clean();
}

/* What somebody else wrote into the file stays; what is wrong in it is not guessed at. */
static void test_assign_foreign_lines(void **state)
{
	int r;

	(void)state;
	put(ASSIGN_FILE, "# mine  # kept\n\n  priority a 4\nprocess a one # note\n"
			 "\tlimit  a  64\nworkers 3");
	assert_int_equal(usm_config_assign_set(dir(), "a", 's', "two", UINT64_MAX, false), 0);
	assert_string_equal(get(ASSIGN_FILE), "# mine  # kept\n\n  priority a 4\nworkers 3\n"
			    "process alloc a one\nprocess swap a two\nlimit a 64M\n");
	assert_int_equal(usm_config_assign_unset(dir(), "a"), 0);
	assert_string_equal(get(ASSIGN_FILE), "# mine  # kept\n\n  priority a 4\nworkers 3\n");

	put(ASSIGN_FILE, "process a one\nproces b two\n");
	capture_begin(&capture);
	r = usm_config_assign_set(dir(), "a", 'b', "two", UINT64_MAX, false);
	keep_log();
	assert_int_equal(r, -EINVAL);
	assert_non_null(strstr(logged, "50-usmctl.conf:2: unknown directive 'proces', expected "));
	assert_string_equal(get(ASSIGN_FILE), "process a one\nproces b two\n");
	assert_clean();
}

/* The old file is replaced, never rewritten: who has it open reads the old content to
 * its end, and a directory that can't be written leaves it as it was. */
static void test_assign_atomic(void **state)
{
	char path[160], text[64] = "";
	struct stat before, after;
	FILE *f;

	(void)state;
	put(ASSIGN_FILE, "process a one\n");
	snprintf(path, sizeof(path), "%s/50-usmctl.conf", dir());
	f = fopen(path, "r");
	assert_non_null(f);
	assert_int_equal(stat(path, &before), 0);
	assert_int_equal(usm_config_assign_set(dir(), "a", 'b', "two", UINT64_MAX, false), 0);
	assert_int_equal(stat(path, &after), 0);
	assert_true(before.st_ino != after.st_ino);
	assert_non_null(fgets(text, sizeof(text), f));
	assert_string_equal(text, "process a one\n");
	fclose(f);

	/* A full disk: the file, and nothing else, is what it was. */
	if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("tmpfs", dir(), "tmpfs", 0, "size=4096,nr_inodes=3") < 0) {
		print_message("a full disk was not tried: mounting needs root: %s\n",
			      strerror(errno));
		return;
	}
	put(ASSIGN_FILE, "process a one\n");
	assert_int_equal(usm_config_assign_set(dir(), "a", 'b', "two", UINT64_MAX, false), -ENOSPC);
	assert_string_equal(get(ASSIGN_FILE), "process a one\n");
	assert_clean();
	assert_int_equal(umount(dir()), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		TEST(test_nothing), TEST(test_every_error), TEST(test_search_path),
		TEST(test_merged_record), TEST(test_unreadable), TEST(test_private_instance),
		TEST(test_assign_set), TEST(test_assign_invalid), TEST(test_assign_unset),
		TEST(test_assign_foreign_lines), TEST(test_assign_atomic),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* links: usmctl/drop-in.c usmctl/tagger.c */
/* What attach-unit's drop-in says, by the settings of the unit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "usmctl/drop-in.h"
#include "usmctl/tagger.h"

static const struct drop_in_paths installed = {
	.tagger = "/usr/$LIB/libusm-tagger.so",
	.tagger_file = "/usr/lib/libusm-tagger.so",
	.runtime_dir = "/run/usmd",
	.runtime_dir_is_default = true,
};

/* The whole text that settings lead to. */
static void expect(const struct unit_settings *s, const struct drop_in_paths *paths, const char *text)
{
	struct drop_in d = {};
	char *reason = NULL, *written = NULL;
	size_t size;
	FILE *f;

	assert_int_equal(drop_in_plan(s, paths, &d, &reason), 0);
	assert_null(reason);
	f = open_memstream(&written, &size);
	drop_in_write(&d, f);
	fclose(f);
	assert_string_equal(written, text);
	free(written);
	drop_in_done(&d);
}

static void expect_refused(const struct unit_settings *s, const char *part)
{
	struct drop_in d = {};
	char *reason = NULL;

	assert_true(drop_in_plan(s, &installed, &d, &reason) < 0);
	assert_non_null(reason);
	if (!strstr(reason, part))
		fail_msg("'%s' is not in: %s", part, reason);
	free(reason);
}

#define HEAD "# Written by \"usmctl attach-unit\"; \"usmctl detach-unit\" removes it.\n"
#define UNIT \
	HEAD "[Unit]\n# It starts all the same, unmanaged, when there is no usmd.\n" \
	"Wants=usmd.socket usmd.service\nAfter=usmd.socket usmd.service\n\n[Service]\n"
#define PRELOAD "Environment=\"LD_PRELOAD=/usr/$LIB/libusm-tagger.so\"\n"
#define LIST(...) ((char *[]){ __VA_ARGS__ __VA_OPT__(,) NULL })

static void test_nothing_set(void **state)
{
	struct drop_in_paths private = installed;

	(void)state;
	expect(&(struct unit_settings){}, &installed, UNIT PRELOAD);
	private.runtime_dir = "/srv/a \"b\" 5%\\c";
	private.runtime_dir_is_default = false;
	expect(&(struct unit_settings){}, &private,
	       HEAD "[Service]\n" PRELOAD
	       "Environment=\"USMD_RUNTIME_DIR=/srv/a \\\"b\\\" 5%%\\\\c\"\n");
}

static void test_preload_is_kept(void **state)
{
	(void)state;
	expect(&(struct unit_settings){ .preload = "/a.so /b.so" }, &installed,
	       UNIT "Environment=\"LD_PRELOAD=/usr/$LIB/libusm-tagger.so:/a.so:/b.so\"\n");
	/* It is there already, behind another. */
	expect(&(struct unit_settings){ .preload = "/a.so:/usr/$LIB/libusm-tagger.so" }, &installed,
	       UNIT "Environment=\"LD_PRELOAD=/usr/$LIB/libusm-tagger.so:/a.so\"\n");
	expect(&(struct unit_settings){ .preload = "" }, &installed, UNIT PRELOAD);
}

static void test_call_filter(void **state)
{
	struct unit_settings s = {};
	struct drop_in d;
	char *reason;

	(void)state;
	/* All but two of what it needs, and more. */
	s.calls = (struct unit_filter){ .is_allow = true, .names = LIST("read", "write", "bind") };
	assert_int_equal(drop_in_plan(&s, &installed, &d, &reason), 0);
	assert_null(strstr(d.calls, "read "));
	assert_null(strstr(d.calls, " write "));
	assert_null(strstr(d.calls, "bind"));
	assert_non_null(strstr(d.calls, "brk "));
	assert_non_null(strstr(d.calls, "process_vm_readv"));
	drop_in_done(&d);

	/* What is refused, with an error of its own or without. */
	s.calls = (struct unit_filter){ .names = LIST("ptrace", "pidfd_getfd:EPERM", "writev", "mount") };
	expect(&s, &installed, UNIT PRELOAD
	       "# What the preload library calls and the unit does not let pass.\n"
	       "SystemCallFilter=pidfd_getfd writev\n");
	/* Nothing is refused: a filter would be made by one. */
	s.calls = (struct unit_filter){ .names = LIST("ptrace") };
	expect(&s, &installed, UNIT PRELOAD);
}

static void test_families(void **state)
{
	struct unit_settings s = {};

	(void)state;
	s.families = (struct unit_filter){ .is_allow = true, .names = LIST("AF_INET", "AF_UNIX") };
	expect(&s, &installed, UNIT PRELOAD);
	s.families = (struct unit_filter){ .is_allow = true, .names = LIST("AF_INET") };
	expect(&s, &installed,
	       UNIT PRELOAD "# To reach usmd's socket.\nRestrictAddressFamilies=AF_UNIX\n");
	/* RestrictAddressFamilies=none */
	s.families = (struct unit_filter){ .is_allow = true };
	expect(&s, &installed,
	       UNIT PRELOAD "# To reach usmd's socket.\nRestrictAddressFamilies=AF_UNIX\n");
	s.families = (struct unit_filter){ .names = LIST("AF_UNIX") };
	expect(&s, &installed,
	       UNIT PRELOAD "# To reach usmd's socket.\nRestrictAddressFamilies=AF_UNIX\n");
}

#define BIND UNIT PRELOAD "# What a file system of the unit's own would hide.\nBindReadOnlyPaths="

static void test_paths(void **state)
{
	struct drop_in_paths in_tmp = installed;

	(void)state;
	expect(&(struct unit_settings){ .tmpfs = LIST("/run") }, &installed, BIND "-/run/usmd\n");
	expect(&(struct unit_settings){ .tmpfs = LIST("/") }, &installed,
	       BIND "-/usr/lib/libusm-tagger.so -/run/usmd\n");
	expect(&(struct unit_settings){ .tmpfs = LIST("/run/other", "/run/usm", "/ru") }, &installed,
	       UNIT PRELOAD);
	expect(&(struct unit_settings){ .no_exec = LIST("/"), .exec = LIST("/usr/bin/a", "/usr/lib") },
	       &installed, UNIT PRELOAD);
	expect(&(struct unit_settings){ .no_exec = LIST("/"), .exec = LIST("/usr/bin/a") }, &installed,
	       UNIT PRELOAD "ExecPaths=-/usr/lib/libusm-tagger.so\n");
	expect(&(struct unit_settings){ .no_exec = LIST("-/usr/lib/"), .exec = LIST("/usr") },
	       &installed, UNIT PRELOAD "ExecPaths=-/usr/lib/libusm-tagger.so\n");
	expect(&(struct unit_settings){ .private_tmp = true }, &installed, UNIT PRELOAD);
	expect(&(struct unit_settings){ .protect_home = "yes" }, &installed, UNIT PRELOAD);
	in_tmp.tagger_file = "/tmp/t.so";
	expect(&(struct unit_settings){ .private_tmp = true }, &in_tmp, BIND "-/tmp/t.so\n");
	in_tmp.tagger_file = "/home/t.so";
	expect(&(struct unit_settings){ .protect_home = "tmpfs" }, &in_tmp, BIND "-/home/t.so\n");
	expect(&(struct unit_settings){ .protect_home = "read-only" }, &in_tmp, UNIT PRELOAD);
}

static void test_refused(void **state)
{
	char file[] = "/tmp/usm-test-env.XXXXXX", *name;
	int fd = mkstemp(file);

	(void)state;
	expect_refused(&(struct unit_settings){ .root = "/srv/root" }, "root directory of its own");
	expect_refused(&(struct unit_settings){ .inaccessible = LIST("-/run") }, "hides usmd's socket");
	expect_refused(&(struct unit_settings){ .inaccessible = LIST("+/usr/lib") },
		       "hides the preload library");
	expect_refused(&(struct unit_settings){ .unset = LIST("A", "LD_PRELOAD") }, "UnsetEnvironment=");

	assert_true(write(fd, "A=1\nLD_PRELOADED=1\n# LD_PRELOAD=x\n", 34) == 34);
	expect(&(struct unit_settings){ .env_files = LIST(file, "-/nonexistent") }, &installed,
	       UNIT PRELOAD);
	assert_true(write(fd, "  LD_PRELOAD = /x.so\n", 21) == 21);
	name = say("-%s", file);
	expect_refused(&(struct unit_settings){ .env_files = LIST("/nonexistent", name) },
		       "sets LD_PRELOAD");
	free(name);
	close(fd);
	unlink(file);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_nothing_set), cmocka_unit_test(test_preload_is_kept),
		cmocka_unit_test(test_call_filter), cmocka_unit_test(test_families),
		cmocka_unit_test(test_paths), cmocka_unit_test(test_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

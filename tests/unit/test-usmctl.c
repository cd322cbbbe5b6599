/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* links: usmd/control*.c usmd/acceptor.c usmd/closer.c usmd/offence.c usmd/lib/varlink.c usmd/lib/fields.c usmd/lib/log.c usmd/lib/parse.c */
/*
 * usmctl as a user meets it, against the control service on a made-up manager:
 * what it prints, how it ends, what "run" checks.  Takes the usmctl that $USMCTL
 * names, else build/usmctl.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "fake-manager.h"

#include "control.h"
#include "lib/log.h"
#include "lib/varlink.h"

static char dir[64];
static const char *usmctl;
static pid_t server;
static char output[1 << 20];

static void serve(int fd)
{
	struct manager m;
	struct control *c;

	/* cmocka's handlers are for the parent. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	usm_log_set_level(LOG_ERR);
	fake_manager_init(&m);
	m.evict_later = true;
	if (control_new(&m, fd, &c) < 0)
		_exit(1);
	sd_event_loop(m.event);
	_exit(1);
}

static int start_server(void **state)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd;

	(void)state;
	usmctl = getenv("USMCTL") ?: "build/usmctl";
	if (access(usmctl, X_OK) < 0) {
		print_message("All is skipped: there is no %s; 'make' builds it.\n", usmctl);
		return 0;
	}
	snprintf(dir, sizeof(dir), "/tmp/usm-test-usmctl.XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s", dir, USM_VARLINK_SOCKET);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, (void *)&address, sizeof(address)) < 0 || listen(fd, 16) < 0)
		return -1;
	setenv("USMD_RUNTIME_DIR", dir, 1);
	unsetenv("USMD_TAGGER");
	unsetenv("LD_PRELOAD");
	server = fork();
	if (server == 0)
		serve(fd);
	close(fd);
	return server > 0 ? 0 : -1;
}

static int stop_server(void **state)
{
	char command[128];

	(void)state;
	if (server <= 0)
		return 0;
	kill(server, SIGKILL);
	waitpid(server, NULL, 0);
	snprintf(command, sizeof(command), "rm -rf '%s'", dir);
	return system(command);
}

/* Runs "<before> usmctl <arguments>" in a shell: exit status; output is both streams. */
static int run(const char *before, const char *arguments)
{
	char command[2048];
	size_t n;
	FILE *f;
	int status;

	if (server <= 0)
		skip();
	snprintf(command, sizeof(command), "%s timeout 20 %s %s 2>&1 </dev/null", before, usmctl,
		 arguments);
	f = popen(command, "re");
	assert_non_null(f);
	n = fread(output, 1, sizeof(output) - 1, f);
	output[n] = '\0';
	status = pclose(f);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

#define expect(arguments, status, text) expect_("", arguments, status, text, __LINE__)
static void expect_(const char *before, const char *arguments, int status, const char *text,
		    int line)
{
	int got = run(before, arguments);

	if (got != status || !strstr(output, text))
		fail_msg("line %d: usmctl %s: status %d, expected %d; does not say '%s':\n%s", line,
			 arguments, got, status, text, output);
}

static void test_status(void **state)
{
	(void)state;
	expect("status", 0, "9.8.7, keeper 11, engine 12, restarted 1 times");
	expect("status", 0, "400 pages (1.5M) of 1000 (3.9M) free");
	expect("status --json", 0, "{\"version\":\"9.8.7\",\"mechanism\":\"userfault\"");
	expect("--json status", 0, "{\"version\":\"9.8.7\",\"mechanism\":\"userfault\"");
}

static void test_lists(void **state)
{
	(void)state;
	expect("list processes", 0, "db\t100\tpolicyOne\t10\t20\t256\t5\t");
	expect("list processes", 0, "\t8\t9\t10\t3\tlocked by mlock\n");
	expect("list processes", 0, "web\t102\tpolicyOne\t0\t0\t-\t0\t");
	expect("list free", 0, "FRAME\n0x0\n0x1000\n0x2000\n");
	expect("list assignments", 0, "db\tpolicyOne\tpolicyOne\t1M\t/etc/usmd/usmd.conf:4\n");
	expect("list policies", 0, "mine\tswap\tset aside\t0\t0\t0\t0\t0\t/opt/mine.so\n");
	expect("list swap", 0, "/var/lib/usmd/swap\t7.8M\t28K\t-1\t30\t40\t0\tio_uring,direct\n");
}

static unsigned nr_lines(void)
{
	unsigned n = 0;

	for (const char *p = output; *p; p++)
		n += *p == '\n';
	return n;
}

static void test_list_used(void **state)
{
	(void)state;
	expect("list used", 0, "0x1000\t0x7000\t102\tweb\t1.500\n");
	assert_int_equal(nr_lines(), 52); /* a title, 50 rows, how many more there are */
	assert_non_null(strstr(output, "2500 in all"));
	expect("list used --all", 0, "\n0x9c3000\t");
	assert_int_equal(nr_lines(), 2501);
	expect("list used --offset 2490 --count 100", 0, "\n0x9ba000\t");
	assert_int_equal(nr_lines(), 11);
	expect("list used --process web --count 1", 0, "0x0\t");
	expect("list used --process 102 --count 1", 0, "0x0\t");
	expect("list used --process nobody", 1, "no managed process");
	/* The replies as they are, one a line. */
	expect("list used --all --json", 0, "\"total\":2500}\n");
	assert_int_equal(nr_lines(), 3);
	expect("list used --all --count 5", 2, "--all goes with neither");
	expect("list used --count 0", 2, "expected a number");
	expect("list used --offset x", 2, "expected a number");
}

static void test_assign(void **state)
{
	(void)state;
	expect("assign db policyOne --limit 64M", 0,
	       "db: policyOne, limit 64M, kept across restarts.\n2 running processes were taken "
	       "over.\n1 running program of that name is not managed");
	/* None of that name really runs here, so it is the plain line. */
	assert_non_null(strstr(output, "usmctl --runtime-dir /tmp/usm-test-usmctl."));
	assert_non_null(strstr(output, " run -- db\n"));
	expect("assign db --limit 0 --runtime", 0, "until the next boot");
	expect("assign db policyOne --json", 0, "{\"takenOver\":2,\"unmanaged\":1}\n");
	expect("assign db nope", 1, "there is no policy 'nope'; 'usmctl list policies'");
	expect("assign readonly policyOne", 1, "/etc/usmd is read-only");
	expect("assign db", 2, "say which POLICY");
	expect("assign", 2, "expected NAME");
	expect("assign db a b", 2, "unexpected argument 'b'");
	expect("assign 'a b' policyOne", 2, "no program's name");
	expect("assign unit:s.service policyOne", 0, "  usmctl attach-unit s.service --policy policyOne\n");
	expect("assign unit:s.service --limit 1M", 0, "attach-unit s.service --policy POLICY\n");
	expect("assign user:root policyOne", 0, "of that user is not managed");
	expect("assign unit:s policyOne", 2, "or unit:NAME.service, or user:NAME");
	expect("assign user: policyOne", 2, "or unit:NAME.service, or user:NAME");
	expect("assign db policyOne --limit much", 2, "expected a size");
	expect("assign db policyOne --limit", 2, "needs a value");
	expect("assign db policyOne --alloc --swap", 2, "exclude each other");
	expect("unassign temporary", 0, "Nothing is assigned to temporary");
	expect("unassign db", 1, "/etc/usmd/usmd.conf:4");
	expect("unassign other", 1, "nothing is assigned to 'other'");
}

/* A program of that name that runs gets its own command line. */
static void test_assign_writes_command_lines(void **state)
{
	char before[256], line[256];

	(void)state;
	if (server <= 0)
		skip();
	snprintf(before, sizeof(before),
		 "cp /bin/sleep %s/usm-sleeper; %s/usm-sleeper 3 0.5s '0' >/dev/null 2>&1 & sleep 0.5;",
		 dir, dir);
	expect_(before, "assign usm-sleeper policyOne", 0, "is not managed", __LINE__);
	snprintf(line, sizeof(line), "run -- %s/usm-sleeper 3 0.5s 0   # now process ", dir);
	assert_non_null(strstr(output, line));
}

static void test_evict(void **state)
{
	(void)state;
	expect("evict 100 --pages 7", 0, "7 pages (28K) left memory.");
	expect("evict db --pages 8", 1, "not more left: the rest is locked");
	expect("evict db --size 28K", 0, "7 pages");
	expect("evict db --size 28673", 1, "7 pages"); /* 8 pages hold so many bytes */
	expect("evict db --all", 1, "the rest is locked");
	expect("evict db --all --json", 1, "{\"evicted\":7,\"reason\":\"the rest is locked\"}");
	expect("evict nobody --all", 1, "no managed process");
	expect("evict db", 2, "say how much");
	expect("evict db --all --pages 3", 2, "say how much");
	expect("evict db --pages -1", 2, "expected a number");
	expect("evict db --size 0", 2, "expected a size");
	expect("evict", 2, "expected NAME|PID");
}

static void test_changes(void **state)
{
	(void)state;
	expect("swap add /s 4G --priority -3", 0, "/s is in use");
	expect("swap add /foreign 4G", 1, "not a swap file of usmd");
	expect("swap add /s", 2, "expected FILE SIZE");
	expect("swap add /s lots", 2, "expected a size");
	expect("swap remove /nothing", 1, "there is no swap device '/nothing'");
	expect("swap remove /swap", 0, "/swap is removed.");
	expect("swap", 2, "'swap add' 'swap remove'");
	expect("policy load /opt/mine.so", 0, "is loaded");
	expect("policy load other.so", 1, "the file must be root's");
	expect("policy unload mine", 0, "mine is unloaded");
	expect("policy unload policyOne", 1, "policyOne is in use");
	expect("policy reload mine", 0, "/opt/mine.so is loaded");
	expect("policy reload policyOne", 1, "comes with usmd");
	expect("policy reload nope", 1, "there is no policy 'nope'");
	expect("reload", 1, "usmd.conf:5: unknown directive");
	expect("monitor --count 2", 0, "FAULTS/S");
	assert_int_equal(nr_lines(), 3);
	expect("monitor --count 1 --json", 0, ",\"status\":{\"version\"");
	expect("monitor --count 0", 2, "expected a number");
}

static void test_usage(void **state)
{
	(void)state;
	expect("", 2, "no command; see 'usmctl --help'");
	expect("nonsense", 2, "there is no command 'nonsense'");
	expect("list nonsense", 2, "'list processes'");
	expect("status --nonsense", 2, "unknown option '--nonsense'; see 'usmctl status --help'");
	expect("status extra", 2, "unexpected argument 'extra'");
	expect("--help", 0, "swap remove FILE");
	expect("evict --help", 0, "--size SIZE");
	expect("--version", 0, "usmctl ");
	expect("--runtime-dir /nonexistent status", 1, "usmd --runtime-dir /nonexistent");
	expect("status --runtime-dir /nonexistent", 1, "nobody answers");
	expect_("USMD_RUNTIME_DIR=", "status --runtime-dir /run/no-usmd", 1, "nobody answers",
		__LINE__);
}

static void write_file(const char *name, const char *text, mode_t mode)
{
	char path[128];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "we");
	assert_non_null(f);
	fputs(text, f);
	fclose(f);
	assert_int_equal(chmod(path, mode), 0);
}

/* Any library serves as the one to preload: here it need not do anything. */
static void test_run(void **state)
{
	char environment[256], libc[] = "LD_PRELOAD=/nowhere/libc-test.so";

	(void)state;
	if (server <= 0)
		skip();
	write_file("tagger.so", "", 0644);
	snprintf(environment, sizeof(environment), "USMD_TAGGER=%s/tagger.so", dir);

	expect_(environment, "run -- sh -c 'echo $LD_PRELOAD'", 125,
		"no policy is assigned to 'sh': 'usmctl assign sh POLICY'", __LINE__);
	expect_(environment, "run --policy nope -- true", 125, "there is no policy 'nope'", __LINE__);
	expect_(environment, "run --policy none -- true", 125, "means unmanaged", __LINE__);
	expect_(environment, "run --limit x -- true", 125, "expected a size", __LINE__);
	expect_(environment, "run", 125, "expected -- COMMAND", __LINE__);
	expect_(environment, "run --policy policyOne -- env", 0, "/tagger.so", __LINE__);
	assert_non_null(strstr(output, "LD_PRELOAD=/tmp/usm-test-usmctl."));
	assert_non_null(strstr(output, "USMD_RUNTIME_DIR=/tmp/usm-test-usmctl."));
	expect_(environment, "run --policy policyOne -- sh -c 'exit 7'", 7, "", __LINE__);
	expect_(environment, "run --policy policyOne --limit 1G sh -c 'echo \"$@\"' x --json --help",
		0, "--json --help", __LINE__);
	/* What is preloaded already stays, behind. */
	snprintf(environment, sizeof(environment), "%s USMD_TAGGER=%s/tagger.so", libc, dir);
	expect_(environment, "run --policy policyOne -- env", 0, "/tagger.so:/nowhere/libc-test.so",
		__LINE__);
	expect_("USMD_TAGGER=/nonexistent.so", "run --policy policyOne -- true", 125,
		"USMD_TAGGER names /nonexistent.so", __LINE__);
	expect_(environment, "run -- /nonexistent/program", 127, "No such file", __LINE__);
	expect_(environment, "run -- no-such-program-anywhere", 127, "No such file", __LINE__);
	expect_(environment, "run -- /etc/passwd", 126, "Permission denied", __LINE__);
	expect_(environment, "run -- /", 126, "Permission denied", __LINE__);
	expect_(environment, "--runtime-dir /nonexistent run -- true", 125, "nobody answers", __LINE__);
	expect_("", "--runtime-dir /nonexistent run --or-unmanaged -- sh -c 'exit 5'", 5,
		"runs unmanaged", __LINE__);
}

static void test_run_looks_at_the_program(void **state)
{
	static const char elf32[] = "\x7f" "ELF\x01\x01\x01";
	char environment[192], arguments[256];

	(void)state;
	if (server <= 0)
		skip();
	write_file("tagger.so", "", 0644);
	snprintf(environment, sizeof(environment), "USMD_TAGGER=%s/tagger.so", dir);

	write_file("elf32", elf32, 0755);
	snprintf(arguments, sizeof(arguments), "run --policy policyOne -- %s/elf32", dir);
	expect_(environment, arguments, 125, "is a 32-bit program", __LINE__);

	/* A script is what its interpreter is, through env too. */
	snprintf(arguments, sizeof(arguments), "#!%s/elf32\n", dir);
	write_file("script", arguments, 0755);
	snprintf(arguments, sizeof(arguments), "run --policy policyOne -- %s/script", dir);
	expect_(environment, arguments, 125, "elf32 is a 32-bit program", __LINE__);
	write_file("script", "#!/usr/bin/env -S sh\necho script ran\n", 0755);
	expect_(environment, arguments, 0, "script ran", __LINE__);
	write_file("script", "#!/nonexistent/interpreter\n", 0755);
	expect_(environment, arguments, 125, "/script names cannot be run", __LINE__);
	snprintf(arguments, sizeof(arguments), "#!%s/loop\n", dir);
	write_file("loop", arguments, 0755);
	snprintf(arguments, sizeof(arguments), "run --policy policyOne -- %s/loop", dir);
	expect_(environment, arguments, 125, "too many scripts", __LINE__);

	/* A set-id copy of a program whose owner is somebody else. */
	snprintf(arguments, sizeof(arguments),
		 "cp /bin/true %s/setid && chown 4242 %s/setid && chmod 4755 %s/setid", dir, dir, dir);
	if (geteuid() == 0 && system(arguments) == 0) {
		snprintf(arguments, sizeof(arguments), "run --policy policyOne -- %s/setid", dir);
		expect_(environment, arguments, 125, "set-id program", __LINE__);
		snprintf(arguments, sizeof(arguments), "run --or-unmanaged -- %s/setid", dir);
		expect_(environment, arguments, 0, "runs unmanaged", __LINE__);
	}
	if (access("/sbin/ldconfig", X_OK) == 0)
		expect_(environment, "run --policy policyOne -- /sbin/ldconfig --version", 125,
			"statically linked", __LINE__);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_status),
		cmocka_unit_test(test_lists),
		cmocka_unit_test(test_list_used),
		cmocka_unit_test(test_assign),
		cmocka_unit_test(test_assign_writes_command_lines),
		cmocka_unit_test(test_evict),
		cmocka_unit_test(test_changes),
		cmocka_unit_test(test_usage),
		cmocka_unit_test(test_run),
		cmocka_unit_test(test_run_looks_at_the_program),
	};

	return cmocka_run_group_tests(tests, start_server, stop_server);
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* links: usmd/lib/log.c */
#include "capture.h"

#include <errno.h>
#include <pthread.h>
#include <pty.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "lib/log.h"

static struct capture capture;

static int setup(void **state)
{
	(void)state;
	unsetenv("JOURNAL_STREAM");
	unsetenv("NO_COLOR");
	usm_log_open("usmd");
	usm_log_set_level(LOG_INFO);
	return 0;
}

static void test_line(void **state)
{
	(void)state;
	capture_begin(&capture);
	usm_log_open("usmctl");
	log_info("pool of %d frames", 65536);
	log_error("second line");
	assert_string_equal(capture_end(&capture),
			    "usmctl: pool of 65536 frames\nusmctl: second line\n");
}

static void test_level(void **state)
{
	(void)state;
	assert_int_equal(usm_log_level(), LOG_INFO);
	capture_begin(&capture);
	log_debug("dropped");
	usm_log_full(LOG_DEBUG, 0, NULL, "dropped too");
	usm_log_set_level(LOG_DEBUG);
	log_debug("kept");
	usm_log_set_level(LOG_ERR);
	log_warning("dropped");
	log_error("kept too");
	assert_string_equal(capture_end(&capture), "usmd: kept\nusmd: kept too\n");
}

static void test_result(void **state)
{
	struct usm_log_fields f = { .event = "evict", .pid = 7 };

	(void)state;
	capture_begin(&capture);
	errno = EIO;
	assert_int_equal(log_error_errno(-ENOENT, "swap.1: %m"), -ENOENT);
	assert_int_equal(errno, EIO);
	assert_int_equal(log_error_errno(ENOSPC, "swap.2: %m"), -ENOSPC);
	assert_int_equal(log_error("no error number"), 0);
	assert_int_equal(log_event_errno(LOG_INFO, -EBUSY, &f, "process 7: %m"), -EBUSY);
	assert_int_equal(log_event(LOG_INFO, &f, "process 7: 12 pages"), 0);
	/* Also when the line is dropped. */
	usm_log_set_level(LOG_ERR);
	assert_int_equal(log_warning_errno(-ENOMEM, "dropped"), -ENOMEM);
	assert_int_equal(usm_log_full(LOG_WARNING, ENOMEM, NULL, "dropped"), -ENOMEM);
	assert_string_equal(capture_end(&capture),
			    "usmd: swap.1: No such file or directory\n"
			    "usmd: swap.2: No space left on device\n"
			    "usmd: no error number\n"
			    "usmd: process 7: Device or resource busy\n"
			    "usmd: process 7: 12 pages\n");
}

static void test_one_line(void **state)
{
	(void)state;
	capture_begin(&capture);
	log_info("%s", "text of a plugin\n<0>forged\x1b[2Jline\x7f\ttab caf\xc3\xa9\n\n");
	assert_string_equal(capture_end(&capture),
			    "usmd: text of a plugin?<0>forged?[2Jline?\ttab caf\xc3\xa9\n");
}

static void test_bounded(void **state)
{
	static char text[10000];
	const char *line;

	(void)state;
	memset(text, 'x', sizeof(text) - 1);
	capture_begin(&capture);
	log_info("%s", text);
	line = capture_end(&capture);
	assert_true(strlen(line) <= 2048);
	assert_true(strlen(line) > 2000);
	assert_string_equal(line + strlen(line) - 5, "x...\n");
}

static void test_no_colours_without_terminal(void **state)
{
	(void)state;
	setenv("TERM", "xterm", 1);
	capture_begin(&capture);
	usm_log_open("usmd");
	log_error("plain");
	assert_string_equal(capture_end(&capture), "usmd: plain\n");
}

static void test_colours_on_terminal(void **state)
{
	static const char expected[] =
		"\x1b[31musmd: red\x1b[0m\r\nusmd: plain\r\nusmd: plain too\r\n";
	int primary, secondary, saved;
	char text[sizeof(expected)];
	size_t length = 0;

	(void)state;
	setenv("TERM", "xterm", 1);
	assert_int_equal(openpty(&primary, &secondary, NULL, NULL, NULL), 0);
	saved = dup(STDERR_FILENO);
	dup2(secondary, STDERR_FILENO);
	usm_log_open("usmd");
	log_error("red");
	log_info("plain");
	setenv("NO_COLOR", "1", 1);
	usm_log_open("usmd");
	log_error("plain too");
	dup2(saved, STDERR_FILENO);
	close(saved);

	while (length < sizeof(expected) - 1) { /* a terminal gives it in pieces */
		ssize_t n = read(primary, text + length, sizeof(expected) - 1 - length);

		assert_true(n > 0);
		length += (size_t)n;
	}
	assert_memory_equal(text, expected, length);
	close(primary);
	close(secondary);
}

/* A variable that was inherited, while stderr has gone elsewhere, is not the journal's;
 * neither is one that is not a pair of numbers. */
static void test_foreign_journal_stream(void **state)
{
	(void)state;
	capture_begin(&capture);
	setenv("JOURNAL_STREAM", "1:2", 1);
	usm_log_open("usmd");
	log_info("one");
	setenv("JOURNAL_STREAM", "nonsense", 1);
	usm_log_open("usmd");
	log_info("two");
	assert_string_equal(capture_end(&capture), "usmd: one\nusmd: two\n");
}

static void claim_stderr_is_journal(const char *name)
{
	char stream[64];
	struct stat st;

	assert_int_equal(fstat(STDERR_FILENO, &st), 0);
	snprintf(stream, sizeof(stream), "%llu:%llu", (unsigned long long)st.st_dev,
		 (unsigned long long)st.st_ino);
	setenv("JOURNAL_STREAM", stream, 1);
	usm_log_open(name);
}

/* A /run of the test's own, from here to its end. */
static void hide_run(void)
{
	if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("tmpfs", "/run", "tmpfs", 0, NULL) < 0) {
		print_message("skipped: a mount namespace needs root: %s\n", strerror(errno));
		skip();
	}
}

static void test_journal_hidden(void **state)
{
	(void)state;
	hide_run();
	capture_begin(&capture);
	claim_stderr_is_journal("usmd");
	log_info("not lost");
	assert_string_equal(capture_end(&capture), "usmd: not lost\n");
}

/* The journal's socket in a /run of the test's own. */
static int bind_journal(void)
{
	const struct sockaddr_un address = { .sun_family = AF_UNIX,
					     .sun_path = "/run/systemd/journal/socket" };
	int fd;

	hide_run();
	assert_int_equal(mkdir("/run/systemd", 0755), 0);
	assert_int_equal(mkdir("/run/systemd/journal", 0755), 0);
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
	return fd;
}

static void assert_received(int fd, const char *expected)
{
	char text[4096];
	ssize_t n = recv(fd, text, sizeof(text) - 1, MSG_DONTWAIT);

	assert_true(n > 0);
	text[n] = '\0';
	assert_string_equal(text, expected);
}

static void test_journal_fields(void **state)
{
	struct usm_log_fields f = { .event = "evict", .process = "redis-server", .pid = 7,
				    .message_id = USM_MSG_EVICT, .policy = "fifo",
				    .addr = 0x1000, .frame = 0, .slot = 3, .count = 4,
				    .has_frame = 1, .has_slot = 1, .has_count = 1 };
	struct usm_log_fields few = { .event = "attach", .process = "a\nPRIORITY=0", .slot = 3 };
	int fd;

	(void)state;
	fd = bind_journal();
	capture_begin(&capture);
	claim_stderr_is_journal("usmd");
	assert_int_equal(log_event_errno(LOG_WARNING, -EIO, &f, "redis-server[7]: %m"), -EIO);
	log_event(LOG_INFO, &few, "one\ntwo");
	assert_string_equal(capture_end(&capture), "");

	assert_received(fd, "MESSAGE=redis-server[7]: Input/output error\n"
			    "PRIORITY=4\n"
			    "SYSLOG_IDENTIFIER=usmd\n"
			    "ERRNO=5\n"
			    "MESSAGE_ID=5f0d2cfa6b5c4dc0a6f2ab5b3a4f3b02\n"
			    "USM_EVENT=evict\n"
			    "USM_PROCESS=redis-server\n"
			    "USM_PID=7\n"
			    "USM_POLICY=fifo\n"
			    "USM_ADDR=0x1000\n"
			    "USM_FRAME=0x0\n"
			    "USM_SLOT=3\n"
			    "USM_COUNT=4\n");
	assert_received(fd, "MESSAGE=one?two\n"
			    "PRIORITY=6\n"
			    "SYSLOG_IDENTIFIER=usmd\n"
			    "USM_EVENT=attach\n"
			    "USM_PROCESS=a?PRIORITY=0\n");
	close(fd);
}

/* Nobody waits for a journal that stands still; when it goes on it learns how much is missing. */
static void test_journal_stands_still(void **state)
{
	char text[4096], expected[4096];
	unsigned taken = 0;
	int fd;

	(void)state;
	fd = bind_journal();
	capture_begin(&capture);
	claim_stderr_is_journal("usmd");
	for (int i = 0; i < 100000; i++)
		log_info("entry");
	assert_string_equal(capture_end(&capture), "");
	while (recv(fd, text, sizeof(text), MSG_DONTWAIT) > 0)
		taken++;
	assert_in_range(taken, 1, 99999);

	capture_begin(&capture);
	claim_stderr_is_journal("usmd");
	log_info("the next one");
	assert_string_equal(capture_end(&capture), "");
	snprintf(expected, sizeof(expected),
		 "MESSAGE=%u entries are missing here: the journal did not take them\n"
		 "PRIORITY=4\nSYSLOG_IDENTIFIER=usmd\n", 100000 - taken);
	assert_received(fd, expected);
	assert_received(fd, "MESSAGE=the next one\nPRIORITY=6\nSYSLOG_IDENTIFIER=usmd\n");
	close(fd);
}

/* What programs can cause as often as they like; nothing of it goes uncounted, and nothing else is
 * left out. */
static void test_journal_limit(void **state)
{
	struct usm_log_fields attach = { .event = "attach", .message_id = USM_MSG_ATTACH };
	struct usm_log_fields fault = { .event = "fault", .count = 10, .has_count = 1 };
	struct usm_log_fields policy = { .event = "policy" };
	unsigned nr_attach = 0, nr_fault = 0, nr_policy = 0, more;
	char text[4096], *said;
	ssize_t n;
	int fd;

	(void)state;
	fd = bind_journal();
	capture_begin(&capture);
	claim_stderr_is_journal("usmd");
	for (int i = 0; i < 500; i++) {
		log_event(LOG_INFO, &attach, "attached");
		log_event(LOG_INFO, &fault, "faults");
		log_event(LOG_INFO, &policy, "policy");
		while ((n = recv(fd, text, sizeof(text) - 1, MSG_DONTWAIT)) > 0) {
			text[n] = '\0';
			nr_attach += !!strstr(text, "USM_EVENT=attach\n");
			nr_fault += !!strstr(text, "USM_EVENT=fault\n");
			nr_policy += !!strstr(text, "USM_EVENT=policy\n");
		}
	}
	assert_int_equal(nr_policy, 500);
	assert_in_range(nr_attach + nr_fault, 100, 800);
	usm_log_left_out();
	usm_log_left_out(); /* says it once */
	assert_string_equal(capture_end(&capture), "");
	n = recv(fd, text, sizeof(text) - 1, MSG_DONTWAIT);
	assert_true(n > 0);
	text[n] = '\0';
	assert_non_null(strstr(text, "PRIORITY=5\n"));
	assert_non_null(strstr(text, "MESSAGE_ID=" USM_MSG_ATTACH "\n"));
	said = strstr(text, "USM_COUNT=");
	assert_true(said && sscanf(said, "USM_COUNT=%u", &more) == 1);
	assert_int_equal(nr_attach + more, 500);
	n = recv(fd, text, sizeof(text) - 1, MSG_DONTWAIT);
	assert_true(n > 0);
	text[n] = '\0';
	said = strstr(text, "USM_COUNT=");
	assert_true(said && sscanf(said, "USM_COUNT=%u", &more) == 1);
	assert_int_equal(10 * nr_fault + more, 5000);
	assert_true(recv(fd, text, sizeof(text), MSG_DONTWAIT) < 0);
	close(fd);
}

/* Its socket is still there, and nobody behind it. */
static void test_journal_gone(void **state)
{
	(void)state;
	close(bind_journal());
	capture_begin(&capture);
	claim_stderr_is_journal("usmd");
	log_info("not lost");
	assert_string_equal(capture_end(&capture), "usmd: not lost\n");
}

#define THREADS 4
#define LINES   50

static void *log_lines(void *letter)
{
	char text[65];

	memset(text, *(const char *)letter, 64);
	text[64] = '\0';
	for (int i = 0; i < LINES; i++)
		log_info("%s", text);
	return NULL;
}

/* Into a pipe, as systemd and shells give one: no line is torn or lost. */
static void test_threads(void **state)
{
	static char letters[THREADS + 1] = "abcd", text[THREADS * LINES * 71 + 1];
	int counts[THREADS] = {}, fds[2], saved;
	pthread_t threads[THREADS];
	size_t length = 0;
	ssize_t n;

	(void)state;
	assert_int_equal(pipe(fds), 0);
	saved = dup(STDERR_FILENO);
	dup2(fds[1], STDERR_FILENO);
	close(fds[1]);
	for (int i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, log_lines, &letters[i]), 0);
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	dup2(saved, STDERR_FILENO);
	close(saved);

	while ((n = read(fds[0], text + length, sizeof(text) - 1 - length)) > 0)
		length += (size_t)n;
	close(fds[0]);
	assert_int_equal(length, THREADS * LINES * 71);
	for (char *line = text; *line; line += 71) {
		int who = line[6] - 'a';

		assert_in_range(who, 0, THREADS - 1);
		assert_memory_equal(line, "usmd: ", 6);
		for (int i = 0; i < 64; i++)
			assert_int_equal(line[6 + i], letters[who]);
		assert_int_equal(line[70], '\n');
		counts[who]++;
	}
	for (int i = 0; i < THREADS; i++)
		assert_int_equal(counts[i], LINES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_line, setup),
		cmocka_unit_test_setup(test_level, setup),
		cmocka_unit_test_setup(test_result, setup),
		cmocka_unit_test_setup(test_one_line, setup),
		cmocka_unit_test_setup(test_bounded, setup),
		cmocka_unit_test_setup(test_no_colours_without_terminal, setup),
		cmocka_unit_test_setup(test_colours_on_terminal, setup),
		cmocka_unit_test_setup(test_foreign_journal_stream, setup),
		cmocka_unit_test_setup(test_threads, setup),
		/* These leave their /run behind. */
		cmocka_unit_test_setup(test_journal_hidden, setup),
		cmocka_unit_test_setup(test_journal_fields, setup),
		cmocka_unit_test_setup(test_journal_stands_still, setup),
		cmocka_unit_test_setup(test_journal_limit, setup),
		cmocka_unit_test_setup(test_journal_gone, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

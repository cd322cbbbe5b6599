/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* links: usmd/control*.c usmd/acceptor.c usmd/closer.c usmd/offence.c usmd/lib/varlink.c usmd/lib/fields.c usmd/lib/log.c usmd/lib/parse.c */
/*
 * The control service over real sockets, on a manager that is made up: every
 * method, who may call what, broken and hostile clients.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "fake-manager.h"

#include "control.h"
#include "lib/log.h"
#include "lib/varlink.h"

#define TEST_GROUP   4343
#define REPLY_MAX    (2u << 20)
#define MANAGER(m)   "{\"method\":\"io.usmd.Manager." m "\""
#define CALL(m)      MANAGER(m) "}"
#define CALL1(m, p)  MANAGER(m) ",\"parameters\":{" p "}}"
#define ERROR(e, p)  "{\"error\":\"io.usmd.Manager." e "\",\"parameters\":{" p "}}"
#define VERROR(e, p) "{\"error\":\"org.varlink.service." e "\",\"parameters\":{" p "}}"
#define INVALID(p)   VERROR("InvalidParameter", "\"parameter\":\"" p "\"")
#define REPLY(p)     "{\"parameters\":{" p "}}"
#define ROOT_ONLY    ERROR("NotPermitted", "\"reason\":\"only root may do this; run it as root, " \
			   "for example with sudo\"")
#define GROUP_ONLY   ERROR("NotPermitted", "\"reason\":\"only root and members of the group " \
			   "'usm' may do this\"")

/* The service looks its group up by name; the machine need not have it. */
struct group *getgrnam(const char *name)
{
	static struct group group = { .gr_gid = TEST_GROUP };

	return strcmp(name, "usm") == 0 ? &group : NULL;
}

extern uint64_t control_message_usec, control_monitor_usec;

struct fixture {
	struct manager manager;
	struct control *control;
	int listen_fd;
	struct sockaddr_un address;
	char *buf; /* the last reply */
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	usm_log_set_level(LOG_ERR);
	control_message_usec = 10000000;
	control_monitor_usec = 1000000;
	f->buf = malloc(REPLY_MAX);
	fake_manager_init(&f->manager);
	f->address.sun_family = AF_UNIX;
	snprintf(f->address.sun_path, sizeof(f->address.sun_path), "/tmp/usm-test-control.%d",
		 (int)getpid());
	unlink(f->address.sun_path);
	f->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(f->listen_fd, (void *)&f->address, sizeof(f->address)), 0);
	assert_int_equal(chmod(f->address.sun_path, 0666), 0);
	assert_int_equal(listen(f->listen_fd, 256), 0);
	assert_int_equal(control_new(&f->manager, f->listen_fd, &f->control), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	f->control = control_free(f->control);
	/* What the manager still has must not touch what is gone. */
	fake_evict_finish(&f->manager, 1, NULL);
	fake_manager_done(&f->manager);
	close(f->listen_fd);
	unlink(f->address.sun_path);
	free(f->buf);
	free(f);
	return 0;
}

static void pump(struct fixture *f)
{
	while (sd_event_run(f->manager.event, 0) > 0)
		;
}

static int dial(struct fixture *f)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	assert_int_equal(connect(fd, (void *)&f->address, sizeof(f->address)), 0);
	pump(f);
	return fd;
}

/* The credentials that count are those of connect(). */
static int dial_as(struct fixture *f, uid_t uid, gid_t supplementary)
{
	gid_t groups[] = { supplementary };
	int fd;

	if (geteuid() != 0)
		skip();
	assert_int_equal(setgroups(1, groups), 0);
	assert_int_equal(setegid(uid), 0);
	assert_int_equal(seteuid(uid), 0);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(fd, (void *)&f->address, sizeof(f->address)), 0);
	assert_int_equal(seteuid(0), 0);
	assert_int_equal(setegid(0), 0);
	assert_int_equal(setgroups(0, NULL), 0);
	pump(f);
	return fd;
}

static void say(struct fixture *f, int fd, const char *text)
{
	assert_int_equal(send(fd, text, strlen(text) + 1, MSG_NOSIGNAL), strlen(text) + 1);
	pump(f);
}

/* What has come by now: bytes, 0 for nothing, -1 for end of file. */
static ssize_t hear(struct fixture *f, int fd)
{
	size_t n = 0;

	for (;;) {
		ssize_t r = recv(fd, f->buf + n, REPLY_MAX - n, 0);

		if (r == 0)
			return n > 0 ? (ssize_t)n : -1;
		if (r < 0)
			return errno == EAGAIN ? (ssize_t)n : n > 0 ? (ssize_t)n : -1;
		n += (size_t)r;
		pump(f);
	}
}

#define expect(f, fd, request, reply) expect_(f, fd, request, reply, __LINE__)
static void expect_(struct fixture *f, int fd, const char *request, const char *reply, int line)
{
	ssize_t n;

	say(f, fd, request);
	n = hear(f, fd);
	if (n <= 0)
		fail_msg("line %d: no reply to %s", line, request);
	assert_int_equal(f->buf[n - 1], 0);
	if (strlen(f->buf) + 1 != (size_t)n || strcmp(f->buf, reply) != 0)
		fail_msg("line %d: %s\n     gave %s\n expected %s", line, request, f->buf, reply);
}

/* It is told why, and dropped. */
static void expect_reject(struct fixture *f, int fd, const char *reason, int err)
{
	char text[256];

	snprintf(text, sizeof(text), ERROR("Failed", "\"reason\":\"%s\",\"errno\":%d"), reason, err);
	assert_int_equal(hear(f, fd), strlen(text) + 1);
	assert_string_equal(f->buf, text);
	assert_int_equal(hear(f, fd), -1);
	close(fd);
}

static void expect_gone(struct fixture *f, int fd)
{
	assert_int_equal(hear(f, fd), -1);
	close(fd);
}

#define STATUS                                                                                  \
	"\"version\":\"9.8.7\",\"mechanism\":\"userfault\",\"eviction\":\"move\",\"io\":\"pread\"," \
	"\"keeperPid\":11,\"enginePid\":12,\"engineRestarts\":1,\"framesTotal\":1000,"            \
	"\"framesFree\":400,\"processes\":3,\"faults\":50,\"evictions\":40,\"swapIns\":30,"       \
	"\"slotsTotal\":2000,\"slotsUsed\":7,\"errors\":2,\"policyErrors\":3,\"exceeded\":4,"     \
	"\"lastRecoveryUsec\":5"
#define DB0                                                                                     \
	"{\"pid\":100,\"uid\":0,\"name\":\"db\",\"policy\":\"policyOne\",\"resident\":10,"        \
	"\"swapped\":20,\"unevictable\":3,\"unevictableReason\":\"locked by mlock\","             \
	"\"limit\":256,\"faults\":5,\"evictions\":6,\"swapIns\":7,\"faultUsecP50\":8,"            \
	"\"faultUsecP99\":9,\"faultUsecMax\":10}"
#define ZEROES                                                                                  \
	"\"policy\":\"policyOne\",\"resident\":0,\"swapped\":0,\"unevictable\":0,\"limit\":0,"     \
	"\"faults\":0,\"evictions\":0,\"swapIns\":0,\"faultUsecP50\":0,\"faultUsecP99\":0,"       \
	"\"faultUsecMax\":0}"
#define DB1  "{\"pid\":101,\"uid\":4242,\"name\":\"db\"," ZEROES
#define WEB2 "{\"pid\":102,\"uid\":4242,\"name\":\"web\"," ZEROES

static void test_status_and_lists(void **state)
{
	struct fixture *f = *state;
	int fd = dial(f);

	expect(f, fd, CALL("GetStatus"), REPLY(STATUS));
	expect(f, fd, CALL("ListProcesses"),
	       REPLY("\"processes\":[" DB0 "," DB1 "," WEB2 "],\"total\":3"));
	expect(f, fd, CALL1("ListProcesses", "\"offset\":1,\"count\":1"),
	       REPLY("\"processes\":[" DB1 "],\"total\":3"));
	expect(f, fd, CALL1("ListProcesses", "\"offset\":9223372036854775807"),
	       REPLY("\"processes\":[],\"total\":3"));
	expect(f, fd, CALL("ListAssignments"),
	       REPLY("\"assignments\":[{\"name\":\"db\",\"allocPolicy\":\"policyOne\","
		     "\"swapPolicy\":\"policyOne\",\"limitBytes\":1048576,\"priority\":0,"
		     "\"file\":\"/etc/usmd/usmd.conf\",\"line\":4},"
		     "{\"name\":\"limited\",\"limitBytes\":4096,\"priority\":0,\"line\":0},"
		     "{\"name\":\"off\",\"allocPolicy\":\"none\",\"limitBytes\":0,\"priority\":0,"
		     "\"line\":0}],\"total\":3,\"defaultPolicy\":\"none\""));
	expect(f, fd, CALL("ListPolicies"),
	       REPLY("\"policies\":[{\"name\":\"policyOne\",\"alloc\":true,\"swap\":true,"
		     "\"setAside\":false,\"processes\":0,\"allocs\":5,\"errors\":0,"
		     "\"decisionNsecMean\":100,\"decisionNsecMax\":0},"
		     "{\"name\":\"mine\",\"file\":\"/opt/mine.so\",\"alloc\":false,\"swap\":true,"
		     "\"setAside\":true,\"processes\":0,\"allocs\":0,\"errors\":0,"
		     "\"decisionNsecMean\":0,\"decisionNsecMax\":0}],\"total\":2"));
	expect(f, fd, CALL("ListSwaps"),
	       REPLY("\"swaps\":[{\"path\":\"/var/lib/usmd/swap\",\"slots\":2000,\"used\":7,"
		     "\"reads\":30,\"writes\":40,\"errors\":0,\"priority\":-1,\"draining\":false,"
		     "\"direct\":true,\"uring\":true}]"));
	close(fd);
}

static void test_empty_lists(void **state)
{
	struct fixture *f = *state;
	int fd = dial(f);

	f->manager.config.processes = NULL;
	f->manager.config.nr_processes = 0;
	expect(f, fd, CALL("ListAssignments"),
	       REPLY("\"assignments\":[],\"total\":0,\"defaultPolicy\":\"none\""));
	close(fd);
}

static size_t nr_frames(const char *reply)
{
	size_t n = 0;

	while ((reply = strstr(reply, "{\"frame\":"))) {
		n++;
		reply++;
	}
	return n;
}

static void test_frames(void **state)
{
	struct fixture *f = *state;
	int fd = dial(f);

	expect(f, fd, CALL1("ListFrames", "\"state\":\"free\""),
	       REPLY("\"frames\":[{\"frame\":0},{\"frame\":4096},{\"frame\":8192}],\"total\":3"));
	expect(f, fd, CALL1("ListFrames", "\"state\":\"used\",\"offset\":2499"),
	       REPLY("\"frames\":[{\"frame\":10235904,\"addr\":28672,\"pid\":102,\"name\":\"web\","
		     "\"ageMsec\":1500}],\"total\":2500"));
	/* A reply has at most 1000. */
	say(f, fd, CALL1("ListFrames", "\"state\":\"used\",\"count\":5000000000"));
	assert_true(hear(f, fd) > 0);
	assert_int_equal(nr_frames(f->buf), 1000);
	assert_non_null(strstr(f->buf, "\"total\":2500"));

	expect(f, fd, CALL("ListFrames"), INVALID("state"));
	expect(f, fd, CALL1("ListFrames", "\"state\":\"dirty\""), INVALID("state"));
	expect(f, fd, CALL1("ListFrames", "\"state\":\"free\",\"pid\":1"), INVALID("pid"));
	expect(f, fd, CALL1("ListFrames", "\"state\":\"free\",\"name\":\"db\""), INVALID("name"));
	expect(f, fd, CALL1("ListFrames", "\"state\":\"used\",\"pid\":1,\"name\":\"db\""),
	       INVALID("name"));
	expect(f, fd, CALL1("ListFrames", "\"state\":\"used\",\"name\":\"a b\""), INVALID("name"));
	expect(f, fd, CALL1("ListFrames", "\"state\":\"used\",\"pid\":999"),
	       ERROR("NoSuchProcess", ""));
	expect(f, fd, CALL1("ListFrames", "\"state\":\"used\",\"pid\":0"), INVALID("pid"));
	close(fd);
}

static void test_changes(void **state)
{
	struct fixture *f = *state;
	int fd = dial(f);

	expect(f, fd, CALL1("Assign", "\"name\":\"db\",\"policy\":\"policyOne\""),
	       REPLY("\"takenOver\":2,\"unmanaged\":1"));
	assert_string_equal(f->manager.last, "assign db b policyOne -1 0");
	expect(f, fd, CALL1("Assign", "\"name\":\"db\",\"policy\":\"policyOne\",\"role\":\"swap\","
				      "\"limitBytes\":4096,\"runtime\":true"),
	       REPLY("\"takenOver\":2,\"unmanaged\":1"));
	assert_string_equal(f->manager.last, "assign db s policyOne 4096 1");
	expect(f, fd, CALL1("Assign", "\"name\":\"db\",\"limitBytes\":0"),
	       REPLY("\"takenOver\":2,\"unmanaged\":1"));
	assert_string_equal(f->manager.last, "assign db b - 0 0");
	expect(f, fd, CALL1("Assign", "\"name\":\"db\",\"policy\":\"nope\""),
	       ERROR("NoSuchPolicy", "\"name\":\"nope\""));
	expect(f, fd, CALL1("Assign", "\"name\":\"readonly\",\"policy\":\"policyOne\""),
	       ERROR("Failed", "\"reason\":\"/etc/usmd is read-only\",\"errno\":30"));

	strcpy(f->manager.last, "untouched");
	expect(f, fd, CALL1("Assign", "\"name\":\"db\""), INVALID("policy"));
	expect(f, fd, CALL1("Assign", "\"policy\":\"policyOne\""), INVALID("name"));
	expect(f, fd, CALL1("Assign", "\"name\":\"a\\nb\",\"policy\":\"p\""), INVALID("name"));
	expect(f, fd, CALL1("Assign", "\"name\":\"../x\",\"policy\":\"p\""), INVALID("name"));
	expect(f, fd, CALL1("Assign", "\"name\":\"db\",\"policy\":\"a b\""), INVALID("policy"));
	expect(f, fd, CALL1("Assign", "\"name\":\"db\",\"policy\":\"p\",\"role\":\"x\""),
	       INVALID("role"));
	expect(f, fd, CALL1("Assign", "\"name\":\"db\",\"limitBytes\":-1"), INVALID("limitBytes"));
	expect(f, fd, CALL1("Assign", "\"name\":\"db\",\"colour\":1"), INVALID("colour"));
	assert_string_equal(f->manager.last, "untouched");

	expect(f, fd, CALL1("Assign", "\"name\":\"unit:s\",\"policy\":\"policyOne\""), INVALID("name"));
	expect(f, fd, CALL1("Assign", "\"name\":\"user:\",\"policy\":\"policyOne\""), INVALID("name"));
	expect(f, fd, CALL1("Assign", "\"name\":\"db\",\"policy\":\"policyOne\",\"allow\":true"),
	       INVALID("allow"));
	expect(f, fd, CALL1("Unassign", "\"name\":\"unit:s\""), INVALID("name"));
	assert_string_equal(f->manager.last, "untouched");
	expect(f, fd, CALL1("Assign", "\"name\":\"unit:s.service\",\"policy\":\"policyOne\","
				      "\"allow\":true"),
	       REPLY("\"takenOver\":2,\"unmanaged\":1"));
	assert_string_equal(f->manager.last, "assign unit:s.service b policyOne -1 allow 0");

	expect(f, fd, CALL1("Unassign", "\"name\":\"temporary\""), REPLY(""));
	expect(f, fd, CALL1("Unassign", "\"name\":\"x\""),
	       ERROR("NoSuchAssignment", "\"name\":\"x\""));
	expect(f, fd, CALL1("Unassign", "\"name\":\"db\""),
	       ERROR("NotPermitted", "\"reason\":\"/etc/usmd/usmd.conf:4 says it\""));

	expect(f, fd, CALL1("AddSwap", "\"path\":\"/s\",\"sizeBytes\":4096,\"priority\":-3"),
	       REPLY(""));
	assert_string_equal(f->manager.last, "swap add /s 4096 -3");
	expect(f, fd, CALL1("AddSwap", "\"path\":\"/foreign\",\"sizeBytes\":4096"),
	       ERROR("Failed", "\"reason\":\"/foreign is not a swap file of usmd\",\"errno\":17"));
	expect(f, fd, CALL1("AddSwap", "\"path\":\"s\",\"sizeBytes\":4096"), INVALID("path"));
	expect(f, fd, CALL1("AddSwap", "\"path\":\"/s\",\"sizeBytes\":0"), INVALID("sizeBytes"));
	expect(f, fd, CALL1("AddSwap", "\"path\":\"/s\""), INVALID("sizeBytes"));
	expect(f, fd, CALL1("RemoveSwap", "\"path\":\"/swap\""), REPLY("\"finished\":false"));
	expect(f, fd, CALL1("RemoveSwap", "\"path\":\"/x\""),
	       ERROR("NoSuchSwap", "\"path\":\"/x\""));

	expect(f, fd, CALL1("LoadPolicy", "\"file\":\"/opt/mine.so\""), REPLY(""));
	expect(f, fd, CALL1("LoadPolicy", "\"file\":\"mine.so\""), INVALID("file"));
	expect(f, fd, CALL1("LoadPolicy", "\"file\":\"/tmp/evil.so\""),
	       ERROR("Failed", "\"reason\":\"the file must be root's\",\"errno\":13"));
	expect(f, fd, CALL1("UnloadPolicy", "\"name\":\"mine\""), REPLY(""));
	expect(f, fd, CALL1("UnloadPolicy", "\"name\":\"x\""),
	       ERROR("NoSuchPolicy", "\"name\":\"x\""));
	expect(f, fd, CALL1("UnloadPolicy", "\"name\":\"policyOne\""),
	       ERROR("Failed", "\"reason\":\"policyOne is in use\",\"errno\":16"));
	expect(f, fd, CALL("Reload"),
	       ERROR("Failed",
		     "\"reason\":\"/etc/usmd/usmd.conf:5: unknown directive\",\"errno\":22"));
	close(fd);
}

static void test_evict(void **state)
{
	static const char two[] = CALL1("Evict", "\"pid\":100,\"pages\":9") "\0"
		CALL1("UnloadPolicy", "\"name\":\"mine\"");
	struct fixture *f = *state;
	int fd = dial(f);

	/* Answered later; the next call, which is here already, waits its turn. */
	assert_int_equal(send(fd, two, sizeof(two), 0), sizeof(two));
	pump(f); /* and does not keep the loop busy: this ends */
	assert_int_equal(hear(f, fd), 0);
	assert_string_equal(f->manager.last, "evict 100 - 9");
	fake_evict_finish(&f->manager, 8, "one page is locked");
	pump(f);
	assert_true(hear(f, fd) > 0);
	assert_string_equal(f->buf, REPLY("\"evicted\":8,\"reason\":\"one page is locked\""));
	assert_string_equal(f->buf + strlen(f->buf) + 1, REPLY(""));
	assert_string_equal(f->manager.last, "policy unload mine");

	f->manager.evict_at_once = true;
	expect(f, fd, CALL1("Evict", "\"name\":\"db\",\"pages\":9"), REPLY("\"evicted\":9"));
	expect(f, fd, CALL1("Evict", "\"name\":\"db\""), REPLY("\"evicted\":9223372036854775807"));
	assert_string_equal(f->manager.last, "evict 0 db -1");
	expect(f, fd, CALL1("Evict", "\"pid\":999"), ERROR("NoSuchProcess", ""));
	expect(f, fd, CALL1("Evict", "\"name\":\"x\""), ERROR("NoSuchProcess", ""));
	expect(f, fd, CALL("Evict"), INVALID("pid"));
	expect(f, fd, CALL1("Evict", "\"pid\":100,\"name\":\"db\""), INVALID("name"));
	expect(f, fd, CALL1("Evict", "\"pid\":-100"), INVALID("pid"));
	expect(f, fd, CALL1("Evict", "\"pid\":100,\"pages\":0"), INVALID("pages"));
	close(fd);
}

static void test_evict_for_nobody(void **state)
{
	struct fixture *f = *state;
	int fd = dial(f);

	/* The client goes first. */
	say(f, fd, CALL1("Evict", "\"pid\":100"));
	assert_int_equal(f->manager.nr_evicts, 1);
	close(fd);
	pump(f);
	fake_evict_finish(&f->manager, 1, NULL);
	pump(f);

	/* It wants no answer; the next one is answered at once. */
	fd = dial(f);
	say(f, fd, MANAGER("Evict") ",\"oneway\":true,\"parameters\":{\"pid\":100}}");
	expect(f, fd, CALL("GetStatus"), REPLY(STATUS));
	fake_evict_finish(&f->manager, 1, NULL);
	pump(f);
	assert_int_equal(hear(f, fd), 0);
	/* One stays open beyond the service: see teardown. */
	say(f, fd, CALL1("Evict", "\"pid\":100"));
	close(fd);
}

static void test_evict_half_closed(void **state)
{
	struct fixture *f = *state;
	int fd = dial(f);

	/* "echo call | socat": all is said, but the answer is awaited. */
	say(f, fd, CALL1("Evict", "\"pid\":100"));
	shutdown(fd, SHUT_WR);
	pump(f);
	fake_evict_finish(&f->manager, 3, NULL);
	pump(f);
	assert_true(hear(f, fd) > 0);
	assert_string_equal(f->buf, REPLY("\"evicted\":3"));
	expect_gone(f, fd);
}

static void test_evictions_are_bounded(void **state)
{
	struct fixture *f = *state;
	int fd = dial_as(f, FAKE_USER, 0), other;

	for (int i = 0; i < 16; i++)
		say(f, fd, MANAGER("Evict") ",\"oneway\":true,\"parameters\":{\"pid\":101}}");
	assert_int_equal(f->manager.nr_evicts, 16);
	say(f, fd, CALL1("Evict", "\"pid\":101"));
	assert_true(hear(f, fd) > 0);
	assert_non_null(strstr(f->buf, "too many evictions"));
	other = dial(f);
	say(f, other, CALL1("Evict", "\"pid\":101"));
	assert_int_equal(f->manager.nr_evicts, 17);
	close(other);
	close(fd);
}

static void test_access_of_anyone(void **state)
{
	static const char *const group[] = {
		CALL1("Assign", "\"name\":\"db\",\"policy\":\"policyOne\""),
		CALL1("Unassign", "\"name\":\"db\""), CALL("ListAssignments"), CALL("ListSwaps"),
		CALL("ListPolicies"), MANAGER("Monitor") ",\"more\":true}",
	};
	static const char *const root[] = {
		CALL1("AddSwap", "\"path\":\"/s\",\"sizeBytes\":4096"),
		CALL1("RemoveSwap", "\"path\":\"/swap\""),
		CALL1("LoadPolicy", "\"file\":\"/opt/mine.so\""),
		CALL1("UnloadPolicy", "\"name\":\"mine\""), CALL("Reload"),
	};
	struct fixture *f = *state;
	int fd = dial_as(f, FAKE_USER, 0);

	f->manager.evict_at_once = true;
	for (unsigned i = 0; i < ARRAY_SIZE(group); i++)
		expect(f, fd, group[i], GROUP_ONLY);
	for (unsigned i = 0; i < ARRAY_SIZE(root); i++)
		expect(f, fd, root[i], ROOT_ONLY);
	assert_string_equal(f->manager.last, "");

	expect(f, fd, CALL("GetStatus"), REPLY(STATUS));
	expect(f, fd, CALL("ListProcesses"), REPLY("\"processes\":[" DB1 "," WEB2 "],\"total\":2"));
	expect(f, fd, CALL1("Evict", "\"pid\":101,\"pages\":2"), REPLY("\"evicted\":2"));
	expect(f, fd, CALL1("Evict", "\"name\":\"web\",\"pages\":2"), REPLY("\"evicted\":2"));
	strcpy(f->manager.last, "");
	expect(f, fd, CALL1("Evict", "\"pid\":100"),
	       ERROR("NotPermitted", "\"reason\":\"that process is not yours\""));
	expect(f, fd, CALL1("Evict", "\"name\":\"db\""),
	       ERROR("NotPermitted", "\"reason\":\"other users have processes of that name too; "
				     "give the process id of one of yours\""));
	expect(f, fd, CALL1("Evict", "\"pid\":999"), ERROR("NoSuchProcess", ""));
	expect(f, fd, CALL1("Evict", "\"name\":\"x\""), ERROR("NoSuchProcess", ""));
	assert_string_equal(f->manager.last, "evict 0 x -1");
	expect(f, fd, CALL1("ListFrames", "\"state\":\"used\",\"pid\":100"),
	       ERROR("NotPermitted", "\"reason\":\"that process is not yours\""));
	say(f, fd, CALL1("ListFrames", "\"state\":\"used\",\"name\":\"web\",\"count\":2"));
	assert_true(hear(f, fd) > 0);
	assert_int_equal(nr_frames(f->buf), 2);
	say(f, fd, CALL1("ListFrames", "\"state\":\"free\""));
	assert_true(hear(f, fd) > 0);
	assert_non_null(strstr(f->buf, "io.usmd.Manager.NotPermitted"));
	say(f, fd, CALL1("ListFrames", "\"state\":\"used\""));
	assert_true(hear(f, fd) > 0);
	assert_non_null(strstr(f->buf, "io.usmd.Manager.NotPermitted"));
	close(fd);
}

static void test_access_of_group(void **state)
{
	struct fixture *f = *state;
	int fd;

	f->manager.evict_at_once = true;
	/* Once as a supplementary group, once as the only one. */
	for (int i = 0; i < 2; i++) {
		fd = i == 0 ? dial_as(f, FAKE_USER, TEST_GROUP) : dial_as(f, TEST_GROUP, 0);
		expect(f, fd, CALL1("Assign", "\"name\":\"db\",\"policy\":\"policyOne\""),
		       REPLY("\"takenOver\":2,\"unmanaged\":1"));
		expect(f, fd, CALL1("Evict", "\"name\":\"db\",\"pages\":2"), REPLY("\"evicted\":2"));
		expect(f, fd, CALL("ListProcesses"),
		       REPLY("\"processes\":[" DB0 "," DB1 "," WEB2 "],\"total\":3"));
		strcpy(f->manager.last, "untouched");
		expect(f, fd, CALL1("Assign", "\"name\":\"unit:s.service\",\"policy\":\"policyOne\","
					      "\"allow\":true"),
		       ERROR("NotPermitted", "\"reason\":\"only root may allow a unit's programs to be "
					     "managed\""));
		assert_string_equal(f->manager.last, "untouched");
		expect(f, fd, CALL1("LoadPolicy", "\"file\":\"/opt/mine.so\""), ROOT_ONLY);
		expect(f, fd, CALL1("AddSwap", "\"path\":\"/s\",\"sizeBytes\":4096"), ROOT_ONLY);
		expect(f, fd, CALL("Reload"), ROOT_ONLY);
		close(fd);
	}
}

static void test_service_interface(void **state)
{
	struct fixture *f = *state;
	int fd = dial(f);

	expect(f, fd, "{\"method\":\"org.varlink.service.GetInfo\",\"parameters\":{}}",
	       REPLY("\"vendor\":\"usmd\",\"product\":\"usmd\",\"version\":\"9.8.7\",\"url\":\"\","
		     "\"interfaces\":[\"org.varlink.service\",\"io.usmd.Manager\"]"));
	expect(f, fd, "{\"method\":\"org.varlink.service.GetInterfaceDescription\"}",
	       INVALID("interface"));
	expect(f, fd, "{\"method\":\"org.varlink.service.GetInterfaceDescription\","
		      "\"parameters\":{\"interface\":\"a.b\"}}",
	       VERROR("InterfaceNotFound", "\"interface\":\"a.b\""));
	expect(f, fd, "{\"method\":\"org.varlink.service.Nonsense\"}",
	       VERROR("MethodNotFound", "\"method\":\"org.varlink.service.Nonsense\""));
	expect(f, fd, CALL("Nonsense"),
	       VERROR("MethodNotFound", "\"method\":\"io.usmd.Manager.Nonsense\""));
	expect(f, fd, CALL(""), VERROR("MethodNotFound", "\"method\":\"io.usmd.Manager.\""));
	expect(f, fd, "{\"method\":\"io.usmd.Managers.GetStatus\"}",
	       VERROR("InterfaceNotFound", "\"interface\":\"io.usmd.Managers\""));
	expect(f, fd, "{\"method\":\"GetStatus\"}",
	       VERROR("InterfaceNotFound", "\"interface\":\"GetStatus\""));
	expect(f, fd, "{\"method\":\"\"}", VERROR("InterfaceNotFound", "\"interface\":\"\""));
	expect(f, fd, MANAGER("GetStatus") ",\"parameters\":[]}", INVALID("parameters"));
	expect(f, fd, MANAGER("GetStatus") ",\"parameters\":{\"x\":1}}", INVALID("x"));
	expect(f, fd, MANAGER("GetStatus") ",\"parameters\":null}", REPLY(STATUS));
	expect(f, fd, MANAGER("GetStatus") ",\"upgrade\":true}",
	       VERROR("MethodNotImplemented", "\"method\":\"io.usmd.Manager.GetStatus\""));
	/* more where one reply is all there is. */
	expect(f, fd, MANAGER("GetStatus") ",\"more\":true}", REPLY(STATUS));
	close(fd);
}

static void test_description_is_the_file(void **state)
{
	struct fixture *f = *state;
	char path[512], text[32768];
	struct json_object *o, *p, *d;
	int fd = dial(f);
	size_t n;
	FILE *file;

	say(f, fd, "{\"method\":\"org.varlink.service.GetInterfaceDescription\","
		   "\"parameters\":{\"interface\":\"io.usmd.Manager\"}}");
	assert_true(hear(f, fd) > 0);
	o = json_tokener_parse(f->buf);
	assert_true(json_object_object_get_ex(o, "parameters", &p));
	assert_true(json_object_object_get_ex(p, "description", &d));

	file = fopen("usmd/io.usmd.Manager.varlink", "re");
	if (!file) {
		snprintf(path, sizeof(path), "%.*s/../../usmd/io.usmd.Manager.varlink",
			 (int)(strrchr(__FILE__, '/') - __FILE__), __FILE__);
		file = fopen(path, "re");
	}
	assert_non_null(file);
	n = fread(text, 1, sizeof(text) - 1, file);
	fclose(file);
	text[n] = '\0';
	assert_string_equal(json_object_get_string(d), text);
	json_object_put(o);
	close(fd);
}

static void test_oneway(void **state)
{
	struct fixture *f = *state;
	int fd = dial(f);

	say(f, fd, MANAGER("Unassign") ",\"oneway\":true,\"parameters\":{\"name\":\"temporary\"}}");
	assert_string_equal(f->manager.last, "unassign temporary");
	say(f, fd, MANAGER("Nonsense") ",\"oneway\":true}");
	assert_int_equal(hear(f, fd), 0);
	expect(f, fd, CALL("GetStatus"), REPLY(STATUS));
	close(fd);

	/* Said and gone is enough. */
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(fd, (void *)&f->address, sizeof(f->address)), 0);
	assert_true(send(fd, MANAGER("Unassign") ",\"oneway\":true,\"parameters\":{\"name\":\"x\"}}\0"
			 MANAGER("Unassign") ",\"oneway\":true,\"parameters\":{\"name\":\"y\"}}",
			 2 * sizeof(MANAGER("Unassign") ",\"oneway\":true,\"parameters\":"
				    "{\"name\":\"x\"}}"), 0) > 0);
	close(fd);
	pump(f);
	assert_string_equal(f->manager.last, "unassign y");
}

static void test_broken_clients(void **state)
{
	static const char *const bad[] = {
		"", "x", "[]", "{}", "{\"method\":1}", "{\"method\":null}", "{\"method\":",
		"{\"method\":\"a.b\",\"more\":1}", "{\"method\":\"a.b\",\"oneway\":\"yes\"}",
		"{\"method\":\"a.b\",\"oneway\":true,\"more\":true}", "GET / HTTP/1.1\r\n\r\n",
	};
	struct fixture *f = *state;
	char *big = malloc(70000);
	int fd, kept = dial(f);

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		fd = dial(f);
		say(f, fd, bad[i]);
		expect_reject(f, fd, "a message is not a JSON object with a method", EBADMSG);
	}

	/* Too long, in many pieces and without an end. */
	memset(big, ' ', 70000);
	fd = dial(f);
	for (int i = 0; i < 70; i++) {
		if (send(fd, big, 1000, MSG_NOSIGNAL) < 0)
			break;
		pump(f);
	}
	expect_reject(f, fd, "a message is longer than 65536 bytes", EMSGSIZE);

	/* As long as may be. */
	fd = dial(f);
	memcpy(big, CALL("GetStatus"), strlen(CALL("GetStatus")));
	big[64 << 10] = '\0';
	assert_int_equal(send(fd, big, (64 << 10) + 1, 0), (64 << 10) + 1);
	pump(f);
	assert_true(hear(f, fd) > 0);
	assert_string_equal(f->buf, REPLY(STATUS));
	close(fd);

	/* Half a message, then gone, or then the other half. */
	fd = dial(f);
	assert_int_equal(send(fd, "{\"meth", 6, 0), 6);
	pump(f);
	close(fd);
	fd = dial(f);
	assert_int_equal(send(fd, MANAGER("GetSta"), 20, 0), 20);
	pump(f);
	assert_int_equal(hear(f, fd), 0);
	expect(f, fd, &CALL("GetStatus")[20], REPLY(STATUS));
	close(fd);

	/* Nobody else noticed. */
	expect(f, kept, CALL("GetStatus"), REPLY(STATUS));
	close(kept);
	free(big);
}

/* Runs the loop for so long. */
static void run_for(struct fixture *f, uint64_t usec)
{
	uint64_t now, end;

	sd_event_now(f->manager.event, CLOCK_MONOTONIC, &now);
	end = now + usec;
	while (now < end) {
		sd_event_run(f->manager.event, end - now);
		sd_event_now(f->manager.event, CLOCK_MONOTONIC, &now);
	}
}

static void test_half_a_message(void **state)
{
	static const char call[] = CALL("GetStatus");
	struct fixture *f = *state;
	int fd, quiet = dial(f), monitor = dial(f);
	char both[sizeof(call)];

	control_message_usec = 2000000;
	say(f, monitor, MANAGER("Monitor") ",\"more\":true}");
	assert_true(send(monitor, "{", 1, 0) == 1);

	/* Bytes that trickle in gain no time; a whole message does. */
	fd = dial(f);
	assert_int_equal(send(fd, "{\"meth", 6, 0), 6);
	run_for(f, 1500000);
	assert_int_equal(send(fd, "od\":", 4, 0), 4);
	run_for(f, 1500000);
	expect_reject(f, fd, "half a message came, and the rest not in time", ETIMEDOUT);

	/* Always in the middle of one, but each is in time. */
	fd = dial(f);
	assert_int_equal(send(fd, call, 20, 0), 20);
	for (int i = 0; i < 5; i++) {
		run_for(f, 500000);
		memcpy(both, call + 20, sizeof(call) - 20);
		memcpy(both + sizeof(call) - 20, call, 20);
		assert_int_equal(send(fd, both, sizeof(call), 0), sizeof(call));
		pump(f);
		assert_true(hear(f, fd) > 0);
		assert_string_equal(f->buf, REPLY(STATUS));
	}
	close(fd);

	/* Who says nothing, or listens, has all the time. */
	expect(f, quiet, CALL("GetStatus"), REPLY(STATUS));
	assert_true(hear(f, monitor) > 0);
	close(quiet);
	close(monitor);
}

static void test_many_calls_at_once(void **state)
{
	struct fixture *f = *state;
	int fd = dial(f);
	ssize_t n;
	int replies = 0;

	for (int i = 0; i < 100; i++)
		assert_true(send(fd, CALL("GetStatus"), sizeof(CALL("GetStatus")), 0) > 0);
	shutdown(fd, SHUT_WR);
	pump(f);
	n = hear(f, fd);
	for (ssize_t i = 0; i < n; i++)
		replies += f->buf[i] == '\0';
	assert_int_equal(replies, 100);
	expect_gone(f, fd);
}

static void test_client_that_never_reads(void **state)
{
	static const char call[] = CALL1("ListFrames", "\"state\":\"used\"");
	struct fixture *f = *state;
	int fd = dial(f), kept = dial(f);
	int sent = 0;

	while (send(fd, call, sizeof(call), MSG_NOSIGNAL) > 0) {
		pump(f);
		assert_true(++sent < 1000);
	}
	assert_true(errno == EPIPE || errno == ECONNRESET);
	expect(f, kept, CALL("GetStatus"), REPLY(STATUS));
	close(fd);
	close(kept);
}

static void test_monitor_that_never_reads(void **state)
{
	struct fixture *f = *state;
	int fd = dial(f), kept = dial(f);
	unsigned before, nr;

	control_monitor_usec = 1;
	say(f, fd, MANAGER("Monitor") ",\"more\":true}");
	/* Its queue holds 1 MiB, and the socket's some more; an item is longer than 100 bytes. */
	do {
		before = f->manager.nr_status;
		run_for(f, 100000);
		nr = f->manager.nr_status;
		assert_true(nr < 20000);
	} while (nr > before);
	assert_true(nr > 1000);
	expect(f, kept, CALL("GetStatus"), REPLY(STATUS));
	/* What had been sent can be read, then it is over. */
	while (hear(f, fd) > 0)
		;
	expect_gone(f, fd);
	close(kept);
}

static void test_number_of_clients(void **state)
{
	struct fixture *f = *state;
	int fd[130], i;

	for (i = 0; i < 128; i++)
		fd[i] = dial(f);
	expect(f, fd[127], CALL("GetStatus"), REPLY(STATUS));
	fd[128] = dial(f);
	assert_true(hear(f, fd[128]) > 0);
	assert_non_null(strstr(f->buf, "too many clients"));
	expect_gone(f, fd[128]);
	/* One goes, one may come. */
	close(fd[0]);
	pump(f);
	fd[0] = dial(f);
	expect(f, fd[0], CALL("GetStatus"), REPLY(STATUS));
	for (i = 0; i < 128; i++)
		close(fd[i]);
	pump(f);
}

static void test_number_of_clients_of_a_user(void **state)
{
	struct fixture *f = *state;
	int fd[18], i;

	for (i = 0; i < 17; i++)
		fd[i] = dial_as(f, FAKE_USER, 0);
	expect(f, fd[15], CALL("GetStatus"), REPLY(STATUS));
	assert_true(hear(f, fd[16]) > 0);
	assert_non_null(strstr(f->buf, "too many clients"));
	fd[17] = dial_as(f, FAKE_USER + 1, 0);
	expect(f, fd[17], CALL("GetStatus"), REPLY(STATUS));
	for (i = 0; i < 18; i++)
		close(fd[i]);
}

static void test_monitor(void **state)
{
	struct fixture *f = *state;
	int fd = dial(f), second = dial(f);
	ssize_t n;

	expect(f, fd, CALL("Monitor"), VERROR("ExpectedMore", ""));
	assert_int_equal(f->manager.nr_status, 0);
	say(f, fd, MANAGER("Monitor") ",\"more\":true}");
	n = hear(f, fd);
	assert_true(n > 0);
	assert_int_equal(strncmp(f->buf, "{\"parameters\":{\"timeUsec\":", 26), 0);
	assert_non_null(strstr(f->buf, ",\"status\":{" STATUS "}},\"continues\":true}"));
	assert_int_equal(strlen(f->buf) + 1, n);

	/* A second one shares the timer, and one a second is all. */
	say(f, second, MANAGER("Monitor") ",\"more\":true}");
	assert_true(hear(f, second) > 0);
	f->manager.nr_status = 0;
	run_for(f, 1300000);
	assert_int_equal(f->manager.nr_status, 1);
	assert_true(hear(f, fd) > 0);
	assert_true(hear(f, second) > 0);

	/* Nobody listens: nothing runs. */
	close(fd);
	close(second);
	pump(f);
	f->manager.nr_status = 0;
	run_for(f, 1300000);
	assert_int_equal(f->manager.nr_status, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		TEST(test_status_and_lists),
		TEST(test_empty_lists),
		TEST(test_frames),
		TEST(test_changes),
		TEST(test_evict),
		TEST(test_evict_for_nobody),
		TEST(test_evict_half_closed),
		TEST(test_evictions_are_bounded),
		TEST(test_access_of_anyone),
		TEST(test_access_of_group),
		TEST(test_service_interface),
		TEST(test_description_is_the_file),
		TEST(test_oneway),
		TEST(test_broken_clients),
		TEST(test_half_a_message),
		TEST(test_many_calls_at_once),
		TEST(test_client_that_never_reads),
		TEST(test_number_of_clients),
		TEST(test_monitor_that_never_reads),
		TEST(test_number_of_clients_of_a_user),
		TEST(test_monitor),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

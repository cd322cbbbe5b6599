/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* links: usmd/config.c usmd/config-parse.c usmd/config-assign.c usmd/lib/log.c usmd/lib/parse.c */
/* Rules for programs, units and users: what their names may be, and which of them counts. */
#include "config-fixture.h"

#include "lib/parse.h"

#define X50 "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"

static struct usm_config *load(const char *text)
{
	struct usm_config *c;

	put("f", text);
	assert_int_equal(load_file("f", &c), 0);
	return c;
}

static void test_unit_names(void **state)
{
	static const char *const valid[] = {
		"redis-server.service", "redis-server@one.service", "redis-server@.service",
		"session-3.scope", "a.b:c_d.service", "dev-disk\\x2dby@x\\x2dy.service", "a.service",
		X50 X50 X50 X50 "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx.scope",
	};
	static const char *const invalid[] = {
		"", ".service", "service", "redis-server", "redis.socket", "user-1000.slice",
		"@one.service", "a b.service", "../a.service", "a/b.service", "a.service/", "a;b.service",
		"a\nb.service", "a%b.service", "caf\xc3\xa9.service", "a.service ",
		X50 X50 X50 X50 X50 ".scope", /* 256 bytes */
	};

	(void)state;
	for (size_t i = 0; i < sizeof(valid) / sizeof(valid[0]); i++)
		assert_true(usm_unit_name_is_valid(valid[i]));
	for (size_t i = 0; i < sizeof(invalid) / sizeof(invalid[0]); i++)
		assert_false(usm_unit_name_is_valid(invalid[i]));
}

static void test_rule_names(void **state)
{
	const char *what = NULL;

	(void)state;
	assert_int_equal(usm_rule_parse("redis-server", &what), USM_RULE_PROCESS);
	assert_string_equal(what, "redis-server");
	assert_int_equal(usm_rule_parse("unit:redis.service", &what), USM_RULE_UNIT);
	assert_string_equal(what, "redis.service");
	assert_int_equal(usm_rule_parse("user:www-data", &what), USM_RULE_USER);
	assert_string_equal(what, "www-data");
	assert_int_equal(usm_rule_parse("user:1000", NULL), USM_RULE_USER);
	/* Not our prefixes. */
	assert_int_equal(usm_rule_parse("units:a", NULL), USM_RULE_PROCESS);
	assert_int_equal(usm_rule_parse("unit", NULL), USM_RULE_PROCESS);

	what = "untouched";
	assert_int_equal(usm_rule_parse("unit:", &what), -EINVAL);
	assert_int_equal(usm_rule_parse("unit:redis", &what), -EINVAL);
	assert_int_equal(usm_rule_parse("unit:../x.service", &what), -EINVAL);
	assert_int_equal(usm_rule_parse("unit: x.service", &what), -EINVAL);
	assert_int_equal(usm_rule_parse("user:", &what), -EINVAL);
	assert_int_equal(usm_rule_parse("user:a b", &what), -EINVAL);
	assert_int_equal(usm_rule_parse("user:@group", &what), -EINVAL);
	assert_int_equal(usm_rule_parse("user:-1", &what), -EINVAL);
	assert_int_equal(usm_rule_parse("user:a:b", &what), -EINVAL);
	assert_int_equal(usm_rule_parse("a/b", &what), -EINVAL);
	assert_string_equal(what, "untouched");
}

static void test_lines(void **state)
{
	struct usm_config *c;

	(void)state;
	c = load("process unit:redis.service one\n"
		 "process swap unit:redis.service two\n"
		 "limit unit:redis.service 64M\n"
		 "priority unit:redis.service 3\n"
		 "process user:root three\n"
		 "process user:4000000 four\n");
	assert_string_equal(logged, "");
	assert_int_equal(c->nr_processes, 3);
	assert_string_equal(c->processes[0].alloc_policy, "one");
	assert_string_equal(c->processes[0].swap_policy, "two");
	assert_int_equal(c->processes[0].limit_bytes, 64 << 20);
	assert_int_equal(c->processes[0].priority, 3);
	assert_false(c->processes[0].has_uid);
	assert_true(c->processes[1].has_uid);
	assert_int_equal(c->processes[1].uid, 0);
	assert_int_equal(c->processes[2].uid, 4000000);
	usm_config_free(c);

	put("f", "process unit:redis one\n"
		 "limit user: 5\n"
		 "priority unit:a/b.service 1\n");
	assert_int_equal(load_file("f", &c), -EINVAL);
	assert_string_equal(logged,
			    "usmd: /f:1: bad value 'unit:redis' for process, expected unit: and the full "
			    "name of a unit, such as redis-server.service\n"
			    "usmd: /f:2: bad value 'user:' for limit, expected user: and the name or "
			    "number of a user\n"
			    "usmd: /f:3: bad value 'unit:a/b.service' for priority, expected unit: and the "
			    "full name of a unit, such as redis-server.service\n");
}

/* A user can be removed while usmd runs: it must start again all the same. */
static void test_user_who_is_not_there(void **state)
{
	struct usm_config_subject s = { .name = "a", .argv0 = "a", .unit = "", .uid = (uid_t)-1 };
	struct usm_config_rule rule;
	struct usm_config *c;

	(void)state;
	c = load("process user:no-such-user one\nlimit user:no-such-user 64M\n");
	assert_string_equal(logged, "usmd: /f:1: there is no user 'no-such-user', ignoring\n");
	/* Nobody's, not the user's whose number happens to stand there. */
	for (uid_t uid = 0; uid < 2; uid++) {
		s.uid = uid - 1;
		usm_config_rule_for(c, &s, &rule);
		assert_string_equal(rule.alloc_policy, "");
	}
	usm_config_free(c);
}

static void expect(const struct usm_config *c, struct usm_config_subject s, const char *alloc,
		   const char *swap, uint64_t limit_mib, int priority)
{
	struct usm_config_rule rule;

	usm_config_rule_for(c, &s, &rule);
	assert_string_equal(rule.alloc_policy, alloc);
	assert_string_equal(rule.swap_policy, swap);
	assert_int_equal(rule.limit_bytes >> 20, limit_mib);
	assert_int_equal(rule.priority, priority);
}

static struct usm_config_subject who(const char *name, const char *argv0, const char *unit, uid_t uid)
{
	return (struct usm_config_subject){ .name = name, .argv0 = argv0, .unit = unit, .uid = uid };
}

static void test_precedence(void **state)
{
	struct usm_config *c;

	(void)state;
	c = load("process name by-name\n"
		 "process argv0 by-argv0\n"
		 "process unit:s@i.service by-unit\n"
		 "process unit:s@.service by-template\n"
		 "process user:42 by-user\n");
	expect(c, who("x", "x", "", 99), "", "", 0, 0);
	expect(c, who("x", "x", "", 42), "by-user", "by-user", 0, 0);
	expect(c, who("x", "x", "s@other.service", 42), "by-template", "by-template", 0, 0);
	expect(c, who("x", "x", "s@.service", 42), "by-template", "by-template", 0, 0);
	expect(c, who("x", "x", "s@i.service", 42), "by-unit", "by-unit", 0, 0);
	expect(c, who("x", "x", "s.service", 42), "by-user", "by-user", 0, 0);
	expect(c, who("x", "x", "ss@i.service", 99), "", "", 0, 0);
	expect(c, who("x", "argv0", "s@i.service", 42), "by-argv0", "by-argv0", 0, 0);
	expect(c, who("name", "argv0", "s@i.service", 42), "by-name", "by-name", 0, 0);
	usm_config_free(c);
}

/* Each thing is said by the narrowest rule that says it. */
static void test_parts(void **state)
{
	struct usm_config *c;

	(void)state;
	c = load("process alloc name by-name\n"
		 "limit name 0\n"
		 "process none-name none\n"
		 "process swap unit:s.service by-unit\n"
		 "limit unit:s.service 8M\n"
		 "process user:42 by-user\n"
		 "limit user:42 16M\n"
		 "priority user:42 7\n");
	expect(c, who("x", "x", "", 42), "by-user", "by-user", 16, 7);
	expect(c, who("x", "x", "s.service", 42), "by-user", "by-unit", 8, 7);
	/* "No limit" is said, too. */
	expect(c, who("name", "x", "s.service", 42), "by-name", "by-unit", 0, 7);
	expect(c, who("none-name", "x", "s.service", 42), "none", "none", 8, 7);
	usm_config_free(c);
}

/* A program can have any name, and call itself by any: it is no unit's and no user's by that. */
static void test_names_claim_nothing(void **state)
{
	struct usm_config *c;

	(void)state;
	c = load("process unit:s.service by-unit\nprocess user:42 by-user\nallow unit:s.service\n");
	expect(c, who("unit:s.service", "unit:s.service", "", 99), "", "", 0, 0);
	expect(c, who("user:42", "user:42", "", 99), "", "", 0, 0);
	expect(c, who("s.service", "s.service", "", 99), "", "", 0, 0);
	assert_false(usm_config_allows(c, "unit:s.service", "", 42, NULL, 0));
	usm_config_free(c);
}

static void test_meant(void **state)
{
	const struct usm_config_subject s = { .name = "n", .argv0 = "v", .unit = "s@i.service",
					      .uid = 42 };

	(void)state;
	assert_true(usm_config_is_meant("n", 0, &s));
	assert_true(usm_config_is_meant("v", 0, &s));
	assert_true(usm_config_is_meant("unit:s@i.service", 0, &s));
	assert_true(usm_config_is_meant("unit:s@.service", 0, &s));
	assert_true(usm_config_is_meant("user:somebody", 42, &s));
	assert_false(usm_config_is_meant("s@i.service", 42, &s));
	assert_false(usm_config_is_meant("unit:s@j.service", 42, &s));
	assert_false(usm_config_is_meant("unit:n.service", 42, &s));
	assert_false(usm_config_is_meant("user:somebody", 41, &s));
	assert_false(usm_config_is_meant("unit:", 42, &s));
}

static void test_allow(void **state)
{
	struct usm_config *c;

	(void)state;
	c = load("allow unit:s.service\nallow unit:t@.service\nallow unit:s.service\n");
	assert_int_equal(c->nr_allows, 2);
	assert_true(usm_config_allows(c, "/bin/any", "s.service", 42, NULL, 0));
	assert_true(usm_config_allows(c, "/bin/any", "t@i.service", 42, NULL, 0));
	assert_false(usm_config_allows(c, "/bin/any", "t.service", 42, NULL, 0));
	assert_false(usm_config_allows(c, "/bin/any", "", 42, NULL, 0));
	usm_config_free(c);

	/* A rule alone lets nobody's program be managed. */
	c = load("process unit:s.service one\nprocess user:42 one\n");
	assert_false(usm_config_allows(c, "/bin/any", "s.service", 42, NULL, 0));
	usm_config_free(c);

	put("f", "allow unit:s\nallow s.service\nallow user:42\n");
	assert_int_equal(load_file("f", &c), -EINVAL);
#define EXPECTED " for allow, expected PATH USER, PATH @GROUP, or unit: and the full name of a unit\n"
	assert_string_equal(logged, "usmd: /f:1: bad value 'unit:s'" EXPECTED
				    "usmd: /f:2: bad value 's.service'" EXPECTED
				    "usmd: /f:3: bad value 'user:42'" EXPECTED);
}

static const char *file_text(void)
{
	static char text[512];
	char path[128];
	FILE *f;
	size_t n;

	snprintf(path, sizeof(path), "%s/" USM_CONFIG_ASSIGN_FILE, root);
	f = fopen(path, "r");
	assert_non_null(f);
	n = fread(text, 1, sizeof(text) - 1, f);
	text[n] = '\0';
	fclose(f);
	return text;
}

static void test_assign(void **state)
{
	(void)state;
	put(USM_CONFIG_ASSIGN_FILE, "allow /bin/a root\n");
	assert_int_equal(usm_config_assign_set(root, "unit:s.service", 'b', "one", 8 << 20, true), 0);
	assert_string_equal(file_text(), "allow /bin/a root\nprocess unit:s.service one\n"
					 "limit unit:s.service 8M\nallow unit:s.service\n");
	/* What root has allowed stays when somebody else assigns. */
	assert_int_equal(usm_config_assign_set(root, "unit:s.service", 'b', "two", 0, false), 0);
	assert_int_equal(usm_config_assign_set(root, "user:root", 'b', "two", UINT64_MAX, false), 0);
	assert_string_equal(file_text(), "allow /bin/a root\nprocess unit:s.service two\n"
					 "limit unit:s.service 0\nallow unit:s.service\n"
					 "process user:root two\n");
	assert_int_equal(usm_config_assign_unset(root, "unit:s.service"), 0);
	assert_string_equal(file_text(), "allow /bin/a root\nprocess user:root two\n");
	assert_int_equal(usm_config_assign_unset(root, "unit:s.service"), -ENOENT);

	assert_int_equal(usm_config_assign_set(root, "unit:s", 'b', "one", 0, false), -EINVAL);
	assert_int_equal(usm_config_assign_set(root, "s", 'b', "one", 0, true), -EINVAL);
	assert_int_equal(usm_config_assign_set(root, "user:root", 'b', "one", 0, true), -EINVAL);
	assert_int_equal(usm_config_assign_unset(root, "unit:s"), -EINVAL);
	assert_string_equal(file_text(), "allow /bin/a root\nprocess user:root two\n");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		TEST(test_unit_names), TEST(test_rule_names), TEST(test_lines),
		TEST(test_user_who_is_not_there), TEST(test_precedence), TEST(test_parts),
		TEST(test_names_claim_nothing), TEST(test_meant), TEST(test_allow), TEST(test_assign),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

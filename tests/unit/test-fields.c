/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* links: usmd/lib/fields.c */
/* Field tables: what is refused, what is kept, what is built. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "lib/fields.h"

struct sample {
	const char *text;
	bool flag;
	int32_t number;
	uint64_t count;
};

static const struct usm_field sample_fields[] = {
	{ "text", USM_FIELD_STRING, offsetof(struct sample, text), USM_FIELD_MANDATORY, 0, 0 },
	{ "flag", USM_FIELD_BOOL, offsetof(struct sample, flag), 0, 0, 0 },
	{ "number", USM_FIELD_S32, offsetof(struct sample, number), 0, -5, 5 },
	{ "count", USM_FIELD_U64, offsetof(struct sample, count), 0, 0, INT64_MAX },
	{}
};

/* The name that was refused, or NULL. */
static const char *parse(const char *json, struct sample *s)
{
	static char bad[64];
	struct json_object *o = json_tokener_parse(json);
	const char *name = "";
	int err;

	if (!o && strcmp(json, "null") != 0)
		fail_msg("the test's own JSON is wrong: %s", json);
	err = usm_fields_parse(sample_fields, o, s, &name);
	/* The text is borrowed from o, which goes. */
	s->text = s->text ? (strcmp(s->text, "hello") == 0 ? "hello" : "other") : NULL;
	strncpy(bad, name, sizeof(bad) - 1);
	json_object_put(o);
	if (err == 0)
		return NULL;
	assert_int_equal(err, -EINVAL);
	return bad;
}

static void test_parse(void **state)
{
	struct sample s = { .count = 77 };

	(void)state;
	assert_null(parse("{\"text\":\"hello\",\"flag\":true,\"number\":-5}", &s));
	assert_string_equal(s.text, "hello");
	assert_true(s.flag);
	assert_int_equal(s.number, -5);
	assert_int_equal(s.count, 77); /* absent keeps */
	assert_null(parse("{\"text\":\"x\",\"count\":9223372036854775807,\"flag\":null}", &s));
	assert_true(s.count == INT64_MAX);
	assert_true(s.flag); /* null keeps */
}

static void test_refused(void **state)
{
	static const struct {
		const char *json, *bad;
	} cases[] = {
		{ "{}", "text" },
		{ "null", "text" },
		{ "{\"text\":null}", "text" },
		{ "[]", "parameters" },
		{ "\"text\"", "parameters" },
		{ "{\"text\":\"a\",\"nonsense\":1}", "nonsense" },
		{ "{\"text\":\"a\",\"nonsense\":null}", "nonsense" },
		{ "{\"text\":\"a\",\"Text\":\"a\"}", "Text" },
		{ "{\"text\":1}", "text" },
		{ "{\"text\":[\"a\"]}", "text" },
		{ "{\"text\":\"a\\u0000b\"}", "text" },
		{ "{\"text\":\"a\",\"flag\":1}", "flag" },
		{ "{\"text\":\"a\",\"flag\":\"true\"}", "flag" },
		{ "{\"text\":\"a\",\"number\":6}", "number" },
		{ "{\"text\":\"a\",\"number\":-6}", "number" },
		{ "{\"text\":\"a\",\"number\":4294967297}", "number" },
		{ "{\"text\":\"a\",\"number\":1.0}", "number" },
		{ "{\"text\":\"a\",\"number\":\"1\"}", "number" },
		{ "{\"text\":\"a\",\"count\":-1}", "count" },
		{ "{\"text\":\"a\",\"count\":{}}", "count" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct sample s = { .number = 3, .count = 77 };
		const char *bad = parse(cases[i].json, &s);

		if (!bad || strcmp(bad, cases[i].bad) != 0)
			fail_msg("%s: refused for %s", cases[i].json, bad ?: "nothing");
		/* Untouched. */
		assert_null(s.text);
		assert_int_equal(s.number, 3);
		assert_int_equal(s.count, 77);
	}
}

struct built {
	const char *text, *empty, *none;
	char chars[8];
	bool flag;
	int32_t s32;
	uint32_t u32;
	uint64_t u64;
};

static const struct usm_field built_fields[] = {
	{ "text", USM_FIELD_STRING, offsetof(struct built, text), 0, 0, 0 },
	{ "empty", USM_FIELD_STRING, offsetof(struct built, empty), USM_FIELD_OMIT_EMPTY, 0, 0 },
	{ "none", USM_FIELD_STRING, offsetof(struct built, none), 0, 0, 0 },
	{ "chars", USM_FIELD_CHARS, offsetof(struct built, chars), USM_FIELD_OMIT_EMPTY, 0, 0 },
	{ "flag", USM_FIELD_BOOL, offsetof(struct built, flag), 0, 0, 0 },
	{ "s32", USM_FIELD_S32, offsetof(struct built, s32), 0, 0, 0 },
	{ "u32", USM_FIELD_U32, offsetof(struct built, u32), 0, 0, 0 },
	{ "u64", USM_FIELD_U64, offsetof(struct built, u64), 0, 0, 0 },
	{}
};

static void test_build(void **state)
{
	struct built b[2] = {
		{ .text = "a", .empty = "", .chars = "xyz", .flag = true, .s32 = -1,
		  .u32 = UINT32_MAX, .u64 = UINT64_MAX },
		{},
	};
	struct json_object *array;

	(void)state;
	assert_int_equal(usm_fields_build_array(built_fields, b, 2, sizeof(b[0]), &array), 0);
	/* Varlink's integers are signed: the largest one stands for more. */
	assert_string_equal(
		json_object_to_json_string_ext(array, JSON_C_TO_STRING_PLAIN),
		"[{\"text\":\"a\",\"none\":\"\",\"chars\":\"xyz\",\"flag\":true,\"s32\":-1,"
		"\"u32\":4294967295,\"u64\":9223372036854775807},"
		"{\"text\":\"\",\"none\":\"\",\"flag\":false,\"s32\":0,\"u32\":0,\"u64\":0}]");
	json_object_put(array);
	assert_int_equal(usm_fields_build_array(built_fields, NULL, 0, sizeof(b[0]), &array), 0);
	assert_int_equal(json_object_array_length(array), 0);
	json_object_put(array);
}

static void test_add_refuses_null(void **state)
{
	struct json_object *o = json_object_new_object();

	(void)state;
	assert_int_equal(usm_fields_add(o, "x", NULL), -ENOMEM);
	assert_int_equal(json_object_object_length(o), 0);
	json_object_put(o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_parse),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_build),
		cmocka_unit_test(test_add_refuses_null),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

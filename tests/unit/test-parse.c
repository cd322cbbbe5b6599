/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* links: usmd/lib/parse.c */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <limits.h>
#include <string.h>

#include "config.h"
#include <usm/list.h>
#include "lib/parse.h"

#define UNTOUCHED 4711u

static void test_u64(void **state)
{
	static const struct {
		const char *text;
		uint64_t min, max;
		int result;
		uint64_t value;
	} cases[] = {
		{ "0", 0, UINT64_MAX, 0, 0 },
		{ "007", 0, 10, 0, 7 },
		{ "18446744073709551615", 0, UINT64_MAX, 0, UINT64_MAX },
		{ "18446744073709551616", 0, UINT64_MAX, -ERANGE, UNTOUCHED },
		{ "99999999999999999999999", 0, UINT64_MAX, -ERANGE, UNTOUCHED },
		{ "1", 1, 64, 0, 1 },
		{ "64", 1, 64, 0, 64 },
		{ "0", 1, 64, -ERANGE, UNTOUCHED },
		{ "65", 1, 64, -ERANGE, UNTOUCHED },
		{ "", 0, 10, -EINVAL, UNTOUCHED },
		{ " 1", 0, 10, -EINVAL, UNTOUCHED },
		{ "1 ", 0, 10, -EINVAL, UNTOUCHED },
		{ "+1", 0, 10, -EINVAL, UNTOUCHED },
		{ "-1", 0, 10, -EINVAL, UNTOUCHED },
		{ "0x1", 0, 10, -EINVAL, UNTOUCHED },
		{ "1e1", 0, 10, -EINVAL, UNTOUCHED },
		{ "1.0", 0, 10, -EINVAL, UNTOUCHED },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint64_t value = UNTOUCHED;

		assert_int_equal(usm_parse_u64(cases[i].text, cases[i].min, cases[i].max, &value),
				 cases[i].result);
		assert_int_equal(value, cases[i].value);
	}
}

static void test_int(void **state)
{
	static const struct {
		const char *text;
		int min, max, result, value;
	} cases[] = {
		{ "5", 0, 10, 0, 5 },
		{ "-5", -10, 10, 0, -5 },
		{ "-0", -10, 10, 0, 0 },
		{ "-10", -10, 10, 0, -10 },
		{ "-11", -10, 10, -ERANGE, UNTOUCHED },
		{ "11", -10, 10, -ERANGE, UNTOUCHED },
		{ "2147483647", INT_MIN, INT_MAX, 0, INT_MAX },
		{ "-2147483648", INT_MIN, INT_MAX, 0, INT_MIN },
		{ "2147483648", INT_MIN, INT_MAX, -ERANGE, UNTOUCHED },
		{ "-2147483649", INT_MIN, INT_MAX, -ERANGE, UNTOUCHED },
		{ "-5", 0, 10, -EINVAL, UNTOUCHED },
		{ "--5", -10, 10, -EINVAL, UNTOUCHED },
		{ "-", -10, 10, -EINVAL, UNTOUCHED },
		{ "+5", -10, 10, -EINVAL, UNTOUCHED },
		{ "", -10, 10, -EINVAL, UNTOUCHED },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int value = UNTOUCHED;

		assert_int_equal(usm_parse_int(cases[i].text, cases[i].min, cases[i].max, &value),
				 cases[i].result);
		assert_int_equal(value, cases[i].value);
	}
}

static void test_size(void **state)
{
	static const struct {
		const char *text;
		uint64_t plain_unit, total;
		int result;
		uint64_t value;
	} cases[] = {
		{ "256", 1048576, 0, 0, 268435456 },
		{ "256", 1, 0, 0, 256 },
		{ "0", 1048576, 0, 0, 0 },
		{ "512K", 1048576, 0, 0, 524288 },
		{ "64M", 1, 0, 0, 67108864 },
		{ "2G", 1, 0, 0, 2147483648 },
		{ "1T", 1, 0, 0, 1099511627776 },
		{ "25%", 1048576, 1000, 0, 250 },
		{ "100%", 1048576, 1000, 0, 1000 },
		{ "0.5%", 1048576, 1000, 0, 5 },
		{ "50%", 1, UINT64_MAX - 615, 0, 9223372036854775500u },
		{ "101%", 1, 1000, -ERANGE, UNTOUCHED },
		{ "25%", 1048576, 0, -EINVAL, UNTOUCHED },
		{ "%", 1, 1000, -EINVAL, UNTOUCHED },
		{ "2g", 1, 0, -EINVAL, UNTOUCHED },
		{ "2GB", 1, 0, -EINVAL, UNTOUCHED },
		{ "2 G", 1, 0, -EINVAL, UNTOUCHED },
		{ "1.5G", 1, 0, -EINVAL, UNTOUCHED },
		{ "-1", 1, 0, -EINVAL, UNTOUCHED },
		{ "G", 1, 0, -EINVAL, UNTOUCHED },
		{ "", 1, 0, -EINVAL, UNTOUCHED },
		{ "16777216T", 1, 0, -ERANGE, UNTOUCHED },
		{ "17592186044416", 1048576, 0, -ERANGE, UNTOUCHED },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint64_t value = UNTOUCHED;

		assert_int_equal(usm_parse_size(cases[i].text, cases[i].plain_unit, cases[i].total,
						&value), cases[i].result);
		assert_int_equal(value, cases[i].value);
	}
}

static void test_permyriad(void **state)
{
	static const struct {
		const char *text;
		int result;
		unsigned value;
	} cases[] = {
		{ "2%", 0, 200 },
		{ "1.5%", 0, 150 },
		{ "0.01%", 0, 1 },
		{ "12.34%", 0, 1234 },
		{ "0%", 0, 0 },
		{ "100%", 0, 10000 },
		{ "100.00%", 0, 10000 },
		{ "100.01%", -ERANGE, UNTOUCHED },
		{ "101%", -ERANGE, UNTOUCHED },
		{ "99999999999999999999%", -ERANGE, UNTOUCHED },
		{ "1.234%", -EINVAL, UNTOUCHED },
		{ "1.%", -EINVAL, UNTOUCHED },
		{ ".5%", -EINVAL, UNTOUCHED },
		{ "2", -EINVAL, UNTOUCHED },
		{ "2%%", -EINVAL, UNTOUCHED },
		{ "-2%", -EINVAL, UNTOUCHED },
		{ "%", -EINVAL, UNTOUCHED },
		{ "", -EINVAL, UNTOUCHED },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		unsigned value = UNTOUCHED;

		assert_int_equal(usm_parse_permyriad(cases[i].text, &value), cases[i].result);
		assert_int_equal(value, cases[i].value);
	}
}

static void test_name(void **state)
{
	static const char *const valid[] = {
		"a", "stressapptest", "redis-server", "policyOne", "unit:redis.service",
		"python3.11", "a'b", "...", "~!$%&()*+,;<=>?@[]^_`{|}",
		"123456789012345678901234567890123456789012345678901234567890123",
	};
	static const char *const invalid[] = {
		"", ".", "..", "a b", "a\tb", "a\nb", "a/b", "/", "a#b", "a\"b", "a\\b",
		"\x01", "a\x7f", "caf\xc3\xa9",
		"1234567890123456789012345678901234567890123456789012345678901234",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(valid) / sizeof(valid[0]); i++)
		assert_true(usm_name_is_valid(valid[i]));
	for (size_t i = 0; i < sizeof(invalid) / sizeof(invalid[0]); i++)
		assert_false(usm_name_is_valid(invalid[i]));
	assert_int_equal(strlen(valid[9]), USM_NAME_MAX);
}

static void test_format_bytes(void **state)
{
	static const struct {
		uint64_t bytes;
		const char *text;
	} cases[] = {
		{ 0, "0B" },
		{ 1023, "1023B" },
		{ 1024, "1K" },
		{ 12288, "12K" },
		{ 1536, "1.5K" },
		{ 268435456, "256M" },
		{ 1610612736, "1.5G" },
		{ 1073741823, "1023.9M" },
		{ 1073741824, "1G" },
		{ 1099511627776, "1T" },
		{ UINT64_MAX, "15.9E" },
	};
	char buf[16], small[3];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		assert_string_equal(usm_format_bytes(buf, sizeof(buf), cases[i].bytes),
				    cases[i].text);
	/* A buffer that is too small is not overrun. */
	assert_string_equal(usm_format_bytes(small, sizeof(small), 268435456), "25");
}

struct item {
	int value;
	struct list_head list;
};

static int list_digits(struct list_head *head)
{
	struct item *item;
	int digits = 0;

	list_for_each_entry(item, head, list)
		digits = digits * 10 + item->value;
	return digits;
}

static void test_list(void **state)
{
	struct item items[4], *item, *following;
	struct list_head head = LIST_HEAD_INIT(head), other;

	(void)state;
	INIT_LIST_HEAD(&other);
	assert_true(list_empty(&head));
	assert_int_equal(list_digits(&head), 0);

	for (int i = 0; i < 4; i++)
		items[i].value = i + 1;
	list_add(&items[1].list, &head);
	list_add(&items[0].list, &head);
	list_add_tail(&items[2].list, &head);
	list_add_tail(&items[3].list, &head);
	assert_int_equal(list_digits(&head), 1234);
	assert_ptr_equal(list_first_entry(&head, struct item, list), &items[0]);
	assert_ptr_equal(list_last_entry(&head, struct item, list), &items[3]);

	list_move(&items[2].list, &head);
	assert_int_equal(list_digits(&head), 3124);
	list_move_tail(&items[2].list, &head);
	assert_int_equal(list_digits(&head), 1243);
	list_move_tail(&items[3].list, &other);
	assert_int_equal(list_digits(&head), 123);
	assert_int_equal(list_digits(&other), 4);

	list_del(&items[1].list);
	assert_null(items[1].list.next);
	assert_int_equal(list_digits(&head), 13);
	list_del_init(&items[3].list);
	assert_true(list_empty(&items[3].list));
	list_del_init(&items[3].list);
	assert_true(list_empty(&other));

	list_for_each_entry_safe(item, following, &head, list)
		list_del(&item->list);
	assert_true(list_empty(&head));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_u64),
		cmocka_unit_test(test_int),
		cmocka_unit_test(test_size),
		cmocka_unit_test(test_permyriad),
		cmocka_unit_test(test_name),
		cmocka_unit_test(test_format_bytes),
		cmocka_unit_test(test_list),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* links: usmd/journal.c */
/* What the journal is told of programs, and how often: the log is this test's own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "journal.h"
#include "lib/log.h"
#include "pool.h"

static int level;
static struct entry {
	struct usm_log_fields f;
	int priority;
	char text[128];
} entries[16];
static unsigned nr_entries;

int usm_log_level(void)
{
	return level;
}

int usm_log_full(int priority, int error, const struct usm_log_fields *f, const char *fmt, ...)
{
	struct entry *e = &entries[nr_entries++];
	va_list ap;

	assert_in_range(nr_entries, 1, sizeof(entries) / sizeof(entries[0]));
	assert_non_null(f);
	e->f = *f;
	e->priority = priority;
	va_start(ap, fmt);
	vsnprintf(e->text, sizeof(e->text), fmt, ap);
	va_end(ap);
	return -error;
}

static struct arena_process shared;
static struct process process = { .shared = &shared };

static int setup(void **state)
{
	(void)state;
	memset(&shared, 0, sizeof(shared));
	strcpy(shared.name, "redis-server");
	strcpy(shared.policy, "policyOne");
	shared.pid = 7;
	level = LOG_INFO;
	nr_entries = 0;
	return 0;
}

static void expect(unsigned i, const char *event, const char *id, uint64_t count, const char *text)
{
	const struct entry *e = &entries[i];

	assert_in_range(i, 0, nr_entries - 1);
	assert_string_equal(e->f.event, event);
	assert_string_equal(e->f.message_id, id);
	assert_string_equal(e->f.process, "redis-server");
	assert_string_equal(e->f.policy, "policyOne");
	assert_int_equal(e->f.pid, 7);
	assert_int_equal(e->f.has_count, 1);
	assert_int_equal(e->f.count, count);
	assert_string_equal(e->text, text);
}

static void test_sums(void **state)
{
	(void)state;
	journal_say_sums(&process);
	assert_int_equal(nr_entries, 0);

	shared.nr_faults = 10;
	shared.nr_evictions = 300;
	shared.nr_swap_ins = 1;
	journal_say_sums(&process);
	assert_int_equal(nr_entries, 3);
	expect(0, "fault", USM_MSG_FAULT, 10, "redis-server (pid 7): 10 faults");
	expect(1, "evict", USM_MSG_EVICT, 300, "redis-server (pid 7): 300 pages evicted");
	expect(2, "swapin", USM_MSG_SWAPIN, 1, "redis-server (pid 7): 1 pages swapped in");
	assert_int_equal(entries[0].priority, LOG_INFO);
	assert_int_equal(entries[0].f.addr, 0);
	assert_int_equal(entries[0].f.has_frame + entries[0].f.has_slot, 0);

	/* Nothing twice, and only what there is; also by the next engine, which has the same arena. */
	journal_say_sums(&process);
	assert_int_equal(nr_entries, 3);
	shared.nr_evictions = 301;
	journal_say_sums(&(struct process){ .shared = &shared });
	assert_int_equal(nr_entries, 4);
	expect(3, "evict", USM_MSG_EVICT, 1, "redis-server (pid 7): 1 pages evicted");
}

static void test_turns(void **state)
{
	struct journal_turn t = {};
	unsigned n = 0;

	(void)state;
	/* From the moment when it is seen first. */
	for (uint64_t beat = 1000; beat <= 1010; beat++)
		assert_true(journal_is_due(&t, 5, beat));
	for (uint64_t beat = 1011; beat < 1111; beat++)
		n += journal_is_due(&t, 5, beat);
	assert_int_equal(n, 10);
	/* Another process has its number now. */
	assert_true(journal_is_due(&t, 6, 1111));
	assert_true(journal_is_due(&t, 6, 1112));
	/* One of generation 0 that was never seen. */
	t = (struct journal_turn){};
	assert_true(journal_is_due(&t, 0, 3));
}

static void test_evicted(void **state)
{
	(void)state;
	journal_say_evicted(&process, 0x7f001, 5, 9);
	assert_int_equal(nr_entries, 0);
	level = LOG_DEBUG;
	journal_say_evicted(&process, 0x7f001, 5, 9);
	journal_say_evicted(&process, 0x7f002, 6, 0);
	assert_int_equal(nr_entries, 2);
	assert_string_equal(entries[0].f.event, "evict");
	assert_string_equal(entries[0].f.message_id, USM_MSG_EVICT);
	assert_string_equal(entries[0].f.process, "redis-server");
	assert_string_equal(entries[0].f.policy, "policyOne");
	assert_int_equal(entries[0].f.pid, 7);
	assert_int_equal(entries[0].priority, LOG_DEBUG);
	assert_int_equal(entries[0].f.addr, 0x7f001000);
	assert_int_equal(entries[0].f.has_frame, 1);
	assert_int_equal(entries[0].f.frame, pool_paddr(5));
	assert_int_equal(entries[0].f.has_slot, 1);
	assert_int_equal(entries[0].f.slot, 9);
	assert_int_equal(entries[0].f.count, 1);
	/* A page of zeros has no slot. */
	assert_int_equal(entries[1].f.addr, 0x7f002000);
	assert_int_equal(entries[1].f.has_slot, 0);
}

static void test_filled(void **state)
{
	page_entry table[4] = {
		PAGE_ENTRY(PAGE_RESIDENT, 11), PAGE_ENTRY(PAGE_SWAPPED, 12), /* given back */
		PAGE_ENTRY(PAGE_RESIDENT, 99),				      /* another one's by now */
		PAGE_ENTRY(PAGE_RESIDENT, 14) | PAGE_LAZY,
	};
	struct fill f = { .p = &process, .vpn = 0x500, .entry = table, .n = 4, .swapped = true,
			  .slot = { 21, 22, 23, 24 }, .frame = { 11, 12, 13, 14 } };

	(void)state;
	journal_say_filled(&f);
	assert_int_equal(nr_entries, 0);
	level = LOG_DEBUG;
	journal_say_filled(&f);
	assert_int_equal(nr_entries, 2);
	expect(0, "swapin", USM_MSG_SWAPIN, 1, entries[0].text);
	assert_int_equal(entries[0].f.addr, 0x500000);
	assert_int_equal(entries[0].f.slot, 21);
	assert_int_equal(entries[1].f.addr, 0x503000);
	assert_int_equal(entries[1].f.frame, pool_paddr(14));
	assert_int_equal(entries[1].f.slot, 24);

	nr_entries = 0;
	f.swapped = false;
	f.n = 1;
	journal_say_filled(&f);
	assert_int_equal(nr_entries, 1);
	expect(0, "fault", USM_MSG_FAULT, 1, entries[0].text);
	assert_int_equal(entries[0].f.has_slot, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_sums, setup),
		cmocka_unit_test_setup(test_turns, setup),
		cmocka_unit_test_setup(test_evicted, setup),
		cmocka_unit_test_setup(test_filled, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

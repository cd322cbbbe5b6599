/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Page tables: where entries are, who frees nodes, and what a walk must not touch. */
#include "core-fixture.h"

#include <errno.h>

#include "lib/cleanup.h"

/* Pages in which the two levels, the root's pages and the whole range begin and end. */
static const uint64_t edges[] = {
	0,
	1,
	LEAF_PAGES - 1,
	LEAF_PAGES,
	(1ull << 19) - 1,
	1ull << 19,
	(1ull << 29) - 1,
	1ull << 29,
	3ull << 29,
	VPN_MAX - 1,
};

static uint64_t arena_blocks(struct arena *a)
{
	struct stat st;

	assert_int_equal(fstat(a->fd, &st), 0);
	return (uint64_t)st.st_blocks;
}

static void test_walk(void **state)
{
	struct core_fixture *f = *state;
	struct arena *a = f->arena;
	page_entry *e, *next;

	assert_null(page_walk(a, 3, 700, false));
	e = page_walk(a, 3, 700, true);
	assert_non_null(e);
	assert_int_equal(atomic_load(e), 0);
	assert_ptr_equal(page_walk(a, 3, 700, false), e);
	assert_ptr_equal(page_walk(a, 3, 700, true), e);
	/* One leaf: consecutive entries. The next leaf is not there. */
	next = page_walk(a, 3, 701, false);
	assert_ptr_equal(next, e + 1);
	assert_null(page_walk(a, 3, 1024, false));
	/* Another process has a table of its own. */
	assert_null(page_walk(a, 4, 700, false));
	assert_ptr_not_equal(page_walk(a, 4, 700, true), e);
}

static void test_walk_limits(void **state)
{
	struct core_fixture *f = *state;
	struct arena *a = f->arena;

	assert_non_null(page_walk(a, 0, VPN_MAX - 1, true));
	assert_null(page_walk(a, 0, VPN_MAX, true));
	assert_null(page_walk(a, 0, UINT64_MAX, true));
	assert_null(page_walk(a, 1, VPN_MAX - 1, false));
	/* The last process's root ends where the frames begin. */
	assert_non_null(page_walk(a, ARENA_PROCESSES - 1, VPN_MAX - 1, true));
	assert_int_equal(atomic_load(&a->frame[0].owner), 0);
}

static void test_root_pages(void **state)
{
	struct core_fixture *f = *state;
	struct arena *a = f->arena;
	uint64_t before;

	assert_int_equal(atomic_load(&a->process[5].root_pages), 0);
	assert_non_null(page_walk(a, 5, 1, true));
	assert_int_equal(atomic_load(&a->process[5].root_pages), 1);
	assert_non_null(page_walk(a, 5, VPN_MAX - 1, true));
	assert_true(atomic_load(&a->process[5].root_pages) == (1ull << 63 | 1));
	assert_non_null(page_walk(a, 5, 3ull << 29, true));
	assert_true(atomic_load(&a->process[5].root_pages) == (1ull << 63 | 8 | 1));
	/* Looking fills no memory of the arena, neither here nor where nothing ever was. */
	before = arena_blocks(a);
	for (unsigned i = 0; i < ARRAY_SIZE(edges); i++) {
		page_walk(a, 5, edges[i], false);
		assert_null(page_walk(a, 6, edges[i], false));
	}
	page_trim(a, 6, 0, VPN_MAX);
	assert_int_equal(arena_blocks(a), before);
}

struct visited {
	uint64_t vpn[16];
	unsigned n, stop_at;
};

static int note(void *userdata, uint64_t vpn, page_entry *e)
{
	struct visited *v = userdata;

	assert_int_not_equal(atomic_load(e), 0);
	assert_true(v->n < ARRAY_SIZE(v->vpn));
	v->vpn[v->n++] = vpn;
	return v->n == v->stop_at ? -EINTR : 0;
}

static void test_visit(void **state)
{
	struct core_fixture *f = *state;
	struct arena *a = f->arena;
	struct visited v = {0};

	for (unsigned i = 0; i < ARRAY_SIZE(edges); i++)
		atomic_store(page_walk(a, 1, edges[i], true), PAGE_ENTRY(PAGE_LOST, i));
	assert_int_equal(page_visit(a, 1, 0, VPN_MAX, note, &v), 0);
	assert_int_equal(v.n, ARRAY_SIZE(edges));
	assert_memory_equal(v.vpn, edges, sizeof(edges));
	/* An end above the last page is the last page. */
	v = (struct visited){0};
	assert_int_equal(page_visit(a, 1, VPN_MAX - 1, UINT64_MAX, note, &v), 0);
	assert_int_equal(v.n, 1);
	/* [first, end): neither the page before nor the one at the end. */
	v = (struct visited){0};
	assert_int_equal(page_visit(a, 1, 1, LEAF_PAGES, note, &v), 0);
	assert_int_equal(v.n, 2);
	assert_true(v.vpn[0] == 1 && v.vpn[1] == LEAF_PAGES - 1);
	v = (struct visited){0};
	assert_int_equal(page_visit(a, 1, 2, LEAF_PAGES - 1, note, &v), 0);
	assert_int_equal(page_visit(a, 1, 1, 1, note, &v), 0);
	assert_int_equal(v.n, 0);
	/* What fn returns ends it. */
	v = (struct visited){.stop_at = 3};
	assert_int_equal(page_visit(a, 1, 0, VPN_MAX, note, &v), -EINTR);
	assert_int_equal(v.n, 3);
}

static void test_trim(void **state)
{
	struct core_fixture *f = *state;
	struct arena *a = f->arena;
	page_entry *kept, *outside;
	uint32_t top;

	assert_non_null(page_walk(a, 2, 0, true));
	kept = page_walk(a, 2, LEAF_PAGES + 7, true);
	atomic_store(kept, PAGE_ENTRY(PAGE_LOST, 0));
	assert_non_null(page_walk(a, 2, 2 * LEAF_PAGES, true));
	outside = page_walk(a, 2, 3 * LEAF_PAGES, true);
	top = atomic_load(&a->nodes_top);

	page_trim(a, 2, 0, 3 * LEAF_PAGES);
	assert_null(page_walk(a, 2, 0, false));
	assert_null(page_walk(a, 2, 2 * LEAF_PAGES, false));
	assert_ptr_equal(page_walk(a, 2, LEAF_PAGES + 7, false), kept);
	assert_true(atomic_load(kept) == PAGE_ENTRY(PAGE_LOST, 0));
	assert_ptr_equal(page_walk(a, 2, 3 * LEAF_PAGES, false), outside);
	/* The two freed leaves serve again, as zeros; no third node is made. */
	assert_int_equal(atomic_load(page_walk(a, 2, 100 * LEAF_PAGES, true)), 0);
	assert_int_equal(atomic_load(page_walk(a, 2, 101 * LEAF_PAGES, true)), 0);
	assert_int_equal(atomic_load(&a->nodes_top), top);
	assert_non_null(page_walk(a, 2, 102 * LEAF_PAGES, true));
	assert_int_equal(atomic_load(&a->nodes_top), top + 1);
}

static void test_reused_leaf_is_empty(void **state)
{
	struct core_fixture *f = *state;
	struct arena *a = f->arena;

	atomic_store(page_walk(a, 2, 5, true), PAGE_ENTRY(PAGE_SWAPPED, 9));
	/* The table goes with its entries in it: their references were dropped before. */
	page_table_free(a, 2);
	for (unsigned i = 0; i < LEAF_PAGES; i++)
		assert_int_equal(atomic_load(page_walk(a, 3, i, true)), 0);
}

static void test_table_free(void **state)
{
	struct core_fixture *f = *state;
	struct arena *a = f->arena;
	struct visited v = {0};
	uint64_t blocks;
	uint32_t top;

	for (unsigned i = 0; i < ARRAY_SIZE(edges); i++)
		atomic_store(page_walk(a, 1, edges[i], true), PAGE_ENTRY(PAGE_LOST, 0));
	top = atomic_load(&a->nodes_top);
	blocks = arena_blocks(a);
	page_table_free(a, 1);
	assert_int_equal(atomic_load(&a->process[1].root_pages), 0);
	assert_int_equal(page_visit(a, 1, 0, VPN_MAX, note, &v), 0);
	assert_int_equal(v.n, 0);
	/* The root's pages go back to the system, the nodes to the free ones. */
	assert_true(arena_blocks(a) < blocks);
	for (unsigned i = 0; i < ARRAY_SIZE(edges); i++)
		assert_non_null(page_walk(a, 7, edges[i], true));
	assert_int_equal(atomic_load(&a->nodes_top), top);
}

static void test_mark(void **state)
{
	struct core_fixture *f = *state;
	struct arena *a = f->arena;
	_cleanup_free_ uint8_t *in_use = calloc(1, a->h->nr_nodes);
	_Atomic uint32_t *root = arena_root(a, 1);
	uint32_t top = 1, n = 0, inner;

	for (unsigned i = 0; i < ARRAY_SIZE(edges); i++)
		assert_non_null(page_walk(a, 1, edges[i], true));
	assert_int_equal(page_table_mark(a, 1, in_use, &top), 0);
	assert_int_equal(top, atomic_load(&a->nodes_top));
	for (uint32_t i = 0; i < top; i++)
		n += in_use[i];
	assert_int_equal(n, top - 1);
	assert_int_equal(in_use[0], 0);

	/* The same table once more: each node is used twice. */
	assert_int_equal(page_table_mark(a, 1, in_use, &top), -EBADMSG);
	/* Two processes, one leaf. */
	memset(in_use, 0, a->h->nr_nodes);
	assert_non_null(page_walk(a, 2, 0, true));
	inner = atomic_load(&root[0]);
	atomic_store(&a->node[atomic_load(&arena_root(a, 2)[0])].inner[1],
		     atomic_load(&a->node[inner].inner[0]));
	assert_int_equal(page_table_mark(a, 1, in_use, &top), 0);
	assert_int_equal(page_table_mark(a, 2, in_use, &top), -EBADMSG);
	/* A number that no node has, in the root and in an inner table. */
	memset(in_use, 0, a->h->nr_nodes);
	atomic_store(&a->node[inner].inner[9], a->h->nr_nodes);
	assert_int_equal(page_table_mark(a, 1, in_use, &top), -EBADMSG);
	memset(in_use, 0, a->h->nr_nodes);
	atomic_store(&root[0], UINT32_MAX);
	assert_int_equal(page_table_mark(a, 1, in_use, &top), -EBADMSG);
}

static void test_nodes_recover(void **state)
{
	struct core_fixture *f = *state;
	struct arena *a = f->arena;
	_cleanup_free_ uint8_t *in_use = calloc(1, a->h->nr_nodes);
	uint32_t got[3];

	/* Of nodes 1 to 5, 2 and 4 can be reached: 1, 3 and 5 are given out before a new one. */
	in_use[2] = in_use[4] = 1;
	assert_int_equal(arena_nodes_recover(a, in_use, 6), 0);
	for (unsigned i = 0; i < ARRAY_SIZE(got); i++)
		got[i] = arena_node_new(a);
	assert_int_equal(got[0] + got[1] + got[2], 1 + 3 + 5);
	assert_true(got[0] != got[1] && got[1] != got[2] && got[0] != got[2]);
	assert_int_equal(arena_node_new(a), 6);
}

#define RACE_PAGES 4096u

struct racer {
	struct arena *a;
	page_entry *seen[RACE_PAGES];
};

static void *race_walk(void *arg)
{
	struct racer *r = arg;

	for (uint64_t i = 0; i < RACE_PAGES; i++)
		r->seen[i] = page_walk(r->a, 8, i * LEAF_PAGES, true);
	return NULL;
}

/* Two threads that make the same leaves get the same ones, and no node is lost. */
static void test_walk_race(void **state)
{
	static struct racer racer[2];
	struct core_fixture *f = *state;
	pthread_t thread;

	racer[0].a = racer[1].a = f->arena;
	assert_int_equal(pthread_create(&thread, NULL, race_walk, &racer[1]), 0);
	race_walk(&racer[0]);
	pthread_join(thread, NULL);
	assert_non_null(racer[0].seen[0]);
	assert_memory_equal(racer[0].seen, racer[1].seen, sizeof(racer[0].seen));
	/* All but a few spare ones, which lost a race, are in the table. */
	assert_in_range(atomic_load(&f->arena->nodes_top), RACE_PAGES + 4 + 1, RACE_PAGES + 4 + 3);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, core_fixture_setup, core_fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_walk),
		TEST(test_walk_limits),
		TEST(test_root_pages),
		TEST(test_visit),
		TEST(test_trim),
		TEST(test_reused_leaf_is_empty),
		TEST(test_table_free),
		TEST(test_mark),
		TEST(test_nodes_recover),
		TEST(test_walk_race),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

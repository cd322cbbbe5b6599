/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Frames: who owns them, what they count, and that the policy hears of each free one. */
#include "core-fixture.h"

#include <errno.h>

#include "lib/cleanup.h"

/* A policy that only counts which frames it is told of. */
static struct {
	pthread_mutex_t lock;
	unsigned told[FIXTURE_FRAMES];
	unsigned long vaddr_seen;
	int process_seen;
} policy = {.lock = PTHREAD_MUTEX_INITIALIZER};
static struct page *policy_pages;

static int count_freed(struct usm_event *event)
{
	struct page *page = &policy_pages[(event->paddr - policy_pages->physicalAddress) >> 12];

	pthread_mutex_lock(&policy.lock);
	policy.told[page - policy_pages]++;
	policy.vaddr_seen = page->virtualAddress;
	policy.process_seen = page->process;
	pthread_mutex_unlock(&policy.lock);
	return 0;
}

static int never(struct usm_event *event)
{
	(void)event;
	return 1;
}

static struct pool *counted_pool(struct core_fixture *f)
{
	struct pool *pool = fixture_pool(f, 0);
	struct policy_set *set = calloc(1, sizeof(*set));

	assert_non_null(set);
	set->pool = pool;
	set->nr_policies = 1;
	set->policy[0].set = set;
	set->policy[0].alloc.usm_alloc = never;
	set->policy[0].alloc.usm_pindex_free = count_freed;
	pool->set = set;
	policy_pages = pool->pages;
	memset(policy.told, 0, sizeof(policy.told));
	return pool;
}

static unsigned told_in_all(void)
{
	unsigned n = 0;

	for (unsigned i = 0; i < FIXTURE_FRAMES; i++)
		n += policy.told[i];
	return n;
}

static void test_new(void **state)
{
	struct core_fixture *f = *state;
	struct pool *one = fixture_pool(f, 0), *two = fixture_pool(f, 1), *again;

	/* Frame 0 is none; each pool has its frames and as many that it can lend. */
	assert_int_equal(one->first, 1);
	assert_int_equal(one->nr, FIXTURE_FRAMES);
	assert_int_equal(two->first, 1 + 2 * FIXTURE_FRAMES);
	assert_null(pool_of_frame(&f->core, 0));
	assert_ptr_equal(pool_of_frame(&f->core, 1), one);
	assert_ptr_equal(pool_of_frame(&f->core, 2 * FIXTURE_FRAMES), one);
	assert_ptr_equal(pool_of_frame(&f->core, 2 * FIXTURE_FRAMES + 1), two);
	assert_ptr_equal(pool_of_frame(&f->core, 4 * FIXTURE_FRAMES), two);
	assert_null(pool_of_frame(&f->core, 4 * FIXTURE_FRAMES + 1));
	assert_int_equal(one->pages[0].physicalAddress, pool_paddr(1));
	assert_int_equal(one->pages[0].process, -1);
	/* A new engine finds the same frames, whatever size it was told. */
	f->core.pool[0] = pool_free(one);
	assert_int_equal(pool_new(&f->core, 0, 7, &again), 0);
	f->core.pool[0] = again;
	assert_int_equal(again->first, 1);
	assert_int_equal(again->nr, FIXTURE_FRAMES);
	/* More frames than the arena has. */
	assert_int_equal(pool_new(&f->core, 2, f->arena->h->nr_frames / 2, &again), -ENOSPC);
	assert_int_equal(f->arena->h->pool[2].in_use, 0);
}

static void test_take(void **state)
{
	struct core_fixture *f = *state;
	struct pool *pool = fixture_pool(f, 0);
	uint32_t msec = (uint32_t)(now_nsec() / 1000000);
	struct arena_frame *frame = pool_frame(&f->core, 5);

	assert_true(pool_take(pool, 5, 3, 0x123456789));
	assert_true(atomic_load(&frame->owner) == ARENA_OWNER(3, 0x123456789ull));
	assert_int_equal(ARENA_OWNER_PROCESS(atomic_load(&frame->owner)), 3);
	assert_true(ARENA_OWNER_VPN(atomic_load(&frame->owner)) == 0x123456789);
	assert_in_range(frame->born_msec - msec, 0, 60000);
	assert_int_equal(atomic_load(&pool->nr_used), 1);
	assert_int_equal(atomic_load(&f->core.nr_used), 1);
	assert_int_equal(core_free_frames(&f->core), FIXTURE_FRAMES - 1);
	/* It is taken: by nobody else, and nothing of it changes. */
	assert_false(pool_take(pool, 5, 4, 1));
	assert_true(atomic_load(&frame->owner) == ARENA_OWNER(3, 0x123456789ull));
	assert_int_equal(atomic_load(&pool->nr_used), 1);
	/* Even the owner of page 0 of process 0 is not "free". */
	assert_true(pool_take(pool, 6, 0, 0));
	assert_false(pool_take(pool, 6, 0, 0));
}

static void test_release(void **state)
{
	struct core_fixture *f = *state;
	struct pool *pool = counted_pool(f);
	uint32_t slot = new_slot(f);

	assert_true(pool_take(pool, 9, 2, 77));
	pool->pages[8].virtualAddress = 77 << 12;
	pool->pages[8].process = 2;
	atomic_store(&pool_frame(&f->core, 9)->clean_slot, slot);
	pool_release(&f->core, 9);
	assert_int_equal(atomic_load(&pool_frame(&f->core, 9)->owner), 0);
	assert_int_equal(atomic_load(&pool_frame(&f->core, 9)->clean_slot), 0);
	assert_int_equal(usm_swap_refs(f->core.swap, slot), 0);
	assert_int_equal(atomic_load(&pool->nr_used), 0);
	assert_int_equal(atomic_load(&f->core.nr_used), 0);
	/* The policy hears of it only when it is called, and sees a page of nobody. */
	assert_int_equal(told_in_all(), 0);
	policy.vaddr_seen = 1;
	pool_flush(pool);
	assert_int_equal(policy.told[8], 1);
	assert_int_equal(told_in_all(), 1);
	assert_int_equal(policy.vaddr_seen, 0);
	assert_int_equal(policy.process_seen, -1);
	pool_flush(pool);
	assert_int_equal(told_in_all(), 1);
}

static void test_announcements(void **state)
{
	struct core_fixture *f = *state;
	struct pool *pool = counted_pool(f);

	/* Announced twice before it is told: told once. */
	assert_true(pool_take(pool, 3, 1, 1));
	pool_release(&f->core, 3);
	pool_announce_free(pool, 3);
	pool_announce_free(pool, 3);
	/* Taken and released again meanwhile: still once. */
	assert_true(pool_take(pool, 3, 1, 2));
	pool_release(&f->core, 3);
	pool_flush(pool);
	assert_int_equal(policy.told[2], 1);
	/* After that it can be told again. */
	pool_announce_free(pool, 3);
	pool_flush(pool);
	assert_int_equal(policy.told[2], 2);
	/* Many at once: each of them. */
	memset(policy.told, 0, sizeof(policy.told));
	for (uint32_t i = 0; i < FIXTURE_FRAMES; i++)
		assert_true(pool_take(pool, pool->first + i, 1, i));
	for (uint32_t i = 0; i < FIXTURE_FRAMES; i += 2)
		pool_release(&f->core, pool->first + i);
	for (uint32_t i = 1; i < FIXTURE_FRAMES; i += 2)
		pool_release(&f->core, pool->first + i);
	pool_flush(pool);
	for (uint32_t i = 0; i < FIXTURE_FRAMES; i++)
		assert_int_equal(policy.told[i], 1);
}

static void test_take_any(void **state)
{
	struct core_fixture *f = *state;
	struct pool *pool = fixture_pool(f, 0);
	uint32_t frame = 4711;

	assert_true(pool_take(pool, 2, 1, 0));
	assert_true(pool_take_any(pool, 1, 1, &frame));
	assert_int_equal(frame, 1);
	assert_true(pool_take_any(pool, 1, 2, &frame));
	assert_int_equal(frame, 3); /* 2 is taken */
	for (unsigned i = 3; i < FIXTURE_FRAMES; i++)
		assert_true(pool_take_any(pool, 1, i, &frame));
	assert_int_equal(frame, FIXTURE_FRAMES);
	frame = 4711;
	assert_false(pool_take_any(pool, 1, 99, &frame));
	assert_int_equal(frame, 4711);
	/* Not one of those that can be lent was touched. */
	for (uint32_t i = FIXTURE_FRAMES; i < 2 * FIXTURE_FRAMES; i++)
		assert_int_equal(atomic_load(&pool_frame(&f->core, pool->first + i)->owner), 0);
	pool_release(&f->core, 17);
	assert_true(pool_take_any(pool, 1, 99, &frame));
	assert_int_equal(frame, 17);
}

static void test_lent(void **state)
{
	struct core_fixture *f = *state;
	struct pool *pool = counted_pool(f);
	uint32_t frame = 4711, first;

	assert_true(pool_take_lent(pool, 1, 5, &first));
	assert_int_equal(first, pool->first + FIXTURE_FRAMES);
	assert_true(pool_is_lent(pool, first));
	assert_false(pool_is_lent(pool, first - 1));
	assert_false(pool_is_lent(pool, pool->first));
	assert_int_equal(atomic_load(&pool->nr_lent), 1);
	assert_int_equal(atomic_load(&f->core.nr_used), 1);
	for (unsigned i = 1; i < FIXTURE_FRAMES; i++)
		assert_true(pool_take_lent(pool, 1, 5 + i, &frame));
	assert_true(pool_is_lent(pool, frame));
	frame = 4711;
	assert_false(pool_take_lent(pool, 1, 99, &frame));
	assert_int_equal(frame, 4711);
	assert_int_equal(atomic_load(&pool->nr_lent), FIXTURE_FRAMES);
	/* The policy does not know them. */
	pool_release(&f->core, first);
	pool_flush(pool);
	assert_int_equal(told_in_all(), 0);
	assert_int_equal(atomic_load(&pool->nr_lent), FIXTURE_FRAMES - 1);
	assert_int_equal(core_free_frames(&f->core), 1);
}

static void test_moved(void **state)
{
	struct core_fixture *f = *state;
	struct pool *pool = fixture_pool(f, 0);
	uint32_t lent;

	assert_true(pool_take(pool, 4, 2, 10));
	pool->pages[3].virtualAddress = 10 << 12;
	pool_moved(&f->core, 4, 2, 1000);
	assert_true(atomic_load(&pool_frame(&f->core, 4)->owner) == ARENA_OWNER(2, 1000));
	assert_int_equal(pool->pages[3].virtualAddress, 1000 << 12);
	assert_true(pool_take_lent(pool, 2, 11, &lent));
	pool_moved(&f->core, lent, 2, 1001);
	assert_true(atomic_load(&pool_frame(&f->core, lent)->owner) == ARENA_OWNER(2, 1001));
}

static void test_hand(void **state)
{
	struct core_fixture *f = *state;
	struct pool *pool = fixture_pool(f, 0);
	uint32_t hand = 0, frames[8], lent;

	assert_int_equal(pool_hand(pool, -1, &hand, frames, 8), 0);
	for (uint32_t i = 10; i < 16; i++)
		assert_true(pool_take(pool, i, i % 2, i));
	hand = 0;
	assert_int_equal(pool_hand(pool, -1, &hand, frames, 4), 4);
	assert_int_equal(frames[0], 10);
	assert_int_equal(frames[3], 13);
	/* It goes on where it was, and round, and never twice in one call. */
	assert_int_equal(pool_hand(pool, -1, &hand, frames, 8), 6);
	assert_int_equal(frames[0], 14);
	assert_int_equal(frames[1], 15);
	assert_int_equal(frames[2], 10);
	assert_int_equal(frames[5], 13);
	/* Of one process. */
	hand = 0;
	assert_int_equal(pool_hand(pool, 1, &hand, frames, 8), 3);
	assert_int_equal(frames[0], 11);
	assert_int_equal(frames[2], 15);
	assert_int_equal(pool_hand(pool, 7, &hand, frames, 8), 0);
	/* What is over the pool comes first. */
	assert_true(pool_take_lent(pool, 0, 99, &lent));
	hand = 0;
	assert_true(pool_hand(pool, -1, &hand, frames, 2) == 2);
	assert_int_equal(frames[0], lent);
	assert_int_equal(frames[1], 10);
}

#define RACE_ROUNDS 20000u

static struct {
	struct core_fixture *f;
	struct pool *pool;
	_Atomic unsigned nr_released;
	_Atomic bool done;
} race;

static void *race_use(void *arg)
{
	uint32_t process = (uint32_t)(uintptr_t)arg, frame;

	for (unsigned i = 0; i < RACE_ROUNDS; i++) {
		if (!pool_take_any(race.pool, process, i, &frame))
			continue;
		if (atomic_load(&pool_frame(&race.f->core, frame)->owner) != ARENA_OWNER(process, i))
			abort(); /* somebody else has it too */
		pool_release(&race.f->core, frame);
		atomic_fetch_add(&race.nr_released, 1);
	}
	return NULL;
}

static void *race_flush(void *arg)
{
	(void)arg;
	while (!atomic_load(&race.done))
		pool_flush(race.pool);
	return NULL;
}

/* Frames are taken, released and told by several threads: none is lost, none told too often. */
static void test_race(void **state)
{
	struct core_fixture *f = *state;
	pthread_t user[3], flusher[2];
	unsigned told;

	race.f = f;
	race.pool = counted_pool(f);
	race.done = false;
	race.nr_released = 0;
	for (uintptr_t i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&user[i], NULL, race_use, (void *)i), 0);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&flusher[i], NULL, race_flush, NULL), 0);
	for (unsigned i = 0; i < 3; i++)
		pthread_join(user[i], NULL);
	atomic_store(&race.done, true);
	for (unsigned i = 0; i < 2; i++)
		pthread_join(flusher[i], NULL);
	pool_flush(race.pool);
	told = told_in_all();
	assert_in_range(told, 1, race.nr_released);
	assert_int_equal(atomic_load(&race.pool->freed), 0);
	for (unsigned i = 0; i < FIXTURE_FRAMES; i++)
		assert_int_equal(atomic_load(&race.pool->announced[i]), 0);
	assert_int_equal(atomic_load(&race.pool->nr_used), 0);
	assert_int_equal(atomic_load(&f->core.nr_used), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, core_fixture_setup, core_fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_new),
		TEST(test_take),
		TEST(test_release),
		TEST(test_announcements),
		TEST(test_take_any),
		TEST(test_lent),
		TEST(test_moved),
		TEST(test_hand),
		TEST(test_race),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* links: usmd/swap*.c usmd/lib/log.c */
#include "swap-fixture.h"

#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#include "lib/cleanup.h"
#include "swap-slots.h"

/* ---- free slots of one device ---- */

static void test_slots_runs(void **state)
{
	struct usm_swap_slots *s;
	uint32_t slots[512];

	(void)state;
	assert_int_equal(usm_swap_slots_new(0, &s), -EINVAL);
	assert_int_equal(usm_swap_slots_new(200, &s), 0);
	assert_int_equal(usm_swap_slots_alloc(s, 10, slots, 100), 100);
	for (unsigned i = 0; i < 100; i++)
		assert_int_equal(slots[i], 10 + i);
	/* Next fit: goes on where it was, not at what was just released. */
	usm_swap_slots_release(s, 0);
	assert_int_equal(usm_swap_slots_alloc(s, 10, slots, 1), 1);
	assert_int_equal(slots[0], 110);
	/* 99 at the end and one at the start: the longest run first. */
	assert_int_equal(usm_swap_slots_alloc(s, 10, slots, 300), 100);
	assert_int_equal(slots[0], 111);
	assert_int_equal(slots[98], 209);
	assert_int_equal(slots[99], 10);
	assert_int_equal(usm_swap_slots_used(s), 200);
	assert_int_equal(usm_swap_slots_alloc(s, 10, slots, 1), 0);
	usm_swap_slots_free(s);
}

static void test_slots_longest_then_singles(void **state)
{
	struct usm_swap_slots *s;
	static uint32_t slots[8192];

	(void)state;
	assert_int_equal(usm_swap_slots_new(8192, &s), 0);
	assert_int_equal(usm_swap_slots_alloc(s, 0, slots, 8192), 8192);
	/* Holes of 1 everywhere, of 5 at 1000, of 7 at 130 (over a word's end at 128..). */
	for (unsigned i = 2000; i < 8000; i += 2)
		usm_swap_slots_release(s, i);
	for (unsigned i = 0; i < 5; i++)
		usm_swap_slots_release(s, 1000 + i);
	for (unsigned i = 0; i < 7; i++)
		usm_swap_slots_release(s, 125 + i);
	assert_int_equal(usm_swap_slots_alloc(s, 0, slots, 7), 7);
	for (unsigned i = 0; i < 7; i++)
		assert_int_equal(slots[i], 125 + i);
	assert_int_equal(usm_swap_slots_alloc(s, 0, slots, 9), 9);
	for (unsigned i = 0; i < 5; i++)
		assert_int_equal(slots[i], 1000 + i);
	/* All singles that are left, each once. */
	assert_int_equal(usm_swap_slots_alloc(s, 0, slots, 5000), 3000 - 4);
	for (unsigned i = 0; i < 3000 - 4; i++)
		for (unsigned k = i + 1; k < i + 3 && k < 3000 - 4; k++)
			assert_int_not_equal(slots[i], slots[k]);
	assert_int_equal(usm_swap_slots_used(s), 8192);
	usm_swap_slots_free(s);
}

/* Against a plain array, at sizes around the words' and the summary's ends. */
static void test_slots_model(void **state)
{
	static const uint32_t sizes[] = { 1, 63, 64, 65, 4095, 4096, 4097, 8193 };
	unsigned seed = 1;

	(void)state;
	for (size_t k = 0; k < ARRAY_SIZE(sizes); k++) {
		_cleanup_free_ uint8_t *used = calloc(sizes[k], 1);
		uint32_t nr = 0, slots[300];
		struct usm_swap_slots *s;

		assert_int_equal(usm_swap_slots_new(sizes[k], &s), 0);
		for (unsigned round = 0; round < 4000; round++) {
			unsigned n = 1 + (unsigned)rand_r(&seed) % 300, got;

			if (rand_r(&seed) % 3) {
				got = usm_swap_slots_alloc(s, 5, slots, n);
				assert_int_equal(got, MIN(n, sizes[k] - nr));
				for (unsigned i = 0; i < got; i++) {
					assert_in_range(slots[i], 5, 5 + sizes[k] - 1);
					assert_int_equal(used[slots[i] - 5]++, 0);
				}
				nr += got;
			} else {
				uint32_t from = (uint32_t)rand_r(&seed) % sizes[k];

				for (uint32_t i = from; i < sizes[k] && i < from + n; i++) {
					if (!used[i])
						continue;
					assert_int_equal(usm_swap_slots_take(s, i), -EBUSY);
					usm_swap_slots_release(s, i);
					used[i] = 0;
					nr--;
				}
			}
			assert_int_equal(usm_swap_slots_used(s), nr);
		}
		usm_swap_slots_free(s);
	}
}

/* ---- entries ---- */

static void test_references(void **state)
{
	struct fixture *f = *state;
	uint64_t total, used, errors;
	uint32_t slots[3];

	assert_int_equal(usm_swap_alloc(f->swap, slots, 3), 0);
	assert_int_equal(fixture_add(f, "a", MIB, 0), 0);
	assert_int_equal(usm_swap_alloc(f->swap, slots, 3), 3);
	assert_int_equal(slots[0], 1);
	assert_int_equal(slots[2], 3);
	usm_swap_ref(f->swap, 2);
	assert_int_equal(usm_swap_refs(f->swap, 2), 2);
	usm_swap_unref(f->swap, 2);
	usm_swap_unref(f->swap, 2);
	assert_int_equal(usm_swap_refs(f->swap, 2), 0);
	usm_swap_totals(f->swap, &total, &used, &errors);
	assert_int_equal(total, usm_swap_file_slots(MIB));
	assert_int_equal(used, 2);
	assert_int_equal(errors, 0);

	/* Released twice, never allocated, of no device: counted, nothing else. */
	usm_swap_unref(f->swap, 2);
	usm_swap_unref(f->swap, 100);
	usm_swap_unref(f->swap, 60000);
	usm_swap_unref(f->swap, USM_SLOT_NONE);
	assert_int_equal(usm_swap_refs(f->swap, 60000), 0);
	usm_swap_totals(f->swap, &total, &used, &errors);
	assert_int_equal(used, 2);
	assert_int_equal(errors, 4);
	assert_int_equal(usm_swap_ref_recovered(f->swap, 60000), -EINVAL);
	assert_int_equal(usm_swap_ref_recovered(f->swap, USM_SLOT_NONE), -EINVAL);
}

static void test_write_read(void **state)
{
	struct fixture *f = *state;
	_cleanup_free_ uint8_t *w = NULL, *r = NULL;
	struct usm_swap_io io[200];
	uint32_t slots[200];

	assert_int_equal(fixture_add(f, "a", 4 * MIB, 0), 0);
	assert_int_equal(usm_swap_alloc(f->swap, slots, 200), 200);
	w = pages_new(200);
	r = pages_new(200);
	/* Every run length: slots in order, buffers in order but for a shuffled middle. */
	for (unsigned i = 0; i < 200; i++) {
		unsigned at = i >= 50 && i < 150 ? 50 + (i - 50) * 37 % 100 : i;

		io[i] = (struct usm_swap_io){ slots[i], w + at * USM_SWAP_PAGE, 1 };
		page_fill(io[i].buf, slots[i]);
	}
	assert_int_equal(usm_swap_write(f->swap, io, 200), 0);
	assert_true(usm_swap_slot_matches(f->swap, slots[7], io[7].buf));
	assert_false(usm_swap_slot_matches(f->swap, slots[7], io[8].buf));
	assert_false(usm_swap_slot_matches(f->swap, 60000, io[8].buf));
	for (unsigned i = 0; i < 200; i++) {
		assert_int_equal(io[i].result, 0);
		io[i] = (struct usm_swap_io){ slots[i * 3 % 200], r + i * USM_SWAP_PAGE, 1 };
	}
	assert_int_equal(usm_swap_read(f->swap, io, 200), 0);
	for (unsigned i = 0; i < 200; i++)
		assert_true(page_is(io[i].buf, slots[i * 3 % 200]));
	/* One page: a plain read. */
	memset(r, 0, USM_SWAP_PAGE);
	io[0] = (struct usm_swap_io){ slots[99], r, 1 };
	assert_int_equal(usm_swap_read(f->swap, io, 1), 0);
	assert_true(page_is(r, slots[99]));
	assert_int_equal(usm_swap_read(f->swap, io, 0), 0);
}

static void test_misuse_is_refused(void **state)
{
	struct fixture *f = *state;
	_cleanup_free_ uint8_t *p = pages_new(3);
	struct usm_swap_io io[4];
	uint32_t slots[2];

	assert_int_equal(fixture_add(f, "a", MIB, 0), 0);
	assert_int_equal(usm_swap_alloc(f->swap, slots, 2), 2);
	page_fill(p, 1);
	page_fill(p + USM_SWAP_PAGE, 2);
	io[0] = (struct usm_swap_io){ slots[0], p, 1 };
	io[1] = (struct usm_swap_io){ 60000, p, 1 };                   /* no device */
	io[2] = (struct usm_swap_io){ slots[1], p + USM_SWAP_PAGE, 1 };
	io[3] = (struct usm_swap_io){ slots[1] + 1, p, 1 };            /* no reference */
	assert_int_equal(usm_swap_write(f->swap, io, 4), -EINVAL);
	assert_int_equal(io[0].result, 0);
	assert_int_equal(io[1].result, -EINVAL);
	assert_int_equal(io[2].result, 0);
	assert_int_equal(io[3].result, -EINVAL);
	io[0].buf = p + 8;
	assert_int_equal(usm_swap_write(f->swap, io, 1), -EINVAL);
	io[0].buf = p + 2 * USM_SWAP_PAGE;
	assert_int_equal(usm_swap_read(f->swap, io, 1), 0);
	assert_true(page_is(io[0].buf, 1));
}

/* ---- devices ---- */

static void test_add_is_checked(void **state)
{
	struct fixture *f = *state;
	char longer[400], *message = NULL;

	assert_int_equal(usm_swap_add_file(f->swap, "relative", MIB, 0, false, NULL), -EINVAL);
	assert_int_equal(usm_swap_add_file(f->swap, "", MIB, 0, false, NULL), -EINVAL);
	assert_int_equal(usm_swap_add_file(f->swap, "/dir/", MIB, 0, false, NULL), -EINVAL);
	assert_int_equal(usm_swap_add_file(f->swap, "/a\nb", MIB, 0, false, NULL), -EINVAL);
	memset(longer, 'x', sizeof(longer));
	longer[0] = '/';
	longer[sizeof(longer) - 1] = 0;
	assert_int_equal(usm_swap_add_file(f->swap, longer, MIB, 0, false, NULL), -EINVAL);
	assert_int_equal(fixture_add(f, "a", MIB - 1, 0), -EINVAL);
	/* 65535 numbers are 256 MiB. */
	assert_int_equal(usm_swap_add_file(f->swap, fixture_path(f, "a"), 300 * MIB, 0, false,
					   &message), -E2BIG);
	assert_non_null(message);
	free(message);
	assert_int_not_equal(access(fixture_path(f, "a"), F_OK), 0);
	f->reserve_result = -ENOSPC;
	assert_int_equal(fixture_add(f, "a", MIB, 0), -ENOSPC);
	assert_int_not_equal(access(fixture_path(f, "a"), F_OK), 0);
	f->reserve_result = 0;
	assert_int_equal(fixture_add(f, "no/such/dir", MIB, 0), -ENOENT);
	assert_int_equal(fixture_add(f, "a", MIB, 0), 0);
	assert_int_equal(f->reserved_first, 1);
	assert_int_equal(f->reserved_n, usm_swap_file_slots(MIB));
	assert_int_equal(fixture_add(f, "a", MIB, 0), -EEXIST);
	for (unsigned i = 1; i < USM_SWAP_DEVICES; i++) {
		char name[8];

		snprintf(name, sizeof(name), "b%u", i);
		assert_int_equal(fixture_add(f, name, MIB, 0), 0);
	}
	assert_int_equal(fixture_add(f, "c", MIB, 0), -E2BIG);
}

static void test_priorities_and_drain(void **state)
{
	struct fixture *f = *state;
	const uint32_t per = (uint32_t)usm_swap_file_slots(MIB);
	_cleanup_free_ uint8_t *p = pages_new(2);
	uint64_t total, used, errors;
	struct usm_swap_info info[4];
	struct usm_swap_io io[2];
	uint32_t slots[1000];

	assert_int_equal(fixture_add(f, "low", MIB, 1), 0);
	assert_int_equal(fixture_add(f, "high", MIB, 5), 0);
	/* "high" owns (per, 2 per] and is used first, then "low". */
	assert_int_equal(usm_swap_alloc(f->swap, slots, per + 1), per + 1);
	assert_int_equal(slots[0], per + 1);
	assert_int_equal(slots[per], 1);

	/* One batch over both devices. */
	page_fill(p, 11);
	page_fill(p + USM_SWAP_PAGE, 12);
	io[0] = (struct usm_swap_io){ slots[0], p, 1 };
	io[1] = (struct usm_swap_io){ slots[per], p + USM_SWAP_PAGE, 1 };
	assert_int_equal(usm_swap_write(f->swap, io, 2), 0);
	assert_int_equal(usm_swap_read(f->swap, io, 2), 0);
	assert_true(page_is(p, 11) && page_is(p + USM_SWAP_PAGE, 12));

	assert_int_equal(usm_swap_remove_begin(f->swap, fixture_path(f, "none")), -ENOENT);
	assert_int_equal(usm_swap_remove_finish(f->swap, fixture_path(f, "none"), true), -ENOENT);
	assert_int_equal(usm_swap_remove_finish(f->swap, fixture_path(f, "high"), true), -EBUSY);
	assert_int_equal(usm_swap_remove_begin(f->swap, fixture_path(f, "high")), 0);
	assert_int_equal(usm_swap_remove_begin(f->swap, fixture_path(f, "high")), 0);
	assert_true(usm_swap_slot_draining(f->swap, slots[0]));
	assert_false(usm_swap_slot_draining(f->swap, 1));
	usm_swap_unref(f->swap, slots[0]);
	/* What became free there is neither given out nor counted. */
	assert_int_equal(usm_swap_alloc(f->swap, &slots[0], 1), 1);
	assert_int_equal(slots[0], 2);
	usm_swap_totals(f->swap, &total, &used, &errors);
	assert_int_equal(total, per + per - 1);
	assert_int_equal(used, per - 1 + 2);
	assert_int_equal(usm_swap_list(f->swap, info, 4), 2);
	assert_true(info[1].draining && !info[0].draining);
	assert_int_equal(info[1].nr_writes, 1);
	assert_int_equal(usm_swap_list(f->swap, info, 1), 1);

	assert_int_equal(usm_swap_remove_finish(f->swap, fixture_path(f, "high"), true), -EBUSY);
	for (unsigned i = 1; i < per; i++)
		usm_swap_unref(f->swap, slots[i]);
	assert_int_equal(access(fixture_path(f, "high"), F_OK), 0);
	assert_int_equal(usm_swap_remove_finish(f->swap, fixture_path(f, "high"), true), 0);
	assert_int_not_equal(access(fixture_path(f, "high"), F_OK), 0);
	assert_int_equal(f->shared.device[1].in_use, 0);
	assert_int_equal(usm_swap_ref_recovered(f->swap, per + 1), -EINVAL);
	/* Its numbers can be had again. */
	assert_int_equal(fixture_add(f, "again", MIB, 9), 0);
	assert_int_equal(usm_swap_alloc(f->swap, slots, 1), 1);
	assert_int_equal(slots[0], per + 1);
}

/* ---- an engine's death ---- */

static void test_recovery(void **state)
{
	struct fixture *f = *state;
	_cleanup_free_ uint8_t *p = pages_new(100);
	struct usm_swap_info info[2];
	struct usm_swap_io io[100];
	uint32_t slots[100], again[1000];
	unsigned n;
	bool direct;

	assert_int_equal(fixture_add(f, "a", MIB, 0), 0);
	assert_int_equal(fixture_add(f, "b", MIB, -3), 0);
	assert_int_equal(usm_swap_list(f->swap, info, 2), 2);
	direct = info[0].direct;
	assert_int_equal(usm_swap_alloc(f->swap, slots, 100), 100);
	for (unsigned i = 0; i < 100; i++) {
		io[i] = (struct usm_swap_io){ slots[i], p + i * USM_SWAP_PAGE, 1 };
		page_fill(io[i].buf, i);
	}
	assert_int_equal(usm_swap_write(f->swap, io, 100), 0);
	assert_int_equal(usm_swap_remove_begin(f->swap, fixture_path(f, "b")), 0);
	f->swap = usm_swap_free(f->swap);

	assert_int_equal(fixture_open(f), 0);
	assert_int_equal(usm_swap_list(f->swap, info, 2), 2);
	assert_int_equal(info[0].direct, direct);
	assert_true(!info[0].draining && info[1].draining);
	assert_int_equal(info[1].priority, -3);
	/* Without a reference nothing is read. */
	assert_int_equal(usm_swap_read(f->swap, io, 1), -EINVAL);
	for (unsigned i = 0; i < 100; i++)
		assert_int_equal(usm_swap_ref_recovered(f->swap, slots[i]), 0);
	assert_int_equal(usm_swap_ref_recovered(f->swap, slots[5]), 0);
	assert_int_equal(usm_swap_refs(f->swap, slots[5]), 2);
	memset(p, 0, 100 * USM_SWAP_PAGE);
	assert_int_equal(usm_swap_read(f->swap, io, 100), 0);
	for (unsigned i = 0; i < 100; i++)
		assert_true(page_is(io[i].buf, i));
	/* No recovered slot is given out again. */
	n = usm_swap_alloc(f->swap, again, 1000);
	assert_int_equal(n, usm_swap_file_slots(MIB) - 100);
	for (unsigned i = 0; i < n; i++)
		assert_true(again[i] > slots[99]);
}

static void test_recovery_of_damage(void **state)
{
	struct fixture *f = *state;
	int pipe_fds[2], fd;

	assert_int_equal(fixture_add(f, "a", MIB, 0), 0);
	assert_int_equal(fixture_add(f, "b", MIB, 0), 0);
	assert_int_equal(fixture_add(f, "c", MIB, 0), 0);
	assert_int_equal(fixture_add(f, "d", MIB, 0), 0);
	f->swap = usm_swap_free(f->swap);
	assert_int_equal(pipe(pipe_fds), 0);
	fd = f->shared.device[0].fd;
	f->shared.device[0].fd = pipe_fds[0];        /* another object */
	f->shared.device[1].nr_slots = FIXTURE_HASHES; /* beyond the table */
	close(f->shared.device[1].fd);
	close(f->shared.device[2].fd);               /* nothing */
	assert_int_equal(fixture_open(f), 0);
	assert_int_equal(f->shared.device[0].in_use, 0);
	assert_int_equal(f->shared.device[1].in_use, 0);
	assert_int_equal(f->shared.device[2].in_use, 0);
	assert_int_equal(f->shared.device[3].in_use, 1);
	assert_int_equal(usm_swap_ref_recovered(f->swap, 1), -EINVAL);
	assert_int_equal(usm_swap_ref_recovered(f->swap, f->shared.device[3].base), 0);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
	close(fd);
}

/* ---- several threads ---- */

#define THREADS 4
#define HELD 96

struct worker {
	struct fixture *f;
	pthread_t thread;
	unsigned seed;
	unsigned nr_bad;
};

/* Holds up to HELD slots with known contents; allocates, writes, reads, refs and
 * releases at random. */
static void *worker_main(void *arg)
{
	struct worker *w = arg;
	uint32_t slot[HELD] = { 0 };
	uint64_t seed[HELD];
	struct usm_swap_io io[16];
	uint32_t fresh[16];
	uint8_t *p = pages_new(16);

	for (unsigned round = 0; round < 400; round++) {
		unsigned n = 0, got, first = (unsigned)rand_r(&w->seed) % HELD, k;

		/* Read and check some, release half of those. */
		for (k = first; k < HELD && n < 16; k++)
			if (slot[k]) {
				io[n] = (struct usm_swap_io){ slot[k], p + n * USM_SWAP_PAGE, 1 };
				n++;
			}
		if (usm_swap_read(w->f->swap, io, n) < 0)
			w->nr_bad++;
		n = 0;
		for (k = first; k < HELD && n < 16; k++) {
			if (!slot[k])
				continue;
			if (!page_is(p + n++ * USM_SWAP_PAGE, seed[k]))
				w->nr_bad++;
			if (rand_r(&w->seed) % 2) {
				usm_swap_ref(w->f->swap, slot[k]);
				usm_swap_unref(w->f->swap, slot[k]);
				usm_swap_unref(w->f->swap, slot[k]);
				slot[k] = 0;
			}
		}
		/* Fill the gaps. */
		got = usm_swap_alloc(w->f->swap, fresh, 1 + (unsigned)rand_r(&w->seed) % 16);
		n = 0;
		for (k = 0; k < HELD && n < got; k++) {
			if (slot[k])
				continue;
			slot[k] = fresh[n];
			seed[k] = ((uint64_t)w->seed << 32) + round * 100 + n;
			io[n] = (struct usm_swap_io){ fresh[n], p + n * USM_SWAP_PAGE, 1 };
			page_fill(io[n].buf, seed[k]);
			n++;
		}
		if (usm_swap_write(w->f->swap, io, n) < 0)
			w->nr_bad++;
		for (; n < got; n++)
			usm_swap_unref(w->f->swap, fresh[n]);
	}
	for (unsigned k = 0; k < HELD; k++)
		if (slot[k])
			usm_swap_unref(w->f->swap, slot[k]);
	free(p);
	return NULL;
}

static void run_workers(struct fixture *f)
{
	struct worker w[THREADS];
	uint64_t total, used, errors;

	/* About as many slots as are wanted, so that it is often full. */
	assert_int_equal(fixture_add(f, "a", MIB, 0), 0);
	assert_int_equal(fixture_add(f, "b", MIB, 0), 0);
	for (unsigned i = 0; i < THREADS; i++) {
		w[i] = (struct worker){ .f = f, .seed = i + 1 };
		assert_int_equal(pthread_create(&w[i].thread, NULL, worker_main, &w[i]), 0);
	}
	for (unsigned i = 0; i < THREADS; i++) {
		pthread_join(w[i].thread, NULL);
		assert_int_equal(w[i].nr_bad, 0);
	}
	usm_swap_totals(f->swap, &total, &used, &errors);
	assert_int_equal(used, 0);
	assert_int_equal(errors, 0);
}

static void test_threads(void **state)
{
	run_workers(*state);
}

static void test_threads_without_rings(void **state)
{
	struct fixture *f = *state;

	usm_swap_free(f->swap);
	f->no_uring = true;
	assert_int_equal(fixture_open(f), 0);
	run_workers(f);
	assert_int_equal(usm_swap_test.nr_ring_requests, 0);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, fixture_setup, fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_slots_runs),
		cmocka_unit_test(test_slots_longest_then_singles),
		cmocka_unit_test(test_slots_model),
		TEST(test_references),
		TEST(test_write_read),
		TEST(test_misuse_is_refused),
		TEST(test_add_is_checked),
		TEST(test_priorities_and_drain),
		TEST(test_recovery),
		TEST(test_recovery_of_damage),
		TEST(test_threads),
		TEST(test_threads_without_rings),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

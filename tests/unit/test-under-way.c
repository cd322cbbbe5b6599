/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What happens to a page while it is under way: it is unmapped, discarded, needed, dropped or
 * written between two steps of ours.  The program sees what it must: what it wrote last, or zeros.
 */
#include "program-fixture.h"

#include <errno.h>

#include "pagemap.h"
#include "swap-io.h"

#define TOLD	    4u /* the page that something happens to; its neighbours are as they were */
#define PAGEMAP_WP (1ull << 57)

static uint64_t vpn_of(const struct program *g, unsigned i)
{
	return VPN((uintptr_t)page_of(g, i));
}

static void tell(struct program *g, uint8_t event, unsigned first, unsigned n)
{
	apply(g->p, (struct uffd_msg){
			    .event = event,
			    .arg.remove = {.start = (uintptr_t)page_of(g, first),
					   .end = (uintptr_t)page_of(g, first + n)},
		    });
}

/* --- on its way out -------------------------------------------------------------------------- */

static void unmapped(struct program *g)
{
	tell(g, UFFD_EVENT_UNMAP, TOLD, 1);
	g->zeroed |= 1u << TOLD;
}

static void discarded(struct program *g)
{
	tell(g, UFFD_EVENT_REMOVE, TOLD, 1);
	g->zeroed |= 1u << TOLD;
}

/* MADV_FREE by the agent is announced like the program's own calls. */
static void freed_by_agent(struct program *g)
{
	tell(g, UFFD_EVENT_REMOVE, 0, PAGES);
}

static void leaves_while(struct core_fixture *f, unsigned modes, void (*taken)(struct program *g))
{
	struct program g = {.taken = taken};

	atomic_store(&f->core.evict_modes, modes);
	program_start(f, &g, 1, true);
	evict_all(&g);
	for (unsigned i = 0; i < PAGES; i++)
		assert_int_equal(PAGE_STATE(entry_of(g.p, vpn_of(&g, i))),
				 g.zeroed >> i & 1 ? PAGE_NONE : PAGE_SWAPPED);
	/* Its agent knows from now on that without usmd the program cannot go on. */
	assert_int_equal(atomic_load(&g.p->ops->nr_swapped), 1);
	/* Nobody else's slot went with it, and it has none itself. */
	assert_int_equal(slots_used(f), PAGES - (unsigned)__builtin_popcount(g.zeroed));
	read_all(&g);
	assert_false(atomic_load(&g.p->killed));
	program_stop(&g);
	assert_nothing_left(f);
	atomic_store(&f->core.evict_modes, USM_EVICT_MOVE);
}

static void test_unmapped_on_its_way_out(void **state)
{
	leaves_while(*state, USM_EVICT_MOVE, unmapped);
	leaves_while(*state, USM_EVICT_LAZYFREE, unmapped);
}

static void test_discarded_on_its_way_out(void **state)
{
	leaves_while(*state, USM_EVICT_MOVE, discarded);
}

static void test_freed_on_its_way_out(void **state)
{
	leaves_while(*state, USM_EVICT_LAZYFREE, freed_by_agent);
}

/* The program reads it meanwhile: its thread is woken when the page has left. */
static void needed(struct program *g)
{
	read_begin(g);
	for (unsigned i = 0; !(entry_of(g->p, vpn_of(g, 0)) & PAGE_WANTED); i++) {
		assert_true(i < PATIENCE_MSEC);
		usleep(1000);
	}
	g->taken = NULL;
}

static void test_needed_on_its_way_out(void **state)
{
	struct core_fixture *f = *state;
	struct program g = {.taken = needed};

	program_start(f, &g, 1, true);
	evict_all(&g);
	read_end(&g);
	program_stop(&g);
	assert_nothing_left(f);
}

/* A dead engine had told the agent to go: what the next one asks of it stays, and nobody waits. */
static void test_agent_has_gone(void **state)
{
	static const unsigned modes[] = {USM_EVICT_MOVE, USM_EVICT_LAZYFREE};
	struct core_fixture *f = *state;

	for (unsigned k = 0; k < ARRAY_SIZE(modes); k++) {
		struct program g = {.gone = true};

		atomic_store(&f->core.evict_modes, modes[k]);
		program_start(f, &g, 1, true);
		assert_int_equal(evict_all(&g), 0);
		assert_int_equal(atomic_load(&g.p->nr_evicting), 0);
		for (unsigned i = 0; i < PAGES; i++)
			assert_int_equal(PAGE_STATE(entry_of(g.p, vpn_of(&g, i))), PAGE_RESIDENT);
		read_all(&g);
		program_stop(&g);
		assert_nothing_left(f);
	}
	atomic_store(&f->core.evict_modes, USM_EVICT_MOVE);
}

/* --- staying ----------------------------------------------------------------------------------- */

/* The kernel writes there when a thread exits, and does not wait for a userfault. */
static void test_pinned_stays(void **state)
{
	struct core_fixture *f = *state;
	struct program g = {0};

	program_start(f, &g, 1, true);
	g.p->shared->tcb = (uintptr_t)page_of(&g, 0) + 64;
	atomic_store(&g.p->ops->pins[0], (uintptr_t)page_of(&g, TOLD));
	atomic_store(&g.p->ops->nr_pins, 1);
	assert_int_equal(evict_all(&g), PAGES - 2);
	for (unsigned i = 0; i < PAGES; i++)
		assert_int_equal(PAGE_STATE(entry_of(g.p, vpn_of(&g, i))),
				 i == 0 || i == TOLD ? PAGE_RESIDENT : PAGE_SWAPPED);
	read_all(&g);
	program_stop(&g);
	assert_nothing_left(f);
}

/* --- announced, and not yet carried out ------------------------------------------------------- */

static void test_announced_stays(void **state)
{
	struct core_fixture *f = *state;
	struct program g = {0};

	program_start(f, &g, 1, true);
	tell(&g, UFFD_EVENT_REMOVE, TOLD, 1);
	evict_all(&g);
	assert_int_equal(PAGE_STATE(entry_of(g.p, vpn_of(&g, TOLD))), PAGE_RESIDENT);
	assert_int_equal(PAGE_STATE(entry_of(g.p, vpn_of(&g, TOLD + 1))), PAGE_SWAPPED);
	/* It was not, or it was written afterwards: long enough it is a page like others. */
	test_tick += PAGE_REMOVE_TICKS;
	evict_all(&g);
	assert_int_equal(PAGE_STATE(entry_of(g.p, vpn_of(&g, TOLD))), PAGE_SWAPPED);
	read_all(&g);
	program_stop(&g);
	assert_nothing_left(f);
}

/* --- left to the kernel ------------------------------------------------------------------------ */

/* Written between the copy and MADV_FREE it would be lost: so it cannot be written. */
static _Atomic unsigned nr_writable;

static void count_writable(struct program *g)
{
	struct usm_agent_ops *ops = g->p->ops;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	for (unsigned i = 0; i < ops->n; i++) {
		uint64_t entry = 0;

		if (pread(fd, &entry, sizeof(entry), (off_t)(VPN(ops->addr[i]) * sizeof(entry))) < 0 ||
		    !(entry & PAGEMAP_PRESENT) || !(entry & PAGEMAP_WP))
			atomic_fetch_add(&nr_writable, 1);
	}
	close(fd);
}

static void test_protected_while_it_is_copied(void **state)
{
	struct core_fixture *f = *state;
	struct program g = {.taking = count_writable};

	nr_writable = 0;
	atomic_store(&f->core.evict_modes, USM_EVICT_LAZYFREE);
	program_start(f, &g, 1, true);
	assert_int_equal(evict_all(&g), PAGES);
	assert_int_equal(nr_writable, 0);
	read_all(&g);
	program_stop(&g);
	assert_nothing_left(f);
	atomic_store(&f->core.evict_modes, USM_EVICT_MOVE);
}

/* The kernel drops what MADV_FREE has marked: a fault finds that, or the next eviction does. */
static void test_dropped_later(void **state)
{
	struct core_fixture *f = *state;

	for (unsigned fault = 0; fault < 2; fault++) {
		struct program g = {.lazy = true, .passive = fault, .dropped = !fault};

		atomic_store(&f->core.evict_modes, USM_EVICT_LAZYFREE);
		program_start(f, &g, 1, true);
		assert_int_equal(evict_all(&g), PAGES);
		for (unsigned i = 0; i < PAGES; i++) {
			assert_true(entry_of(g.p, vpn_of(&g, i)) & PAGE_LAZY);
			if (fault)
				madvise(page_of(&g, i), USM_PAGE_SIZE, MADV_DONTNEED);
		}
		if (!fault)
			evict_all(&g);
		for (unsigned i = 0; i < PAGES && !fault; i++)
			assert_int_equal(PAGE_STATE(entry_of(g.p, vpn_of(&g, i))), PAGE_SWAPPED);
		read_all(&g);
		assert_false(atomic_load(&g.p->killed));
		program_stop(&g);
		assert_nothing_left(f);
	}
	atomic_store(&f->core.evict_modes, USM_EVICT_MOVE);
}

/* --- on its way in ------------------------------------------------------------------------------ */

static struct program *_Atomic comes_in;

static ssize_t unmap_while_read(bool write, uint64_t offset, void *buf, uint64_t len, ssize_t res)
{
	struct program *g = atomic_load(&comes_in);

	(void)offset;
	(void)buf;
	(void)len;
	if (!write && g && PAGE_STATE(entry_of(g->p, vpn_of(g, TOLD))) == PAGE_FILLING) {
		atomic_store(&comes_in, NULL);
		unmapped(g);
	}
	return res;
}

/* Alone, and as one of several that are read together. */
static void test_unmapped_on_its_way_in(void **state)
{
	struct core_fixture *f = *state;

	for (unsigned around = 1; around <= 8; around += 7) {
		struct program g = {0};

		atomic_store(&f->core.faultaround, around);
		program_start(f, &g, 1, true);
		assert_int_equal(evict_all(&g), PAGES);
		atomic_store(&comes_in, &g);
		read_all(&g);
		assert_null(atomic_load(&comes_in));
		assert_false(atomic_load(&g.p->killed));
		program_stop(&g);
		assert_nothing_left(f);
	}
	atomic_store(&f->core.faultaround, 1);
}

/* --- there and back again ------------------------------------------------------------------------ */

static uint64_t nr_writes(struct core_fixture *f)
{
	struct usm_swap_info info;

	assert_int_equal(usm_swap_list(f->core.swap, &info, 1), 1);
	return info.nr_writes;
}

/* A page keeps its slot when it comes back, and leaves again without a write if it is the same. */
static void test_written_since(void **state)
{
	struct core_fixture *f = *state;
	struct program g = {0};
	uint64_t writes;

	program_start(f, &g, 1, true);
	assert_int_equal(evict_all(&g), PAGES);
	read_all(&g);
	writes = nr_writes(f);
	assert_int_equal(evict_all(&g), PAGES);
	assert_int_equal(nr_writes(f), writes);
	read_all(&g);

	g.seed++;
	for (unsigned i = 0; i < PAGES; i++)
		memset(page_of(&g, i), byte_of(&g, i), USM_PAGE_SIZE);
	assert_int_equal(evict_all(&g), PAGES);
	assert_int_equal(nr_writes(f), writes + PAGES);
	read_all(&g);
	program_stop(&g);
	assert_nothing_left(f);
}

/* Pages that begin alike are no pages of zeros, and those of zeros need no slot. */
static void test_zeros(void **state)
{
	struct core_fixture *f = *state;
	struct program g = {0};

	program_start(f, &g, 1, true);
	memset(page_of(&g, 0), 0, USM_PAGE_SIZE);
	memset(page_of(&g, 1), 0, USM_PAGE_SIZE - 1);
	assert_int_equal(evict_all(&g), PAGES);
	assert_int_equal(PAGE_STATE(entry_of(g.p, vpn_of(&g, 0))), PAGE_NONE);
	assert_int_equal(PAGE_STATE(entry_of(g.p, vpn_of(&g, 1))), PAGE_SWAPPED);
	for (unsigned k = 0; k < USM_PAGE_SIZE; k++) {
		assert_int_equal(page_of(&g, 0)[k], 0);
		assert_int_equal(page_of(&g, 1)[k], k == USM_PAGE_SIZE - 1 ? byte_of(&g, 1) : 0);
	}
	wait_for_publication(&g);
	program_stop(&g);
	assert_nothing_left(f);
}

static int interrupted_engine_start(void **state)
{
	usm_swap_test.transfer = unmap_while_read;
	return engine_start(state);
}

static void test_skipped(void **state)
{
	(void)state;
	print_message("no /dev/userfaultfd, skipped\n");
	skip();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_unmapped_on_its_way_out),
		cmocka_unit_test(test_discarded_on_its_way_out),
		cmocka_unit_test(test_freed_on_its_way_out),
		cmocka_unit_test(test_needed_on_its_way_out),
		cmocka_unit_test(test_agent_has_gone),
		cmocka_unit_test(test_pinned_stays),
		cmocka_unit_test(test_announced_stays),
		cmocka_unit_test(test_protected_while_it_is_copied),
		cmocka_unit_test(test_dropped_later),
		cmocka_unit_test(test_unmapped_on_its_way_in),
		cmocka_unit_test(test_written_since),
		cmocka_unit_test(test_zeros),
	};
	const struct CMUnitTest skipped[] = {cmocka_unit_test(test_skipped)};

	if (access("/dev/userfaultfd", R_OK | W_OK) < 0)
		return cmocka_run_group_tests(skipped, NULL, NULL);
	return cmocka_run_group_tests(tests, interrupted_engine_start, engine_stop);
}

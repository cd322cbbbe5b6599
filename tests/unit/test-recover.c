/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A dead engine's arena, written by hand, and what a new engine makes of it: every state
 * of an entry, exact counts of slots and frames, and what is damaged.
 */
#include "core-fixture.h"

#include <errno.h>

#include "capture.h"
#include "event.h"
#include "lib/cleanup.h"
#include "recover.h"

#define VPN0 0x7f0000ull

/* The old engine dies, a new one takes over up to where its threads would start. */
static void die_and_recover(struct core_fixture *f)
{
	core_fixture_down(f);
	core_fixture_up(f);
	assert_int_equal(recover_processes(&f->core), 0);
	for (unsigned i = 0; i < ARENA_POOLS; i++) {
		struct pool *pool;

		if (!f->arena->h->pool[i].in_use)
			continue;
		assert_int_equal(pool_new(&f->core, i, f->arena->h->pool[i].nr, &pool), 0);
		f->core.pool[i] = pool;
	}
	assert_int_equal(recover_frames(&f->core), 0);
}

/* Every frame in use names a page whose entry names it back; returns how many there are. */
static unsigned check_frames(struct core_fixture *f)
{
	struct pool *pool = f->core.pool[0];
	unsigned n = 0;

	for (uint32_t i = 0; i < 2 * pool->nr; i++) {
		uint64_t owner = atomic_load(&pool_frame(&f->core, pool->first + i)->owner), v;

		if (!owner)
			continue;
		v = entry_of(&f->core.process[ARENA_OWNER_PROCESS(owner)], ARENA_OWNER_VPN(owner));
		assert_true(PAGE_STATE(v) == PAGE_RESIDENT || PAGE_STATE(v) == PAGE_EVICTING);
		assert_int_equal(PAGE_VALUE(v), pool->first + i);
		n++;
	}
	assert_int_equal(atomic_load(&pool->nr_used), n);
	assert_int_equal(atomic_load(&f->core.nr_used), n);
	return n;
}

static struct process *setup_process(struct core_fixture *f)
{
	fixture_pool(f, 0);
	return fixture_process(f, "survivor");
}

static void test_nothing(void **state)
{
	struct core_fixture *f = *state;

	fixture_pool(f, 0);
	die_and_recover(f);
	assert_int_equal(check_frames(f), 0);
	assert_int_equal(slots_used(f), 0);
}

static void test_states(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);
	uint32_t slot = put_swapped(f, p, VPN0), clean = new_slot(f), filling = new_slot(f);
	uint32_t gone = new_slot(f), lazy = new_slot(f), forgotten = new_slot(f), frame, number;
	uint64_t v;

	/* Pages 1 and 2: resident, with and without a clean slot. */
	frame = put_resident(p, VPN0 + 1, 0);
	pool_frame(&f->core, frame)->born_msec = 1234;
	frame = put_resident(p, VPN0 + 2, 0);
	atomic_store(&pool_frame(&f->core, frame)->clean_slot, clean);
	/* 3: the kernel may have dropped it: its slot counts. */
	frame = put_resident(p, VPN0 + 3, PAGE_LAZY);
	atomic_store(&pool_frame(&f->core, frame)->clean_slot, lazy);
	/* 4 to 6: in the hands of threads that are no more. */
	put_entry(p, VPN0 + 4, PAGE_ENTRY(PAGE_FILLING, filling));
	put_entry(p, VPN0 + 5, PAGE_ENTRY(PAGE_FILLING, gone) | PAGE_GONE);
	put_entry(p, VPN0 + 6, PAGE_ENTRY(PAGE_FILLING, 0));
	/* 7 to 9: claimed, and the agent was never asked. */
	put_resident(p, VPN0 + 7, 0);
	put_entry(p, VPN0 + 7, PAGE_ENTRY(PAGE_EVICTING, PAGE_VALUE(entry_of(p, VPN0 + 7))) |
				       PAGE_WANTED);
	put_resident(p, VPN0 + 8, 0);
	put_entry(p, VPN0 + 8, PAGE_ENTRY(PAGE_EVICTING, PAGE_VALUE(entry_of(p, VPN0 + 8))) |
				       PAGE_GONE);
	put_entry(p, VPN0 + 9, PAGE_ENTRY(PAGE_LOST, 0));
	(void)forgotten; /* a slot that nothing names */
	number = p->number;

	die_and_recover(f);
	p = &f->core.process[number];
	assert_true(entry_of(p, VPN0) == PAGE_ENTRY(PAGE_SWAPPED, slot));
	v = entry_of(p, VPN0 + 1);
	assert_true(v == PAGE_ENTRY(PAGE_RESIDENT, PAGE_VALUE(v)));
	assert_int_equal(pool_frame(&f->core, PAGE_VALUE(v))->born_msec, 1234);
	assert_int_equal(atomic_load(&pool_frame(&f->core, PAGE_VALUE(v))->clean_slot), 0);
	v = entry_of(p, VPN0 + 2);
	assert_true(v == PAGE_ENTRY(PAGE_RESIDENT, PAGE_VALUE(v)));
	assert_int_equal(atomic_load(&pool_frame(&f->core, PAGE_VALUE(v))->clean_slot), clean);
	assert_true(entry_of(p, VPN0 + 3) == PAGE_ENTRY(PAGE_SWAPPED, lazy));
	assert_true(entry_of(p, VPN0 + 4) == PAGE_ENTRY(PAGE_SWAPPED, filling));
	assert_int_equal(entry_of(p, VPN0 + 5), 0);
	assert_int_equal(entry_of(p, VPN0 + 6), 0);
	v = entry_of(p, VPN0 + 7);
	assert_true(v == PAGE_ENTRY(PAGE_RESIDENT, PAGE_VALUE(v)));
	assert_int_equal(entry_of(p, VPN0 + 8), 0);
	assert_true(entry_of(p, VPN0 + 9) == PAGE_ENTRY(PAGE_LOST, 0));

	assert_int_equal(check_frames(f), 3);
	assert_int_equal(atomic_load(&p->nr_resident), 3);
	assert_int_equal(atomic_load(&p->nr_swapped), 3);
	assert_int_equal(atomic_load(&p->nr_evicting), 0);
	assert_false(atomic_load(&p->killed));
	/* Page 0, the clean one, the lazy one, the filled one; no other. */
	assert_int_equal(usm_swap_refs(f->core.swap, slot), 1);
	assert_int_equal(usm_swap_refs(f->core.swap, clean), 1);
	assert_int_equal(usm_swap_refs(f->core.swap, lazy), 1);
	assert_int_equal(usm_swap_refs(f->core.swap, filling), 1);
	assert_int_equal(slots_used(f), 4);
}

/* What was announced a moment ago stays what it is: not younger either, or no page could leave
 * while engines die again and again. */
static void test_removed_keeps_its_stamp(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);
	uint32_t number = p->number;
	uint64_t v;

	test_tick = 500;
	put_resident(p, VPN0, 0);
	v = entry_of(p, VPN0);
	put_entry(p, VPN0, PAGE_WITH_STAMP(v | PAGE_REMOVED, 499));
	put_resident(p, VPN0 + 1, 0);
	v = entry_of(p, VPN0 + 1);
	/* Removed after it was claimed, and never taken: the same. */
	put_entry(p, VPN0 + 1, PAGE_ENTRY(PAGE_EVICTING, PAGE_VALUE(v)) | PAGE_DISCARD);
	die_and_recover(f);
	p = &f->core.process[number];
	for (unsigned i = 0; i < 2; i++) {
		v = entry_of(p, VPN0 + i);
		assert_int_equal(PAGE_STATE(v), PAGE_RESIDENT);
		assert_true(v & PAGE_REMOVED);
		assert_false(v & PAGE_DISCARD);
		/* The second one was told by an event that is applied now. */
		assert_int_equal(PAGE_STAMP(v), i == 0 ? 499 : 500);
	}
}

/* A lazy page that was claimed and never handed over may have been dropped all the same. */
static void test_claimed_lazy(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);
	uint32_t slot = new_slot(f), frame = put_resident(p, VPN0, 0), number = p->number;

	atomic_store(&pool_frame(&f->core, frame)->clean_slot, slot);
	put_entry(p, VPN0, PAGE_ENTRY(PAGE_EVICTING, frame) | PAGE_LAZY);
	die_and_recover(f);
	p = &f->core.process[number];
	assert_true(entry_of(p, VPN0) == PAGE_ENTRY(PAGE_SWAPPED, slot));
	assert_int_equal(usm_swap_refs(f->core.swap, slot), 1);
	assert_int_equal(check_frames(f), 0);
}

/* The agent was asked: its answer decides, whenever it comes. */
static void test_in_operation(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);
	struct fake_agent agent = {.result = 0};
	uint32_t number = p->number;
	uint64_t v;

	fake_agent_memory(p);
	for (unsigned i = 0; i < 3; i++) {
		put_resident(p, VPN0 + i, 0);
		put_entry(p, VPN0 + i, PAGE_ENTRY(PAGE_EVICTING, PAGE_VALUE(entry_of(p, VPN0 + i))) |
					       PAGE_WANTED);
		p->shared->op_vpn[i] = VPN0 + i;
		p->ops->addr[i] = VADDR(VPN0 + i);
	}
	/* The third was unmapped meanwhile. */
	put_entry(p, VPN0 + 2, entry_of(p, VPN0 + 2) | PAGE_GONE);
	p->shared->op_kind = p->ops->kind = USM_OPS_MOVE;
	p->shared->op_n = p->ops->n = 3;
	p->shared->op_seq = 5;
	atomic_store(&p->shared->op_state, OP_POSTED);
	atomic_store(&p->ops->req, 5);

	die_and_recover(f);
	p = &f->core.process[number];
	for (unsigned i = 0; i < 3; i++) {
		v = entry_of(p, VPN0 + i);
		assert_int_equal(PAGE_STATE(v), PAGE_EVICTING);
		assert_false(v & PAGE_WANTED);
	}
	assert_true(v & PAGE_GONE);
	assert_int_equal(atomic_load(&p->nr_evicting), 3);
	assert_int_equal(check_frames(f), 3);

	/* With the reclaim thread and the agent running, the operation comes to its end. */
	fixture_start_reclaim(f);
	fake_agent_start(&agent, p);
	recover_wake(&f->core);
	for (unsigned i = 0; i < 5000 && atomic_load(&p->shared->op_state) != OP_IDLE; i++)
		usleep(1000);
	assert_int_equal(atomic_load(&p->shared->op_state), OP_IDLE);
	assert_int_equal(atomic_load(&p->nr_evicting), 0);
	fixture_stop_reclaim(f);
	fake_agent_stop(&agent);
	assert_int_equal(agent.nr_operations, 1);
	for (unsigned i = 0; i < 2; i++) {
		uint8_t page[USM_PAGE_SIZE] __attribute__((aligned(USM_PAGE_SIZE)));
		struct usm_swap_io io = {.buf = page};

		v = entry_of(p, VPN0 + i);
		assert_int_equal(PAGE_STATE(v), PAGE_SWAPPED);
		assert_int_equal(usm_swap_refs(f->core.swap, PAGE_VALUE(v)), 1);
		io.slot = PAGE_VALUE(v);
		assert_int_equal(usm_swap_read(f->core.swap, &io, 1), 0);
		assert_int_equal(page[0], 0x80 | ((VPN0 + i) & 0x7f));
	}
	assert_int_equal(entry_of(p, VPN0 + 2), 0);
	assert_int_equal(check_frames(f), 0);
	assert_int_equal(slots_used(f), 2);
	assert_int_equal(atomic_load(&p->nr_swapped), 2);
	assert_int_equal(atomic_load(&p->nr_resident), 0);
}

/* Recorded, and the engine died before it told the agent: nothing is under way. */
static void test_never_posted(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);
	uint32_t number = p->number;

	fake_agent_memory(p);
	put_resident(p, VPN0, 0);
	put_entry(p, VPN0, PAGE_ENTRY(PAGE_EVICTING, PAGE_VALUE(entry_of(p, VPN0))));
	p->shared->op_vpn[0] = VPN0;
	p->shared->op_kind = USM_OPS_MOVE;
	p->shared->op_n = 1;
	p->shared->op_seq = 5;
	atomic_store(&p->shared->op_state, OP_POSTED);
	atomic_store(&p->ops->req, 4);
	atomic_store(&p->ops->inflight, 1);
	die_and_recover(f);
	p = &f->core.process[number];
	assert_int_equal(PAGE_STATE(entry_of(p, VPN0)), PAGE_RESIDENT);
	assert_int_equal(atomic_load(&p->shared->op_state), OP_IDLE);
	assert_int_equal(atomic_load(&p->nr_evicting), 0);
	/* New threads of the program wait for this. */
	assert_int_equal(atomic_load(&p->ops->inflight), 0);
}

static void check_killed(struct core_fixture *f, uint32_t number, uint64_t lost)
{
	struct capture c;
	const char *text;

	capture_begin(&c);
	die_and_recover(f);
	text = capture_end(&c);
	assert_non_null(strstr(text, "invalid entry"));
	assert_non_null(strstr(text, "survivor"));
	assert_true(atomic_load(&f->core.process[number].killed));
	assert_true(entry_of(&f->core.process[number], lost) == PAGE_ENTRY(PAGE_LOST, 0));
}

static void test_invalid_slots(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f), *other = fixture_process(f, "other");
	uint32_t slot = put_swapped(f, other, VPN0), number = other->number;

	put_resident(p, VPN0, 0);
	put_entry(p, VPN0 + 1, PAGE_ENTRY(PAGE_SWAPPED, FIXTURE_SWAP_SIZE / USM_PAGE_SIZE + 100));
	check_killed(f, p->number, VPN0 + 1);
	/* The rest of the world is counted as ever. */
	assert_int_equal(check_frames(f), 1);
	assert_int_equal(slots_used(f), 1);
	assert_int_equal(usm_swap_refs(f->core.swap, slot), 1);
	assert_false(atomic_load(&f->core.process[number].killed));
	assert_true(entry_of(&f->core.process[number], VPN0) == PAGE_ENTRY(PAGE_SWAPPED, slot));
}

static void test_invalid_frames(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);

	put_resident(p, VPN0, 0);
	put_entry(p, VPN0 + 1, PAGE_ENTRY(PAGE_RESIDENT, 2 * FIXTURE_FRAMES + 1));
	check_killed(f, p->number, VPN0 + 1);
	assert_int_equal(check_frames(f), 1);
}

static void test_invalid_lazy_frame(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);

	put_entry(p, VPN0, PAGE_ENTRY(PAGE_RESIDENT, UINT32_MAX) | PAGE_LAZY);
	check_killed(f, p->number, VPN0);
	assert_int_equal(check_frames(f), 0);
}

/* Two entries name one frame: an engine that died while it gave frames new numbers. */
static void test_frame_named_twice(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);
	uint32_t frame = put_resident(p, VPN0 + 1, 0), number = p->number, clean = new_slot(f);

	atomic_store(&pool_frame(&f->core, frame)->clean_slot, clean);
	put_entry(p, VPN0, PAGE_ENTRY(PAGE_RESIDENT, frame));
	die_and_recover(f);
	p = &f->core.process[number];
	assert_int_equal(check_frames(f), 2);
	/* The clean slot is that of the page which the frame names, and of no other. */
	assert_int_equal(usm_swap_refs(f->core.swap, clean), 1);
	frame = PAGE_VALUE(entry_of(p, VPN0));
	assert_int_equal(atomic_load(&pool_frame(&f->core, frame)->clean_slot), 0);
	frame = PAGE_VALUE(entry_of(p, VPN0 + 1));
	assert_int_equal(atomic_load(&pool_frame(&f->core, frame)->clean_slot), clean);
	assert_int_not_equal(PAGE_VALUE(entry_of(p, VPN0)), PAGE_VALUE(entry_of(p, VPN0 + 1)));
	assert_false(atomic_load(&p->killed));
}

/* A node that does not exist: no access through it, its program is killed, others live. */
static void test_damaged_table(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f), *other = fixture_process(f, "other");
	uint32_t number = p->number;
	struct capture c;
	const char *text;

	put_resident(other, VPN0, 0);
	put_resident(p, VPN0, 0);
	atomic_store(&arena_root(f->arena, p->number)[0], UINT32_MAX);
	atomic_fetch_or(&p->shared->root_pages, 1);
	capture_begin(&c);
	die_and_recover(f);
	text = capture_end(&c);
	assert_non_null(strstr(text, "page table is damaged"));
	assert_true(atomic_load(&f->core.process[number].killed));
	assert_int_equal(check_frames(f), 1);
}

/* More pages are resident than the policy has frames: the others are lent, none is lost. */
static void test_lent(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);
	uint32_t number = p->number, frame;

	for (unsigned i = 0; i < FIXTURE_FRAMES; i++)
		put_resident(p, VPN0 + i, 0);
	for (unsigned i = 0; i < 3; i++) {
		assert_true(pool_take_lent(f->core.pool[0], p->number, VPN0 + 100 + i, &frame));
		put_entry(p, VPN0 + 100 + i, PAGE_ENTRY(PAGE_RESIDENT, frame));
	}
	die_and_recover(f);
	assert_int_equal(check_frames(f), FIXTURE_FRAMES + 3);
	assert_int_equal(atomic_load(&f->core.pool[0]->nr_lent), 3);
	assert_int_equal(atomic_load(&f->core.process[number].nr_resident), FIXTURE_FRAMES + 3);
}

/* Oldest first, so that a policy that keeps an order has it again. */
static void test_order(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);
	static const uint32_t born[] = {300, 100, UINT32_MAX - 5, 200};
	uint32_t number = p->number;

	for (unsigned i = 0; i < ARRAY_SIZE(born); i++)
		pool_frame(&f->core, put_resident(p, VPN0 + i, 0))->born_msec = born[i];
	die_and_recover(f);
	p = &f->core.process[number];
	/* usmd's own choice is the first free one. The clock of milliseconds has wrapped. */
	assert_int_equal(PAGE_VALUE(entry_of(p, VPN0 + 2)), 1);
	assert_int_equal(PAGE_VALUE(entry_of(p, VPN0 + 1)), 2);
	assert_int_equal(PAGE_VALUE(entry_of(p, VPN0 + 3)), 3);
	assert_int_equal(PAGE_VALUE(entry_of(p, VPN0)), 4);
}

/* Handshakes and endings that the engine did not come to the end of. */
static void test_half_made_processes(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f), *p_dying;
	struct arena_process *live = p->shared, *building = process_new(&f->core)->shared;
	struct arena_process *dying, *closed;
	uint32_t slot;

	building->uffd = eventfd(0, EFD_CLOEXEC);
	p_dying = fixture_process(f, "dying");
	slot = put_swapped(f, p_dying, VPN0);
	put_resident(p_dying, VPN0 + 1, 0);
	dying = p_dying->shared;
	atomic_store(&dying->state, PROCESS_DYING);
	/* All its descriptors are closed: only its record was left. */
	closed = fixture_process(f, "closed")->shared;
	close(closed->uffd);
	closed->uffd = -1;
	atomic_store(&closed->state, PROCESS_DYING);
	put_resident(p, VPN0, 0);

	die_and_recover(f);
	assert_int_equal(building->state, PROCESS_FREE);
	assert_int_equal(building->uffd, -1);
	assert_int_equal(dying->state, PROCESS_FREE);
	assert_int_equal(closed->state, PROCESS_FREE);
	assert_int_equal(live->state, PROCESS_LIVE);
	assert_int_equal(check_frames(f), 1);
	assert_int_equal(slots_used(f), 0);
	assert_int_equal(usm_swap_refs(f->core.swap, slot), 0);
}

/* What the dead engine had read is applied once the references are counted. */
static void journal(struct core_fixture *f, uint32_t died_in)
{
	struct process *p = setup_process(f), *child = NULL;
	uint32_t slot = put_swapped(f, p, VPN0), unmapped = put_swapped(f, p, VPN0 + 1);
	uint32_t number = p->number;
	int uffd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	put_resident(p, VPN0 + 2, 0);
	p->shared->journal[0] = (struct uffd_msg){
		.event = UFFD_EVENT_UNMAP,
		.arg.remove = {.start = VADDR(VPN0 + 1), .end = VADDR(VPN0 + 3)},
	};
	p->shared->journal[1] =
		(struct uffd_msg){.event = UFFD_EVENT_FORK, .arg.fork = {.ufd = (uint32_t)uffd}};
	atomic_store(&p->shared->state, died_in);
	die_and_recover(f);
	p = &f->core.process[number];
	/* Held until then, so that no page is installed on the strength of the old table. */
	assert_int_equal(atomic_load(&p->latch), LATCH_EXCLUSIVE);
	fixture_start_reclaim(f);
	recover_wake(&f->core);
	fixture_stop_reclaim(f);
	assert_int_equal(atomic_load(&p->latch), 0);
	for (unsigned i = 0; i < ARENA_PROCESSES; i++)
		if (f->arena->process[i].state == PROCESS_LIVE && f->arena->process[i].uffd == uffd)
			child = &f->core.process[i];
	assert_non_null(child);
	assert_true(entry_of(child, VPN0) == PAGE_ENTRY(PAGE_SWAPPED, slot));
	assert_int_equal(entry_of(p, VPN0 + 1), 0);
	assert_int_equal(usm_swap_refs(f->core.swap, slot), 2);
	assert_int_equal(usm_swap_refs(f->core.swap, unmapped), 0);
	assert_int_equal(atomic_load(&p->nr_swapped), 1);
	assert_int_equal(atomic_load(&child->nr_swapped), 1);
	assert_int_equal(atomic_load(&p->nr_resident), 0);
	assert_int_equal(check_frames(f), 0);
}

static void test_journal(void **state)
{
	journal(*state, PROCESS_LIVE);
}

/* The parent had ended, and the engine died before it could make the child of it. */
static void test_journal_of_the_dead(void **state)
{
	journal(*state, PROCESS_DYING);
}

/* Dying again and again changes nothing. */
static void test_again_and_again(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);
	uint32_t number = p->number, slot = put_swapped(f, p, VPN0), clean = new_slot(f);

	atomic_store(&pool_frame(&f->core, put_resident(p, VPN0 + 1, 0))->clean_slot, clean);
	put_resident(p, VPN0 + (1 << 20), 0);
	for (unsigned i = 0; i < 5; i++) {
		die_and_recover(f);
		p = &f->core.process[number];
		assert_int_equal(check_frames(f), 2);
		assert_int_equal(slots_used(f), 2);
		assert_int_equal(usm_swap_refs(f->core.swap, slot), 1);
		assert_int_equal(usm_swap_refs(f->core.swap, clean), 1);
		assert_int_equal(atomic_load(&p->nr_resident), 2);
		assert_int_equal(atomic_load(&p->nr_swapped), 1);
	}
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, core_fixture_setup, core_fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_nothing),
		TEST(test_states),
		TEST(test_removed_keeps_its_stamp),
		TEST(test_claimed_lazy),
		TEST(test_in_operation),
		TEST(test_never_posted),
		TEST(test_invalid_slots),
		TEST(test_invalid_frames),
		TEST(test_invalid_lazy_frame),
		TEST(test_frame_named_twice),
		TEST(test_damaged_table),
		TEST(test_lent),
		TEST(test_order),
		TEST(test_half_made_processes),
		TEST(test_journal),
		TEST(test_journal_of_the_dead),
		TEST(test_again_and_again),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Events applied to tables written by hand, by way of a journal as a dead engine leaves
 * it; and by way of a real userfaultfd on the test's own memory.
 */
#include "core-fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "event.h"
#include "fill.h"
#include "lib/cleanup.h"
#include "mechanism-userfault.h"
#include "worker.h"

#define TICK	  7u
#define FROM	  0x10000ull /* pages */
#define TO	  0x90000ull
#define REMOVED(v) PAGE_WITH_STAMP((v) | PAGE_REMOVED, TICK)

#define MESSAGES 8u

static struct uffd_msg unmap(uint64_t first, uint64_t n)
{
	return (struct uffd_msg){
		.event = UFFD_EVENT_UNMAP,
		.arg.remove = {.start = VADDR(first), .end = VADDR(first + n)},
	};
}

static struct uffd_msg discard(uint64_t first, uint64_t n)
{
	struct uffd_msg m = unmap(first, n);

	m.event = UFFD_EVENT_REMOVE;
	return m;
}

static struct uffd_msg move(uint64_t from, uint64_t to, uint64_t n)
{
	return (struct uffd_msg){
		.event = UFFD_EVENT_REMAP,
		.arg.remap = {.from = VADDR(from), .to = VADDR(to), .len = VADDR(n)},
	};
}

static struct uffd_msg forked(int uffd)
{
	return (struct uffd_msg){.event = UFFD_EVENT_FORK, .arg.fork = {.ufd = (uint32_t)uffd}};
}

/* As a new engine applies what the dead one had read; `applied` of them were. */
static void begin_from(struct process *p, const struct uffd_msg *m, unsigned n, unsigned applied)
{
	memcpy(p->shared->journal, m, n * sizeof(*m));
	atomic_store(&p->shared->journal_applied, applied);
	event_hold(p);
	assert_int_equal(atomic_load(&p->latch), LATCH_EXCLUSIVE);
	event_resume(p);
}

static void apply_from(struct process *p, const struct uffd_msg *m, unsigned n, unsigned applied)
{
	begin_from(p, m, n, applied);
	assert_int_equal(atomic_load(&p->latch), 0);
	assert_int_equal(atomic_load(&p->shared->journal_applied), 0);
	for (unsigned i = 0; i < ARENA_JOURNAL; i++)
		assert_int_equal(p->shared->journal[i].event, 0);
}

static void apply(struct process *p, struct uffd_msg m)
{
	apply_from(p, &m, 1, 0);
}

static struct process *setup_process(struct core_fixture *f)
{
	fixture_pool(f, 0);
	test_tick = TICK;
	return fixture_process(f, "victim");
}

/* --- UNMAP ------------------------------------------------------------------------- */

static void test_unmap(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);
	uint32_t slot, clean = new_slot(f), before = put_resident(p, FROM - 1, 0), frame, behind;

	frame = put_resident(p, FROM, 0);
	atomic_store(&pool_frame(&f->core, frame)->clean_slot, clean);
	put_resident(p, FROM + 1, PAGE_REMOVED | PAGE_LAZY);
	slot = put_swapped(f, p, FROM + 2);
	put_entry(p, FROM + 3, PAGE_ENTRY(PAGE_LOST, 0));
	behind = put_swapped(f, p, FROM + 4);

	apply(p, unmap(FROM, 4));
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(entry_of(p, FROM + i), 0);
	/* Its neighbours are as they were. */
	assert_true(entry_of(p, FROM - 1) == PAGE_ENTRY(PAGE_RESIDENT, before));
	assert_true(entry_of(p, FROM + 4) == PAGE_ENTRY(PAGE_SWAPPED, behind));
	assert_int_equal(atomic_load(&p->nr_resident), 1);
	assert_int_equal(atomic_load(&p->nr_swapped), 1);
	/* What it held is free again, once. */
	assert_int_equal(atomic_load(&f->core.nr_used), 1);
	assert_int_equal(atomic_load(&pool_frame(&f->core, frame)->owner), 0);
	assert_int_equal(usm_swap_refs(f->core.swap, slot), 0);
	assert_int_equal(usm_swap_refs(f->core.swap, clean), 0);
	assert_int_equal(slots_used(f), 1);
	assert_true(atomic_load(&p->maps_changed));
	/* The same once more, as after a death before it was noted as applied. */
	apply(p, unmap(FROM, 4));
	assert_int_equal(atomic_load(&p->nr_resident), 1);
	assert_int_equal(atomic_load(&f->core.nr_used), 1);
	assert_int_equal(slots_used(f), 1);
}

/* A page that somebody has in hand stays with its owner, who is told. */
static void test_unmap_owned(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);
	uint32_t slot = new_slot(f);

	put_entry(p, FROM, PAGE_ENTRY(PAGE_FILLING, slot));
	put_entry(p, FROM + 1, PAGE_ENTRY(PAGE_EVICTING, 5) | PAGE_WANTED);
	apply(p, unmap(FROM, 2));
	assert_true(entry_of(p, FROM) == (PAGE_ENTRY(PAGE_FILLING, slot) | PAGE_GONE));
	assert_true(entry_of(p, FROM + 1) ==
		    (PAGE_ENTRY(PAGE_EVICTING, 5) | PAGE_WANTED | PAGE_GONE));
	assert_int_equal(usm_swap_refs(f->core.swap, slot), 1);
	apply(p, unmap(FROM, 2));
	assert_true(entry_of(p, FROM) == (PAGE_ENTRY(PAGE_FILLING, slot) | PAGE_GONE));
}

static void test_unmap_trims(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);
	uint64_t leaf = FROM & ~(uint64_t)(LEAF_PAGES - 1);

	put_resident(p, leaf, 0);
	put_resident(p, leaf + LEAF_PAGES, 0);
	apply(p, unmap(leaf, LEAF_PAGES));
	assert_null(process_page(p, leaf, false));
	assert_non_null(process_page(p, leaf + LEAF_PAGES, false));
	/* A leaf that an owner still has in hand is not freed under him. */
	put_entry(p, leaf, PAGE_ENTRY(PAGE_FILLING, 0));
	apply(p, unmap(leaf, LEAF_PAGES));
	assert_true(entry_of(p, leaf) == (PAGE_ENTRY(PAGE_FILLING, 0) | PAGE_GONE));
}

/* --- REMOVE ------------------------------------------------------------------------ */

static void test_remove(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);
	uint32_t frame = put_resident(p, FROM, 0), lazy = put_resident(p, FROM + 1, PAGE_LAZY), slot;

	slot = put_swapped(f, p, FROM + 2);
	put_entry(p, FROM + 3, PAGE_ENTRY(PAGE_FILLING, 0));
	put_entry(p, FROM + 4, PAGE_ENTRY(PAGE_EVICTING, 40) | PAGE_LAZY);
	atomic_store(&p->maps_changed, false);
	apply(p, discard(FROM, 5));
	/* Announced, and perhaps not yet done: the frame stays, the old content must not. */
	assert_true(entry_of(p, FROM) == REMOVED(PAGE_ENTRY(PAGE_RESIDENT, frame)));
	assert_int_equal(PAGE_STAMP(entry_of(p, FROM)), TICK);
	/* Its slot is not its content any more. */
	assert_true(entry_of(p, FROM + 1) == REMOVED(PAGE_ENTRY(PAGE_RESIDENT, lazy)));
	assert_int_equal(entry_of(p, FROM + 2), 0);
	assert_int_equal(usm_swap_refs(f->core.swap, slot), 0);
	assert_true(entry_of(p, FROM + 3) == (PAGE_ENTRY(PAGE_FILLING, 0) | PAGE_GONE));
	assert_true(entry_of(p, FROM + 4) ==
		    (PAGE_ENTRY(PAGE_EVICTING, 40) | PAGE_LAZY | PAGE_DISCARD));
	assert_int_equal(atomic_load(&p->nr_resident), 2);
	assert_int_equal(atomic_load(&p->nr_swapped), 0);
	assert_int_equal(atomic_load(&f->core.nr_used), 2);
	/* The mapping stays: nothing to look for. */
	assert_false(atomic_load(&p->maps_changed));
	/* Announced again later: the newer stamp counts. */
	test_tick = TICK + 3;
	apply(p, discard(FROM, 1));
	assert_int_equal(PAGE_STAMP(entry_of(p, FROM)), TICK + 3);
	assert_int_equal(PAGE_VALUE(entry_of(p, FROM)), frame);
}

/* --- REMAP ------------------------------------------------------------------------- */

static void test_remap(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);
	uint32_t frame = put_resident(p, FROM, PAGE_LAZY), slot = put_swapped(f, p, FROM + 1);
	uint32_t filling = new_slot(f), gone = new_slot(f), old, stays;

	put_entry(p, FROM + 2, PAGE_ENTRY(PAGE_FILLING, filling));
	put_entry(p, FROM + 3, PAGE_ENTRY(PAGE_FILLING, gone) | PAGE_GONE);
	put_entry(p, FROM + 4, PAGE_ENTRY(PAGE_LOST, 0));
	stays = put_resident(p, FROM + 5, 0);
	/* What the target still names goes. */
	old = put_resident(p, TO, 0);

	apply(p, move(FROM, TO, 5));
	assert_true(entry_of(p, TO) == (PAGE_ENTRY(PAGE_RESIDENT, frame) | PAGE_LAZY));
	assert_true(atomic_load(&pool_frame(&f->core, frame)->owner) == ARENA_OWNER(p->number, TO));
	assert_true(entry_of(p, TO + 1) == PAGE_ENTRY(PAGE_SWAPPED, slot));
	/* The filler loses its claim; the content goes on with the page. */
	assert_true(entry_of(p, TO + 2) == PAGE_ENTRY(PAGE_SWAPPED, filling));
	assert_true(entry_of(p, FROM + 2) == (PAGE_ENTRY(PAGE_FILLING, 0) | PAGE_GONE));
	assert_int_equal(usm_swap_refs(f->core.swap, filling), 1);
	assert_int_equal(entry_of(p, TO + 3), 0);
	assert_true(entry_of(p, TO + 4) == PAGE_ENTRY(PAGE_LOST, 0));
	assert_int_equal(entry_of(p, FROM), 0);
	assert_int_equal(entry_of(p, FROM + 1), 0);
	assert_int_equal(entry_of(p, FROM + 4), 0);
	assert_true(entry_of(p, FROM + 5) == PAGE_ENTRY(PAGE_RESIDENT, stays));
	assert_int_equal(entry_of(p, TO + 5), 0);
	assert_int_equal(atomic_load(&pool_frame(&f->core, old)->owner), 0);
	assert_int_equal(atomic_load(&p->nr_resident), 2);
	assert_int_equal(atomic_load(&p->nr_swapped), 2);
	assert_true(atomic_load(&p->maps_changed));
	assert_int_equal(usm_swap_refs(f->core.swap, slot), 1);
	/* Once more: there is nothing left to move. */
	apply(p, move(FROM, TO, 5));
	assert_true(entry_of(p, TO) == (PAGE_ENTRY(PAGE_RESIDENT, frame) | PAGE_LAZY));
	assert_true(entry_of(p, TO + 1) == PAGE_ENTRY(PAGE_SWAPPED, slot));
	assert_true(entry_of(p, TO + 2) == PAGE_ENTRY(PAGE_SWAPPED, filling));
	assert_int_equal(atomic_load(&p->nr_swapped), 2);
	assert_int_equal(atomic_load(&p->nr_resident), 2);
}

static void test_remap_back(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);
	uint32_t frame = put_resident(p, TO, 0);

	apply(p, move(TO, FROM, 1));
	assert_true(entry_of(p, FROM) == PAGE_ENTRY(PAGE_RESIDENT, frame));
	assert_int_equal(entry_of(p, TO), 0);
}

/* An engine that died between the store at the target and the one at the source; the scan
 * has counted the slot of both entries. */
static void test_remap_half_done(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);
	uint32_t slot = put_swapped(f, p, FROM);

	put_entry(p, TO, PAGE_ENTRY(PAGE_SWAPPED, slot));
	usm_swap_ref(f->core.swap, slot);
	atomic_fetch_add(&p->nr_swapped, 1);
	apply(p, move(FROM, TO, 1));
	assert_int_equal(entry_of(p, FROM), 0);
	assert_true(entry_of(p, TO) == PAGE_ENTRY(PAGE_SWAPPED, slot));
	assert_int_equal(usm_swap_refs(f->core.swap, slot), 1);
	assert_int_equal(atomic_load(&p->nr_swapped), 1);
}

/* --- FORK -------------------------------------------------------------------------- */

static struct process *child_with(struct core_fixture *f, int uffd, unsigned *ret_n)
{
	struct process *child = NULL;

	*ret_n = 0;
	for (unsigned i = 0; i < arena_processes(f->core.arena); i++)
		if (f->arena->process[i].state != PROCESS_FREE &&
		    f->arena->process[i].uffd == uffd) {
			child = &f->core.process[i];
			(*ret_n)++;
		}
	return child;
}

/* Without it the child's agent would let it go on without usmd, and with zeros. */
static void test_fork_tells_of_swapped(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);
	unsigned n;

	for (unsigned with = 0; with <= 1; with++) {
		int uffd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

		if (with)
			put_swapped(f, p, FROM);
		apply(p, forked(uffd));
		assert_int_equal(child_with(f, uffd, &n)->shared->ever_swapped, with);
	}
}

static void test_fork(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f), *child;
	uint32_t slot, lazy, lazy_slot = new_slot(f), filling = new_slot(f), gone = new_slot(f);
	int uffd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	unsigned n;

	p->shared->limit_pages = 99;
	p->shared->priority = -3;
	p->shared->marker = 0xabc000;
	p->shared->uid = 12;
	p->shared->rule_uid = 13;
	strcpy(p->shared->unit, "victim.service");
	snprintf(p->shared->policy, sizeof(p->shared->policy), "one");
	put_resident(p, FROM, 0);
	slot = put_swapped(f, p, FROM + 1);
	lazy = put_resident(p, FROM + 2, PAGE_LAZY);
	atomic_store(&pool_frame(&f->core, lazy)->clean_slot, lazy_slot);
	put_entry(p, FROM + 3, PAGE_ENTRY(PAGE_FILLING, filling));
	put_entry(p, FROM + 4, PAGE_ENTRY(PAGE_FILLING, gone) | PAGE_GONE);
	put_entry(p, FROM + 5, PAGE_ENTRY(PAGE_LOST, 0));

	apply(p, forked(uffd));
	child = child_with(f, uffd, &n);
	assert_int_equal(n, 1);
	assert_ptr_not_equal(child, p);
	assert_int_equal(child->shared->state, PROCESS_LIVE);
	assert_int_equal(child->shared->is_child, 1);
	assert_int_equal(child->shared->attached, 0);
	assert_int_equal(child->shared->sock, -1);
	assert_int_equal(child->shared->opsfd, -1);
	assert_int_equal(child->shared->limit_pages, 99);
	assert_int_equal(child->shared->priority, -3);
	assert_int_equal(child->shared->marker, 0xabc000);
	assert_int_equal(child->shared->uid, 12);
	assert_int_equal(child->shared->rule_uid, 13);
	assert_string_equal(child->shared->unit, "victim.service");
	assert_string_equal(child->shared->name, "victim");
	assert_string_equal(child->shared->policy, "one");
	assert_true(child->shared->nonce != 0);
	assert_ptr_equal(atomic_load(&child->pool), atomic_load(&p->pool));
	/* Present in the parent is present in the child; the rest lies in its slot. */
	assert_int_equal(entry_of(child, FROM), 0);
	assert_true(entry_of(child, FROM + 1) == PAGE_ENTRY(PAGE_SWAPPED, slot));
	assert_true(entry_of(child, FROM + 2) == PAGE_ENTRY(PAGE_SWAPPED, lazy_slot));
	assert_true(entry_of(child, FROM + 3) == PAGE_ENTRY(PAGE_SWAPPED, filling));
	assert_int_equal(entry_of(child, FROM + 4), 0);
	assert_true(entry_of(child, FROM + 5) == PAGE_ENTRY(PAGE_LOST, 0));
	assert_int_equal(atomic_load(&child->nr_swapped), 3);
	assert_int_equal(atomic_load(&child->shared->ever_swapped), 1);
	assert_int_equal(atomic_load(&child->nr_resident), 0);
	assert_int_equal(usm_swap_refs(f->core.swap, slot), 2);
	assert_int_equal(usm_swap_refs(f->core.swap, lazy_slot), 2);
	assert_int_equal(usm_swap_refs(f->core.swap, filling), 2);
	assert_int_equal(usm_swap_refs(f->core.swap, gone), 1);
	/* The parent's table is what it was. */
	assert_true(entry_of(p, FROM + 1) == PAGE_ENTRY(PAGE_SWAPPED, slot));
	assert_true(entry_of(p, FROM + 2) == (PAGE_ENTRY(PAGE_RESIDENT, lazy) | PAGE_LAZY));
	/* The engine died after it had published the child: it is not made twice. */
	apply(p, forked(uffd));
	assert_ptr_equal(child_with(f, uffd, &n), child);
	assert_int_equal(n, 1);
	assert_int_equal(usm_swap_refs(f->core.swap, slot), 2);
	assert_int_equal(atomic_load(&child->nr_swapped), 3);
	/* What the one unmaps is the other's still. */
	apply(p, unmap(FROM, 6));
	assert_true(entry_of(child, FROM + 1) == PAGE_ENTRY(PAGE_SWAPPED, slot));
	assert_int_equal(usm_swap_refs(f->core.swap, slot), 1);
}

/* The engine died while it built the child: the same record is built anew. */
static void test_fork_half_done(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f), *half = process_new(&f->core), *child;
	int uffd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	uint32_t slot = put_swapped(f, p, FROM);
	unsigned n;

	half->shared->is_child = 1;
	half->shared->uffd = uffd;
	put_entry(half, FROM + 9, PAGE_ENTRY(PAGE_SWAPPED, slot)); /* never counted */
	apply(p, forked(uffd));
	child = child_with(f, uffd, &n);
	assert_ptr_equal(child, half);
	assert_int_equal(n, 1);
	assert_int_equal(child->shared->state, PROCESS_LIVE);
	assert_true(entry_of(child, FROM) == PAGE_ENTRY(PAGE_SWAPPED, slot));
	assert_int_equal(entry_of(child, FROM + 9), 0);
	assert_int_equal(usm_swap_refs(f->core.swap, slot), 2);
	assert_int_equal(atomic_load(&child->nr_swapped), 1);
}

/* --- order ------------------------------------------------------------------------- */

/* Everything that a table says, as text. */
static void dump(struct core_fixture *f, char *text, size_t size)
{
	size_t n = 0;

	text[0] = '\0';
	for (unsigned i = 0; i < arena_processes(f->core.arena); i++) {
		struct process *p = &f->core.process[i];

		if (p->shared->state == PROCESS_FREE)
			continue;
		n += (size_t)snprintf(text + n, size - n, "%s%u: %lld resident %lld swapped\n",
				      p->shared->is_child ? "child" : "process", i,
				      (long long)p->nr_resident, (long long)p->nr_swapped);
		for (uint64_t base = FROM; base <= TO; base += TO - FROM)
			for (uint64_t vpn = base; vpn < base + 16; vpn++)
				if (entry_of(p, vpn))
					n += (size_t)snprintf(text + n, size - n, "%llx %llx\n",
							      (unsigned long long)vpn,
							      (unsigned long long)entry_of(p, vpn));
	}
	snprintf(text + n, size - n, "%lld frames %llu slots\n", (long long)f->core.nr_used,
		 (unsigned long long)slots_used(f));
	assert_true(n < size);
}

/* A sequence in which each message undoes or needs what came before. */
static unsigned sequence(int uffd, struct uffd_msg *m)
{
	unsigned n = 0;

	m[n++] = unmap(TO, 8);
	m[n++] = move(FROM, TO, 4);
	m[n++] = discard(TO + 1, 2);
	m[n++] = forked(uffd);
	m[n++] = unmap(TO, 1);
	m[n++] = move(TO + 2, FROM + 2, 2);
	return n;
}

static struct process *sequence_start(struct core_fixture *f)
{
	struct process *p = setup_process(f);

	for (unsigned i = 0; i < 8; i += 2) {
		put_resident(p, FROM + i, 0);
		put_swapped(f, p, FROM + i + 1);
		put_resident(p, TO + i + 1, 0);
		put_swapped(f, p, TO + i);
	}
	return p;
}

/* Death after each message was applied and before that was noted: the end is the same. */
static void test_sequence_interrupted(void **state)
{
	char whole[4096], interrupted[4096];
	struct uffd_msg m[MESSAGES];
	struct core_fixture *f = *state;
	struct process *p = sequence_start(f);
	unsigned n = sequence(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), m);

	apply_from(p, m, n, 0);
	dump(f, whole, sizeof(whole));
	assert_non_null(strstr(whole, "child"));
	for (unsigned k = 0; k < n; k++) {
		void *again = NULL;

		assert_int_equal(core_fixture_setup(&again), 0);
		f = again;
		p = sequence_start(f);
		assert_int_equal(sequence(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), m), n);
		apply_from(p, m, k + 1, 0);
		apply_from(p, m, n, k);
		dump(f, interrupted, sizeof(interrupted));
		assert_string_equal(interrupted, whole);
		assert_int_equal(core_fixture_teardown(&again), 0);
	}
}

/* What was noted as applied is not applied again. */
static void test_applied_is_skipped(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);
	struct uffd_msg m[] = {unmap(FROM, 1), unmap(FROM + 1, 1)};

	put_resident(p, FROM, 0);
	put_resident(p, FROM + 1, 0);
	apply_from(p, m, 2, 1);
	assert_int_equal(PAGE_STATE(entry_of(p, FROM)), PAGE_RESIDENT);
	assert_int_equal(entry_of(p, FROM + 1), 0);
}

/* --- the gate ---------------------------------------------------------------------- */

static void test_hold_and_the_agent(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);

	fake_agent_memory(p);
	atomic_store(&p->ops->req, 9);
	/* Nothing was read: what the agent has in hand goes on. */
	event_hold(p);
	assert_int_equal(atomic_load(&p->ops->cancel), 0);
	event_resume(p);
	/* Faults alone make nothing stale either. */
	p->shared->journal[0].event = UFFD_EVENT_PAGEFAULT;
	event_hold(p);
	assert_int_equal(atomic_load(&p->ops->cancel), 0);
	event_resume(p);
	p->shared->journal[0] = unmap(FROM, 1);
	event_hold(p);
	assert_int_equal(atomic_load(&p->ops->cancel), 9);
	event_resume(p);
	/* The dead engine's gate is given back; the agent's own stays taken. */
	atomic_store(&p->ops->gate, USM_GATE_READER);
	event_hold(p);
	assert_int_equal(atomic_load(&p->ops->gate), USM_GATE_IDLE);
	event_resume(p);
	atomic_store(&p->ops->gate, USM_GATE_AGENT);
	event_hold(p);
	assert_int_equal(atomic_load(&p->ops->gate), USM_GATE_AGENT);
	atomic_store(&p->ops->gate, USM_GATE_IDLE);
	event_resume(p);
}

/* The engine died between the two steps of clearing a journal: the next one begins at its start. */
static void test_cleared_half(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);
	struct uffd_msg none = {0};

	apply_from(p, &none, 1, 5);
}

/* The agent holds the gate: nothing is read, and it is tried again later. */
static void test_gate_taken(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);

	fake_agent_memory(p);
	atomic_store(&p->ops->gate, USM_GATE_AGENT);
	event_readable(p);
	assert_true(atomic_load(&p->deferred));
	assert_int_equal(atomic_load(&p->latch), 0);
	assert_int_equal(atomic_load(&p->ops->gate), USM_GATE_AGENT);
}

/* Who cannot read leaves a mark, and the holder reads in his place. */
static void test_latch(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);

	process_latch(p);
	process_latch(p);
	assert_int_equal(atomic_load(&p->latch), 2);
	assert_false(process_try_latch_exclusive(p));
	assert_int_equal(atomic_load(&p->latch), LATCH_PENDING | 2);
	process_unlatch(p);
	assert_int_equal(atomic_load(&p->latch), LATCH_PENDING | 1);
	process_unlatch(p); /* reads */
	assert_int_equal(atomic_load(&p->latch), 0);
	assert_true(process_try_latch_exclusive(p));
	assert_false(process_try_latch_exclusive(p));
	assert_false(process_unlatch_exclusive(p));
	assert_int_equal(atomic_load(&p->latch), LATCH_EXCLUSIVE);
	assert_true(process_unlatch_exclusive(p));
	assert_int_equal(atomic_load(&p->latch), 0);
}

/*
 * A page is on its way out, and its agent may take for ever: a FORK leaves the journal where it
 * is, and nobody waits for it.  What was claimed is given back, what is looked for is not found.
 */
static void test_barrier(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);
	int uffd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	uint32_t slot = new_slot(f);
	struct fill fill = {.p = p, .vpn = FROM + 1, .swapped = true};
	struct uffd_msg m[] = {unmap(FROM + 8, 1), forked(uffd), unmap(FROM + 9, 1)};
	unsigned n;

	put_swapped(f, p, FROM + 8);
	put_swapped(f, p, FROM + 9);
	put_entry(p, FROM + 1, PAGE_ENTRY(PAGE_SWAPPED, slot));
	process_latch(p);
	fill.entry = process_page(p, FROM + 1, false);
	assert_true(fill_claim_next(&fill, fill.entry));
	process_unlatch(p);
	atomic_store(&p->nr_evicting, 1);

	begin_from(p, m, 3, 0);
	assert_int_equal(atomic_load(&p->latch), LATCH_BARRIER);
	assert_true(atomic_load(&p->barrier));
	assert_int_equal(entry_of(p, FROM + 8), 0);
	assert_int_equal(PAGE_STATE(entry_of(p, FROM + 9)), PAGE_SWAPPED);
	assert_null(child_with(f, uffd, &n));
	assert_int_equal(atomic_load(&p->shared->journal_applied), 1);

	assert_false(process_latch(p));
	assert_true(atomic_load(&p->parked));
	assert_false(process_try_latch(p));
	assert_int_equal(fill_install(&fill, f->core.zeros), 0);
	assert_int_equal(fill.n, 0);
	assert_true(entry_of(p, FROM + 1) == PAGE_ENTRY(PAGE_SWAPPED, slot));
	assert_int_equal(atomic_load(&p->latch), LATCH_BARRIER);

	/* Somebody looks, and it is not over. */
	event_readable(p);
	assert_int_equal(atomic_load(&p->latch), LATCH_BARRIER);
	assert_null(child_with(f, uffd, &n));

	atomic_store(&p->nr_evicting, 0);
	event_readable(p);
	assert_int_equal(atomic_load(&p->latch), 0);
	assert_false(atomic_load(&p->barrier));
	assert_false(atomic_load(&p->parked));
	assert_non_null(child_with(f, uffd, &n));
	assert_int_equal(n, 1);
	assert_int_equal(entry_of(p, FROM + 9), 0);
	assert_int_equal(p->shared->journal[0].event, 0);
	assert_int_equal(atomic_load(&p->shared->journal_applied), 0);
	assert_true(process_latch(p));
	process_unlatch(p);
}

/*
 * A fault is being served where a REMAP goes, for what was mapped there before: the page that
 * arrives is not overwritten by what that fault was to get, nor its slot given away.
 */
static void test_barrier_of_fault(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f);
	uint32_t slot = put_swapped(f, p, FROM);
	struct fill fill = {.p = p, .vpn = TO};
	struct uffd_msg m[] = {unmap(TO, 1), move(FROM, TO, 1)};

	process_latch(p);
	fill.entry = process_page(p, TO, true);
	assert_true(fill_claim_next(&fill, fill.entry));
	process_unlatch(p);

	begin_from(p, m, 2, 0);
	assert_int_equal(atomic_load(&p->latch), LATCH_BARRIER);
	assert_true(entry_of(p, TO) == (PAGE_ENTRY(PAGE_FILLING, 0) | PAGE_GONE));
	assert_true(entry_of(p, FROM) == PAGE_ENTRY(PAGE_SWAPPED, slot));

	/* It does not wait for frames either, that may come only when the barrier is over. */
	atomic_store(&f->core.nr_budget, 0);
	assert_int_equal(fill_frames(&fill, USM_EVENT_FIRST_TOUCH, true, false), -EAGAIN);
	assert_int_equal(fill.n, 0);
	assert_true(atomic_load(&p->deferred));
	assert_int_equal(entry_of(p, TO), 0);

	event_readable(p);
	assert_int_equal(atomic_load(&p->latch), 0);
	assert_int_equal(entry_of(p, FROM), 0);
	assert_true(entry_of(p, TO) == PAGE_ENTRY(PAGE_SWAPPED, slot));
	assert_int_equal(usm_swap_refs(f->core.swap, slot), 1);
	assert_false(atomic_load(&p->parked));
	worker_forget(p);
}

/*
 * Behind a FORK the program discards a page that LAZYFREE has just put into its slot: that is not
 * the agent's own MADV_FREE, and the slot's content must not come back.
 */
static void test_barrier_of_collection(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f), *child;
	int uffd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	uint32_t slot = put_swapped(f, p, FROM);
	struct uffd_msg m[] = {forked(uffd), discard(FROM, 1)};
	unsigned n;

	p->shared->op_kind = USM_OPS_LAZYFREE;
	p->shared->op_vpn[0] = FROM;
	p->shared->op_n = 1;
	atomic_store(&p->shared->op_state, OP_COLLECT);
	atomic_store(&p->nr_evicting, 1);
	begin_from(p, m, 2, 0);
	assert_int_equal(atomic_load(&p->latch), LATCH_BARRIER);

	atomic_store(&p->shared->op_state, OP_IDLE);
	atomic_store(&p->nr_evicting, 0);
	event_readable(p);
	assert_int_equal(entry_of(p, FROM), 0);
	child = child_with(f, uffd, &n);
	assert_non_null(child);
	assert_true(entry_of(child, FROM) == PAGE_ENTRY(PAGE_SWAPPED, slot));
	assert_int_equal(usm_swap_refs(f->core.swap, slot), 1);
}

/* It ends with its agent while a FORK waits: the child is made, and knows what it has lost. */
static void test_barrier_ends_with_program(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = setup_process(f), *child;
	int uffd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct uffd_msg m = forked(uffd);
	unsigned n;

	put_entry(p, FROM, PAGE_ENTRY(PAGE_EVICTING, 1));
	atomic_store(&p->nr_evicting, 1);
	begin_from(p, &m, 1, 0);
	assert_int_equal(atomic_load(&p->latch), LATCH_BARRIER);
	atomic_store(&p->gone, true);
	event_readable(p);
	assert_int_equal(atomic_load(&p->latch), 0);
	child = child_with(f, uffd, &n);
	assert_non_null(child);
	assert_true(entry_of(child, FROM) == PAGE_ENTRY(PAGE_LOST, 0));
}

/* --- a real userfaultfd on memory of our own ----------------------------------------- */

#define REAL_PAGES 16u

struct program {
	char *memory, *moved;
	int step;
	pid_t child;
	_Atomic bool done;
};

/* Each of these waits in the kernel until its event has been read. */
static void *program_main(void *arg)
{
	struct program *g = arg;

	switch (g->step) {
	case 0:
		madvise(g->memory, USM_PAGE_SIZE, MADV_DONTNEED);
		break;
	case 1:
		g->moved = mremap(g->memory + 4 * USM_PAGE_SIZE, 4 * USM_PAGE_SIZE,
				  4 * USM_PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, g->moved);
		break;
	case 2:
		munmap(g->memory + 8 * USM_PAGE_SIZE, 2 * USM_PAGE_SIZE);
		break;
	case 3:
		/* Not fork(): it would wait in the kernel with the sanitizers' locks held. */
		g->child = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
		if (g->child == 0) {
			/* A test that fails must not leave it behind. */
			syscall(SYS_alarm, 10);
			for (;;)
				syscall(SYS_pause);
		}
		break;
	}
	atomic_store(&g->done, true);
	return NULL;
}

static void run_step(struct process *p, struct program *g, int step)
{
	pthread_t thread;

	g->step = step;
	atomic_store(&g->done, false);
	assert_int_equal(pthread_create(&thread, NULL, program_main, g), 0);
	for (unsigned i = 0; i < 10000 && !atomic_load(&g->done); i++) {
		event_readable(p);
		usleep(1000);
	}
	assert_true(atomic_load(&g->done));
	pthread_join(thread, NULL);
}

static void test_real(void **state)
{
	struct core_fixture *f = *state;
	struct process *p, *child = NULL;
	struct program g = {0};
	size_t size = REAL_PAGES * USM_PAGE_SIZE;
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), fd;
	uint32_t frame[REAL_PAGES], slot;
	uint64_t vpn;

	if (dev < 0) {
		print_message("no /dev/userfaultfd, skipped: %s\n", strerror(errno));
		skip();
	}
	fd = ioctl(dev, 0xaa00, O_CLOEXEC | O_NONBLOCK); /* USERFAULTFD_IOC_NEW */
	close(dev);
	assert_true(fd >= 0);
	fixture_pool(f, 0);
	test_tick = TICK;
	p = process_new(&f->core);
	p->shared->uffd = fd;
	p->shared->attached = 1;
	atomic_store(&p->pool, f->core.pool[0]);
	assert_int_equal(userfault_handshake(fd, true, false), 0);
	assert_int_equal(process_publish(p), 0);
	f->core.register_mode = UFFDIO_REGISTER_MODE_MISSING;
	g.memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	g.moved = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(g.memory != MAP_FAILED && g.moved != MAP_FAILED);
	memset(g.memory, 0x5a, size);
	assert_int_equal(userfault_register(fd, (uintptr_t)g.memory,
					    (uintptr_t)g.memory + size, f->core.register_mode),
			 0);
	vpn = VPN((uintptr_t)g.memory);
	for (unsigned i = 0; i < REAL_PAGES - 1; i++)
		frame[i] = put_resident(p, vpn + i, 0);
	slot = put_swapped(f, p, vpn + REAL_PAGES - 1);

	run_step(p, &g, 0);
	assert_true(entry_of(p, vpn) == REMOVED(PAGE_ENTRY(PAGE_RESIDENT, frame[0])));
	run_step(p, &g, 1);
	for (unsigned i = 4; i < 8; i++) {
		assert_int_equal(entry_of(p, vpn + i), 0);
		assert_true(entry_of(p, VPN((uintptr_t)g.moved) + i - 4) ==
			    PAGE_ENTRY(PAGE_RESIDENT, frame[i]));
	}
	run_step(p, &g, 2);
	assert_int_equal(entry_of(p, vpn + 8), 0);
	assert_int_equal(entry_of(p, vpn + 9), 0);
	assert_true(entry_of(p, vpn + 10) == PAGE_ENTRY(PAGE_RESIDENT, frame[10]));
	assert_int_equal(atomic_load(&p->nr_resident), REAL_PAGES - 1 - 2);
	run_step(p, &g, 3);
	for (unsigned i = 0; i < arena_processes(f->core.arena); i++)
		if (f->core.process[i].shared->state == PROCESS_LIVE && &f->core.process[i] != p)
			child = &f->core.process[i];
	assert_non_null(child);
	assert_true(child->shared->uffd >= 0 && child->shared->uffd != fd);
	assert_true(entry_of(child, vpn + REAL_PAGES - 1) == PAGE_ENTRY(PAGE_SWAPPED, slot));
	assert_int_equal(entry_of(child, vpn + 10), 0);
	assert_int_equal(usm_swap_refs(f->core.swap, slot), 2);
	kill(g.child, SIGKILL);
	waitpid(g.child, NULL, 0);
	/* Its memory is gone: no event, reading says nothing. */
	event_readable(child);
	/* The mappings stay: munmap() would wait for us to read. */
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, core_fixture_setup, core_fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_unmap),
		TEST(test_unmap_owned),
		TEST(test_unmap_trims),
		TEST(test_remove),
		TEST(test_remap),
		TEST(test_remap_back),
		TEST(test_remap_half_done),
		TEST(test_fork),
		TEST(test_fork_tells_of_swapped),
		TEST(test_fork_half_done),
		TEST(test_sequence_interrupted),
		TEST(test_applied_is_skipped),
		TEST(test_hold_and_the_agent),
		TEST(test_cleared_half),
		TEST(test_gate_taken),
		TEST(test_latch),
		TEST(test_barrier),
		TEST(test_barrier_of_fault),
		TEST(test_barrier_of_collection),
		TEST(test_barrier_ends_with_program),
		TEST(test_real),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

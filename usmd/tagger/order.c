/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Calls that take mappings away or move them, one at a time.  The kernel tells of them (UNMAP, REMAP)
 * when it has let go of its own lock, and its caller waits until that has been read.  By then another
 * thread can have been given the same addresses and have moved on from there, and be told of first:
 * the daemon would take the pages of one for the other's.  A child that is forked in between would
 * have entries of pages that it does not have, for what it maps there to find.
 *
 * Nobody waits for ever: who holds it may have been left by siglongjmp(), or wait in a signal handler
 * for the one that waits here.
 */
#include "sys.h"
#include "tagger.h"

enum { FREE = 0, HELD = 1, WAITED_FOR = 2 };

/* A call takes microseconds, and some milliseconds where the daemon is started again. */
#define PATIENCE_USEC 5000000u
/* From its last handler on a fork() takes microseconds until the kernel lets nobody map.  It takes
 * malloc's locks, too, and who has one may wait here. */
#define FORK_PATIENCE_USEC 20000u
#define STEP_USEC	   10000u

enum turn { MINE, TAKEN_OVER, WITHOUT };

static bool take_over(struct usm_agent *a, uint64_t owner)
{
	if (!atomic_compare_exchange_strong(&a->order_owner, &owner, usm_thread_pointer()))
		return false;
	atomic_fetch_add(&a->order_turn, 1);
	return true;
}

static enum turn wait_for_turn(struct usm_agent *a)
{
	uint64_t owner = atomic_load(&a->order_owner), since = sys_now_usec();
	uint32_t turn = atomic_load(&a->order_turn);

	while (atomic_exchange(&a->order, WAITED_FOR) != FREE) {
		uint64_t waited;

		sys_futex_wait(&a->order, WAITED_FOR, STEP_USEC);
		waited = sys_now_usec() - since;
		if (atomic_load(&a->order_turn) != turn) {
			turn = atomic_load(&a->order_turn);
			owner = atomic_load(&a->order_owner);
			since = sys_now_usec();
		} else if (waited > FORK_PATIENCE_USEC && atomic_load(&a->order_forks)) {
			return WITHOUT;
		} else if (waited > PATIENCE_USEC && take_over(a, owner)) {
			return TAKEN_OVER;
		}
	}
	return MINE;
}

static bool enter(struct usm_agent *a, bool forks)
{
	uint32_t is = FREE;
	enum turn turn = MINE;

	if (atomic_load(&a->order_owner) == usm_thread_pointer())
		return false;
	if (!atomic_compare_exchange_strong(&a->order, &is, HELD))
		turn = wait_for_turn(a);
	if (turn == WITHOUT)
		return false;
	atomic_store(&a->order_forks, forks);
	if (turn == MINE) {
		atomic_store(&a->order_owner, usm_thread_pointer());
		atomic_fetch_add(&a->order_turn, 1);
	}
	return true;
}

bool usm_order_enter(struct usm_agent *a)
{
	return enter(a, false);
}

void usm_order_fork(struct usm_agent *a)
{
	enter(a, true);
}

void usm_order_forked(struct usm_agent *a)
{
	/* A fork in a signal handler has not taken what the call that it interrupted has. */
	if (atomic_load(&a->order_forks))
		usm_order_leave(a);
}

void usm_order_leave(struct usm_agent *a)
{
	uint64_t self = usm_thread_pointer();

	/* Somebody else's by now? */
	if (!atomic_compare_exchange_strong(&a->order_owner, &self, 0))
		return;
	/* Before it is free: who comes next may be no fork. */
	atomic_store(&a->order_forks, false);
	if (atomic_exchange(&a->order, FREE) == WAITED_FOR)
		sys3(SYS_futex, &a->order, 1 /* FUTEX_WAKE */, 1);
}

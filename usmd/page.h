/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Page tables: one 64-bit entry a page, the only authority on where a page is.
 *
 *   state      value   who owns the page meanwhile
 *   NONE       -       nobody: no content, or present in the program and not managed yet
 *   FILLING    slot    the thread that set it (fault, adoption); slot 0: no content
 *   RESIDENT   frame   the program
 *   EVICTING   frame   the reclaim thread
 *   SWAPPED    slot    the swap device
 *   LOST       -       the content could not be read back: its program is being killed
 *
 * A state is left by compare-and-swap, by its owner only; others add flags:
 *   WANTED   (EVICTING) a fault waits: wake the page when it has left
 *   GONE     (EVICTING, FILLING) unmapped: the owner drops it
 *   FREED    (EVICTING) one madvise() was announced: the agent's own MADV_FREE (reclaim.c),
 *            if the agent gets so far
 *   DISCARD  (EVICTING) madvise(DONTNEED): content that has left already is dropped
 *   REMOVED  (RESIDENT) madvise() was announced and may not have been carried out:
 *            not to be evicted before STAMP plus PAGE_REMOVE_TICKS, or the old content
 *            would come back from swap
 *
 *   LAZY     (RESIDENT) the kernel may drop the page as long as nobody writes it; its
 *            frame's clean slot holds the content (MADV_FREE, collect.c).  Without a slot:
 *            no device took it, and when the kernel has dropped it it is lost
 *
 * SWAPPED says: if the page is not present, its content is in the slot.  It may be present
 * (a LAZY page in a forked child; LAZY there too as soon as it has a frame, although it may
 * have been written since and the slot be older).
 *
 * A pointer to an entry is valid while the process's latch is held (process.h) or
 * while the caller owns the entry's state: leaves that are all NONE are freed.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "arena.h"

enum page_state {
	PAGE_NONE = 0,
	PAGE_FILLING = 1,
	PAGE_RESIDENT = 2,
	PAGE_EVICTING = 3,
	PAGE_SWAPPED = 4,
	PAGE_LOST = 5,
};

#define PAGE_WANTED  (1ull << 3)
#define PAGE_GONE    (1ull << 4)
#define PAGE_DISCARD (1ull << 5)
#define PAGE_REMOVED (1ull << 6)

#define PAGE_LAZY    (1ull << 7)
#define PAGE_FREED   (1ull << 24)

#define PAGE_STATE(e) ((enum page_state)((e) & 7))
#define PAGE_VALUE(e) ((uint32_t)((e) >> 32))
#define PAGE_STAMP(e) ((uint16_t)((e) >> 8))
#define PAGE_ENTRY(state, value) ((uint64_t)(state) | (uint64_t)(value) << 32)
#define PAGE_WITH_STAMP(e, tick) (((e) & ~0xffff00ull) | (uint64_t)(uint16_t)(tick) << 8)

/* Ticks (100 ms) that a REMOVED page is left alone: the kernel zaps it after the event
 * was read, when the thread in madvise() gets to run. */
#define PAGE_REMOVE_TICKS 20

#define PAGE_SHIFT 12
/* User addresses of four-level page tables. */
#define VPN_MAX (1ull << 35)
#define VPN(addr) ((uint64_t)(addr) >> PAGE_SHIFT)
#define VADDR(vpn) ((uint64_t)(vpn) << PAGE_SHIFT)
#define LEAF_PAGES 512u

typedef _Atomic uint64_t page_entry;

/* The entry of a page, or NULL: not there (create false), no memory, vpn too high. */
page_entry *page_walk(struct arena *a, uint32_t process, uint64_t vpn, bool create);

/*
 * Calls fn for each entry that is not NONE in [first, end), in order, until it
 * returns other than 0, which is returned.
 */
typedef int (*page_visit_t)(void *userdata, uint64_t vpn, page_entry *e);
int page_visit(struct arena *a, uint32_t process, uint64_t first, uint64_t end, page_visit_t fn,
	       void *userdata);

/* Frees the leaves inside [first, end) that are all NONE.  Holding the latch exclusively. */
void page_trim(struct arena *a, uint32_t process, uint64_t first, uint64_t end);

/* Frees the whole table; every entry must be NONE or its reference dropped. */
void page_table_free(struct arena *a, uint32_t process);

/* Marks the nodes of a table in in_use[], raising *top above them.  A node number that
 * is out of range or used twice: -EBADMSG. */
int page_table_mark(struct arena *a, uint32_t process, uint8_t *in_use, uint32_t *top);

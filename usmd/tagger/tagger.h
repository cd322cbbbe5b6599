/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The program's side of libusm-tagger: everything that runs on the program's own threads.  Its
 * variables lie in memory that usmd may manage, which is fine here and forbidden in the agent.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agent.h"

/* Descriptors of ours go above what programs count up to. */
#define USM_HIGH_FD 200

enum usm_tagger_mode {
	USM_TAGGER_OFF = 0, /* what a fork leaves: the page is wiped */
	USM_TAGGER_PENDING, /* a child whose agent has not answered yet */
	USM_TAGGER_TAKING,  /* one thread is taking the answer */
	USM_TAGGER_ARMED,
};

/* On a MADV_WIPEONFORK page, so that no child acts on its parent's userfaultfd. */
struct usm_tagger_state {
	struct usm_agent *agent; /* NULL: no agent of this process */
	_Atomic uint32_t mode;
	int answer_fd; /* PENDING: carries the agent's answer */
	int u1;        /* ARMED */
	int pid;       /* tells a vfork child, which shares this page, from its parent */
	uint32_t register_mode;
	bool waited;   /* one hook has waited for the answer; the next ones only look */
};

/* NULL until the constructor ran. */
extern struct usm_tagger_state *usm_tagger;

/* tagger.c */

/* True when fresh mappings are to be registered; in a new child the first call waits a moment for
 * the agent.  Any thread, any time after the constructor; leaves errno alone. */
bool usm_tagger_ready(void);
/* Registers [addr, addr + bytes) when usm_tagger_ready() said so.  A range that cannot be
 * registered is left to the daemon's scan. */
void usm_tagger_register(uint64_t addr, size_t bytes);

/* pins.c */

/* Keeps in memory, from now on, what the kernel writes when the calling thread exits.  Any thread
 * of a managed process; without effect when the table is full (the daemon scans as well). */
void usm_pin_thread(struct usm_agent *a);
/* The calling thread's control block. */
uint64_t usm_thread_pointer(void);
/* Remembers a range whose pages a child does not inherit, and pins it if there is an agent. */
void usm_pin_uninherited(uint64_t addr, size_t bytes);
/* Pages are about to move; pins do not. */
void usm_pin_move(uint64_t addr, size_t bytes);
/* The daemon is told to look for those that are not pinned. */
void usm_pin_before_fork(struct usm_agent *a);
/* Fills the list of what a new agent pins by itself: the calling thread's pages, the state page and
 * what usm_pin_uninherited() was told. */
void usm_pin_list(struct usm_agent *a, const struct usm_tagger_state *s);

/* protect.c: ops->protect_fork, in the thread that forks. */
void usm_protect_fork(struct usm_tagger_state *s);

/* patch.c */

struct usm_patch {
	const char *name;
	void *hook;
};
/* Makes libc's own functions jump to the hooks; the process has one program thread.  True when
 * all of them do. */
bool usm_patch_libc(const struct usm_patch *patches, size_t nr);

/* order.c */

/*
 * Around each call that takes mappings away or moves them: the daemon is told of them in the order in
 * which they are done.  True: usm_order_leave() is due.  Any thread, also in a signal handler within
 * such a call, which goes ahead.
 */
bool usm_order_enter(struct usm_agent *a);
void usm_order_leave(struct usm_agent *a);
/* The same around a fork(): after all else that is done before it, and in the parent. */
void usm_order_fork(struct usm_agent *a);
void usm_order_forked(struct usm_agent *a);

/* hooks.c */

extern const struct usm_patch usm_hook_patches[];
extern const size_t usm_nr_hook_patches;

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The policy ABI of usmd: the callbacks that a policy implements and the calls
 * that usmd offers to it.  <usm/usm.h> adds the surface of the USM guides.
 *
 * A policy decides; usmd acts.  A policy never maps memory and does no I/O.
 *
 * A plugin is a shared object with a symbol `dev_usm_ops`.  usmd loads it,
 * points its `pagesList` at the pages of its pool, and calls usm_setup() once,
 * in which the plugin registers its policies.  What one plugin registers is a
 * *policy set*: it shares one pool of pages.
 *
 * Threads: usm_setup() runs alone.  Every other callback may run on any of
 * usmd's worker threads and on the reclaim thread, several at once: a policy
 * locks its own data.  No lock of usmd is held during a callback.  Callbacks
 * must not block; the time that they take is measured, and one that takes
 * longer than the decision time limit ends the engine, which restarts without
 * the policy.
 *
 * ABI rules: structures only grow at the end; the registration macros pass the
 * version and the size that the plugin was compiled with.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#define USM_POLICY_ABI 1

#ifdef __cplusplus
extern "C" {
#endif

/* What an event is about. */
enum usm_event_type {
	USM_EVENT_FIRST_TOUCH = 0, /* the page has no content yet */
	USM_EVENT_SWAP_IN = 1,     /* the page comes back from a swap device */
	USM_EVENT_ADOPT = 2,       /* the page was present before it was managed */
	USM_EVENT_RESTORE = 3,     /* a new engine tells what is resident, oldest first */
	USM_EVENT_FREE = 4,
	USM_EVENT_EVICT = 5,
};

/*
 * One decision to take.  Owned by usmd, valid during the callback only.
 * vaddr, length: the page's virtual address and size in bytes.  paddr: the
 * address of the page frame, the policy's answer (usm_alloc) or its subject
 * (usm_pindex_free).  origin: the process, as an index that stays the same while
 * the process is managed.
 */
struct usm_event {
	unsigned long vaddr;
	unsigned long paddr;
	unsigned long length;
	int origin;
	enum usm_event_type type;
};

/*
 * One page frame of the pool.  physicalAddress never changes; virtualAddress and
 * process tell who uses it (0 and -1: free) and are set by usmLinkPage() and
 * cleared by usmd before usm_pindex_free().  data: the page's bytes where the
 * mechanism has them (kernel module), else NULL.  private_word: the policy's own.
 * On the userfault mechanism physicalAddress is a synthetic address, stable while
 * the page is resident.
 */
struct page {
	unsigned long physicalAddress;
	unsigned long virtualAddress;
	int process;
	void *data;
	void *private_word;
};

/*
 * Allocation policy.  Only usm_alloc and usm_pindex_free are mandatory.
 *
 * usm_alloc: a page of event->origin at event->vaddr needs a frame.  Choose one,
 *   set event->paddr, call usmSubmitAllocEvent(event) (0: accepted), then
 *   usmLinkPage(), return 0.  Return 1: no free frame; usmd evicts and asks once
 *   more.
 * usm_pindex_free: the frame at event->paddr is free again: unmapped, evicted, or
 *   accepted earlier but not used after all.  Return 0.
 * usm_free: like usm_pindex_free, by event->vaddr; only called if usm_pindex_free
 *   is absent.
 * get_used_pages: fill pages[] with at most max resident pages of the set in the
 *   order in which they would leave, skipping the first `offset`; return how many.
 *   For listings only.
 * get_pages: the same for free pages.
 * put_used_pages: n pages that a swap_out could not make leave are resident
 *   again; take them back.  Without it usmd keeps them and tries them again
 *   itself.
 * put_pages: reserved.
 * usm_oom: nothing can be evicted and no frame is free; the event is the one that
 *   waits.  Return 0 if frames were freed.
 * The others are notices; return values are ignored.
 */
struct usm_alloc_policy_ops {
	int (*usm_init)(void);
	int (*usm_alloc)(struct usm_event *event);
	int (*usm_pindex_free)(struct usm_event *event);
	int (*usm_free)(struct usm_event *event);
	int (*usm_accessed)(struct usm_event *event);
	int (*usm_virt_address_space_change)(struct usm_event *event);
	int (*usm_permissions_change)(struct usm_event *event);
	int (*usm_task_state_change)(int process, int state);
	int (*usm_new_process)(int process);
	int (*usm_new_task)(int process, int task);
	unsigned int (*get_pages)(struct page **pages, unsigned int offset, unsigned int max);
	void (*put_pages)(struct page **pages, unsigned int n);
	unsigned int (*get_used_pages)(struct page **pages, unsigned int offset, unsigned int max);
	void (*put_used_pages)(struct page **pages, unsigned int n);
	void (*usm_policy_free)(void);
	int (*usm_oom)(struct usm_event *event);
	int (*usm_hints)(const char *hint);
};

struct to_swap;
struct swap_device;
struct swap_node;

/*
 * Swap policy.  usm_swap: make victims leave: call swap_out() for each.  nr: how
 *   many usmd wants.  Return 0, or 1 when there is no victim.
 * cond_swap_out: may this victim leave now? 1: yes.
 */
struct usm_swap_policy_ops {
	int (*usm_init)(void);
	int (*usm_swap)(unsigned int nr);
	int (*cond_swap_out)(struct page *page);
	int (*usm_free)(struct usm_event *event);
	int (*usm_hints)(const char *hint);
	void (*usm_policy_free)(void);
};

/* The entry point of a plugin. usm_setup: pagesNumber pages at pagesList; 0 or 1. */
struct usm_ops {
	int (*usm_setup)(unsigned int pagesNumber);
	void (*usm_free)(void);
};

/*
 * Registration; only from usm_setup().  name: as in "assign NAME"; is_default:
 * the policy for processes that name this set only.  0, or 1 (bad name, name
 * taken within the set, mandatory callback missing, ABI too new), which usmd logs.
 */
#define usm_register_alloc_policy(ops, name, is_default)                                         \
	usm_register_alloc_policy_abi((ops), (name), (is_default), USM_POLICY_ABI,                \
				      sizeof(struct usm_alloc_policy_ops))
#define usm_register_swap_policy(ops, name, is_default)                                          \
	usm_register_swap_policy_abi((ops), (name), (is_default), USM_POLICY_ABI,                 \
				     sizeof(struct usm_swap_policy_ops))
int usm_register_alloc_policy_abi(const struct usm_alloc_policy_ops *ops, const char *name,
				  bool is_default, unsigned int abi, size_t size);
int usm_register_swap_policy_abi(const struct usm_swap_policy_ops *ops, const char *name,
				 bool is_default, unsigned int abi, size_t size);

/* From usm_alloc() only: event->paddr is the answer. 0: accepted. 1: refused (not a
 * frame of this set, not free, wrong event); the policy takes its choice back. */
int usmSubmitAllocEvent(struct usm_event *event);
/* After usmSubmitAllocEvent(): records in *page whom it serves. */
void usmLinkPage(struct page *page, struct usm_event *event);

/*
 * Swapping out.  A victim is described by a struct to_swap from malloc(), which
 * swap_out() takes over.  swap_out() returns 0 when the victim was accepted; it
 * may leave a little later, together with others.  Its frame comes back by
 * usm_pindex_free(), or, if it could not leave, by put_used_pages().
 */
struct swap_dev_ops {
	int (*swap_out)(struct to_swap *victim);
	int (*swap_in)(struct to_swap *page);
};
struct swap_device {
	struct swap_dev_ops swap_dev_ops;
	const char *name;
	int priority;
};
struct to_swap {
	struct page *page;
	int proc;
	unsigned long swapped_address;
	struct swap_device *swapDevice;
	struct swap_node *snode;
};

/* The device that usmd would use for a process; never NULL. */
struct swap_device *choose_swap_device(int process);
/* The kernel-module mechanism clears a mapping here; swap_out() does it by itself,
 * so this only checks that the page is resident: 0, or 1. */
int usm_clear_and_set(struct usm_event *event);

#ifdef __cplusplus
}
#endif

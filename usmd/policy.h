/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Policy sets: loading plugins and calling them.  Every answer is checked: a wrong
 * one is refused, counted and logged (at most once a second for each set).
 */
#pragma once

#include <usm/policy.h>

#include "core.h"
#include "pool.h"

#define POLICY_SET_MAX 8 /* policies that one set may register */

struct policy {
	char name[USM_NAME_MAX + 1];
	struct usm_alloc_policy_ops alloc; /* usm_alloc NULL: a swap policy only */
	struct usm_swap_policy_ops swap;
	bool has_swap, is_default;
	struct policy_set *set;
	_Atomic uint64_t nr_allocs, nr_errors, nsec_total, nsec_max;
};

struct process;

struct policy_set {
	char file[256];
	void *handle; /* dlopen */
	struct usm_ops *ops;
	struct page **pages_list;		       /* the plugin's pagesList */
	void (**evict_fallback)(struct usm_event *e); /* the plugin's usm_evict_fallback */
	struct policy policy[POLICY_SET_MAX];
	unsigned nr_policies;
	struct pool *pool;
	_Atomic uint64_t log_nsec;
};

/* Loads a plugin into pool: dlopen, checks, setup.  The file and the folders above it must
 * be root's (or ours) and not writable by others.  On failure *ret_message says why. */
int policy_set_load(struct pool *pool, const char *file, struct policy_set **ret,
		    char **ret_message);
struct policy_set *policy_set_unload(struct policy_set *set);
/* The policy of that name, of the set that serves the process, chooses which of its pages
 * leave; "": the one that places them; "none": no page leaves.  -ENOENT: not of its set,
 * the one that places them goes on. */
int policy_swap_by(struct process *p, const char *name);
/* The process is served by this pool from now on, by the policy of that name if its set has it. */
void policy_serve(struct process *p, struct pool *pool, const char *name);
struct policy *policy_set_find(struct policy_set *set, const char *name);
/* May we load code from there?  -EPERM with a message. */
int policy_file_check(const char *file, char **ret_message);

/*
 * Asks the pool's policy for frames for n pages of a process, one decision a page.
 * Returns how many it got (from the first page on); frames[i] is owned by (process,
 * vpn[i]).  Fewer: the policy has none free, or was wrong.  Outside latches.
 */
unsigned policy_alloc(struct pool *pool, uint32_t process, const uint64_t *vpn, unsigned n,
		      enum usm_event_type type, uint32_t *frames);
/* Up to max victims in the policy's order. The policy has let go of them. */
unsigned policy_victims(struct pool *pool, uint32_t *frames, unsigned max);
/* Victims that stay: back to the policy. */
void policy_give_back(struct pool *pool, const uint32_t *frames, unsigned n);
/* The pool is exhausted and nothing can be evicted.  True: the policy freed something. */
bool policy_oom(struct pool *pool, uint32_t process, uint64_t vpn);
/* For pool_flush(). */
void policy_frame_freed(struct pool *pool, struct page *page);
/* For listings: frames in the policy's order, from offset on. */
unsigned policy_list(struct pool *pool, bool used, unsigned offset, uint32_t *frames, unsigned max);

/* Each thread that calls policies: its record for the watchdog. */
void policy_thread(struct arena_worker *record);

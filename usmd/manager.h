/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The manager owns all state of the engine.  This header is what control.c (the
 * Varlink service) sees of it.  All functions are called on the engine's main
 * thread (the sd-event loop), never hold up faults, and return 0 or -errno;
 * *ret_message, where there is one, gets a malloc'd sentence for the user (what
 * was expected, what to do) on failure, or stays NULL.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#include "config.h"
#include "swap.h"

struct manager;

struct usm_status {
	char version[32];
	const char *mechanism; /* "userfault", "module" */
	const char *eviction;  /* "move", "lazyfree", "off" */
	const char *io;        /* "io_uring", "pread" */
	pid_t keeper_pid, engine_pid;
	uint64_t engine_restarts;
	uint64_t frames_total, frames_free; /* pages */
	uint64_t processes;
	uint64_t faults, evictions, swap_ins;
	uint64_t slots_total, slots_used;
	uint64_t errors, policy_errors, exceeded; /* exceeded: frames over the pool now */
	uint64_t last_recovery_usec;
};

struct usm_process_info {
	pid_t pid;
	uid_t uid;
	char name[USM_NAME_MAX + 1];
	char policy[USM_NAME_MAX + 1];
	uint64_t resident, swapped, unevictable; /* pages */
	const char *unevictable_reason;          /* NULL or a short text */
	uint64_t limit;                          /* pages, 0 = none */
	uint64_t faults, evictions, swap_ins;
	uint64_t fault_usec_p50, fault_usec_p99, fault_usec_max;
};

struct usm_frame_info {
	uint64_t frame; /* its address, as the policy sees it */
	uint64_t addr;  /* virtual address; used frames only */
	pid_t pid;
	char name[USM_NAME_MAX + 1];
	uint64_t age_msec;
};

struct usm_policy_info {
	char name[USM_NAME_MAX + 1];
	char file[256]; /* "" = shipped with usmd and loaded by name */
	uint64_t processes, allocs, errors, decision_nsec_mean, decision_nsec_max;
	bool set_aside, is_alloc, is_swap;
};

struct usm_assign_result {
	unsigned taken_over; /* managed processes of that name that now run under the policy */
	unsigned unmanaged;  /* running processes of that name that usmd does not manage */
};

/* What Monitor streams: one item a second while anyone listens. */
struct usm_monitor_item {
	uint64_t time_usec; /* CLOCK_REALTIME */
	struct usm_status status;
};

void manager_get_status(struct manager *m, struct usm_status *ret);
/* malloc'd array; *ret_n entries. */
int manager_list_processes(struct manager *m, struct usm_process_info **ret, unsigned *ret_n);

/*
 * The frames of the pools, used ones in the policy's order (next victim first).
 * pid 0 and name NULL: of all.  Gives at most count from offset on; *ret_total is
 * how many there are.  For free frames pid/name must be 0/NULL.  -ESRCH: no such
 * managed process.
 */
int manager_list_frames(struct manager *m, bool used, pid_t pid, const char *name, uint64_t offset,
			unsigned count, struct usm_frame_info **ret, unsigned *ret_n,
			uint64_t *ret_total);
int manager_list_policies(struct manager *m, struct usm_policy_info **ret, unsigned *ret_n);
unsigned manager_list_swaps(struct manager *m, struct usm_swap_info *info, unsigned max);
const struct usm_config *manager_config(struct manager *m);

/* which: 'b' both, 'a' alloc, 's' swap; policy NULL: keep; limit_bytes UINT64_MAX: keep;
 * allow: programs of this unit may be managed, whoever's they are; runtime: /run instead of
 * /etc.  -ENOENT: no such policy.  Takes effect at once for managed processes that it means. */
int manager_assign(struct manager *m, const char *name, char which, const char *policy,
		   uint64_t limit_bytes, bool allow, bool runtime, struct usm_assign_result *ret,
		   char **ret_message);
/* -ENOENT: no rule; -EPERM: an administrator's own file says it (message names FILE:LINE). */
int manager_unassign(struct manager *m, const char *name, char **ret_message);

/*
 * Asks for pages to leave: pid, or all of that name.  pages UINT64_MAX: all.
 * Asynchronous: done is called on the main thread, exactly once unless this
 * returns an error, with how many left; reason is NULL or says why not more.
 * -ESRCH: no such managed process.
 */
typedef void (*manager_evict_done_t)(void *userdata, uint64_t evicted, const char *reason);
int manager_evict(struct manager *m, pid_t pid, const char *name, uint64_t pages,
		  manager_evict_done_t done, void *userdata);

int manager_swap_add(struct manager *m, const char *path, uint64_t size_bytes, int priority,
		     char **ret_message);
/* Brings its pages back or moves them, in the background; -EBUSY while it goes on. */
int manager_swap_remove(struct manager *m, const char *path, char **ret_message);
int manager_policy_load(struct manager *m, const char *file, char **ret_message);
int manager_policy_unload(struct manager *m, const char *name, char **ret_message);
/* Reads the configuration again; on error the old one stays in force. */
int manager_reload(struct manager *m, char **ret_message);
/* The uid that owns a managed process; -ESRCH. */
int manager_process_uid(struct manager *m, pid_t pid, uid_t *ret);

sd_event *manager_event(struct manager *m);
const char *manager_runtime_dir(struct manager *m);

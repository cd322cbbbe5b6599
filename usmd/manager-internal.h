/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The manager's own fields; for manager*.c alone. */
#pragma once

#include <limits.h>

#include "attach.h"
#include "control.h"
#include "core.h"
#include "journal.h"
#include "keeper.h"
#include "manager.h"
#include "policy.h"
#include "pool.h"
#include "process.h"

#define EVICTIONS_MAX 32
/* A descriptor store that holds less is not worth it; and so many are left to children, whose
 * programs have been admitted. */
#define STORE_MIN  64u
#define STORE_ROOM 32u

/* A user's request to evict, of one or several processes. */
struct eviction {
	manager_evict_done_t done; /* NULL: free */
	void *userdata;
	int ticket[64];
	unsigned nr_tickets;
	uint64_t evicted;
	const char *reason;
};

struct manager {
	struct core core;
	struct usm_config *config;
	const struct keeper_options *options;
	sd_event *event;
	struct control *control;
	struct attach *attach;
	sd_event_source *beat, *main_io, *term, *hup, *intr, *keeper;
	char policy_dir[PATH_MAX];
	struct eviction eviction[EVICTIONS_MAX];
	struct journal_turn *journal_turn; /* ARENA_PROCESSES */
	uint64_t beats;
	bool orphaned; /* the keeper has ended */
	uint32_t stops_heard; /* of arena_header.nr_stops */
	bool stopping, stop_waits, pressure, default_swap_tried;
};

int manager_new(struct arena *a, const struct keeper_options *o, struct manager **ret);
/* Everything up to READY: swap devices, recovery, policies, threads, sockets. */
int manager_start(struct manager *m);
int manager_run(struct manager *m);
struct manager *manager_free(struct manager *m);

/* The pool of the set that has this policy, loaded if need be. -ENOENT with a message. */
int manager_pool(struct manager *m, const char *policy, struct pool **ret, char **ret_message);
/* Loads the sets of a dead engine's pools again. */
int manager_recover_pools(struct manager *m);
int manager_load_configured(struct manager *m);
/* Tunables and running processes after the configuration has changed. */
void manager_apply(struct manager *m);
int manager_add_swaps(struct manager *m);
/* Those of "usmctl swap add". What cannot be used is logged. */
void manager_add_kept_swaps(struct manager *m);
/* A dead engine's: the janitor is to go on with them. */
void manager_resume_removals(struct manager *m);
int manager_default_swap(struct manager *m);
/* What the rules say of a process: its policy, or the default; NULL: it is not to be managed. */
const char *manager_policy_for(struct manager *m, const struct arena_process *s,
			       struct usm_config_rule *ret_rule);
/* systemd's descriptor store, if there is one. Logged; -errno. */
int manager_start_store(struct manager *m);
/* usmd was told to end: is it a restart of the service, and can what is installed now go on? */
bool manager_may_hand_over(struct manager *m);
/* Ends the loop; programs stay as they are. */
void manager_hand_over(struct manager *m);
void manager_check_evictions(struct manager *m);
/* Who chooses what leaves of a process that has its pool; a name that cannot is logged. */
void manager_swap_by(struct process *p, const struct usm_config_rule *rule);

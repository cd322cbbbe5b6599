/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Configuration: usmd.conf, then the .conf files of conf.d in /usr/lib/usmd, /etc/usmd,
 * /run/usmd; or one file given by --config.  "directive value [value ...]", '#'
 * comments.  See usmd.conf(5) and docs/internals.md.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "lib/parse.h"

/* usmctl's own file in a conf.d directory.  Unlike any other it does not replace its
 * namesake of an earlier directory: both are read, the later directory's last. */
#define USM_CONFIG_ASSIGN_FILE "50-usmctl.conf"

#define USM_NAME_MAX 63 /* of processes, policies: no whitespace, no control characters */
#define USM_RULE_MAX (5 + USM_UNIT_MAX) /* "unit:NAME" */

enum usm_mechanism_kind { USM_MECHANISM_AUTO, USM_MECHANISM_USERFAULT, USM_MECHANISM_MODULE };
enum usm_eviction_kind { USM_EVICTION_AUTO, USM_EVICTION_MOVE, USM_EVICTION_LAZYFREE, USM_EVICTION_OFF };
enum usm_oom_kind { USM_OOM_WAIT, USM_OOM_EXCEED, USM_OOM_KILL };

/* "process NAME POLICY", "process alloc|swap NAME POLICY", "limit NAME SIZE",
 * "priority NAME N", merged by name, which may be "unit:NAME" or "user:NAME". */
struct usm_config_process {
	char name[USM_RULE_MAX + 1];
	uid_t uid;    /* of "user:NAME" */
	bool has_uid; /* there is such a user */
	char alloc_policy[USM_NAME_MAX + 1]; /* "" = not said */
	char swap_policy[USM_NAME_MAX + 1];  /* "" = not said */
	uint64_t limit_bytes;                /* 0 = none */
	bool has_limit;                      /* 0 was said: it lifts the limit of a wider rule, too */
	int priority;                        /* lower is evicted first; 0 when not said */
	bool has_priority;
	char *file; /* where the policy was said, for unassign's message */
	unsigned line;
};

struct usm_config_swap {
	char *path;
	uint64_t size_bytes; /* 0 = default size */
	int priority;        /* higher is used first; default 0 */
};

struct usm_config_policy_file {
	char *path;
};

struct usm_config_allow {
	char *path;     /* full path of the executable; NULL: "allow unit:NAME" */
	bool is_group;
	char *who;      /* user or group name, without '@', or the unit's */
	uid_t id;       /* uid, or gid when is_group */
};

struct usm_config {
	uint64_t memory_bytes;    /* shipped: 25 % of RAM */
	unsigned workers;         /* 1..64, shipped min(processors, 4) */
	unsigned faultaround;     /* pages, power of two 1..256, shipped 64 */
	unsigned low_permyriad;   /* watermarks: free frames of all, 1/10000 */
	unsigned high_permyriad;
	enum usm_mechanism_kind mechanism;
	enum usm_eviction_kind eviction;
	enum usm_oom_kind oom;
	unsigned grace_sec;       /* 1..86400, shipped 120 */
	char default_policy[USM_NAME_MAX + 1]; /* "none" = not managed */
	unsigned threshold_percent;            /* 0 = off */
	char threshold_policy[USM_NAME_MAX + 1];
	struct usm_config_process *processes;
	unsigned nr_processes;
	struct usm_config_swap *swaps;
	unsigned nr_swaps;
	struct usm_config_policy_file *policies;
	unsigned nr_policies;
	struct usm_config_allow *allows;
	unsigned nr_allows;
};

/* All defaults, nothing read.  -ENOMEM. */
int usm_config_new(struct usm_config **ret);
struct usm_config *usm_config_free(struct usm_config *c); /* accepts NULL, returns NULL */

/*
 * Reads one file (file != NULL) or the whole search path (file == NULL, below
 * root, "" in production; tests give a directory).  With a file, root is NULL or ""
 * for that file alone, or the runtime directory of a private instance, whose
 * conf.d/ is read after it (that is where its assignments are kept).  All errors
 * of all files are logged as "FILE:LINE: ..., expected ..." before it returns
 * -EINVAL; -errno if a file can't be read, which is logged with its name too, so
 * that the caller logs no more than what it does about it; -ENOMEM.  Warnings
 * (memory above RAM) are logged; with "mechanism module" that is an error.  Looks
 * up the users of "allow", which may block: not while anything waits.  *ret
 * untouched on failure.
 */
int usm_config_load(const char *file, const char *root, struct usm_config **ret);

/* The rule of that name, or NULL.  Exact match.  A rule may say only a limit or
 * a priority: then both policies are "". */
const struct usm_config_process *usm_config_find(const struct usm_config *c, const char *name);

/* Whom a rule may be for: as the daemon has read it, never as a client claims. */
struct usm_config_subject {
	const char *name;  /* basename of its executable */
	const char *argv0; /* basename of its first argument */
	const char *unit;  /* of the system's service manager; "": none */
	uid_t uid;
};

/* What all rules together say of one process. */
struct usm_config_rule {
	const char *alloc_policy, *swap_policy; /* "" = not said */
	const char *swap_name;                  /* the name of the rule that says swap_policy */
	uint64_t limit_bytes;
	int priority;
};

/*
 * The narrower a rule the more it counts, for each thing that it says: that of the
 * program's name, of argv[0], of its unit, of its unit's template, of its user.
 */
void usm_config_rule_for(const struct usm_config *c, const struct usm_config_subject *s,
			 struct usm_config_rule *ret);

/* Is the subject one of those that the name ("stressapptest", "unit:...", "user:...") of a
 * rule means?  uid: of the user, where it is one. */
bool usm_config_is_meant(const char *rule, uid_t uid, const struct usm_config_subject *s);

/* May uid (with gid and its groups, all in groups) have the program at exe_path, as
 * /proc/PID/exe names it, managed, or its unit?  Root: always. */
bool usm_config_allows(const struct usm_config *c, const char *exe_path, const char *unit, uid_t uid,
		       const gid_t *groups, unsigned nr_groups);

/*
 * assign/unassign: rewrites 50-usmctl.conf in dir (/etc/usmd/conf.d, /run/usmd/conf.d
 * or <runtime-dir>/conf.d of a private instance) atomically (temporary file, fsync,
 * rename).  All lines that do not assign this name stay as they are.  set: makes dir
 * if it is missing; policy NULL keeps, limit_bytes UINT64_MAX keeps, 0 says that there
 * is none.  which: 'b' both, 'a' alloc, 's' swap.  allow: the programs of this unit may be
 * managed, whoever's they are (false keeps).  unset: -ENOENT if the file does not
 * name it.  -EINVAL: bad name, policy or which, or the file has a wrong line (logged);
 * -ERANGE: a limit below 1 MiB or above 128 TiB; -errno.  One caller at a time.
 */
int usm_config_assign_set(const char *dir, const char *name, char which, const char *policy,
			  uint64_t limit_bytes, bool allow);
int usm_config_assign_unset(const char *dir, const char *name);

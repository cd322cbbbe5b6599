/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which policy serves whom: loading, finding, assigning. */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <systemd/sd-login.h>
#include <unistd.h>

#include "lib/cleanup.h"
#include "lib/log.h"
#include "lib/parse.h"
#include "manager-internal.h"

/* usmd's own first-fit and FIFO, where a policy is set aside. */
#define OWN_POLICY "builtin"

static int say(char **ret_message, int error, const char *fmt, const char *a, const char *b)
{
	if (ret_message && !*ret_message && asprintf(ret_message, fmt, a, b) < 0)
		*ret_message = NULL;
	return error;
}

static uint32_t pool_frames(struct manager *m)
{
	return (uint32_t)(m->config->memory_bytes / USM_PAGE_SIZE);
}

static int free_pool_number(struct manager *m)
{
	for (unsigned i = 0; i < ARENA_POOLS; i++)
		if (!m->core.pool[i])
			return (int)i;
	return -ENOSPC;
}

static int load_into(struct manager *m, unsigned number, const char *file, char **ret_message)
{
	struct policy_set *set = NULL;
	struct pool *pool = NULL;
	int r = pool_new(&m->core, number, pool_frames(m), &pool);

	if (r < 0)
		return say(ret_message, r, "No room for another pool of frames: %s%s", strerror(-r), "");
	if (file) {
		r = policy_set_load(pool, file, &set, ret_message);
		if (r < 0) {
			atomic_store(&pool->shared->in_use, 0);
			pool_free(pool);
			return r;
		}
		snprintf(pool->shared->file, sizeof(pool->shared->file), "%s", file);
	}
	snprintf(pool->shared->name, sizeof(pool->shared->name), "%s",
		 set ? set->policy[0].name : OWN_POLICY);
	pool->shared->set_aside = 0;
	m->core.pool[number] = pool;
	return 0;
}

static struct pool *loaded_pool(struct manager *m, const char *policy)
{
	/* The newest first: a loaded file shadows a shipped name. */
	for (unsigned i = ARENA_POOLS; i-- > 0;) {
		struct pool *pool = m->core.pool[i];

		if (!pool || pool->shared->set_aside)
			continue;
		if (pool->set ? policy_set_find(pool->set, policy) != NULL :
				!strcmp(pool->shared->name, policy))
			return pool;
	}
	return NULL;
}

int manager_pool(struct manager *m, const char *policy, struct pool **ret, char **ret_message)
{
	struct pool *pool = loaded_pool(m, policy);
	char file[PATH_MAX + USM_NAME_MAX + 8];
	int r;

	if (!pool) {
		for (unsigned i = 0; i < ARENA_POOLS; i++)
			if (m->core.pool[i] && m->core.pool[i]->shared->set_aside &&
			    !strcmp(m->core.pool[i]->shared->name, policy)) {
				*ret = m->core.pool[i];
				return 0;
			}
		r = free_pool_number(m);
		if (r < 0)
			return say(ret_message, r, "Too many policy files are loaded to load '%s'%s",
				   policy, "");
		snprintf(file, sizeof(file), "%s/%s.so", m->policy_dir, policy);
		if (strcmp(policy, OWN_POLICY) && access(file, F_OK) < 0)
			return say(ret_message, -ENOENT,
				   "There is no policy '%s' (no %s, and no loaded file registers it). "
				   "See usmctl list policies; load a file with usmctl policy load FILE",
				   policy, file);
		r = load_into(m, (unsigned)r, strcmp(policy, OWN_POLICY) ? file : NULL, ret_message);
		if (r < 0)
			return r;
		pool = loaded_pool(m, policy);
		if (!pool)
			return say(ret_message, -ENOENT, "%s does not register a policy '%s'", file,
				   policy);
	}
	*ret = pool;
	return 0;
}

int manager_recover_pools(struct manager *m)
{
	for (unsigned i = 0; i < ARENA_POOLS; i++) {
		struct arena_pool *shared = &m->core.arena->h->pool[i];
		_cleanup_free_ char *message = NULL;
		struct policy_set *set;
		struct pool *pool;
		int r;

		if (!atomic_load(&shared->in_use))
			continue;
		r = pool_new(&m->core, i, shared->nr, &pool);
		if (r < 0)
			return r;
		m->core.pool[i] = pool;
		if (!shared->file[0] || shared->set_aside)
			continue;
		if (policy_set_load(pool, shared->file, &set, &message) < 0) {
			shared->set_aside = 1;
			log_event(LOG_ERR,
				  &((struct usm_log_fields){.event = "policy",
							    .message_id = USM_MSG_SET_ASIDE,
							    .policy = shared->name}),
				  "%s; its processes go on with first-fit and FIFO",
				  message ? message : shared->file);
		}
	}
	return 0;
}

int manager_load_configured(struct manager *m)
{
	for (unsigned i = 0; i < m->config->nr_policies; i++) {
		const char *file = m->config->policies[i].path;
		_cleanup_free_ char *message = NULL;
		bool there = false;
		int r;

		for (unsigned k = 0; k < ARENA_POOLS; k++)
			there |= m->core.pool[k] && !strcmp(m->core.pool[k]->shared->file, file);
		if (there)
			continue;
		r = free_pool_number(m);
		if (r >= 0)
			r = load_into(m, (unsigned)r, file, &message);
		if (r < 0)
			return log_error_errno(r, "%s", message ? message : file);
	}
	return 0;
}

static struct usm_config_subject subject_of(const struct arena_process *s)
{
	return (struct usm_config_subject){
		.name = s->name, .argv0 = s->argv0, .unit = s->unit, .uid = s->rule_uid };
}

const char *manager_policy_for(struct manager *m, const struct arena_process *s,
			       struct usm_config_rule *rule)
{
	const struct usm_config_subject subject = subject_of(s);
	const char *policy;

	usm_config_rule_for(m->config, &subject, rule);
	if (rule->alloc_policy[0])
		policy = rule->alloc_policy;
	else if (m->pressure && m->config->threshold_policy[0])
		policy = m->config->threshold_policy;
	else
		policy = m->config->default_policy;
	/* A rule for swapping alone, or for a limit, still says that it is to be managed. */
	if (!strcmp(policy, "none") && rule->swap_policy[0])
		policy = rule->swap_policy;
	return strcmp(policy, "none") ? policy : NULL;
}

void manager_swap_by(struct process *p, const struct usm_config_rule *rule)
{
	struct arena_process *s = p->shared;

	if (policy_swap_by(p, rule->swap_policy) < 0)
		log_event(LOG_WARNING,
			  &((struct usm_log_fields){.event = "policy",
						    .message_id = USM_MSG_CONFIG,
						    .process = s->name,
						    .pid = s->pid,
						    .policy = rule->swap_policy}),
			  "%s (pid %d): 'process swap %s %s': a policy can choose only among pages "
			  "that a policy of the same file has placed; %s, which places them, chooses "
			  "what leaves",
			  s->name, s->pid, rule->swap_name, rule->swap_policy, s->policy);
}

/* May `policy` choose what leaves of the pages that the rule's, or the default, places? */
static int check_swap_policy(struct manager *m, const char *name, const char *policy,
			     char **ret_message)
{
	const struct usm_config_process *rule = usm_config_find(m->config, name);
	const char *alloc = rule && rule->alloc_policy[0] ? rule->alloc_policy :
							    m->config->default_policy;
	struct pool *pool;
	int r;

	if (!strcmp(policy, "none") || !strcmp(alloc, "none"))
		return 0;
	r = manager_pool(m, alloc, &pool, ret_message);
	if (r < 0 || (pool->set && policy_set_find(pool->set, policy)) || !strcmp(alloc, policy))
		return r;
	return say(ret_message, -EINVAL,
		   "'%s' cannot choose what leaves of pages that '%s' has placed: they come from "
		   "different policy files",
		   policy, alloc);
}

int manager_policy_load(struct manager *m, const char *file, char **ret_message)
{
	int r;

	if (file[0] != '/')
		return say(ret_message, -EINVAL, "'%s': expected the absolute path of a policy file%s",
			   file, "");
	for (unsigned i = 0; i < ARENA_POOLS; i++) {
		struct pool *pool = m->core.pool[i];

		if (!pool || strcmp(pool->shared->file, file))
			continue;
		if (!pool->shared->set_aside)
			return say(ret_message, -EEXIST, "%s is loaded already%s", file, "");
	}
	r = free_pool_number(m);
	if (r < 0)
		return say(ret_message, r, "Too many policy files are loaded; unload one first%s%s", "",
			   "");
	r = load_into(m, (unsigned)r, file, ret_message);
	if (r < 0)
		return r;
	log_event(LOG_NOTICE,
		  &((struct usm_log_fields){.event = "policy", .message_id = USM_MSG_POLICY_CHANGE}),
		  "Policy file %s is loaded", file);
	manager_apply(m);
	return 0;
}

int manager_policy_unload(struct manager *m, const char *name, char **ret_message)
{
	struct pool *pool = loaded_pool(m, name);

	if (!pool || !pool->set)
		return say(ret_message, -ENOENT,
			   "No loaded policy is called '%s'; see usmctl list policies%s", name, "");
	for (uint32_t i = 0; i < arena_processes(m->core.arena); i++)
		if (atomic_load(&m->core.process[i].shared->state) != PROCESS_FREE &&
		    atomic_load(&m->core.process[i].pool) == pool)
			return say(ret_message, -EBUSY,
				   "'%s' still serves processes (usmctl list processes); assign them "
				   "another policy first%s",
				   name, "");
	if (atomic_load(&pool->nr_used))
		return say(ret_message, -EBUSY,
			   "Pages are still resident in frames of '%s'; evict them first%s", name, "");
	/* Threads may be inside pool_of_frame(): the pool itself stays, without its code. */
	log_event(LOG_NOTICE,
		  &((struct usm_log_fields){
			  .event = "policy", .message_id = USM_MSG_POLICY_CHANGE, .policy = name}),
		  "Policy %s (%s) is unloaded", name, pool->shared->file);
	pool->shared->set_aside = 1;
	pool->set = policy_set_unload(pool->set);
	pool->shared->file[0] = '\0';
	snprintf(pool->shared->name, sizeof(pool->shared->name), "(unloaded)");
	return 0;
}

int manager_list_policies(struct manager *m, struct usm_policy_info **ret, unsigned *ret_n)
{
	struct usm_policy_info *list = calloc(ARENA_POOLS * POLICY_SET_MAX + 64, sizeof(*list));
	_cleanup_closedir_ DIR *d = opendir(m->policy_dir);
	struct dirent *de;
	unsigned n = 0, loaded;

	if (!list)
		return -ENOMEM;
	for (unsigned i = 0; i < ARENA_POOLS; i++) {
		struct pool *pool = m->core.pool[i];
		unsigned nr = pool && pool->set ? pool->set->nr_policies : 1;

		if (!pool || !strcmp(pool->shared->name, "(unloaded)"))
			continue;
		for (unsigned k = 0; k < nr; k++) {
			struct usm_policy_info *info = &list[n++];
			struct policy *p = pool->set ? &pool->set->policy[k] : NULL;
			uint64_t allocs = p ? atomic_load(&p->nr_allocs) : 0;

			snprintf(info->name, sizeof(info->name), "%s",
				 p ? p->name : pool->shared->name);
			snprintf(info->file, sizeof(info->file), "%s", pool->shared->file);
			info->set_aside = pool->shared->set_aside;
			info->is_alloc = !p || p->alloc.usm_alloc;
			info->is_swap = !p || p->has_swap || pool->set->evict_fallback;
			info->allocs = allocs;
			info->errors = p ? atomic_load(&p->nr_errors) : 0;
			info->decision_nsec_mean = allocs ? atomic_load(&p->nsec_total) / allocs : 0;
			info->decision_nsec_max = p ? atomic_load(&p->nsec_max) : 0;
			for (uint32_t j = 0; j < arena_processes(m->core.arena); j++) {
				struct process *q = &m->core.process[j];

				info->processes += atomic_load(&q->shared->state) == PROCESS_LIVE &&
						   atomic_load(&q->pool) == pool &&
						   !strcmp(q->shared->policy, info->name);
			}
		}
	}
	loaded = n;
	while (d && (de = readdir(d)) && n < ARENA_POOLS * POLICY_SET_MAX + 64) {
		size_t len = strlen(de->d_name);
		bool seen = false;

		if (len < 4 || len - 3 > USM_NAME_MAX || strcmp(de->d_name + len - 3, ".so"))
			continue;
		for (unsigned i = 0; i < loaded; i++)
			seen |= strlen(list[i].name) == len - 3 &&
				!strncmp(list[i].name, de->d_name, len - 3);
		if (seen)
			continue;
		memcpy(list[n].name, de->d_name, len - 3);
		list[n].is_alloc = list[n].is_swap = true;
		n++;
	}
	*ret = list;
	*ret_n = n;
	return 0;
}

/* --- assignments ------------------------------------------------------------------- */

static void assign_dir(struct manager *m, bool runtime, char *dir, size_t size)
{
	if (m->options->is_private)
		snprintf(dir, size, "%s/conf.d", m->options->runtime_dir);
	else
		snprintf(dir, size, "%s", runtime ? "/run/usmd/conf.d" : "/etc/usmd/conf.d");
}

/* Does a rule of that name mean this process, which runs and is not managed? */
static bool means_running(const char *name, uid_t uid, pid_t pid)
{
	_cleanup_free_ char *unit = NULL;
	char path[300], exe[PATH_MAX];
	struct usm_config_subject s = {.argv0 = ""};
	struct stat st;
	ssize_t len;

	snprintf(path, sizeof(path), "/proc/%d/exe", pid);
	len = readlink(path, exe, sizeof(exe) - 1);
	if (len <= 0)
		return false;
	exe[len] = '\0';
	s.name = strrchr(exe, '/') ? strrchr(exe, '/') + 1 : exe;
	*strrchr(path, '/') = '\0';
	s.uid = stat(path, &st) < 0 ? (uid_t)-1 : st.st_uid;
	s.unit = usm_rule_parse(name, NULL) == USM_RULE_UNIT && sd_pid_get_unit(pid, &unit) >= 0 ?
			 unit :
			 "";
	return usm_config_is_meant(name, uid, &s);
}

static unsigned count_unmanaged(struct manager *m, const char *name, uid_t uid)
{
	_cleanup_closedir_ DIR *d = opendir("/proc");
	struct dirent *de;
	unsigned n = 0;

	while (d && (de = readdir(d))) {
		pid_t pid = atoi(de->d_name);
		bool managed = false;

		if (pid <= 0 || !means_running(name, uid, pid))
			continue;
		for (uint32_t i = 0; i < arena_processes(m->core.arena) && !managed; i++)
			managed = atomic_load(&m->core.arena->process[i].state) == PROCESS_LIVE &&
				  m->core.arena->process[i].pid == pid;
		n += !managed;
	}
	return n;
}

int manager_assign(struct manager *m, const char *name, char which, const char *policy,
		   uint64_t limit_bytes, bool allow, bool runtime, struct usm_assign_result *ret,
		   char **ret_message)
{
	struct usm_assign_result result = {0};
	uid_t uid = (uid_t)-1;
	struct pool *pool;
	char dir[PATH_MAX];
	const char *what;
	int r;

	if (usm_rule_parse(name, &what) == USM_RULE_USER && usm_find_user(what, &uid) < 0)
		return say(ret_message, -ESRCH, "There is no user '%s'%s", what, "");
	if (policy && strcmp(policy, "none")) {
		r = manager_pool(m, policy, &pool, ret_message);
		if (r < 0)
			return r;
	}
	if (policy && which == 's') {
		r = check_swap_policy(m, name, policy, ret_message);
		if (r < 0)
			return r;
	}
	assign_dir(m, runtime, dir, sizeof(dir));
	r = usm_config_assign_set(dir, name, which, policy, limit_bytes, allow);
	if (r == -ERANGE)
		return say(ret_message, r, "The limit must be 1M or more%s%s", "", "");
	if (r < 0)
		return say(ret_message, r, "Cannot write the assignment to %s: %s", dir, strerror(-r));
	r = manager_reload(m, ret_message);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < arena_processes(m->core.arena); i++) {
		struct arena_process *s = &m->core.arena->process[i];
		struct usm_config_subject subject = subject_of(s);

		result.taken_over += atomic_load(&s->state) == PROCESS_LIVE &&
				     usm_config_is_meant(name, uid, &subject);
	}
	result.unmanaged = count_unmanaged(m, name, uid);
	log_event(LOG_NOTICE,
		  &((struct usm_log_fields){.event = "assign",
					    .message_id = USM_MSG_ASSIGN,
					    .process = name,
					    .policy = policy,
					    .count = result.taken_over,
					    .has_count = 1}),
		  "%s is assigned to %s", name, policy ? policy : "its policy, with another limit");
	*ret = result;
	return 0;
}

int manager_unassign(struct manager *m, const char *name, char **ret_message)
{
	const struct usm_config_process *rule = usm_config_find(m->config, name);
	char dir[PATH_MAX], where[PATH_MAX + 16];
	int r = -ENOENT;

	if (!rule)
		return say(ret_message, -ENOENT, "'%s' has no assignment; see usmctl list assignments%s",
			   name, "");
	for (int runtime = 1; runtime >= 0; runtime--) {
		int e;

		assign_dir(m, runtime, dir, sizeof(dir));
		e = usm_config_assign_unset(dir, name);
		if (e >= 0)
			r = 0;
		else if (e != -ENOENT)
			return say(ret_message, e, "Cannot change the assignments in %s: %s", dir,
				   strerror(-e));
	}
	if (r < 0) {
		snprintf(where, sizeof(where), "%s:%u", rule->file ? rule->file : "?", rule->line);
		return say(ret_message, -EPERM,
			   "'%s' is assigned by %s, which usmctl does not change; edit it, then: usmctl "
			   "reload",
			   name, where);
	}
	log_event(LOG_NOTICE,
		  &((struct usm_log_fields){
			  .event = "assign", .message_id = USM_MSG_ASSIGN, .process = name}),
		  "The assignment of %s is removed", name);
	return manager_reload(m, ret_message);
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A manager for tests of the control service: answers with fixed numbers and
 * remembers what it was asked for.  Processes: 100 "db" of uid 0, 101 "db" of
 * uid 4242, 102 "web" of uid 4242; 2500 used and 3 free frames.
 */
#pragma once

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/cleanup.h"
#include "manager.h"

#define FAKE_USER        4242
#define FAKE_USED_FRAMES 2500u

struct manager {
	sd_event *event;
	char last[256]; /* the last change that was asked for, with its arguments */
	/* Evictions wait here until fake_evict_finish, or are done at once. */
	bool evict_at_once, evict_later;
	manager_evict_done_t evict_done[64];
	void *evict_userdata[64];
	unsigned nr_evicts;
	sd_event_source *evict_source;
	unsigned nr_status; /* calls of manager_get_status */
	unsigned swap_removes;
	struct usm_config_process rules[3];
	struct usm_config config;
};

static inline void fake_manager_init(struct manager *m)
{
	*m = (struct manager){};
	if (sd_event_new(&m->event) < 0)
		abort();
	strcpy(m->rules[0].name, "db");
	strcpy(m->rules[0].alloc_policy, "policyOne");
	strcpy(m->rules[0].swap_policy, "policyOne");
	m->rules[0].limit_bytes = 1 << 20;
	m->rules[0].file = (char *)"/etc/usmd/usmd.conf";
	m->rules[0].line = 4;
	strcpy(m->rules[1].name, "limited");
	m->rules[1].limit_bytes = 4096;
	strcpy(m->rules[2].name, "off");
	strcpy(m->rules[2].alloc_policy, "none");
	m->config.processes = m->rules;
	m->config.nr_processes = 3;
	strcpy(m->config.default_policy, "none");
}

static inline void fake_manager_done(struct manager *m)
{
	sd_event_source_disable_unref(m->evict_source);
	sd_event_unref(m->event);
}

static inline void fake_evict_finish(struct manager *m, uint64_t evicted, const char *reason)
{
	unsigned n = m->nr_evicts;

	m->nr_evicts = 0;
	for (unsigned i = 0; i < n; i++)
		m->evict_done[i](m->evict_userdata[i], evicted, reason);
}

static int fake_message(char **ret_message, int err, const char *text)
{
	*ret_message = strdup(text);
	return err;
}

void manager_get_status(struct manager *m, struct usm_status *ret)
{
	m->nr_status++;
	*ret = (struct usm_status){
		.version = "9.8.7", .mechanism = "userfault", .eviction = "move", .io = "pread",
		.keeper_pid = 11, .engine_pid = 12, .engine_restarts = 1, .frames_total = 1000,
		.frames_free = 400, .processes = 3, .faults = 50, .evictions = 40, .swap_ins = 30,
		.slots_total = 2000, .slots_used = 7, .errors = 2, .policy_errors = 3, .exceeded = 4,
		.last_recovery_usec = 5,
	};
}

static const struct usm_process_info fake_processes[] = {
	{ .pid = 100, .uid = 0, .name = "db", .policy = "policyOne", .resident = 10, .swapped = 20,
	  .unevictable = 3, .unevictable_reason = "locked by mlock", .limit = 256, .faults = 5,
	  .evictions = 6, .swap_ins = 7, .fault_usec_p50 = 8, .fault_usec_p99 = 9,
	  .fault_usec_max = 10 },
	{ .pid = 101, .uid = FAKE_USER, .name = "db", .policy = "policyOne" },
	{ .pid = 102, .uid = FAKE_USER, .name = "web", .policy = "policyOne" },
};

int manager_list_processes(struct manager *m, struct usm_process_info **ret, unsigned *ret_n)
{
	(void)m;
	*ret = malloc(sizeof(fake_processes));
	memcpy(*ret, fake_processes, sizeof(fake_processes));
	*ret_n = ARRAY_SIZE(fake_processes);
	return 0;
}

static bool fake_process_exists(pid_t pid, const char *name)
{
	for (unsigned i = 0; i < ARRAY_SIZE(fake_processes); i++)
		if (pid != 0 ? fake_processes[i].pid == pid :
			       strcmp(fake_processes[i].name, name) == 0)
			return true;
	return false;
}

int manager_list_frames(struct manager *m, bool used, pid_t pid, const char *name, uint64_t offset,
			unsigned count, struct usm_frame_info **ret, unsigned *ret_n,
			uint64_t *ret_total)
{
	uint64_t total = used ? FAKE_USED_FRAMES : 3;
	unsigned n = (unsigned)(offset < total ? MIN((uint64_t)count, total - offset) : 0);

	(void)m;
	if ((pid != 0 || name) && !fake_process_exists(pid, name))
		return -ESRCH;
	*ret = calloc(n + 1, sizeof(**ret));
	for (unsigned i = 0; i < n; i++)
		(*ret)[i] = (struct usm_frame_info){ .frame = (offset + i) * 4096, .addr = 0x7000,
						     .pid = 102, .name = "web", .age_msec = 1500 };
	*ret_n = n;
	*ret_total = total;
	return 0;
}

int manager_list_policies(struct manager *m, struct usm_policy_info **ret, unsigned *ret_n)
{
	(void)m;
	*ret = calloc(2, sizeof(**ret));
	(*ret)[0] = (struct usm_policy_info){ .name = "policyOne", .is_alloc = true, .is_swap = true,
					      .allocs = 5, .decision_nsec_mean = 100 };
	(*ret)[1] = (struct usm_policy_info){ .name = "mine", .file = "/opt/mine.so",
					      .is_swap = true, .set_aside = true };
	*ret_n = 2;
	return 0;
}

unsigned manager_list_swaps(struct manager *m, struct usm_swap_info *info, unsigned max)
{
	(void)m;
	(void)max;
	info[0] = (struct usm_swap_info){ .path = "/var/lib/usmd/swap", .nr_slots = 2000,
					  .nr_used = 7, .nr_reads = 30, .nr_writes = 40,
					  .priority = -1, .direct = true, .uring = true };
	return 1;
}

const struct usm_config *manager_config(struct manager *m)
{
	return &m->config;
}

int manager_assign(struct manager *m, const char *name, char which, const char *policy,
		   uint64_t limit_bytes, bool allow, bool runtime, struct usm_assign_result *ret,
		   char **ret_message)
{
	snprintf(m->last, sizeof(m->last), "assign %s %c %s %lld%s %d", name, which, policy ?: "-",
		 (long long)limit_bytes, allow ? " allow" : "", runtime);
	if (policy && strcmp(policy, "policyOne") != 0)
		return -ENOENT;
	if (strcmp(name, "readonly") == 0)
		return fake_message(ret_message, -EROFS, "/etc/usmd is read-only");
	*ret = (struct usm_assign_result){ .taken_over = 2, .unmanaged = 1 };
	return 0;
}

int manager_unassign(struct manager *m, const char *name, char **ret_message)
{
	snprintf(m->last, sizeof(m->last), "unassign %s", name);
	if (strcmp(name, "db") == 0)
		return fake_message(ret_message, -EPERM, "/etc/usmd/usmd.conf:4 says it");
	return strcmp(name, "temporary") == 0 ? 0 : -ENOENT;
}

static int fake_on_evict(sd_event_source *source, void *userdata)
{
	(void)source;
	fake_evict_finish(userdata, 7, "the rest is locked");
	return 0;
}

int manager_evict(struct manager *m, pid_t pid, const char *name, uint64_t pages,
		  manager_evict_done_t done, void *userdata)
{
	snprintf(m->last, sizeof(m->last), "evict %d %s %lld", (int)pid, name ?: "-",
		 (long long)pages);
	if (!fake_process_exists(pid, name))
		return -ESRCH;
	if (m->evict_at_once) {
		done(userdata, pages, NULL);
		return 0;
	}
	if (m->nr_evicts == ARRAY_SIZE(m->evict_done))
		return -EAGAIN;
	m->evict_done[m->nr_evicts] = done;
	m->evict_userdata[m->nr_evicts++] = userdata;
	if (m->evict_later) {
		m->evict_source = sd_event_source_disable_unref(m->evict_source);
		return sd_event_add_defer(m->event, &m->evict_source, fake_on_evict, m);
	}
	return 0;
}

int manager_swap_add(struct manager *m, const char *path, uint64_t size_bytes, int priority,
		     char **ret_message)
{
	snprintf(m->last, sizeof(m->last), "swap add %s %lld %d", path, (long long)size_bytes,
		 priority);
	if (strcmp(path, "/foreign") == 0)
		return fake_message(ret_message, -EEXIST, "/foreign is not a swap file of usmd");
	return 0;
}

int manager_swap_remove(struct manager *m, const char *path, char **ret_message)
{
	(void)ret_message;
	snprintf(m->last, sizeof(m->last), "swap remove %s", path);
	if (strcmp(path, "/swap") != 0)
		return -ENOENT;
	/* Busy at first, then gone. */
	return m->swap_removes++ == 0 ? -EBUSY : -ENOENT;
}

int manager_policy_load(struct manager *m, const char *file, char **ret_message)
{
	snprintf(m->last, sizeof(m->last), "policy load %s", file);
	if (strcmp(file, "/opt/mine.so") != 0)
		return fake_message(ret_message, -EACCES, "the file must be root's");
	return 0;
}

int manager_policy_unload(struct manager *m, const char *name, char **ret_message)
{
	snprintf(m->last, sizeof(m->last), "policy unload %s", name);
	if (strcmp(name, "policyOne") == 0)
		return fake_message(ret_message, -EBUSY, "policyOne is in use");
	return strcmp(name, "mine") == 0 ? 0 : -ENOENT;
}

int manager_reload(struct manager *m, char **ret_message)
{
	strcpy(m->last, "reload");
	return fake_message(ret_message, -EINVAL, "/etc/usmd/usmd.conf:5: unknown directive");
}

int manager_process_uid(struct manager *m, pid_t pid, uid_t *ret)
{
	(void)m;
	for (unsigned i = 0; i < ARRAY_SIZE(fake_processes); i++)
		if (fake_processes[i].pid == pid) {
			*ret = fake_processes[i].uid;
			return 0;
		}
	return -ESRCH;
}

sd_event *manager_event(struct manager *m)
{
	return m->event;
}

const char *manager_runtime_dir(struct manager *m)
{
	(void)m;
	return "/run/usmd";
}

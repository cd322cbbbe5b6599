/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "janitor.h"
#include "lib/cleanup.h"
#include "lib/log.h"
#include "lib/parse.h"
#include "manager-internal.h"
#include "mechanism-userfault.h"
#include "reclaim.h"
#include "recover.h"
#include "service.h"
#include "store.h"
#include "worker.h"

#ifndef USM_POLICY_DIR
#define USM_POLICY_DIR "/usr/lib/usmd/policies"
#endif

#define BEAT_USEC 1000000ull
/* threshold PCT: back below this many percent less. */
#define THRESHOLD_HYSTERESIS 10
/* Of the memory that is available, what bringing pages back may use. */
#define STOP_MEMORY_PERCENT 90

sd_event *manager_event(struct manager *m)
{
	return m->event;
}

const char *manager_runtime_dir(struct manager *m)
{
	return m->options->runtime_dir;
}

const struct usm_config *manager_config(struct manager *m)
{
	return m->config;
}

/* --- configuration ----------------------------------------------------------------- */

static int load_config(struct manager *m, struct usm_config **ret)
{
	const struct keeper_options *o = m->options;

	return usm_config_load(o->config_file, o->is_private ? o->runtime_dir : "", ret);
}

void manager_apply(struct manager *m)
{
	struct core *c = &m->core;
	const struct usm_config *cfg = m->config;
	int64_t frames = (int64_t)(cfg->memory_bytes / USM_PAGE_SIZE);

	for (unsigned i = 0; i < ARENA_POOLS; i++)
		if (c->pool[i] && c->pool[i]->nr < frames) {
			log_warning("More memory takes effect when usmd is started again while no program is managed: its pools "
				    "have %u frames",
				    c->pool[i]->nr);
			frames = c->pool[i]->nr;
		}
	atomic_store(&c->nr_budget, frames);
	atomic_store(&c->low_frames, MAX(frames * cfg->low_permyriad / 10000, (int64_t)1));
	atomic_store(&c->high_frames, MAX(frames * cfg->high_permyriad / 10000, (int64_t)2));
	atomic_store(&c->faultaround, cfg->faultaround);
	atomic_store(&c->oom, cfg->oom);
	atomic_store(&c->grace_sec, cfg->grace_sec);
	for (uint32_t i = 0; i < arena_processes(m->core.arena); i++) {
		struct process *p = &c->process[i];
		struct arena_process *s = p->shared;
		struct usm_config_rule rule;
		_cleanup_free_ char *message = NULL;
		const char *policy;
		struct pool *pool;

		if (atomic_load(&s->state) != PROCESS_LIVE)
			continue;
		policy = manager_policy_for(m, s, &rule);
		s->limit_pages = rule.limit_bytes / USM_PAGE_SIZE;
		s->priority = rule.priority;
		if (!policy) {
			/* Not to be managed any more: everything goes back into it. */
			atomic_store(&p->release, true);
			continue;
		}
		if (strcmp(policy, s->policy) && manager_pool(m, policy, &pool, &message) >= 0) {
			/* Its resident pages stay where they are until they leave. */
			policy_serve(p, pool, policy);
			s->pool = pool->number;
			snprintf(s->policy, sizeof(s->policy), "%s", policy);
		}
		manager_swap_by(p, &rule);
	}
	reclaim_kick(c);
}

int manager_reload(struct manager *m, char **ret_message)
{
	struct usm_config *c = NULL, *old = m->config;
	char error[512];
	int r;

	usm_log_first_error(error, sizeof(error));
	r = load_config(m, &c);
	usm_log_first_error(NULL, 0);
	if (r < 0) {
		if (ret_message && asprintf(ret_message, "%s (the old configuration stays in force)",
					    error[0] ? error : strerror(-r)) < 0)
			*ret_message = NULL;
		return r;
	}
	if (c->mechanism != old->mechanism || c->eviction != old->eviction ||
	    c->workers != old->workers)
		log_notice("Changes of mechanism, eviction and workers take effect when usmd is "
			   "started again");
	m->config = c;
	usm_config_free(old);
	r = manager_load_configured(m);
	if (r >= 0)
		r = manager_add_swaps(m);
	manager_apply(m);
	return r;
}

/* A large swap file is made by the main thread, which does not hang as long as it gets on. */
static void beat(void *userdata)
{
	struct arena *a = userdata;

	atomic_fetch_add(&a->h->heartbeat, 1);
}

static int reserve_hash(void *userdata, uint32_t first, uint32_t n)
{
	struct arena *a = userdata;

	return arena_reserve(a, &a->hash[first], (size_t)n * sizeof(a->hash[0]));
}

/* --- attaching --------------------------------------------------------------------- */

static unsigned read_groups(pid_t pid, gid_t *groups, unsigned max)
{
	char path[64], line[4096], *s;
	_cleanup_fclose_ FILE *f = NULL;
	unsigned n = 0;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f)) {
		if (!strncmp(line, "Gid:", 4)) {
			unsigned real, effective;

			if (sscanf(line + 4, "%u %u", &real, &effective) == 2 && n < max)
				groups[n++] = effective;
		} else if (!strncmp(line, "Groups:", 7)) {
			for (s = line + 7; n < max;) {
				char *end;
				unsigned long g = strtoul(s, &end, 10);

				if (end == s)
					break;
				groups[n++] = (gid_t)g;
				s = end;
			}
		}
	}
	return n;
}

static int admit(void *userdata, struct arena_process *s, const char *exe, struct pool **ret_pool,
		 char *text, size_t size)
{
	struct manager *m = userdata;
	struct usm_config_rule rule;
	const char *policy = manager_policy_for(m, s, &rule);
	_cleanup_free_ char *message = NULL;
	gid_t groups[256];
	int r;

	text[0] = '\0';
	if (!policy)
		return -ENOENT;
	if (store_is_on() && store_room() < STORE_ROOM) {
		snprintf(text, size, "systemd's descriptor store is full (FileDescriptorStoreMax= of usmd.service)");
		log_warning("%s (pid %d) runs unmanaged: %s", s->name, s->pid, text);
		return -ENOSPC;
	}
	if (m->orphaned) {
		snprintf(text, size, "the keeper of usmd was killed; start usmd again");
		return -ESHUTDOWN;
	}
	if (m->stop_waits) {
		snprintf(text, size, "usmd is stopping");
		return -ESHUTDOWN;
	}
	if (s->uid && !usm_config_allows(m->config, exe, s->unit, s->uid, groups,
					 read_groups(s->pid, groups, ARRAY_SIZE(groups)))) {
		snprintf(text, size, "no 'allow %.60s' line lets this user have it managed", exe);
		return -EPERM;
	}
	r = manager_pool(m, policy, ret_pool, &message);
	if (r < 0) {
		snprintf(text, size, "its policy '%s' cannot be had", policy);
		log_warning("%s: %s", s->name, message ? message : strerror(-r));
		return r;
	}
	manager_default_swap(m);
	s->limit_pages = rule.limit_bytes / USM_PAGE_SIZE;
	s->priority = rule.priority;
	snprintf(s->policy, sizeof(s->policy), "%s", policy);
	return 0;
}

static void attached(void *userdata, struct process *p)
{
	struct manager *m = userdata;
	struct usm_config_rule rule;

	manager_policy_for(m, p->shared, &rule);
	manager_swap_by(p, &rule);
	/* It was greeted before that. */
	if (m->stopping)
		atomic_store(&p->release, true);
	eventfd_write(m->core.janitor_fd, 1);
}

/* --- the loop ---------------------------------------------------------------------- */

static void check_pressure(struct manager *m)
{
	struct core *c = &m->core;
	int64_t total = atomic_load(&c->nr_budget), percent;

	if (!m->config->threshold_percent || !total)
		return;
	percent = atomic_load(&c->nr_used) * 100 / total;
	if (!m->pressure && percent >= (int64_t)m->config->threshold_percent)
		m->pressure = true;
	else if (m->pressure &&
		 percent < (int64_t)m->config->threshold_percent - THRESHOLD_HYSTERESIS)
		m->pressure = false;
	else
		return;
	log_event(LOG_NOTICE,
		  &((struct usm_log_fields){.event = "policy",
					    .message_id = USM_MSG_POLICY_CHANGE,
					    .policy = m->pressure ? m->config->threshold_policy :
								    m->config->default_policy}),
		  "%lld %% of the memory is in use: the default policy is now %s", (long long)percent,
		  m->pressure ? m->config->threshold_policy : m->config->default_policy);
	manager_apply(m);
}

static unsigned live_processes(struct manager *m, uint64_t *ret_swapped)
{
	unsigned n = 0;

	*ret_swapped = 0;
	for (uint32_t i = 0; i < arena_processes(m->core.arena); i++) {
		struct process *p = &m->core.process[i];

		if (atomic_load(&p->shared->state) == PROCESS_FREE)
			continue;
		n++;
		*ret_swapped += (uint64_t)MAX(atomic_load(&p->nr_swapped), (int64_t)0);
	}
	return n;
}

static int on_main_fd(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct manager *m = userdata;
	uint64_t swapped;
	eventfd_t v;

	(void)s;
	(void)revents;
	eventfd_read(fd, &v);
	manager_check_evictions(m);
	if ((m->stopping || m->orphaned) && live_processes(m, &swapped) == 0)
		sd_event_exit(m->event, 0);
	return 0;
}

static uint64_t available_bytes(void)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/meminfo", "re");
	unsigned long long kb = 0;
	char line[128];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %llu", &kb) == 1)
			break;
	return kb * 1024;
}

/* Pages that may be brought back into so much memory. */
static uint64_t room_pages(uint64_t available)
{
	return available / 100 * STOP_MEMORY_PERCENT / USM_PAGE_SIZE;
}

/* All pages go back into their programs, which go on unmanaged. */
static void let_all_go(struct manager *m)
{
	bool force = atomic_load(&m->core.arena->h->stop) == STOP_FORCED;
	uint64_t room = room_pages(available_bytes()), swapped;
	unsigned n = live_processes(m, &swapped);

	m->stopping = true;
	log_event(LOG_NOTICE,
		  &((struct usm_log_fields){
			  .event = "stop", .message_id = USM_MSG_STOP, .count = n, .has_count = 1}),
		  "Stopping: bringing %llu MiB back into %u processes", (unsigned long long)(swapped >> 8),
		  n);
	atomic_store(&m->core.stopping, true);
	for (uint32_t i = 0; i < arena_processes(m->core.arena); i++) {
		struct process *p = &m->core.process[i];
		uint64_t pages = (uint64_t)MAX(atomic_load(&p->nr_swapped), (int64_t)0);

		if (atomic_load(&p->shared->state) != PROCESS_LIVE)
			continue;
		if (pages <= room)
			room -= pages;
		else if (force)
			process_kill(p, 0, "usmd is stopped by force and its pages do not fit into memory");
		atomic_store(&p->release, true);
	}
	eventfd_write(m->core.janitor_fd, 1);
	eventfd_write(m->core.main_fd, 1); /* there may be none */
}

/* again: told to stop once more than needed, so by force. */
static void begin_stop(struct manager *m, bool again)
{
	uint64_t swapped, available = available_bytes();
	unsigned n = live_processes(m, &swapped);

	if (!n) {
		sd_event_exit(m->event, 0);
		return;
	}
	if (swapped > room_pages(available) && !again) {
		if (!m->stop_waits)
			log_error("Cannot stop yet: %llu MiB are on swap devices, and only %llu MiB of "
				  "memory are available. The %u managed processes go on, and usmd stops as "
				  "soon as there is room. End some of them, or stop once more (systemctl "
				  "kill --kill-whom=main usmd) to kill those whose pages do not fit",
				  (unsigned long long)(swapped >> 8), (unsigned long long)(available >> 20),
				  n);
		m->stop_waits = true;
		return;
	}
	atomic_store(&m->core.arena->h->stop, again ? STOP_FORCED : STOP_TOLD);
	let_all_go(m);
}

static bool keeper_lives(struct manager *m)
{
	struct pollfd p = {.fd = m->core.arena->h->keeper_pidfd, .events = POLLIN};

	return poll(&p, 1, 0) == 0;
}

static void told_to_end(struct manager *m, bool again)
{
	if (!m->stopping && manager_may_hand_over(m))
		manager_hand_over(m);
	else
		begin_stop(m, again);
}

static int on_term(sd_event_source *s, const struct signalfd_siginfo *si, void *userdata)
{
	struct manager *m = userdata;
	uint32_t told = atomic_load(&m->core.arena->h->nr_stops);

	(void)s;
	(void)si;
	/* Who signals the whole service (systemctl kill) must not count twice, and signals that are
	 * pending become one: the keeper's word counts, as long as there is a keeper. */
	if (told == m->stops_heard && keeper_lives(m))
		return 0;
	m->stops_heard = told;
	told_to_end(m, m->stopping || m->stop_waits);
	return 0;
}

static int on_beat(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct manager *m = userdata;

	(void)usec;
	m->beats++;
	atomic_fetch_add(&m->core.arena->h->heartbeat, 1);
	for (uint32_t i = 0; i < arena_processes(m->core.arena); i++) {
		struct process *p = process_get(&m->core, i, m->core.process[i].generation);

		if (!p)
			continue;
		if (journal_is_due(&m->journal_turn[i], p->generation, m->beats))
			journal_say_sums(p);
		process_put(p);
	}
	usm_log_left_out();
	check_pressure(m);
	if (m->stop_waits && !m->stopping)
		begin_stop(m, false);
	sd_event_source_set_time_relative(s, BEAT_USEC);
	sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
	return 0;
}

static int on_hup(sd_event_source *s, const struct signalfd_siginfo *si, void *userdata)
{
	(void)s;
	(void)si;
	if (manager_reload(userdata, NULL) >= 0)
		log_event(LOG_NOTICE,
			  &((struct usm_log_fields){.event = "config", .message_id = USM_MSG_CONFIG}),
			  "The configuration is reloaded");
	else
		log_event(LOG_ERR,
			  &((struct usm_log_fields){.event = "config", .message_id = USM_MSG_CONFIG}),
			  "The configuration has errors; the old one stays in force");
	return 0;
}

static int on_keeper_end(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct manager *m = userdata;

	(void)fd;
	(void)revents;
	if (!m->stopping && store_is_on()) {
		log_error("The keeper has ended");
		manager_hand_over(m);
		return 0;
	}
	log_error("The keeper has ended. This engine (pid %d) goes on until the last managed process "
		  "has ended, but nothing would start another one, so it manages no new processes. "
		  "SIGTERM to it lets all go; then start usmd again",
		  getpid());
	sd_event_source_set_enabled(s, SD_EVENT_OFF);
	m->orphaned = true;
	eventfd_write(m->core.main_fd, 1);
	return 0;
}

/* --- life -------------------------------------------------------------------------- */

static void find_policy_dir(struct manager *m)
{
	const char *env = secure_getenv("USMD_POLICY_DIR");
	char exe[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
	char *slash;

	snprintf(m->policy_dir, sizeof(m->policy_dir), "%s", USM_POLICY_DIR);
	if (env) {
		snprintf(m->policy_dir, sizeof(m->policy_dir), "%s", env);
		return;
	}
	if (n <= 0)
		return;
	exe[n] = '\0';
	slash = strrchr(exe, '/');
	if (slash) {
		snprintf(slash, sizeof(exe) - (size_t)(slash - exe), "/policies");
		if (access(exe, F_OK) == 0)
			snprintf(m->policy_dir, sizeof(m->policy_dir), "%s", exe);
	}
}

int manager_new(struct arena *a, const struct keeper_options *o, struct manager **ret)
{
	struct manager *m = calloc(1, sizeof(*m));

	if (!m)
		return -ENOMEM;
	m->options = o;
	m->core.arena = a;
	m->core.epoll_fd = m->core.kick_fd = m->core.main_fd = m->core.janitor_fd = -1;
	m->journal_turn = calloc(ARENA_PROCESSES, sizeof(*m->journal_turn));
	if (!m->journal_turn || processes_new(&m->core) < 0) {
		manager_free(m);
		return -ENOMEM;
	}
	find_policy_dir(m);
	*ret = m;
	return 0;
}

struct manager *manager_free(struct manager *m)
{
	if (!m)
		return NULL;
	control_free(m->control);
	attach_free(m->attach);
	workers_stop(&m->core);
	reclaim_stop(&m->core);
	janitor_stop(&m->core);
	for (unsigned i = 0; i < ARENA_POOLS; i++)
		if (m->core.pool[i]) {
			policy_set_unload(m->core.pool[i]->set);
			pool_free(m->core.pool[i]);
		}
	usm_swap_free(m->core.swap);
	processes_free(&m->core);
	usm_config_free(m->config);
	free(m->journal_turn);
	sd_event_source_disable_unref(m->beat);
	sd_event_source_disable_unref(m->main_io);
	sd_event_source_disable_unref(m->term);
	sd_event_source_disable_unref(m->intr);
	sd_event_source_disable_unref(m->hup);
	sd_event_source_disable_unref(m->keeper);
	sd_event_unref(m->event);
	free(m);
	return NULL;
}

/* Many pages with one page of memory: the source of zero pages, always in the cache. */
static int map_zeros(struct core *c)
{
	_cleanup_close_ int fd = memfd_create("usmd-zero", MFD_CLOEXEC);
	char *base = mmap(NULL, USM_OPS_BATCH * USM_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);

	if (fd < 0 || ftruncate(fd, (off_t)USM_PAGE_SIZE) < 0 || base == MAP_FAILED)
		return -errno;
	for (unsigned i = 0; i < USM_OPS_BATCH; i++)
		if (mmap(base + i * USM_PAGE_SIZE, USM_PAGE_SIZE, PROT_READ,
			 MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0) == MAP_FAILED)
			return -errno;
	c->zeros = base;
	return 0;
}

static int open_descriptors(struct core *c)
{
	c->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	c->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	c->main_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	c->janitor_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (c->epoll_fd < 0 || c->kick_fd < 0 || c->main_fd < 0 || c->janitor_fd < 0)
		return -errno;
	return map_zeros(c);
}

static int add_events(struct manager *m)
{
	struct arena_header *h = m->core.arena->h;
	static const struct attach_ops template = {.admit = admit, .attached = attached};
	struct attach_ops ops = template;
	int r;

	ops.userdata = m;
	r = attach_new(&m->core, m->event, h->attach_fd, &ops, &m->attach);
	if (r >= 0)
		r = control_new(m, h->control_fd, &m->control);
	if (r >= 0)
		r = sd_event_add_io(m->event, &m->main_io, m->core.main_fd, EPOLLIN, on_main_fd, m);
	if (r >= 0)
		r = sd_event_add_signal(m->event, &m->term, SIGTERM, on_term, m);
	if (r >= 0)
		r = sd_event_add_signal(m->event, &m->hup, SIGHUP, on_hup, m);
	if (r >= 0)
		r = sd_event_add_time_relative(m->event, &m->beat, CLOCK_MONOTONIC, BEAT_USEC, 0,
					       on_beat, m);
	if (r >= 0)
		r = sd_event_add_io(m->event, &m->keeper, h->keeper_pidfd, EPOLLIN, on_keeper_end, m);
	return r;
}

int manager_start(struct manager *m)
{
	struct core *c = &m->core;
	struct arena_header *h = c->arena->h;
	bool again = atomic_load(&h->nr_restarts) > 0 || h->inherited;
	_cleanup_free_ uint8_t *stale = NULL;
	unsigned nr_stale = 0;
	int r;

	if (again) {
		r = recover_note_descriptors(c, m->options->keep, KEEPER_FDS, &stale, &nr_stale);
		if (r < 0)
			return log_error_errno(r, "Cannot look at the descriptors: %m");
		recover_missing(c);
	}
	r = manager_start_store(m);
	if (r < 0)
		return r;
	r = load_config(m, &m->config);
	if (r < 0)
		return r;
	if (m->config->mechanism == USM_MECHANISM_MODULE)
		return log_error_errno(-EOPNOTSUPP, "'mechanism module' needs usm.ko and /dev/usm, which "
						    "this system does not have; use 'mechanism auto'");
	/* No page of ours may wait for memory: what is touched stays. */
	if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) < 0)
		log_warning_errno(-errno, "Cannot lock usmd's memory, ignoring: %m");
	struct usm_swap_config sc = {
		.shared = &h->swap,
		.hash = c->arena->hash,
		.nr_hash = h->nr_hash,
		.reserve = reserve_hash,
		.progress = beat,
		.userdata = c->arena,
		.keep = store_add,
		.close = store_close,
	};
	r = usm_swap_new(&sc, &c->swap);
	if (r < 0)
		return log_error_errno(r, "Cannot open the swap devices: %m");
	if (again)
		recover_close_descriptors(c, stale, nr_stale);
	r = open_descriptors(c);
	if (r < 0)
		return log_error_errno(r, "Cannot open the engine's descriptors: %m");
	r = userfault_probe(c, h->dev_fd, m->config->eviction);
	if (r < 0)
		return r;
	r = sd_event_new(&m->event);
	if (r < 0)
		return r;
	if (again) {
		r = recover_processes(c);
		if (r < 0)
			return log_error_errno(r, "Cannot take over the processes: %m");
	}
	manager_apply(m);
	r = manager_recover_pools(m);
	if (r >= 0)
		r = manager_load_configured(m);
	if (r < 0)
		return r;
	/* Before any other thread runs: slots that are not counted yet look free. */
	if (again) {
		r = recover_frames(c);
		if (r < 0)
			return log_error_errno(r, "Cannot take over the resident pages: %m");
	}
	r = manager_add_swaps(m);
	if (r < 0)
		return r;
	manager_add_kept_swaps(m);
	manager_resume_removals(m);
	r = reclaim_start(c);
	if (r >= 0)
		r = workers_start(c, m->config->workers);
	if (r >= 0)
		r = janitor_start(c);
	if (r < 0)
		return log_error_errno(r, "Cannot start threads: %m");
	if (again) {
		uint64_t swapped;

		recover_wake(c);
		atomic_store(&h->recovery_usec, (now_nsec() - atomic_load(&h->death_nsec)) / 1000);
		log_event(LOG_NOTICE,
			  &((struct usm_log_fields){.event = "recover",
						    .message_id = USM_MSG_RECOVER,
						    .count = live_processes(m, &swapped),
						    .has_count = 1}),
			  "A new engine carries on after %llu us",
			  (unsigned long long)atomic_load(&h->recovery_usec));
	}
	manager_apply(m);
	r = add_events(m);
	if (r < 0)
		return log_error_errno(r, "Cannot set up the event loop: %m");
	m->stops_heard = atomic_load(&h->nr_stops);
	if (atomic_load(&h->stop) != STOP_NO)
		let_all_go(m);
	else if (m->stops_heard)
		told_to_end(m, false); /* as the one before us, who waited for room or came to nothing */
	return 0;
}

int manager_run(struct manager *m)
{
	struct usm_status s;
	char buf[32];

	if (!atomic_exchange(&m->core.arena->h->ready, 1)) {
		manager_get_status(m, &s);
		log_info("Ready: %s of memory, mechanism %s, eviction %s, %u workers, in %s",
			 usm_format_bytes(buf, sizeof(buf), s.frames_total * USM_PAGE_SIZE), s.mechanism,
			 s.eviction, m->config->workers, m->options->runtime_dir);
		kill(m->core.arena->h->keeper_pid, SIGUSR1);
	}
	return sd_event_loop(m->event);
}

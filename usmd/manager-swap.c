/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which swap devices there are: those of the configuration, by request, and the default one. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "lib/cleanup.h"
#include "lib/log.h"
#include "manager-internal.h"
#include "reclaim.h"

/* The default swap file takes at most this share of the free disk. */
#define DEFAULT_SWAP_DISK_PERCENT 10

static bool swap_in_use(struct manager *m, const char *path)
{
	for (unsigned i = 0; i < USM_SWAP_DEVICES; i++)
		if (m->core.arena->h->swap.device[i].in_use &&
		    !strcmp(m->core.arena->h->swap.device[i].path, path))
			return true;
	return false;
}

/* As large as the pool, at most a tenth of the free disk. */
static uint64_t default_swap_size(struct manager *m, const char *dir)
{
	uint64_t size = m->config->memory_bytes;
	struct statvfs st;

	if (statvfs(dir, &st) == 0)
		size = MIN(size, (uint64_t)st.f_bavail * st.f_frsize / 100 * DEFAULT_SWAP_DISK_PERCENT);
	return size & ~((1ull << 20) - 1);
}

/* --- what was added by request is kept ------------------------------------------------- */

static const char first_lines[] =
	"# Written by \"usmctl swap add\" and \"usmctl swap remove\"; see usmd.conf(5).\n";

static int kept_file(const struct manager *m, const char *suffix, char path[PATH_MAX])
{
	int n = snprintf(path, PATH_MAX, "%s/swap.conf%s", m->options->state_dir, suffix);

	return n < 0 || n >= PATH_MAX ? -ENAMETOOLONG : 0;
}

/* *ret is NULL where there is none. */
static int read_kept(const struct manager *m, struct usm_config **ret)
{
	char path[PATH_MAX];
	int r = kept_file(m, "", path);

	*ret = NULL;
	if (r < 0 || (access(path, F_OK) < 0 && errno == ENOENT))
		return r;
	return usm_config_load(path, NULL, ret);
}

/* Of a whole number of K, as slots begin at one. */
static void write_line(FILE *f, const char *path, uint64_t size_bytes, int priority)
{
	fprintf(f, "swap %s %lluK priority %d\n", path, (unsigned long long)(size_bytes / 1024), priority);
}

/* The file anew, without path, or with path as it is now: size_bytes is not 0. */
static int keep(const struct manager *m, const char *path, uint64_t size_bytes, int priority)
{
	char target[PATH_MAX], new[PATH_MAX];
	struct usm_config *old = NULL;
	_cleanup_fclose_ FILE *f = NULL;
	bool found = false;
	int r;

	r = kept_file(m, "", target);
	if (r >= 0)
		r = kept_file(m, ".new", new);
	if (r >= 0)
		r = read_kept(m, &old);
	if (r < 0)
		return r;
	for (unsigned i = 0; old && i < old->nr_swaps; i++)
		found |= strcmp(old->swaps[i].path, path) == 0;
	if (!found && !size_bytes) {
		usm_config_free(old);
		return 0;
	}
	f = fopen(new, "we");
	if (f) {
		fputs(first_lines, f);
		for (unsigned i = 0; old && i < old->nr_swaps; i++)
			if (strcmp(old->swaps[i].path, path) != 0)
				write_line(f, old->swaps[i].path, old->swaps[i].size_bytes,
					   old->swaps[i].priority);
		if (size_bytes)
			write_line(f, path, size_bytes, priority);
	}
	usm_config_free(old);
	/* Whole or not at all, also after a power failure. */
	if (!f || ferror(f) || fflush(f) != 0 || fsync(fileno(f)) < 0 || rename(new, target) < 0)
		return errno ? -errno : -EIO;
	return 0;
}

static bool can_be_kept(const char *path)
{
	return !strpbrk(path, " \t#");
}

/* --- adding and removing ---------------------------------------------------------------- */

static int add_file(struct manager *m, const char *path, uint64_t size_bytes, int priority,
		    char **ret_message)
{
	int r;

	r = usm_swap_add_file(m->core.swap, path, size_bytes, priority, false, ret_message);
	if (r >= 0)
		log_event(LOG_NOTICE,
			  &((struct usm_log_fields){.event = "swap", .message_id = USM_MSG_SWAP}),
			  "Swap file %s is in use", path);
	reclaim_kick(&m->core);
	return r;
}

int manager_swap_add(struct manager *m, const char *path, uint64_t size_bytes, int priority,
		     char **ret_message)
{
	int r, e;

	if (!size_bytes)
		size_bytes = default_swap_size(m, m->options->state_dir);
	r = add_file(m, path, size_bytes, priority, ret_message);
	if (r < 0)
		return r;
	e = can_be_kept(path) ? keep(m, path, size_bytes, priority) : -EINVAL;
	if (e < 0)
		log_warning_errno(e, "Swap file %s is used until usmd ends, but cannot be kept in %s/swap.conf: "
				     "%m, ignoring", path, m->options->state_dir);
	return r;
}

int manager_swap_remove(struct manager *m, const char *path, char **ret_message)
{
	int r = usm_swap_remove_begin(m->core.swap, path), e;

	if (r >= 0) {
		e = keep(m, path, 0, 0);
		if (e < 0)
			log_warning_errno(e, "Swap file %s is removed, but cannot be taken out of %s/swap.conf: "
					     "%m, ignoring", path, m->options->state_dir);
	}

	/* -ENOENT: not there, or begun before. */
	e = usm_swap_remove_finish(m->core.swap, path, false);
	if (e == -ENOENT && r < 0 && ret_message &&
	    asprintf(ret_message, "%s is not a swap file in use; see usmctl list swap", path) < 0)
		*ret_message = NULL;
	if (e == -EBUSY) {
		/* The janitor brings back what is on it. */
		atomic_store(&m->core.drain_swap, true);
		eventfd_write(m->core.janitor_fd, 1);
	}
	return e;
}

void manager_resume_removals(struct manager *m)
{
	struct usm_swap_info info[USM_SWAP_DEVICES];
	unsigned n = usm_swap_list(m->core.swap, info, USM_SWAP_DEVICES);

	for (unsigned i = 0; i < n; i++)
		if (info[i].draining)
			atomic_store(&m->core.drain_swap, true);
}

int manager_add_swaps(struct manager *m)
{
	for (unsigned i = 0; i < m->config->nr_swaps; i++) {
		const struct usm_config_swap *s = &m->config->swaps[i];
		_cleanup_free_ char *message = NULL;
		int r;

		if (swap_in_use(m, s->path))
			continue;
		r = add_file(m, s->path,
			     s->size_bytes ? s->size_bytes : default_swap_size(m, m->options->state_dir),
			     s->priority, &message);
		if (r < 0)
			return log_error_errno(r, "Swap file %s: %s", s->path,
					       message ? message : strerror(-r));
	}
	return 0;
}

void manager_add_kept_swaps(struct manager *m)
{
	struct usm_config *kept = NULL;
	int r = read_kept(m, &kept);

	if (r < 0)
		log_warning_errno(r, "%s/swap.conf: %m; swap files that were added by usmctl are not used, "
				     "ignoring", m->options->state_dir);
	for (unsigned i = 0; kept && i < kept->nr_swaps; i++) {
		const struct usm_config_swap *s = &kept->swaps[i];
		_cleanup_free_ char *message = NULL;

		if (swap_in_use(m, s->path))
			continue;
		r = add_file(m, s->path, s->size_bytes, s->priority, &message);
		if (r < 0)
			log_warning("Swap file %s: %s, ignoring", s->path, message ? message : strerror(-r));
	}
	usm_config_free(kept);
}

int manager_default_swap(struct manager *m)
{
	char path[USM_SWAP_PATH_MAX + 1];
	_cleanup_free_ char *message = NULL;
	uint64_t size;
	int r;

	if (m->config->nr_swaps || m->default_swap_tried)
		return 0;
	m->default_swap_tried = true;
	if (snprintf(path, sizeof(path), "%s/swap", m->options->state_dir) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	if (swap_in_use(m, path))
		return 0;
	size = default_swap_size(m, m->options->state_dir);
	if (size)
		r = usm_swap_add_file(m->core.swap, path, size, 0, true, &message);
	else
		r = asprintf(&message, "no space in %s, where it may take %u %% of what is free",
			     m->options->state_dir, DEFAULT_SWAP_DISK_PERCENT) < 0 ? -ENOMEM : -ENOSPC;
	if (r < 0)
		log_event_errno(LOG_ERR, r,
				&((struct usm_log_fields){.event = "swap", .message_id = USM_MSG_SWAP}),
				"No swap file: %s. Programs keep their pages in memory until one is "
				"added: usmctl swap add PATH SIZE",
				message ? message : strerror(-r));
	return r;
}

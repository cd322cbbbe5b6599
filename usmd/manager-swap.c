/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which swap devices there are: those of the configuration, by request, and the default one. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/statvfs.h>

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

int manager_swap_add(struct manager *m, const char *path, uint64_t size_bytes, int priority,
		     char **ret_message)
{
	int r;

	if (!size_bytes)
		size_bytes = default_swap_size(m, m->options->state_dir);
	r = usm_swap_add_file(m->core.swap, path, size_bytes, priority, false, ret_message);
	if (r >= 0)
		log_event(LOG_NOTICE,
			  &((struct usm_log_fields){.event = "swap", .message_id = USM_MSG_SWAP}),
			  "Swap file %s is in use", path);
	reclaim_kick(&m->core);
	return r;
}

int manager_swap_remove(struct manager *m, const char *path, char **ret_message)
{
	int r = usm_swap_remove_begin(m->core.swap, path), e;

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
		r = manager_swap_add(m, s->path, s->size_bytes, s->priority, &message);
		if (r < 0)
			return log_error_errno(r, "Swap file %s: %s", s->path,
					       message ? message : strerror(-r));
	}
	return 0;
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

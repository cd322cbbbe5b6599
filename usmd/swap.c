/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The list of swap devices: adding, removing, recovery after an engine's death. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "kill-point.h"
#include "lib/cleanup.h"
#include "lib/log.h"
#include "swap-file.h"
#include "swap-ops.h"
#include "swap.h"

/* Also among devices that are being added: [base, base + nr) with 1 <= base. */
static bool range_is_free(const struct usm_swap *s, uint64_t base, uint64_t nr)
{
	if (base < 1 || nr < 1 || base + nr > s->config.nr_hash)
		return false;
	for (unsigned i = 0; i < USM_SWAP_DEVICES; i++) {
		const struct usm_swap_device *d = &s->device[i];

		if (d->state != USM_SWAP_FREE && base < (uint64_t)d->base + d->nr_slots &&
		    d->base < base + nr)
			return false;
	}
	return true;
}

static void rebuild_order_locked(struct usm_swap *s)
{
	s->nr_order = 0;
	for (unsigned i = 0; i < USM_SWAP_DEVICES; i++) {
		struct usm_swap_device *d = &s->device[i];
		unsigned k;

		if (d->state != USM_SWAP_ACTIVE)
			continue;
		for (k = s->nr_order++; k > 0 && s->order[k - 1]->priority < d->priority; k--)
			s->order[k] = s->order[k - 1];
		s->order[k] = d;
	}
}

static void set_state(struct usm_swap_device *d, enum usm_swap_state state)
{
	atomic_store_explicit(&d->state, state, memory_order_release);
}

static int device_init(struct usm_swap_device *d)
{
	int r;

	d->refs = calloc(d->nr_slots, sizeof(*d->refs));
	if (!d->refs)
		return -ENOMEM;
	r = usm_swap_slots_new(d->nr_slots, &d->slots);
	if (r < 0) {
		free((void *)d->refs);
		d->refs = NULL;
	}
	return r;
}

static void device_done(struct usm_swap_device *d)
{
	d->slots = usm_swap_slots_free(d->slots);
	free((void *)d->refs);
	d->refs = NULL;
	d->nr_reads = d->nr_writes = d->nr_errors = 0;
	d->failed_nsec = 0;
}

/* One device of a dead engine.  1: it is ours; 0: its entry is damaged and dropped. */
static int device_adopt(struct usm_swap *s, struct usm_swap_device *d)
{
	struct usm_swap_device_shared *sh = usm_swap_shared_of(s, d);
	uint32_t in_use = sh->in_use;
	int r;

	memcpy(d->path, sh->path, sizeof(d->path));
	d->path[USM_SWAP_PATH_MAX] = 0;
	d->fd = sh->fd;
	d->base = sh->base;
	d->nr_slots = sh->nr_slots;
	d->priority = sh->priority;
	d->ops = &usm_swap_file_ops;
	if (in_use > USM_SWAP_IN_DRAIN || d->fd < 0 || !range_is_free(s, d->base, d->nr_slots))
		r = -EINVAL;
	else
		r = d->ops->open(d, NULL);
	if (r == -EINVAL || r == -EBADF) {
		/* Its slots are unknown from now on, so whoever names one is found by
		 * usm_swap_ref_recovered. */
		log_error_errno(r, "swap device %u (%s): damaged entry: %m, ignoring",
				(unsigned)(d - s->device), d->path);
		sh->in_use = 0;
		d->fd = -1;
		usm_swap_count_error(&s->nr_errors);
		return 0;
	}
	if (r < 0)
		return r;
	r = d->ops->quiesce(d);
	if (usm_swap_is_transient(r))
		return r;
	if (r < 0) {
		/* What the dead engine was writing may still arrive, in slots that nobody names.  As
		 * long as none is given out again it does no harm. */
		log_event_errno(LOG_ERR, r,
				&((struct usm_log_fields){ .event = "swap",
							   .message_id = USM_MSG_SWAP }),
				"swap file %s: waiting for a dead engine's writes: %m; it takes no "
				"more pages, and what is on it is brought back", d->path);
		usm_swap_count_error(&s->nr_errors);
		in_use = USM_SWAP_IN_DRAIN;
		sh->in_use = in_use;
	}
	r = device_init(d);
	if (r < 0)
		return r;
	set_state(d, in_use == USM_SWAP_IN_DRAIN ? USM_SWAP_DRAINING : USM_SWAP_ACTIVE);
	return 1;
}

int usm_swap_new(const struct usm_swap_config *config, struct usm_swap **ret)
{
	struct usm_swap *s;
	int r;

	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->config = *config;
	pthread_mutex_init(&s->list_mutex, NULL);
	for (unsigned i = 0; i < USM_SWAP_DEVICES; i++) {
		pthread_mutex_init(&s->device[i].slots_mutex, NULL);
		s->device[i].fd = -1;
	}
	r = usm_swap_rings_new(config->no_uring, &s->rings);
	for (unsigned i = 0; r >= 0 && i < USM_SWAP_DEVICES; i++) {
		s->device[i].rings = s->rings;
		s->device[i].config = &s->config;
		if (config->shared->device[i].in_use)
			r = device_adopt(s, &s->device[i]);
	}
	if (r < 0) {
		usm_swap_free(s);
		return r;
	}
	rebuild_order_locked(s);
	*ret = s;
	return 0;
}

struct usm_swap *usm_swap_free(struct usm_swap *s)
{
	if (!s)
		return NULL;
	/* The descriptors belong to the shared part and stay open. */
	for (unsigned i = 0; i < USM_SWAP_DEVICES; i++) {
		device_done(&s->device[i]);
		pthread_mutex_destroy(&s->device[i].slots_mutex);
	}
	pthread_mutex_destroy(&s->list_mutex);
	usm_swap_rings_free(s->rings);
	free(s);
	return NULL;
}

static bool path_is_valid(const char *path)
{
	size_t n = strnlen(path, USM_SWAP_PATH_MAX + 1);

	if (path[0] != '/' || n > USM_SWAP_PATH_MAX || path[n - 1] == '/')
		return false;
	for (size_t i = 0; i < n; i++)
		if ((unsigned char)path[i] < ' ' || path[i] == 0x7f)
			return false;
	return true;
}

static int complain(char **ret_message, int error, const char *text)
{
	char *copy;

	if (ret_message) {
		copy = strdup(text);
		if (copy)
			*ret_message = copy;
	}
	return error;
}

static struct usm_swap_device *find_path_locked(struct usm_swap *s, const char *path)
{
	for (unsigned i = 0; i < USM_SWAP_DEVICES; i++)
		if (s->device[i].state != USM_SWAP_FREE && strcmp(s->device[i].path, path) == 0)
			return &s->device[i];
	return NULL;
}

/* Takes an entry and a range of numbers, so that the file can be made without the
 * mutex. */
static int claim_locked(struct usm_swap *s, const char *path, uint64_t nr_slots, int priority,
			struct usm_swap_device **ret, char **ret_message)
{
	struct usm_swap_device *d = NULL;
	uint64_t base = 0;

	if (find_path_locked(s, path))
		return complain(ret_message, -EEXIST, "this file is a swap device already");
	for (unsigned i = 0; i < USM_SWAP_DEVICES && !d; i++)
		if (s->device[i].state == USM_SWAP_FREE)
			d = &s->device[i];
	if (!d)
		return complain(ret_message, -E2BIG,
				"all swap devices are in use (16); remove one first");
	/* First fit: a free range begins at 1 or where a device ends. */
	if (range_is_free(s, 1, nr_slots))
		base = 1;
	for (unsigned i = 0; i < USM_SWAP_DEVICES && !base; i++) {
		const struct usm_swap_device *o = &s->device[i];

		if (o->state != USM_SWAP_FREE &&
		    range_is_free(s, (uint64_t)o->base + o->nr_slots, nr_slots))
			base = (uint64_t)o->base + o->nr_slots;
	}
	if (!base)
		return complain(ret_message, -E2BIG, "more slots than can be numbered; choose a "
				"smaller size, or remove a swap device first");
	d->ops = &usm_swap_file_ops;
	d->fd = -1;
	d->base = (uint32_t)base;
	d->nr_slots = (uint32_t)nr_slots;
	d->priority = priority;
	d->direct = d->uring = false;
	memcpy(d->path, path, strlen(path) + 1);
	set_state(d, USM_SWAP_BUSY);
	*ret = d;
	return 0;
}

static int random_secret(uint8_t *secret)
{
	/* Up to 256 bytes come whole or not at all. */
	while (getrandom(secret, USM_SWAP_SECRET, 0) != USM_SWAP_SECRET)
		if (errno != EINTR)
			return -errno;
	return 0;
}

static int device_open(struct usm_swap *s, struct usm_swap_device *d, bool is_default,
		       char **ret_message)
{
	struct usm_swap_device_shared *sh = usm_swap_shared_of(s, d);
	int r;

	r = random_secret(sh->secret);
	if (r < 0)
		return r;
	if (s->config.reserve) {
		r = s->config.reserve(s->config.userdata, d->base, d->nr_slots);
		if (r < 0)
			return complain(ret_message, r, "no memory for the checksums of so "
					"many slots; choose a smaller size");
	}
	r = device_init(d);
	if (r < 0)
		return r;
	r = d->ops->open(d, ret_message);
	if (r < 0) {
		device_done(d);
		return r;
	}
	sh->fd = d->fd;
	sh->base = d->base;
	sh->nr_slots = d->nr_slots;
	sh->priority = d->priority;
	sh->is_default = is_default;
	memcpy(sh->path, d->path, sizeof(sh->path));
	return 0;
}

int usm_swap_add_file(struct usm_swap *s, const char *path, uint64_t size_bytes, int priority,
		      bool is_default, char **ret_message)
{
	struct usm_swap_device *d = NULL;
	uint64_t nr_slots;
	int r;

	if (!path_is_valid(path))
		return complain(ret_message, -EINVAL, "expected an absolute path of at most 255 "
				"characters that names a file");
	if (size_bytes < USM_SWAP_FILE_MIN_BYTES)
		return complain(ret_message, -EINVAL, "expected a size of at least 1M");
	nr_slots = usm_swap_file_slots(size_bytes);

	pthread_mutex_lock(&s->list_mutex);
	r = claim_locked(s, path, nr_slots, priority, &d, ret_message);
	pthread_mutex_unlock(&s->list_mutex);
	if (r < 0)
		return r;

	r = device_open(s, d, is_default, ret_message);

	pthread_mutex_lock(&s->list_mutex);
	if (r == 0) {
		KILL_POINT("swap-adding");
		/* Last in the arena, before the first slot can be allocated. */
		atomic_store(&usm_swap_shared_of(s, d)->in_use, USM_SWAP_IN_USE);
		set_state(d, USM_SWAP_ACTIVE);
		rebuild_order_locked(s);
		if (s->config.keep)
			s->config.keep(d->fd);
	} else {
		set_state(d, USM_SWAP_FREE);
	}
	pthread_mutex_unlock(&s->list_mutex);
	return r;
}

int usm_swap_remove_begin(struct usm_swap *s, const char *path)
{
	struct usm_swap_device *d;

	pthread_mutex_lock(&s->list_mutex);
	d = find_path_locked(s, path);
	if (d && usm_swap_is_live(d)) {
		atomic_store(&usm_swap_shared_of(s, d)->in_use, USM_SWAP_IN_DRAIN);
		set_state(d, USM_SWAP_DRAINING);
		rebuild_order_locked(s);
	} else {
		d = NULL;
	}
	pthread_mutex_unlock(&s->list_mutex);
	return d ? 0 : -ENOENT;
}

static uint32_t nr_used(struct usm_swap_device *d)
{
	uint32_t n;

	pthread_mutex_lock(&d->slots_mutex);
	n = usm_swap_slots_used(d->slots);
	pthread_mutex_unlock(&d->slots_mutex);
	return n;
}

int usm_swap_remove_finish(struct usm_swap *s, const char *path, bool unlink_file)
{
	struct usm_swap_device *d;
	int r = 0;

	pthread_mutex_lock(&s->list_mutex);
	d = find_path_locked(s, path);
	if (!d || !usm_swap_is_live(d)) {
		r = -ENOENT;
	} else if (d->state != USM_SWAP_DRAINING || nr_used(d) > 0) {
		r = -EBUSY;
	} else {
		atomic_store(&usm_swap_shared_of(s, d)->in_use, 0);
		set_state(d, USM_SWAP_BUSY);
	}
	pthread_mutex_unlock(&s->list_mutex);
	if (r < 0)
		return r;

	KILL_POINT("swap-removed");
	d->ops->free(d, unlink_file);
	if (s->config.close)
		s->config.close(d->fd);
	else
		close(d->fd);
	d->fd = -1;

	pthread_mutex_lock(&s->list_mutex);
	atomic_fetch_add(&s->nr_errors, d->nr_errors);
	device_done(d);
	set_state(d, USM_SWAP_FREE);
	pthread_mutex_unlock(&s->list_mutex);
	return 0;
}

unsigned usm_swap_list(struct usm_swap *s, struct usm_swap_info *info, unsigned max)
{
	unsigned n = 0;

	pthread_mutex_lock(&s->list_mutex);
	for (unsigned i = 0; i < USM_SWAP_DEVICES && n < max; i++) {
		struct usm_swap_device *d = &s->device[i];

		if (!usm_swap_is_live(d))
			continue;
		info[n] = (struct usm_swap_info){
			.nr_slots = d->nr_slots,
			.nr_used = nr_used(d),
			.nr_reads = d->nr_reads,
			.nr_writes = d->nr_writes,
			.nr_errors = d->nr_errors,
			.priority = d->priority,
			.draining = d->state == USM_SWAP_DRAINING,
			.direct = d->direct,
			.uring = d->uring,
		};
		memcpy(info[n++].path, d->path, sizeof(d->path));
	}
	pthread_mutex_unlock(&s->list_mutex);
	return n;
}

void usm_swap_totals(struct usm_swap *s, uint64_t *ret_slots, uint64_t *ret_used,
		     uint64_t *ret_errors)
{
	uint64_t slots = 0, used = 0, errors = s->nr_errors;

	pthread_mutex_lock(&s->list_mutex);
	for (unsigned i = 0; i < USM_SWAP_DEVICES; i++) {
		struct usm_swap_device *d = &s->device[i];
		uint32_t u;

		if (!usm_swap_is_live(d))
			continue;
		u = nr_used(d);
		/* What is free on a draining device cannot be had. */
		slots += d->state == USM_SWAP_DRAINING ? u : d->nr_slots;
		used += u;
		errors += d->nr_errors;
	}
	pthread_mutex_unlock(&s->list_mutex);
	*ret_slots = slots;
	*ret_used = used;
	*ret_errors = errors;
}

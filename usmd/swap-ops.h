/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Internal to swap: what a kind of swap device provides, and the engine's side
 * of one device.  Files are the one kind today.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "swap.h"
#include "swap-io.h"
#include "swap-slots.h"

#define USM_SWAP_PAGE 4096u

struct usm_swap_device;

struct usm_swap_device_ops {
	const char *name;

	/*
	 * d->fd < 0: creates or reuses what d->path names, d->nr_slots slots, and
	 * sets d->fd.  d->fd >= 0: an engine died; checks that the descriptor still
	 * is what the arena says.  Sets d->data_offset, d->direct and d->uring
	 * either way.  *ret_message as in usm_swap_add_file.  Called once, no lock
	 * held; on failure d->fd is as before.
	 */
	int (*open)(struct usm_swap_device *d, char **ret_message);

	/*
	 * Returns once nothing that a dead engine submitted is in flight; -errno: that
	 * cannot be told, so that no slot may be given out.  Called after open of a recovered device, before any other thread uses it.
	 */
	int (*quiesce)(struct usm_swap_device *d);

	/*
	 * All slots belong to d.  Waits for all pages and sets each result to 0 or
	 * -errno.  Any thread, no lock held; the caller holds a reference to each slot.
	 */
	void (*write)(struct usm_swap_device *d, struct usm_swap_io *io, unsigned n);
	void (*read)(struct usm_swap_device *d, struct usm_swap_io *io, unsigned n);

	/*
	 * The device is removed: closes d->fd, removes the file if unlink_file.
	 * Not called when the engine merely stops.
	 */
	void (*free)(struct usm_swap_device *d, bool unlink_file);
};

/*
 * FREE -> BUSY (claimed under the list mutex, opened without it) -> ACTIVE ->
 * DRAINING -> BUSY (closed without the mutex) -> FREE.  The state is stored with
 * release order after the fields that it makes valid; a slot's holder may read them
 * without a lock, because a device with a referenced slot does not go away.
 */
enum usm_swap_state {
	USM_SWAP_FREE = 0,
	USM_SWAP_BUSY,
	USM_SWAP_ACTIVE,
	USM_SWAP_DRAINING,
};

/* in_use of struct usm_swap_device_shared: any value but 0 is a device; draining
 * is kept there so that it survives the engine too. */
#define USM_SWAP_IN_USE   1u
#define USM_SWAP_IN_DRAIN 2u

struct usm_swap_device {
	const struct usm_swap_device_ops *ops;
	struct usm_swap_rings *rings; /* of struct usm_swap, shared by all devices */
	const struct usm_swap_config *config; /* of struct usm_swap */
	_Atomic int state;            /* enum usm_swap_state */
	int fd;
	int priority;
	uint32_t base, nr_slots;
	uint64_t data_offset; /* of the first slot, in bytes */
	bool direct;          /* O_DIRECT */
	bool uring;           /* batches may go through a ring */
	char path[USM_SWAP_PATH_MAX + 1];

	pthread_mutex_t slots_mutex;  /* slots; taken after the list mutex */
	struct usm_swap_slots *slots;
	_Atomic uint32_t *refs; /* nr_slots; 0 <-> the slot is free in slots */

	_Atomic uint64_t nr_reads, nr_writes, nr_errors; /* pages */
	_Atomic uint64_t failed_nsec; /* when a write failed last, 0: never */
};

struct usm_swap {
	struct usm_swap_config config;
	struct usm_swap_rings *rings;
	/* Guards states, ranges and the order; taken before a device's slots_mutex. */
	pthread_mutex_t list_mutex;
	struct usm_swap_device device[USM_SWAP_DEVICES]; /* entry i is shared->device[i] */
	struct usm_swap_device *order[USM_SWAP_DEVICES]; /* ACTIVE ones, priority first */
	unsigned nr_order;
	_Atomic uint64_t nr_errors; /* of devices that are gone, and misuse */
};

static inline struct usm_swap_device_shared *usm_swap_shared_of(struct usm_swap *s,
								struct usm_swap_device *d)
{
	return &s->config.shared->device[d - s->device];
}

static inline bool usm_swap_is_live(const struct usm_swap_device *d)
{
	return atomic_load_explicit(&d->state, memory_order_acquire) >= USM_SWAP_ACTIVE;
}

static inline void usm_swap_count_error(_Atomic uint64_t *counter)
{
	atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

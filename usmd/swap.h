/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Swap devices and their slots.
 *
 * A slot is one page's place on a swap device.  Slots of all devices share one
 * number space (1 .. USM_SLOT_MAX; 0 is "no slot"): a device owns the range
 * [base, base + nr_slots).  Slots are reference-counted: one reference for each
 * SWAPPED or FILLING(slot) page-table entry, one for a frame that remembers its
 * clean slot.  The counts live in the engine's own memory and are not
 * journalled; a new engine gets them from its scan of the page tables
 * (usm_swap_ref_recovered).  What must survive the engine, each slot's checksum
 * and the device table, lies in the arena (struct usm_swap_shared).
 *
 * A slot's state on disk is trusted only together with its checksum: the low and
 * high half of XXH3_128bits_withSeed-style hash with the device's secret.
 *
 * Thread safety: every function may be called by any thread of the engine unless
 * it says otherwise.  Lock order: the device list mutex, then a device's bitmap
 * mutex; neither is held across I/O.
 */
#pragma once

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define USM_SWAP_DEVICES  16u
#define USM_SLOT_NONE     0u
#define USM_SWAP_PATH_MAX 255u
#define USM_SWAP_SECRET   192u /* bytes, XXH3's default secret size */

struct usm_hash {
	uint64_t lo, hi;
};

/* One device as the arena keeps it.  in_use is stored last when a device is
 * added and cleared first when it is removed. */
struct usm_swap_device_shared {
	_Atomic uint32_t in_use;
	int32_t fd;    /* O_DIRECT file, number in the table that keeper and engine share */
	uint32_t base; /* first slot */
	uint32_t nr_slots;
	int32_t priority; /* higher is used first */
	uint32_t is_default; /* the shipped one in the state directory */
	uint8_t secret[USM_SWAP_SECRET];
	char path[USM_SWAP_PATH_MAX + 1];
};

/* The part of the arena that belongs to swap.  hash[] is indexed by slot, sparse:
 * the caller maps nr_hash entries and allocates (fallocate) what a device needs
 * through the reserve callback before the device is used. */
struct usm_swap_shared {
	struct usm_swap_device_shared device[USM_SWAP_DEVICES];
};

struct usm_swap; /* the engine's side: bitmaps, counts, rings */

struct usm_swap_config {
	struct usm_swap_shared *shared;
	struct usm_hash *hash; /* nr_hash entries in the arena */
	uint32_t nr_hash;      /* highest slot number + 1 */
	/* Makes hash[first .. first+n) real memory; 0 or -errno (-ENOSPC). */
	int (*reserve)(void *userdata, uint32_t first, uint32_t n);
	/* Making a file takes as long as the disk takes: called all the while; or NULL. */
	void (*progress)(void *userdata);
	void *userdata;
	/* NULL: nothing and close().  Descriptors of devices: it is in the shared part now, and
	 * outlives the engine; it is not any more. */
	void (*keep)(int fd);
	void (*close)(int fd);
	bool no_uring;         /* forced pread/pwrite (tests, seccomp) */
};

/* One page of a batch. buf is page-aligned. */
struct usm_swap_io {
	uint32_t slot;
	void *buf;
	int result; /* out: 0, or -errno; reads: -EBADMSG on a wrong checksum */
};

/*
 * Opens the engine's side.  On a first start no device is in_use.  After an
 * engine's death: adopts the devices that are, and first *quiesces* each: the
 * dead engine's writes may still be in flight, so before any slot is read,
 * written or freed it punches the file's scratch block, which waits for them
 * (docs/swap.md); where that fails, the device is being removed from now on.  Falls back from io_uring to pread/pwrite with one
 * warning.  -errno.
 */
int usm_swap_new(const struct usm_swap_config *config, struct usm_swap **ret);
struct usm_swap *usm_swap_free(struct usm_swap *s); /* stops, keeps files and shared part */

/*
 * Adds a file device.  The file is created with O_EXCL, mode 0600, filled by
 * writing once so that no extent is unwritten, or reused if it carries our
 * header, is a regular file of the right owner and not open elsewhere (flock);
 * anything else is refused.  Copy-on-write file systems get NOCOW, or are refused.
 * O_DIRECT where the file system has it.  A header page (magic, version, uuid)
 * and a scratch block come before the slots.
 * Errors: -EEXIST (path is ours already or a foreign file), -EINVAL (size below
 * 1 MiB, bad path), -ENOSPC, -EOPNOTSUPP (file system), -E2BIG (too many devices
 * or slots), -errno.  *ret_message, if not NULL, gets a malloc'd sentence that
 * says what was expected and what to do.
 */
int usm_swap_add_file(struct usm_swap *s, const char *path, uint64_t size_bytes, int priority,
		      bool is_default, char **ret_message);

/* No new slots from it.  The device goes once its last slot is unreferenced:
 * usm_swap_remove_finish returns 0 then, -EBUSY before.  Unlinks the file if
 * unlink_file.  -ENOENT. */
int usm_swap_remove_begin(struct usm_swap *s, const char *path);
int usm_swap_remove_finish(struct usm_swap *s, const char *path, bool unlink_file);
bool usm_swap_slot_draining(struct usm_swap *s, uint32_t slot); /* its device is being removed */

/*
 * Allocates up to n slots with one reference each, contiguous where it can
 * (next-fit in runs), from the highest-priority devices first; a device whose write
 * failed in the last ten seconds comes after all others.  Returns how many were put
 * into slots[] (0 = full), never negative.
 */
unsigned usm_swap_alloc(struct usm_swap *s, uint32_t *slots, unsigned n);
void usm_swap_ref(struct usm_swap *s, uint32_t slot);
/* Drops a reference; at 0 the slot is free at once. */
void usm_swap_unref(struct usm_swap *s, uint32_t slot);
unsigned usm_swap_refs(struct usm_swap *s, uint32_t slot);

/* Recovery, single-threaded, between usm_swap_new and the first alloc: counts one
 * reference.  -EINVAL if no device owns the slot (the entry that names it is invalid). */
int usm_swap_ref_recovered(struct usm_swap *s, uint32_t slot);

/* Checksum of a page for a slot's device. */
struct usm_hash usm_swap_hash(struct usm_swap *s, uint32_t slot, const void *page);
/* Is page what the slot holds? (for dropping an unchanged page without a write) */
bool usm_swap_slot_matches(struct usm_swap *s, uint32_t slot, const void *page);

/*
 * Writes / reads a batch and waits for all of it.  Runs of consecutive slots whose
 * buffers are consecutive too become one request.  Write: stores each slot's
 * checksum in the arena before the data goes out; a short write is continued, then
 * an error.  io[].result tells for each page; returns 0 if all succeeded, else the
 * first error.  buffers must be page-aligned; O_DIRECT alignment is the caller's.
 */
int usm_swap_write(struct usm_swap *s, struct usm_swap_io *io, unsigned n);
int usm_swap_read(struct usm_swap *s, struct usm_swap_io *io, unsigned n);

/* The kernel had no memory for a transfer, or was interrupted, again and again: nothing is wrong
 * with the device, and the same may succeed a moment later. */
static inline bool usm_swap_is_transient(int error)
{
	return error == -EINTR || error == -EAGAIN || error == -ENOMEM;
}

struct usm_swap_info {
	char path[USM_SWAP_PATH_MAX + 1];
	uint64_t nr_slots, nr_used;
	uint64_t nr_reads, nr_writes, nr_errors; /* pages */
	int priority;
	bool draining, direct, uring;
};
/* Fills up to max entries, returns their number. */
unsigned usm_swap_list(struct usm_swap *s, struct usm_swap_info *info, unsigned max);
void usm_swap_totals(struct usm_swap *s, uint64_t *ret_slots, uint64_t *ret_used, uint64_t *ret_errors);

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Batches of page I/O on a descriptor: runs of consecutive slots become one
 * request each, several runs go through an io_uring, a single one through one
 * pread or pwrite.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "swap.h"

struct usm_swap_rings; /* a fixed set of rings, lent to one batch at a time */

struct usm_swap_target {
	int fd;
	uint32_t base;        /* slot at ... */
	uint64_t data_offset; /* ... this offset in bytes */
	bool uring;           /* may use a ring */
};

/* Opens the rings, or none if the kernel refuses them or no_uring: then every
 * batch uses pread and pwrite (one warning).  -ENOMEM. */
int usm_swap_rings_new(bool no_uring, struct usm_swap_rings **ret);
/* Accepts NULL; no batch runs. */
struct usm_swap_rings *usm_swap_rings_free(struct usm_swap_rings *r);
bool usm_swap_rings_enabled(const struct usm_swap_rings *r);

/*
 * Transfers n pages and waits for all; io[].result is 0 or -errno for each.  Short
 * transfers go on, EINTR, EAGAIN and ENOMEM are retried, -EIO if short ones lead nowhere
 * or the file is too short.  A run that fails half-way has result 0 for the pages before.
 * Any thread, several at once.
 */
void usm_swap_io_batch(struct usm_swap_rings *r, const struct usm_swap_target *t, bool write,
		       struct usm_swap_io *io, unsigned n);

/* One transfer of len bytes (whole pages), to the same rules.  0 or -errno. */
int usm_swap_io_sync(int fd, bool write, void *buf, uint64_t len, uint64_t offset);

#ifdef USM_TESTING
/*
 * Fault injection: transfer, if set, sees each finished transfer on both paths and
 * returns what is to be believed instead of res (bytes or -errno); it may change
 * the bytes that were read.  ring_init and ring_submit, if set, are asked first and
 * fail the set-up of a ring or a submission with -errno.
 */
struct usm_swap_test {
	ssize_t (*transfer)(bool write, uint64_t offset, void *buf, uint64_t len, ssize_t res);
	int (*ring_init)(void);
	int (*ring_submit)(void);
	_Atomic uint64_t nr_ring_requests, nr_sync_requests;
};
extern struct usm_swap_test usm_swap_test;
#endif

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The userfault mechanism: thin calls on a userfaultfd of another process.
 * Meaning of the errors (docs/internals.md): -EAGAIN an event is unread: read it,
 * look the page up again, retry.  -EEXIST the page is present.  -ENOENT nothing
 * registered is mapped there.  -ESRCH the address space is gone.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core.h"

/* Not in the kernel headers of Debian 12. */
#ifndef UFFD_FEATURE_MOVE
#define UFFD_FEATURE_MOVE (1 << 16)
#endif

/* Opens /dev/userfaultfd and finds out what the kernel can do: sets core->register_mode
 * and evict_modes for the wanted eviction.  -errno (logged). */
int userfault_probe(struct core *c, int dev_fd, enum usm_eviction_kind wanted);
/* UFFDIO_API with all events on a program's u1; without on its guard u2. */
int userfault_handshake(int fd, bool events, bool move);
/* Installs n pages from src; *ret_done pages were installed even if it fails. */
int userfault_copy(int fd, uint64_t vpn, const void *src, unsigned n, unsigned *ret_done);
int userfault_wake(int fd, uint64_t vpn, uint64_t n);
int userfault_protect(int fd, uint64_t vpn, uint64_t n, bool on);
/* mode: UFFDIO_REGISTER_MODE_*; core->register_mode for a program's memory. */
int userfault_register(int fd, uint64_t start, uint64_t end, unsigned mode);
int userfault_unregister(int fd, uint64_t start, uint64_t end);

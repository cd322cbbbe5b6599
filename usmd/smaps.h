/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a forked child does not get from its parent, by /proc/PID/smaps. */
#pragma once

#include <stdint.h>
#include <sys/types.h>

struct vpn_range {
	uint64_t first, end;
};

/*
 * The private ranges that MADV_DONTFORK leaves out and MADV_WIPEONFORK empties in a child, in
 * order.  *ret: malloc'd.  -errno.  It walks the program's page tables: a millisecond for
 * each 100 MiB.
 */
int smaps_uninherited(pid_t pid, struct vpn_range **ret, unsigned *ret_n);

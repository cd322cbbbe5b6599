/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A new engine takes over what the dead one left in the arena: one validating scan
 * of all page tables gives slot references, frame ownership and free nodes; what was
 * half done is carried on or undone (docs/internals.md, "Recovery").
 */
#pragma once

#include "core.h"

/*
 * Before the new engine opens anything: which descriptors nothing in the arena names:
 * the dead engine's sockets, rings, epolls.  *ret: malloc'd, one byte a descriptor.
 */
int recover_note_descriptors(struct core *c, const uint8_t *keep, unsigned nr_keep, uint8_t **ret,
			     unsigned *ret_n);
/* After usm_swap_new(), which has waited for the dead engine's writes. */
void recover_close_descriptors(struct core *c, const uint8_t *stale, unsigned n);
/* Another keeper's arena: systemd may not have got all that it names.  Before the others. */
void recover_missing(struct core *c);

/* Step 1, before policies are loaded: processes, journals, slots.  -errno. */
int recover_processes(struct core *c);
/* Step 2, with the pools there and no other thread running: tells the policies of every resident page, oldest first,
 * drops frames that no page names.  Publishes the processes to the workers. */
int recover_frames(struct core *c);
/* Step 3, all threads running: agents are listened to, faults that were read and not served
 * fault again. */
void recover_wake(struct core *c);

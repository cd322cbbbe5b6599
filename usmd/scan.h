/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One look at a process's mappings and pages from outside: the safety net under the tagger's
 * hooks and the kernel's events.
 */
#pragma once

struct core;
struct process;

/*
 * Registers what is new (all mappings after one was unmapped or moved); every other second also
 * takes in what is present and not managed; frees the frames of pages that madvise() has given
 * back.  During the handshake by the main thread, afterwards by the janitor only.  -errno.
 */
int scan_mappings(struct core *c, struct process *p);

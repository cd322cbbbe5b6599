/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Processes that descend from one another by fork, and the pages that they share.
 *
 * A shared page has one frame: it is RESIDENT with its first owner, and NONE with the others.
 * Who lets it go hands the frame over to one of those who still have the page, so that what is
 * in memory is accounted for at every moment.  Copies are accounted for where they are made
 * (fault.c); the janitor finds what escapes both (raw clone() calls, events that overtake).
 */
#pragma once

#include <stdint.h>

#include "process.h"

/*
 * The next relative of p at number *i or above that was protected at a fork as p was, with a
 * reference (process_put()); NULL: no more.  *i is behind it then.
 */
struct process *family_next(struct process *p, uint32_t *i);
/*
 * p lets its pages in [first, end) go: frames of those that relatives have too are theirs from now
 * on, and NONE with p.  p's latch is held exclusively; relatives' latches are only tried.
 */
void family_hand_over(struct process *p, uint64_t first, uint64_t end);

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Serving faults: from an entry's state to an installed page. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "worker.h"

/*
 * Is it the agent's own, on a page of the operation that it has in hand?  Then what frees frames
 * waits for it.  Which thread is the agent is the program's word: so it is believed for what was
 * asked of the agent, and for nothing else.
 */
bool fault_is_agents(const struct process *p, const struct fault *f);

/* Serves one fault, with neighbours where that pays. Never fails: what cannot be served
 * now is woken, and faults again. */
void fault_serve(struct worker *w, struct process *p, const struct fault *f);

/*
 * Brings the page back (SWAPPED) or takes it in (NONE and present: adopt) for the
 * janitor.  lend: without frames, when the pool has no say any more.  0, -ENOMEM (no frame), -EAGAIN
 * (busy), -ENOENT, -ESRCH, -EIO.
 */
int fault_bring_back(struct worker *w, struct process *p, uint64_t vpn, bool lend);
/* One SWAPPED page that may be present already gets a frame, beyond the pool if need be: it is LAZY
 * then, if it is present.  As above. */
int fault_take_in(struct worker *w, struct process *p, uint64_t vpn);
int fault_adopt(struct process *p, uint64_t vpn);

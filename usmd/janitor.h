/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The janitor: one thread that looks after processes every 100 ms while there are
 * any: registers new mappings (the safety net under the tagger's hooks), adopts
 * pages that are present but not managed, protects threads' control blocks, lets
 * go of children without an agent, brings pages back, and tears down what has ended.
 */
#pragma once

#include "core.h"

struct process;

int janitor_start(struct core *c);
void janitor_stop(struct core *c);

/* One look at a process's mappings: registers what is new, takes in what is present.
 * During the handshake by the main thread, afterwards by the janitor only.  -errno. */
int janitor_scan(struct core *c, struct process *p);

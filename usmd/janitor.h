/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The janitor: one thread that looks after processes every 100 ms while there are
 * any: scans their mappings (scan.h), protects threads' control blocks, lets go of
 * children without an agent and of what has ended (detach.h), brings pages back.
 */
#pragma once

#include "core.h"

int janitor_start(struct core *c);
void janitor_stop(struct core *c);

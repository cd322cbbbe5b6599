/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Named points at which a test lets the engine die (tests/native/kill-points.bats): at every
 * publication in the arena, and between the steps of faults, evictions, swap I/O, forks, attaching
 * and detaching.  Compiled in by make VARIANT=kill-points CPPFLAGS=-DUSM_KILL_POINTS only.
 */
#pragma once

#ifdef USM_KILL_POINTS
/* Any thread, holding anything. */
void kill_point(const char *name);
#define KILL_POINT(name) kill_point(name)
#else
#define KILL_POINT(name) ((void)0)
#endif

/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef void (*usm_maps_visit_t)(void *userdata, uint64_t start, uint64_t end,
				 bool private_writable);
/* Calls fn for each mapping of the process in /proc/self/maps, which is read through buf.  fn may
 * change mappings: what is read later shows it.  Any thread, the agent's too; survives without
 * /proc, visiting nothing. */
void usm_maps_visit(char *buf, size_t size, usm_maps_visit_t fn, void *userdata);

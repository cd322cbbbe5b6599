/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <stdbool.h>

/*
 * Gives up all capabilities that usmd does not need, for this process and what it starts, for good.
 * others_folders: runtime and state directories may belong to somebody else than root.
 * Logged; -errno.
 */
int privileges_drop(bool others_folders);

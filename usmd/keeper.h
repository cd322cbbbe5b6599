/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The keeper: the service's main process.  Single-threaded, parses nothing, loads
 * nothing.  It holds the arena and, through a descriptor table that it shares with
 * the engine, everything that must survive it; it starts the engine, and starts it
 * again when it dies or hangs.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "arena.h"

#define KEEPER_FDS 256

struct keeper_options {
	const char *config_file, *runtime_dir, *state_dir;
	const char *exe; /* where usmd is installed, whatever is there now */
	bool is_private; /* started by hand with --runtime-dir */
	/* Descriptors that were open before the first engine. */
	uint8_t keep[KEEPER_FDS];
};

/* Runs until told to stop; the exit status of the process.  engine() is the child's main. */
int keeper_run(struct arena *a, struct keeper_options *o,
	       int (*engine)(struct arena *a, const struct keeper_options *o));

struct store_received;

/* The runtime directory, the lock against a second instance, the two sockets (from systemd, or
 * made), /dev/userfaultfd.  Logged; -errno. */
int keeper_open(struct arena *a, const struct keeper_options *o, const struct store_received *received);

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * systemd's descriptor store: what must survive keeper and engine together.
 *
 * It has the arena, by the name "arena", and each descriptor that the arena names, by the name "fdN",
 * N being its number in the table of keeper and engine.  A new keeper puts them back at their
 * numbers, so that the arena is right as it is, and its engine takes over like any other.
 *
 * A descriptor is named in the arena, then told to the store; it is taken out of the arena, then out of
 * the store, then closed.  So what the store has beyond the arena is nobody's, and is dropped by
 * whoever comes next.  What systemd may have is a bit in the arena (`told`), set before it is sent and
 * cleared when systemd has confirmed that it has dropped it, as a message of a process that
 * has ended is not read.
 *
 * Nobody waits for systemd: where it is behind, a thread does, which also closes what it drops.
 * Without a store, as with a usmd that was started by hand, all this is close().
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "arena.h"

/* What a keeper gets from systemd; descriptors are -1 and arena NULL where there is none. */
struct store_received {
	struct arena *arena;
	int attach_fd, control_fd; /* listening sockets */
	char id[ARENA_ID_MAX + 1]; /* of an arena that is refused */
};

/*
 * The keeper's first act, before it opens anything: descriptors go to their numbers.
 * -EPROTONOSUPPORT: there is an arena that this usmd does not know; it stays in the store.
 * -errno.  Not logged.
 */
int store_receive(struct store_received *ret);
/* The last act of a keeper whose programs have all ended or been let go: the store is empty. */
void store_clear(struct arena *a);

/*
 * The engine's side.  max: what the store holds; UINT_MAX: not known; 0: there is none.  Another
 * engine's descriptors are told again.  -errno.
 */
int store_start(struct arena *a, unsigned max);
bool store_is_on(void);
/* How many more it holds. */
unsigned store_room(void);
/* Any thread, and none waits. */
void store_add(int fd);
void store_close(int fd);   /* -1 is nothing */
void store_hang_up(int fd); /* of a connected socket, whose peer sees the end of file at once */
/* Ends the thread.  0: systemd has all that the arena names; -errno: it may not. */
int store_stop(void);
/* The same, and the thread goes on. */
int store_flush(void);

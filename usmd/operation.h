/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An operation: a batch of pages of one process that its agent takes out (lib/attach.h).
 * At most one a process is under way.  All functions are for the reclaim thread, which
 * holds no latch, except where they say otherwise.
 *
 *   operation_post()     RESIDENT -> EVICTING, recorded in the arena, handed to the agent
 *   (the agent works)
 *   operation_collect()  EVICTING -> SWAPPED, RESIDENT or NONE, by what the agent did
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct core;
struct process;
struct reclaim;

/* MOVE is not to be had: everything leaves by LAZYFREE. */
bool operation_only_lazy(struct core *c);
/* The process has an agent that evicts and nothing to do. */
bool operation_possible(struct process *p);
/*
 * Claims those of the frames that are resident pages of p and may leave, and hands them
 * to its agent.  Returns how many; the others are moved to the end of frames[].
 */
unsigned operation_post(struct reclaim *r, struct process *p, uint32_t *frames, unsigned n, bool lazy);
/* What MOVE has refused for its protection (PROT_READ, PROT_NONE) can leave by LAZYFREE. */
void operation_post_refused(struct reclaim *r, struct process *p);
/* What was unshared leaves before more is, or each page would be two for a while. */
void operation_post_again(struct reclaim *r, struct process *p);
/* Makes pages that are shared after a fork the process's own, to leave another time. */
void operation_post_unshare(struct reclaim *r, struct process *p);
/*
 * The next step for a process that is being let go and has LAZY pages (p->rescue): they are
 * written, changing nothing, so that the kernel keeps them; those that are read-only leave, to be
 * brought back.
 */
void operation_post_rescue(struct reclaim *r, struct process *p);
/* Asks the agent to look; harmless if it has seen it. Any thread. */
void operation_send(struct process *p);
/* Lets go of slots that were reserved for more than `keep` pages. */
void operation_return_slots(struct process *p, unsigned keep);
/*
 * Gives slots of unchanged resident pages back: of all devices, or of those that are being
 * removed.  Looks at `scan` frames of each pool, from *hand on.  Returns how many.
 */
unsigned operation_drop_slots(struct core *c, bool draining, uint32_t *hand, uint64_t scan);
/* Some of all devices, because slots are short. */
unsigned operation_drop_clean_slots(struct core *c);

/* Who waits for frames that a policy wanted out now goes on (reclaim_frames_now()). */
void operation_done_now(struct reclaim *r);

/*
 * The agent stands still in the middle of an operation: its program is stopped or debugged.  Who
 * reads its memory, as debuggers do, must not wait for it: what it has taken already is put back,
 * EVICTING -> RESIDENT, and it gets no further with the rest.
 */
void operation_take_back(struct process *p);
/* May the results be taken now?  LAZYFREE: the events of what it did must have been applied,
 * or told at a barrier (event.c). */
bool operation_collectable(struct process *p);
/*
 * Takes an operation's results.  A new engine may do it again for one that the dead
 * engine had begun: pages that are published are not EVICTING any more.
 */
void operation_collect(struct reclaim *r, struct process *p);
/*
 * The agent was told to go by an engine that has died since, and what it was asked for after that
 * it has not begun: EVICTING -> RESIDENT.  False: it has not gone, or it has done it.
 */
bool operation_undo(struct process *p);
/* The program is dead: nobody needs the pages of its operation. */
void operation_give_up(struct reclaim *r, struct process *p);

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A managed process: the engine's side of an arena_process.
 *
 * The latch orders what is done to a process's pages against the events of its
 * userfaultfd.  Shared: looking at entries, claiming them, installing pages
 * (UFFDIO_COPY) and publishing the result.  Exclusive: read() of the userfaultfd
 * and application of what it returned, so that no page is ever installed on the
 * strength of a lookup that an event has made stale: the kernel's own gate
 * (EAGAIN) ends with the read().
 *
 * Nobody waits for the exclusive latch: who does not get it leaves a mark, and the
 * holder that lets go reads in its place.  Shared sections are short: lookups and
 * one non-blocking ioctl.  Lock order: latch, then a policy's or a swap device's
 * own locks; no policy is called under the latch.
 *
 * A FORK or REMAP may have to wait for the program's agent, which may be stopped for as
 * long as anybody likes, or for faults under way.  No thread waits with it: while LATCH_BARRIER is set, events
 * have been read and not applied, and nobody holds the latch for it.  Nothing is looked
 * up then; what was claimed before may be given back.  A fault that comes meanwhile is
 * dropped, and all are woken when the barrier is over.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core.h"
#include "page.h"

#define LATCH_EXCLUSIVE (1u << 31)
#define LATCH_PENDING	(1u << 30) /* somebody wanted to read */
#define LATCH_BARRIER	(1u << 29) /* the journal waits for pages on their way out, or in */

/* Sequential streams that fault-around recognises in one process at once. */
#define PROCESS_STREAMS 4
/* Buckets of the fault time histogram: four a power of two of microseconds. */
#define PROCESS_HISTOGRAM 96

struct policy;

struct process_stream {
	uint64_t next_vpn; /* where the last window ended */
	unsigned window;   /* pages */
};

/* Does the reclaim thread take an operation's results? */
enum process_collecting { COLLECT_NO = 0, COLLECT_ASKS = 1, COLLECT_YES = 2 };

struct process {
	/* Of the number, whoever has it. */
	struct core *core;
	struct arena_process *shared;
	uint32_t number;
	uint32_t generation;
	/* Of the process that has it, see process_init(). */
	_Atomic uint32_t latch;
	_Atomic uint32_t latch_waiters;
	_Atomic uint32_t users; /* threads that have it in hand */
	_Atomic(struct usm_agent_ops *) ops; /* NULL until the agent's memory is there */
	_Atomic(struct pool *) pool;
	_Atomic(struct policy *) policy; /* of that pool's set; NULL: the set's default */
	_Atomic(struct policy *) swap_policy; /* who chooses its victims; NULL: the same */
	_Atomic bool swap_none; /* "process swap NAME none" */

	_Atomic uint32_t nr_evicting; /* claimed by reclaim, not yet published */
	/* FORK or REMAP waits for nr_evicting to be 0, or for faults where a REMAP goes, and what was
	 * read behind it has been told to pages on their way out (event.c). */
	_Atomic bool barrier;
	_Atomic int collecting;	      /* enum process_collecting, of the reclaim thread */
	_Atomic bool gone;	      /* its mm or agent is no more: tear it down */
	_Atomic bool killed;	      /* we killed it: its pages are not to be trusted */
	_Atomic bool deferred;	      /* on the list of processes whose gate was taken */
	_Atomic bool has_removed;     /* pages were announced as removed since the last look */
	_Atomic bool maps_changed;    /* unmapped or moved something since the last scan */
	_Atomic bool release;	      /* bring everything back, then let it go */
	_Atomic bool no_evict;	      /* being released, or its agent stopped evicting */
	_Atomic bool rescue;	      /* being released: LAZY pages are to become the program's own */
	_Atomic uint64_t posted_nsec; /* when the last operation was handed to its agent */
	_Atomic bool parked;	      /* faults were dropped, all are to be woken later */
	_Atomic bool over_limit;      /* its own pages are to leave */
	_Atomic uint64_t stuck_nsec;  /* over its limit, and then nothing of it could leave; 0: it could */
	/* Not attached: its handshake is under way, or it is being let go.  Whoever sets it may. */
	_Atomic bool claimed;
	_Atomic bool lift;	      /* fork_protected, and no relative is left */
	_Atomic bool forget;	      /* the reclaim thread is to give its operation up */
	bool held; /* recovery holds its latch until its journal is applied */

	_Atomic int64_t nr_resident, nr_swapped;
	_Atomic uint64_t nr_unevictable;
	_Atomic uint64_t nr_stayed; /* pages in a row that could not leave */
	_Atomic(const char *) unevictable_reason;

	struct process_stream stream[PROCESS_STREAMS];
	unsigned stream_victim;
	_Atomic uint32_t histogram[PROCESS_HISTOGRAM];
	_Atomic uint32_t fault_usec_max;

	/* Under the exclusive latch. */
	bool gate_taken; /* the agent's gate was, the last time */
	bool no_nowait;	 /* its userfaultfd does not know RWF_NOWAIT */
	/* The journal's messages, those that have been applied, of who holds the latch exclusively.
	 * n is not 0 while it waits at a barrier. */
	struct {
		unsigned next, n;
		bool again;	    /* an engine died over message `next` */
		uint64_t full_nsec; /* since when there is no room to read on, 0: there is */
	} journal;

	/* The reclaim thread's own. */
	struct {
		bool in_epoll, stalled;
		unsigned fruitless; /* passes in a row for its limit */
		uint32_t hand; /* where to look on for frames of this process */
		uint64_t unshare[USM_OPS_BATCH];
		unsigned nr_unshare;
		uint64_t refused[USM_OPS_BATCH]; /* by MOVE, to be tried by LAZYFREE */
		unsigned nr_refused;
		uint64_t again[USM_OPS_BATCH]; /* just unshared: to leave at once */
		unsigned nr_again;
		bool fenced; /* nothing can be moved into its staging area */
		uint64_t taken_back_nsec; /* when it was last looked what a stalled one has taken */
		bool unshared; /* the operation under way is over pages of again[] */
		uint64_t rescue_vpn; /* where to look on for LAZY pages */
		bool no_fallback;
		uint32_t slot[USM_OPS_BATCH]; /* reserved for the operation under way */
		unsigned nr_slots;
	} evict;
	/* The janitor's own. */
	struct {
		uint64_t next_audit_tick;
		uint64_t release_tick; /* its agent was told to go, 0: not yet */
		unsigned gone_ticks;   /* how long it lives without its agent, an operation under way */
		unsigned lazy_ticks;   /* how long it has been kept for its LAZY pages */
		bool has_claimed; /* it is not attached, and nobody may attach it any more */
		uint64_t *ranges; /* registered ranges seen by the last scan, start/end */
		unsigned nr_ranges, cap_ranges;
		int pagemap_fd, maps_fd;
	} scan;
};

/* Sets up the engine's side of all processes.  -ENOMEM. */
int processes_new(struct core *c);
void processes_free(struct core *c);

/* A free number, state BUILDING, everything zeroed, or NULL (all in use).  Any thread. */
struct process *process_new(struct core *c);
/* (Re)initialises the engine's side from shared; maps nothing. */
void process_init(struct core *c, uint32_t number);
/* Maps its ops memory.  -errno. */
int process_map_ops(struct process *p);
/* Makes it known to the workers: state LIVE, userfaultfd polled.  -errno. */
int process_publish(struct process *p);

/* A reference for as long as a thread works with it; NULL if it is not that process any more. */
struct process *process_get(struct core *c, uint32_t number, uint32_t generation);
void process_put(struct process *p);
/* The flags with which a page that was present before we came becomes RESIDENT: REMOVED, if the
 * kernel may be about to zap it.  Under the latch. */
uint64_t process_present_flags(struct process *p);
/* All its threads that wait for a fault go on, or fault again. */
void process_wake_all(struct process *p);
/* A fault of it is dropped, as it cannot be served now, and no thread of ours waits for one
 * program.  The janitor wakes it at the next tick, if nobody does so before. */
void process_park(struct process *p);
void process_unpark(struct process *p);
/* Marks it as gone and wakes the janitor, which tears it down.  Any thread, any number of times. */
void process_gone(struct process *p);
/* Kills the program because loss cannot be avoided; one journal entry with the reason. */
void process_kill(struct process *p, uint64_t addr, const char *reason);

/* Waits while somebody reads events.  Never called while holding it.  False, and not held: a
 * barrier waits; faults are woken when it is over. */
bool process_latch(struct process *p);
/* The same for who has claimed pages: held in any case.  False: a barrier waits, and claims may
 * only be given back. */
bool process_latch_claimed(struct process *p);
/* A barrier waits just now.  Any thread. */
static inline bool process_at_barrier(struct process *p)
{
	return atomic_load(&p->latch) & LATCH_BARRIER;
}
/* The same for who must not wait: false while somebody reads or a barrier waits. */
bool process_try_latch(struct process *p);
/* Lets go; reads the userfaultfd if somebody left that to us. */
void process_unlatch(struct process *p);
/* The same for the reclaim thread, which must not read (a FORK would wait for it): leaves it to
 * a worker. */
void process_unlatch_reclaim(struct process *p);
/* True: held exclusively, maybe with a journal at a barrier.  False: whoever holds it will read. */
bool process_try_latch_exclusive(struct process *p);
/* Lets go and returns true, or keeps it and returns false: more is to be read. */
bool process_unlatch_exclusive(struct process *p);

void process_count_fault(struct process *p, uint64_t nsec);
/* Percentile (permyriad) of the fault time in microseconds. */
uint64_t process_fault_usec(const struct process *p, unsigned permyriad);

static inline page_entry *process_page(struct process *p, uint64_t vpn, bool create)
{
	return page_walk(p->core->arena, p->number, vpn, create);
}

/* RESIDENT, and the kernel may drop it although no slot has its content: its eviction failed. */
static inline bool page_has_no_copy(struct core *c, uint64_t v)
{
	return PAGE_STATE(v) == PAGE_RESIDENT && v & PAGE_LAZY &&
	       !atomic_load(&c->arena->frame[PAGE_VALUE(v)].clean_slot);
}

/* Was this RESIDENT page announced as removed so recently that the kernel may still zap it? */
static inline bool page_removed_recently(uint64_t v)
{
	return v & PAGE_REMOVED &&
	       (uint16_t)((uint16_t)now_tick() - PAGE_STAMP(v)) < PAGE_REMOVE_TICKS;
}

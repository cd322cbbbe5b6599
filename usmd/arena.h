/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The arena: one memfd that holds every fact which a managed program depends on.
 * It outlives the engine: keeper and engine share the mapping, and a new engine
 * rebuilds everything else from it (recover.c).
 *
 * Rules: linked by index, never by pointer.  A change is published by one
 * word-sized store.  What is freed is freed last.  The page-table entry is the
 * only authority (page.h): free lists, frame ownership and slot reference counts
 * are recomputed.  Memory of the arena is allocated (arena_reserve) before it is
 * used, so that a store never fails for want of memory.
 */
#pragma once

#include <linux/userfaultfd.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "config.h"
#include "lib/attach.h"
#include "swap.h"

#define ARENA_MAGIC   0x6172656e61736d75ull
/* Tests build one that knows another. */
#ifndef USM_ARENA_VERSION
#define USM_ARENA_VERSION 3u
#endif
#define ARENA_VERSION USM_ARENA_VERSION
#define ARENA_ID_MAX  63u

#define ARENA_PROCESSES 1024u /* managed processes at once */
#define ARENA_POOLS	16u
#define ARENA_WORKERS	72u /* worker threads, reclaim, janitor */
#define ARENA_JOURNAL	192u /* messages of one read(), and what is read on at a barrier (event.c) */
#define ARENA_ROOT	65536u
#define ARENA_NODE_BYTES 4096u
#define ARENA_FDS	8192u /* descriptors above are not kept beyond the service's end */

/* A node of a page table: an inner table of node numbers, or a leaf of entries. */
union arena_node {
	_Atomic uint32_t inner[1024];
	_Atomic uint64_t leaf[512];
};

/* One frame of a pool. owner: 0 free, else ARENA_OWNER(process, vpn), stored after
 * the rest.  born: coarse milliseconds. */
struct arena_frame {
	_Atomic uint64_t owner;
	_Atomic uint32_t clean_slot;
	uint32_t born_msec;
};
#define ARENA_OWNER(process, vpn) (1ull << 63 | (uint64_t)(process) << 40 | (uint64_t)(vpn))
#define ARENA_OWNER_PROCESS(o)	  ((uint32_t)((o) >> 40 & 0xffff))
#define ARENA_OWNER_VPN(o)	  ((o) & ((1ull << 36) - 1))

enum arena_process_state {
	PROCESS_FREE = 0,
	PROCESS_BUILDING = 1, /* a fork's table is being copied */
	PROCESS_LIVE = 2,
	PROCESS_DYING = 3, /* being torn down */
};

/* State of the one operation that a process's agent can have in hand. */
enum arena_op_state {
	OP_IDLE = 0,
	OP_POSTED = 1, /* the agent has it, or will get it */
	OP_COLLECT = 2, /* results taken; contents are in the ops data area */
};

struct arena_process {
	_Atomic uint32_t state; /* enum arena_process_state, stored last */
	uint32_t generation;
	/* Which of the 64 pages of its root table were ever used: reading the others would
	 * only fill the arena with zeros. */
	_Atomic uint64_t root_pages;
	int32_t uffd;			      /* -1: none, like these three */
	_Atomic int32_t sock, opsfd, pidfd; /* a child's come later, and others look meanwhile */
	pid_t pid;
	uid_t uid;
	_Atomic int32_t agent_tid; /* in its own pid namespace */
	uint32_t is_child;	   /* made by FORK; its agent may not have come yet */
	_Atomic uint32_t attached; /* the handshake is done; stored last */
	uint32_t uninherited; /* has ranges that its children do not get */
	_Atomic uint64_t family; /* the same in all that descend from one process by fork */
	_Atomic uint32_t fork_protected; /* what it had at a fork is write-protected (fault.c) */
	_Atomic uint32_t ever_swapped; /* a page of it, or of its parent, was on a swap device */
	uint64_t starttime; /* /proc/PID/stat, clock ticks */
	uint64_t forked_usec;
	uint64_t staging, trash, marker, nonce, identity, tcb;
	uint64_t limit_pages;
	uint32_t pool;
	int32_t priority;
	char name[USM_NAME_MAX + 1];   /* of /proc/PID/exe */
	char argv0[USM_NAME_MAX + 1];
	/* Which rules are for it, as it was when it was executed: forked children inherit them,
	 * whatever has become of their user and their cgroup. */
	char unit[USM_UNIT_MAX + 1]; /* of the system's service manager; "": none */
	uid_t rule_uid;
	char policy[USM_NAME_MAX + 1];
	/* read() writes straight in here, so no event is lost with the engine. */
	struct uffd_msg journal[ARENA_JOURNAL];
	_Atomic uint32_t journal_applied;
	/* What the daemon trusts about the agent's operation. */
	_Atomic uint32_t op_state;
	uint32_t op_seq, op_kind, op_n;
	uint64_t op_vpn[USM_OPS_BATCH];
	_Atomic uint64_t last_remove_tick; /* of the newest REMOVE that was applied */
	/* Totals for the user. */
	_Atomic uint64_t nr_faults, nr_evictions, nr_swap_ins;
	/* Of these, what the journal was told. */
	_Atomic uint64_t said_faults, said_evictions, said_swap_ins;
};

/* One policy set's frames: [first, first + nr) belong to the policy, the same
 * number after them are lent when the pool is exceeded. */
struct arena_pool {
	_Atomic uint32_t in_use;
	uint32_t first, nr;
	uint32_t set_aside;
	char name[USM_NAME_MAX + 1]; /* of the set's file, without folder and .so */
	char file[256];
};

/* What a thread is doing, for the keeper's watchdog. */
struct arena_worker {
	_Atomic uint64_t since_nsec;  /* CLOCK_MONOTONIC when it entered a policy, 0: is not in one */
	_Atomic uint32_t pool;	      /* whose code: pool number + 1 */
	uint32_t tid;
};

/* usmd was told to stop; FORCED: what does not fit into memory is killed.  HAND_OVER: programs stay
 * as they are, and wait for the next usmd. */
enum arena_stop { STOP_NO = 0, STOP_TOLD = 1, STOP_FORCED = 2, STOP_HAND_OVER = 3 };

struct arena_header {
	uint64_t magic;
	uint32_t version;
	char id[ARENA_ID_MAX + 1]; /* arena_id() of who made it; these three stay where they are */
	uint32_t nr_frames, nr_hash, nr_nodes;
	uint64_t bytes, off_process, off_root, off_frame, off_hash, off_node;

	/* Supervision: keeper writes, engine reads. */
	pid_t keeper_pid;
	_Atomic pid_t engine_pid;
	_Atomic uint64_t nr_restarts;
	_Atomic uint64_t death_nsec; /* when the keeper saw the last engine die */
	_Atomic uint32_t nr_stops;   /* how often the keeper was told to stop */
	/* enum arena_stop: what an engine began, its successor ends. */
	_Atomic uint32_t stop;
	uint32_t inherited; /* from another keeper, through the descriptor store */
	/* Engine writes, keeper reads. */
	_Atomic uint32_t ready;
	_Atomic uint64_t heartbeat; /* counts while the engine's loop turns */
	_Atomic uint64_t recovery_usec;
	_Atomic uint32_t crashed_worker; /* thread that got a fatal signal, + 1 */
	struct arena_worker worker[ARENA_WORKERS];

	/* Descriptors that the engine needs again, -1: none. */
	int32_t dev_fd, attach_fd, control_fd, runtime_lock_fd, wake_fd;
	int32_t keeper_pidfd; /* the keeper's own, so that no engine comes too late to have it */

	struct arena_pool pool[ARENA_POOLS];
	uint32_t nr_frames_assigned;
	_Atomic uint32_t nr_processes; /* numbers below were used; memory above is untouched */
	uint64_t next_generation, next_nonce;
	struct usm_swap_shared swap;

	/* One bit a descriptor.  told: systemd may have it in its store (store.h).  orphan: of a forked
	 * child that cannot be managed; it must never be closed. */
	_Atomic uint64_t told[ARENA_FDS / 64], orphan[ARENA_FDS / 64];

	/* Totals since the keeper started. */
	_Atomic uint64_t nr_faults, nr_evictions, nr_swap_ins, nr_errors, nr_policy_errors;
};

struct arena {
	int fd;
	struct arena_header *h;
	struct arena_process *process; /* ARENA_PROCESSES */
	_Atomic uint32_t *root;	       /* ARENA_PROCESSES times ARENA_ROOT */
	struct arena_frame *frame;
	struct usm_hash *hash;
	union arena_node *node; /* number 0 is never used */
	/* The engine's own: node allocation, recomputed. */
	_Atomic uint32_t nodes_top;
	struct arena_nodes *free_nodes;
};

/* A new, empty arena.  -errno. */
int arena_new(struct arena **ret);
/* Another keeper's; fd is taken over.  -EPROTONOSUPPORT: of another version or build; *ret_id says
 * which (at most ARENA_ID_MAX bytes and a NUL), and fd is left open.  -errno. */
int arena_open(int fd, struct arena **ret, char *ret_id);
/* Names the layout of all that a keeper hands to the next, programs' agents included. */
void arena_id(char id[ARENA_ID_MAX + 1]);
/* known[fd] = 1 for all descriptors below n that the arena names and that outlive a keeper. */
void arena_mark_descriptors(struct arena *a, uint8_t *known, unsigned n);
struct arena *arena_free(struct arena *a);

/* Makes [addr, addr + bytes) of the arena real memory. -ENOSPC/-ENOMEM: none left. */
int arena_reserve(struct arena *a, const void *addr, size_t bytes);
/* Gives the memory of whole pages in [addr, addr + bytes) back; they read as zeros. */
void arena_discard(struct arena *a, void *addr, size_t bytes);

/* A zeroed node's number, or 0 when there is no memory.  Any thread. */
uint32_t arena_node_new(struct arena *a);
/* Nothing may refer to it any more. */
void arena_node_release(struct arena *a, uint32_t node);
/* Recovery: in_use says which nodes are reachable; the rest becomes free. */
int arena_nodes_recover(struct arena *a, const uint8_t *in_use, uint32_t top);

/* The bound for loops over processes. */
static inline uint32_t arena_processes(struct arena *a)
{
	return atomic_load_explicit(&a->h->nr_processes, memory_order_acquire);
}

static inline bool arena_fd_is(const _Atomic uint64_t *bits, int fd)
{
	return fd >= 0 && (unsigned)fd < ARENA_FDS && atomic_load(&bits[fd / 64]) >> (fd % 64) & 1;
}

/* False: the number is too high. */
static inline bool arena_fd_set(_Atomic uint64_t *bits, int fd, bool to)
{
	if (fd < 0 || (unsigned)fd >= ARENA_FDS)
		return false;
	if (to)
		atomic_fetch_or(&bits[fd / 64], 1ull << (fd % 64));
	else
		atomic_fetch_and(&bits[fd / 64], ~(1ull << (fd % 64)));
	return true;
}

static inline _Atomic uint32_t *arena_root(struct arena *a, uint32_t process)
{
	return a->root + (size_t)process * ARENA_ROOT;
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The attach protocol: what libusm-tagger.so (in a managed program) and usmd
 * say to each other.  Used by both sides; fixed-width fields only.
 *
 * Transport: a SOCK_SEQPACKET Unix socket, <runtime-dir>/attach.  One packet
 * is one struct usm_attach_msg, with descriptors by SCM_RIGHTS.  The program
 * side is always the *agent*, a raw thread with a descriptor table of its own;
 * the program's own threads never use this socket.
 *
 *   agent                                daemon
 *   (a CHILD reads the nonce from its marker page)
 *   HELLO {flags, CHILD: nonce}     ->         peer checked (SO_PEERCRED, pidfd); a CHILD:
 *                                              its fork is known by the nonce
 *                                   <-   FDS {nr_batch, evict_modes} [dev, ops]
 *                                        or REFUSE {text}: run unmanaged
 *   (ioctl(dev, NEW) twice: u1 carries faults and events, u2 only guards trash;
 *    a CHILD makes u2 only: its u1 was made by the FORK event.  Maps ops,
 *    staging, trash.)
 *   READY {staging, trash, marker, nonce, tid} [u1, u2] (CHILD: [u2]) ->
 *                                        UFFDIO_API, REGISTER, first scan
 *                                   <-   GO  (CHILD: [u1])  or REFUSE
 *   then for ever:
 *                                   <-   WORK {seq}: look at the ops page
 *   DONE {seq}                      ->
 *                                   <-   RELEASE: the program goes on unmanaged
 *   shutdown(SHUT_WR)               ->         UNREGISTER, then hang up
 *   (reads and drops the events that came too late for the daemon, exits)
 *
 * End of file on the socket: every usmd process is gone.  The agent keeps its
 * u1 open (so faults block instead of reading zeros), reconnects each 100 ms
 * and sends REJOIN {nonce = ops->identity} [u1, u2, ops memfd is re-sent by the
 * daemon]; a daemon that does not know the identity answers REFUSE.  After
 * REFUSE, or grace_sec without a daemon: if ops->nr_swapped is 0 the agent
 * closes u1 and exits, else it kills its program with a message on stderr.
 */
#pragma once

#include <stdint.h>
#ifndef __cplusplus
#include <stdatomic.h>
#endif

#define USM_ATTACH_MAGIC   0x75736d61u /* "usma" */
#define USM_ATTACH_VERSION 2 /* 2: a CHILD says its nonce in HELLO, too */
#define USM_ATTACH_SOCKET  "attach" /* name inside the runtime directory */

#define USM_PAGE_SIZE 4096ul

/* Pages of one operation: the agent's costs flatten at 64 to 256 a batch. */
#define USM_OPS_BATCH 256u
/* The longest run of pages that one MOVE may take while it holds the gate: a
 * reader that finds the gate taken waits for this long (about 15 us). */
#define USM_OPS_GATE_PAGES 64u
/* Addresses that must never leave (threads' control blocks). */
#define USM_OPS_PINS 4096u

enum usm_attach_type {
	USM_ATTACH_HELLO = 1,
	USM_ATTACH_FDS = 2,
	USM_ATTACH_REFUSE = 3,
	USM_ATTACH_READY = 4,
	USM_ATTACH_GO = 5,
	USM_ATTACH_WORK = 6,
	USM_ATTACH_DONE = 7,
	USM_ATTACH_RELEASE = 8,
	USM_ATTACH_REJOIN = 9,
};

/* flags of HELLO */
#define USM_ATTACH_F_CHILD 1u /* a forked child of a managed program */
/* flags of GO */
#define USM_ATTACH_F_COUNTED 2u /* ops->nr_swapped counts from the start, of a child too */

struct usm_attach_msg {
	uint32_t magic;
	uint16_t version;
	uint16_t type;
	uint32_t flags;
	uint32_t seq;       /* WORK, DONE */
	uint32_t grace_sec; /* FDS: how long to wait for a daemon before giving up */
	int32_t tid;        /* READY: thread id of the agent, in its own pid namespace */
	uint64_t staging;   /* READY: USM_OPS_BATCH pages */
	uint64_t trash;     /* READY: USM_OPS_BATCH pages */
	uint64_t marker;    /* READY: one page, MADV_WIPEONFORK, same address in children */
	uint64_t nonce;     /* HELLO and READY of a CHILD: read from the marker page; REJOIN: identity */
	uint64_t tcb;       /* READY: control block (fs base) of the attaching thread */
	uint64_t reserved[2];
	char text[128];     /* REFUSE: the reason, NUL-terminated */
};

/*
 * What the agent does on WORK, by ops->kind, on ops->addr[0..n):
 *
 * MOVE: for each run of consecutive addresses (at most USM_OPS_GATE_PAGES):
 *   enter the gate (below); if ops->cancel == ops->req, leave it and give every
 *   remaining page -ECANCELED; UFFDIO_MOVE(u1) to staging + i pages with
 *   MODE_DONTWAKE; store results res[] (0 or -errno) *before* leaving the gate.
 *   EAGAIN is a result like any other: never loop on it (the daemon may be
 *   waiting for this operation before it reads the event that causes it).
 *   Then copy each page with res 0 to the data area at page i, MOVE it on to
 *   trash with u2, and drop trash by MADV_DONTNEED.
 * LAZYFREE: all pages are write-protected by the daemon.  Copy each to the data
 *   area, then on one processor MADV_FREE and MADV_PAGEOUT by run, then look at
 *   /proc/self/pagemap: gone -> res 0, present -> -EBUSY, or -EMLINK when a
 *   fork has left it to several processes.  When ops->hurry == ops->req, the runs
 *   that are left get -ECANCELED: each makes an event, and the daemon waits for this
 *   operation before it applies events.  Holds
 *   the tagger's mapping lock (no hooked mmap, munmap, mremap runs meanwhile).
 * UNSHARE: MADV_POPULATE_WRITE of each page, result in res[].  A page that must not be written is
 *   made the process's own all the same; its result stays an error.
 */
enum usm_ops_kind {
	USM_OPS_MOVE = 1,
	USM_OPS_LAZYFREE = 2,
	USM_OPS_UNSHARE = 3,
};

/*
 * Daemon: NO <-> WANTED.  Tagger, before each fork() unless it is NO: all private anonymous
 * pages but pins[] are write-protected; WANTED -> DONE.  Daemon, when nobody shares them any more and
 * the protection is taken off: DONE -> WANTED.
 */
enum usm_protect_fork { USM_PROTECT_NO = 0, USM_PROTECT_WANTED = 1, USM_PROTECT_DONE = 2 };

/* bits of evict_modes */
#define USM_EVICT_MOVE     1u
#define USM_EVICT_LAZYFREE 2u

/*
 * The gate keeps an operation on an address from running between the moment the
 * daemon has read() an event (which lets the program go on) and the moment it
 * has applied it.  The kernel's own gate (EAGAIN) ends with the read().
 *   agent:  CAS IDLE -> AGENT; if it is READER: futex-wait on it (1 ms steps).
 *   daemon: CAS IDLE -> READER before read(); if AGENT: it comes back later.
 * Whoever sets it back to IDLE futex-wakes it when .gate_waiters is not 0.
 */
enum usm_gate { USM_GATE_IDLE = 0, USM_GATE_AGENT = 1, USM_GATE_READER = 2 };

/* Why an agent stopped evicting (ops->agent_state). */
enum usm_agent_state {
	USM_AGENT_STARTING = 0,
	USM_AGENT_RUNNING = 1,
	USM_AGENT_LOCKED = 2,  /* VmLck is not 0: mlockall; eviction would fail */
	USM_AGENT_SECCOMP = 3, /* a filter was set for all threads */
	USM_AGENT_GONE = 4,
};

/*
 * The ops memory: a sealed memfd made by the daemon, mapped shared by both.
 * The program can scribble over it at any time: the daemon copies a field once,
 * then checks the copy; what it trusts about an operation (which addresses) it
 * keeps in its own arena.
 */
struct usm_agent_ops {
	uint32_t magic;
	uint32_t version;
	uint64_t identity;        /* random; names this process in REJOIN */
	_Atomic uint32_t gate;    /* enum usm_gate */
	_Atomic uint32_t gate_waiters;
	_Atomic uint32_t req;     /* sequence number of the newest operation */
	_Atomic uint32_t done;    /* == req: finished, res[] and data are valid */
	_Atomic uint32_t cancel;  /* == req: MOVE gives the rest -ECANCELED */
	_Atomic uint32_t hurry;   /* == req: LAZYFREE gives the rest -ECANCELED */
	_Atomic uint32_t inflight; /* daemon: 1 from before it reads pins[] until done is taken */
	_Atomic uint32_t agent_state;
	_Atomic uint32_t nr_pins; /* slots of pins[] ever used; grows only */
	_Atomic uint64_t nr_swapped; /* daemon: 0 as long as no page of it was ever on a swap device */
	/* tagger: 1 once the program gave a large range to MADV_DONTFORK or MADV_WIPEONFORK, or
	 * many, or moved one, so that the daemon looks for such ranges at a fork (a few small ones
	 * are pinned) */
	_Atomic uint32_t uninherited;
	/* enum usm_protect_fork; the tagger protects what a fork() shares, so that each copy
	 * that a write makes of it is a fault, and the daemon finds a frame for it */
	_Atomic uint32_t protect_fork;
	uint32_t kind;            /* enum usm_ops_kind */
	uint32_t n;
	uint32_t evict_modes;     /* what the daemon wants to use */
	uint32_t agent_tid;       /* own pid namespace */
	uint32_t reserved;
	uint64_t usec_move, usec_copy, usec_drop; /* agent: running totals */
	uint64_t addr[USM_OPS_BATCH];
	_Atomic int32_t res[USM_OPS_BATCH];
	/*
	 * Pages that hold a thread's control block, 0 = free slot.  A new thread
	 * stores its own address first, then, if inflight is set, waits until it
	 * is 0 again and touches its control block by a write that changes
	 * nothing; the daemon sets inflight first, then reads pins[]: one of the
	 * two sees the other.  The kernel writes the tid word of an exiting
	 * thread without waiting for a userfault, so such a page must be present.
	 */
	_Atomic uint64_t pins[USM_OPS_PINS];
};

#define USM_OPS_DATA  (12 * USM_PAGE_SIZE) /* data area: USM_OPS_BATCH pages */
#define USM_OPS_BYTES (USM_OPS_DATA + USM_OPS_BATCH * USM_PAGE_SIZE)

#ifndef __cplusplus
_Static_assert(sizeof(struct usm_agent_ops) <= USM_OPS_DATA, "ops header too large");
_Static_assert(sizeof(struct usm_attach_msg) == 208, "attach message changed size");
#endif

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The agent: one raw thread in each managed process that talks to usmd (attach.h) and carries
 * out its operations.  What it touches lies in one struct usm_agent, a shared anonymous mapping,
 * which userfaultfd does not manage: the agent can never wait for itself.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "attach.h"

/* The deepest path (LAZYFREE with its processor masks) uses about 4 KiB. */
#define USM_AGENT_STACK_BYTES (32 * 1024)
#define USM_LINK_STACK_BYTES (16 * 1024)
/* Pages that LAZYFREE compares with their copies at a time. */
#define USM_AGENT_VERIFY_PAGES 16u

/* Ranges that the program's side wants kept from the first moment on. */
#define USM_AGENT_KEEP 72u

enum usm_agent_life {
	USM_LIFE_ATTACHING = 0,
	USM_LIFE_MANAGED = 1,
	USM_LIFE_OVER = 2, /* refused, released or given up: the program runs unmanaged */
};

/* The mapping lock: how many hooked mapping calls run now, or that the agent holds it. */
#define USM_MAPLOCK_AGENT 0x80000000u

struct usm_agent {
	/* Written by the program's side before the agent starts. */
	char socket_path[108];
	char program[32];
	int answer_fd;   /* the agent's end of the pair that carries its one answer */
	bool child;      /* its u1 comes from the parent's FORK event */
	uint64_t marker; /* of a child: inherited address; else set by the agent */
	uint64_t tcb;
	uint32_t nr_keep;
	struct {
		uint64_t addr, bytes;
	} keep[USM_AGENT_KEEP]; /* goes to ops->pins before the daemon can evict anything */

	/* Shared while both run. */
	_Atomic uint32_t life;    /* enum usm_agent_life; written by the agent */
	_Atomic uint32_t maplock; /* after order, before ops->gate */
	/* Of order.c: a mutex, whose it is (a thread pointer), and how often it was taken. */
	_Atomic uint32_t order, order_turn;
	_Atomic uint64_t order_owner;
	_Atomic bool order_forks;
	_Atomic uint32_t hooked;  /* libc's own mapping calls pass through the hooks */
	struct usm_agent_ops *ops;      /* valid from USM_LIFE_MANAGED on, and never unmapped */
	uint32_t evict_modes;

	/* The agent's own. */
	int sock, u1, u2;
	int status_fd, pagemap_fd, mem_fd;
	uint64_t staging, trash;
	uint32_t grace_sec;
	uint32_t seccomp_filters; /* in force when it started: the process's environment */
	uint64_t watched_usec;    /* when the Seccomp lines were read last */
	int32_t tid;
	_Atomic bool took_pages;  /* a page left, or a fork brought some that had left */
	_Atomic bool count_seen;  /* the daemon keeps ops->nr_swapped: it said so, or it was not 0 */
	uint32_t n;               /* the newest operation: its pages, copied once */
	uint64_t addr[USM_OPS_BATCH];
	char verify[USM_AGENT_VERIFY_PAGES * USM_PAGE_SIZE];
	char stack[USM_AGENT_STACK_BYTES] __attribute__((aligned(16)));

	/* Between the agent and its second thread (agent-link.c). */
	bool has_link;
	int link_fd;                /* an eventfd: something here has changed, or life has */
	_Atomic bool can_wait;      /* the agent is where it may have to wait for the daemon */
	_Atomic bool lost;          /* the agent has read the end of file */
	_Atomic bool given_up;      /* nobody takes the process back */
	_Atomic int32_t next_sock;  /* of the daemon that took the process back, or -1 */
	_Atomic uint32_t link_turn; /* a futex: counts the changes of the two before */
	char link_stack[USM_LINK_STACK_BYTES] __attribute__((aligned(16)));
};

/* What the agent tells the program's side once, with u1 when managed. */
struct usm_answer {
	int32_t managed;
	char reason[128]; /* empty: nothing worth a line */
};

/* Entry point of the thread; never returns. */
void usm_agent_main(struct usm_agent *a) __attribute__((noreturn));

/* agent-attach.c */

/* The handshake of attach.h.  0, or a negative errno with the reason filled in. */
int usm_agent_attach(struct usm_agent *a, char reason[128]);
/* After the end of file on the socket: the socket of the daemon that took the process back, or -1
 * when the agent must give up (refused, or grace_sec passed). */
int usm_agent_rejoin(struct usm_agent *a);

/* agent-ops.c */

/* Carries out the operation on the ops page (ops->req) and publishes ops->done. */
void usm_agent_work(struct usm_agent *a);
/* Pages of the program are swapped, or may be: a count of 0 that never was anything else proves
 * nothing once pages have left. */
bool usm_agent_has_swapped(struct usm_agent *a);
/* Makes the program complete without a daemon: puts back what the newest operation took when no
 * daemon has booked it.  0, or a negative errno: pages are swapped, or could not be put back. */
int usm_agent_restore(struct usm_agent *a);

/* agent-link.c: a second thread, which keeps the connection to the daemon where the agent itself may
 * wait for that daemon, in a fault or in an event of its own. */

/* Before an operation that can wait.  Without the thread (no more may be started) such a wait has
 * no end when every daemon dies in it. */
void usm_link_start(struct usm_agent *a);
/* After the end of file on the socket: true when a->sock is a new daemon's, false when the agent
 * must give up. */
bool usm_link_renew(struct usm_agent *a);
/* The agent's life is over: lets the second thread end, too. */
void usm_link_end(struct usm_agent *a);

/* agent-thread.c: a thread of this process by clone(2) with these flags, all else as its creator's:
 * run(a) on a stack that ends there; it must not return.  Its id, or a negative errno. */
long usm_thread_start(unsigned long flags, char *stack_end, void (*run)(struct usm_agent *a),
		      struct usm_agent *a);

/* agent.c: the program cannot go on without usmd; says so on its stderr. */
void usm_agent_kill_program(struct usm_agent *a) __attribute__((noreturn));

/* agent-maps.c: ends the registration of every range, so that nobody waits for a userfaultfd that
 * the program's side still has open.  Two passes: a hook may just be registering one. */
void usm_agent_unregister_all(struct usm_agent *a);

/* agent-lazyfree.c: LAZYFREE on a->addr[0..n), results to res[], until ops->hurry is req. */
void usm_agent_lazyfree(struct usm_agent *a, uint32_t req);

/* agent-watch.c */

/* Opens what the watch reads; survives without /proc. */
void usm_agent_watch_start(struct usm_agent *a);
/* Before each operation: the state that ops->agent_state shall show. */
enum usm_agent_state usm_agent_watch(struct usm_agent *a);

/* agent-message.c */

/* One packet with up to two descriptors; 0 or a negative errno. */
int usm_message_send(int sock, const void *buf, uint32_t bytes, const int *fds, uint32_t nr_fds);
/* One packet of exactly `bytes`, with up to two descriptors: their number, or a negative errno
 * (-ECONNRESET: end of file; -EPROTO: wrong size).  On failure no descriptor is left open. */
int usm_message_recv(int sock, void *buf, uint32_t bytes, int fds[2]);

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Logging: to the journal with fields when stderr is the journal
 * ($JOURNAL_STREAM), as readable lines on stderr otherwise.  Thread-safe.
 * Never called on a thread that must not block while it holds a gate or lock.
 */
#pragma once

#include <stdint.h>
#include <sys/types.h>
#include <syslog.h>

/* Message ids: one a kind of event, described in units/usmd.catalog. */
#define USM_MSG_NONE NULL
#define USM_MSG_FAULT    "5f0d2cfa6b5c4dc0a6f2ab5b3a4f3b01"
#define USM_MSG_EVICT    "5f0d2cfa6b5c4dc0a6f2ab5b3a4f3b02"
#define USM_MSG_SWAPIN   "5f0d2cfa6b5c4dc0a6f2ab5b3a4f3b03"
#define USM_MSG_ASSIGN   "5f0d2cfa6b5c4dc0a6f2ab5b3a4f3b04"
#define USM_MSG_ATTACH   "5f0d2cfa6b5c4dc0a6f2ab5b3a4f3b05"
#define USM_MSG_DETACH   "5f0d2cfa6b5c4dc0a6f2ab5b3a4f3b06"
#define USM_MSG_POLICY   "5f0d2cfa6b5c4dc0a6f2ab5b3a4f3b07" /* a policy's wrong answer */
#define USM_MSG_CRASH    "5f0d2cfa6b5c4dc0a6f2ab5b3a4f3b08" /* the engine died */
#define USM_MSG_RECOVER  "5f0d2cfa6b5c4dc0a6f2ab5b3a4f3b09" /* a new engine carries on */
#define USM_MSG_KILL     "5f0d2cfa6b5c4dc0a6f2ab5b3a4f3b0a" /* a program had to be killed */
#define USM_MSG_SWAP     "5f0d2cfa6b5c4dc0a6f2ab5b3a4f3b0b" /* swap device trouble */
#define USM_MSG_OOM      "5f0d2cfa6b5c4dc0a6f2ab5b3a4f3b0c"
#define USM_MSG_UNEVICTABLE   "5f0d2cfa6b5c4dc0a6f2ab5b3a4f3b0d" /* no page of a program leaves */
#define USM_MSG_CONFIG	      "5f0d2cfa6b5c4dc0a6f2ab5b3a4f3b0e" /* the configuration was read again */
#define USM_MSG_STOP	      "5f0d2cfa6b5c4dc0a6f2ab5b3a4f3b0f" /* programs are let go, or cannot be */
#define USM_MSG_CLIENT	      "5f0d2cfa6b5c4dc0a6f2ab5b3a4f3b10" /* a client did something wrong */
#define USM_MSG_POLICY_CHANGE "5f0d2cfa6b5c4dc0a6f2ab5b3a4f3b11" /* loaded, unloaded, threshold */
#define USM_MSG_SET_ASIDE     "5f0d2cfa6b5c4dc0a6f2ab5b3a4f3b12" /* a policy is not used any more */

/*
 * The object that a line is about; fields left 0/NULL (-1 for slot and frame
 * when has_* is false) are not logged.  Becomes USM_EVENT, USM_PROCESS,
 * USM_PID, USM_POLICY, USM_ADDR, USM_FRAME, USM_SLOT, USM_COUNT in the journal.
 */
struct usm_log_fields {
	const char *event;      /* "fault", "evict", "swapin", "assign", ..., see usmd(8) */
	const char *message_id; /* USM_MSG_* */
	const char *process;
	const char *policy;
	pid_t pid;
	uint64_t addr;
	uint64_t frame;
	uint64_t slot;
	uint64_t count;
	unsigned has_frame : 1, has_slot : 1, has_count : 1;
};

/* Chooses the target by looking at $JOURNAL_STREAM and stderr.  name: prefix of
 * terminal lines ("usmd").  Call once, before threads. */
void usm_log_open(const char *name);
/* LOG_ERR ... LOG_DEBUG; what is less important is dropped.  Default LOG_INFO. */
void usm_log_set_level(int priority);
int usm_log_level(void);

/* The first error that this thread logs from now on goes to buf too, for the user who asked;
 * NULL ends it. */
void usm_log_first_error(char *buf, size_t size);

/* The journal gets at most 50 entries a second of what programs make happen (attach, detach, fault,
 * evict, swapin).  Says how many were left out; to be called once a second. */
void usm_log_left_out(void);

/* One line.  Returns -abs(error), so that callers can "return log_error_errno(r, ...)".
 * "%m" in fmt is abs(error). */
int usm_log_full(int priority, int error, const struct usm_log_fields *f, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

#define log_full(prio, err, f, ...) \
	((prio) <= usm_log_level() ? usm_log_full((prio), (err), (f), __VA_ARGS__) : -((err) < 0 ? -(err) : (err)))
#define log_error(...)                 log_full(LOG_ERR, 0, NULL, __VA_ARGS__)
#define log_warning(...)               log_full(LOG_WARNING, 0, NULL, __VA_ARGS__)
#define log_notice(...)                log_full(LOG_NOTICE, 0, NULL, __VA_ARGS__)
#define log_info(...)                  log_full(LOG_INFO, 0, NULL, __VA_ARGS__)
#define log_debug(...)                 log_full(LOG_DEBUG, 0, NULL, __VA_ARGS__)
#define log_error_errno(e, ...)        log_full(LOG_ERR, (e), NULL, __VA_ARGS__)
#define log_warning_errno(e, ...)      log_full(LOG_WARNING, (e), NULL, __VA_ARGS__)
#define log_event(prio, f, ...)        log_full((prio), 0, (f), __VA_ARGS__)
#define log_event_errno(prio, e, f, ...) log_full((prio), (e), (f), __VA_ARGS__)

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Closes descriptors that somebody else may have chosen, on threads of its own.
 *
 * The last close() of a file can take as long as its maker likes: a TCP socket with SO_LINGER
 * waits for a peer that never reads, a file of FUSE for its server.  Descriptors come with any
 * message on any Unix socket, are let go by the recv() that has no room for them, and those in
 * messages that nobody has read by the close() of that socket.  So a thread that others wait for
 * receives all that come, and closes neither them nor a client's socket itself.
 *
 * One for the whole engine, like the log.  From any thread.
 */
#pragma once

#include <stdbool.h>
#include <sys/socket.h>

/* What one message may have (SCM_MAX_FD of the kernel). */
#define CLOSER_MESSAGE_FDS 253u

/* So many wait at most.  Who accepts connections stops above half of it. */
#define CLOSER_QUEUE_MAX 4096u

/* Takes fd over; -1 is nothing.  At once where the queue is full, or no thread can be had. */
void closer_close(int fd);
/* The same for a connected socket, whose peer sees the end of file at once. */
void closer_hang_up(int fd);
/* Do so many wait that no more should be accepted? */
bool closer_is_behind(void);

/* What recvmsg() has room for descriptors in. */
union closer_control {
	char buf[CMSG_SPACE(CLOSER_MESSAGE_FDS * sizeof(int))];
	struct cmsghdr align;
};

/* recv() without flags of a peer's message, whose descriptors are closed.  Never waits.  Bytes, or
 * -errno. */
ssize_t closer_recv(int fd, void *buf, size_t size);

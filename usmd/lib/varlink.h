/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Varlink framing: JSON objects, each ended by a NUL byte, over a stream
 * socket.  Both halves are bounded, so that a peer can cost no more memory than
 * its limits, and neither ever blocks on a non-blocking socket.  Used by usmd
 * and usmctl; not thread-safe.
 */
#pragma once

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define USM_VARLINK_INTERFACE "io.usmd.Manager"
#define USM_VARLINK_SOCKET    "io.usmd.Manager" /* name inside the runtime directory */

/* The service accepts no longer request; the longest sensible one is a few KiB. */
#define USM_VARLINK_REQUEST_MAX (64u << 10)
/* Replies that a client has not read yet.  A full page of any list fits. */
#define USM_VARLINK_QUEUE_MAX (1u << 20)

struct usm_varlink_reader {
	char *buf;
	size_t len;     /* bytes in buf */
	size_t size;    /* bytes allocated */
	size_t scanned; /* bytes of buf known to hold no NUL */
	size_t max;     /* longest message, without its NUL */
	/* Instead of recv() without flags, for who has more to do there; bytes or -errno. */
	ssize_t (*receive)(int fd, void *buf, size_t size);
};

void usm_varlink_reader_init(struct usm_varlink_reader *r, size_t max_bytes);
void usm_varlink_reader_done(struct usm_varlink_reader *r);

/*
 * One recv().  Returns the number of bytes, 0 at end of file, -EAGAIN when
 * nothing is there, -ENOMEM, or what recv() said.  Takes in a bounded amount: the
 * caller takes the whole messages out by usm_varlink_reader_next before it reads
 * again (-ENOBUFS otherwise).
 */
int usm_varlink_reader_fill(struct usm_varlink_reader *r, int fd);
/* Is a whole message waiting? */
bool usm_varlink_reader_pending(struct usm_varlink_reader *r);
/*
 * Takes the next whole message out.  1: *ret is an object, the caller's to put.
 * 0: none yet.  -EBADMSG: not one well-formed JSON object in UTF-8.  -EMSGSIZE:
 * the message is longer than the limit.  After an error the stream is unusable.
 */
int usm_varlink_reader_next(struct usm_varlink_reader *r, struct json_object **ret);

struct usm_varlink_writer {
	char *buf;
	size_t start; /* first byte not yet sent */
	size_t len;   /* bytes from start on */
	size_t size;  /* bytes allocated */
	size_t max;
};

void usm_varlink_writer_init(struct usm_varlink_writer *w, size_t max_bytes);
void usm_varlink_writer_done(struct usm_varlink_writer *w);

/* Queues a message; sends nothing.  -ENOBUFS: the queue would pass its limit
 * (nothing is queued), -ENOMEM. */
int usm_varlink_writer_put(struct usm_varlink_writer *w, struct json_object *message);
/* Sends what the socket takes now.  1: the queue is empty, 0: something is left,
 * or what send() said (-EPIPE, -ECONNRESET). */
int usm_varlink_writer_flush(struct usm_varlink_writer *w, int fd);

/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "varlink.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "cleanup.h"

/* One recv() asks for this much: most messages fit into one. */
#define READ_CHUNK_BYTES 4096u

void usm_varlink_reader_init(struct usm_varlink_reader *r, size_t max_bytes)
{
	*r = (struct usm_varlink_reader){ .max = max_bytes };
}

void usm_varlink_reader_done(struct usm_varlink_reader *r)
{
	free(r->buf);
	*r = (struct usm_varlink_reader){ .max = r->max, .receive = r->receive };
}

static ssize_t receive(int fd, void *buf, size_t size)
{
	ssize_t n;

	do
		n = recv(fd, buf, size, 0);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

int usm_varlink_reader_fill(struct usm_varlink_reader *r, int fd)
{
	/* One byte past the limit, so that a message that is too long shows. */
	size_t limit = r->max + 1 + READ_CHUNK_BYTES;
	ssize_t n;

	if (r->len >= limit)
		return -ENOBUFS;
	if (r->size - r->len < READ_CHUNK_BYTES && r->size < limit) {
		size_t size = MIN(MAX(r->size * 2, (size_t)READ_CHUNK_BYTES * 2), limit);
		char *buf = realloc(r->buf, size);

		if (!buf)
			return -ENOMEM;
		r->buf = buf;
		r->size = size;
	}

	n = (r->receive ?: receive)(fd, r->buf + r->len, r->size - r->len);
	if (n < 0)
		return (int)n;

	r->len += (size_t)n;
	return (int)n;
}

static char *reader_find_end(struct usm_varlink_reader *r)
{
	char *end;

	if (r->scanned == r->len)
		return NULL;
	end = memchr(r->buf + r->scanned, '\0', r->len - r->scanned);
	/* Remembered, or a message that arrives byte by byte costs its square. */
	r->scanned = end ? (size_t)(end - r->buf) : r->len;
	return end;
}

bool usm_varlink_reader_pending(struct usm_varlink_reader *r)
{
	return reader_find_end(r) || r->len > r->max;
}

static int message_parse(const char *text, size_t len, struct json_object **ret)
{
	struct json_tokener *tok;
	struct json_object *o;
	bool whole;

	tok = json_tokener_new();
	if (!tok)
		return -ENOMEM;
	json_tokener_set_flags(tok, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);

	/* The NUL is passed too: only then does the tokener know that the text ends. */
	o = json_tokener_parse_ex(tok, text, (int)len + 1);
	whole = json_tokener_get_error(tok) == json_tokener_success &&
		json_tokener_get_parse_end(tok) >= len;
	json_tokener_free(tok);

	if (!whole || !json_object_is_type(o, json_type_object)) {
		json_object_put(o);
		return -EBADMSG;
	}
	*ret = o;
	return 0;
}

int usm_varlink_reader_next(struct usm_varlink_reader *r, struct json_object **ret)
{
	char *end = reader_find_end(r);
	size_t len;
	int err;

	if (!end)
		return r->len > r->max ? -EMSGSIZE : 0;

	len = (size_t)(end - r->buf);
	if (len > r->max)
		return -EMSGSIZE;
	err = message_parse(r->buf, len, ret);
	if (err < 0)
		return err;

	r->len -= len + 1;
	r->scanned = 0;
	memmove(r->buf, end + 1, r->len);
	return 1;
}

void usm_varlink_writer_init(struct usm_varlink_writer *w, size_t max_bytes)
{
	*w = (struct usm_varlink_writer){ .max = max_bytes };
}

void usm_varlink_writer_done(struct usm_varlink_writer *w)
{
	free(w->buf);
	*w = (struct usm_varlink_writer){ .max = w->max };
}

int usm_varlink_writer_put(struct usm_varlink_writer *w, struct json_object *message)
{
	const char *text;
	size_t len;

	text = json_object_to_json_string_length(
		message, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, &len);
	if (!text)
		return -ENOMEM;
	len++; /* the NUL goes out too */
	if (len > w->max - w->len)
		return -ENOBUFS;

	if (w->start > 0) {
		memmove(w->buf, w->buf + w->start, w->len);
		w->start = 0;
	}
	if (w->size - w->len < len) {
		size_t size = MIN(MAX(w->size * 2, w->len + len), w->max);
		char *buf = realloc(w->buf, size);

		if (!buf)
			return -ENOMEM;
		w->buf = buf;
		w->size = size;
	}
	memcpy(w->buf + w->len, text, len);
	w->len += len;
	return 0;
}

int usm_varlink_writer_flush(struct usm_varlink_writer *w, int fd)
{
	while (w->len > 0) {
		ssize_t n = send(fd, w->buf + w->start, w->len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n < 0)
			return -errno;
		w->start += (size_t)n;
		w->len -= (size_t)n;
	}

	/* An idle client holds no buffer. */
	usm_varlink_writer_done(w);
	return 1;
}

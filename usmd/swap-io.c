/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <liburing.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/cleanup.h"
#include "lib/log.h"
#include "swap-io.h"
#include "swap-ops.h"

/* More than the workers that usually swap at once; who finds none free uses pread. */
#define NR_RINGS 8u
/* Requests in flight from one batch. */
#define RING_DEPTH 64u
/* Pages of one request: 4 MiB, well below the kernel's limit for one transfer and
 * larger than what a disk needs to be busy. */
#define RUN_PAGES_MAX 1024u
/* Transfers in a row that moved no whole page before the run is given up. */
#define RETRIES_MAX 100u

/* One run of pages under way. */
struct request {
	unsigned first, nr_pages; /* of io[] */
	uint64_t offset;
	uint8_t *buf;
	uint64_t len, done; /* bytes; done is a multiple of the page size */
	unsigned retries;
};

struct ring {
	struct io_uring uring;
	struct request request[RING_DEPTH];
	uint64_t free_requests; /* bit i: request[i] is free */
};

struct usm_swap_rings {
	unsigned nr;
	_Atomic uint32_t free; /* bit i: ring[i] is not lent */
	struct ring ring[NR_RINGS];
};

_Static_assert(RING_DEPTH == 64, "free_requests is one word");

#ifdef USM_TESTING
struct usm_swap_test usm_swap_test;

static ssize_t test_transfer(bool write, const struct request *q, ssize_t res)
{
	if (!usm_swap_test.transfer)
		return res;
	return usm_swap_test.transfer(write, q->offset + q->done, q->buf + q->done,
				      q->len - q->done, res);
}
#endif

static int ring_init(struct io_uring *uring)
{
#ifdef USM_TESTING
	if (usm_swap_test.ring_init) {
		int r = usm_swap_test.ring_init();

		if (r < 0)
			return r;
	}
#endif
	/*
	 * No flags: completions of a dead engine's ring must stay readable by
	 * others, and batches of many threads, each for a moment, use one ring.
	 */
	return io_uring_queue_init(RING_DEPTH, uring, 0);
}

int usm_swap_rings_new(bool no_uring, struct usm_swap_rings **ret)
{
	struct usm_swap_rings *rings;
	int r = 0;

	rings = calloc(1, sizeof(*rings));
	if (!rings)
		return -ENOMEM;
	while (!no_uring && rings->nr < NR_RINGS) {
		struct ring *g = &rings->ring[rings->nr];

		r = ring_init(&g->uring);
		if (r < 0)
			break;
		g->free_requests = UINT64_MAX;
		rings->free |= 1u << rings->nr;
		rings->nr++;
	}
	if (r < 0)
		log_warning_errno(r, "io_uring: only %u of %u rings could be set up: %m; "
				  "swap uses pread and pwrite beyond them, ignoring",
				  rings->nr, NR_RINGS);
	*ret = rings;
	return 0;
}

struct usm_swap_rings *usm_swap_rings_free(struct usm_swap_rings *rings)
{
	if (!rings)
		return NULL;
	/* A ring that broke was closed by the batch that saw it and is not free. */
	for (unsigned i = 0; i < rings->nr; i++)
		if (rings->free >> i & 1)
			io_uring_queue_exit(&rings->ring[i].uring);
	free(rings);
	return NULL;
}

bool usm_swap_rings_enabled(const struct usm_swap_rings *rings)
{
	return rings->nr > 0;
}

static struct ring *ring_acquire(struct usm_swap_rings *rings)
{
	uint32_t free = atomic_load_explicit(&rings->free, memory_order_relaxed);

	while (free) {
		if (atomic_compare_exchange_weak_explicit(&rings->free, &free, free & (free - 1),
							  memory_order_acquire,
							  memory_order_relaxed))
			return &rings->ring[__builtin_ctz(free)];
	}
	return NULL;
}

static void ring_release(struct usm_swap_rings *rings, struct ring *g)
{
	atomic_fetch_or_explicit(&rings->free, 1u << (g - rings->ring), memory_order_release);
}

/* Pages of the run that begins at io[first]. */
static unsigned run_length(const struct usm_swap_io *io, unsigned n, unsigned first)
{
	unsigned i = first + 1;

	while (i < n && i - first < RUN_PAGES_MAX && io[i].slot == io[i - 1].slot + 1 &&
	       (uint8_t *)io[i].buf == (uint8_t *)io[i - 1].buf + USM_SWAP_PAGE)
		i++;
	return i - first;
}

static struct request request_make(const struct usm_swap_target *t, const struct usm_swap_io *io,
				   unsigned n, unsigned first)
{
	unsigned nr = run_length(io, n, first);

	return (struct request){
		.first = first,
		.nr_pages = nr,
		.offset = t->data_offset + (uint64_t)(io[first].slot - t->base) * USM_SWAP_PAGE,
		.buf = io[first].buf,
		.len = (uint64_t)nr * USM_SWAP_PAGE,
	};
}

/* Takes in what one transfer returned.  1: go on with the rest; 0: all done;
 * -errno: the rest of the run has failed. */
static int request_step(struct request *q, ssize_t res)
{
	uint64_t whole;

	if (res < 0 && !usm_swap_is_transient((int)res))
		return (int)res;
	if (res == 0)
		return -EIO; /* end of file: somebody truncated it */
	/* Direct I/O goes on at a block's start only, so a partial page is done again. */
	whole = res > 0 ? (uint64_t)res / USM_SWAP_PAGE * USM_SWAP_PAGE : 0;
	if (whole == 0 && ++q->retries >= RETRIES_MAX)
		return res < 0 ? (int)res : -EIO;
	if (whole == 0)
		return 1;
	q->retries = 0;
	q->done += whole;
	return q->done < q->len;
}

static void request_finish(const struct request *q, struct usm_swap_io *io, int error)
{
	for (unsigned i = 0; i < q->nr_pages; i++)
		io[q->first + i].result = (uint64_t)i * USM_SWAP_PAGE < q->done ? 0 : error;
}

static int request_sync(struct request *q, int fd, bool write)
{
	int r;

	do {
		ssize_t res = write ? pwrite(fd, q->buf + q->done, q->len - q->done,
					     (off_t)(q->offset + q->done)) :
				      pread(fd, q->buf + q->done, q->len - q->done,
					    (off_t)(q->offset + q->done));

		if (res < 0)
			res = -errno;
#ifdef USM_TESTING
		usm_swap_test.nr_sync_requests++;
		res = test_transfer(write, q, res);
#endif
		r = request_step(q, res);
	} while (r > 0);
	return r;
}

int usm_swap_io_sync(int fd, bool write, void *buf, uint64_t len, uint64_t offset)
{
	struct request q = { .offset = offset, .buf = buf, .len = len };

	return request_sync(&q, fd, write);
}

static void sync_batch(const struct usm_swap_target *t, bool write, struct usm_swap_io *io,
		       unsigned n, unsigned from)
{
	while (from < n) {
		struct request q = request_make(t, io, n, from);

		request_finish(&q, io, request_sync(&q, t->fd, write));
		from += q.nr_pages;
	}
}

/* Never fails: the caller has a free request, or one that just completed, so the
 * queue of RING_DEPTH entries has room. */
static void ring_prepare(struct ring *g, unsigned i, int fd, bool write)
{
	struct request *q = &g->request[i];
	struct io_uring_sqe *sqe = io_uring_get_sqe(&g->uring);
	unsigned len = (unsigned)(q->len - q->done);

	if (write)
		io_uring_prep_write(sqe, fd, q->buf + q->done, len, q->offset + q->done);
	else
		io_uring_prep_read(sqe, fd, q->buf + q->done, len, q->offset + q->done);
	sqe->user_data = i;
#ifdef USM_TESTING
	usm_swap_test.nr_ring_requests++;
#endif
}

static int ring_submit(struct ring *g, unsigned wait_nr)
{
#ifdef USM_TESTING
	if (usm_swap_test.ring_submit) {
		int r = usm_swap_test.ring_submit();

		if (r < 0)
			return r;
	}
#endif
	return io_uring_submit_and_wait(&g->uring, wait_nr);
}

/* Handles what has completed. */
static void ring_reap(struct ring *g, const struct usm_swap_target *t, bool write,
		      struct usm_swap_io *io)
{
	struct io_uring_cqe *cqe;
	/* A retried request completes again; each is looked at once here, so that
	 * the queue has room for the retry. */
	unsigned nr = io_uring_cq_ready(&g->uring);

	while (nr-- > 0 && io_uring_peek_cqe(&g->uring, &cqe) == 0) {
		unsigned i = (unsigned)cqe->user_data;
		struct request *q = &g->request[i];
		ssize_t res = cqe->res;
		int r;

		io_uring_cqe_seen(&g->uring, cqe);
#ifdef USM_TESTING
		res = test_transfer(write, q, res);
#endif
		r = request_step(q, res);
		if (r > 0) {
			ring_prepare(g, i, t->fd, write);
			continue;
		}
		request_finish(q, io, r);
		g->free_requests |= 1ull << i;
	}
}

/*
 * The ring does not take requests any more.  Those that it took own their buffers
 * until they complete, so they are waited for; the others are done by hand.  The
 * ring is closed and stays lent for ever.
 */
static void ring_break(struct ring *g, const struct usm_swap_target *t, bool write,
		       struct usm_swap_io *io, int error)
{
	uint64_t unsent = 0;
	unsigned head = *g->uring.sq.khead, nr = io_uring_sq_ready(&g->uring);

	log_warning_errno(error, "io_uring: submitting swap I/O: %m; closing the ring, ignoring");
	for (unsigned k = 0; k < nr; k++) {
		unsigned at = (head + k) & g->uring.sq.ring_mask;

		unsent |= 1ull << g->uring.sq.sqes[at].user_data;
	}
	while (~g->free_requests & ~unsent) {
		struct io_uring_cqe *cqe;
		unsigned i;
		int r;

		r = io_uring_wait_cqe(&g->uring, &cqe);
		if (r == -EINTR || r == -EAGAIN)
			continue;
		if (r < 0) {
			/* The kernel may still write to the buffers and we cannot
			 * learn when it stops.  A new engine can: it quiesces. */
			log_error_errno(r, "io_uring: waiting for swap I/O: %m");
			abort();
		}
		i = (unsigned)cqe->user_data;
		r = request_step(&g->request[i], cqe->res);
		io_uring_cqe_seen(&g->uring, cqe);
		if (r > 0) {
			unsent |= 1ull << i;
			continue;
		}
		request_finish(&g->request[i], io, r);
		g->free_requests |= 1ull << i;
	}
	io_uring_queue_exit(&g->uring);
	while (unsent) {
		struct request *q = &g->request[__builtin_ctzll(unsent)];

		request_finish(q, io, request_sync(q, t->fd, write));
		unsent &= unsent - 1;
	}
}

/* True: all done, the ring is idle.  False: the ring is closed; *next tells where
 * the rest of the batch begins. */
static bool ring_batch(struct ring *g, const struct usm_swap_target *t, bool write,
		       struct usm_swap_io *io, unsigned n, unsigned *next)
{
	unsigned failures = 0;

	*next = 0;
	for (;;) {
		unsigned outstanding, wait_nr;
		int r;

		while (*next < n && g->free_requests) {
			unsigned i = (unsigned)__builtin_ctzll(g->free_requests);

			g->free_requests &= ~(1ull << i);
			g->request[i] = request_make(t, io, n, *next);
			*next += g->request[i].nr_pages;
			ring_prepare(g, i, t->fd, write);
		}
		outstanding = (unsigned)__builtin_popcountll(~g->free_requests);
		if (outstanding == 0)
			return true;

		/* The last requests are waited for together; before, half of them
		 * is enough to refill the queue. */
		wait_nr = *next < n ? (outstanding + 1) / 2 : outstanding;
		r = ring_submit(g, wait_nr);
		if (r >= 0) {
			failures = 0;
		} else if (r != -EINTR && r != -EAGAIN && r != -EBUSY && r != -ENOMEM) {
			failures = RETRIES_MAX;
		} else if (r != -EINTR) {
			failures++;
		}
		if (failures >= RETRIES_MAX) {
			ring_break(g, t, write, io, r);
			return false;
		}
		ring_reap(g, t, write, io);
	}
}

void usm_swap_io_batch(struct usm_swap_rings *rings, const struct usm_swap_target *t, bool write,
		       struct usm_swap_io *io, unsigned n)
{
	struct ring *g = NULL;
	unsigned done = 0;

	/* One run: a plain system call has the lowest latency. */
	if (n > 0 && t->uring && run_length(io, n, 0) < n)
		g = ring_acquire(rings);
	if (g && ring_batch(g, t, write, io, n, &done))
		ring_release(rings, g);
	sync_batch(t, write, io, n, done);
}

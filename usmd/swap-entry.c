/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Swap entries: allocation, references, checksums and transfers of slots,
 * whichever device they are on.
 */
#include <errno.h>
#include <stdlib.h>
#include <xxhash.h>

#include "core.h"
#include "kill-point.h"
#include "lib/cleanup.h"
#include "lib/log.h"
#include "swap-ops.h"
#include "swap.h"

/* A device whose write failed is used after all others for so long: then it is tried again. */
#define FAILING_NSEC 10000000000ll

static bool owns(const struct usm_swap_device *d, uint32_t slot)
{
	return usm_swap_is_live(d) && slot - d->base < d->nr_slots;
}

static struct usm_swap_device *device_of(struct usm_swap *s, uint32_t slot)
{
	for (unsigned i = 0; i < USM_SWAP_DEVICES; i++)
		if (owns(&s->device[i], slot))
			return &s->device[i];
	return NULL;
}

bool usm_swap_slot_draining(struct usm_swap *s, uint32_t slot)
{
	struct usm_swap_device *d = device_of(s, slot);

	return d && d->state == USM_SWAP_DRAINING;
}

static bool is_failing(const struct usm_swap_device *d, uint64_t now)
{
	uint64_t failed = atomic_load_explicit(&d->failed_nsec, memory_order_relaxed);

	return failed && (int64_t)(now - failed) < FAILING_NSEC;
}

unsigned usm_swap_alloc(struct usm_swap *s, uint32_t *slots, unsigned n)
{
	uint64_t now = now_nsec();
	unsigned done = 0;

	pthread_mutex_lock(&s->list_mutex);
	/* Twice through the list: those that fail are the second choice. */
	for (unsigned k = 0; k < 2 * s->nr_order && done < n; k++) {
		struct usm_swap_device *d = s->order[k % s->nr_order];
		unsigned got;

		if (is_failing(d, now) != (k >= s->nr_order))
			continue;
		pthread_mutex_lock(&d->slots_mutex);
		got = usm_swap_slots_alloc(d->slots, d->base, slots + done, n - done);
		for (unsigned i = done; i < done + got; i++)
			atomic_store_explicit(&d->refs[slots[i] - d->base], 1,
					      memory_order_relaxed);
		pthread_mutex_unlock(&d->slots_mutex);
		done += got;
	}
	pthread_mutex_unlock(&s->list_mutex);
	return done;
}

/* Our own accounting is wrong and going on could show a page to another process.  A
 * new engine counts the references anew from the page tables. */
static _Noreturn void slot_abort(uint32_t slot, const char *what)
{
	struct usm_log_fields f = { .event = "swap", .message_id = USM_MSG_SWAP,
				    .slot = slot, .has_slot = 1 };

	log_event(LOG_CRIT, &f, "swap slot %u: %s", slot, what);
	abort();
}

void usm_swap_ref(struct usm_swap *s, uint32_t slot)
{
	struct usm_swap_device *d = device_of(s, slot);
	_Atomic uint32_t *refs;
	uint32_t n;

	if (!d)
		slot_abort(slot, "reference to a slot of no device");
	refs = &d->refs[slot - d->base];
	n = atomic_load_explicit(refs, memory_order_relaxed);
	do {
		if (n == 0)
			slot_abort(slot, "reference to a free slot");
		if (n == UINT32_MAX)
			slot_abort(slot, "too many references");
	} while (!atomic_compare_exchange_weak(refs, &n, n + 1));
}

/* Leaks a slot at worst, so it is survived. */
static void bad_unref(struct usm_swap *s, uint32_t slot)
{
	struct usm_log_fields f = { .event = "swap", .message_id = USM_MSG_SWAP,
				    .slot = slot, .has_slot = 1 };

#ifdef USM_DEBUG
	slot_abort(slot, "released, but it is free");
#endif
	usm_swap_count_error(&s->nr_errors);
	log_event(LOG_ERR, &f, "swap slot %u: released, but it is free, ignoring", slot);
}

void usm_swap_unref(struct usm_swap *s, uint32_t slot)
{
	struct usm_swap_device *d = device_of(s, slot);
	_Atomic uint32_t *refs;
	uint32_t n;

	if (!d) {
		bad_unref(s, slot);
		return;
	}
	refs = &d->refs[slot - d->base];
	n = atomic_load_explicit(refs, memory_order_relaxed);
	do {
		if (n == 0) {
			bad_unref(s, slot);
			return;
		}
	} while (!atomic_compare_exchange_weak(refs, &n, n - 1));
	if (n > 1)
		return;
	/* Until the bit is cleared nobody can be given the slot. */
	KILL_POINT("slot-unreferenced");
	pthread_mutex_lock(&d->slots_mutex);
	usm_swap_slots_release(d->slots, slot - d->base);
	pthread_mutex_unlock(&d->slots_mutex);
}

unsigned usm_swap_refs(struct usm_swap *s, uint32_t slot)
{
	struct usm_swap_device *d = device_of(s, slot);

	return d ? atomic_load(&d->refs[slot - d->base]) : 0;
}

int usm_swap_ref_recovered(struct usm_swap *s, uint32_t slot)
{
	struct usm_swap_device *d = device_of(s, slot);
	_Atomic uint32_t *refs;
	int r;

	if (!d)
		return -EINVAL;
	refs = &d->refs[slot - d->base];
	if (*refs == UINT32_MAX)
		return -EINVAL;
	if (*refs == 0) {
		r = usm_swap_slots_take(d->slots, slot - d->base);
		if (r < 0)
			return r;
	}
	(*refs)++;
	return 0;
}

static struct usm_hash page_hash(struct usm_swap *s, struct usm_swap_device *d, const void *page)
{
	const uint8_t *secret = usm_swap_shared_of(s, d)->secret;
	XXH128_hash_t h = XXH3_128bits_withSecret(page, USM_SWAP_PAGE, secret, USM_SWAP_SECRET);

	return (struct usm_hash){ .lo = h.low64, .hi = h.high64 };
}

static bool hash_equal(struct usm_hash a, struct usm_hash b)
{
	return a.lo == b.lo && a.hi == b.hi;
}

struct usm_hash usm_swap_hash(struct usm_swap *s, uint32_t slot, const void *page)
{
	struct usm_swap_device *d = device_of(s, slot);

	return d ? page_hash(s, d, page) : (struct usm_hash){ 0 };
}

bool usm_swap_slot_matches(struct usm_swap *s, uint32_t slot, const void *page)
{
	struct usm_swap_device *d = device_of(s, slot);

	return d && hash_equal(page_hash(s, d, page), s->config.hash[slot]);
}

/* The device of a page that may be read or written, else NULL.  A slot without a
 * reference may be given to another process at any moment. */
static struct usm_swap_device *io_device(struct usm_swap *s, const struct usm_swap_io *io)
{
	struct usm_swap_device *d = device_of(s, io->slot);

	if (!d || (uintptr_t)io->buf % USM_SWAP_PAGE != 0 || !io->buf ||
	    atomic_load_explicit(&d->refs[io->slot - d->base], memory_order_relaxed) == 0)
		return NULL;
	return d;
}

/* It is the second choice from now on, and says so once in that time. */
static void note_failure(struct usm_swap_device *d, uint32_t slot, int error)
{
	struct usm_log_fields f = { .event = "swap", .message_id = USM_MSG_SWAP,
				    .slot = slot, .has_slot = 1 };
	uint64_t now = now_nsec();
	bool known = is_failing(d, now);

	atomic_store_explicit(&d->failed_nsec, now, memory_order_relaxed);
	if (!known)
		log_event_errno(LOG_ERR, error, &f, "swap file %s: writing slot %u: %m; the page "
				"stays in memory until another slot takes it", d->path, slot);
}

/* Counts; a failed write leaves a slot that matches nothing. */
static void written(struct usm_swap *s, struct usm_swap_device *d, struct usm_swap_io *io)
{
	struct usm_hash *h = &s->config.hash[io->slot];

	if (io->result < 0) {
		*h = (struct usm_hash){ ~h->lo, ~h->hi };
		usm_swap_count_error(&d->nr_errors);
		note_failure(d, io->slot, io->result);
	} else {
		atomic_fetch_add_explicit(&d->nr_writes, 1, memory_order_relaxed);
	}
}

static void was_read(struct usm_swap *s, struct usm_swap_device *d, struct usm_swap_io *io)
{
	if (io->result == 0 && !hash_equal(page_hash(s, d, io->buf), s->config.hash[io->slot]))
		io->result = -EBADMSG;
	if (io->result < 0)
		usm_swap_count_error(&d->nr_errors);
	else
		atomic_fetch_add_explicit(&d->nr_reads, 1, memory_order_relaxed);
}

/* Hands each stretch of pages of one device to it. */
static int transfer(struct usm_swap *s, struct usm_swap_io *io, unsigned n, bool write)
{
	unsigned i, end;

	for (i = 0; i < n; i = end) {
		struct usm_swap_device *d = io_device(s, &io[i]);

		end = i + 1;
		if (!d) {
			io[i].result = -EINVAL;
			usm_swap_count_error(&s->nr_errors);
			continue;
		}
		while (end < n && io_device(s, &io[end]) == d)
			end++;
		if (write) {
			for (unsigned k = i; k < end; k++)
				s->config.hash[io[k].slot] = page_hash(s, d, io[k].buf);
			KILL_POINT("swap-hashed");
			d->ops->write(d, io + i, end - i);
		} else {
			d->ops->read(d, io + i, end - i);
		}
		for (unsigned k = i; k < end; k++) {
			if (write)
				written(s, d, &io[k]);
			else
				was_read(s, d, &io[k]);
		}
	}
	for (i = 0; i < n; i++)
		if (io[i].result < 0)
			return io[i].result;
	return 0;
}

int usm_swap_write(struct usm_swap *s, struct usm_swap_io *io, unsigned n)
{
	return transfer(s, io, n, true);
}

int usm_swap_read(struct usm_swap *s, struct usm_swap_io *io, unsigned n)
{
	return transfer(s, io, n, false);
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "lib/cleanup.h"
#include "swap-slots.h"

/* Free runs that one allocation looks at before it is content with the longest of
 * them: bounds the time under the mutex on a fragmented device. */
#define RUNS_EXAMINED 64u
/* Of those, how many are remembered: a batch in more pieces gains little over
 * single slots. */
#define RUNS_KEPT 8u

struct usm_swap_slots {
	uint32_t nr, nr_used, nr_words;
	uint32_t hint; /* where the next search begins */
	uint64_t *words;
	uint64_t *full; /* bit w: words[w] is all ones */
};

struct run {
	uint32_t start, n;
};

static void word_set(struct usm_swap_slots *s, uint32_t w, uint64_t bits)
{
	s->words[w] |= bits;
	if (s->words[w] == UINT64_MAX)
		s->full[w / 64] |= 1ull << (w % 64);
}

static bool is_used(const struct usm_swap_slots *s, uint32_t i)
{
	return s->words[i / 64] >> (i % 64) & 1;
}

static void take(struct usm_swap_slots *s, uint32_t i)
{
	word_set(s, i / 64, 1ull << (i % 64));
	s->nr_used++;
}

int usm_swap_slots_new(uint32_t nr, struct usm_swap_slots **ret)
{
	struct usm_swap_slots *s;
	uint32_t nr_full;

	if (nr == 0)
		return -EINVAL;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->nr = nr;
	s->nr_words = (uint32_t)(((uint64_t)nr + 63) / 64);
	nr_full = (s->nr_words + 63) / 64;
	s->words = calloc(s->nr_words, sizeof(uint64_t));
	s->full = calloc(nr_full, sizeof(uint64_t));
	if (!s->words || !s->full) {
		usm_swap_slots_free(s);
		return -ENOMEM;
	}
	/* What lies beyond the end counts as used, so that no search returns it. */
	if (nr % 64)
		word_set(s, s->nr_words - 1, UINT64_MAX << (nr % 64));
	if (s->nr_words % 64)
		s->full[nr_full - 1] |= UINT64_MAX << (s->nr_words % 64);
	*ret = s;
	return 0;
}

struct usm_swap_slots *usm_swap_slots_free(struct usm_swap_slots *s)
{
	if (!s)
		return NULL;
	free(s->words);
	free(s->full);
	free(s);
	return NULL;
}

/* The first word from w on that is not full, or nr_words. */
static uint32_t next_open_word(const struct usm_swap_slots *s, uint32_t w)
{
	uint32_t nr_full = (s->nr_words + 63) / 64, f = w / 64;
	uint64_t open;

	if (w >= s->nr_words)
		return s->nr_words;
	open = ~s->full[f] & (UINT64_MAX << (w % 64));
	while (!open) {
		if (++f == nr_full)
			return s->nr_words;
		open = ~s->full[f];
	}
	return f * 64 + (uint32_t)__builtin_ctzll(open);
}

/* The first free slot in [i, end), or end. */
static uint32_t next_free(const struct usm_swap_slots *s, uint32_t i, uint32_t end)
{
	uint64_t open;
	uint32_t w;

	if (i >= end)
		return end;
	open = ~s->words[i / 64] & (UINT64_MAX << (i % 64));
	if (open) {
		i = i / 64 * 64 + (uint32_t)__builtin_ctzll(open);
		return MIN(i, end);
	}
	w = next_open_word(s, i / 64 + 1);
	if (w == s->nr_words)
		return end;
	i = w * 64 + (uint32_t)__builtin_ctzll(~s->words[w]);
	return MIN(i, end);
}

/* The first used slot in [i, end), or end; i < end. */
static uint32_t next_used(const struct usm_swap_slots *s, uint32_t i, uint32_t end)
{
	uint64_t used = s->words[i / 64] & (UINT64_MAX << (i % 64));
	uint32_t w = i / 64;

	while (!used) {
		if (++w * 64ull >= end)
			return end;
		used = s->words[w];
	}
	i = w * 64 + (uint32_t)__builtin_ctzll(used);
	return MIN(i, end);
}

/* kept[] stays sorted, longest first. */
static void keep_run(struct run *kept, unsigned *nr_kept, struct run r)
{
	unsigned i;

	if (*nr_kept == RUNS_KEPT) {
		if (kept[RUNS_KEPT - 1].n >= r.n)
			return;
		(*nr_kept)--;
	}
	for (i = (*nr_kept)++; i > 0 && kept[i - 1].n < r.n; i--)
		kept[i] = kept[i - 1];
	kept[i] = r;
}

/* Looks for n free slots in a row in [from, end).  True: *found.  False: what it
 * saw is in kept[], and *budget is smaller. */
static bool find_run(const struct usm_swap_slots *s, uint32_t from, uint32_t end, uint32_t n,
		     unsigned *budget, struct run *kept, unsigned *nr_kept, struct run *found)
{
	while (*budget > 0) {
		struct run r;
		uint32_t limit;

		r.start = next_free(s, from, end);
		if (r.start == end)
			return false;
		limit = end - r.start > n ? r.start + n : end;
		from = next_used(s, r.start, limit);
		r.n = from - r.start;
		if (r.n == n) {
			*found = r;
			return true;
		}
		keep_run(kept, nr_kept, r);
		(*budget)--;
	}
	return false;
}

static unsigned take_run(struct usm_swap_slots *s, struct run r, uint32_t base, uint32_t *slots)
{
	for (uint32_t i = 0; i < r.n; i++) {
		take(s, r.start + i);
		slots[i] = base + r.start + i;
	}
	s->hint = r.start + r.n == s->nr ? 0 : r.start + r.n;
	return r.n;
}

unsigned usm_swap_slots_alloc(struct usm_swap_slots *s, uint32_t base, uint32_t *slots, unsigned n)
{
	struct run kept[RUNS_KEPT], found;
	unsigned nr_kept = 0, budget = RUNS_EXAMINED, done = 0;
	uint32_t hint = s->hint;

	n = MIN(n, s->nr - s->nr_used);
	if (n == 0)
		return 0;

	if (find_run(s, hint, s->nr, n, &budget, kept, &nr_kept, &found) ||
	    find_run(s, 0, hint, n, &budget, kept, &nr_kept, &found))
		return take_run(s, found, base, slots);

	for (unsigned i = 0; i < nr_kept && done < n; i++) {
		kept[i].n = MIN(kept[i].n, n - done);
		done += take_run(s, kept[i], base, slots + done);
	}
	/* Each step takes a slot, so this too is bounded by n (and the full words
	 * in between, which the summary skips). */
	for (uint32_t i = s->hint; done < n;) {
		i = next_free(s, i, s->nr);
		if (i == s->nr)
			i = next_free(s, 0, s->nr);
		done += take_run(s, (struct run){ i, 1 }, base, slots + done);
	}
	return done;
}

int usm_swap_slots_take(struct usm_swap_slots *s, uint32_t index)
{
	if (is_used(s, index))
		return -EBUSY;
	take(s, index);
	return 0;
}

void usm_swap_slots_release(struct usm_swap_slots *s, uint32_t index)
{
	s->words[index / 64] &= ~(1ull << (index % 64));
	s->full[index / 64 / 64] &= ~(1ull << (index / 64 % 64));
	s->nr_used--;
}

uint32_t usm_swap_slots_used(const struct usm_swap_slots *s)
{
	return s->nr_used;
}

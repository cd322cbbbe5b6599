/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "journal.h"

#include "lib/log.h"
#include "pool.h"

#define EARLY_BEATS 10
#define LATE_BEATS  10

bool journal_is_due(struct journal_turn *t, uint32_t generation, uint64_t beat)
{
	if (t->generation != generation)
		*t = (struct journal_turn){.generation = generation, .first_beat = beat};
	else if (beat - t->first_beat > EARLY_BEATS && beat - t->last_beat < LATE_BEATS)
		return false;
	t->last_beat = beat;
	return true;
}

/* How many have not been said, which they are now.  Several threads may ask. */
static uint64_t take_unsaid(_Atomic uint64_t *count, _Atomic uint64_t *said)
{
	uint64_t before = atomic_load(said), now = atomic_load(count);

	while (now > before)
		if (atomic_compare_exchange_weak(said, &before, now))
			return now - before;
	return 0;
}

void journal_say_sums(struct process *p)
{
	struct arena_process *s = p->shared;
	const struct {
		const char *event, *message_id, *text;
		_Atomic uint64_t *count, *said;
	} kinds[] = {
		{"fault", USM_MSG_FAULT, "faults", &s->nr_faults, &s->said_faults},
		{"evict", USM_MSG_EVICT, "pages evicted", &s->nr_evictions, &s->said_evictions},
		{"swapin", USM_MSG_SWAPIN, "pages swapped in", &s->nr_swap_ins, &s->said_swap_ins},
	};

	for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		struct usm_log_fields f = {
			.event = kinds[i].event,
			.message_id = kinds[i].message_id,
			.process = s->name,
			.pid = s->pid,
			.policy = s->policy,
			.count = take_unsaid(kinds[i].count, kinds[i].said),
			.has_count = 1,
		};

		if (f.count)
			log_event(LOG_INFO, &f, "%s (pid %d): %llu %s", s->name, s->pid,
				  (unsigned long long)f.count, kinds[i].text);
	}
}

static void say_page(struct process *p, const char *event, const char *message_id, uint64_t vpn,
		     uint32_t frame, uint32_t slot)
{
	const struct arena_process *s = p->shared;
	struct usm_log_fields f = {
		.event = event,
		.message_id = message_id,
		.process = s->name,
		.pid = s->pid,
		.policy = s->policy,
		.addr = VADDR(vpn),
		.frame = pool_paddr(frame),
		.has_frame = 1,
		.slot = slot,
		.has_slot = slot != 0,
		.count = 1,
		.has_count = 1,
	};

	log_event(LOG_DEBUG, &f, "%s (pid %d): %s at %#llx, frame %#llx, slot %u", s->name, s->pid, event,
		  (unsigned long long)VADDR(vpn), (unsigned long long)f.frame, slot);
}

void journal_say_filled(const struct fill *f)
{
	if (usm_log_level() < LOG_DEBUG)
		return;
	for (unsigned i = 0; i < f->n; i++) {
		uint64_t v = atomic_load(&f->entry[i]);

		/* What was given back, or has left again, has another entry by now. */
		if (!f->frame[i] || PAGE_STATE(v) != PAGE_RESIDENT || PAGE_VALUE(v) != f->frame[i])
			continue;
		if (f->swapped)
			say_page(f->p, "swapin", USM_MSG_SWAPIN, f->vpn + i, f->frame[i], f->slot[i]);
		else
			say_page(f->p, "fault", USM_MSG_FAULT, f->vpn + i, f->frame[i], 0);
	}
}

void journal_say_evicted(struct process *p, uint64_t vpn, uint32_t frame, uint32_t slot)
{
	if (usm_log_level() >= LOG_DEBUG)
		say_page(p, "evict", USM_MSG_EVICT, vpn, frame, slot);
}

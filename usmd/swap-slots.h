/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The free slots of one swap device: a bitmap (1 = used) and above it one bit a
 * word that says "this word is full", so that a nearly full device is searched
 * 4096 slots at a step.  Indexes are the device's own, from 0.  Not thread-safe:
 * the device's mutex is held.
 */
#pragma once

#include <stdint.h>

struct usm_swap_slots;

/* All free.  -EINVAL for 0 slots, -ENOMEM. */
int usm_swap_slots_new(uint32_t nr, struct usm_swap_slots **ret);
struct usm_swap_slots *usm_swap_slots_free(struct usm_swap_slots *s); /* accepts NULL */

/*
 * Takes up to n slots: one run of n after the previous allocation if a bounded
 * search finds it, else the longest runs that the search saw, else single slots.
 * Stores base + index.  Returns how many, less than n only if no slot is left.
 */
unsigned usm_swap_slots_alloc(struct usm_swap_slots *s, uint32_t base, uint32_t *slots, unsigned n);
/* Takes this one.  -EBUSY if it is used already. */
int usm_swap_slots_take(struct usm_swap_slots *s, uint32_t index);
void usm_swap_slots_release(struct usm_swap_slots *s, uint32_t index);
uint32_t usm_swap_slots_used(const struct usm_swap_slots *s);

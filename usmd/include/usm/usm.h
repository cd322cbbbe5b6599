/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The surface of the USM guides ("Your First Allocation Policy", "Your First
 * Eviction Policy") on top of <usm/policy.h>: what their listings name.
 */
#pragma once

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <usm/list.h>
#include <usm/policy.h>

#ifndef likely
#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#endif

#define SYS_PAGE_SIZE 4096

struct swap_node {
	struct list_head iulist;
	struct to_swap *toSwapHolder;
};

/*
 * One instance in each plugin, not in usmd: the pages of this set's pool, set
 * before usm_setup(); and the emergency eviction function, which the plugin
 * sets.  usmd calls it too, whenever it wants a victim of this set.
 */
__attribute__((weak, visibility("default"))) struct page *pagesList;
__attribute__((weak, visibility("default"))) void (*usm_evict_fallback)(struct usm_event *event);

/* The page that event->paddr names; NULL if it is not one of this pool. */
static inline struct page *usmEventToPage(const struct usm_event *event)
{
	return pagesList + (event->paddr - pagesList->physicalAddress) / SYS_PAGE_SIZE;
}

/* The list node of a fresh swap node of the device, for list_entry(). usmd owns it. */
struct list_head *getSwapNode(struct swap_device *device);

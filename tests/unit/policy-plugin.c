/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The plugins of test-policy, one for each -DPLUGIN=NAME: what policies get wrong, and the
 * form of the USM guides.  Frames are given out in their order; `answer` is what differs.
 */
#include <usm/usm.h>

enum {
	GOOD,
	WRONG_FRAME,	 /* cycles through addresses that are not frames of the pool */
	TAKEN_FRAME,	 /* the first frame, always */
	WRONG_EVENT,	 /* submits for another page */
	SUBMITS_TWICE,	 /* two frames for one page */
	ONLY_SAYS_SO,	 /* returns 0 without a frame */
	TAKES_IT_BACK,	 /* submits, then returns 1 */
	NO_ALLOC,
	NO_FREE,
	FREE_BY_ADDRESS, /* usm_free instead of usm_pindex_free */
	NEWER_ABI,
	LARGER_OPS,	 /* built with callbacks that this usmd does not know */
	SMALLER_OPS,	 /* built before put_used_pages was there */
	BAD_NAME,
	TWO_POLICIES,
	SETUP_FAILS,
	INIT_FAILS,
	REGISTERS_NONE,
	REGISTERS_LATE,	 /* tries again from usm_alloc */
	FOREIGN_VICTIM,
	FREE_VICTIM,
	SWAP_POLICY,
	GUIDE,		 /* evicts inside usm_alloc */
};

int plugin_nr_freed, plugin_nr_freed_first, plugin_late_result = -1, plugin_second_result = -1;
unsigned int plugin_nr_pages, plugin_wanted, plugin_given_back;
static unsigned int next, oldest;
static char *state; /* a page's: 0 free, 1 used, 2 leaving */

static unsigned long answer(struct usm_event *event)
{
	static const unsigned long wrong[] = {0, 4096, 1, ~0ul};

	(void)event;
	switch (PLUGIN) {
	case WRONG_FRAME:
		if (next < 4)
			return wrong[next++];
		/* Misaligned; one before; one behind, which usmd could lend. */
		next++;
		return pagesList[0].physicalAddress + (next == 5   ? 8 :
						       next == 6 ? -4096ul :
								   4096ul * plugin_nr_pages);
	case TAKEN_FRAME:
		return pagesList[0].physicalAddress;
	default:
		for (unsigned int i = 0; i < plugin_nr_pages; i++)
			if (!state[i])
				return pagesList[i].physicalAddress;
		return 0;
	}
}

static void evict_oldest(void)
{
	struct to_swap *victim;
	unsigned int i, tried = 0;

	do
		i = oldest++ % plugin_nr_pages;
	while (state[i] != 1 && ++tried < plugin_nr_pages);
	if (tried == plugin_nr_pages)
		return;
	/* As in the guide, with its names. */
	victim = malloc(sizeof(*victim));
	victim->page = &pagesList[i];
	victim->proc = pagesList[i].process;
	victim->swapped_address = pagesList[i].virtualAddress;
	victim->swapDevice = choose_swap_device(victim->proc);
	victim->snode = list_entry(getSwapNode(victim->swapDevice), struct swap_node, iulist);
	victim->snode->toSwapHolder = victim;
	state[i] = 2;
	victim->swapDevice->swap_dev_ops.swap_out(victim);
}

static const struct usm_alloc_policy_ops ops;

static int alloc(struct usm_event *event)
{
	if (PLUGIN == ONLY_SAYS_SO)
		return 0;
	if (PLUGIN == REGISTERS_LATE)
		plugin_late_result = usm_register_alloc_policy(&ops, "late", false);
	event->paddr = answer(event);
	if (PLUGIN == GUIDE && !event->paddr) {
		evict_oldest();
		event->paddr = answer(event);
	}
	if (!event->paddr && PLUGIN != WRONG_FRAME)
		return 1;
	if (PLUGIN == WRONG_EVENT)
		event->vaddr += 4096;
	if (usmSubmitAllocEvent(event))
		return 1;
	usmLinkPage(usmEventToPage(event), event);
	state[usmEventToPage(event) - pagesList] = 1;
	if (PLUGIN == SUBMITS_TWICE) {
		event->paddr = answer(event);
		plugin_second_result = usmSubmitAllocEvent(event);
	}
	return PLUGIN == TAKES_IT_BACK;
}

static int frame_free(struct usm_event *event)
{
	state[usmEventToPage(event) - pagesList] = 0;
	plugin_nr_freed++;
	return 0;
}

/* Of the first of two policies in one set. */
static int frame_free_first(struct usm_event *event)
{
	plugin_nr_freed_first++;
	return frame_free(event);
}

static void put_used(struct page **pages, unsigned int n)
{
	plugin_given_back += n;
	for (unsigned int i = 0; i < n; i++)
		state[pages[i] - pagesList] = 1;
}

static int swap(unsigned int nr)
{
	plugin_wanted = nr;
	for (unsigned int i = 0; i < nr; i++)
		evict_oldest();
	return 0;
}

static void victim_of(struct page *page)
{
	struct to_swap *victim = calloc(1, sizeof(*victim));

	victim->page = page;
	choose_swap_device(0)->swap_dev_ops.swap_out(victim);
}

static void fallback(struct usm_event *event)
{
	static struct page foreign = {.physicalAddress = 4096};

	(void)event;
	if (PLUGIN == FOREIGN_VICTIM)
		victim_of(&foreign);
	else if (PLUGIN == FREE_VICTIM)
		victim_of(&pagesList[plugin_nr_pages - 1]);
	else
		evict_oldest();
}

static int init(void)
{
	return PLUGIN == INIT_FAILS;
}

static const struct usm_alloc_policy_ops ops = {
	.usm_init = init,
	.usm_alloc = PLUGIN == NO_ALLOC ? NULL : alloc,
	.usm_pindex_free = PLUGIN == NO_FREE || PLUGIN == FREE_BY_ADDRESS ? NULL : frame_free,
	.usm_free = PLUGIN == FREE_BY_ADDRESS ? frame_free : NULL,
	.put_used_pages = put_used,
};
static const struct usm_alloc_policy_ops first_ops = {
	.usm_alloc = alloc,
	.usm_pindex_free = frame_free_first,
};
static const struct usm_swap_policy_ops swap_ops = {.usm_swap = swap};

/* What a later ABI might look like. */
static const struct {
	struct usm_alloc_policy_ops known;
	int (*unknown[8])(void);
} larger = {
	.known = {.usm_alloc = alloc, .usm_pindex_free = frame_free},
	.unknown = {init, init, init, init, init, init, init, init},
};

static int setup(unsigned int pagesNumber)
{
	plugin_nr_pages = pagesNumber;
	state = calloc(1, pagesNumber);
	usm_evict_fallback = fallback;
	switch (PLUGIN) {
	case SETUP_FAILS:
		usm_register_alloc_policy(&ops, "test", true);
		return 1;
	case REGISTERS_NONE:
		return 0;
	case NEWER_ABI:
		return usm_register_alloc_policy_abi(&ops, "test", true, USM_POLICY_ABI + 1,
						     sizeof(ops));
	case LARGER_OPS:
		return usm_register_alloc_policy_abi(&larger.known, "test", true, USM_POLICY_ABI,
						     sizeof(larger));
	case SMALLER_OPS:
		return usm_register_alloc_policy_abi(
			&ops, "test", true, USM_POLICY_ABI,
			offsetof(struct usm_alloc_policy_ops, usm_accessed));
	case BAD_NAME:
		return usm_register_alloc_policy(&ops, "a name", true);
	case TWO_POLICIES:
		return usm_register_alloc_policy(&first_ops, "first", false) ||
		       usm_register_alloc_policy(&ops, "second", true) ||
		       usm_register_swap_policy(&swap_ops, "swapper", false);
	case SWAP_POLICY:
		return usm_register_alloc_policy(&ops, "test", true) ||
		       usm_register_swap_policy(&swap_ops, "test", true);
	default:
		return usm_register_alloc_policy(&ops, "test", true);
	}
}

static void teardown(void)
{
	free(state);
}

struct usm_ops dev_usm_ops = {.usm_setup = setup, .usm_free = teardown};

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * policyOne: the first free frame serves a fault, the page that came first leaves
 * first.  The policy of the two USM guides, and the one to read first.
 */
#include <usm/usm.h>

/* One for each page of the pool, in the same order. */
struct node {
	struct page *page;
	struct list_head list; /* in free_list or used_list, or in neither: chosen as victim */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static LIST_HEAD(free_list);
static LIST_HEAD(used_list); /* oldest first */
static struct node *nodes;

static struct node *node_of(const struct page *page)
{
	return &nodes[page - pagesList];
}

static int alloc(struct usm_event *event)
{
	struct node *node;

	pthread_mutex_lock(&lock);
	if (unlikely(list_empty(&free_list))) {
		pthread_mutex_unlock(&lock);
		return 1;
	}
	node = list_first_entry(&free_list, struct node, list);
	list_del_init(&node->list);
	pthread_mutex_unlock(&lock);

	event->paddr = node->page->physicalAddress;
	if (unlikely(usmSubmitAllocEvent(event))) {
		pthread_mutex_lock(&lock);
		list_del_init(&node->list);
		list_add(&node->list, &free_list);
		pthread_mutex_unlock(&lock);
		return 1;
	}
	usmLinkPage(node->page, event);
	pthread_mutex_lock(&lock);
	/* frame_free() of another thread may have put it into a list meanwhile. */
	list_del_init(&node->list);
	list_add_tail(&node->list, &used_list);
	pthread_mutex_unlock(&lock);
	return 0;
}

static int frame_free(struct usm_event *event)
{
	struct node *node = node_of(usmEventToPage(event));

	pthread_mutex_lock(&lock);
	list_del_init(&node->list);
	list_add(&node->list, &free_list);
	pthread_mutex_unlock(&lock);
	return 0;
}

/* What could not leave is the youngest again, so that the next victim is another one. */
static void put_used(struct page **pages, unsigned int n)
{
	pthread_mutex_lock(&lock);
	for (unsigned int i = 0; i < n; i++) {
		list_del_init(&node_of(pages[i])->list);
		list_add_tail(&node_of(pages[i])->list, &used_list);
	}
	pthread_mutex_unlock(&lock);
}

static unsigned int get(struct list_head *from, struct page **pages, unsigned int offset,
			unsigned int max)
{
	unsigned int seen = 0, n = 0;
	struct node *node;

	pthread_mutex_lock(&lock);
	list_for_each_entry(node, from, list) {
		if (n == max)
			break;
		if (seen++ >= offset)
			pages[n++] = node->page;
	}
	pthread_mutex_unlock(&lock);
	return n;
}

static unsigned int get_used(struct page **pages, unsigned int offset, unsigned int max)
{
	return get(&used_list, pages, offset, max);
}

static unsigned int get_free(struct page **pages, unsigned int offset, unsigned int max)
{
	return get(&free_list, pages, offset, max);
}

/* The oldest page leaves.  usmd calls this again for more. */
static void evict(struct usm_event *event)
{
	struct to_swap *victim = malloc(sizeof(*victim));
	struct node *node;

	(void)event;
	if (!victim)
		return;
	pthread_mutex_lock(&lock);
	if (list_empty(&used_list)) {
		pthread_mutex_unlock(&lock);
		free(victim);
		return;
	}
	node = list_first_entry(&used_list, struct node, list);
	list_del_init(&node->list);
	pthread_mutex_unlock(&lock);

	victim->page = node->page;
	victim->proc = node->page->process;
	victim->swapped_address = node->page->virtualAddress;
	victim->swapDevice = choose_swap_device(victim->proc);
	victim->snode = NULL;
	victim->swapDevice->swap_dev_ops.swap_out(victim);
}

static const struct usm_alloc_policy_ops policy_one = {
	.usm_alloc = alloc,
	.usm_pindex_free = frame_free,
	.get_pages = get_free,
	.get_used_pages = get_used,
	.put_used_pages = put_used,
};

static int setup(unsigned int pagesNumber)
{
	nodes = calloc(pagesNumber, sizeof(*nodes));
	if (!nodes)
		return 1;
	for (unsigned int i = 0; i < pagesNumber; i++) {
		nodes[i].page = &pagesList[i];
		list_add_tail(&nodes[i].list, &free_list);
	}
	usm_evict_fallback = evict;
	return usm_register_alloc_policy(&policy_one, "policyOne", true);
}

static void teardown(void)
{
	free(nodes);
}

struct usm_ops dev_usm_ops = {
	.usm_setup = setup,
	.usm_free = teardown,
};

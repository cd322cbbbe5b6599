/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <string.h>

#include "kill-point.h"
#include "lib/cleanup.h"
#include "page.h"

#define INNER_ENTRIES 1024u
#define ROOT_INDEX(vpn)	 ((uint32_t)((vpn) >> 19))
#define INNER_INDEX(vpn) ((uint32_t)((vpn) >> 9) & (INNER_ENTRIES - 1))
#define LEAF_INDEX(vpn)	 ((uint32_t)(vpn) & (LEAF_PAGES - 1))
/* The page of the root table that holds an entry, and the pages that one such page maps. */
#define ROOT_PAGE(index)    ((index) >> 10)
#define ROOT_PAGE_VPNS	    (1ull << 29)

static bool root_page_used(struct arena *a, uint32_t process, uint32_t index)
{
	return atomic_load_explicit(&a->process[process].root_pages, memory_order_acquire) >>
		       ROOT_PAGE(index) & 1;
}

/* The node that *link names, made if it is not there: two threads may race to make it. */
static uint32_t link_get(struct arena *a, _Atomic uint32_t *link, bool create)
{
	uint32_t n = atomic_load_explicit(link, memory_order_acquire), old = 0;

	if (n || !create)
		return n;
	n = arena_node_new(a);
	if (!n)
		return 0;
	KILL_POINT("node-made");
	if (atomic_compare_exchange_strong(link, &old, n))
		return n;
	arena_node_release(a, n);
	return old;
}

page_entry *page_walk(struct arena *a, uint32_t process, uint64_t vpn, bool create)
{
	_Atomic uint32_t *root = arena_root(a, process);
	uint32_t n;

	if (unlikely(vpn >= VPN_MAX))
		return NULL;
	if (unlikely(!root_page_used(a, process, ROOT_INDEX(vpn)))) {
		if (!create || arena_reserve(a, root + ROOT_INDEX(vpn), sizeof(*root)) < 0)
			return NULL;
		atomic_fetch_or(&a->process[process].root_pages,
				1ull << ROOT_PAGE(ROOT_INDEX(vpn)));
	}
	n = link_get(a, &root[ROOT_INDEX(vpn)], create);
	if (!n)
		return NULL;
	n = link_get(a, &a->node[n].inner[INNER_INDEX(vpn)], create);
	if (!n)
		return NULL;
	return &a->node[n].leaf[LEAF_INDEX(vpn)];
}

int page_visit(struct arena *a, uint32_t process, uint64_t first, uint64_t end, page_visit_t fn,
	       void *userdata)
{
	_Atomic uint32_t *root = arena_root(a, process);
	uint64_t vpn = first;

	end = MIN(end, (uint64_t)VPN_MAX);
	while (vpn < end) {
		uint32_t inner, leaf;

		if (!root_page_used(a, process, ROOT_INDEX(vpn))) {
			vpn = (vpn / ROOT_PAGE_VPNS + 1) * ROOT_PAGE_VPNS;
			continue;
		}
		inner = atomic_load_explicit(&root[ROOT_INDEX(vpn)], memory_order_acquire);
		if (!inner) {
			vpn = ((vpn >> 19) + 1) << 19;
			continue;
		}
		leaf = atomic_load_explicit(&a->node[inner].inner[INNER_INDEX(vpn)],
					    memory_order_acquire);
		if (!leaf) {
			vpn = ((vpn >> 9) + 1) << 9;
			continue;
		}
		do {
			page_entry *e = &a->node[leaf].leaf[LEAF_INDEX(vpn)];

			if (atomic_load_explicit(e, memory_order_relaxed)) {
				int r = fn(userdata, vpn, e);

				if (r)
					return r;
			}
			vpn++;
		} while (vpn < end && LEAF_INDEX(vpn));
	}
	return 0;
}

static bool leaf_is_empty(const union arena_node *n)
{
	for (unsigned i = 0; i < LEAF_PAGES; i++)
		if (atomic_load_explicit(&n->leaf[i], memory_order_relaxed))
			return false;
	return true;
}

void page_trim(struct arena *a, uint32_t process, uint64_t first, uint64_t end)
{
	_Atomic uint32_t *root = arena_root(a, process);

	end = MIN(end, (uint64_t)VPN_MAX);
	for (uint64_t vpn = first & ~(uint64_t)(LEAF_PAGES - 1); vpn < end;) {
		uint32_t inner, leaf;

		if (!root_page_used(a, process, ROOT_INDEX(vpn))) {
			vpn = (vpn / ROOT_PAGE_VPNS + 1) * ROOT_PAGE_VPNS;
			continue;
		}
		inner = atomic_load(&root[ROOT_INDEX(vpn)]);
		if (!inner) {
			vpn = ((vpn >> 19) + 1) << 19;
			continue;
		}
		leaf = atomic_load(&a->node[inner].inner[INNER_INDEX(vpn)]);
		if (leaf && leaf_is_empty(&a->node[leaf])) {
			atomic_store(&a->node[inner].inner[INNER_INDEX(vpn)], 0);
			KILL_POINT("node-unlinked");
			arena_node_release(a, leaf);
		}
		vpn += LEAF_PAGES;
	}
}

/* Not in a table that page_table_mark() has refused. */
static bool is_node(struct arena *a, uint32_t node)
{
	return node && node < a->h->nr_nodes;
}

void page_table_free(struct arena *a, uint32_t process)
{
	_Atomic uint32_t *root = arena_root(a, process);

	for (uint32_t i = 0; i < ARENA_ROOT; i++) {
		uint32_t inner = root_page_used(a, process, i) ? atomic_load(&root[i]) : 0;

		if (!is_node(a, inner))
			continue;
		for (uint32_t j = 0; j < INNER_ENTRIES; j++) {
			uint32_t leaf = atomic_load(&a->node[inner].inner[j]);

			if (!is_node(a, leaf))
				continue;
			atomic_store(&a->node[inner].inner[j], 0);
			arena_node_release(a, leaf);
		}
		atomic_store(&root[i], 0);
		arena_node_release(a, inner);
	}
	arena_discard(a, (void *)root, sizeof(uint32_t) * ARENA_ROOT);
	atomic_store(&a->process[process].root_pages, 0);
}

static int mark(struct arena *a, uint32_t node, uint8_t *in_use, uint32_t *top)
{
	if (node >= a->h->nr_nodes || in_use[node])
		return -EBADMSG;
	in_use[node] = 1;
	*top = MAX(*top, node + 1);
	return 0;
}

int page_table_mark(struct arena *a, uint32_t process, uint8_t *in_use, uint32_t *top)
{
	_Atomic uint32_t *root = arena_root(a, process);

	for (uint32_t i = 0; i < ARENA_ROOT; i++) {
		uint32_t inner = root_page_used(a, process, i) ? atomic_load(&root[i]) : 0;
		int r;

		if (!inner)
			continue;
		r = mark(a, inner, in_use, top);
		if (r < 0)
			return r;
		for (uint32_t j = 0; j < INNER_ENTRIES; j++) {
			uint32_t leaf = atomic_load(&a->node[inner].inner[j]);

			if (!leaf)
				continue;
			r = mark(a, leaf, in_use, top);
			if (r < 0)
				return r;
		}
	}
	return 0;
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An intrusive, circular, doubly linked list.  A head is a struct list_head of
 * its own; members embed one.  No function takes a lock: what protects a list is
 * written beside its head.
 *
 * A plugin never sees this file: the policy kit has its own list with the same
 * names, and a source file includes one of the two.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct list_head {
	struct list_head *next, *prev;
};

#define LIST_HEAD_INIT(head) { &(head), &(head) }
#define LIST_HEAD(name) struct list_head name = LIST_HEAD_INIT(name)

static inline void INIT_LIST_HEAD(struct list_head *head)
{
	head->next = head->prev = head;
}

static inline bool list_empty(const struct list_head *head)
{
	return head->next == head;
}

static inline void usm_list_insert(struct list_head *item, struct list_head *before,
				   struct list_head *after)
{
	item->prev = before;
	item->next = after;
	before->next = item;
	after->prev = item;
}

/* As the first member. */
static inline void list_add(struct list_head *item, struct list_head *head)
{
	usm_list_insert(item, head, head->next);
}

/* As the last member. */
static inline void list_add_tail(struct list_head *item, struct list_head *head)
{
	usm_list_insert(item, head->prev, head);
}

/* The item's own links are NULL afterwards, so that a second removal faults at
 * once instead of damaging the list. */
static inline void list_del(struct list_head *item)
{
	item->prev->next = item->next;
	item->next->prev = item->prev;
	item->next = item->prev = NULL;
}

/* Afterwards list_empty(item) is true and a second removal does nothing. */
static inline void list_del_init(struct list_head *item)
{
	item->prev->next = item->next;
	item->next->prev = item->prev;
	INIT_LIST_HEAD(item);
}

static inline void list_move(struct list_head *item, struct list_head *head)
{
	list_del(item);
	list_add(item, head);
}

static inline void list_move_tail(struct list_head *item, struct list_head *head)
{
	list_del(item);
	list_add_tail(item, head);
}

#define list_entry(ptr, type, member) \
	((type *)(void *)((char *)(ptr) - offsetof(type, member)))

/* Only of a list that is not empty. */
#define list_first_entry(head, type, member) list_entry((head)->next, type, member)
#define list_last_entry(head, type, member)  list_entry((head)->prev, type, member)

/* pos must not be removed in the body. */
#define list_for_each_entry(pos, head, member)                                \
	for ((pos) = list_first_entry(head, typeof(*(pos)), member);          \
	     &(pos)->member != (head);                                        \
	     (pos) = list_entry((pos)->member.next, typeof(*(pos)), member))

/* pos, and pos alone, may be removed in the body. */
#define list_for_each_entry_safe(pos, following, head, member)                       \
	for ((pos) = list_first_entry(head, typeof(*(pos)), member),                 \
	     (following) = list_entry((pos)->member.next, typeof(*(pos)), member);   \
	     &(pos)->member != (head);                                               \
	     (pos) = (following),                                                    \
	     (following) = list_entry((pos)->member.next, typeof(*(pos)), member))

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Pages that must never leave (ops->pins).
 *
 * - Where the kernel writes when a thread exits: it does not wait for a userfault there, and
 *   pthread_join would hang.  Slots are never given back: the kernel writes after the thread's
 *   last instruction, and glibc uses the same stacks again.
 * - Robust mutexes: it marks them in the same way when their owner ends, and follows the list of
 *   them through each one's page.
 * - Ranges that a child does not inherit (MADV_WIPEONFORK, MADV_DONTFORK), while they are small and
 *   few and stay where they are: the daemon gives a child what its parent had on swap, and sees
 *   neither advice.  For others it is told to look (ops->uninherited).
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <threads.h>

#include "sys.h"
#include "tagger.h"

#define PIN_STEP_USEC 100
/* A daemon that stays in one operation that long is stopped, and evicts nothing. */
#define PIN_WAIT_USEC 1000000
/* Beyond that such a range holds data rather than a generator's state. */
#define UNINHERITED_PAGES 32
#define NR_REMEMBERED 64
/* The rest of the table is for threads. */
#define UNINHERITED_PINS (USM_OPS_PINS / 2)
_Static_assert(NR_REMEMBERED + 3 <= USM_AGENT_KEEP, "a new agent must learn of all");

static struct {
	uint64_t addr;
	size_t bytes;
} remembered[NR_REMEMBERED];
static _Atomic uint32_t nr_remembered;
/* There are ranges that no pin keeps. */
static _Atomic bool unpinned;

static bool has_pin(struct usm_agent_ops *ops, uint64_t page)
{
	uint32_t nr = atomic_load(&ops->nr_pins);

	for (uint32_t i = 0; i < nr && i < USM_OPS_PINS; i++)
		if (atomic_load_explicit(&ops->pins[i], memory_order_relaxed) == page)
			return true;
	return false;
}

/* nr_pins only grows, to at least nr. */
static void publish_pins(struct usm_agent_ops *ops, uint32_t nr)
{
	uint32_t is = atomic_load(&ops->nr_pins);

	while (is < nr && !atomic_compare_exchange_weak(&ops->nr_pins, &is, nr))
		;
}

static void add_pin(struct usm_agent_ops *ops, uint64_t page)
{
	uint32_t start = atomic_load(&ops->nr_pins);

	if (has_pin(ops, page))
		return;
	for (uint32_t i = start; i < USM_OPS_PINS; i++) {
		uint64_t is = 0;

		if (atomic_compare_exchange_strong(&ops->pins[i], &is, page) || is == page) {
			publish_pins(ops, i + 1);
			return;
		}
	}
}

/* After the pins are in: no operation that read the table before runs any more. */
static void wait_inflight(struct usm_agent_ops *ops)
{
	uint32_t usec = 0;

	atomic_thread_fence(memory_order_seq_cst);
	while (atomic_load(&ops->inflight) != 0 && usec < PIN_WAIT_USEC) {
		sys_sleep_usec(PIN_STEP_USEC);
		usec += PIN_STEP_USEC;
	}
}

static void touch(uint64_t addr)
{
	atomic_fetch_or((_Atomic uint8_t *)addr, 0);
}

static uint64_t page_of(uint64_t addr)
{
	return addr & ~(USM_PAGE_SIZE - 1);
}

uint64_t usm_thread_pointer(void)
{
	uint64_t self;

	__asm__("mov %%fs:0, %0" : "=r"(self));
	return self;
}

/* The tid word lies between the thread pointer and this, in glibc's control block. */
static uint64_t robust_list(void)
{
	uint64_t robust = 0;
	size_t bytes = 0;

	if (sys3(SYS_get_robust_list, 0, &robust, &bytes) < 0 || robust == 0)
		return usm_thread_pointer();
	return robust;
}

void usm_pin_thread(struct usm_agent *a)
{
	uint64_t self = usm_thread_pointer(), robust = robust_list();

	add_pin(a->ops, page_of(self));
	add_pin(a->ops, page_of(robust));
	wait_inflight(a->ops);
	touch(self);
	touch(robust);
}

static void pin_range(struct usm_agent *a, uint64_t addr, size_t bytes)
{
	for (uint64_t p = page_of(addr); p < addr + bytes; p += USM_PAGE_SIZE)
		add_pin(a->ops, p);
	wait_inflight(a->ops);
	/* Whatever its protection; an empty page needs no help. */
	sys_madvise(page_of(addr), addr + bytes - page_of(addr), MADV_POPULATE_READ);
}

/* Now, for children that are made without libc, and before each fork: the agent may be new. */
static void tell_unpinned(void)
{
	atomic_store(&unpinned, true);
	if (usm_tagger_ready())
		atomic_store(&usm_tagger->agent->ops->uninherited, 1);
}

void usm_pin_before_fork(struct usm_agent *a)
{
	if (atomic_load(&unpinned))
		atomic_store(&a->ops->uninherited, 1);
}

void usm_pin_move(uint64_t addr, size_t bytes)
{
	uint32_t nr = atomic_load(&nr_remembered);

	for (uint32_t i = 0; i < nr && i < NR_REMEMBERED; i++)
		if (remembered[i].addr < addr + bytes &&
		    addr < remembered[i].addr + remembered[i].bytes) {
			tell_unpinned();
			return;
		}
}

/* A new agent, of a child too, pins them before anything leaves.  False if there is no room to
 * remember one more. */
static bool remember(uint64_t addr, size_t bytes)
{
	uint32_t nr = atomic_load(&nr_remembered), i;

	for (i = 0; i < nr && i < NR_REMEMBERED; i++)
		if (remembered[i].addr == addr && remembered[i].bytes == bytes)
			return true;
	i = atomic_fetch_add(&nr_remembered, 1);
	if (i >= NR_REMEMBERED) {
		atomic_fetch_sub(&nr_remembered, 1);
		return false;
	}
	remembered[i].addr = addr;
	remembered[i].bytes = bytes;
	return true;
}

void usm_pin_uninherited(uint64_t addr, size_t bytes)
{
	bool ready;

	if (bytes == 0)
		return;
	if (bytes > UNINHERITED_PAGES * USM_PAGE_SIZE || !remember(addr, bytes)) {
		tell_unpinned();
		return;
	}
	ready = usm_tagger_ready();
	if (ready && atomic_load(&usm_tagger->agent->ops->nr_pins) > UNINHERITED_PINS)
		tell_unpinned();
	else if (ready)
		pin_range(usm_tagger->agent, addr, bytes);
}

static void keep(struct usm_agent *a, uint64_t addr, size_t bytes)
{
	a->keep[a->nr_keep].addr = addr;
	a->keep[a->nr_keep++].bytes = bytes;
}

void usm_pin_list(struct usm_agent *a, const struct usm_tagger_state *s)
{
	uint32_t nr = atomic_load(&nr_remembered);

	keep(a, usm_thread_pointer(), 1);
	keep(a, robust_list(), 1);
	keep(a, (uint64_t)s, sizeof(*s));
	for (uint32_t i = 0; i < nr && i < NR_REMEMBERED; i++)
		keep(a, remembered[i].addr, remembered[i].bytes);
}

struct thread_start {
	void *(*fn)(void *);
	int (*c11_fn)(void *);
	void *arg;
};

/* On the new thread, before the program's function. */
static struct thread_start begin_thread(void *p)
{
	struct thread_start start = *(struct thread_start *)p;

	free(p);
	if (usm_tagger_ready())
		usm_pin_thread(usm_tagger->agent);
	return start;
}

static void *thread_main(void *p)
{
	struct thread_start start = begin_thread(p);

	return start.fn(start.arg);
}

static int c11_thread_main(void *p)
{
	struct thread_start start = begin_thread(p);

	return start.c11_fn(start.arg);
}

/* Only so can a mutex become a robust one. */
__attribute__((visibility("default"))) int
pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attr)
{
	static int (*_Atomic real)(pthread_mutex_t *, const pthread_mutexattr_t *);
	int r, robust = PTHREAD_MUTEX_STALLED;

	if (!real)
		real = dlsym(RTLD_NEXT, "pthread_mutex_init");
	r = real(mutex, attr);
	if (r == 0 && attr && pthread_mutexattr_getrobust(attr, &robust) == 0 &&
	    robust == PTHREAD_MUTEX_ROBUST) {
		/* Without room a child's agent does not know of it. */
		remember((uint64_t)mutex, sizeof(*mutex));
		if (usm_tagger_ready())
			pin_range(usm_tagger->agent, (uint64_t)mutex, sizeof(*mutex));
	}
	return r;
}

/* NULL: not managed, or no memory; the thread then starts as it would without us. */
static struct thread_start *new_thread_start(void)
{
	return usm_tagger_ready() ? malloc(sizeof(struct thread_start)) : NULL;
}

__attribute__((visibility("default"))) int
pthread_create(pthread_t *restrict thread, const pthread_attr_t *restrict attr,
	       void *(*fn)(void *), void *restrict arg)
{
	static int (*_Atomic real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
	struct thread_start *start;
	int r;

	if (!real)
		real = dlsym(RTLD_NEXT, "pthread_create");
	start = new_thread_start();
	if (!start)
		return real(thread, attr, fn, arg);
	*start = (struct thread_start){ .fn = fn, .arg = arg };
	r = real(thread, attr, thread_main, start);
	if (r != 0)
		free(start);
	return r;
}

__attribute__((visibility("default"))) int thrd_create(thrd_t *thread, thrd_start_t fn, void *arg)
{
	static int (*_Atomic real)(thrd_t *, thrd_start_t, void *);
	struct thread_start *start;
	int r;

	if (!real)
		real = dlsym(RTLD_NEXT, "thrd_create");
	start = new_thread_start();
	if (!start)
		return real(thread, fn, arg);
	*start = (struct thread_start){ .c11_fn = fn, .arg = arg };
	r = real(thread, c11_thread_main, start);
	if (r != thrd_success)
		free(start);
	return r;
}

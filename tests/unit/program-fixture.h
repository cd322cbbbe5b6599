/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program for the core's tests: memory of our own under a real userfaultfd, served by the real
 * workers and the real reclaim thread.  A thread stands for its agent, another one reads all pages.
 * Its events are made by the test.
 */
#pragma once

#include "core-fixture.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "event.h"
#include "lib/cleanup.h"
#include "mechanism-userfault.h"
#include "worker.h"

#define PAGES 24u
#ifdef __SANITIZE_THREAD__ /* knows a few ranges of addresses only */
#define TABLES_AT (void *)0x4000000000ul
#else
#define TABLES_AT (void *)0x200000000000ul
#endif
/* Nothing here takes longer, unless a fault was lost. */
#define PATIENCE_MSEC 20000

struct program {
	struct core_fixture *f;
	struct process *p;
	uint8_t *memory;
	size_t stride; /* from page to page */
	unsigned seed;
	bool lazy; /* pages stay present at the first attempt, as after MADV_FREE */
	bool passive; /* at each, and the agent does not write them when it is asked to */
	bool dropped; /* at the second attempt the kernel has dropped them */
	bool gone; /* the agent was told to go before it is asked for anything */
	/* The agent has an operation in hand: before and after it takes the pages. */
	void (*taking)(struct program *g);
	void (*taken)(struct program *g);
	_Atomic uint32_t zeroed; /* bit i: page i is to be seen as zeros from now on */
	unsigned visits[PAGES];
	int agent_fd;
	pthread_t agent, reader;
	_Atomic unsigned nr_operations; /* that its agent has done */
	_Atomic unsigned nr_read;  /* pages that the reader has seen, all of them right */
	_Atomic unsigned nr_wrong;
	_Atomic bool aborted; /* what the reader sees from now on says nothing */
	bool writes;
};

static inline uint8_t *page_of(const struct program *g, unsigned i)
{
	return g->memory + i * g->stride;
}

static inline uint8_t byte_of(const struct program *g, unsigned i)
{
	return g->zeroed >> i & 1 ? 0 : (uint8_t)(1 + (g->seed * 31 + i) % 255);
}

static inline int agent_page(struct program *g, unsigned i)
{
	struct usm_agent_ops *ops = g->p->ops;
	uint8_t *page = (uint8_t *)(uintptr_t)ops->addr[i];
	unsigned *visits = &g->visits[(size_t)(page - g->memory) / g->stride];

	if (g->dropped && *visits) {
		madvise(page, USM_PAGE_SIZE, MADV_DONTNEED);
		return -ENOENT;
	}
	memcpy((uint8_t *)ops + USM_OPS_DATA + i * USM_PAGE_SIZE, page, USM_PAGE_SIZE);
	if (g->lazy && (g->passive || !(*visits)++))
		return -EBUSY;
	madvise(page, USM_PAGE_SIZE, MADV_DONTNEED);
	return 0;
}

static inline void *agent_main(void *arg)
{
	struct program *g = arg;
	struct usm_agent_ops *ops = g->p->ops;
	struct usm_attach_msg m;

	while (recv(g->agent_fd, &m, sizeof(m), 0) > 0) {
		uint32_t req = atomic_load(&ops->req);

		if (m.type != USM_ATTACH_WORK || atomic_load(&ops->done) == req)
			continue;
		if (g->gone) {
			atomic_store(&ops->agent_state, USM_AGENT_GONE);
			continue;
		}
		if (g->taking)
			g->taking(g);
		for (unsigned i = 0; i < ops->n; i++)
			atomic_store(&ops->res[i], ops->kind == USM_OPS_UNSHARE ?
							   (g->passive ? -ECANCELED : 0) :
							   agent_page(g, i));
		if (g->taken)
			g->taken(g);
		atomic_fetch_add(&g->nr_operations, 1);
		atomic_store(&ops->done, req);
		m.type = USM_ATTACH_DONE;
		if (send(g->agent_fd, &m, sizeof(m), MSG_NOSIGNAL) < 0)
			break;
	}
	return NULL;
}

static inline void *reader_main(void *arg)
{
	struct program *g = arg;

	for (unsigned i = 0; i < PAGES; i++) {
		volatile uint8_t *page = page_of(g, i);
		bool wrong = false;

		if (g->writes)
			page[0] = page[USM_PAGE_SIZE - 1] = byte_of(g, i);
		for (unsigned k = 0; k < USM_PAGE_SIZE; k += g->writes ? USM_PAGE_SIZE - 1 : 1)
			wrong |= page[k] != byte_of(g, i);
		if (atomic_load(&g->aborted))
			return NULL;
		if (wrong)
			atomic_fetch_add(&g->nr_wrong, 1);
		atomic_fetch_add(&g->nr_read, 1);
	}
	return NULL;
}

/* With content: all its pages are RESIDENT.  Without: nothing is known of it. */
static inline void program_start(struct core_fixture *f, struct program *g, unsigned seed, bool content)
{
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), fd, fds[2];
	struct process *p;
	size_t size;

	*g = (struct program){.f = f, .seed = seed, .lazy = g->lazy, .passive = g->passive,
			      .dropped = g->dropped, .gone = g->gone, .taking = g->taking, .taken = g->taken,
			      .stride = USM_PAGE_SIZE};
	/* Each page in a leaf of its own, if tables are to be made. */
	if (!content)
		g->stride = LEAF_PAGES * USM_PAGE_SIZE;
	g->writes = !content;
	assert_true(dev >= 0);
	fd = ioctl(dev, 0xaa00, O_CLOEXEC | O_NONBLOCK); /* USERFAULTFD_IOC_NEW */
	close(dev);
	assert_true(fd >= 0);
	p = g->p = process_new(&f->core);
	assert_non_null(p);
	snprintf(p->shared->name, sizeof(p->shared->name), "program-%u", seed);
	p->shared->uffd = fd;
	p->shared->pid = getpid();
	p->shared->attached = 1;
	atomic_store(&p->pool, f->core.pool[0]);
	assert_int_equal(userfault_handshake(fd, false, false), 0);
	fake_agent_memory(p);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	p->shared->sock = fds[0];
	g->agent_fd = fds[1];
	assert_int_equal(process_publish(p), 0);

	size = PAGES * g->stride;
	/* At a place where all is in one node of the table. */
	g->memory = mmap(content ? NULL : TABLES_AT, size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
				 (content ? 0 : MAP_FIXED_NOREPLACE),
			 -1, 0);
	assert_true(g->memory != MAP_FAILED);
	for (unsigned i = 0; content && i < PAGES; i++) {
		memset(page_of(g, i), byte_of(g, i), USM_PAGE_SIZE);
		put_resident(p, VPN((uintptr_t)page_of(g, i)), 0);
	}
	assert_int_equal(userfault_register(fd, (uintptr_t)g->memory, (uintptr_t)g->memory + size,
					    UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP),
			 0);
	assert_int_equal(pthread_create(&g->agent, NULL, agent_main, g), 0);
	reclaim_add(p);
}

static inline int drop(void *userdata, uint64_t vpn, page_entry *e)
{
	struct core *c = userdata;
	uint64_t v = atomic_exchange(e, 0);

	(void)vpn;
	/* Nobody has anything in hand any more. */
	assert_true(PAGE_STATE(v) == PAGE_RESIDENT || PAGE_STATE(v) == PAGE_SWAPPED ||
		    PAGE_STATE(v) == PAGE_LOST);
	if (PAGE_STATE(v) == PAGE_RESIDENT)
		pool_release(c, PAGE_VALUE(v));
	else if (PAGE_STATE(v) == PAGE_SWAPPED)
		usm_swap_unref(c->swap, PAGE_VALUE(v));
	return 0;
}

static inline void program_stop(struct program *g)
{
	struct process *p = g->p;
	struct core *c = &g->f->core;

	reclaim_forget(p);
	shutdown(g->agent_fd, SHUT_RDWR);
	pthread_join(g->agent, NULL);
	close(g->agent_fd);
	munmap(g->memory, PAGES * g->stride);
	page_visit(c->arena, p->number, 0, VPN_MAX, drop, c);
	page_table_free(c->arena, p->number);
	epoll_ctl(c->epoll_fd, EPOLL_CTL_DEL, p->shared->uffd, NULL);
	atomic_store(&p->shared->state, PROCESS_DYING);
	while (atomic_load(&p->users))
		usleep(100);
	munmap(p->ops, USM_OPS_BYTES);
	p->ops = NULL;
	close(p->shared->uffd);
	close(p->shared->sock);
	close(p->shared->opsfd);
	pool_flush(c->pool[0]);
	atomic_store(&p->shared->state, PROCESS_FREE);
}

/* How many pages left. */
static inline uint64_t evict_all(struct program *g)
{
	uint64_t evicted = 0;
	const char *reason;
	int ticket = reclaim_request(&g->f->core, g->p, PAGES);

	assert_true(ticket > 0);
	for (unsigned i = 0; !reclaim_request_done(&g->f->core, ticket, &evicted, &reason); i++) {
		assert_true(i < PATIENCE_MSEC);
		usleep(1000);
	}
	return evicted;
}

static inline void read_begin(struct program *g)
{
	g->nr_read = g->nr_wrong = 0;
	assert_int_equal(pthread_create(&g->reader, NULL, reader_main, g), 0);
}

static inline int is_filling(void *userdata, uint64_t vpn, page_entry *e)
{
	(void)userdata;
	(void)vpn;
	return PAGE_STATE(atomic_load(e)) == PAGE_FILLING;
}

/* A page is published after its program was woken. */
static inline void wait_for_publication(struct program *g)
{
	for (unsigned i = 0;
	     page_visit(g->f->arena, g->p->number, 0, VPN_MAX, is_filling, NULL); i++) {
		assert_true(i < PATIENCE_MSEC);
		usleep(1000);
	}
}

/* Until it has read all, or is to be killed: then it has seen nothing that is wrong. */
static inline void read_end(struct program *g)
{
	for (unsigned i = 0; atomic_load(&g->nr_read) < PAGES && !atomic_load(&g->p->killed); i++) {
		assert_true(i < PATIENCE_MSEC);
		usleep(1000);
	}
	if (atomic_load(&g->nr_read) < PAGES) {
		usleep(20000);
		assert_true(atomic_load(&g->nr_read) < PAGES);
		atomic_store(&g->aborted, true);
		userfault_unregister(g->p->shared->uffd, (uintptr_t)g->memory,
				     (uintptr_t)g->memory + PAGES * g->stride);
	}
	pthread_join(g->reader, NULL);
	wait_for_publication(g);
	assert_int_equal(g->nr_wrong, 0);
}

static inline void read_all(struct program *g)
{
	read_begin(g);
	read_end(g);
}

static inline void assert_nothing_left(struct core_fixture *f)
{
	assert_int_equal(slots_used(f), 0);
	assert_int_equal(atomic_load(&f->core.nr_used), 0);
}

/* An event, as if a dead engine had read it. */
static inline void apply(struct process *p, struct uffd_msg m)
{
	p->shared->journal[0] = m;
	atomic_store(&p->shared->journal_applied, 0);
	event_hold(p);
	event_resume(p);
}

/* One engine for all: workers are started once. */
static inline int engine_start(void **state)
{
	struct core_fixture *f;

	if (core_fixture_setup(state) < 0)
		return -1;
	f = *state;
	/* Nothing was removed recently. */
	test_tick = 1000;
	fixture_pool(f, 0);
	f->core.zeros = mmap(NULL, USM_OPS_BATCH * USM_PAGE_SIZE, PROT_READ,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	atomic_store(&f->core.faultaround, 1);
	fixture_start_reclaim(f);
	return workers_start(&f->core, 2);
}

static inline int engine_stop(void **state)
{
	struct core_fixture *f = *state;

	workers_stop(&f->core);
	munmap((void *)f->core.zeros, USM_OPS_BATCH * USM_PAGE_SIZE);
	return core_fixture_teardown(state);
}

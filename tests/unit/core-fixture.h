/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the core's tests share: an engine without threads over a real arena, with a swap
 * file, whose death is simulated by building its own memory anew; entries written by
 * hand; and a stand-in for a program's agent.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka wants the four above first */
#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core.h"
#include "page.h"
#include "policy.h"
#include "pool.h"
#include "process.h"
#include "reclaim.h"

#define FIXTURE_FRAMES	  64u
#define FIXTURE_SWAP_SIZE (4ull << 20)

/* The tests' own clock, in place of the daemon's. */
static _Atomic uint64_t test_tick;

uint64_t now_tick(void)
{
	return test_tick;
}

struct core_fixture {
	struct core core;
	struct arena *arena;
	char dir[128];
	char swap_path[160];
};

static inline int core_fixture_reserve(void *userdata, uint32_t first, uint32_t n)
{
	struct arena *a = userdata;

	return arena_reserve(a, &a->hash[first], (size_t)n * sizeof(a->hash[0]));
}

/* A new engine over the arena, as manager_start() makes it before the recovery. */
static inline void core_fixture_up(struct core_fixture *f)
{
	struct core *c = &f->core;
	struct usm_swap_config config = {
		.shared = &f->arena->h->swap,
		.hash = f->arena->hash,
		.nr_hash = f->arena->h->nr_hash,
		.reserve = core_fixture_reserve,
		.userdata = f->arena,
	};

	memset(c, 0, sizeof(*c));
	c->arena = f->arena;
	assert_int_equal(processes_new(c), 0);
	assert_int_equal(usm_swap_new(&config, &c->swap), 0);
	c->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	c->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	c->main_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	c->janitor_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	atomic_store(&c->nr_budget, FIXTURE_FRAMES);
	atomic_store(&c->evict_modes, USM_EVICT_MOVE);
}

/* Its reclaim thread; with no watermarks, it does what it is asked for and nothing else. */
static inline void fixture_start_reclaim(struct core_fixture *f)
{
	assert_int_equal(reclaim_start(&f->core), 0);
}

static inline void fixture_stop_reclaim(struct core_fixture *f)
{
	reclaim_stop(&f->core);
	/* It is left to threads that may still wait there: here are none. */
	free(f->core.reclaim);
	f->core.reclaim = NULL;
}

/* The engine's death: what it had for itself is gone, the arena stays. */
static inline void core_fixture_down(struct core_fixture *f)
{
	struct core *c = &f->core;

	for (unsigned i = 0; i < ARENA_PROCESSES; i++)
		if (c->process[i].ops)
			munmap(c->process[i].ops, USM_OPS_BYTES);
	for (unsigned i = 0; i < ARENA_POOLS; i++)
		if (c->pool[i]) {
			policy_set_unload(c->pool[i]->set);
			pool_free(c->pool[i]);
		}
	fixture_stop_reclaim(f);
	usm_swap_free(c->swap);
	processes_free(c);
	close(c->epoll_fd);
	close(c->kick_fd);
	close(c->main_fd);
	close(c->janitor_fd);
}

/* Sanitizers' quarantine keeps large blocks: the arena is mapped, not allocated. */
static inline int core_fixture_setup(void **state)
{
	struct core_fixture *f = calloc(1, sizeof(*f));
	char *message = NULL;

	if (!f)
		return -1;
	snprintf(f->dir, sizeof(f->dir), "%s/usm-core-XXXXXX", getenv("USM_TEST_DIR") ?: "/var/tmp");
	if (!mkdtemp(f->dir) || arena_new(&f->arena) < 0)
		return -1;
	snprintf(f->swap_path, sizeof(f->swap_path), "%s/swap", f->dir);
	core_fixture_up(f);
	if (usm_swap_add_file(f->core.swap, f->swap_path, FIXTURE_SWAP_SIZE, 0, false, &message) < 0) {
		fprintf(stderr, "%s\n", message ?: "no swap file");
		free(message);
		return -1;
	}
	*state = f;
	return 0;
}

static inline int core_fixture_teardown(void **state)
{
	struct core_fixture *f = *state;
	char command[256];
	int r;

	core_fixture_down(f);
	for (unsigned i = 0; i < ARENA_PROCESSES; i++) {
		struct arena_process *s = &f->arena->process[i];

		if (s->state == PROCESS_FREE)
			continue;
		if (s->uffd >= 0)
			close(s->uffd);
		if (s->sock >= 0)
			close(s->sock);
		if (s->opsfd >= 0)
			close(s->opsfd);
	}
	for (unsigned i = 0; i < USM_SWAP_DEVICES; i++)
		if (f->arena->h->swap.device[i].in_use)
			close(f->arena->h->swap.device[i].fd);
	arena_free(f->arena);
	snprintf(command, sizeof(command), "rm -rf '%s'", f->dir);
	r = system(command);
	free(f);
	return r == 0 ? 0 : -1;
}

static inline struct pool *fixture_pool(struct core_fixture *f, unsigned number)
{
	struct pool *pool = NULL;

	assert_int_equal(pool_new(&f->core, number, FIXTURE_FRAMES, &pool), 0);
	f->core.pool[number] = pool;
	return pool;
}

/* A live process of pool 0. An eventfd stands for its userfaultfd: it never has a message,
 * can be polled, and refuses every ioctl. */
static inline struct process *fixture_process(struct core_fixture *f, const char *name)
{
	struct process *p = process_new(&f->core);

	assert_non_null(p);
	snprintf(p->shared->name, sizeof(p->shared->name), "%s", name);
	p->shared->uffd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	p->shared->attached = 1;
	atomic_store(&p->pool, f->core.pool[0]);
	assert_int_equal(process_publish(p), 0);
	return p;
}

static inline uint64_t entry_of(struct process *p, uint64_t vpn)
{
	page_entry *e = process_page(p, vpn, false);

	return e ? atomic_load(e) : 0;
}

static inline void put_entry(struct process *p, uint64_t vpn, uint64_t v)
{
	page_entry *e = process_page(p, vpn, true);

	assert_non_null(e);
	atomic_store(e, v);
}

/* A resident page as publish() leaves it; its frame. */
static inline uint32_t put_resident(struct process *p, uint64_t vpn, uint64_t flags)
{
	uint32_t frame;

	assert_true(pool_take_any(atomic_load(&p->pool), p->number, vpn, &frame));
	put_entry(p, vpn, PAGE_ENTRY(PAGE_RESIDENT, frame) | flags);
	atomic_fetch_add(&p->nr_resident, 1);
	return frame;
}

static inline uint32_t new_slot(struct core_fixture *f)
{
	uint32_t slot;

	assert_int_equal(usm_swap_alloc(f->core.swap, &slot, 1), 1);
	return slot;
}

static inline uint32_t put_swapped(struct core_fixture *f, struct process *p, uint64_t vpn)
{
	uint32_t slot = new_slot(f);

	put_entry(p, vpn, PAGE_ENTRY(PAGE_SWAPPED, slot));
	atomic_fetch_add(&p->nr_swapped, 1);
	return slot;
}

static inline uint64_t slots_used(struct core_fixture *f)
{
	uint64_t slots, used, errors;

	usm_swap_totals(f->core.swap, &slots, &used, &errors);
	return used;
}

/* --- a stand-in for the agent: says that pages are gone, with a content of its own ----- */

struct fake_agent {
	struct process *p;
	struct usm_agent_ops *ops;
	pthread_t thread;
	int fd;
	int32_t result; /* for each page */
	unsigned nr_operations;
};

static inline void *fake_agent_main(void *arg)
{
	struct fake_agent *a = arg;
	struct usm_attach_msg m;

	while (recv(a->fd, &m, sizeof(m), 0) > 0) {
		uint32_t req = atomic_load(&a->ops->req);

		if (m.type != USM_ATTACH_WORK || atomic_load(&a->ops->done) == req)
			continue;
		for (unsigned i = 0; i < a->ops->n; i++) {
			memset((uint8_t *)a->ops + USM_OPS_DATA + i * USM_PAGE_SIZE,
			       (int)(a->ops->addr[i] >> 12 & 0x7f) | 0x80, USM_PAGE_SIZE);
			atomic_store(&a->ops->res[i], a->result);
		}
		a->nr_operations++;
		atomic_store(&a->ops->done, req);
		m.type = USM_ATTACH_DONE;
		if (send(a->fd, &m, sizeof(m), MSG_NOSIGNAL) < 0)
			break;
	}
	return NULL;
}

static inline void fake_agent_memory(struct process *p)
{
	p->shared->opsfd = memfd_create("ops", MFD_CLOEXEC);
	assert_int_equal(ftruncate(p->shared->opsfd, USM_OPS_BYTES), 0);
	assert_int_equal(process_map_ops(p), 0);
}

/* Needs fixture_start_reclaim() and fake_agent_memory() before, reclaim_add() after. */
static inline void fake_agent_start(struct fake_agent *a, struct process *p)
{
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	a->p = p;
	a->ops = p->ops;
	a->fd = fds[1];
	p->shared->sock = fds[0];
	assert_int_equal(pthread_create(&a->thread, NULL, fake_agent_main, a), 0);
}

static inline void fake_agent_stop(struct fake_agent *a)
{
	shutdown(a->fd, SHUT_RDWR);
	pthread_join(a->thread, NULL);
	close(a->fd);
}

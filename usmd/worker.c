/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "event.h"
#include "fault.h"
#include "lib/cleanup.h"
#include "lib/log.h"
#include "mechanism-userfault.h"
#include "policy.h"
#include "worker.h"

/* Faults that wait for a token.  When it is full, a fault is woken, to fault again. */
#define QUEUE_SIZE 4096u
/* Faults that a thread keeps for itself between reading and serving: one read()'s. */
#define LOCAL_SIZE 128u
/* A process whose agent held the gate is read again after this long. */
#define DEFER_MSEC 1
/* After so many faults of one thread in a row, look where it runs (some 20 us). */
#define FOLLOW_FAULTS 128
/* The field of /proc/PID/task/TID/stat, proc(5). */
#define STAT_PROCESSOR 39

static struct {
	pthread_t thread[ARENA_WORKERS];
	struct worker worker[ARENA_WORKERS];
	unsigned n;
	_Atomic int tokens;
	_Atomic bool stop;
	_Atomic unsigned nr_deferred;
	pthread_mutex_t queue_lock;
	struct fault queue[QUEUE_SIZE];
	unsigned head;
	_Atomic unsigned nr_queued;
	cpu_set_t all_cpus; /* what usmd may run on */
} workers = {.queue_lock = PTHREAD_MUTEX_INITIALIZER};

static __thread struct worker *self;

static bool queue_push(const struct fault *f)
{
	bool ok;

	pthread_mutex_lock(&workers.queue_lock);
	ok = workers.nr_queued < QUEUE_SIZE;
	if (ok) {
		workers.queue[(workers.head + workers.nr_queued) % QUEUE_SIZE] = *f;
		atomic_fetch_add(&workers.nr_queued, 1);
	}
	pthread_mutex_unlock(&workers.queue_lock);
	return ok;
}

static bool queue_pop(struct fault *ret)
{
	bool ok;

	if (!atomic_load(&workers.nr_queued))
		return false;
	pthread_mutex_lock(&workers.queue_lock);
	ok = workers.nr_queued > 0;
	if (ok) {
		*ret = workers.queue[workers.head];
		workers.head = (workers.head + 1) % QUEUE_SIZE;
		atomic_fetch_sub(&workers.nr_queued, 1);
	}
	pthread_mutex_unlock(&workers.queue_lock);
	return ok;
}

static void queue_or_wake(struct core *c, struct process *p, const struct fault *f)
{
	if (queue_push(f))
		eventfd_write(c->kick_fd, 1);
	else
		userfault_wake(p->shared->uffd, f->vpn, 1);
}

void worker_fault(struct process *p, const struct fault *f)
{
	if (self && self->nr_local < LOCAL_SIZE)
		self->local[self->nr_local++] = *f;
	else
		queue_or_wake(p->core, p, f);
}

void worker_defer(struct process *p)
{
	if (atomic_exchange(&p->deferred, true))
		return;
	/* Workers that sleep without a timeout must learn of it. */
	if (atomic_fetch_add(&workers.nr_deferred, 1) == 0)
		eventfd_write(p->core->kick_fd, 1);
}

void worker_forget(struct process *p)
{
	if (atomic_exchange(&p->deferred, false))
		atomic_fetch_sub(&workers.nr_deferred, 1);
}

static void read_deferred(struct core *c)
{
	for (uint32_t i = 0; i < arena_processes(c->arena) && atomic_load(&workers.nr_deferred); i++) {
		struct process *p = &c->process[i];

		if (!atomic_load_explicit(&p->deferred, memory_order_relaxed) ||
		    !atomic_exchange(&p->deferred, false))
			continue;
		atomic_fetch_sub(&workers.nr_deferred, 1);
		p = process_get(c, i, p->generation);
		if (!p)
			continue;
		event_readable(p);
		process_put(p);
	}
}

static bool token_take(void)
{
	int n = atomic_load(&workers.tokens);

	while (n > 0)
		if (atomic_compare_exchange_weak(&workers.tokens, &n, n - 1))
			return true;
	return false;
}

/* --- following --------------------------------------------------------------------- */

/* The processor that a thread ran on last, or -1. */
static int cpu_of(const struct process *p, uint32_t tid)
{
	char path[64], buf[512], *s;
	_cleanup_close_ int fd = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/task/%u/stat", p->shared->pid, tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = read(fd, buf, sizeof(buf) - 1);
	if (n <= 0)
		return -1;
	buf[n] = '\0';
	s = strrchr(buf, ')');
	for (unsigned i = 2; s && i < STAT_PROCESSOR; i++)
		s = strchr(s + 1, ' ');
	return s ? atoi(s + 1) : -1;
}

static void pin(struct worker *w, int cpu)
{
	cpu_set_t set;

	if (cpu == w->cpu)
		return;
	if (cpu >= 0 && cpu < CPU_SETSIZE) {
		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		if (sched_setaffinity(0, sizeof(set), &set) < 0)
			return; /* not one that we may use */
	} else if (sched_setaffinity(0, sizeof(workers.all_cpus), &workers.all_cpus) < 0) {
		return;
	}
	w->cpu = cpu;
}

/*
 * A fault that is served on the processor where it happened needs no wake-up of
 * another one, which on a machine that is otherwise idle takes several times as long
 * as the fault.  So a worker that serves one thread's faults, one by one, moves to
 * where that thread runs; as soon as another thread faults, it goes wherever the
 * scheduler likes.
 */
static void follow(struct worker *w, const struct process *p)
{
	const struct fault *f = &w->local[0];

	if (w->nr_local == 1 && f->tid == w->follow_tid) {
		if (++w->nr_followed % FOLLOW_FAULTS == 0)
			pin(w, cpu_of(p, f->tid));
		return;
	}
	w->follow_tid = f->tid;
	w->nr_followed = 0;
	pin(w, -1);
}

static bool is_agents(const struct worker *w, const struct fault *f)
{
	return fault_is_agents(&w->core->process[f->process], f);
}

/* The faults of agents first: a fault before them may wait for what an agent is to free. */
static void prefer_agent(struct worker *w, unsigned i)
{
	for (unsigned k = i; k < w->nr_local; k++) {
		struct fault f = w->local[k];

		if (!is_agents(w, &f))
			continue;
		w->local[k] = w->local[i];
		w->local[i] = f;
		return;
	}
}

static void serve(struct worker *w, const struct fault *f)
{
	struct process *p = process_get(w->core, f->process, f->generation);

	if (!p)
		return;
	if (!atomic_load_explicit(&p->gone, memory_order_relaxed))
		fault_serve(w, p, f);
	process_put(p);
}

void worker_before_wait(void)
{
	struct worker *w = self;

	if (!w || w->handing_over)
		return;
	w->handing_over = true;
	for (unsigned i = w->next_local; i < w->nr_local; i++) {
		struct fault f = w->local[i];

		if (is_agents(w, &f))
			serve(w, &f);
		else
			queue_or_wake(w->core, &w->core->process[f.process], &f);
	}
	w->nr_local = w->next_local;
	w->handing_over = false;
}

/* Serves what this thread has read, then what waits, as long as there is a token. */
static void serve_all(struct worker *w)
{
	struct fault f;

	while (w->nr_local || atomic_load(&workers.nr_queued)) {
		if (!token_take()) {
			/* All may be waiting for frames: an agent's fault does not, for long. */
			prefer_agent(w, 0);
			if (w->nr_local && is_agents(w, &w->local[0])) {
				f = w->local[0];
				w->local[0] = w->local[--w->nr_local];
				serve(w, &f);
				continue;
			}
			/* Those who have a token look at the queue before they give it back. */
			for (unsigned i = 0; i < w->nr_local; i++)
				if (!queue_push(&w->local[i])) {
					struct fault *l = &w->local[i];

					userfault_wake(w->core->process[l->process].shared->uffd,
						       l->vpn, 1);
				}
			w->nr_local = 0;
			if (atomic_load(&workers.tokens) <= 0)
				return;
			continue;
		}
		/* Serving may read more: local grows behind i. */
		for (unsigned i = 0; i < w->nr_local; i++) {
			prefer_agent(w, i);
			f = w->local[i];
			w->next_local = i + 1;
			serve(w, &f);
			if (i == w->nr_local - 1)
				w->nr_local = 0;
			w->next_local = 0;
		}
		while (queue_pop(&f))
			serve(w, &f);
		atomic_fetch_add(&workers.tokens, 1);
	}
}

int worker_init(struct core *c, unsigned record, struct worker *ret)
{
	uint8_t *buffer = mmap(NULL, USM_OPS_BATCH * USM_PAGE_SIZE, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (buffer == MAP_FAILED)
		return -errno;
	ret->local = calloc(LOCAL_SIZE, sizeof(*ret->local));
	if (!ret->local) {
		munmap(buffer, USM_OPS_BATCH * USM_PAGE_SIZE);
		return -ENOMEM;
	}
	ret->core = c;
	ret->number = record;
	ret->record = &c->arena->h->worker[record];
	ret->buffer = buffer;
	ret->nr_local = ret->next_local = 0;
	ret->handing_over = false;
	ret->follow_tid = ret->nr_followed = 0;
	ret->cpu = -1;
	return 0;
}

void worker_done(struct worker *w)
{
	if (w->buffer)
		munmap(w->buffer, USM_OPS_BATCH * USM_PAGE_SIZE);
	free(w->local);
	w->buffer = NULL;
	w->local = NULL;
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	struct core *c = w->core;
	char name[16];

	snprintf(name, sizeof(name), "usmd-worker-%u", w->number);
	pthread_setname_np(pthread_self(), name);
	self = w;
	w->record->tid = (uint32_t)syscall(SYS_gettid);
	policy_thread(w->record);
	while (!atomic_load(&workers.stop)) {
		struct epoll_event ev;
		int n = epoll_wait(c->epoll_fd, &ev, 1,
				   atomic_load(&workers.nr_deferred) ? DEFER_MSEC : -1);

		if (n > 0 && ev.data.u64 == UINT64_MAX) {
			eventfd_t v;

			eventfd_read(c->kick_fd, &v);
		} else if (n > 0) {
			struct process *p = process_get(c, (uint32_t)ev.data.u64,
							(uint32_t)(ev.data.u64 >> 32));

			if (p) {
				event_readable(p);
				if (w->nr_local)
					follow(w, p);
				process_put(p);
			}
		}
		if (atomic_load(&workers.nr_deferred))
			read_deferred(c);
		serve_all(w);
	}
	/* The next sleeper must see it too. */
	eventfd_write(c->kick_fd, 1);
	return NULL;
}

int workers_start(struct core *c, unsigned n)
{
	struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.u64 = UINT64_MAX};

	if (epoll_ctl(c->epoll_fd, EPOLL_CTL_ADD, c->kick_fd, &ev) < 0)
		return -errno;
	if (sched_getaffinity(0, sizeof(workers.all_cpus), &workers.all_cpus) < 0)
		return -errno;
	atomic_store(&workers.tokens, (int)n);
	for (unsigned i = 0; i <= n; i++) {
		int r = worker_init(c, i, &workers.worker[i]);

		if (r < 0)
			return r;
		r = pthread_create(&workers.thread[i], NULL, worker_main, &workers.worker[i]);
		if (r != 0)
			return -r;
		workers.n = i + 1;
	}
	return 0;
}

void workers_stop(struct core *c)
{
	atomic_store(&workers.stop, true);
	for (unsigned i = 0; i < workers.n; i++) {
		eventfd_write(c->kick_fd, 1);
		pthread_join(workers.thread[i], NULL);
		worker_done(&workers.worker[i]);
	}
	workers.n = 0;
}

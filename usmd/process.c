/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "event.h"
#include "lib/cleanup.h"
#include "lib/log.h"
#include "mechanism-userfault.h"
#include "process.h"
#include "worker.h"

/* A latch waiter looks again this often even if nobody wakes it. */
#define LATCH_WAIT_NSEC 10000000l

static pthread_mutex_t new_lock = PTHREAD_MUTEX_INITIALIZER;

#ifdef USM_TESTING
__attribute__((weak)) /* tests have a clock of their own */
#endif
uint64_t
now_tick(void)
{
	return now_nsec() / 100000000ull;
}

int processes_new(struct core *c)
{
	c->process = calloc(ARENA_PROCESSES, sizeof(*c->process));
	if (!c->process)
		return -ENOMEM;
	for (uint32_t i = 0; i < arena_processes(c->arena); i++)
		process_init(c, i);
	return 0;
}

void processes_free(struct core *c)
{
	free(c->process);
	c->process = NULL;
}

void process_init(struct core *c, uint32_t number)
{
	struct process *p = &c->process[number];
	size_t first = offsetof(struct process, latch), users = offsetof(struct process, users),
	       behind = users + sizeof(p->users);

	free(p->scan.ranges);
	/* Other threads look at all numbers: what belongs to the number is never cleared.  Nor
	 * users: a thread that looks whether this is still the process that it means may just
	 * have counted itself. */
	memset((char *)p + first, 0, users - first);
	memset((char *)p + behind, 0, sizeof(*p) - behind);
	p->core = c;
	p->number = number;
	p->shared = &c->arena->process[number];
	p->generation = p->shared->generation;
	p->scan.pagemap_fd = p->scan.maps_fd = -1;
}

struct process *process_new(struct core *c)
{
	struct process *p = NULL;

	pthread_mutex_lock(&new_lock);
	for (uint32_t i = 0; i < ARENA_PROCESSES; i++) {
		struct arena_process *s = &c->arena->process[i];

		if (atomic_load(&s->state) != PROCESS_FREE || atomic_load(&c->process[i].users))
			continue;
		memset(s, 0, sizeof(*s));
		s->uffd = s->sock = s->opsfd = s->pidfd = -1;
		s->generation = (uint32_t)++c->arena->h->next_generation;
		process_init(c, i);
		if (i >= arena_processes(c->arena))
			atomic_store(&c->arena->h->nr_processes, i + 1);
		atomic_store(&s->state, PROCESS_BUILDING);
		p = &c->process[i];
		break;
	}
	pthread_mutex_unlock(&new_lock);
	return p;
}

int process_map_ops(struct process *p)
{
	void *ops = mmap(NULL, USM_OPS_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			 p->shared->opsfd, 0);

	if (ops == MAP_FAILED)
		return -errno;
	p->ops = ops;
	return 0;
}

int process_publish(struct process *p)
{
	struct epoll_event ev = {
		.events = EPOLLIN | EPOLLET,
		.data.u64 = p->number | (uint64_t)p->generation << 32,
	};

	atomic_store(&p->shared->state, PROCESS_LIVE);
	if (epoll_ctl(p->core->epoll_fd, EPOLL_CTL_ADD, p->shared->uffd, &ev) < 0 && errno != EEXIST)
		return -errno;
	return 0;
}

struct process *process_get(struct core *c, uint32_t number, uint32_t generation)
{
	struct process *p;

	if (number >= ARENA_PROCESSES)
		return NULL;
	p = &c->process[number];
	atomic_fetch_add(&p->users, 1);
	if (atomic_load(&p->shared->state) == PROCESS_LIVE && p->generation == generation)
		return p;
	process_put(p);
	return NULL;
}

void process_put(struct process *p)
{
	atomic_fetch_sub(&p->users, 1);
}

uint64_t process_present_flags(struct process *p)
{
	uint64_t now = now_tick();

	if (now - atomic_load(&p->shared->last_remove_tick) >= PAGE_REMOVE_TICKS)
		return 0;
	atomic_store(&p->has_removed, true);
	return PAGE_WITH_STAMP(PAGE_REMOVED, now);
}

void process_wake_all(struct process *p)
{
	/* From the lowest address that can be mapped to the end. */
	userfault_wake(p->shared->uffd, VPN(0x10000), VPN(0x7ffffffff000) - VPN(0x10000));
}

void process_park(struct process *p)
{
	atomic_store(&p->parked, true);
}

void process_unpark(struct process *p)
{
	if (atomic_exchange(&p->parked, false))
		process_wake_all(p);
}

void process_gone(struct process *p)
{
	if (!atomic_exchange(&p->gone, true))
		eventfd_write(p->core->janitor_fd, 1);
}

void process_kill(struct process *p, uint64_t addr, const char *reason)
{
	char where[32] = "";

	if (atomic_exchange(&p->killed, true))
		return;
	if (addr)
		snprintf(where, sizeof(where), " at %#llx", (unsigned long long)addr);
	log_event(LOG_CRIT,
		  &((struct usm_log_fields){.event = "kill",
					    .message_id = USM_MSG_KILL,
					    .process = p->shared->name,
					    .pid = p->shared->pid,
					    .policy = p->shared->policy,
					    .addr = addr}),
		  "%s (pid %d): %s%s; %s", p->shared->name, p->shared->pid, reason, where,
		  p->shared->pidfd >= 0 ? "killing it, it must not see wrong data" :
					  "it is a child without an agent, so who it is is not known: it "
					  "waits there for ever, end it by hand");
	atomic_fetch_add(&p->core->arena->h->nr_errors, 1);
	if (p->shared->pidfd >= 0)
		syscall(SYS_pidfd_send_signal, p->shared->pidfd, SIGKILL, NULL, 0);
}

static long futex(_Atomic uint32_t *word, int op, uint32_t val, const struct timespec *timeout)
{
	return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, val, timeout, NULL, 0);
}

/* The caller has nothing to do before the barrier is over.  False: it is. */
static bool park(struct process *p)
{
	/* Who ends the barrier clears it in the latch, then looks at the mark. */
	process_park(p);
	return process_at_barrier(p);
}

/* Takes it, or returns false at one of the bits of `refuse`. */
static bool latch_unless(struct process *p, uint32_t refuse)
{
	const struct timespec timeout = {.tv_nsec = LATCH_WAIT_NSEC};
	uint32_t v = atomic_load_explicit(&p->latch, memory_order_relaxed);

	for (;;) {
		if (unlikely(v & refuse))
			return false;
		if (likely(!(v & (LATCH_EXCLUSIVE | LATCH_PENDING)))) {
			if (atomic_compare_exchange_weak(&p->latch, &v, v + 1))
				return true;
			continue;
		}
		atomic_fetch_add(&p->latch_waiters, 1);
		v = atomic_load(&p->latch);
		if (v & (LATCH_EXCLUSIVE | LATCH_PENDING))
			futex(&p->latch, FUTEX_WAIT, v, &timeout);
		atomic_fetch_sub(&p->latch_waiters, 1);
		v = atomic_load(&p->latch);
	}
}

bool process_latch(struct process *p)
{
	while (!latch_unless(p, LATCH_BARRIER))
		if (park(p))
			return false;
	return true;
}

bool process_latch_claimed(struct process *p)
{
	latch_unless(p, 0);
	if (likely(!process_at_barrier(p)) || !park(p))
		return true;
	worker_defer(p); /* it may be what we claimed that the barrier waits for */
	return false;
}

bool process_try_latch(struct process *p)
{
	uint32_t v = atomic_load(&p->latch);

	while (!(v & (LATCH_EXCLUSIVE | LATCH_PENDING | LATCH_BARRIER)))
		if (atomic_compare_exchange_weak(&p->latch, &v, v + 1))
			return true;
	return false;
}

static void latch_wake(struct process *p)
{
	if (atomic_load(&p->latch_waiters))
		futex(&p->latch, FUTEX_WAKE, INT_MAX, NULL);
}

void process_unlatch(struct process *p)
{
	uint32_t v = atomic_fetch_sub(&p->latch, 1) - 1;

	if (likely((v & ~LATCH_BARRIER) != LATCH_PENDING))
		return;
	if (atomic_compare_exchange_strong(&p->latch, &v, v ^ LATCH_PENDING ^ LATCH_EXCLUSIVE))
		event_read_latched(p);
}

void process_unlatch_reclaim(struct process *p)
{
	uint32_t v = atomic_fetch_sub(&p->latch, 1) - 1;

	if (likely(v != LATCH_PENDING) || !atomic_compare_exchange_strong(&p->latch, &v, 0))
		return;
	latch_wake(p);
	worker_defer(p);
}

bool process_try_latch_exclusive(struct process *p)
{
	uint32_t v = 0;

	for (;;) {
		if (!(v & ~LATCH_BARRIER)) {
			if (atomic_compare_exchange_weak(&p->latch, &v, v | LATCH_EXCLUSIVE))
				return true;
		} else if (atomic_compare_exchange_weak(&p->latch, &v, v | LATCH_PENDING)) {
			return false;
		}
	}
}

bool process_unlatch_exclusive(struct process *p)
{
	uint32_t barrier = atomic_load(&p->latch) & LATCH_BARRIER, v = LATCH_EXCLUSIVE | barrier;

	if (atomic_compare_exchange_strong(&p->latch, &v, barrier)) {
		latch_wake(p);
		return true;
	}
	atomic_fetch_and(&p->latch, ~LATCH_PENDING);
	return false;
}

/* Four buckets a power of two: 1, 1.25, 1.5, 1.75, 2, 2.5 ... microseconds. */
static unsigned bucket_of(uint64_t usec)
{
	unsigned log;

	if (usec < 4)
		return (unsigned)usec;
	log = 63u - (unsigned)__builtin_clzll(usec);
	return MIN(4 * (log - 1) + (unsigned)(usec >> (log - 2) & 3), PROCESS_HISTOGRAM - 1u);
}

static uint64_t bucket_usec(unsigned bucket)
{
	if (bucket < 4)
		return bucket;
	return (uint64_t)(4 + bucket % 4) << (bucket / 4 - 1);
}

void process_count_fault(struct process *p, uint64_t nsec)
{
	uint64_t usec = nsec / 1000;

	atomic_fetch_add_explicit(&p->histogram[bucket_of(usec)], 1, memory_order_relaxed);
	if (usec > atomic_load_explicit(&p->fault_usec_max, memory_order_relaxed))
		atomic_store(&p->fault_usec_max, (uint32_t)MIN(usec, (uint64_t)UINT32_MAX));
}

uint64_t process_fault_usec(const struct process *p, unsigned permyriad)
{
	uint64_t total = 0, sum = 0;

	for (unsigned i = 0; i < PROCESS_HISTOGRAM; i++)
		total += p->histogram[i];
	for (unsigned i = 0; i < PROCESS_HISTOGRAM; i++) {
		sum += p->histogram[i];
		if (total && sum * 10000 >= total * permyriad)
			return bucket_usec(i);
	}
	return 0;
}

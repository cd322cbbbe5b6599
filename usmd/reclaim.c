/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "closer.h"
#include "lib/cleanup.h"
#include "lib/log.h"
#include "operation.h"
#include "policy.h"
#include "pool.h"
#include "process.h"
#include "reclaim-internal.h"
#include "worker.h"

/* A program that has not done its operation by then is stopped or starved: go on without. */
#define STALL_NSEC 1000000000ull
/* Until then an operation may be all that is needed; one of 256 pages takes less than 1 ms. */
#define LATE_NSEC 10000000ull
/* With demand but no victims: look again after this. */
#define IDLE_MSEC 5
/* With operations under way: look for stalled ones this often. */
#define BUSY_MSEC 200
/* An ended operation whose events are being applied. */
#define AGAIN_MSEC 1
/* Passes without a victim before a waiting fault is told that nothing can leave. */
#define IDLE_PASSES 2
/* After everything was tried in vain, for this long it is not tried again. */
#define EXHAUSTED_NSEC 100000000ull
/* Free slots below this share (permyriad) of all: clean ones are not kept. */
#define TIGHT_PERMYRIAD 1000
/* How long faults wait for pages that madvise() is just giving back (scan.c), before it counts
 * as if nothing could leave. */
#define REMOVED_NSEC 500000000ull
/* Messages of one agent that are read in a turn: it sends one for each operation. */
#define AGENT_MESSAGES 16u
/* A request ends when so many operations in a row found no device that takes a page. */
#define NOT_WRITTEN_MAX 2
/* And when so many in a row found no page that may leave. */
#define FRUITLESS_MAX 8
/* A program of low priority keeps this many pages while others have any. */
#define PRIORITY_FLOOR 256

static void broadcast(struct reclaim *r)
{
	pthread_mutex_lock(&r->lock);
	pthread_cond_broadcast(&r->cond);
	pthread_mutex_unlock(&r->lock);
}

static void agent_readable(struct reclaim *r, struct process *p)
{
	struct usm_attach_msg m;
	ssize_t n = 1;

	/* What it says does not count.  It may say it without end: then the others have their turn. */
	for (unsigned i = 0; i < AGENT_MESSAGES && n > 0; i++)
		n = closer_recv(p->shared->sock, &m, sizeof(m));
	if (n == 0 || (n < 0 && n != -EAGAIN)) {
		epoll_ctl(r->epoll_fd, EPOLL_CTL_DEL, p->shared->sock, NULL);
		p->evict.in_epoll = false;
		process_gone(p);
	}
}

static void check_operations(struct reclaim *r)
{
	struct core *c = r->core;
	uint64_t now = now_nsec();
	unsigned nr_posted = 0, nr_prompt = 0;

	for (uint32_t i = 0; i < arena_processes(c->arena); i++) {
		struct process *p = &c->process[i];
		uint32_t state;

		if (atomic_load_explicit(&p->shared->state, memory_order_acquire) == PROCESS_FREE)
			continue;
		if (atomic_load(&p->forget)) {
			operation_give_up(r, p);
			continue;
		}
		if (unlikely(atomic_load(&p->rescue)))
			operation_post_rescue(r, p);
		state = atomic_load(&p->shared->op_state);
		if (state == OP_IDLE || !p->ops)
			continue;
		if (atomic_load(&p->ops->done) == p->shared->op_seq) {
			if (!operation_collectable(p)) {
				r->again = true;
				continue;
			}
			operation_collect(r, p);
			if (p->evict.nr_again && operation_possible(p))
				operation_post_again(r, p);
			if (p->evict.nr_refused && operation_possible(p))
				operation_post_refused(r, p);
			if (p->evict.nr_unshare && operation_possible(p))
				operation_post_unshare(r, p);
			if (atomic_load(&p->rescue))
				operation_post_rescue(r, p);
		} else if (operation_undo(p)) {
			continue;
		} else if (!p->evict.stalled && now - atomic_load(&p->posted_nsec) > STALL_NSEC) {
			p->evict.stalled = true;
			operation_send(p); /* in case the message was lost with the engine */
			operation_done_now(r); /* it may be what a policy waits for */
		}
		if (atomic_load(&p->shared->op_state) != OP_IDLE && p->evict.stalled) {
			r->stalled = true;
			/* It may have got further since. */
			if (now - p->evict.taken_back_nsec > STALL_NSEC) {
				p->evict.taken_back_nsec = now;
				operation_take_back(p);
			}
		}
		if (atomic_load(&p->shared->op_state) == OP_IDLE || p->evict.stalled)
			continue;
		nr_posted++;
		nr_prompt += now - atomic_load(&p->posted_nsec) < LATE_NSEC;
	}
	r->nr_posted = nr_posted;
	r->nr_prompt = nr_prompt;
}

static int compare_owner(const void *a, const void *b, void *userdata)
{
	struct core *c = userdata;
	uint64_t x = atomic_load(&pool_frame(c, *(const uint32_t *)a)->owner);
	uint64_t y = atomic_load(&pool_frame(c, *(const uint32_t *)b)->owner);

	return x < y ? -1 : x > y;
}

/* Hands victims to their processes' agents. Returns how many are on their way. */
static unsigned post_victims(struct reclaim *r, struct pool *pool, uint32_t *frames, unsigned n)
{
	struct core *c = r->core;
	unsigned posted = 0;

	qsort_r(frames, n, sizeof(*frames), compare_owner, c);
	for (unsigned i = 0, j; i < n; i = j) {
		uint64_t owner = atomic_load(&pool_frame(c, frames[i])->owner);
		uint32_t number = ARENA_OWNER_PROCESS(owner);
		struct process *p = owner ? &c->process[number] : NULL;
		unsigned k = 0;

		for (j = i + 1; j < n; j++)
			if (ARENA_OWNER_PROCESS(atomic_load(&pool_frame(c, frames[j])->owner)) != number)
				break;
		if (!p)
			continue; /* freed meanwhile: the policy has been told */
		p = process_get(c, number, p->generation);
		if (p && operation_possible(p))
			k = operation_post(r, p, frames + i, j - i, operation_only_lazy(c));
		if (p)
			process_put(p);
		posted += k;
		policy_give_back(pool, frames + i + k, j - i - k);
	}
	return posted;
}

static unsigned evict_of(struct reclaim *r, struct process *p, unsigned want)
{
	struct pool *pool = atomic_load(&p->pool);
	uint32_t frames[USM_OPS_BATCH];
	unsigned n;

	if (!pool || !operation_possible(p))
		return 0;
	n = pool_hand(pool, (int)p->number, &p->evict.hand, frames, MIN(want, USM_OPS_BATCH));
	return n ? operation_post(r, p, frames, n, operation_only_lazy(r->core)) : 0;
}

/* Those that are not done: from now on this thread's alone until it ends them. */
static uint32_t pending_requests(struct reclaim *r)
{
	uint32_t pending = 0;

	_Static_assert(RECLAIM_REQUESTS <= 32, "a bit for each");
	pthread_mutex_lock(&r->lock);
	for (unsigned i = 0; i < RECLAIM_REQUESTS; i++)
		if (r->request[i].used && !r->request[i].done)
			pending |= 1u << i;
	pthread_mutex_unlock(&r->lock);
	return pending;
}

static void end_request(struct reclaim *r, struct request *q, const char *reason)
{
	pthread_mutex_lock(&r->lock);
	q->reason = reason;
	q->done = true;
	pthread_cond_broadcast(&r->cond);
	pthread_mutex_unlock(&r->lock);
	eventfd_write(r->core->main_fd, 1);
}

/* Why nothing more of p leaves. */
static const char *unevictable_reason(const struct process *p)
{
	const char *reason = atomic_load(&p->unevictable_reason);

	if (!atomic_load(&p->core->evict_modes))
		return "'eviction off' is configured";
	if (atomic_load(&p->swap_none))
		return "its 'process swap' line says none";
	if (reason)
		return reason;
	return atomic_load(&p->nr_resident) > 0 ?
		       "the rest is pinned, just freed, or holds threads' control blocks" :
		       "nothing of it is resident any more";
}

/* Users' requests. Returns how many pages are on their way. */
static unsigned serve_requests(struct reclaim *r, bool *ret_demand)
{
	struct core *c = r->core;
	uint32_t pending = pending_requests(r);
	unsigned posted = 0;

	for (; pending; pending &= pending - 1) {
		struct request *q = &r->request[__builtin_ctz(pending)];
		struct process *p = process_get(c, q->process, q->generation);

		if (!p) {
			end_request(r, q, "the process has ended");
			continue;
		}
		if (q->evicted >= q->want) {
			end_request(r, q, NULL);
		} else if (q->not_written > NOT_WRITTEN_MAX) {
			end_request(r, q, "no swap device takes its pages, see the journal");
		} else {
			uint64_t want = q->want - q->evicted;
			unsigned k = evict_of(r, p, (unsigned)MIN(want, (uint64_t)USM_OPS_BATCH));

			posted += k;
			*ret_demand = true;
			/* Not one page of a whole round could be claimed. */
			if (!k && atomic_load(&p->shared->op_state) == OP_IDLE &&
			    ++q->fruitless > FRUITLESS_MAX)
				end_request(r, q, unevictable_reason(p));
		}
		process_put(p);
	}
	return posted;
}

/* Pages of a program over its limit leave, or its faults learn that none can. */
static unsigned serve_limit(struct reclaim *r, struct process *p)
{
	bool removed = r->removed && now_nsec() - r->removed_nsec < REMOVED_NSEC;
	unsigned posted = evict_of(r, p, USM_OPS_BATCH);

	if (posted || (atomic_load(&p->shared->op_state) != OP_IDLE && !p->evict.stalled))
		return posted; /* end_operation() wakes them */
	if (r->busy || removed || ++p->evict.fruitless < IDLE_PASSES) {
		atomic_store(&p->over_limit, true);
		return 0;
	}
	p->evict.fruitless = 0;
	atomic_store(&p->stuck_nsec, now_nsec());
	process_unpark(p);
	return 0;
}

static unsigned serve_limits(struct reclaim *r, bool *ret_demand)
{
	struct core *c = r->core;
	unsigned posted = 0;

	for (uint32_t i = 0; i < arena_processes(c->arena); i++) {
		struct process *p = &c->process[i];

		if (!atomic_load_explicit(&p->over_limit, memory_order_relaxed))
			continue;
		p = process_get(c, i, p->generation);
		if (!p)
			continue;
		atomic_store(&p->over_limit, false);
		if (atomic_load(&p->nr_resident) < (int64_t)p->shared->limit_pages) {
			process_unpark(p);
		} else {
			*ret_demand = true;
			posted += serve_limit(r, p);
		}
		process_put(p);
	}
	return posted;
}

static unsigned serve_now(struct reclaim *r)
{
	struct {
		struct pool *pool;
		uint32_t frame;
	} now[USM_OPS_BATCH];
	unsigned n, posted = 0;

	pthread_mutex_lock(&r->lock);
	n = r->nr_now;
	memcpy(now, r->now, n * sizeof(now[0]));
	r->nr_now = 0;
	pthread_mutex_unlock(&r->lock);
	for (unsigned i = 0, j; i < n; i = j) {
		uint32_t frames[USM_OPS_BATCH];

		for (j = i; j < n && now[j].pool == now[i].pool; j++)
			frames[j - i] = now[j].frame;
		posted += post_victims(r, now[i].pool, frames, j - i);
	}
	if (n && !posted)
		operation_done_now(r);
	return posted;
}

/* Where "priority" makes a difference, pages of the lowest leave first, down to a floor. */
static unsigned evict_lowest_priority(struct reclaim *r, unsigned want)
{
	struct core *c = r->core;
	struct process *lowest = NULL;
	bool differ = false;
	unsigned k;
	int first = 0;

	for (uint32_t i = 0; i < arena_processes(c->arena); i++) {
		struct process *p = &c->process[i];

		if (atomic_load_explicit(&p->shared->state, memory_order_acquire) != PROCESS_LIVE)
			continue;
		if (!lowest && !differ)
			first = p->shared->priority;
		differ |= p->shared->priority != first;
		if (atomic_load(&p->nr_resident) > PRIORITY_FLOOR && operation_possible(p) &&
		    (!lowest || p->shared->priority < lowest->shared->priority))
			lowest = p;
	}
	if (!differ || !lowest)
		return 0;
	lowest = process_get(c, lowest->number, lowest->generation);
	if (!lowest)
		return 0;
	k = evict_of(r, lowest, want);
	process_put(lowest);
	return k;
}

/* Everything was tried a moment ago and nothing could leave. */
static bool is_exhausted(const struct reclaim *r)
{
	return r->exhausted_nsec && now_nsec() - r->exhausted_nsec < EXHAUSTED_NSEC;
}

static unsigned serve_watermarks(struct reclaim *r, bool *ret_demand)
{
	struct core *c = r->core;
	int64_t free = core_free_frames(c);
	uint32_t frames[USM_OPS_BATCH];
	unsigned posted = 0;

	if (free >= atomic_load(&c->high_frames))
		r->reclaiming = false;
	else if (free < atomic_load(&c->low_frames))
		r->reclaiming = true;
	if (!r->reclaiming || !atomic_load(&c->evict_modes) || atomic_load(&c->stopping))
		return 0;
	*ret_demand = true;
	if (r->nr_prompt)
		return 0; /* what is under way may be enough */
	if (is_exhausted(r))
		return 0;
	posted = evict_lowest_priority(
		r, (unsigned)MIN(atomic_load(&c->high_frames) - free, (int64_t)USM_OPS_BATCH));
	if (posted)
		return posted;
	for (unsigned k = 0; k < ARENA_POOLS; k++) {
		struct pool *pool = c->pool[k];
		int64_t want = atomic_load(&c->high_frames) - core_free_frames(c) - posted;
		uint64_t lent = pool ? atomic_load(&pool->nr_lent) : 0;
		unsigned n = 0, on_way = 0;

		if (!pool || want <= 0 || !atomic_load(&pool->nr_used))
			continue;
		want = MIN(want, (int64_t)USM_OPS_BATCH);
		/* The policy does not know of lent frames: every other time they are what leaves. */
		if (lent && r->lent_turn++ % 2) {
			n = pool_victims(pool, frames, (unsigned)MIN((uint64_t)want, lent));
			on_way = post_victims(r, pool, frames, n);
		}
		if (!on_way) {
			n = policy_victims(pool, frames, (unsigned)want);
			on_way = post_victims(r, pool, frames, n);
		}
		if (!on_way && n) {
			/* Not one of them may leave.  What may can be in lent frames. */
			n = pool_victims(pool, frames, (unsigned)want);
			on_way = post_victims(r, pool, frames, n);
		}
		posted += on_way;
	}
	return posted;
}

static void check_tight(struct core *c)
{
	uint64_t slots = 0, used = 0, errors;

	usm_swap_totals(c->swap, &slots, &used, &errors);
	atomic_store(&c->swap_tight, (slots - used) * 10000 < slots * TIGHT_PERMYRIAD);
}

static void *reclaim_main(void *arg)
{
	struct reclaim *r = arg;
	struct core *c = r->core;
	int timeout = 0;

	pthread_setname_np(pthread_self(), "usmd-reclaim");
	r->record->tid = (uint32_t)syscall(SYS_gettid);
	policy_thread(r->record);
	while (!atomic_load(&r->stop)) {
		struct epoll_event ev[16];
		int n = epoll_wait(r->epoll_fd, ev, ARRAY_SIZE(ev), timeout);
		bool demand = false, all_stayed;
		unsigned posted;

		for (int i = 0; i < n; i++) {
			struct process *p;
			eventfd_t v;

			if (ev[i].data.u64 == UINT64_MAX) {
				eventfd_read(r->kick_fd, &v);
				continue;
			}
			p = process_get(c, (uint32_t)ev[i].data.u64,
					(uint32_t)(ev[i].data.u64 >> 32));
			if (!p)
				continue;
			agent_readable(r, p);
			process_put(p);
		}
		atomic_store(&r->kicked, false);
		r->again = r->busy = r->removed = r->stalled = false;
		check_operations(r);
		check_tight(c);
		posted = serve_now(r);
		pthread_mutex_lock(&r->lock);
		demand |= r->nr_waiting > 0;
		pthread_mutex_unlock(&r->lock);
		posted += serve_requests(r, &demand);
		posted += serve_limits(r, &demand);
		posted += serve_watermarks(r, &demand);
		if (posted || !r->removed) {
			r->removed_nsec = 0;
		} else {
			if (!r->removed_nsec)
				r->removed_nsec = now_nsec();
			r->busy |= now_nsec() - r->removed_nsec < REMOVED_NSEC;
			eventfd_write(c->janitor_fd, 1);
		}
		all_stayed = (int64_t)r->nr_stayed >= atomic_load(&c->nr_used);
		if (demand && (all_stayed || (!posted && !r->nr_posted && !r->busy))) {
			pthread_mutex_lock(&r->lock);
			r->idle_passes += all_stayed ? IDLE_PASSES : 1;
			if (all_stayed && r->nr_stayed)
				r->exhausted_nsec = now_nsec();
			r->nr_stayed = 0;
			eventfd_write(c->janitor_fd, 1); /* frames of removed pages */
			pthread_cond_broadcast(&r->cond);
			pthread_mutex_unlock(&r->lock);
			timeout = IDLE_MSEC;
		} else {
			timeout = demand ? IDLE_MSEC : r->nr_posted || r->stalled ? BUSY_MSEC : -1;
		}
		if (r->again)
			timeout = AGAIN_MSEC;
	}
	return NULL;
}

static void kick(struct reclaim *r)
{
	if (!atomic_exchange(&r->kicked, true))
		eventfd_write(r->kick_fd, 1);
}

void reclaim_rescue(struct process *p)
{
	if (!atomic_exchange(&p->rescue, true))
		kick(p->core->reclaim);
}

void reclaim_check_limit(struct process *p)
{
	uint64_t limit = p->shared->limit_pages;

	if (limit && atomic_load(&p->nr_resident) > (int64_t)limit &&
	    !atomic_exchange(&p->over_limit, true))
		kick(p->core->reclaim);
}

void reclaim_kick(struct core *c)
{
	if (unlikely(core_free_frames(c) < atomic_load_explicit(&c->low_frames,
								memory_order_relaxed)) &&
	    c->reclaim)
		kick(c->reclaim);
}

static void wait_a_moment(struct reclaim *r)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_nsec += 50000000;
	if (ts.tv_nsec >= 1000000000) {
		ts.tv_nsec -= 1000000000;
		ts.tv_sec++;
	}
	pthread_cond_timedwait(&r->cond, &r->lock, &ts);
}

void reclaim_park(struct process *p)
{
	process_park(p);
	atomic_store(&p->over_limit, true);
	kick(p->core->reclaim);
}

bool reclaim_is_stuck(const struct process *p)
{
	uint64_t stuck = atomic_load(&p->stuck_nsec);

	return stuck && now_nsec() - stuck < EXHAUSTED_NSEC;
}

bool reclaim_wait(struct core *c)
{
	struct reclaim *r = c->reclaim;
	uint64_t idle;
	bool again = true;

	pthread_mutex_lock(&r->lock);
	idle = r->idle_passes;
	if (core_free_frames(c) <= 0 && is_exhausted(r)) {
		pthread_mutex_unlock(&r->lock);
		return false;
	}
	r->nr_waiting++;
	for (;;) {
		if (core_free_frames(c) > 0)
			break;
		if (r->idle_passes - idle >= IDLE_PASSES || atomic_load(&r->stop)) {
			again = false;
			break;
		}
		kick(r);
		wait_a_moment(r);
	}
	r->nr_waiting--;
	pthread_mutex_unlock(&r->lock);
	return again;
}

void reclaim_frames_now(struct pool *pool, const uint32_t *frames, unsigned n)
{
	struct reclaim *r = pool->core->reclaim;
	uint64_t ticket;

	pthread_mutex_lock(&r->lock);
	for (unsigned i = 0; i < n && r->nr_now < ARRAY_SIZE(r->now); i++) {
		r->now[r->nr_now].pool = pool;
		r->now[r->nr_now++].frame = frames[i];
	}
	ticket = ++r->now_posted;
	while (r->now_done < ticket && !atomic_load(&r->stop)) {
		kick(r);
		wait_a_moment(r);
	}
	pthread_mutex_unlock(&r->lock);
}

int reclaim_request(struct core *c, struct process *p, uint64_t pages)
{
	struct reclaim *r = c->reclaim;
	int ticket = -EBUSY;

	pthread_mutex_lock(&r->lock);
	for (int i = 0; i < RECLAIM_REQUESTS; i++) {
		if (r->request[i].used)
			continue;
		r->request[i] = (struct request){
			.used = true,
			.process = p->number,
			.generation = p->generation,
			.want = pages,
		};
		ticket = i + 1;
		break;
	}
	pthread_mutex_unlock(&r->lock);
	if (ticket > 0)
		kick(r);
	return ticket;
}

bool reclaim_request_done(struct core *c, int ticket, uint64_t *ret_evicted,
			  const char **ret_reason)
{
	struct reclaim *r = c->reclaim;
	struct request *q = &r->request[ticket - 1];
	bool done;

	pthread_mutex_lock(&r->lock);
	done = q->done;
	if (done) {
		*ret_evicted = q->evicted;
		*ret_reason = q->evicted < q->want ? q->reason : NULL;
		q->used = false;
	}
	pthread_mutex_unlock(&r->lock);
	return done;
}

void reclaim_add(struct process *p)
{
	struct epoll_event ev = {
		.events = EPOLLIN | EPOLLRDHUP,
		.data.u64 = p->number | (uint64_t)p->generation << 32,
	};

	p->evict.in_epoll = epoll_ctl(p->core->reclaim->epoll_fd, EPOLL_CTL_ADD, p->shared->sock,
				      &ev) == 0;
	if (atomic_load(&p->shared->op_state) == OP_POSTED)
		operation_send(p); /* a dead engine may not have got to it */
	/* Nor need it have been told of what that has done to a stalled one. */
	p->evict.fenced = atomic_load(&p->shared->op_state) != OP_IDLE;
	kick(p->core->reclaim);
}

void reclaim_drop_draining(struct core *c)
{
	uint32_t hand = 0;

	operation_drop_slots(c, true, &hand, UINT64_MAX);
}

void reclaim_forget(struct process *p)
{
	struct reclaim *r = p->core->reclaim;

	atomic_store(&p->forget, true);
	while (atomic_load(&p->forget) && !atomic_load(&r->stop)) {
		kick(r);
		usleep(200);
	}
}

int reclaim_start(struct core *c)
{
	struct epoll_event ev = {.events = EPOLLIN, .data.u64 = UINT64_MAX};
	struct reclaim *r = calloc(1, sizeof(*r));
	int e;

	if (!r)
		return -ENOMEM;
	r->core = c;
	r->record = &c->arena->h->worker[ARENA_WORKERS - 1];
	pthread_mutex_init(&r->lock, NULL);
	pthread_cond_init(&r->cond, NULL);
	r->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	r->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	c->reclaim = r;
	if (r->epoll_fd < 0 || r->kick_fd < 0 ||
	    epoll_ctl(r->epoll_fd, EPOLL_CTL_ADD, r->kick_fd, &ev) < 0)
		return -errno;
	e = pthread_create(&r->thread, NULL, reclaim_main, r);
	return -e;
}

void reclaim_stop(struct core *c)
{
	struct reclaim *r = c->reclaim;

	if (!r)
		return;
	atomic_store(&r->stop, true);
	eventfd_write(r->kick_fd, 1);
	pthread_join(r->thread, NULL);
	broadcast(r);
}

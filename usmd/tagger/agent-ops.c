/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Operations of attach.h: MOVE and UNSHARE here, LAZYFREE in agent-lazyfree.c. */
#include <errno.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "agent.h"
#include "sys.h"

/* attach.h: the gate is waited for in steps of 1 ms. */
#define GATE_STEP_USEC 1000
/* Steps after which the agent looks whether the daemon that holds the gate still lives. */
#define GATE_STEPS_PER_PEEK 100
/* A page that trash will not take at once is in the kernel's hands for a moment. */
#define TRASH_ATTEMPTS 100

static void set_result(struct usm_agent *a, uint32_t i, long result)
{
	atomic_store_explicit(&a->ops->res[i], (int32_t)result, memory_order_relaxed);
}

static long result(struct usm_agent *a, uint32_t i)
{
	return atomic_load_explicit(&a->ops->res[i], memory_order_relaxed);
}

static bool cancelled(struct usm_agent *a, uint32_t req)
{
	return atomic_load(&a->ops->cancel) == req;
}

static bool daemon_gone(struct usm_agent *a)
{
	char c;

	return sys6(SYS_recvfrom, a->sock, SYS_ARG(&c), 1, MSG_PEEK | MSG_DONTWAIT, 0, 0) == 0;
}

/* False: the operation is cancelled, or nobody is left to open the gate. */
static bool gate_enter(struct usm_agent *a, uint32_t req)
{
	struct usm_agent_ops *ops = a->ops;

	for (uint32_t step = 1;; step++) {
		uint32_t is = USM_GATE_IDLE;

		if (atomic_compare_exchange_strong(&ops->gate, &is, USM_GATE_AGENT))
			return true;
		if (cancelled(a, req) || (step % GATE_STEPS_PER_PEEK == 0 && daemon_gone(a)))
			return false;
		atomic_fetch_add(&ops->gate_waiters, 1);
		sys_futex_wait(&ops->gate, is, GATE_STEP_USEC);
		atomic_fetch_sub(&ops->gate_waiters, 1);
	}
}

/* Only what is the agent's own: when it stood still, the daemon may have opened the gate (undo.c),
 * and be in it by now. */
static void gate_leave(struct usm_agent *a)
{
	uint32_t agent = USM_GATE_AGENT;

	if (!atomic_compare_exchange_strong(&a->ops->gate, &agent, USM_GATE_IDLE))
		return;
	if (atomic_load(&a->ops->gate_waiters) != 0)
		sys_futex_wake(&a->ops->gate);
}

/* Bytes that moved, or a negative errno when none did. */
static long move(int uffd, uint64_t dst, uint64_t src, uint32_t pages)
{
	struct uffdio_move m = {
		.dst = dst,
		.src = src,
		.len = pages * USM_PAGE_SIZE,
		.mode = UFFDIO_MOVE_MODE_DONTWAKE,
	};
	long r = sys3(SYS_ioctl, uffd, UFFDIO_MOVE, &m);

	if (r == 0)
		return (long)m.len;
	return m.move > 0 ? m.move : r;
}

static bool is_present(uint64_t addr)
{
	uint8_t present = 0;

	return sys3(SYS_mincore, addr, USM_PAGE_SIZE, &present) == 0 && present & 1;
}

/*
 * Linux 6.18, which moves several pages at a time, does not forget an EAGAIN of its own: it moves
 * the pages at the second look, takes a third one, finds the target occupied by the very page, says
 * EEXIST, and does not count them.  EAGAIN can be what another thread's fork() or munmap() has made
 * of that meanwhile.  The target was empty, so what is there now has come from src.
 */
static bool has_moved(long r, uint64_t dst, uint64_t src)
{
	return (r == -EEXIST || r == -EAGAIN) && !is_present(src) && is_present(dst);
}

/* Pages from..to are consecutive: out of the program, into staging, which is empty. */
static void move_run(struct usm_agent *a, uint32_t from, uint32_t to)
{
	while (from < to) {
		uint64_t dst = a->staging + from * USM_PAGE_SIZE;
		long r = move(a->u1, dst, a->addr[from], to - from);
		uint32_t moved;

		/* It takes no range that two mappings share: LAZYFREE is not needed for that. */
		if (r == -EINVAL && to - from > 1)
			r = move(a->u1, dst, a->addr[from], 1);
		moved = r > 0 ? (uint32_t)((uint64_t)r / USM_PAGE_SIZE) : 0;
		if (has_moved(r, dst, a->addr[from]))
			moved = 1;
		/* The page at which the kernel stopped gets its own answer in the next round. */
		if (moved == 0)
			set_result(a, from++, r < 0 ? r : -EAGAIN);
		for (; moved > 0 && from < to; moved--)
			set_result(a, from++, 0);
	}
}

static uint32_t run_end(struct usm_agent *a, uint32_t from, uint32_t longest)
{
	uint32_t to = from + 1;

	while (to < a->n && to - from < longest && a->addr[to] == a->addr[to - 1] + USM_PAGE_SIZE)
		to++;
	return to;
}

static void take_out(struct usm_agent *a, uint32_t req)
{
	for (uint32_t i = 0, to; i < a->n; i = to) {
		bool entered;

		to = run_end(a, i, USM_OPS_GATE_PAGES);
		entered = gate_enter(a, req);
		if (entered && !cancelled(a, req)) {
			move_run(a, i, to);
			gate_leave(a);
			continue;
		}
		for (; i < a->n; i++)
			set_result(a, i, -ECANCELED);
		if (entered)
			gate_leave(a);
		return;
	}
}

static void copy_page(void *dst, uint64_t src)
{
	size_t words = USM_PAGE_SIZE / 8;

	__asm__ volatile("rep movsq" : "+D"(dst), "+S"(src), "+c"(words) : : "memory");
}

/*
 * Staging is emptied through trash, whose userfaultfd has no events: dropping staging itself
 * would wait for the daemon at each page.
 */
static void empty_staging(struct usm_agent *a)
{
	for (uint32_t i = 0; i < a->n; i++) {
		uint32_t to = i, attempts = 0;

		while (to < a->n && result(a, to) == 0)
			to++;
		while (i < to) {
			uint64_t off = i * USM_PAGE_SIZE;
			long r = move(a->u2, a->trash + off, a->staging + off, to - i);

			if (r > 0) {
				i += (uint32_t)((uint64_t)r / USM_PAGE_SIZE);
				attempts = 0;
			} else if (has_moved(r, a->trash + off, a->staging + off)) {
				i++;
				attempts = 0;
			} else if (++attempts == TRASH_ATTEMPTS) {
				sys_madvise(a->staging + off, USM_PAGE_SIZE, MADV_DONTNEED);
				attempts = 0;
				i++;
			}
		}
	}
	sys_madvise(a->trash, a->n * USM_PAGE_SIZE, MADV_DONTNEED);
}

/*
 * A page of zeros comes into staging when the daemon, or a debugger, reads a page that has just left
 * it.  There it would pass for what has moved (has_moved()), and keep others out.
 */
static void check_staging(struct usm_agent *a)
{
	uint8_t present[USM_OPS_BATCH] = { 0 };

	if (sys3(SYS_mincore, a->staging, a->n * USM_PAGE_SIZE, present) < 0)
		return;
	for (uint32_t i = 0; i < a->n; i++)
		if (present[i] & 1)
			sys_madvise(a->staging + i * USM_PAGE_SIZE, USM_PAGE_SIZE, MADV_DONTNEED);
}

static void work_move(struct usm_agent *a, uint32_t req)
{
	char *data = (char *)a->ops + USM_OPS_DATA;
	uint64_t start = sys_now_usec(), moved, copied;
	bool any = false;

	check_staging(a);
	take_out(a, req);
	moved = sys_now_usec();
	for (uint32_t i = 0; i < a->n; i++) {
		if (result(a, i) != 0)
			continue;
		copy_page(data + i * USM_PAGE_SIZE, a->staging + i * USM_PAGE_SIZE);
		any = true;
	}
	copied = sys_now_usec();
	if (any) {
		empty_staging(a);
		a->took_pages = true;
	}
	a->ops->usec_move += moved - start;
	a->ops->usec_copy += copied - moved;
	a->ops->usec_drop += sys_now_usec() - copied;
}

/* A copy by another name than the page's own mapping: pinning a page that is shared after a fork
 * gives the process its own first, also where it must not be written (Linux 5.19). */
static void unshare_by_pin(uint64_t addr)
{
	uint8_t byte;
	struct iovec to = { &byte, 1 }, from = { (void *)addr, 1 };
	long pid = sys0(SYS_getpid);

	sys6(SYS_process_vm_readv, pid, SYS_ARG(&to), 1, SYS_ARG(&from), 1, 0);
}

static void work_unshare(struct usm_agent *a)
{
	for (uint32_t i = 0; i < a->n; i++) {
		long r = sys_madvise(a->addr[i], USM_PAGE_SIZE, MADV_POPULATE_WRITE);

		if (r == -EINVAL || r == -EFAULT)
			unshare_by_pin(a->addr[i]);
		set_result(a, i, r);
	}
}

static void work_refuse(struct usm_agent *a, long error)
{
	for (uint32_t i = 0; i < a->n; i++)
		set_result(a, i, error);
}

/* Copies the addresses once; what is checked is what is used. */
static long read_operation(struct usm_agent *a)
{
	uint32_t n = a->ops->n;

	a->n = n < USM_OPS_BATCH ? n : USM_OPS_BATCH;
	for (uint32_t i = 0; i < a->n; i++) {
		a->addr[i] = a->ops->addr[i];
		if (a->addr[i] % USM_PAGE_SIZE != 0)
			return -EINVAL;
	}
	return n == a->n ? 0 : -EINVAL;
}

/* In these the agent may wait for the daemon itself. */
static void work_and_wait(struct usm_agent *a, uint32_t req, uint32_t kind)
{
	usm_link_start(a);
	for (uint32_t i = 0; i < a->n; i++)
		set_result(a, i, -EINPROGRESS);
	atomic_store(&a->can_wait, true);
	if (kind == USM_OPS_LAZYFREE)
		usm_agent_lazyfree(a, req);
	else
		work_unshare(a);
	atomic_store(&a->can_wait, false);
}

void usm_agent_work(struct usm_agent *a)
{
	struct usm_agent_ops *ops = a->ops;
	uint32_t req = atomic_load(&ops->req), kind = ops->kind;
	enum usm_agent_state state;
	long r;

	/* A new engine asks again for what the dead one may not have seen the end of. */
	if (atomic_load(&ops->done) == req)
		return;
	if (atomic_load(&ops->nr_swapped) != 0)
		a->count_seen = true;
	state = usm_agent_watch(a);
	atomic_store(&ops->agent_state, state);
	r = read_operation(a);
	if (state != USM_AGENT_RUNNING)
		r = -EPERM;
	if (r < 0)
		work_refuse(a, r);
	else if (kind == USM_OPS_MOVE)
		work_move(a, req);
	else if (kind == USM_OPS_LAZYFREE || kind == USM_OPS_UNSHARE)
		work_and_wait(a, req, kind);
	else
		work_refuse(a, -EINVAL);
	atomic_store(&ops->done, req);
}

bool usm_agent_has_swapped(struct usm_agent *a)
{
	return atomic_load(&a->ops->nr_swapped) != 0 || (a->took_pages && !a->count_seen);
}

int usm_agent_restore(struct usm_agent *a)
{
	struct usm_agent_ops *ops = a->ops;

	if (usm_agent_has_swapped(a))
		return -EBUSY;
	if (atomic_load(&ops->inflight) == 0 || ops->kind == USM_OPS_UNSHARE)
		return 0;
	for (uint32_t i = 0; i < a->n; i++) {
		struct uffdio_copy c = {
			.dst = a->addr[i],
			.src = (uint64_t)ops + USM_OPS_DATA + i * USM_PAGE_SIZE,
			.len = USM_PAGE_SIZE,
		};
		long r;

		if (result(a, i) != 0)
			continue;
		r = sys3(SYS_ioctl, a->u1, UFFDIO_COPY, &c);
		if (r < 0 && r != -EEXIST)
			return (int)r;
	}
	return 0;
}

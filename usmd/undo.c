/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Operations whose results do not come, or not in time: their pages go back to where they were. */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>

#include "lib/cleanup.h"
#include "mechanism-userfault.h"
#include "operation-internal.h"
#include "pagemap.h"
#include "policy.h"
#include "pool.h"
#include "reclaim-internal.h"
#include "worker.h"

/* In a staging area, by an agent that may go on at any moment: a page of zeros is no page. */
static bool is_staged(int pagemap, uint64_t addr, bool *ret_absent)
{
	uint64_t entry = 0;

	if (pread(pagemap, &entry, sizeof(entry), (off_t)(VPN(addr) * sizeof(entry))) !=
	    sizeof(entry))
		return false;
	*ret_absent = !(entry & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED));
	return entry & PAGEMAP_PRESENT && entry & PAGEMAP_EXCLUSIVE;
}

/* What the agent has taken: it is in staging, and is copied before the first page leaves that. */
static bool read_taken(struct process *p, int pagemap, unsigned i, uint8_t *page)
{
	struct arena_process *s = p->shared;
	uint64_t addr = s->staging + (uint64_t)i * USM_PAGE_SIZE;
	struct iovec to = {page, USM_PAGE_SIZE}, from = {(void *)(uintptr_t)addr, USM_PAGE_SIZE};
	struct pollfd ended = {.fd = s->pidfd, .events = POLLIN};
	bool absent = false;

	if (is_staged(pagemap, addr, &absent)) {
		if (process_vm_readv(s->pid, &to, 1, &from, 1, 0) != (ssize_t)USM_PAGE_SIZE ||
		    !is_staged(pagemap, addr, &absent))
			return false;
	} else if (absent) {
		memcpy(page, (uint8_t *)p->ops + USM_OPS_DATA + (size_t)i * USM_PAGE_SIZE,
		       USM_PAGE_SIZE);
	} else {
		return false;
	}
	/* Its number is another program's by now? */
	return s->pidfd >= 0 && poll(&ended, 1, 0) == 0;
}

/* Under the latch.  The agent's answer for it, when it comes, finds nothing on its way. */
static bool install_taken(struct process *p, unsigned i, const uint8_t *page, uint32_t *ret_frame)
{
	page_entry *e = process_page(p, p->shared->op_vpn[i], false);
	uint64_t v = e ? atomic_load(e) : 0;
	unsigned done;

	if (PAGE_STATE(v) != PAGE_EVICTING || v & (PAGE_GONE | PAGE_DISCARD) ||
	    userfault_copy(p->shared->uffd, p->shared->op_vpn[i], page, 1, &done) < 0)
		return false;
	*ret_frame = PAGE_VALUE(v);
	return PAGE_STATE(operation_finish_page(p, i, e, PAGE_ENTRY(PAGE_RESIDENT, *ret_frame), true)) == PAGE_RESIDENT;
}

/*
 * The agent stands still in the gate, and nobody could read the program's faults.  The kernel moves
 * pages into registered memory only: without that its next MOVE fails, whenever it comes, and the
 * gate is not needed.
 */
static void open_gate(struct process *p)
{
	struct arena_process *s = p->shared;
	uint32_t agent = USM_GATE_AGENT;

	if (atomic_load(&p->ops->gate) != USM_GATE_AGENT ||
	    userfault_unregister(s->uffd, s->staging, s->staging + OPERATION_STAGING_BYTES) < 0)
		return;
	p->evict.fenced = true;
	atomic_compare_exchange_strong(&p->ops->gate, &agent, USM_GATE_IDLE);
	worker_defer(p);
}

void operation_take_back(struct process *p)
{
	struct arena_process *s = p->shared;
	struct pool *pool = atomic_load(&p->pool);
	uint32_t frame[USM_OPS_BATCH];
	uint8_t page[USM_PAGE_SIZE];
	_cleanup_close_ int pagemap = -1;
	unsigned n = 0;
	char path[64];

	if (s->op_kind != USM_OPS_MOVE || s->pid <= 0)
		return;
	open_gate(p);
	snprintf(path, sizeof(path), "/proc/%d/pagemap", s->pid);
	pagemap = open(path, O_RDONLY | O_CLOEXEC);
	for (unsigned i = 0; pagemap >= 0 && i < s->op_n; i++) {
		/* Whatever comes after this answer of the agent leaves the program alone. */
		if (atomic_load(&p->ops->res[i]) != 0 || !read_taken(p, pagemap, i, page))
			continue;
		if (!process_try_latch(p))
			break;
		n += install_taken(p, i, page, &frame[n]);
		process_unlatch_reclaim(p);
	}
	if (pool && n) {
		policy_give_back(pool, frame, n);
		pool_flush(pool);
	}
}

bool operation_undo(struct process *p)
{
	struct arena_process *s = p->shared;
	struct pool *pool = atomic_load(&p->pool);
	uint32_t frame[USM_OPS_BATCH];
	unsigned n = 0;
	bool lazy = s->op_kind == USM_OPS_LAZYFREE;

	/* In this order: it ends what it has begun before it says that it goes. */
	if (atomic_load(&p->ops->agent_state) != USM_AGENT_GONE ||
	    atomic_load(&p->ops->done) == s->op_seq)
		return false;
	for (unsigned i = 0; s->op_kind != USM_OPS_UNSHARE && i < s->op_n; i++) {
		page_entry *e = process_page(p, s->op_vpn[i], false);
		uint64_t v = e ? atomic_load(e) : 0;

		if (PAGE_STATE(v) != PAGE_EVICTING)
			continue;
		if (lazy)
			operation_unprotect(p, s->op_vpn[i]);
		v = operation_finish_page(p, i, e, PAGE_ENTRY(PAGE_RESIDENT, PAGE_VALUE(v)) | (v & PAGE_LAZY), !lazy);
		if (PAGE_STATE(v) == PAGE_RESIDENT)
			frame[n++] = PAGE_VALUE(v);
	}
	operation_end(p);
	if (pool) {
		policy_give_back(pool, frame, n);
		pool_flush(pool);
	}
	return true;
}

void operation_give_up(struct reclaim *r, struct process *p)
{
	/* A child that it has forked, and that is not made yet, needs what had left. */
	if (atomic_load(&p->shared->op_state) != OP_IDLE && (p->held || atomic_load(&p->barrier)) &&
	    p->ops && atomic_load(&p->ops->done) == p->shared->op_seq)
		operation_collect(r, p);
	if (atomic_load(&p->shared->op_state) != OP_IDLE) {
		for (unsigned i = 0; p->shared->op_kind != USM_OPS_UNSHARE && i < p->shared->op_n; i++) {
			page_entry *e = process_page(p, p->shared->op_vpn[i], false);

			if (e && PAGE_STATE(atomic_load(e)) == PAGE_EVICTING)
				operation_finish_page(p, i, e, PAGE_ENTRY(PAGE_LOST, 0), true);
		}
		operation_end(p);
	}
	if (p->evict.in_epoll) {
		epoll_ctl(r->epoll_fd, EPOLL_CTL_DEL, p->shared->sock, NULL);
		p->evict.in_epoll = false;
	}
	atomic_store(&p->forget, false);
}

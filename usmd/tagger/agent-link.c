/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The link: a second thread, started before the first operation in which the agent may wait for the
 * daemon, in a fault (UNSHARE) or for its own event to be read (LAZYFREE).  When every daemon has
 * died meanwhile, somebody must still look for the next one and count the grace, and in the end
 * answer what the agent waits for.
 *
 * The link makes new connections, the agent uses them: the agent's socket is closed by the agent
 * alone, so that neither can write into a connection of the other's.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>

#include "agent.h"
#include "sys.h"

/* Where programs have memory; below it the kernel allows none. */
#define USER_START 0x10000ull
#define USER_END   0x7ffffffff000ull

/* Between looks at an agent that goes on by itself, and at one that is being helped. */
#define LOOK_USEC 10000

static void wake_agent(struct usm_agent *a)
{
	atomic_fetch_add(&a->link_turn, 1);
	sys_futex_wake(&a->link_turn);
}

static bool is_over(struct usm_agent *a)
{
	return atomic_load(&a->life) == USM_LIFE_OVER;
}

static void wait_for_wake(struct usm_agent *a, uint64_t usec)
{
	struct pollfd p = { .fd = a->link_fd, .events = POLLIN };
	struct timespec t = { 0, (long)usec * 1000 };
	uint64_t n;

	if (sys5(SYS_ppoll, &p, 1, &t, NULL, 0) > 0)
		sys3(SYS_read, a->link_fd, &n, sizeof(n));
}

/* True when sock has been hung up, false when the agent's life is over. */
static bool wait_for_hangup(struct usm_agent *a, int sock)
{
	struct pollfd p[2] = {
		{ .fd = sock }, /* what is to be read there is the agent's business */
		{ .fd = a->link_fd, .events = POLLIN },
	};
	uint64_t n;

	while (!is_over(a)) {
		if (sys5(SYS_ppoll, p, 2, NULL, NULL, 0) <= 0)
			continue;
		if (p[1].revents & POLLIN)
			sys3(SYS_read, a->link_fd, &n, sizeof(n));
		if (p[0].revents & (POLLHUP | POLLERR))
			return !is_over(a);
	}
	return false;
}

/* The agent may find RELEASE before the end of file: only where it waits is it not asked.  False
 * when its life is over. */
static bool needs_daemon(struct usm_agent *a)
{
	while (!atomic_load(&a->lost) && !atomic_load(&a->can_wait)) {
		if (is_over(a))
			return false;
		wait_for_wake(a, LOOK_USEC);
	}
	return !is_over(a);
}

static uint32_t batch_index(struct usm_agent *a, uint64_t page)
{
	uint32_t i = 0;

	while (i < a->n && a->addr[i] != page)
		i++;
	return i;
}

/* No page was swapped, and the operation is the newest, so what is missing was never there, or is in
 * its hands. */
static void serve_missing(struct usm_agent *a, uint64_t page)
{
	struct uffdio_zeropage z = { .range = { .start = page, .len = USM_PAGE_SIZE } };
	uint32_t i = batch_index(a, page);
	int32_t result = i < a->n ? atomic_load(&a->ops->res[i]) : -ENOENT;
	struct uffdio_copy c = {
		.dst = page,
		.src = (uint64_t)a->ops + USM_OPS_DATA + i * USM_PAGE_SIZE,
		.len = USM_PAGE_SIZE,
	};

	if (result == -EINPROGRESS)
		usm_agent_kill_program(a); /* whose page it is, nobody knows */
	if (result == 0)
		sys3(SYS_ioctl, a->u1, UFFDIO_COPY, &c);
	else
		sys3(SYS_ioctl, a->u1, UFFDIO_ZEROPAGE, &z);
}

static void wake(struct usm_agent *a, uint64_t start, uint64_t end)
{
	struct uffdio_range range = { .start = start, .len = end - start };

	sys3(SYS_ioctl, a->u1, UFFDIO_WAKE, &range);
}

/* As the daemon would; that an event is read is its answer. */
static void serve_one(struct usm_agent *a)
{
	struct pollfd p = { .fd = a->u1, .events = POLLIN };
	struct timespec t = { 0, LOOK_USEC * 1000 };
	struct uffdio_writeprotect wp = { .range = { .len = USM_PAGE_SIZE } };
	struct uffd_msg m;
	uint64_t page;

	if (sys5(SYS_ppoll, &p, 1, &t, NULL, 0) <= 0 ||
	    sys3(SYS_read, a->u1, &m, sizeof(m)) != (long)sizeof(m))
		return;
	if (m.event == UFFD_EVENT_FORK)
		sys_close((int)m.arg.fork.ufd); /* ends the child's registration */
	if (m.event != UFFD_EVENT_PAGEFAULT)
		return;
	page = m.arg.pagefault.address & ~(USM_PAGE_SIZE - 1);
	/* The agent has come out meanwhile, and puts back what it has taken: it is asked again then. */
	if (!atomic_load(&a->can_wait)) {
		wake(a, page, page + USM_PAGE_SIZE);
		return;
	}
	if (m.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
		wp.range.start = page;
		sys3(SYS_ioctl, a->u1, UFFDIO_WRITEPROTECT, &wp);
	} else {
		serve_missing(a, page);
	}
}

static void give_up(struct usm_agent *a)
{
	if (usm_agent_has_swapped(a))
		usm_agent_kill_program(a);
	atomic_store(&a->given_up, true);
	wake_agent(a);
	/* Faults that a daemon had read before it died are asked again. */
	wake(a, USER_START, USER_END);
	/* Only as long as the agent is in its operation: then it gives up, too. */
	while (!is_over(a))
		if (atomic_load(&a->can_wait))
			serve_one(a);
		else
			wait_for_wake(a, LOOK_USEC);
}

static void link_main(struct usm_agent *a)
{
	int sock = a->sock;

	sys2(SYS_prctl, PR_SET_NAME, "usm-link");
	while (wait_for_hangup(a, sock) && needs_daemon(a)) {
		sock = usm_agent_rejoin(a);
		if (sock < 0) {
			give_up(a);
			break;
		}
		/* The one before it may have hung up before the agent came to use it. */
		sys_close(atomic_exchange(&a->next_sock, sock));
		wake_agent(a);
	}
	for (;;)
		sys1(SYS_exit, 0);
}

void usm_link_start(struct usm_agent *a)
{
	unsigned long flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD;
	long r;

	if (a->has_link)
		return;
	r = sys2(SYS_eventfd2, 0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r < 0)
		return;
	a->link_fd = (int)r;
	a->next_sock = -1;
	a->has_link = usm_thread_start(flags, a->link_stack + sizeof(a->link_stack), link_main, a) > 0;
	if (!a->has_link)
		sys_close(a->link_fd);
}

static void wake_link(struct usm_agent *a)
{
	uint64_t one = 1;

	sys3(SYS_write, a->link_fd, &one, sizeof(one));
}

void usm_link_end(struct usm_agent *a)
{
	if (a->has_link)
		wake_link(a);
}

bool usm_link_renew(struct usm_agent *a)
{
	int sock = -1;

	if (!a->has_link) {
		sock = usm_agent_rejoin(a);
	} else {
		atomic_store(&a->lost, true);
		wake_link(a);
		for (;;) {
			uint32_t turn = atomic_load(&a->link_turn);

			sock = atomic_exchange(&a->next_sock, -1);
			if (sock >= 0 || atomic_load(&a->given_up))
				break;
			sys_futex_wait(&a->link_turn, turn, 1000000);
		}
		atomic_store(&a->lost, false);
	}
	sys_close(a->sock);
	a->sock = sock;
	return sock >= 0;
}

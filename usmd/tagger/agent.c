/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The life of the agent thread. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "agent.h"
#include "sys.h"

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#define SYS_pidfd_getfd 438
#endif

/* Without an event for so long, no call that began before is left. */
#define LAST_EVENTS_SEC 10

/* The table was copied from the program's: keep nothing of it but the answer's end. */
static void close_inherited(struct usm_agent *a)
{
	unsigned keep = (unsigned)a->answer_fd;

	if (keep > 0)
		sys3(SYS_close_range, 0, keep - 1, 0);
	sys3(SYS_close_range, keep + 1, ~0u, 0);
}

/* A program that drops its capabilities does not know of this thread. */
static void drop_capabilities(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2] = { { 0, 0, 0 }, { 0, 0, 0 } };

	if (sys2(SYS_capget, &header, data) < 0 ||
	    (data[0].permitted | data[1].permitted | data[0].inheritable | data[1].inheritable) == 0)
		return; /* nothing to drop, and some filters refuse capset */
	for (int i = 0; i < 2; i++)
		data[i].effective = data[i].permitted = data[i].inheritable = 0;
	sys2(SYS_capset, &header, data);
}

static void answer(struct usm_agent *a, struct usm_answer *text)
{
	usm_message_send(a->answer_fd, text, sizeof(*text), &a->u1, text->managed ? 1 : 0);
	sys_close(a->answer_fd);
}

static void say_over(struct usm_agent *a)
{
	if (a->ops)
		atomic_store(&a->ops->agent_state, USM_AGENT_GONE);
	atomic_store(&a->life, USM_LIFE_OVER); /* no hook registers from now on */
	usm_link_end(a);
}

static __attribute__((noreturn)) void leave(struct usm_agent *a)
{
	say_over(a);
	/*
	 * The userfaultfds and the socket close with the table.  The ops memory stays, as a thread
	 * of the program may be in it; staging stays too, as unmapping it could wait for an event
	 * to be read that nobody reads any more.
	 */
	for (;;)
		sys1(SYS_exit, 0);
}

/*
 * A call that was under way when the registration ended may still announce what it does, and its
 * thread waits for the answer as long as the userfaultfd is open: the program's side has it, too.
 */
static void answer_events(struct usm_agent *a)
{
	struct pollfd p = { .fd = a->u1, .events = POLLIN };
	struct timespec t = { .tv_sec = LAST_EVENTS_SEC };
	struct uffd_msg m;

	while (sys5(SYS_ppoll, &p, 1, &t, NULL, 0) > 0 && sys3(SYS_read, a->u1, &m, sizeof(m)) > 0)
		if (m.event == UFFD_EVENT_FORK) /* ends the child's registration */
			sys_close((int)m.arg.fork.ufd);
}

/* All is in the program; from here on it is nobody's. */
static __attribute__((noreturn)) void let_go(struct usm_agent *a)
{
	say_over(a);
	usm_agent_unregister_all(a);
	answer_events(a);
	leave(a);
}

/* The daemon reads events until it has ended the registration, and then hangs up. */
static __attribute__((noreturn)) void released(struct usm_agent *a)
{
	char c[sizeof(struct usm_attach_msg)];
	long r;

	/* Not with a filter, which may kill for what the rest takes. */
	if (usm_agent_watch(a) == USM_AGENT_SECCOMP)
		leave(a);
	say_over(a);
	sys2(SYS_shutdown, a->sock, SHUT_WR);
	do
		r = sys3(SYS_read, a->sock, c, sizeof(c));
	while (r > 0 || r == -EINTR);
	let_go(a);
}

static void append(char *line, size_t size, const char *text)
{
	size_t n = 0;

	while (line[n])
		n++;
	while (*text && n < size - 1)
		line[n++] = *text++;
	line[n] = '\0';
}

/*
 * The descriptor table of the program is not this thread's, and a duplicate of its stderr kept
 * from the start would hold a pipe open that the program closes: borrow the present one.
 */
static void tell_program(struct usm_agent *a, const char *text)
{
	char line[256] = "usm-tagger: ";
	long pid = sys0(SYS_getpid), pidfd, fd;
	size_t n = 0;

	append(line, sizeof(line), a->program);
	append(line, sizeof(line), text);
	while (line[n])
		n++;
	pidfd = sys2(SYS_pidfd_open, pid, 0);
	if (pidfd < 0)
		return;
	fd = sys3(SYS_pidfd_getfd, pidfd, 2, 0);
	if (fd >= 0)
		sys3(SYS_write, fd, line, n);
}

void usm_agent_kill_program(struct usm_agent *a)
{
	tell_program(a, ": usmd is gone, and with it pages of this program; "
			"it is killed, as it would go on with wrong data\n");
	for (;;)
		sys2(SYS_kill, sys0(SYS_getpid), SIGKILL);
}

static __attribute__((noreturn)) void give_up(struct usm_agent *a)
{
	if (usm_agent_restore(a) == 0)
		let_go(a);
	usm_agent_kill_program(a);
}

/*
 * read and write only, here and in what follows them: a filter that the program installs for all
 * its threads lets these pass, until the watch sees it.
 */
static __attribute__((noreturn)) void serve(struct usm_agent *a)
{
	for (;;) {
		struct usm_attach_msg m;
		long r = sys3(SYS_read, a->sock, &m, sizeof(m));

		if (r == -EINTR)
			continue;
		if (r <= 0) {
			if (!usm_link_renew(a))
				give_up(a);
			continue;
		}
		if (r != sizeof(m) || m.magic != USM_ATTACH_MAGIC ||
		    m.version != USM_ATTACH_VERSION)
			continue;
		if (m.type == USM_ATTACH_RELEASE)
			released(a);
		if (m.type != USM_ATTACH_WORK)
			continue;
		usm_agent_work(a);
		m.type = USM_ATTACH_DONE;
		m.seq = atomic_load(&a->ops->done);
		/* A broken socket shows at the next read; SIGPIPE is blocked like all others. */
		sys3(SYS_write, a->sock, &m, sizeof(m));
	}
}

void usm_agent_main(struct usm_agent *a)
{
	struct usm_answer text = { .managed = 0 };

	close_inherited(a);
	drop_capabilities();
	sys2(SYS_prctl, PR_SET_NAME, "usm-agent");
	/* Its own root and directory, so that a later chroot leaves the socket in reach; "/" so
	 * that it keeps no file system busy. */
	sys1(SYS_chdir, "/");
	a->tid = (int32_t)sys0(SYS_gettid);
	a->took_pages = a->child;
	a->status_fd = a->pagemap_fd = a->mem_fd = -1;
	if (usm_agent_attach(a, text.reason) < 0) {
		answer(a, &text);
		leave(a);
	}
	usm_agent_watch_start(a);
	atomic_store(&a->ops->agent_state, USM_AGENT_RUNNING);
	atomic_store(&a->life, USM_LIFE_MANAGED);
	text.managed = 1;
	answer(a, &text);
	serve(a);
}

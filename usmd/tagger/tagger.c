/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Start, fork and end of the library's work in a program. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "cleanup.h"
#include "sys.h"
#include "tagger.h"

#define RUNTIME_DIR "/run/usmd"
/* How long the first hooked call of a child waits for its agent: a handshake takes well under a
 * millisecond, and a later one finds the answer without waiting. */
#define CHILD_WAIT_USEC 50000

struct usm_tagger_state *usm_tagger;

/* What a child must know although the state page is wiped for it. */
static struct {
	uint64_t marker; /* 0: not managed, children do not attach */
	int u1, answer_fd;
	bool hooked;
	char socket_path[sizeof(((struct usm_agent *)0)->socket_path)];
	char program[sizeof(((struct usm_agent *)0)->program)];
} inherited = { .u1 = -1, .answer_fd = -1 };

static int move_high(int fd)
{
	long high = sys3(SYS_fcntl, fd, F_DUPFD_CLOEXEC, USM_HIGH_FD);

	if (high < 0)
		return fd; /* the limit is lower: it stays where it is */
	sys_close(fd);
	return (int)high;
}

/* Only if it is still what it was: the program may have closed it and opened something else. */
static void close_if(int fd, const char *target)
{
	char path[32] = "/proc/self/fd/", link[64];
	size_t n = strlen(path), len = strlen(target);
	unsigned div = 1;
	long r;

	if (fd < 0)
		return;
	while ((unsigned)fd / div >= 10)
		div *= 10;
	for (; div > 0; div /= 10)
		path[n++] = (char)('0' + (unsigned)fd / div % 10);
	path[n] = '\0';
	r = sys4(SYS_readlinkat, AT_FDCWD, path, link, sizeof(link));
	if (r >= (long)len && memcmp(link, target, len) == 0)
		sys_close(fd);
}

static void close_userfaultfd(int fd)
{
	close_if(fd, "anon_inode:[userfaultfd]");
}

/* Released, or the descriptor is not ours any more; the scan covers what comes. */
static void disarm(struct usm_tagger_state *s)
{
	uint32_t armed = USM_TAGGER_ARMED;

	/* A vfork child has a descriptor table of its own but this state is its parent's. */
	if (sys0(SYS_getpid) != s->pid ||
	    !atomic_compare_exchange_strong(&s->mode, &armed, USM_TAGGER_OFF))
		return;
	close_userfaultfd(s->u1);
	inherited.u1 = -1;
	if (atomic_load(&s->agent->life) == USM_LIFE_OVER)
		inherited.marker = 0;
}

static bool wait_readable(int fd, uint64_t usec)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	struct timespec t = { 0, (long)usec * 1000 };

	return sys5(SYS_ppoll, &p, 1, &t, NULL, 0) > 0;
}

/* Managed: u1 is here. */
static void arm(struct usm_tagger_state *s, int u1)
{
	struct usm_agent *a = s->agent;

	s->u1 = inherited.u1 = move_high(u1);
	s->register_mode = UFFDIO_REGISTER_MODE_MISSING;
	if (a->evict_modes)
		s->register_mode |= UFFDIO_REGISTER_MODE_WP;
	inherited.marker = a->marker;
}

/* Takes the agent's one answer; the caller has the mode TAKING. */
static bool take_answer(struct usm_tagger_state *s, struct usm_answer *answer)
{
	int fds[2], nr = usm_message_recv(s->answer_fd, answer, sizeof(*answer), fds);

	sys_close(s->answer_fd);
	s->answer_fd = inherited.answer_fd = -1;
	if (nr < 0)
		strcpy(answer->reason, "the agent thread died");
	if (nr == 1 && answer->managed) {
		arm(s, fds[0]);
		return true;
	}
	for (int i = 0; i < nr; i++)
		sys_close(fds[i]);
	return false;
}

/* In a child: the agent works on the handshake while the program goes on. */
static bool take_pending(struct usm_tagger_state *s)
{
	uint32_t pending = USM_TAGGER_PENDING;
	uint64_t usec = s->waited ? 0 : CHILD_WAIT_USEC;
	struct usm_answer answer = { .managed = 0 };
	bool managed;

	if (sys0(SYS_getpid) != s->pid ||
	    !atomic_compare_exchange_strong(&s->mode, &pending, USM_TAGGER_TAKING))
		return false;
	s->waited = true;
	if (!wait_readable(s->answer_fd, usec)) {
		atomic_store(&s->mode, USM_TAGGER_PENDING);
		return false;
	}
	managed = take_answer(s, &answer);
	atomic_store(&s->mode, managed ? USM_TAGGER_ARMED : USM_TAGGER_OFF);
	return managed;
}

bool usm_tagger_ready(void)
{
	struct usm_tagger_state *s = usm_tagger;

	if (!s)
		return false;
	switch (atomic_load_explicit(&s->mode, memory_order_acquire)) {
	case USM_TAGGER_PENDING:
		if (!take_pending(s))
			return false;
		/* What the answer says may be over by now. */
		/* fall through */
	case USM_TAGGER_ARMED:
		if (atomic_load_explicit(&s->agent->life, memory_order_relaxed) == USM_LIFE_MANAGED)
			return true;
		disarm(s);
		return false;
	default:
		return false;
	}
}

void usm_tagger_register(uint64_t addr, size_t bytes)
{
	struct usm_tagger_state *s = usm_tagger;
	struct uffdio_register reg = {
		.range = { .start = addr, .len = bytes },
		.mode = s->register_mode,
	};
	long r = sys3(SYS_ioctl, s->u1, UFFDIO_REGISTER, &reg);

	/* The agent looks at the mappings after it has said that it is over: if it did not see this
	 * one, it has said so by now. */
	if (r == 0 && atomic_load(&s->agent->life) != USM_LIFE_MANAGED) {
		sys3(SYS_ioctl, s->u1, UFFDIO_UNREGISTER, &reg.range);
		disarm(s);
	}
	if (r == -EBADF || r == -ENOTTY)
		disarm(s);
}

/* A mapping that usmd does not manage and no child inherits. */
static struct usm_agent *new_agent(struct usm_tagger_state *s, bool child)
{
	long r = sys_mmap(0, sizeof(struct usm_agent), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct usm_agent *a;

	if (sys_is_error(r))
		return NULL;
	sys_madvise((uint64_t)r, sizeof(*a), MADV_DONTFORK);
	sys_madvise((uint64_t)r, sizeof(*a), MADV_DONTDUMP);
	a = (struct usm_agent *)r;
	memcpy(a->socket_path, inherited.socket_path, sizeof(a->socket_path));
	memcpy(a->program, inherited.program, sizeof(a->program));
	a->child = child;
	a->marker = child ? inherited.marker : 0;
	a->tcb = usm_thread_pointer();
	usm_pin_list(a, s);
	atomic_store(&a->hooked, inherited.hooked);
	return a;
}

/*
 * Not CLONE_FILES: programs close descriptors that they do not know.  Not CLONE_FS: a chroot
 * would hide the socket, and setns refuses to act on a shared one.
 */
static long clone_agent(struct usm_agent *a)
{
	uint64_t all = ~0ull, old;
	long r;

	sys4(SYS_rt_sigprocmask, SIG_SETMASK, &all, &old, sizeof(all));
	r = usm_thread_start(CLONE_VM | CLONE_SIGHAND | CLONE_THREAD, a->stack + sizeof(a->stack),
			     usm_agent_main, a);
	sys4(SYS_rt_sigprocmask, SIG_SETMASK, &old, NULL, sizeof(old));
	return r;
}

/* 0 with s->agent and s->answer_fd set, or a negative errno. */
static int start_agent(struct usm_tagger_state *s, bool child)
{
	struct usm_agent *a = new_agent(s, child);
	int pair[2];
	long r;

	if (!a)
		return -ENOMEM;
	r = sys4(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair);
	if (r == 0) {
		a->answer_fd = pair[1];
		r = clone_agent(a);
		sys_close(pair[1]);
		if (r < 0)
			sys_close(pair[0]);
	}
	if (r < 0) {
		sys2(SYS_munmap, a, sizeof(*a));
		return (int)r;
	}
	s->agent = a;
	s->pid = (int)sys0(SYS_getpid);
	s->answer_fd = inherited.answer_fd = move_high(pair[0]);
	return 0;
}

static void before_fork(void)
{
	struct usm_tagger_state *s = usm_tagger;

	if (s->agent && atomic_load(&s->agent->life) == USM_LIFE_OVER) {
		disarm(s);
		inherited.marker = 0;
	}
	/* A child that forks at once waits a moment for its agent. */
	if (!s->agent || !usm_tagger_ready() || sys0(SYS_getpid) != s->pid)
		return;
	usm_pin_before_fork(s->agent);
	if (atomic_load(&s->agent->ops->protect_fork) != USM_PROTECT_NO)
		usm_protect_fork(s);
	usm_order_fork(s->agent);
}

static void after_fork_in_parent(void)
{
	struct usm_tagger_state *s = usm_tagger;

	if (s->agent && sys0(SYS_getpid) == s->pid)
		usm_order_forked(s->agent);
}

static void after_fork_in_child(void)
{
	struct usm_tagger_state *s = usm_tagger;

	close_userfaultfd(inherited.u1);
	close_if(inherited.answer_fd, "socket:[");
	inherited.u1 = inherited.answer_fd = -1;
	if (inherited.marker == 0 || start_agent(s, true) < 0)
		return;
	atomic_store(&s->mode, USM_TAGGER_PENDING);
}

static void say_unmanaged(const char *reason)
{
	const char *quiet = getenv("USMD_QUIET");
	struct iovec line[] = {
		{ "usm-tagger: ", 12 },
		{ inherited.program, strlen(inherited.program) },
		{ " runs unmanaged: ", 17 },
		{ (void *)reason, strlen(reason) },
		{ "\n", 1 },
	};

	if (reason[0] && !(quiet && strcmp(quiet, "1") == 0))
		sys3(SYS_writev, 2, line, ARRAY_SIZE(line));
}

static bool make_socket_path(void)
{
	const char *dir = getenv("USMD_RUNTIME_DIR");
	size_t n, name = strlen("/" USM_ATTACH_SOCKET);

	if (!dir || !*dir)
		dir = RUNTIME_DIR;
	n = strlen(dir);
	if (n + name >= sizeof(inherited.socket_path))
		return false;
	memcpy(inherited.socket_path, dir, n);
	memcpy(inherited.socket_path + n, "/" USM_ATTACH_SOCKET, name + 1);
	return true;
}

/* Patching text is safe only while nobody else can be executing it. */
static bool is_single_threaded(void)
{
	_cleanup_closedir_ DIR *tasks = opendir("/proc/self/task");
	int nr = 0;

	if (!tasks)
		return false;
	for (struct dirent *d; (d = readdir(tasks));)
		nr += d->d_name[0] != '.';
	return nr == 1;
}

static struct usm_tagger_state *new_state(void)
{
	long r = sys_mmap(0, USM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);

	if (sys_is_error(r) || sys_madvise((uint64_t)r, USM_PAGE_SIZE, MADV_WIPEONFORK) < 0)
		return NULL;
	return (struct usm_tagger_state *)r;
}

__attribute__((constructor)) static void start(void)
{
	const char *no_patch = getenv("USMD_NO_PATCH");
	struct usm_answer answer = { .managed = 0 };
	struct usm_tagger_state *s;
	bool may_patch;

	if (getauxval(AT_SECURE))
		return;
	strncpy(inherited.program, program_invocation_short_name, sizeof(inherited.program) - 1);
	if (!make_socket_path()) {
		say_unmanaged("the runtime directory's name is too long");
		return;
	}
	may_patch = !(no_patch && strcmp(no_patch, "1") == 0) && is_single_threaded();
	s = new_state();
	if (!s || start_agent(s, false) < 0) {
		say_unmanaged("the agent thread could not be started");
		return;
	}
	usm_tagger = s;
	if (!take_answer(s, &answer)) {
		say_unmanaged(answer.reason);
		return;
	}
	if (may_patch && usm_patch_libc(usm_hook_patches, usm_nr_hook_patches)) {
		inherited.hooked = true;
		atomic_store(&s->agent->hooked, 1);
	}
	pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
	atomic_store(&s->mode, USM_TAGGER_ARMED);
}

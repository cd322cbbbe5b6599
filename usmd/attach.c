/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "attach.h"
#include "kill-point.h"
#include "lib/cleanup.h"
#include "lib/log.h"
#include "mechanism-userfault.h"
#include "policy.h"
#include "pool.h"
#include "process.h"
#include "reclaim.h"
#include "scan.h"
#include "smaps.h"

#define CONNECTIONS_MAX 256
/* A handshake that is not finished by then is broken off. */
#define HANDSHAKE_USEC 10000000ull
/* How long an agent waits for a daemon before it gives up its program. */
#define GRACE_SEC 120
#define MESSAGE_FDS 4
/* Ranges up to this size that a child does not get are pinned by the tagger. */
#define UNINHERITED_PAGES 32

struct connection {
	struct attach *attach;
	sd_event_source *io, *timer;
	int fd, pidfd, opsfd;
	struct ucred peer;
	uint64_t starttime;
	bool is_child, hello;
	struct pool *pool;
	struct arena_process info; /* what admit() said */
	uint64_t identity;
};

struct attach {
	struct core *core;
	sd_event *event;
	sd_event_source *listen;
	struct attach_ops ops;
	unsigned nr_connections;
};

static void connection_free(struct connection *conn)
{
	sd_event_source_disable_unref(conn->io);
	sd_event_source_disable_unref(conn->timer);
	if (conn->fd >= 0)
		close(conn->fd);
	if (conn->pidfd >= 0)
		close(conn->pidfd);
	if (conn->opsfd >= 0)
		close(conn->opsfd);
	conn->attach->nr_connections--;
	free(conn);
}

static int send_message(int fd, struct usm_attach_msg *m, const int *fds, unsigned n)
{
	union {
		char buf[CMSG_SPACE(MESSAGE_FDS * sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec iov = {.iov_base = m, .iov_len = sizeof(*m)};
	struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};

	m->magic = USM_ATTACH_MAGIC;
	m->version = USM_ATTACH_VERSION;
	if (n) {
		struct cmsghdr *c;

		h.msg_control = control.buf;
		h.msg_controllen = CMSG_SPACE(n * sizeof(int));
		c = CMSG_FIRSTHDR(&h);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(c), fds, n * sizeof(int));
	}
	return sendmsg(fd, &h, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

static int refuse(struct connection *conn, const char *text)
{
	struct usm_attach_msg m = {.type = USM_ATTACH_REFUSE};

	snprintf(m.text, sizeof(m.text), "%s", text);
	send_message(conn->fd, &m, NULL, 0);
	return -ECONNREFUSED;
}

/* The field after the command name of /proc/PID/stat, which may hold anything. */
static int read_starttime(pid_t pid, uint64_t *ret)
{
	char path[64], buf[1024], *s;
	_cleanup_close_ int fd = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = read(fd, buf, sizeof(buf) - 1);
	if (n <= 0)
		return -EIO;
	buf[n] = '\0';
	s = strrchr(buf, ')');
	for (unsigned i = 2; s && i < 22; i++)
		s = strchr(s + 1, ' ');
	if (!s)
		return -EIO;
	*ret = strtoull(s + 1, NULL, 10);
	return 0;
}

static void copy_name(char *dst, const char *src)
{
	size_t n = 0;

	/* What is not a plain name can match no rule; it is only shown. */
	for (; src[n] && n < USM_NAME_MAX; n++)
		dst[n] = src[n] > ' ' && src[n] < 0x7f ? src[n] : '?';
	dst[n] = '\0';
}

static int read_names(pid_t pid, struct arena_process *s, char *exe)
{
	char path[64], argv0[PATH_MAX];
	_cleanup_close_ int fd = -1;
	ssize_t n;
	char *slash;

	snprintf(path, sizeof(path), "/proc/%d/exe", pid);
	n = readlink(path, exe, PATH_MAX - 1);
	if (n < 0)
		return -errno;
	exe[n] = '\0';
	slash = strrchr(exe, '/');
	copy_name(s->name, slash ? slash + 1 : exe);
	snprintf(path, sizeof(path), "/proc/%d/cmdline", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, argv0, sizeof(argv0) - 1);
	argv0[MAX(n, 0)] = '\0';
	slash = strrchr(argv0, '/');
	copy_name(s->argv0, slash ? slash + 1 : argv0);
	return 0;
}

static bool has_ended(int pidfd)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};

	return poll(&p, 1, 0) != 0;
}

static int make_ops(struct core *c, struct connection *conn)
{
	struct usm_agent_ops *ops;
	int fd = memfd_create("usm-ops", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0)
		return -errno;
	conn->opsfd = fd;
	if (ftruncate(fd, USM_OPS_BYTES) < 0 || fallocate(fd, 0, 0, USM_OPS_BYTES) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return -errno;
	ops = mmap(NULL, USM_OPS_DATA, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (ops == MAP_FAILED)
		return -errno;
	if (getrandom(&conn->identity, sizeof(conn->identity), 0) != sizeof(conn->identity))
		conn->identity = now_nsec();
	ops->magic = USM_ATTACH_MAGIC;
	ops->version = USM_ATTACH_VERSION;
	ops->identity = conn->identity;
	ops->evict_modes = atomic_load(&c->evict_modes);
	munmap(ops, USM_OPS_DATA);
	return 0;
}

static int on_hello(struct connection *conn, const struct usm_attach_msg *m)
{
	struct attach *a = conn->attach;
	struct usm_attach_msg reply = {.type = USM_ATTACH_FDS, .grace_sec = GRACE_SEC};
	char exe[PATH_MAX] = "", text[sizeof(reply.text)] = "";
	uint64_t again;
	int r, fds[2];

	conn->is_child = m->flags & USM_ATTACH_F_CHILD;
	conn->pidfd = (int)syscall(SYS_pidfd_open, conn->peer.pid, 0);
	if (conn->pidfd < 0)
		return -errno;
	r = read_starttime(conn->peer.pid, &conn->starttime);
	if (r < 0)
		return r;
	r = read_names(conn->peer.pid, &conn->info, exe);
	if (r < 0)
		return r;
	/* If the pid had been recycled since the connection was made, its pidfd and start time
	 * would be the new one's; a process that has ended cannot be waiting for our answer. */
	if (has_ended(conn->pidfd) || read_starttime(conn->peer.pid, &again) < 0 ||
	    again != conn->starttime)
		return -ESRCH;
	conn->info.uid = conn->peer.uid;
	conn->info.pid = conn->peer.pid;
	if (atomic_load(&a->core->stopping))
		return refuse(conn, "usmd is stopping");
	if (!conn->is_child) {
		r = a->ops.admit(a->ops.userdata, &conn->info, exe, &conn->pool, text, sizeof(text));
		if (r < 0)
			return refuse(conn, text);
	}
	r = make_ops(a->core, conn);
	if (r < 0)
		return r;
	conn->hello = true;
	fds[0] = a->core->arena->h->dev_fd;
	fds[1] = conn->opsfd;
	return send_message(conn->fd, &reply, fds, 2);
}

static bool is_userfaultfd(int fd)
{
	char path[64], link[64];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, link, sizeof(link) - 1);
	if (n < 0)
		return false;
	link[n] = '\0';
	return strstr(link, "[userfaultfd]");
}

static bool is_area(uint64_t start, uint64_t pages)
{
	return start && start % USM_PAGE_SIZE == 0 && start < 1ull << 47 &&
	       start + pages * USM_PAGE_SIZE <= 1ull << 47;
}

/* The record of the forked child that read this nonce from its marker page. */
static struct process *find_child(struct core *c, uint64_t nonce)
{
	for (uint32_t i = 0; nonce && i < arena_processes(c->arena); i++) {
		struct process *p = &c->process[i];

		if (atomic_load(&p->shared->state) == PROCESS_LIVE && p->shared->is_child &&
		    !p->shared->attached && p->shared->nonce == nonce &&
		    !atomic_exchange(&p->claimed, true))
			return process_get(c, i, p->generation);
	}
	return NULL;
}

static int take_areas(struct core *c, struct process *p, const struct usm_attach_msg *m, int u2)
{
	struct arena_process *s = p->shared;
	bool move = atomic_load(&c->evict_modes) & USM_EVICT_MOVE;
	uint64_t len = USM_OPS_BATCH * USM_PAGE_SIZE;
	int r;

	s->staging = m->staging;
	s->trash = m->trash;
	s->tcb = m->tcb;
	r = userfault_handshake(u2, false, move);
	if (r < 0)
		return r;
	/* MOVE wants its target registered; never for missing pages: nobody serves those, and
	 * mlockall() would wait for them for ever. */
	r = userfault_register(s->uffd, m->staging, m->staging + len, UFFDIO_REGISTER_MODE_WP);
	if (r >= 0)
		r = userfault_register(u2, m->trash, m->trash + len, UFFDIO_REGISTER_MODE_WP);
	return r;
}

static bool is_in(const struct vpn_range *r, uint64_t addr)
{
	return VPN(addr) >= r->first && VPN(addr) < r->end;
}

/* Its libraries may have asked for it before it was managed. */
static int look_for_uninherited(struct arena_process *s)
{
	_cleanup_free_ struct vpn_range *list = NULL;
	unsigned n;
	int r = smaps_uninherited(s->pid, &list, &n);

	if (r < 0)
		return r;
	for (unsigned i = 0; i < n; i++)
		if (list[i].end - list[i].first > UNINHERITED_PAGES && !is_in(&list[i], s->staging) &&
		    !is_in(&list[i], s->trash))
			s->uninherited = 1;
	return 0;
}

int attach_say_go(struct process *p)
{
	struct usm_attach_msg m = {.type = USM_ATTACH_GO};
	int fd = p->shared->uffd;

	/* A forked child has no userfaultfd of its own yet: the FORK event made it. */
	return send_message(p->shared->sock, &m, &fd, p->shared->is_child);
}

static int attach_new_process(struct connection *conn, const struct usm_attach_msg *m, int u1, int u2)
{
	struct attach *a = conn->attach;
	struct core *c = a->core;
	struct process *p = process_new(c);
	struct arena_process *s;
	int r;

	if (!p)
		return refuse(conn, "usmd manages as many processes as it can");
	atomic_store(&p->claimed, true);
	s = p->shared;
	KILL_POINT("attach-begun");
	memcpy(s->name, conn->info.name, sizeof(s->name));
	memcpy(s->argv0, conn->info.argv0, sizeof(s->argv0));
	memcpy(s->policy, conn->info.policy, sizeof(s->policy));
	s->limit_pages = conn->info.limit_pages;
	s->priority = conn->info.priority;
	s->family = s->generation;
	s->pool = conn->pool->number;
	s->pid = conn->peer.pid;
	s->agent_tid = m->tid;
	s->uid = conn->peer.uid;
	s->starttime = conn->starttime;
	s->identity = conn->identity;
	s->marker = m->marker;
	s->uffd = u1;
	policy_serve(p, conn->pool, s->policy);
	r = userfault_handshake(u1, true, atomic_load(&c->evict_modes) & USM_EVICT_MOVE);
	if (r >= 0) {
		s->opsfd = conn->opsfd;
		conn->opsfd = -1;
		r = process_map_ops(p);
	}
	if (r >= 0)
		r = process_publish(p);
	KILL_POINT("attach-published");
	if (r >= 0)
		r = take_areas(c, p, m, u2);
	if (r >= 0)
		r = userfault_register(u1, m->marker, m->marker + USM_PAGE_SIZE, c->register_mode);
	if (r >= 0)
		r = scan_mappings(c, p);
	KILL_POINT("attach-registered");
	if (r >= 0)
		r = look_for_uninherited(s);
	if (r < 0) {
		log_event_errno(LOG_ERR, r,
				&((struct usm_log_fields){.event = "attach",
							  .message_id = USM_MSG_ATTACH,
							  .process = s->name,
							  .pid = s->pid}),
				"%s (pid %d): cannot manage it: %m", s->name, s->pid);
		/* Published already or not, the janitor ends it: nothing has been evicted. */
		atomic_store(&s->state, PROCESS_LIVE);
		atomic_store(&p->release, true);
		atomic_store(&p->claimed, false);
		process_gone(p);
		return refuse(conn, "usmd could not register its memory");
	}
	s->pidfd = conn->pidfd;
	s->sock = conn->fd;
	conn->pidfd = conn->fd = -1;
	KILL_POINT("attach-recorded");
	s->attached = 1;
	KILL_POINT("attach-attached");
	log_event(LOG_INFO,
		  &((struct usm_log_fields){.event = "attach",
					    .message_id = USM_MSG_ATTACH,
					    .process = s->name,
					    .pid = s->pid,
					    .policy = s->policy}),
		  "%s (pid %d) is managed by %s", s->name, s->pid, s->policy);
	r = attach_say_go(p);
	reclaim_add(p);
	if (a->ops.attached)
		a->ops.attached(a->ops.userdata, p);
	return r;
}

static int attach_child(struct connection *conn, const struct usm_attach_msg *m, int u2)
{
	struct attach *a = conn->attach;
	struct core *c = a->core;
	struct process *p = find_child(c, m->nonce);
	struct arena_process *s;
	int r;

	if (!p)
		return refuse(conn, "its parent is not managed any more");
	s = p->shared;
	memcpy(s->name, conn->info.name, sizeof(s->name));
	memcpy(s->argv0, conn->info.argv0, sizeof(s->argv0));
	s->pid = conn->peer.pid;
	s->agent_tid = m->tid;
	s->uid = conn->peer.uid;
	s->starttime = conn->starttime;
	s->identity = conn->identity;
	s->opsfd = conn->opsfd;
	conn->opsfd = -1;
	KILL_POINT("attach-child-begun");
	r = process_map_ops(p);
	if (r >= 0)
		r = take_areas(c, p, m, u2);
	if (r < 0) {
		log_event_errno(LOG_WARNING, r,
				&((struct usm_log_fields){.event = "attach",
							  .message_id = USM_MSG_ATTACH,
							  .process = s->name,
							  .pid = s->pid}),
				"%s (pid %d): cannot manage this forked child, letting it go: %m",
				s->name, s->pid);
		atomic_store(&p->release, true);
		atomic_store(&p->claimed, false);
		process_put(p);
		return refuse(conn, "usmd could not register its memory");
	}
	s->pidfd = conn->pidfd;
	s->sock = conn->fd;
	conn->pidfd = conn->fd = -1;
	KILL_POINT("attach-child-recorded");
	s->attached = 1;
	s->nonce = 0;
	KILL_POINT("attach-child-attached");
	atomic_store(&p->ops->nr_swapped, atomic_load(&s->ever_swapped));
	if (s->fork_protected)
		atomic_store(&p->ops->protect_fork, USM_PROTECT_WANTED);
	r = attach_say_go(p);
	reclaim_add(p);
	if (a->ops.attached)
		a->ops.attached(a->ops.userdata, p);
	process_put(p);
	return r;
}

static int on_ready(struct connection *conn, const struct usm_attach_msg *m, int *fds, unsigned n)
{
	unsigned want = conn->is_child ? 1 : 2;
	int r;

	if (!conn->hello || n != want || !is_area(m->staging, USM_OPS_BATCH) ||
	    !is_area(m->trash, USM_OPS_BATCH) || !is_area(m->marker, 1))
		return -EBADMSG;
	for (unsigned i = 0; i < n; i++)
		if (!is_userfaultfd(fds[i]))
			return -EBADMSG;
	if (conn->is_child)
		return attach_child(conn, m, fds[0]);
	r = attach_new_process(conn, m, fds[0], fds[1]);
	fds[0] = -1; /* the record has it now */
	return r;
}

static int on_io(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct connection *conn = userdata;
	union {
		char buf[CMSG_SPACE(MESSAGE_FDS * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct usm_attach_msg m;
	struct iovec iov = {.iov_base = &m, .iov_len = sizeof(m)};
	struct msghdr h = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	int fds[MESSAGE_FDS] = {-1, -1, -1, -1}, r = -EBADMSG;
	unsigned nr_fds = 0;
	ssize_t n;

	(void)s;
	(void)revents;
	n = recvmsg(fd, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	for (struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&h) : NULL; c; c = CMSG_NXTHDR(&h, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		nr_fds = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fds, CMSG_DATA(c), nr_fds * sizeof(int));
	}
	if (n == sizeof(m) && m.magic == USM_ATTACH_MAGIC && !(h.msg_flags & MSG_CTRUNC)) {
		if (m.version != USM_ATTACH_VERSION)
			r = refuse(conn, "its libusm-tagger.so is of another version than usmd");
		else if (m.type == USM_ATTACH_HELLO && !conn->hello)
			r = on_hello(conn, &m);
		else if (m.type == USM_ATTACH_READY)
			r = on_ready(conn, &m, fds, nr_fds);
		else if (m.type == USM_ATTACH_REJOIN)
			r = refuse(conn, "usmd was restarted and does not have its pages");
	}
	for (unsigned i = 0; i < MESSAGE_FDS; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	if (n > 0 && r < 0 && r != -ECONNREFUSED)
		log_debug("Attach of pid %d broken off: %s", conn->peer.pid, strerror(-r));
	if (n <= 0 || r < 0 || conn->fd < 0)
		connection_free(conn);
	return 0;
}

static int on_timeout(sd_event_source *s, uint64_t usec, void *userdata)
{
	(void)s;
	(void)usec;
	connection_free(userdata);
	return 0;
}

static int on_connect(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct attach *a = userdata;
	struct connection *conn;
	socklen_t len = sizeof(conn->peer);
	int cfd = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	(void)s;
	(void)revents;
	if (cfd < 0)
		return 0;
	conn = a->nr_connections < CONNECTIONS_MAX ? calloc(1, sizeof(*conn)) : NULL;
	if (!conn) {
		close(cfd);
		return 0;
	}
	a->nr_connections++;
	conn->attach = a;
	conn->fd = cfd;
	conn->pidfd = conn->opsfd = -1;
	if (getsockopt(cfd, SOL_SOCKET, SO_PEERCRED, &conn->peer, &len) < 0 || conn->peer.pid <= 0 ||
	    sd_event_add_io(a->event, &conn->io, cfd, EPOLLIN, on_io, conn) < 0 ||
	    sd_event_add_time_relative(a->event, &conn->timer, CLOCK_MONOTONIC, HANDSHAKE_USEC, 0,
				       on_timeout, conn) < 0)
		connection_free(conn);
	return 0;
}

int attach_new(struct core *c, sd_event *event, int listen_fd, const struct attach_ops *ops,
	       struct attach **ret)
{
	struct attach *a = calloc(1, sizeof(*a));
	int r;

	if (!a)
		return -ENOMEM;
	a->core = c;
	a->event = event;
	a->ops = *ops;
	r = sd_event_add_io(event, &a->listen, listen_fd, EPOLLIN, on_connect, a);
	if (r < 0) {
		free(a);
		return r;
	}
	*ret = a;
	return 0;
}

struct attach *attach_free(struct attach *a)
{
	if (!a)
		return NULL;
	sd_event_source_disable_unref(a->listen);
	free(a);
	return NULL;
}

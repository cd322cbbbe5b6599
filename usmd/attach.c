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
#include <systemd/sd-login.h>
#include <unistd.h>

#include <usm/list.h>

#include "acceptor.h"
#include "attach.h"
#include "attach-message.h"
#include "closer.h"
#include "kill-point.h"
#include "lib/cleanup.h"
#include "lib/log.h"
#include "lib/parse.h"
#include "mechanism-userfault.h"
#include "offence.h"
#include "policy.h"
#include "pool.h"
#include "process.h"
#include "reclaim.h"
#include "scan.h"
#include "smaps.h"
#include "store.h"

/* Handshakes at a time: each takes milliseconds, so that a parallel build needs a few. */
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif
#define CONNECTIONS_MAX		256u
#define CONNECTIONS_PER_UID_MAX 128u
/* Kept free of others, so that nobody keeps root's programs from being managed. */
#define CONNECTIONS_ROOT 64u
/* A handshake that is not finished by then is broken off. */
#define HANDSHAKE_USEC 10000000ull
/* Ranges up to this size that a child does not get are pinned by the tagger. */
#define UNINHERITED_PAGES 32

struct connection {
	struct attach *attach;
	struct list_head item;
	sd_event_source *io, *timer;
	int fd, pidfd, opsfd;
	struct ucred peer;
	uint64_t starttime;
	enum attach_step step;
	bool is_child;
	struct pool *pool;
	struct arena_process info; /* what admit() said */
	uint64_t identity;
};

struct attach {
	struct core *core;
	sd_event *event;
	struct acceptor *acceptor;
	struct attach_ops ops;
	struct list_head connections; /* struct connection.item */
	unsigned nr_connections;
	struct offences offences;
};

static void connection_free(struct connection *conn)
{
	sd_event_source_disable_unref(conn->io);
	sd_event_source_disable_unref(conn->timer);
	closer_hang_up(conn->fd);
	if (conn->pidfd >= 0)
		close(conn->pidfd);
	if (conn->opsfd >= 0)
		close(conn->opsfd);
	list_del(&conn->item);
	conn->attach->nr_connections--;
	free(conn);
}

static int refuse_at(int fd, const char *text)
{
	struct usm_attach_msg m = {.type = USM_ATTACH_REFUSE};

	snprintf(m.text, sizeof(m.text), "%s", text);
	attach_message_send(fd, &m, NULL, 0); /* it may as well be gone already */
	return -ECONNREFUSED;
}

static int refuse(struct connection *conn, const char *text)
{
	return refuse_at(conn->fd, text);
}

/* The field after the command name of /proc/PID/stat, which may hold anything. */
int attach_starttime(pid_t pid, uint64_t *ret)
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

/*
 * Of its cgroup, into which nobody but root puts programs.  What a user's own service manager
 * runs belongs to the unit of that manager: anybody can call a unit of his own by any name.
 */
static void read_unit(pid_t pid, char unit[static USM_UNIT_MAX + 1])
{
	_cleanup_free_ char *name = NULL;

	unit[0] = '\0';
	if (sd_pid_get_unit(pid, &name) >= 0 && usm_unit_name_is_valid(name))
		strcpy(unit, name);
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
	read_unit(pid, s->unit);
	return 0;
}

static bool has_ended(int pidfd)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};

	return poll(&p, 1, 0) != 0;
}

/*
 * Of the process that has connected, -1 if it has ended.  Before Linux 6.5 its number may have
 * become another's between its connect() and our accept().
 */
static int peer_pidfd(int fd, pid_t pid)
{
	int pidfd = -1;
	socklen_t len = sizeof(pidfd);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &len) == 0)
		return pidfd;
	return errno == ENOPROTOOPT ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
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

/* Is this the record of the forked child that read this nonce from its marker page? */
static bool is_awaited(const struct process *p, uint64_t nonce)
{
	return nonce && atomic_load(&p->shared->state) == PROCESS_LIVE && p->shared->is_child &&
	       !p->shared->attached && p->shared->nonce == nonce;
}

/* Nobody but a child of a managed program knows a nonce. */
static bool awaits_child(struct core *c, uint64_t nonce)
{
	for (uint32_t i = 0; i < arena_processes(c->arena); i++)
		if (is_awaited(&c->process[i], nonce))
			return true;
	return false;
}

static struct process *find_child(struct core *c, uint64_t nonce)
{
	for (uint32_t i = 0; i < arena_processes(c->arena); i++) {
		struct process *p = &c->process[i];

		if (is_awaited(p, nonce) && !atomic_exchange(&p->claimed, true))
			return process_get(c, i, p->generation);
	}
	return NULL;
}

static int on_hello(struct connection *conn, const struct usm_attach_msg *m)
{
	struct attach *a = conn->attach;
	struct usm_attach_msg reply = {.type = USM_ATTACH_FDS,
				       .grace_sec = atomic_load(&a->core->grace_sec)};
	char exe[PATH_MAX] = "", text[sizeof(reply.text)] = "";
	uint64_t again;
	int r, fds[2];

	conn->is_child = m->flags & USM_ATTACH_F_CHILD;
	if (conn->pidfd < 0)
		return -ESRCH;
	r = attach_starttime(conn->peer.pid, &conn->starttime);
	if (r < 0)
		return r;
	r = read_names(conn->peer.pid, &conn->info, exe);
	if (r < 0)
		return r;
	/* As long as it has not ended its number is no other's: what was read is its own.  Another
	 * process may hold its end of the connection, and wait for our answer. */
	if (has_ended(conn->pidfd) || attach_starttime(conn->peer.pid, &again) < 0 ||
	    again != conn->starttime)
		return -ESRCH;
	conn->info.uid = conn->info.rule_uid = conn->peer.uid;
	conn->info.pid = conn->peer.pid;
	if (atomic_load(&a->core->stopping))
		return refuse(conn, "usmd is stopping");
	if (conn->is_child) {
		/* Its parent was admitted, and it has the parent's rights here. */
		if (!awaits_child(a->core, m->nonce))
			return refuse(conn, "its parent is not managed any more");
	} else {
		r = a->ops.admit(a->ops.userdata, &conn->info, exe, &conn->pool, text, sizeof(text));
		if (r < 0)
			return refuse(conn, text);
	}
	r = make_ops(a->core, conn);
	if (r < 0)
		return r;
	conn->step = conn->is_child ? ATTACH_GREETED_CHILD : ATTACH_GREETED;
	fds[0] = a->core->arena->h->dev_fd;
	fds[1] = conn->opsfd;
	return attach_message_send(conn->fd, &reply, fds, 2);
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
	return !strcmp(link, "anon_inode:[userfaultfd]"); /* a file can have any name */
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
	struct usm_attach_msg m = {.type = USM_ATTACH_GO, .flags = USM_ATTACH_F_COUNTED};
	int fd = p->shared->uffd;

	/* A forked child has no userfaultfd of its own yet: the FORK event made it. */
	return attach_message_send(p->shared->sock, &m, &fd, p->shared->is_child);
}

/* What the record has of the connection from now on. */
static void record(struct arena_process *s, struct connection *conn)
{
	s->pidfd = TAKE_FD(conn->pidfd);
	s->sock = TAKE_FD(conn->fd);
	store_add(s->opsfd);
	store_add(s->pidfd);
	store_add(s->sock);
}

/* Takes *u1 over as soon as there is a record that names it. */
static int attach_new_process(struct connection *conn, const struct usm_attach_msg *m, int *u1, int u2)
{
	struct attach *a = conn->attach;
	struct core *c = a->core;
	struct process *p = process_new(c);
	struct arena_process *s;
	int r;

	if (!p)
		return refuse(conn, "usmd manages as many processes as it can");
	atomic_store(&p->claimed, true);
	/* As soon as it is published, the janitor may find that it has ended. */
	atomic_fetch_add(&p->users, 1);
	s = p->shared;
	KILL_POINT("attach-begun");
	memcpy(s->name, conn->info.name, sizeof(s->name));
	memcpy(s->argv0, conn->info.argv0, sizeof(s->argv0));
	memcpy(s->unit, conn->info.unit, sizeof(s->unit));
	s->rule_uid = conn->peer.uid;
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
	s->uffd = TAKE_FD(*u1);
	store_add(s->uffd);
	policy_serve(p, conn->pool, s->policy);
	r = userfault_handshake(s->uffd, true, atomic_load(&c->evict_modes) & USM_EVICT_MOVE);
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
		r = userfault_register(s->uffd, m->marker, m->marker + USM_PAGE_SIZE, c->register_mode);
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
		process_put(p);
		return refuse(conn, "usmd could not register its memory");
	}
	record(s, conn);
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
	process_put(p);
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
	record(s, conn);
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

static int on_ready(struct connection *conn, struct attach_packet *p)
{
	for (unsigned i = 0; i < p->nr_fds; i++)
		if (!is_userfaultfd(p->fds[i]))
			return -EBADMSG;
	return conn->is_child ? attach_child(conn, &p->m, p->fds[0]) :
				attach_new_process(conn, &p->m, &p->fds[0], p->fds[1]);
}

static int on_packet(struct connection *conn, struct attach_packet *p)
{
	int r = attach_packet_check(p, conn->step);

	if (r == -EPROTONOSUPPORT)
		return refuse(conn, "its libusm-tagger.so is of another version than usmd");
	if (r < 0)
		return r;
	switch (p->m.type) {
	case USM_ATTACH_HELLO:
		return on_hello(conn, &p->m);
	case USM_ATTACH_READY:
		return on_ready(conn, p);
	default:
		/* Its agent says so on its stderr as well, which may be nobody's. */
		offence_log(&conn->attach->offences, "attach", &conn->peer,
			    "belongs to a usmd that ended without handing it over; it is killed, unless "
			    "none of its pages is on a swap device");
		return refuse(conn, "usmd was restarted and does not have its pages");
	}
}

static int on_io(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct connection *conn = userdata;
	struct attach_packet p;
	int r;

	(void)s;
	(void)revents;
	r = attach_packet_receive(fd, &p);
	if (r == -EAGAIN)
		return 0;
	if (r == 0) {
		connection_free(conn);
		return 0;
	}
	if (r > 0) {
		r = on_packet(conn, &p);
		attach_packet_done(&p);
	}
	if (r == -EBADMSG)
		offence_log(&conn->attach->offences, "attach", &conn->peer,
			    "does not keep to the protocol, dropping it");
	else if (r < 0 && r != -ECONNREFUSED)
		log_debug("Attach of pid %d broken off: %s", conn->peer.pid, strerror(-r));
	if (r < 0 || conn->fd < 0)
		connection_free(conn);
	return 0;
}

static int on_timeout(sd_event_source *s, uint64_t usec, void *userdata)
{
	struct connection *conn = userdata;

	(void)s;
	(void)usec;
	offence_log(&conn->attach->offences, "attach", &conn->peer,
		    "did not finish its handshake within 10 s, dropping it");
	connection_free(conn);
	return 0;
}

static bool has_room_for(const struct attach *a, uid_t uid)
{
	const struct connection *conn;
	unsigned own = 0;

	if (uid == 0)
		return a->nr_connections < CONNECTIONS_MAX;
	list_for_each_entry(conn, &a->connections, item)
		own += conn->peer.uid == uid;
	return a->nr_connections < CONNECTIONS_MAX - CONNECTIONS_ROOT &&
	       own < CONNECTIONS_PER_UID_MAX;
}

static void on_connect(void *userdata, int fd, const struct ucred *peer)
{
	struct attach *a = userdata;
	bool room = has_room_for(a, peer->uid);
	struct connection *conn = room ? calloc(1, sizeof(*conn)) : NULL;

	if (!conn) {
		struct attach_packet p;

		/* With its HELLO unread it would see the end alone, and not why. */
		if (attach_packet_receive(fd, &p) > 0)
			attach_packet_done(&p);
		refuse_at(fd, "too many programs are being attached at this moment");
		closer_hang_up(fd);
		if (!room)
			offence_log(&a->offences, "attach", peer,
				    "is one too many in the middle of a handshake, refusing it");
		return;
	}
	a->nr_connections++;
	list_add_tail(&conn->item, &a->connections);
	conn->attach = a;
	conn->fd = fd;
	conn->opsfd = -1;
	conn->pidfd = peer_pidfd(fd, peer->pid);
	conn->peer = *peer;
	if (sd_event_add_io(a->event, &conn->io, fd, EPOLLIN, on_io, conn) < 0 ||
	    sd_event_add_time_relative(a->event, &conn->timer, CLOCK_MONOTONIC, HANDSHAKE_USEC, 0,
				       on_timeout, conn) < 0)
		connection_free(conn);
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
	INIT_LIST_HEAD(&a->connections);
	r = acceptor_new(event, listen_fd, "attach", on_connect, a, &a->acceptor);
	if (r < 0) {
		free(a);
		return r;
	}
	*ret = a;
	return 0;
}

struct attach *attach_free(struct attach *a)
{
	struct connection *conn, *following;

	if (!a)
		return NULL;
	list_for_each_entry_safe(conn, following, &a->connections, item)
		connection_free(conn);
	acceptor_free(a->acceptor);
	free(a);
	return NULL;
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The agent's side of the handshake in attach.h, at the start and after a daemon's end. */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "agent.h"
#include "sys.h"

/* A daemon that is being started by its socket answers later than a running one. */
#define ANSWER_SEC 10
#define RETRY_USEC 100000
/* Handshakes that may break off before the program runs unmanaged. */
#define HANDSHAKES 5u
/* A parent was managed a moment ago, so a daemon that cannot be reached or breaks off is only
 * busy, or its engine dies again and again.  The child runs meanwhile. */
#define CHILD_CONNECT_USEC (120 * 1000000ull)

static void set_reason(char reason[128], const char *text, const char *more)
{
	size_t n = 0;

	while (*text && n < 127)
		reason[n++] = *text++;
	while (more && *more && n < 127)
		reason[n++] = *more++;
	reason[n] = '\0';
}

static void message_init(struct usm_attach_msg *m, uint16_t type)
{
	char *p = (char *)m;

	for (size_t i = 0; i < sizeof(*m); i++)
		p[i] = 0;
	m->magic = USM_ATTACH_MAGIC;
	m->version = USM_ATTACH_VERSION;
	m->type = type;
}

static void set_receive_timeout(int sock, long sec)
{
	struct {
		long sec, usec;
	} t = { sec, 0 };

	sys5(SYS_setsockopt, sock, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t));
}

/* A message of the daemon; the number of its descriptors, or a negative errno. */
static int receive(int sock, struct usm_attach_msg *m, int fds[2])
{
	int nr = usm_message_recv(sock, m, sizeof(*m), fds);

	if (nr < 0)
		return nr;
	if (m->magic == USM_ATTACH_MAGIC && m->version == USM_ATTACH_VERSION) {
		m->text[sizeof(m->text) - 1] = '\0';
		return nr;
	}
	for (int i = 0; i < nr; i++)
		sys_close(fds[i]);
	return -EPROTO;
}

static void close_all(const int *fds, int nr)
{
	for (int i = 0; i < nr; i++)
		sys_close(fds[i]);
}

/* A socket, or a negative errno. */
static int connect_once(struct usm_agent *a)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	long sock, r;

	for (size_t i = 0; i < sizeof(addr.sun_path); i++)
		addr.sun_path[i] = a->socket_path[i];
	sock = sys3(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return (int)sock;
	r = sys3(SYS_connect, sock, &addr, sizeof(addr));
	if (r < 0) {
		sys_close((int)sock);
		return (int)r;
	}
	set_receive_timeout((int)sock, ANSWER_SEC);
	return (int)sock;
}

static int connect_daemon(struct usm_agent *a)
{
	uint64_t until = a->child ? sys_now_usec() + CHILD_CONNECT_USEC : 0;
	int r;

	while ((r = connect_once(a)) < 0 && sys_now_usec() < until)
		sys_sleep_usec(RETRY_USEC);
	if (r < 0)
		return r;
	a->sock = r;
	return 0;
}

/* Maps the ops memory, over the old one when there is one: the program's threads use it too. */
static int map_ops(struct usm_agent *a, int fd)
{
	uint64_t at = (uint64_t)a->ops;
	long r;

	if (sys3(SYS_lseek, fd, 0, SEEK_END) < (long)USM_OPS_BYTES)
		return -EPROTO;
	r = sys_mmap(at, USM_OPS_BYTES, PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_POPULATE | (at ? MAP_FIXED : 0), fd, 0);
	if (sys_is_error(r))
		return (int)r;
	sys_madvise((uint64_t)r, USM_OPS_BYTES, MADV_DONTFORK);
	a->ops = (struct usm_agent_ops *)r;
	if (a->ops->magic != USM_ATTACH_MAGIC || a->ops->version != USM_ATTACH_VERSION)
		return -EPROTO;
	return 0;
}

/* The operation that is under way goes on in it. */
static bool is_same_ops(const struct usm_agent *a, int fd)
{
	uint64_t identity = 0;

	return sys4(SYS_pread64, fd, &identity, sizeof(identity),
		    offsetof(struct usm_agent_ops, identity)) == (long)sizeof(identity) &&
	       identity == a->ops->identity;
}

/* No operation runs before READY: nothing to wait for, and nobody else writes the table yet. */
static void write_pins(struct usm_agent *a)
{
	uint32_t nr = 0;

	for (uint32_t i = 0; i < a->nr_keep; i++) {
		uint64_t page = a->keep[i].addr & ~(USM_PAGE_SIZE - 1);

		for (; page < a->keep[i].addr + a->keep[i].bytes && nr < USM_OPS_PINS;
		     page += USM_PAGE_SIZE)
			atomic_store(&a->ops->pins[nr++], page);
	}
	atomic_store(&a->ops->nr_pins, nr);
}

/*
 * Batches of pages that no child inherits and that never become huge pages, whose parts could
 * not be moved alone.
 */
static long map_batch(void)
{
	size_t bytes = USM_OPS_BATCH * USM_PAGE_SIZE;
	long r = sys_mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (sys_is_error(r))
		return r;
	sys_madvise((uint64_t)r, bytes, MADV_DONTFORK);
	sys_madvise((uint64_t)r, bytes, MADV_NOHUGEPAGE);
	sys_madvise((uint64_t)r, bytes, MADV_DONTDUMP);
	return r;
}

static int map_memory(struct usm_agent *a)
{
	long r;

	r = map_batch();
	if (sys_is_error(r))
		return (int)r;
	a->staging = (uint64_t)r;
	r = map_batch();
	if (sys_is_error(r))
		return (int)r;
	a->trash = (uint64_t)r;
	if (a->child)
		return 0;
	r = sys_mmap(0, USM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (sys_is_error(r))
		return (int)r;
	a->marker = (uint64_t)r;
	return (int)sys_madvise(a->marker, USM_PAGE_SIZE, MADV_WIPEONFORK);
}

static int new_userfaultfd(int dev)
{
	return (int)sys3(SYS_ioctl, dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
}

/* The marker is a fresh page since the fork: the daemon answers this fault with the nonce.  -ESRCH:
 * the parent was released meanwhile. */
static int read_nonce(const struct usm_agent *a, uint64_t *ret)
{
	uint64_t nonce = *(const volatile uint64_t *)a->marker;

	if (nonce == 0)
		return -ESRCH;
	*ret = nonce;
	return 0;
}

static int hello(struct usm_agent *a, char reason[128])
{
	struct usm_attach_msg m;
	int fds[2] = { -1, -1 }, r;

	message_init(&m, USM_ATTACH_HELLO);
	if (a->child) {
		m.flags = USM_ATTACH_F_CHILD;
		r = read_nonce(a, &m.nonce);
		if (r < 0) {
			set_reason(reason, "", NULL);
			return r;
		}
	}
	r = usm_message_send(a->sock, &m, sizeof(m), NULL, 0);
	if (r == 0)
		r = receive(a->sock, &m, fds);
	if (r < 0) {
		set_reason(reason, "usmd gave no answer to the greeting", NULL);
		return r;
	}
	if (m.type == USM_ATTACH_REFUSE) {
		close_all(fds, r);
		set_reason(reason, m.text, NULL);
		return -ECONNREFUSED;
	}
	if (m.type != USM_ATTACH_FDS || r != 2) {
		close_all(fds, r);
		set_reason(reason, "usmd speaks another version of the attach protocol", NULL);
		return -EPROTO;
	}
	a->grace_sec = m.grace_sec;
	r = map_ops(a, fds[1]);
	sys_close(fds[1]);
	if (r == 0 && !a->child)
		r = a->u1 = new_userfaultfd(fds[0]);
	if (r >= 0)
		r = a->u2 = new_userfaultfd(fds[0]);
	sys_close(fds[0]);
	if (r < 0)
		set_reason(reason, "no userfaultfd could be made", NULL);
	return r < 0 ? r : 0;
}

static int ready(struct usm_agent *a, char reason[128])
{
	struct usm_attach_msg m;
	int fds[2], nr = 0, r;

	message_init(&m, USM_ATTACH_READY);
	m.staging = a->staging;
	m.trash = a->trash;
	m.marker = a->marker;
	m.tcb = a->tcb;
	m.tid = a->tid;
	if (a->child) {
		r = read_nonce(a, &m.nonce);
		if (r < 0) {
			set_reason(reason, "", NULL);
			return r;
		}
	} else {
		fds[nr++] = a->u1;
	}
	fds[nr++] = a->u2;
	a->ops->agent_tid = (uint32_t)m.tid;
	write_pins(a);
	r = usm_message_send(a->sock, &m, sizeof(m), fds, (uint32_t)nr);
	/* From here on usmd may count on this thread. */
	if (r == 0)
		do
			r = receive(a->sock, &m, fds);
		while (r == -EAGAIN && a->child);
	if (r < 0) {
		set_reason(reason, "usmd went away during the handshake", NULL);
		return r;
	}
	if (m.type == USM_ATTACH_GO && r == (a->child ? 1 : 0)) {
		if (a->child)
			a->u1 = fds[0];
		a->count_seen = m.flags & USM_ATTACH_F_COUNTED;
		return 0;
	}
	close_all(fds, r);
	set_reason(reason, m.type == USM_ATTACH_REFUSE ? m.text : "usmd broke the handshake off",
		   NULL);
	return -ECONNREFUSED;
}

static int attach_once(struct usm_agent *a, char reason[128])
{
	int r = connect_daemon(a);

	if (r < 0) {
		set_reason(reason, r == -EACCES ? "no permission to reach usmd at " :
				   "no usmd answers at ", a->socket_path);
		return r;
	}
	r = hello(a, reason);
	if (r < 0)
		return r;
	r = a->trash ? 0 : map_memory(a);
	if (r < 0) {
		set_reason(reason, "no memory for the agent", NULL);
		return r;
	}
	return ready(a, reason);
}

static void close_if_open(int *fd)
{
	if (*fd >= 0)
		sys_close(*fd);
	*fd = -1;
}

int usm_agent_attach(struct usm_agent *a, char reason[128])
{
	int r;

	uint64_t until = a->child ? sys_now_usec() + CHILD_CONNECT_USEC : 0;

	a->sock = a->u1 = a->u2 = -1;
	for (uint32_t i = 0; i < HANDSHAKES || sys_now_usec() < until; i++) {
		r = attach_once(a, reason);
		/* An engine that dies in the middle of it leaves its connections to the next. */
		if (r != -ECONNRESET && r != -EPIPE)
			break;
		close_if_open(&a->sock);
		close_if_open(&a->u1);
		close_if_open(&a->u2);
	}
	if (r < 0)
		return r;
	a->evict_modes = a->ops->evict_modes;
	set_receive_timeout(a->sock, 0);
	return 0;
}

enum rejoined { REJOINED, REFUSED, TRY_AGAIN };

static enum rejoined rejoin_once(struct usm_agent *a, int sock, uint64_t until)
{
	struct usm_attach_msg m;
	int fds[2] = { a->u1, a->u2 }, r;

	message_init(&m, USM_ATTACH_REJOIN);
	m.nonce = a->ops->identity;
	m.tid = a->tid;
	m.staging = a->staging;
	m.trash = a->trash;
	m.marker = a->marker;
	m.tcb = a->tcb;
	if (usm_message_send(sock, &m, sizeof(m), fds, 2) < 0)
		return TRY_AGAIN;
	for (;;) {
		r = receive(sock, &m, fds);
		/* The socket may exist before its daemon does. */
		if (r == -EAGAIN && sys_now_usec() < until)
			continue;
		if (r < 0)
			return TRY_AGAIN;
		if (m.type == USM_ATTACH_REFUSE) {
			close_all(fds, r);
			return REFUSED;
		}
		/* The ops memory comes back with FDS or GO, as the last descriptor. */
		if ((m.type != USM_ATTACH_FDS && m.type != USM_ATTACH_GO) ||
		    (r > 0 && (!is_same_ops(a, fds[r - 1]) || map_ops(a, fds[r - 1]) < 0))) {
			close_all(fds, r);
			return TRY_AGAIN;
		}
		close_all(fds, r);
		if (m.type == USM_ATTACH_GO)
			return REJOINED;
	}
}

int usm_agent_rejoin(struct usm_agent *a)
{
	uint64_t until = sys_now_usec() + (uint64_t)a->grace_sec * 1000000;

	do {
		int sock = connect_once(a);
		enum rejoined r = sock < 0 ? TRY_AGAIN : rejoin_once(a, sock, until);

		if (r == REJOINED) {
			set_receive_timeout(sock, 0);
			return sock;
		}
		sys_close(sock);
		if (r == REFUSED)
			return -1;
		sys_sleep_usec(RETRY_USEC);
	} while (sys_now_usec() < until);
	return -1;
}

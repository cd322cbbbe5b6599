/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The daemon's side of attach.h in its plainest form, for tests of libusm-tagger alone: it starts
 * a program with the library, manages it, and evicts whatever may leave, for as long as it runs.
 *
 *   tagger-peer [options] LIBRARY PROGRAM [ARGUMENT...]
 *     --mode move|lazyfree|both  how pages leave (move)
 *     --pause USEC               between two evictions (200)
 *     --min N                    fewer evictions in all are a failure (1)
 *     --refuse TEXT              refuse every HELLO
 *     --release-after MSEC       give the program up, once
 *     --die-after MSEC           vanish, once: sockets and userfaultfds close
 *     --back-after MSEC          come back that long after dying
 *     --settle                   bring everything back before dying
 *     --grace SEC                what FDS says (2)
 *     --expect STATUS            the program's exit status, or 128 + signal (0)
 *
 * Exit status 0: the program ended as expected and enough pages left.  Everything runs on one
 * thread that never waits for an agent: it serves faults while an operation is in flight.
 *
 * Longer than other files because each program here is one file; the sections are its modules.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/futex.h>
#include <linux/userfaultfd.h>

#include "../../../usmd/lib/attach.h"

#define MAX_PROCS  256
#define TABLE_SIZE (1u << 18) /* pages of one process: 1 GiB */
#define MAX_FAULTS 4096
#define MAX_LATER  1024
#define SCAN_USEC  100000

#define DIE(...) \
	do { \
		fprintf(stderr, "tagger-peer:%d: ", __LINE__); \
		fprintf(stderr, __VA_ARGS__); \
		fprintf(stderr, " (%s)\n", strerror(errno)); \
		_exit(1); \
	} while (0)

enum state { NONE, RESIDENT, EVICTING, SWAPPED };

struct page {
	uint64_t addr; /* 0: free entry */
	uint8_t state;
	uint8_t marked; /* RESIDENT after a LAZYFREE that failed: data is still its copy */
	uint8_t *data;  /* SWAPPED, or marked */
};

struct fault {
	uint64_t addr;
	bool wp;
};

struct proc {
	bool used, managed, paused;
	int u1, sock, ops_fd, pid;
	struct usm_agent_ops *ops;
	uint64_t staging, trash, marker, tcb, nonce, identity;
	struct page *table;
	uint32_t cursor;
	struct fault faults[MAX_FAULTS];
	int nr_faults;
	int fork_fd; /* a FORK event that waits for the end of an operation */
	struct uffd_msg later[MAX_LATER]; /* what came after it */
	int nr_later;
	bool busy;   /* an operation is in flight */
	uint32_t kind, n;
	uint64_t addr[USM_OPS_BATCH];
	uint64_t unshare[USM_OPS_BATCH];
	uint32_t nr_unshare;
	uint64_t scanned_usec, evicted_usec;
};

static struct {
	uint32_t modes;
	uint64_t pause_usec, release_usec, die_usec, back_usec;
	uint64_t min_evictions;
	const char *refuse;
	bool settle;
	uint32_t grace_sec;
	int expect;
} opt = { USM_EVICT_MOVE, 200, 0, 0, 0, 1, NULL, false, 2, 0 };

static struct proc *procs[MAX_PROCS];
static int listener = -1, dev = -1;
static char socket_path[108];
static uint64_t nr_evicted, nr_swapins, nr_zero, nr_procs, nr_failed[256];
static uint32_t random_state = 12345;

static uint64_t now_usec(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static uint32_t random_word(void)
{
	random_state = random_state * 1664525 + 1013904223;
	return random_state >> 8;
}

/* --- page table: open addressing, entries are never removed ----------------------------------- */

/* The entry of addr, or the free one where it belongs. */
static struct page *entry_of(struct proc *p, uint64_t addr)
{
	uint32_t h = (uint32_t)(addr / USM_PAGE_SIZE * 2654435761u) % TABLE_SIZE;

	for (uint32_t i = 0; i < TABLE_SIZE; i++, h = (h + 1) % TABLE_SIZE)
		if (p->table[h].addr == addr || p->table[h].addr == 0)
			return &p->table[h];
	DIE("page table full");
}

static struct page *find_page(struct proc *p, uint64_t addr)
{
	struct page *pg = entry_of(p, addr);

	return pg->addr ? pg : NULL;
}

static struct page *page_of(struct proc *p, uint64_t addr)
{
	struct page *pg = entry_of(p, addr);

	pg->addr = addr;
	return pg;
}

static void forget_data(struct proc *p, struct page *pg)
{
	if (pg->state == SWAPPED && p->ops)
		atomic_fetch_sub(&p->ops->nr_swapped, 1);
	free(pg->data);
	pg->data = NULL;
	pg->marked = 0;
}

static void set_swapped(struct proc *p, struct page *pg, const void *data)
{
	pg->data = malloc(USM_PAGE_SIZE);
	memcpy(pg->data, data, USM_PAGE_SIZE);
	pg->marked = 0;
	pg->state = SWAPPED;
	if (p->ops)
		atomic_fetch_add(&p->ops->nr_swapped, 1);
}

/* --- processes ------------------------------------------------------------------------------- */

static struct proc *new_proc(void)
{
	for (int i = 0; i < MAX_PROCS; i++) {
		struct proc *p;

		if (procs[i] && procs[i]->used)
			continue;
		free(procs[i]);
		p = procs[i] = calloc(1, sizeof(*p));
		p->table = calloc(TABLE_SIZE, sizeof(*p->table));
		p->used = true;
		p->u1 = p->sock = p->ops_fd = p->fork_fd = -1;
		nr_procs++;
		return p;
	}
	DIE("too many processes");
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void drop_proc(struct proc *p)
{
	for (uint32_t i = 0; i < TABLE_SIZE; i++)
		free(p->table[i].data);
	free(p->table);
	p->table = NULL;
	close_fd(&p->u1);
	close_fd(&p->sock);
	close_fd(&p->ops_fd);
	close_fd(&p->fork_fd);
	if (p->ops)
		munmap(p->ops, USM_OPS_BYTES);
	p->ops = NULL;
	p->used = p->managed = false;
}

static void make_ops(struct proc *p)
{
	p->ops_fd = memfd_create("ops", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (p->ops_fd < 0 || ftruncate(p->ops_fd, USM_OPS_BYTES) < 0)
		DIE("ops memory");
	fcntl(p->ops_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	p->ops = mmap(NULL, USM_OPS_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, p->ops_fd, 0);
	p->ops->magic = USM_ATTACH_MAGIC;
	p->ops->version = USM_ATTACH_VERSION;
	p->ops->evict_modes = opt.modes;
	p->identity = p->ops->identity = (uint64_t)random_word() << 32 | random_word();
}

/* --- messages -------------------------------------------------------------------------------- */

static void send_message(struct proc *p, uint16_t type, uint32_t seq, const int *fds, int nr,
			 const char *text)
{
	union {
		char buf[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct usm_attach_msg m = {
		.magic = USM_ATTACH_MAGIC,
		.version = USM_ATTACH_VERSION,
		.type = type,
		.seq = seq,
		.grace_sec = opt.grace_sec,
	};
	struct iovec iov = { &m, sizeof(m) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (text)
		snprintf(m.text, sizeof(m.text), "%s", text);
	if (nr > 0) {
		memset(&control, 0, sizeof(control));
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		control.align.cmsg_len = CMSG_LEN((unsigned)nr * sizeof(int));
		memcpy(CMSG_DATA(&control.align), fds, (unsigned)nr * sizeof(int));
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE((unsigned)nr * sizeof(int));
	}
	sendmsg(p->sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Descriptors received, -1 at the end of file. */
static int receive_message(struct proc *p, struct usm_attach_msg *m, int fds[2])
{
	union {
		char buf[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { m, sizeof(*m) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *c;
	int nr = 0;

	if (recvmsg(p->sock, &msg, MSG_CMSG_CLOEXEC) != sizeof(*m))
		return -1;
	c = CMSG_FIRSTHDR(&msg);
	if (c && c->cmsg_type == SCM_RIGHTS) {
		nr = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fds, CMSG_DATA(c), (unsigned)nr * sizeof(int));
	}
	if (m->magic != USM_ATTACH_MAGIC || m->version != USM_ATTACH_VERSION)
		DIE("bad message");
	return nr;
}

/* --- faults and events ----------------------------------------------------------------------- */

static void wake(struct proc *p, uint64_t addr)
{
	struct uffdio_range r = { addr, USM_PAGE_SIZE };

	ioctl(p->u1, UFFDIO_WAKE, &r);
}

static int copy_in(struct proc *p, uint64_t addr, const void *data)
{
	struct uffdio_copy c = { .dst = addr, .src = (uint64_t)data, .len = USM_PAGE_SIZE };

	return ioctl(p->u1, UFFDIO_COPY, &c) == 0 ? 0 : -errno;
}

static int set_protect(struct proc *p, uint64_t addr, bool on)
{
	struct uffdio_writeprotect w = {
		.range = { addr, USM_PAGE_SIZE },
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return ioctl(p->u1, UFFDIO_WRITEPROTECT, &w) == 0 ? 0 : -errno;
}

/* True when the fault is done with. */
static bool serve_fault(struct proc *p, struct fault *f)
{
	static const char zero[USM_PAGE_SIZE];
	struct page *pg = page_of(p, f->addr);
	int r;

	if (f->addr == p->marker && p->nonce && !p->managed) {
		uint64_t page[USM_PAGE_SIZE / 8] = { p->nonce };

		r = copy_in(p, f->addr, page);
		return r != -EAGAIN;
	}
	if (pg->state == EVICTING)
		return false;
	if (f->wp) {
		r = set_protect(p, f->addr, false);
		return r != -EAGAIN;
	}
	r = copy_in(p, f->addr, pg->data ? pg->data : (const void *)zero);
	if (r == -EAGAIN)
		return false;
	if (r == 0) {
		*(pg->data ? &nr_swapins : &nr_zero) += 1;
		forget_data(p, pg);
		pg->state = RESIDENT;
	} else {
		wake(p, f->addr); /* present already, or unmapped */
	}
	return true;
}

static void serve_faults(struct proc *p)
{
	int left = 0;

	if (p->paused)
		return;
	for (int i = 0; i < p->nr_faults; i++)
		if (!serve_fault(p, &p->faults[i]))
			p->faults[left++] = p->faults[i];
	p->nr_faults = left;
}

static void forget_page(struct proc *p, struct page *pg, bool remove)
{
	/* The agent's own MADV_FREE says REMOVE too; its result tells what is true. */
	if (remove && pg->state == EVICTING)
		return;
	forget_data(p, pg);
	if (!remove || pg->state == SWAPPED)
		pg->state = NONE;
}

static void forget_range(struct proc *p, uint64_t start, uint64_t end, bool remove)
{
	struct page *pg;

	if ((end - start) / USM_PAGE_SIZE < TABLE_SIZE / 64) {
		for (uint64_t a = start; a < end; a += USM_PAGE_SIZE)
			if ((pg = find_page(p, a)))
				forget_page(p, pg, remove);
		return;
	}
	for (pg = p->table; pg < p->table + TABLE_SIZE; pg++)
		if (pg->addr >= start && pg->addr < end)
			forget_page(p, pg, remove);
}

static void apply_remap(struct proc *p, uint64_t from, uint64_t to, uint64_t len)
{
	for (uint64_t off = 0; off < len; off += USM_PAGE_SIZE) {
		struct page *src = page_of(p, from + off), *dst;

		if (src->state == NONE)
			continue;
		dst = page_of(p, to + off);
		forget_data(p, dst);
		dst->state = src->state == EVICTING ? RESIDENT : src->state;
		dst->data = src->data;
		dst->marked = src->marked;
		src->data = NULL;
		src->marked = 0;
		/* An operation on it ends with ENOENT at the old address, or has its data. */
		if (src->state == EVICTING) {
			for (uint32_t i = 0; i < p->n; i++)
				if (p->addr[i] == from + off)
					p->addr[i] = to + off;
			dst->state = EVICTING;
		}
		src->state = NONE;
	}
}

static void apply_fork(struct proc *p)
{
	struct proc *child = new_proc();

	child->u1 = p->fork_fd;
	p->fork_fd = -1;
	fcntl(child->u1, F_SETFL, O_NONBLOCK);
	child->marker = p->marker;
	child->nonce = ((uint64_t)random_word() << 32 | random_word()) | 1;
	for (uint32_t i = 0; i < TABLE_SIZE; i++) {
		struct page *pg = &p->table[i], *copy;

		if (pg->addr == 0 || pg->state == NONE)
			continue;
		copy = page_of(child, pg->addr);
		copy->state = pg->state;
		if (pg->data) {
			copy->data = malloc(USM_PAGE_SIZE);
			memcpy(copy->data, pg->data, USM_PAGE_SIZE);
		}
	}
}

static bool gate_try_read(struct proc *p)
{
	uint32_t idle = USM_GATE_IDLE;

	return !p->ops || atomic_compare_exchange_strong(&p->ops->gate, &idle, USM_GATE_READER);
}

static void gate_leave(struct proc *p)
{
	if (!p->ops)
		return;
	atomic_store(&p->ops->gate, USM_GATE_IDLE);
	if (atomic_load(&p->ops->gate_waiters))
		syscall(SYS_futex, &p->ops->gate, FUTEX_WAKE, 1 << 30);
}

/*
 * The child shares what is on its way out, so the operation ends first.  Its agent may need us
 * meanwhile (MADV_FREE waits until its event is read): events are read and kept.
 */
static void on_fork(struct proc *p, int fd)
{
	p->fork_fd = fd;
	if (p->busy && p->kind != USM_OPS_UNSHARE) {
		atomic_store(&p->ops->cancel, atomic_load(&p->ops->req));
		p->paused = true;
	} else {
		apply_fork(p);
	}
}

static void apply_event(struct proc *p, struct uffd_msg *m)
{
	if (m->event == UFFD_EVENT_FORK)
		on_fork(p, (int)m->arg.fork.ufd);
	else if (m->event == UFFD_EVENT_REMAP)
		apply_remap(p, m->arg.remap.from, m->arg.remap.to, m->arg.remap.len);
	else
		forget_range(p, m->arg.remove.start, m->arg.remove.end,
			     m->event == UFFD_EVENT_REMOVE);
}

/* One message at a time, so that order is what the kernel says.  False: nothing to read now. */
static bool read_event(struct proc *p)
{
	struct uffd_msg m;
	bool got;

	if (p->nr_later == MAX_LATER || p->nr_faults == MAX_FAULTS || !gate_try_read(p))
		return false;
	got = read(p->u1, &m, sizeof(m)) == sizeof(m);
	if (got && m.event == UFFD_EVENT_PAGEFAULT) {
		struct fault f = {
			m.arg.pagefault.address & ~(USM_PAGE_SIZE - 1),
			m.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP,
		};

		p->faults[p->nr_faults++] = f;
	} else if (got && p->ops) {
		/* What is left of the operation may name pages of another mapping from now on. */
		atomic_store(&p->ops->cancel, atomic_load(&p->ops->req));
	}
	if (!got || m.event == UFFD_EVENT_PAGEFAULT) {
		/* nothing to apply */
	} else if (p->paused) {
		p->later[p->nr_later++] = m;
	} else {
		apply_event(p, &m);
	}
	gate_leave(p);
	return got;
}

static void apply_later(struct proc *p)
{
	int i = 0;

	while (i < p->nr_later && !p->paused)
		apply_event(p, &p->later[i++]);
	p->nr_later -= i;
	memmove(p->later, p->later + i, (unsigned)p->nr_later * sizeof(p->later[0]));
}

/* --- operations ------------------------------------------------------------------------------ */

static void start_operation(struct proc *p, uint32_t kind)
{
	struct usm_agent_ops *ops = p->ops;
	uint32_t req = atomic_load(&ops->req) + 1;

	p->busy = true;
	p->kind = kind;
	ops->kind = kind;
	ops->n = p->n;
	for (uint32_t i = 0; i < p->n; i++) {
		ops->addr[i] = p->addr[i];
		atomic_store(&ops->res[i], 1);
	}
	atomic_store(&ops->req, req);
	send_message(p, USM_ATTACH_WORK, req, NULL, 0, NULL);
}

static bool is_pinned(struct proc *p, uint64_t addr)
{
	uint32_t nr = atomic_load(&p->ops->nr_pins);

	if (addr == (p->tcb & ~(USM_PAGE_SIZE - 1)) || addr == p->marker)
		return true;
	for (uint32_t i = 0; i < nr && i < USM_OPS_PINS; i++)
		if ((atomic_load(&p->ops->pins[i]) & ~(USM_PAGE_SIZE - 1)) == addr)
			return true;
	return false;
}

static int compare_addr(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void start_unshare(struct proc *p)
{
	p->n = p->nr_unshare;
	memcpy(p->addr, p->unshare, p->n * sizeof(uint64_t));
	p->nr_unshare = 0;
	start_operation(p, USM_OPS_UNSHARE);
}

static void start_eviction(struct proc *p)
{
	bool lazy = opt.modes == USM_EVICT_LAZYFREE ||
		    (opt.modes == (USM_EVICT_MOVE | USM_EVICT_LAZYFREE) && random_word() % 2);
	uint32_t want = 1 + random_word() % USM_OPS_BATCH, looked = 0;

	if (p->nr_unshare) {
		start_unshare(p);
		return;
	}
	atomic_store(&p->ops->inflight, 1);
	p->n = 0;
	/* Entries of neighbouring pages lie far apart, so take a few in a row by address. */
	while (p->n < want && looked++ < TABLE_SIZE / 16) {
		struct page *pg = &p->table[p->cursor++ % TABLE_SIZE];

		for (uint64_t a = pg->addr; pg->addr && p->n < want; a += USM_PAGE_SIZE) {
			struct page *next = find_page(p, a);

			if (!next || next->state != RESIDENT || next->marked || is_pinned(p, a) ||
			    (lazy && set_protect(p, a, true) < 0))
				break;
			next->state = EVICTING;
			p->addr[p->n++] = a;
		}
	}
	if (p->n == 0) {
		atomic_store(&p->ops->inflight, 0);
		return;
	}
	qsort(p->addr, p->n, sizeof(uint64_t), compare_addr);
	start_operation(p, lazy ? USM_OPS_LAZYFREE : USM_OPS_MOVE);
}

static void finish_page(struct proc *p, uint32_t i, int result)
{
	struct page *pg = page_of(p, p->addr[i]);
	const char *data = (const char *)p->ops + USM_OPS_DATA + i * USM_PAGE_SIZE;
	bool gone = false;

	if (p->kind == USM_OPS_UNSHARE) {
		if (result == 0 && pg->marked)
			forget_data(p, pg);
		return;
	}
	if (result != 0)
		nr_failed[result < 0 && result > -255 ? -result : 255]++;
	if (pg->state != EVICTING)
		return; /* unmapped meanwhile */
	if (result == 0) {
		set_swapped(p, pg, data);
		nr_evicted++;
		return;
	}
	gone = result == -ENOENT;
	pg->state = gone ? NONE : RESIDENT;
	if (p->kind == USM_OPS_LAZYFREE && !gone) {
		set_protect(p, pg->addr, false);
		if (result == -EBUSY) {
			pg->data = malloc(USM_PAGE_SIZE);
			memcpy(pg->data, data, USM_PAGE_SIZE);
			pg->marked = 1;
		}
	}
	if (result == -EBUSY)
		p->unshare[p->nr_unshare++] = pg->addr;
}

static void finish_operation(struct proc *p)
{
	for (uint32_t i = 0; i < p->n; i++)
		finish_page(p, i, atomic_load(&p->ops->res[i]));
	p->busy = false;
	p->n = 0;
	atomic_store(&p->ops->inflight, 0);
	if (p->fork_fd >= 0)
		apply_fork(p);
	p->paused = false;
	apply_later(p);
}

/* --- what the program has mapped ------------------------------------------------------------- */

static void adopt(struct proc *p, int pagemap, uint64_t start, uint64_t end)
{
	for (uint64_t a = start; a < end; a += USM_PAGE_SIZE) {
		uint64_t entry = 0;

		if (pread(pagemap, &entry, 8, (off_t)(a / USM_PAGE_SIZE * 8)) != 8)
			return;
		if (entry >> 63) {
			struct page *pg = page_of(p, a);

			if (pg->state == NONE)
				pg->state = RESIDENT;
		}
	}
}

static bool is_ours(struct proc *p, uint64_t start, uint64_t end)
{
	uint64_t batch = USM_OPS_BATCH * USM_PAGE_SIZE;

	return (start < p->staging + batch && end > p->staging) ||
	       (start < p->trash + batch && end > p->trash);
}

static void for_each_range(struct proc *p, void (*fn)(struct proc *, int, uint64_t, uint64_t))
{
	char path[64], line[512];
	int pagemap;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", p->pid);
	pagemap = open(path, O_RDONLY | O_CLOEXEC);
	snprintf(path, sizeof(path), "/proc/%d/maps", p->pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f)) {
		unsigned long start, end, inode;
		char prot[8];

		if (sscanf(line, "%lx-%lx %7s %*x %*s %lu", &start, &end, prot, &inode) == 4 &&
		    strncmp(prot, "rw", 2) == 0 && prot[3] == 'p' && inode == 0 &&
		    !strstr(line, "[v") && !is_ours(p, start, end))
			fn(p, pagemap, start, end);
	}
	if (f)
		fclose(f);
	if (pagemap >= 0)
		close(pagemap);
}

static void manage_range(struct proc *p, int pagemap, uint64_t start, uint64_t end)
{
	struct uffdio_register r = {
		.range = { start, end - start },
		.mode = UFFDIO_REGISTER_MODE_MISSING |
			(opt.modes & USM_EVICT_LAZYFREE ? UFFDIO_REGISTER_MODE_WP : 0),
	};

	/* Reservations beyond what this test can remember stay as they are. */
	if (end - start > TABLE_SIZE / 4 * USM_PAGE_SIZE || ioctl(p->u1, UFFDIO_REGISTER, &r) < 0)
		return;
	adopt(p, pagemap, start, end);
}

static void unmanage_range(struct proc *p, int pagemap, uint64_t start, uint64_t end)
{
	struct uffdio_range r = { start, end - start };

	(void)pagemap;
	ioctl(p->u1, UFFDIO_UNREGISTER, &r);
}

/* --- the handshake --------------------------------------------------------------------------- */

static void set_api(int fd, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };

	if (ioctl(fd, UFFDIO_API, &api) < 0)
		DIE("UFFDIO_API");
}

/* Write-protect mode: pages that mlockall brings into them must not wait for us. */
static void register_batch(int fd, uint64_t start)
{
	struct uffdio_register r = {
		.range = { start, USM_OPS_BATCH * USM_PAGE_SIZE },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	/* ENOMEM: the program ended or called exec meanwhile. */
	if (ioctl(fd, UFFDIO_REGISTER, &r) < 0 && errno != ENOMEM)
		DIE("REGISTER of a batch");
}

static void on_hello(struct proc *p)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (getsockopt(p->sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		DIE("SO_PEERCRED");
	p->pid = cred.pid;
	if (opt.refuse) {
		send_message(p, USM_ATTACH_REFUSE, 0, NULL, 0, opt.refuse);
		return;
	}
	make_ops(p);
	send_message(p, USM_ATTACH_FDS, 0, (int[]){ dev, p->ops_fd }, 2, NULL);
}

static struct proc *find_child(uint64_t nonce)
{
	for (int i = 0; i < MAX_PROCS; i++)
		if (procs[i] && procs[i]->used && nonce && procs[i]->nonce == nonce)
			return procs[i];
	return NULL;
}

/* The connection's record becomes part of the record that the FORK event made. */
static struct proc *join_child(struct proc *conn, uint64_t nonce)
{
	struct proc *p = find_child(nonce);

	if (!p)
		return NULL;
	p->sock = conn->sock;
	p->ops_fd = conn->ops_fd;
	p->ops = conn->ops;
	p->identity = conn->identity;
	p->pid = conn->pid;
	p->nonce = 0;
	conn->sock = conn->ops_fd = -1;
	conn->ops = NULL;
	drop_proc(conn);
	for (uint32_t i = 0; i < TABLE_SIZE; i++)
		if (p->table[i].state == SWAPPED)
			atomic_fetch_add(&p->ops->nr_swapped, 1);
	return p;
}

static void on_ready(struct proc *p, struct usm_attach_msg *m, int *fds, int nr)
{
	bool child = nr == 1;
	int u2 = fds[nr - 1];

	if (child) {
		struct proc *conn = p;

		p = join_child(conn, m->nonce);
		if (!p) {
			send_message(conn, USM_ATTACH_REFUSE, 0, NULL, 0, "unknown nonce");
			drop_proc(conn);
			close(u2);
			return;
		}
	} else {
		p->u1 = fds[0];
		set_api(p->u1, UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP |
				       UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP |
				       UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	}
	p->staging = m->staging;
	p->trash = m->trash;
	p->marker = m->marker;
	p->tcb = m->tcb;
	set_api(u2, 0);
	register_batch(p->u1, p->staging);
	register_batch(u2, p->trash);
	close(u2);
	for_each_range(p, manage_range);
	p->managed = true;
	send_message(p, USM_ATTACH_GO, 0, &p->u1, child ? 1 : 0, NULL);
}

static void on_rejoin(struct proc *conn, struct usm_attach_msg *m, int *fds, int nr)
{
	for (int i = 0; i < MAX_PROCS; i++) {
		struct proc *p = procs[i];

		if (!p || !p->used || p == conn || p->identity != m->nonce || nr != 2)
			continue;
		p->sock = conn->sock;
		conn->sock = -1;
		drop_proc(conn);
		p->u1 = fds[0];
		close(fds[1]);
		p->managed = true;
		atomic_store(&p->ops->gate, USM_GATE_IDLE);
		send_message(p, USM_ATTACH_GO, 0, &p->ops_fd, 1, NULL);
		/* Faults that the dead daemon had read are raised again. */
		ioctl(p->u1, UFFDIO_WAKE, &(struct uffdio_range){ 0x10000, 0x7ffffffe0000 });
		if (p->busy)
			send_message(p, USM_ATTACH_WORK, atomic_load(&p->ops->req), NULL, 0, NULL);
		return;
	}
	send_message(conn, USM_ATTACH_REFUSE, 0, NULL, 0, "unknown identity");
}

static void on_socket(struct proc *p)
{
	struct usm_attach_msg m;
	int fds[2] = { -1, -1 }, nr = receive_message(p, &m, fds);

	if (nr < 0)
		drop_proc(p);
	else if (m.type == USM_ATTACH_HELLO)
		on_hello(p);
	else if (m.type == USM_ATTACH_READY)
		on_ready(p, &m, fds, nr);
	else if (m.type == USM_ATTACH_REJOIN)
		on_rejoin(p, &m, fds, nr);
	else if (m.type == USM_ATTACH_DONE && p->busy && m.seq == atomic_load(&p->ops->req))
		finish_operation(p);
}

/* --- endings --------------------------------------------------------------------------------- */

static bool bring_back(struct proc *p)
{
	for (uint32_t i = 0; i < TABLE_SIZE; i++) {
		struct page *pg = &p->table[i];
		int r;

		if (!pg->data)
			continue;
		do {
			while (read_event(p))
				;
			r = pg->data ? copy_in(p, pg->addr, pg->data) : 0;
		} while (r == -EAGAIN);
		forget_data(p, pg);
		pg->state = RESIDENT;
	}
	return true;
}

static void release(struct proc *p)
{
	bring_back(p);
	serve_faults(p);
	for_each_range(p, unmanage_range);
	send_message(p, USM_ATTACH_RELEASE, 0, NULL, 0, NULL);
	drop_proc(p);
}

static void die(void)
{
	close_fd(&listener);
	unlink(socket_path);
	for (int i = 0; i < MAX_PROCS; i++) {
		struct proc *p = procs[i];

		if (!p || !p->used)
			continue;
		if (opt.settle)
			bring_back(p);
		close_fd(&p->sock);
		close_fd(&p->u1);
		p->managed = false;
		p->nr_faults = 0;
	}
}

static void listen_now(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	strcpy(addr.sun_path, socket_path);
	listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (listener < 0 || bind(listener, (struct sockaddr *)&addr, sizeof(addr)) < 0 ||
	    listen(listener, 64) < 0)
		DIE("listen at %s", socket_path);
}

/* --- main loop ------------------------------------------------------------------------------- */

static bool readable(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };

	return fd >= 0 && poll(&pfd, 1, 0) > 0;
}

static void serve(struct proc *p, uint64_t now)
{
	if (p->u1 >= 0) {
		while (read_event(p))
			;
		serve_faults(p);
	}
	if (readable(p->sock)) {
		on_socket(p);
		return;
	}
	if (!p->managed || p->sock < 0 || p->busy)
		return;
	if (now - p->scanned_usec > SCAN_USEC) {
		p->scanned_usec = now;
		for_each_range(p, manage_range);
	}
	if (now - p->evicted_usec > opt.pause_usec && p->nr_faults == 0) {
		p->evicted_usec = now;
		start_eviction(p);
	}
}

static void accept_new(void)
{
	int sock = listener < 0 ? -1 : accept4(listener, NULL, NULL, SOCK_CLOEXEC);

	if (sock >= 0)
		new_proc()->sock = sock;
}

/* Every condition is looked at in turn: this test is about order, not speed. */
static int run(pid_t program)
{
	uint64_t start = now_usec(), died = 0;
	bool released = false;
	int status;

	for (;;) {
		uint64_t now = now_usec();

		accept_new();
		for (int i = 0; i < MAX_PROCS; i++)
			if (procs[i] && procs[i]->used)
				serve(procs[i], now);
		if (opt.release_usec && !released && now - start > opt.release_usec) {
			released = true;
			for (int i = 0; i < MAX_PROCS; i++) {
				if (!procs[i] || !procs[i]->managed)
					continue;
				if (procs[i]->busy)
					released = false; /* when its operation is done */
				else
					release(procs[i]);
			}
		}
		if (opt.die_usec && !died && now - start > opt.die_usec) {
			died = now;
			die();
		}
		if (died && opt.back_usec && listener < 0 && now - died > opt.back_usec)
			listen_now();
		if (waitpid(program, &status, WNOHANG) == program)
			return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
		usleep(20);
	}
}

static void parse_options(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "mode", 1, NULL, 'm' },	   { "pause", 1, NULL, 'p' },
		{ "min", 1, NULL, 'n' },	   { "refuse", 1, NULL, 'r' },
		{ "release-after", 1, NULL, 'R' }, { "die-after", 1, NULL, 'd' },
		{ "back-after", 1, NULL, 'b' },	   { "settle", 0, NULL, 's' },
		{ "grace", 1, NULL, 'g' },	   { "expect", 1, NULL, 'e' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "+", longs, NULL)) != -1) {
		uint64_t number = optarg ? strtoull(optarg, NULL, 10) : 0;

		if (c == 'm')
			opt.modes = strcmp(optarg, "move") == 0	    ? USM_EVICT_MOVE :
				    strcmp(optarg, "lazyfree") == 0 ? USM_EVICT_LAZYFREE :
								      USM_EVICT_MOVE | USM_EVICT_LAZYFREE;
		else if (c == 'p')
			opt.pause_usec = number;
		else if (c == 'n')
			opt.min_evictions = number;
		else if (c == 'r')
			opt.refuse = optarg;
		else if (c == 'R')
			opt.release_usec = number * 1000;
		else if (c == 'd')
			opt.die_usec = number * 1000;
		else if (c == 'b')
			opt.back_usec = number * 1000;
		else if (c == 's')
			opt.settle = true;
		else if (c == 'g')
			opt.grace_sec = (uint32_t)number;
		else if (c == 'e')
			opt.expect = (int)number;
		else
			exit(2);
	}
	if (argc - optind < 2) {
		fprintf(stderr, "usage: tagger-peer [options] LIBRARY PROGRAM [ARGUMENT...]\n");
		exit(2);
	}
}

int main(int argc, char **argv)
{
	char dir[] = "/tmp/tagger-peer.XXXXXX";
	pid_t program;
	int status;

	parse_options(argc, argv);
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev < 0 || !mkdtemp(dir))
		DIE("start");
	snprintf(socket_path, sizeof(socket_path), "%s/%s", dir, USM_ATTACH_SOCKET);
	signal(SIGPIPE, SIG_IGN);
	listen_now();
	program = fork();
	if (program == 0) {
		setenv("LD_PRELOAD", argv[optind], 1);
		setenv("USMD_RUNTIME_DIR", dir, 1);
		signal(SIGPIPE, SIG_DFL);
		execvp(argv[optind + 1], argv + optind + 1);
		_exit(127);
	}
	status = run(program);
	if (listener >= 0)
		unlink(socket_path);
	rmdir(dir);
	fprintf(stderr, "tagger-peer: status %d, processes %lu, evicted %lu, swapped in %lu, "
		"first touches %lu; stayed:", status, nr_procs, nr_evicted, nr_swapins, nr_zero);
	for (int i = 0; i < 256; i++)
		if (nr_failed[i])
			fprintf(stderr, " %s %lu", strerrorname_np(i) ?: "?", nr_failed[i]);
	fprintf(stderr, "\n");
	if (status != opt.expect || nr_evicted < opt.min_evictions) {
		fprintf(stderr, "tagger-peer: FAILED, expected status %d and %lu evictions\n",
			opt.expect, opt.min_evictions);
		return 1;
	}
	return 0;
}

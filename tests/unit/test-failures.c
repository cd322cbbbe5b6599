/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whatever can fail on the paths of fault and eviction fails, once at each place: the k-th
 * transfer, the k-th allocation, the k-th UFFDIO_COPY, for each k until a run has no k-th.  The
 * program is memory of our own under a real userfaultfd, served by the real workers and the real
 * reclaim thread; a thread stands for its agent.  All in one file, as what fails is counted here in
 * place of the C library.
 */
#include "core-fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "event.h"
#include "fault.h"
#include "lib/cleanup.h"
#include "mechanism-userfault.h"
#include "swap-file.h"
#include "worker.h"

#define PAGES 24u
#define TABLES_AT (void *)0x200000000000ul
/* Nothing here takes longer, unless a fault was lost. */
#define PATIENCE_MSEC 20000
/* So often a transfer is tried again by itself (swap-io.c). */
#define SWAP_RETRIES 100u

/* --- what fails ------------------------------------------------------------------------- */

enum site { SITE_NONE, SITE_WRITE, SITE_READ, SITE_RESERVE, SITE_COPY, SITE_OPEN };

/* What an I/O error looks like: -errno, or one of these. */
enum { FAIL_FLIP = 1, FAIL_SHORT, FAIL_EOF };

static struct {
	enum site site;
	int how;
	unsigned from, count; /* the from-th call and those behind it */
	_Atomic unsigned seen, hit;
} plan;

/* Besides, no device takes anything. */
static _Atomic bool no_device;

static void plan_fail(enum site site, int how, unsigned from, unsigned count)
{
	plan.site = SITE_NONE;
	plan.how = how;
	plan.from = from;
	plan.count = count;
	plan.seen = plan.hit = 0;
	plan.site = site;
}

static bool plan_says_fail(enum site site)
{
	unsigned n;

	if (plan.site != site)
		return false;
	n = atomic_fetch_add(&plan.seen, 1) + 1;
	if (n < plan.from || n - plan.from >= plan.count)
		return false;
	atomic_fetch_add(&plan.hit, 1);
	return true;
}

static ssize_t fail_transfer(bool write, uint64_t offset, void *buf, uint64_t len, ssize_t res)
{
	ssize_t n;

	if (offset >= USM_SWAP_FILE_DATA && write && atomic_load(&no_device))
		return -EIO;
	if (offset < USM_SWAP_FILE_DATA || !plan_says_fail(write ? SITE_WRITE : SITE_READ))
		return res;
	switch (plan.how) {
	case FAIL_FLIP:
		((uint8_t *)buf)[len - 1] ^= 0x10;
		return res;
	case FAIL_SHORT:
		/* One page of several, else a part of the one: what is behind says nothing. */
		n = len > USM_PAGE_SIZE ? (ssize_t)USM_PAGE_SIZE : 512;
		if (!write)
			memset((uint8_t *)buf + n, 0x55, len - (size_t)n);
		return n;
	case FAIL_EOF:
		return 0;
	default:
		if (!write)
			memset(buf, 0x55, len);
		return plan.how;
	}
}

/* In place of libc's, for the daemon's code in this program. */
int fallocate(int fd, int mode, off_t offset, off_t len)
{
	if (plan_says_fail(SITE_RESERVE)) {
		errno = -plan.how;
		return -1;
	}
	return (int)syscall(SYS_fallocate, fd, mode, offset, len);
}

FILE *fopen(const char *path, const char *mode)
{
	int fd;

	if (plan_says_fail(SITE_OPEN)) {
		errno = -plan.how;
		return NULL;
	}
	fd = open(path, strchr(mode, 'w') ? O_WRONLY | O_CREAT | O_CLOEXEC : O_RDONLY | O_CLOEXEC, 0600);
	return fd < 0 ? NULL : fdopen(fd, mode);
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (request == UFFDIO_COPY && plan_says_fail(SITE_COPY)) {
		((struct uffdio_copy *)arg)->copy = plan.how;
		errno = -plan.how;
		return -1;
	}
	return (int)syscall(SYS_ioctl, fd, request, arg);
}

/* --- a program --------------------------------------------------------------------------- */

struct program {
	struct core_fixture *f;
	struct process *p;
	uint8_t *memory;
	size_t stride; /* from page to page */
	unsigned seed;
	bool lazy; /* pages stay present at the first attempt, as after MADV_FREE */
	bool passive; /* at each, and the agent does not write them when it is asked to */
	unsigned visits[PAGES];
	int agent_fd;
	pthread_t agent, reader;
	_Atomic unsigned nr_operations; /* that its agent has done */
	_Atomic unsigned nr_read;  /* pages that the reader has seen, all of them right */
	_Atomic unsigned nr_wrong;
	_Atomic bool aborted; /* what the reader sees from now on says nothing */
	bool writes;
};

static uint8_t *page_of(const struct program *g, unsigned i)
{
	return g->memory + i * g->stride;
}

static uint8_t byte_of(const struct program *g, unsigned i)
{
	return (uint8_t)(1 + (g->seed * 31 + i) % 255);
}

static int agent_page(struct program *g, unsigned i)
{
	struct usm_agent_ops *ops = g->p->ops;
	uint8_t *page = (uint8_t *)(uintptr_t)ops->addr[i];

	memcpy((uint8_t *)ops + USM_OPS_DATA + i * USM_PAGE_SIZE, page, USM_PAGE_SIZE);
	if (g->lazy && (g->passive || !g->visits[(size_t)(page - g->memory) / g->stride]++))
		return -EBUSY;
	madvise(page, USM_PAGE_SIZE, MADV_DONTNEED);
	return 0;
}

static void *agent_main(void *arg)
{
	struct program *g = arg;
	struct usm_agent_ops *ops = g->p->ops;
	struct usm_attach_msg m;

	while (recv(g->agent_fd, &m, sizeof(m), 0) > 0) {
		uint32_t req = atomic_load(&ops->req);

		if (m.type != USM_ATTACH_WORK || atomic_load(&ops->done) == req)
			continue;
		for (unsigned i = 0; i < ops->n; i++)
			atomic_store(&ops->res[i], ops->kind == USM_OPS_UNSHARE ?
							   (g->passive ? -ECANCELED : 0) :
							   agent_page(g, i));
		atomic_fetch_add(&g->nr_operations, 1);
		atomic_store(&ops->done, req);
		m.type = USM_ATTACH_DONE;
		if (send(g->agent_fd, &m, sizeof(m), MSG_NOSIGNAL) < 0)
			break;
	}
	return NULL;
}

static void *reader_main(void *arg)
{
	struct program *g = arg;

	for (unsigned i = 0; i < PAGES; i++) {
		volatile uint8_t *page = page_of(g, i);
		bool wrong = false;

		if (g->writes)
			page[0] = page[USM_PAGE_SIZE - 1] = byte_of(g, i);
		for (unsigned k = 0; k < USM_PAGE_SIZE; k += g->writes ? USM_PAGE_SIZE - 1 : 1)
			wrong |= page[k] != byte_of(g, i);
		if (atomic_load(&g->aborted))
			return NULL;
		if (wrong)
			atomic_fetch_add(&g->nr_wrong, 1);
		atomic_fetch_add(&g->nr_read, 1);
	}
	return NULL;
}

/* With content: all its pages are RESIDENT.  Without: nothing is known of it. */
static void program_start(struct core_fixture *f, struct program *g, unsigned seed, bool content)
{
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), fd, fds[2];
	struct process *p;
	size_t size;

	*g = (struct program){.f = f, .seed = seed, .lazy = g->lazy, .passive = g->passive,
			      .stride = USM_PAGE_SIZE};
	/* Each page in a leaf of its own, if tables are to be made. */
	if (!content)
		g->stride = LEAF_PAGES * USM_PAGE_SIZE;
	g->writes = !content;
	assert_true(dev >= 0);
	fd = ioctl(dev, 0xaa00, O_CLOEXEC | O_NONBLOCK); /* USERFAULTFD_IOC_NEW */
	close(dev);
	assert_true(fd >= 0);
	p = g->p = process_new(&f->core);
	assert_non_null(p);
	snprintf(p->shared->name, sizeof(p->shared->name), "program-%u", seed);
	p->shared->uffd = fd;
	p->shared->pid = getpid();
	p->shared->attached = 1;
	atomic_store(&p->pool, f->core.pool[0]);
	assert_int_equal(userfault_handshake(fd, false, false), 0);
	fake_agent_memory(p);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	p->shared->sock = fds[0];
	g->agent_fd = fds[1];
	assert_int_equal(process_publish(p), 0);

	size = PAGES * g->stride;
	/* At a place where all is in one node of the table. */
	g->memory = mmap(content ? NULL : TABLES_AT, size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
				 (content ? 0 : MAP_FIXED_NOREPLACE),
			 -1, 0);
	assert_true(g->memory != MAP_FAILED);
	for (unsigned i = 0; content && i < PAGES; i++) {
		memset(page_of(g, i), byte_of(g, i), USM_PAGE_SIZE);
		put_resident(p, VPN((uintptr_t)page_of(g, i)), 0);
	}
	assert_int_equal(userfault_register(fd, (uintptr_t)g->memory, (uintptr_t)g->memory + size,
					    UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP),
			 0);
	assert_int_equal(pthread_create(&g->agent, NULL, agent_main, g), 0);
	reclaim_add(p);
}

static int drop(void *userdata, uint64_t vpn, page_entry *e)
{
	struct core *c = userdata;
	uint64_t v = atomic_exchange(e, 0);

	(void)vpn;
	/* Nobody has anything in hand any more. */
	assert_true(PAGE_STATE(v) == PAGE_RESIDENT || PAGE_STATE(v) == PAGE_SWAPPED ||
		    PAGE_STATE(v) == PAGE_LOST);
	if (PAGE_STATE(v) == PAGE_RESIDENT)
		pool_release(c, PAGE_VALUE(v));
	else if (PAGE_STATE(v) == PAGE_SWAPPED)
		usm_swap_unref(c->swap, PAGE_VALUE(v));
	return 0;
}

static void program_end(struct program *g)
{
	struct process *p = g->p;
	struct core *c = &g->f->core;

	plan.site = SITE_NONE;
	atomic_store(&no_device, false);
	reclaim_forget(p);
	shutdown(g->agent_fd, SHUT_RDWR);
	pthread_join(g->agent, NULL);
	close(g->agent_fd);
	munmap(g->memory, PAGES * g->stride);
	page_visit(c->arena, p->number, 0, VPN_MAX, drop, c);
	page_table_free(c->arena, p->number);
	epoll_ctl(c->epoll_fd, EPOLL_CTL_DEL, p->shared->uffd, NULL);
	atomic_store(&p->shared->state, PROCESS_DYING);
	while (atomic_load(&p->users))
		usleep(100);
	munmap(p->ops, USM_OPS_BYTES);
	p->ops = NULL;
	close(p->shared->uffd);
	close(p->shared->sock);
	close(p->shared->opsfd);
	pool_flush(c->pool[0]);
	atomic_store(&p->shared->state, PROCESS_FREE);
}

/* How many pages left. */
static uint64_t evict_all(struct program *g)
{
	uint64_t evicted = 0;
	const char *reason;
	int ticket = reclaim_request(&g->f->core, g->p, PAGES);

	assert_true(ticket > 0);
	for (unsigned i = 0; !reclaim_request_done(&g->f->core, ticket, &evicted, &reason); i++) {
		assert_true(i < PATIENCE_MSEC);
		usleep(1000);
	}
	return evicted;
}

static void read_begin(struct program *g)
{
	g->nr_read = g->nr_wrong = 0;
	assert_int_equal(pthread_create(&g->reader, NULL, reader_main, g), 0);
}

static int is_filling(void *userdata, uint64_t vpn, page_entry *e)
{
	(void)userdata;
	(void)vpn;
	return PAGE_STATE(atomic_load(e)) == PAGE_FILLING;
}

/* A page is published after its program was woken. */
static void wait_for_publication(struct program *g)
{
	for (unsigned i = 0;
	     page_visit(g->f->arena, g->p->number, 0, VPN_MAX, is_filling, NULL); i++) {
		assert_true(i < PATIENCE_MSEC);
		usleep(1000);
	}
}

/* Until it has read all, or is to be killed: then it has seen nothing that is wrong. */
static void read_end(struct program *g)
{
	for (unsigned i = 0; atomic_load(&g->nr_read) < PAGES && !atomic_load(&g->p->killed); i++) {
		assert_true(i < PATIENCE_MSEC);
		usleep(1000);
	}
	if (atomic_load(&g->nr_read) < PAGES) {
		usleep(20000);
		assert_true(atomic_load(&g->nr_read) < PAGES);
		atomic_store(&g->aborted, true);
		userfault_unregister(g->p->shared->uffd, (uintptr_t)g->memory,
				     (uintptr_t)g->memory + PAGES * g->stride);
	}
	pthread_join(g->reader, NULL);
	wait_for_publication(g);
	assert_int_equal(g->nr_wrong, 0);
}

static void read_all(struct program *g)
{
	read_begin(g);
	read_end(g);
}

static void assert_nothing_left(struct core_fixture *f)
{
	assert_int_equal(slots_used(f), 0);
	assert_int_equal(atomic_load(&f->core.nr_used), 0);
}

/* --- one device, in runs or in single slots ---------------------------------------------- */

/* Every other slot is taken, so that batches are many requests and go through a ring. */
struct fragments {
	uint32_t *slot;
	unsigned n;
};

static struct fragments fragment(struct core_fixture *f)
{
	struct fragments s = {.slot = calloc(FIXTURE_SWAP_SIZE / USM_PAGE_SIZE, sizeof(uint32_t))};
	unsigned all;

	assert_non_null(s.slot);
	all = usm_swap_alloc(f->core.swap, s.slot, FIXTURE_SWAP_SIZE / USM_PAGE_SIZE);
	for (unsigned i = 0; i < all; i++)
		if (i % 2)
			usm_swap_unref(f->core.swap, s.slot[i]);
		else
			s.slot[s.n++] = s.slot[i];
	return s;
}

static void defragment(struct core_fixture *f, struct fragments *s)
{
	while (s->n)
		usm_swap_unref(f->core.swap, s->slot[--s->n]);
	free(s->slot);
}

/* --- writes -------------------------------------------------------------------------------- */

static uint64_t nr_errors(struct core_fixture *f)
{
	uint64_t slots, used, errors;

	usm_swap_totals(f->core.swap, &slots, &used, &errors);
	return errors;
}

/* Each write fails once: the page is in another slot in the end, or has stayed; it is right. */
static unsigned each_write(struct core_fixture *f, int how, unsigned count, bool lazy)
{
	unsigned k;

	for (k = 1;; k++) {
		struct program g = {.lazy = lazy};
		uint64_t errors = nr_errors(f), counted = f->arena->h->nr_errors, evicted;

		program_start(f, &g, k, true);
		plan_fail(SITE_WRITE, how, k, count);
		evicted = evict_all(&g);
		if (count == 1)
			assert_int_equal(evicted, PAGES);
		/* At once, in another slot. */
		if (count == 1 && !lazy)
			assert_int_equal(atomic_load(&g.nr_operations), 1);
		/* Short ones are gone on with. */
		if (plan.hit && how != FAIL_SHORT) {
			assert_true(nr_errors(f) > errors);
			assert_true(f->arena->h->nr_errors > counted);
		} else {
			assert_int_equal(nr_errors(f), errors);
		}
		if (count > PAGES && how != FAIL_SHORT && k == 1)
			assert_int_equal(evicted, 0);
		read_all(&g);
		assert_false(atomic_load(&g.p->killed));
		count = plan.hit ? count : 0;
		program_end(&g);
		assert_nothing_left(f);
		if (!count)
			break;
	}
	return k - 1;
}

static void test_each_write_fails(void **state)
{
	static const int how[] = {-ENOSPC, -EIO, -EFBIG, FAIL_SHORT, FAIL_EOF};
	struct core_fixture *f = *state;

	for (unsigned i = 0; i < ARRAY_SIZE(how); i++)
		assert_true(each_write(f, how[i], 1, false) >= 1);
}

static void test_each_write_fails_for_good(void **state)
{
	static const int how[] = {-ENOSPC, -EIO, -ENOMEM};
	struct core_fixture *f = *state;

	for (unsigned i = 0; i < ARRAY_SIZE(how); i++)
		assert_true(each_write(f, how[i], 1u << 30, false) >= 1);
}

/* Pages that MADV_FREE had marked: LAZY without a slot until the agent has written them. */
static void test_each_write_fails_lazyfree(void **state)
{
	struct core_fixture *f = *state;

	atomic_store(&f->core.evict_modes, USM_EVICT_LAZYFREE);
	assert_true(each_write(f, -ENOSPC, 1, true) >= 1);
	assert_true(each_write(f, -EIO, 1u << 30, true) >= 1);
	atomic_store(&f->core.evict_modes, USM_EVICT_MOVE);
}

static void assert_child_has(struct core_fixture *f, struct process *p, uint64_t vpn, uint64_t v);

/* The kernel drops such a page before the agent has written it: no zeros are seen. */
static void test_dropped_without_copy(void **state)
{
	struct core_fixture *f = *state;

	atomic_store(&f->core.evict_modes, USM_EVICT_LAZYFREE);
	for (unsigned drop = 0; drop < 2; drop++) {
		struct program g = {.lazy = true, .passive = true};
		uint64_t vpn;

		program_start(f, &g, 1, true);
		vpn = VPN((uintptr_t)page_of(&g, 7));
		atomic_store(&no_device, true);
		assert_int_equal(evict_all(&g), 0);
		assert_true(page_has_no_copy(&f->core, entry_of(g.p, vpn)));
		if (drop)
			madvise(page_of(&g, 7), USM_PAGE_SIZE, MADV_DONTNEED);
		else /* An old fault says nothing. */
			worker_fault(g.p, &(struct fault){.process = g.p->number,
							  .generation = g.p->generation,
							  .vpn = vpn});
		usleep(20000);
		assert_false(atomic_load(&g.p->killed));
		/* A child that shares it has no copy either. */
		assert_child_has(f, g.p, vpn, PAGE_ENTRY(PAGE_LOST, 0));
		read_all(&g);
		assert_int_equal(atomic_load(&g.p->killed), drop);
		assert_int_equal(PAGE_STATE(entry_of(g.p, vpn)), drop ? PAGE_LOST : PAGE_RESIDENT);
		program_end(&g);
		assert_nothing_left(f);
	}
	atomic_store(&f->core.evict_modes, USM_EVICT_MOVE);
}

/* --- reads --------------------------------------------------------------------------------- */

/* Each read fails once: the program is killed, or it was nothing; another one goes on. */
static unsigned each_read(struct core_fixture *f, int how, unsigned count, bool killed)
{
	unsigned k, kills = 0;

	for (k = 1;; k++) {
		struct program g = {0}, other = {0};
		bool hit;

		program_start(f, &g, k, true);
		program_start(f, &other, 1000 + k, true);
		assert_int_equal(evict_all(&g), PAGES);
		assert_int_equal(evict_all(&other), PAGES);
		plan_fail(SITE_READ, how, k, count);
		read_all(&g);
		hit = plan.hit;
		plan.site = SITE_NONE;
		if (!hit || !killed)
			assert_false(atomic_load(&g.p->killed));
		kills += atomic_load(&g.p->killed);
		read_all(&other);
		assert_false(atomic_load(&other.p->killed));
		program_end(&g);
		program_end(&other);
		assert_nothing_left(f);
		if (!hit)
			break;
		/* A page that is read beside the one that faulted may fail, and be read again. */
		if (atomic_load(&f->core.faultaround) == 1)
			assert_int_equal(kills, killed ? k : 0);
	}
	assert_true(!killed || kills);
	return k - 1;
}

static void test_each_read_fails(void **state)
{
	static const int how[] = {-EIO, FAIL_FLIP, FAIL_EOF};
	struct core_fixture *f = *state;

	for (unsigned i = 0; i < ARRAY_SIZE(how); i++) {
		atomic_store(&f->core.faultaround, 1);
		assert_int_equal(each_read(f, how[i], 1, true), PAGES);
		atomic_store(&f->core.faultaround, 8);
		assert_true(each_read(f, how[i], 1, true) >= PAGES / 8);
		atomic_store(&f->core.faultaround, 1);
	}
}

/* A short read is gone on with; short of memory, the fault comes again. */
static void test_each_read_is_tried_again(void **state)
{
	static const int how[] = {FAIL_SHORT, -EINTR, -EAGAIN, -ENOMEM};
	struct core_fixture *f = *state;

	for (unsigned i = 0; i < ARRAY_SIZE(how); i++) {
		assert_int_equal(each_read(f, how[i], 1, false), PAGES);
		atomic_store(&f->core.faultaround, 8);
		assert_true(each_read(f, how[i], 1, false) >= PAGES / 8);
		atomic_store(&f->core.faultaround, 1);
	}
	/* More often than it is tried again at once. */
	for (unsigned i = 1; i < ARRAY_SIZE(how); i++)
		assert_true(each_read(f, how[i], 2 * SWAP_RETRIES, false) >= 1);
}

/* Pages are brought back, with frames or (usmd stops) without. */
static void test_each_bringing_back_fails(void **state)
{
	struct core_fixture *f = *state;
	struct worker w;

	assert_int_equal(worker_init(&f->core, ARENA_WORKERS - 2, &w), 0);
	for (unsigned lend = 0; lend < 2; lend++)
		for (unsigned k = 1;; k++) {
			struct program g = {0};
			bool hit;

			program_start(f, &g, k, true);
			assert_int_equal(evict_all(&g), PAGES);
			plan_fail(SITE_READ, k % 2 ? -EIO : -ENOMEM, k, 2 * SWAP_RETRIES);
			for (unsigned i = 0; i < PAGES && !atomic_load(&g.p->killed); i += k)
				fault_bring_back(&w, g.p, VPN((uintptr_t)page_of(&g, i)), lend);
			hit = plan.hit;
			plan.site = SITE_NONE;
			assert_int_equal(atomic_load(&g.p->killed), hit && k % 2);
			read_all(&g);
			program_end(&g);
			assert_nothing_left(f);
			if (!hit)
				break;
		}
	worker_done(&w);
}

/* The same through rings. */
static void test_single_slots(void **state)
{
	struct core_fixture *f = *state;
	struct fragments s = fragment(f);
	struct program g = {0};
	struct usm_swap_info info;

	assert_int_equal(usm_swap_list(f->core.swap, &info, 1), 1);
	for (unsigned k = 1;; k++) {
		bool hit;

		program_start(f, &g, k, true);
		usm_swap_test.nr_ring_requests = 0;
		plan_fail(SITE_WRITE, k % 2 ? -EIO : FAIL_SHORT, k, 1);
		assert_int_equal(evict_all(&g), PAGES);
		hit = plan.hit;
		read_all(&g);
		assert_false(atomic_load(&g.p->killed));
		assert_true(!info.uring || usm_swap_test.nr_ring_requests >= PAGES);
		program_end(&g);
		assert_int_equal(slots_used(f), s.n);
		if (!hit) {
			assert_true(k > PAGES);
			break;
		}
	}
	defragment(f, &s);
	assert_nothing_left(f);
}

/* --- allocations --------------------------------------------------------------------------- */

/* Every node is made anew by the next program. */
static void forget_nodes(struct core_fixture *f)
{
	assert_int_equal(arena_nodes_recover(f->arena, NULL, 1), 0);
}

/* Tables of memory that is touched for the first time; one leaf for each page. */
static void test_each_table_fails(void **state)
{
	struct core_fixture *f = *state;

	for (unsigned count = 1; count <= 20; count += 19)
		for (unsigned k = 1;; k++) {
			struct program g = {0};
			bool hit;

			forget_nodes(f);
			program_start(f, &g, k, false);
			plan_fail(SITE_RESERVE, k % 2 ? -ENOSPC : -ENOMEM, k, count);
			read_all(&g);
			assert_false(atomic_load(&g.p->killed));
			assert_int_equal(atomic_load(&g.p->nr_resident), PAGES);
			/* No number is used up by a failure: one inner node and the leaves. */
			assert_int_equal(atomic_load(&f->arena->nodes_top), 1 + 1 + PAGES);
			hit = plan.hit;
			program_end(&g);
			assert_nothing_left(f);
			if (!hit) {
				/* The root's page as well. */
				assert_int_equal(k, 1 + 1 + PAGES + 1);
				break;
			}
		}
}

/* --- events ---------------------------------------------------------------------------------- */

#define FROM 0x10000ull
#define TO   (FROM + (1ull << 24))

static void apply(struct process *p, struct uffd_msg m)
{
	p->shared->journal[0] = m;
	atomic_store(&p->shared->journal_applied, 0);
	event_hold(p);
	event_resume(p);
}

static uint64_t spread(uint64_t first, unsigned i)
{
	return first + i * LEAF_PAGES;
}

static void end_by_hand(struct core_fixture *f, struct process *p)
{
	page_visit(f->arena, p->number, 0, VPN_MAX, drop, &f->core);
	page_table_free(f->arena, p->number);
	epoll_ctl(f->core.epoll_fd, EPOLL_CTL_DEL, p->shared->uffd, NULL);
	close(p->shared->uffd);
	atomic_store(&p->shared->state, PROCESS_FREE);
}

/* Forks by an event; the child. */
static struct process *fork_by_event(struct core_fixture *f, struct process *p)
{
	int uffd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	apply(p, (struct uffd_msg){.event = UFFD_EVENT_FORK, .arg.fork = {.ufd = (uint32_t)uffd}});
	for (uint32_t i = 0; i < arena_processes(f->arena); i++)
		if (f->core.process[i].shared->state == PROCESS_LIVE &&
		    f->core.process[i].shared->uffd == uffd)
			return &f->core.process[i];
	fail_msg("there is no child");
	return NULL;
}

static void assert_child_has(struct core_fixture *f, struct process *p, uint64_t vpn, uint64_t v)
{
	struct process *child = fork_by_event(f, p);

	assert_true(entry_of(child, vpn) == v);
	end_by_hand(f, child);
}

static void test_each_table_of_a_move_fails(void **state)
{
	struct core_fixture *f = *state;
	unsigned k;
	bool hit = true;

	for (k = 1; hit; k++) {
		struct process *p;
		uint32_t slot[PAGES];

		forget_nodes(f);
		p = fixture_process(f, "moving");
		for (unsigned i = 0; i < PAGES; i++)
			slot[i] = put_swapped(f, p, spread(FROM, i));
		plan_fail(SITE_RESERVE, -ENOSPC, k, 3);
		apply(p, (struct uffd_msg){
				 .event = UFFD_EVENT_REMAP,
				 .arg.remap = {.from = VADDR(FROM), .to = VADDR(TO),
					       .len = VADDR(PAGES * LEAF_PAGES)},
			 });
		hit = plan.hit;
		plan.site = SITE_NONE;
		assert_false(atomic_load(&p->killed));
		for (unsigned i = 0; i < PAGES; i++) {
			assert_int_equal(entry_of(p, spread(FROM, i)), 0);
			assert_true(entry_of(p, spread(TO, i)) == PAGE_ENTRY(PAGE_SWAPPED, slot[i]));
		}
		end_by_hand(f, p);
		assert_nothing_left(f);
	}
	assert_true(k > PAGES);
}

static void test_each_table_of_a_child_fails(void **state)
{
	struct core_fixture *f = *state;
	unsigned k;
	bool hit = true;

	for (k = 1; hit; k++) {
		struct process *p, *child;
		uint32_t slot[PAGES];

		forget_nodes(f);
		p = fixture_process(f, "forking");
		for (unsigned i = 0; i < PAGES; i++)
			slot[i] = put_swapped(f, p, spread(FROM, i));
		plan_fail(SITE_RESERVE, -ENOMEM, k, 3);
		child = fork_by_event(f, p);
		hit = plan.hit;
		plan.site = SITE_NONE;
		for (unsigned i = 0; i < PAGES; i++) {
			assert_true(entry_of(child, spread(FROM, i)) ==
				    PAGE_ENTRY(PAGE_SWAPPED, slot[i]));
			assert_int_equal(usm_swap_refs(f->core.swap, slot[i]), 2);
		}
		end_by_hand(f, child);
		end_by_hand(f, p);
		assert_nothing_left(f);
	}
	assert_true(k > PAGES);
}

/* What a child must not get is looked up in a file. */
static void test_each_look_at_smaps_fails(void **state)
{
	static const int how[] = {-EMFILE, -ENFILE, -ENOMEM};
	struct core_fixture *f = *state;
	uint8_t *wiped = mmap(NULL, USM_PAGE_SIZE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_true(wiped != MAP_FAILED);
	assert_int_equal(madvise(wiped, USM_PAGE_SIZE, MADV_WIPEONFORK), 0);
	for (unsigned i = 0; i < ARRAY_SIZE(how); i++) {
		struct process *p = fixture_process(f, "forking"), *child;
		uint64_t vpn = VPN((uintptr_t)wiped);

		p->shared->uninherited = 1;
		p->shared->pid = getpid();
		put_swapped(f, p, vpn);
		put_swapped(f, p, FROM);
		plan_fail(SITE_OPEN, how[i], 1, 3);
		child = fork_by_event(f, p);
		assert_int_equal(plan.hit, 3);
		plan.site = SITE_NONE;
		assert_int_equal(entry_of(child, vpn), 0);
		assert_int_equal(PAGE_STATE(entry_of(child, FROM)), PAGE_SWAPPED);
		end_by_hand(f, child);
		end_by_hand(f, p);
		assert_nothing_left(f);
	}
	munmap(wiped, USM_PAGE_SIZE);
}

/* --- installing ------------------------------------------------------------------------------- */

/* The kernel has no memory for a page, or an event comes first. */
static void test_each_install_fails(void **state)
{
	static const int how[] = {-ENOMEM, -EAGAIN, -ENOENT};
	struct core_fixture *f = *state;

	for (unsigned i = 0; i < ARRAY_SIZE(how); i++)
		for (unsigned k = 1;; k++) {
			struct program g = {0};
			bool hit;

			program_start(f, &g, k, true);
			assert_int_equal(evict_all(&g), PAGES);
			plan_fail(SITE_COPY, how[i], k, 3);
			read_all(&g);
			assert_false(atomic_load(&g.p->killed));
			hit = plan.hit;
			program_end(&g);
			assert_nothing_left(f);
			if (!hit) {
				assert_true(k > PAGES);
				break;
			}
		}
}

/* No device takes a page, and then the kernel does not take it back at once, or not at all. */
static void test_each_return_fails(void **state)
{
	static const int how[] = {-ENOMEM, -EAGAIN, -EFAULT};
	struct core_fixture *f = *state;

	for (unsigned i = 0; i < ARRAY_SIZE(how); i++)
		for (unsigned k = 1;; k++) {
			struct program g = {0};
			bool hit;

			program_start(f, &g, k, true);
			atomic_store(&no_device, true);
			plan_fail(SITE_COPY, how[i], k, 1);
			assert_int_equal(evict_all(&g), 0);
			hit = plan.hit;
			plan.site = SITE_NONE;
			assert_int_equal(atomic_load(&g.p->killed), hit && how[i] == -EFAULT);
			read_all(&g);
			program_end(&g);
			assert_nothing_left(f);
			if (!hit) {
				assert_true(k > PAGES);
				break;
			}
		}
}

/* --- numbers that are given out again ---------------------------------------------------------- */

static _Atomic bool watching;

static void *watch_record(void *arg)
{
	struct process *p = arg;
	uintptr_t nr_missing = 0;

	while (atomic_load(&watching))
		nr_missing += !*(struct arena_process *volatile *)&p->shared;
	return (void *)nr_missing;
}

/* Reclaim and the janitor look at all numbers at any time. */
static void test_number_keeps_its_record(void **state)
{
	struct core_fixture *f = *state;
	struct process *p = process_new(&f->core);
	uint64_t end = now_nsec() + 200000000;
	pthread_t thread;
	void *nr_missing;

	assert_non_null(p);
	atomic_store(&watching, true);
	assert_int_equal(pthread_create(&thread, NULL, watch_record, p), 0);
	while (now_nsec() < end)
		process_init(&f->core, p->number);
	atomic_store(&watching, false);
	pthread_join(thread, &nr_missing);
	assert_int_equal((uintptr_t)nr_missing, 0);
	atomic_store(&p->shared->state, PROCESS_FREE);
}

/* One engine for all: workers are started once. */
static int engine_start(void **state)
{
	struct core_fixture *f;

	if (core_fixture_setup(state) < 0)
		return -1;
	f = *state;
	/* Nothing was removed recently. */
	test_tick = 1000;
	fixture_pool(f, 0);
	f->core.zeros = mmap(NULL, USM_OPS_BATCH * USM_PAGE_SIZE, PROT_READ,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	atomic_store(&f->core.faultaround, 1);
	usm_swap_test.transfer = fail_transfer;
	fixture_start_reclaim(f);
	return workers_start(&f->core, 2);
}

static int engine_stop(void **state)
{
	struct core_fixture *f = *state;

	workers_stop(&f->core);
	munmap((void *)f->core.zeros, USM_OPS_BATCH * USM_PAGE_SIZE);
	return core_fixture_teardown(state);
}

static void test_skipped(void **state)
{
	(void)state;
	print_message("no /dev/userfaultfd, skipped\n");
	skip();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_each_write_fails),
		cmocka_unit_test(test_each_write_fails_for_good),
		cmocka_unit_test(test_each_write_fails_lazyfree),
		cmocka_unit_test(test_dropped_without_copy),
		cmocka_unit_test(test_each_read_fails),
		cmocka_unit_test(test_each_read_is_tried_again),
		cmocka_unit_test(test_each_bringing_back_fails),
		cmocka_unit_test(test_single_slots),
		cmocka_unit_test(test_each_table_fails),
		cmocka_unit_test(test_each_table_of_a_move_fails),
		cmocka_unit_test(test_each_table_of_a_child_fails),
		cmocka_unit_test(test_each_look_at_smaps_fails),
		cmocka_unit_test(test_each_install_fails),
		cmocka_unit_test(test_each_return_fails),
		cmocka_unit_test(test_number_keeps_its_record),
	};
	const struct CMUnitTest skipped[] = {cmocka_unit_test(test_skipped)};

	if (access("/dev/userfaultfd", R_OK | W_OK) < 0)
		return cmocka_run_group_tests(skipped, NULL, NULL);
	return cmocka_run_group_tests(tests, engine_start, engine_stop);
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whatever can fail on the paths of fault and eviction fails, once at each place: the k-th
 * transfer, the k-th allocation, the k-th UFFDIO_COPY, for each k until a run has no k-th.  The
 * program is that of program-fixture.h.  All in one file, as what fails is counted here in place of
 * the C library.
 */
#include "program-fixture.h"

#include <errno.h>
#include <poll.h>

#include "fault.h"
#include "swap-file.h"

/* So often a transfer is tried again by itself (swap-io.c). */
#define SWAP_RETRIES 100u

/* --- what fails ------------------------------------------------------------------------- */

enum site { SITE_NONE, SITE_WRITE, SITE_READ, SITE_RESERVE, SITE_COPY, SITE_OPEN };

/* What an I/O error looks like: -errno, or one of these. */
enum { FAIL_FLIP = 1, FAIL_SHORT, FAIL_EOF };

static struct {
	_Atomic enum site site;
	_Atomic int how;
	_Atomic unsigned from, count; /* the from-th call and those behind it */
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

static void program_end(struct program *g)
{
	plan.site = SITE_NONE;
	atomic_store(&no_device, false);
	program_stop(g);
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

static void ends(struct program *g)
{
	atomic_store(&g->p->gone, true);
}

static void forks(struct program *g)
{
	atomic_store(&g->p->barrier, true);
	atomic_fetch_or(&g->p->latch, LATCH_BARRIER);
}

/* No device takes the pages, and they cannot be put back: the program is not shown zeros. */
static void test_no_way_back(void **state)
{
	static void (*const meanwhile[])(struct program *g) = {ends, forks};
	struct core_fixture *f = *state;

	for (unsigned k = 0; k < ARRAY_SIZE(meanwhile); k++) {
		struct program g = {.taken = meanwhile[k]};

		program_start(f, &g, 1, true);
		atomic_store(&no_device, true);
		plan_fail(SITE_COPY, -EAGAIN, 1, 1u << 30);
		evict_all(&g);
		plan.site = SITE_NONE;
		atomic_store(&g.p->gone, false);
		atomic_store(&g.p->barrier, false);
		atomic_fetch_and(&g.p->latch, ~LATCH_BARRIER);
		for (unsigned i = 0; i < PAGES; i++)
			assert_int_equal(PAGE_STATE(entry_of(g.p, VPN((uintptr_t)page_of(&g, i)))),
					 PAGE_LOST);
		read_all(&g);
		assert_true(atomic_load(&g.p->killed));
		program_end(&g);
		assert_nothing_left(f);
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

static int failing_engine_start(void **state)
{
	usm_swap_test.transfer = fail_transfer;
	return engine_start(state);
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
		cmocka_unit_test(test_no_way_back),
		cmocka_unit_test(test_number_keeps_its_record),
	};
	const struct CMUnitTest skipped[] = {cmocka_unit_test(test_skipped)};

	if (access("/dev/userfaultfd", R_OK | W_OK) < 0)
		return cmocka_run_group_tests(skipped, NULL, NULL);
	return cmocka_run_group_tests(tests, failing_engine_start, engine_stop);
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * torture SECONDS THREADS PAGES SEED [FOLDER]: each thread does to a region of its own, in random
 * order, everything that programs do to their mappings, and knows for each page what it must hold.
 * Every byte of a page is checked.  Children are forked in the middle of it, check all that they
 * inherited, write a part, and fork once more.  Status 1 if any byte was wrong.
 *
 * In FOLDER each thread has a file for direct I/O, and a ring of io_uring with fixed buffers where
 * the system allows it.
 *
 * One file, although it is long: every operation is about the same model of pages.
 *
 * What stands in a page names the write that put it there, so that a wrong page tells whose
 * content it shows: "tag" 0xTTcccccccccccccc is thread TT's write number c; a child's have bit 55.
 */
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/uio.h>

#include "check.h"

#define WORDS	      (PAGE / 8)
#define TAG_CHILD     (1ull << 55)
#define THREADS_MAX   16
#define GENERATIONS   2	 /* of forked children below the program */
#define RUN_MAX	      64 /* pages that one call acts on */
#define PAGES_MIN     (2 * RUN_MAX)
#define REPORTS_MAX   10
#define FILE_PAGES    RUN_MAX
#define PIPE_PAGES    16 /* what a pipe takes */
#define FIXED_PAGES   48
#define FIXED_BUFFERS 3
#define CHURN_THREADS 4
#define HISTORY	      12

enum inherited {
	INHERITED,
	WIPED,	 /* MADV_WIPEONFORK: zeros in a child */
	LEFT_OUT /* MADV_DONTFORK: a hole in a child */
};

/* What a page must hold: 0 zeros, else what write_page() made of the tag. */
struct model {
	uint64_t tag;
	bool freed; /* MADV_FREE: zeros are right too, from then on or later */
	uint8_t inherited;
};

/* A file of the thread's own, and what its pages hold. */
struct file {
	int fd; /* -1: none */
	uint64_t tag[FILE_PAGES];
};

struct region {
	char *base;
	struct model *model; /* in managed memory as well */
	uint32_t pages, thread, depth;
	uint64_t random, next_tag;
	/* The last calls that were about each page, told when it is wrong: call << 8 | operation. */
	uint64_t (*history)[HISTORY];
	uint64_t call;
	struct file file;
	/* The fixed buffers of a ring, a region of its own; NULL where io_uring is refused. */
	struct region *fixed;
	struct io_uring ring;
	bool registered;
};

static uint32_t nr_pages;
static const char *folder;
static _Atomic bool stop;
static _Atomic uint64_t nr_calls, nr_checks, nr_forks, nr_bad;

static uint64_t word_of(uint64_t tag, uint32_t j)
{
	return tag ? tag ^ (uint64_t)(j + 1) * 0x9e3779b97f4a7c15ull : 0;
}

static uint32_t random_below(struct region *r, uint32_t limit)
{
	r->random = r->random * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)((r->random >> 33) % limit);
}

static char *page_at(const struct region *r, uint32_t i)
{
	return r->base + (size_t)i * PAGE;
}

/* These pages are what the present operation is about. */
static void note(struct region *r, uint32_t first, uint32_t n)
{
	for (uint32_t i = first; r->history && i < first + n; i++) {
		memmove(&r->history[i][1], &r->history[i][0], (HISTORY - 1) * sizeof(uint64_t));
		r->history[i][0] = r->call;
	}
}

static void write_page(struct region *r, uint32_t i)
{
	volatile uint64_t *p = (volatile uint64_t *)page_at(r, i);
	uint64_t tag = r->next_tag++;

	for (uint32_t j = 0; j < WORDS; j++)
		p[j] = word_of(tag, j);
	r->model[i].tag = tag;
	r->model[i].freed = false;
}

/* The first word that differs from what the tag makes, or WORDS. */
static uint32_t first_wrong(const volatile uint64_t *p, uint64_t tag)
{
	for (uint32_t j = 0; j < WORDS; j++)
		if (p[j] != word_of(tag, j))
			return j;
	return WORDS;
}

static const char *operation_name(uint64_t number);

static void tell_history(const struct region *r, uint32_t i)
{
	char line[512];
	int n = 0;

	for (uint32_t k = 0; r->history && k < HISTORY; k++)
		n += snprintf(line + n, sizeof(line) - (size_t)n, " %s@%lu",
			      operation_name(r->history[i][k] & 0xff),
			      (unsigned long)(r->history[i][k] >> 8));
	dprintf(STDERR_FILENO, "  in %s@%lu; before:%.*s\n", operation_name(r->call & 0xff),
		(unsigned long)(r->call >> 8), n, line);
}

static void check_page(struct region *r, uint32_t i)
{
	const volatile uint64_t *p = (const volatile uint64_t *)page_at(r, i);
	struct model *m = &r->model[i];
	uint32_t j = first_wrong(p, m->tag);
	uint64_t is, n = 0;

	atomic_fetch_add_explicit(&nr_checks, 1, memory_order_relaxed);
	/* A freed page that has gone stays so; it may go between two looks. */
	if (j < WORDS && m->freed && first_wrong(p, 0) == WORDS) {
		m->tag = 0;
		m->freed = false;
		return;
	}
	if (j == WORDS || atomic_fetch_add(&nr_bad, 1) >= REPORTS_MAX)
		return;
	is = p[j];
	for (uint32_t k = 0; k < WORDS; k++)
		n += p[k] != word_of(m->tag, k);
	dprintf(STDERR_FILENO,
		"process %d, thread %u, depth %u: page %u at %p, word %u: %#lx (tag %#lx), "
		"expected tag %#lx%s; %lu words differ\n",
		(int)getpid(), r->thread, r->depth, i, (void *)p, j, (unsigned long)is,
		(unsigned long)(is ? is ^ word_of(1, j) ^ 1 : 0), (unsigned long)m->tag,
		m->freed ? " (freed)" : "", (unsigned long)n);
	tell_history(r, i);
	write_page(r, i);
}

static void check_all(struct region *r)
{
	for (uint32_t i = 0; i < r->pages; i++)
		check_page(r, i);
}

/* A run of pages; its length, *ret_first its first page. */
static uint32_t random_run(struct region *r, uint32_t *ret_first)
{
	uint32_t n = 1 + random_below(r, RUN_MAX);

	*ret_first = random_below(r, r->pages - n + 1);
	note(r, *ret_first, n);
	return n;
}

static void must_hold(struct region *r, uint32_t i, uint64_t tag)
{
	r->model[i].tag = tag;
	r->model[i].freed = false;
}

/* The mapping is another one from now on. */
static void forget(struct region *r, uint32_t first, uint32_t n)
{
	memset(&r->model[first], 0, n * sizeof(*r->model));
}

static void *map_over(void *at, size_t bytes, int protection)
{
	return mmap(at, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED : 0), -1, 0);
}

/* --- what is done ------------------------------------------------------------------ */

static void op_check(struct region *r)
{
	check_page(r, random_below(r, r->pages));
}

static void op_write(struct region *r)
{
	uint32_t i = random_below(r, r->pages);

	note(r, i, 1);
	write_page(r, i);
}

/* In order, so that fault-around has something to do. */
static void op_sweep(struct region *r)
{
	uint32_t first, n = random_run(r, &first);
	bool write = random_below(r, 2);

	for (uint32_t i = first; i < first + n; i++) {
		check_page(r, i);
		if (write)
			write_page(r, i);
	}
}

static void op_discard(struct region *r)
{
	uint32_t first, n = random_run(r, &first);

	CHECK(!madvise(page_at(r, first), n * PAGE, MADV_DONTNEED));
	for (uint32_t i = first; i < first + n; i++)
		must_hold(r, i, 0);
}

static void op_free(struct region *r)
{
	uint32_t first, n = random_run(r, &first);

	CHECK(!madvise(page_at(r, first), n * PAGE, MADV_FREE));
	for (uint32_t i = first; i < first + n; i++)
		r->model[i].freed = true;
}

static void op_map_over(struct region *r)
{
	uint32_t first, n = random_run(r, &first);

	CHECK(map_over(page_at(r, first), n * PAGE, PROT_READ | PROT_WRITE) == page_at(r, first));
	forget(r, first, n);
}

/* Freed pages are written again, or found to be zeros: who copies them sees no change. */
static void settle(struct region *r, uint32_t first, uint32_t n)
{
	for (uint32_t i = first; i < first + n; i++) {
		if (!r->model[i].freed)
			continue;
		check_page(r, i);
		if (r->model[i].freed && r->model[i].tag)
			write_page(r, i);
		r->model[i].freed = false;
	}
}

static void settle_freed(struct region *r)
{
	settle(r, 0, r->pages);
}

/* Mapped anew all over: nothing is left of what was said about forks. */
static void all_inherited(struct region *r)
{
	for (uint32_t i = 0; i < r->pages; i++)
		r->model[i].inherited = INHERITED;
}

/* Maps what is a hole between pages of the region, unless another thread's call was faster:
 * then the region moves away. */
static void fill_hole(struct region *r, uint32_t first, uint32_t n)
{
	char *base;

	forget(r, first, n);
	if (mmap(page_at(r, first), n * PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == page_at(r, first))
		return;
	CHECK(errno == EEXIST);
	settle_freed(r);
	base = map_anonymous((size_t)r->pages * PAGE);
	for (uint32_t i = 0; i < r->pages; i++)
		if (i < first || i >= first + n)
			memcpy(base + (size_t)i * PAGE, page_at(r, i), PAGE);
	if (first > 0)
		CHECK(!munmap(r->base, first * PAGE));
	if (first + n < r->pages)
		CHECK(!munmap(page_at(r, first + n), (r->pages - first - n) * PAGE));
	r->base = base;
	all_inherited(r);
}

static void op_unmap(struct region *r)
{
	uint32_t first, n = random_run(r, &first);

	CHECK(!munmap(page_at(r, first), n * PAGE));
	if (random_below(r, 2))
		sched_yield();
	fill_hole(r, first, n);
}

static void op_protect(struct region *r)
{
	uint32_t first, n = random_run(r, &first);

	CHECK(!mprotect(page_at(r, first), n * PAGE, PROT_READ));
	for (uint32_t i = first; i < first + n; i++)
		check_page(r, i);
	CHECK(!mprotect(page_at(r, first), n * PAGE, PROT_NONE));
	CHECK(!mprotect(page_at(r, first), n * PAGE, PROT_READ | PROT_WRITE));
}

/* True if [start, end) is one mapping: mremap() takes no more, and may stop halfway. */
static bool is_one_mapping(const char *start, const char *end)
{
	char buf[16384], *line, *next;
	int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	bool one = false;
	ssize_t n;

	CHECK(fd >= 0);
	/* Each read() gives whole lines. */
	while (!one && (n = read(fd, buf, sizeof(buf) - 1)) > 0) {
		buf[n] = '\0';
		for (line = buf; !one && (next = strchr(line, '\n')); line = next + 1) {
			char *dash;
			uintptr_t from = strtoul(line, &dash, 16);

			one = from <= (uintptr_t)start &&
			      strtoul(dash + 1, NULL, 16) >= (uintptr_t)end;
		}
	}
	close(fd);
	return one;
}

/* The region as one mapping again, of all pages, by copying it to another place. */
static void rebuild(struct region *r)
{
	char *base = map_anonymous((size_t)nr_pages * PAGE);

	settle_freed(r);
	memcpy(base, r->base, (size_t)r->pages * PAGE);
	CHECK(!munmap(r->base, (size_t)r->pages * PAGE));
	r->base = base;
	r->pages = nr_pages;
	all_inherited(r);
}

static void op_move(struct region *r)
{
	size_t bytes = (size_t)r->pages * PAGE;
	char *to;

	if (!is_one_mapping(r->base, r->base + bytes)) {
		rebuild(r);
		return;
	}
	to = map_over(NULL, bytes, PROT_NONE);
	CHECK(to != MAP_FAILED);
	CHECK(mremap(r->base, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
	r->base = to;
}

/* A few pages over others of the same region. */
static void op_move_part(struct region *r)
{
	uint32_t from, n = random_run(r, &from), to = random_below(r, r->pages - n + 1);

	if ((to < from + n && from < to + n) ||
	    !is_one_mapping(page_at(r, from), page_at(r, from + n)))
		return;
	CHECK(mremap(page_at(r, from), n * PAGE, n * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
		     page_at(r, to)) == page_at(r, to));
	memcpy(&r->model[to], &r->model[from], n * sizeof(*r->model));
	memcpy(&r->history[to], &r->history[from], n * sizeof(*r->history));
	fill_hole(r, from, n);
}

static void op_shrink_and_grow(struct region *r)
{
	uint32_t keep = nr_pages / 2;
	char *p;

	CHECK(!munmap(page_at(r, keep), (size_t)(nr_pages - keep) * PAGE));
	forget(r, keep, nr_pages - keep);
	p = mremap(r->base, (size_t)keep * PAGE, (size_t)nr_pages * PAGE, MREMAP_MAYMOVE);
	if (p == MAP_FAILED) {
		CHECK(errno == EFAULT); /* several mappings: nothing has changed */
		r->pages = keep;
		rebuild(r);
		return;
	}
	r->base = p;
	for (uint32_t i = keep; i < nr_pages; i++)
		r->model[i].inherited = r->model[0].inherited;
}

/* The pages go elsewhere and come back; what they leave behind reads as zeros. */
static void op_move_and_keep(struct region *r)
{
	uint32_t first, n = random_run(r, &first);
	size_t bytes = n * PAGE;
	char *from = page_at(r, first), *to;

	if (!is_one_mapping(from, from + bytes))
		return;
	to = mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	CHECK(to != MAP_FAILED && to != from);
	for (uint32_t i = 0; i < n; i++)
		if (first_wrong((uint64_t *)(from + i * PAGE), 0) != WORDS &&
		    atomic_fetch_add(&nr_bad, 1) < REPORTS_MAX)
			dprintf(STDERR_FILENO, "process %d, thread %u, depth %u: page %u at %p is left behind with %#lx\n",
				(int)getpid(), r->thread, r->depth, first + i, (void *)(from + i * PAGE),
				*(unsigned long *)(from + i * PAGE));
	if (random_below(r, 2))
		memset(from, 0x5a, bytes);
	CHECK(mremap(to, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, from) == from);
	for (uint32_t i = first; i < first + n; i++)
		check_page(r, i);
}

/* Pages are there before they are needed, or are to be huge, and hold what they held. */
static void op_advise(struct region *r)
{
	static const int advice[] = { MADV_POPULATE_WRITE, MADV_POPULATE_READ, MADV_HUGEPAGE,
				      MADV_NOHUGEPAGE, MADV_COLD, MADV_PAGEOUT };
	uint32_t first, n = random_run(r, &first);
	int what = advice[random_below(r, sizeof(advice) / sizeof(*advice))];

	if (what == MADV_HUGEPAGE || what == MADV_NOHUGEPAGE) {
		/* A kernel may have been built without huge pages. */
		CHECK(!madvise(r->base, (size_t)r->pages * PAGE, what) || errno == EINVAL);
	} else {
		CHECK(!madvise(page_at(r, first), n * PAGE, what));
	}
	for (uint32_t i = first; i < first + n; i++)
		check_page(r, i);
}

static void op_advise_fork(struct region *r)
{
	static const struct {
		int advice;
		enum inherited becomes;
	} way[] = { { MADV_WIPEONFORK, WIPED }, { MADV_DONTFORK, LEFT_OUT } };
	uint32_t first, n = random_run(r, &first), pick = random_below(r, 3);
	char *at = page_at(r, first);
	uint8_t becomes = INHERITED;

	CHECK(!madvise(at, n * PAGE, MADV_KEEPONFORK));
	CHECK(!madvise(at, n * PAGE, MADV_DOFORK));
	if (pick < 2) {
		CHECK(!madvise(at, n * PAGE, way[pick].advice));
		becomes = (uint8_t)way[pick].becomes;
	}
	for (uint32_t i = first; i < first + n; i++)
		r->model[i].inherited = becomes;
}

/* --- direct I/O, pipes and fixed buffers --------------------------------------------------- */

static void open_file(struct region *r)
{
	memset(&r->file, 0, sizeof(r->file));
	r->file.fd = -1;
	if (!folder)
		return;
	r->file.fd = open(folder, O_RDWR | O_TMPFILE | O_DIRECT | O_CLOEXEC, 0600);
	CHECK(r->file.fd >= 0);
	CHECK(!ftruncate(r->file.fd, FILE_PAGES * PAGE));
}

static void op_direct_write(struct region *r)
{
	uint32_t first, n = random_run(r, &first), at = random_below(r, FILE_PAGES - n + 1);

	if (r->file.fd < 0)
		return;
	settle(r, first, n);
	CHECK(pwrite(r->file.fd, page_at(r, first), n * PAGE, (off_t)(at * PAGE)) == (ssize_t)(n * PAGE));
	for (uint32_t i = 0; i < n; i++)
		r->file.tag[at + i] = r->model[first + i].tag;
}

static void op_direct_read(struct region *r)
{
	uint32_t first, n = random_run(r, &first), at = random_below(r, FILE_PAGES - n + 1);

	if (r->file.fd < 0)
		return;
	CHECK(pread(r->file.fd, page_at(r, first), n * PAGE, (off_t)(at * PAGE)) == (ssize_t)(n * PAGE));
	for (uint32_t i = 0; i < n; i++) {
		must_hold(r, first + i, r->file.tag[at + i]);
		check_page(r, first + i);
	}
}

/* The pipe holds the pages themselves while others of the region are needed. */
static void op_vmsplice(struct region *r)
{
	uint32_t from = random_below(r, r->pages - PIPE_PAGES), n = 1 + random_below(r, PIPE_PAGES);
	uint32_t to = random_below(r, r->pages - n + 1), looks = random_below(r, 2 * RUN_MAX);
	struct iovec v = { .iov_base = page_at(r, from), .iov_len = n * PAGE };
	uint64_t tag[PIPE_PAGES];
	int ends[2];

	settle(r, from, n);
	for (uint32_t i = 0; i < n; i++)
		tag[i] = r->model[from + i].tag;
	note(r, from, n);
	CHECK(!pipe2(ends, O_CLOEXEC));
	CHECK(vmsplice(ends[1], &v, 1, 0) == (ssize_t)v.iov_len);
	for (uint32_t i = 0; i < looks; i++)
		check_page(r, random_below(r, r->pages));
	/* Over themselves they could be read while they are written. */
	if (to < from + n && from < to + n)
		to = from >= n ? from - n : from + n;
	note(r, to, n);
	for (uint32_t i = 0; i < n; i++) {
		for (size_t done = 0; done < PAGE;) {
			ssize_t got = read(ends[0], page_at(r, to + i) + done, PAGE - done);

			CHECK(got > 0);
			done += (size_t)got;
		}
		must_hold(r, to + i, tag[i]);
		check_page(r, to + i);
	}
	close(ends[0]);
	close(ends[1]);
}

/* Where the system refuses io_uring that is said once. */
static void open_ring(struct region *r)
{
	int err = folder ? io_uring_queue_init(8, &r->ring, 0) : -ENODEV;

	if (folder && err < 0 && r->thread == 0)
		fprintf(stderr, "io_uring is refused (%s): no fixed buffers\n", strerror(-err));
	if (err < 0)
		return;
	r->fixed = calloc(1, sizeof(*r->fixed));
	CHECK(r->fixed);
	r->fixed->model = calloc(FIXED_PAGES, sizeof(*r->fixed->model));
	CHECK(r->fixed->model);
	r->fixed->base = map_anonymous(FIXED_PAGES * PAGE);
	r->fixed->pages = FIXED_PAGES;
	r->fixed->thread = r->thread;
}

static void fixed_io(struct region *r, bool write, uint32_t page, uint32_t at)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&r->ring);
	int buffer = (int)(page / (FIXED_PAGES / FIXED_BUFFERS));
	struct io_uring_cqe *cqe;

	CHECK(sqe);
	if (write)
		io_uring_prep_write_fixed(sqe, r->file.fd, page_at(r->fixed, page), PAGE, at * PAGE, buffer);
	else
		io_uring_prep_read_fixed(sqe, r->file.fd, page_at(r->fixed, page), PAGE, at * PAGE, buffer);
	CHECK(io_uring_submit_and_wait(&r->ring, 1) == 1);
	CHECK(io_uring_wait_cqe(&r->ring, &cqe) == 0);
	CHECK(cqe->res == (int)PAGE);
	io_uring_cqe_seen(&r->ring, cqe);
}

/*
 * The device's view of a registered page and the program's are one: what the program writes is what
 * goes to the file, and what the device reads is what the program sees.
 */
static void op_fixed(struct region *r)
{
	struct region *f = r->fixed;

	if (!f)
		return;
	f->next_tag = r->next_tag;
	if (!r->registered || random_below(r, 16) == 0) {
		struct iovec v[FIXED_BUFFERS];
		size_t bytes = FIXED_PAGES / FIXED_BUFFERS * PAGE;

		for (uint32_t i = 0; i < FIXED_BUFFERS; i++)
			v[i] = (struct iovec){ .iov_base = f->base + i * bytes, .iov_len = bytes };
		check_all(f);
		if (r->registered)
			CHECK(io_uring_unregister_buffers(&r->ring) == 0);
		else
			CHECK(io_uring_register_buffers(&r->ring, v, FIXED_BUFFERS) == 0);
		r->registered = !r->registered;
	}
	for (uint32_t k = 0; k < 4; k++) {
		uint32_t page = random_below(r, FIXED_PAGES), at = random_below(r, FILE_PAGES);

		check_page(f, page);
		if (random_below(r, 2))
			write_page(f, page);
		if (!r->registered)
			continue;
		fixed_io(r, true, page, at);
		r->file.tag[at] = f->model[page].tag;
		page = random_below(r, FIXED_PAGES);
		fixed_io(r, false, page, at);
		must_hold(f, page, r->file.tag[at]);
		check_page(f, page);
	}
	r->next_tag = f->next_tag;
}

/* --- threads and processes ----------------------------------------------------------------- */

/* Of the region it only reads: the one who writes to it waits for this thread. */
static void *churn_main(void *arg)
{
	struct region *r = arg, own = *r;
	uint64_t *heap = malloc(8 * PAGE);

	CHECK(heap);
	own.random = r->random + (uintptr_t)heap;
	for (uint32_t i = 0; i < RUN_MAX; i++) {
		uint32_t at = random_below(&own, own.pages);

		if (!own.model[at].freed)
			check_page(&own, at);
		heap[i * 8] = at;
	}
	free(heap);
	return r;
}

static void op_threads(struct region *r)
{
	pthread_t thread[CHURN_THREADS];

	for (uint32_t i = 0; i < CHURN_THREADS; i++)
		CHECK(!pthread_create(&thread[i], NULL, churn_main, r));
	for (uint32_t i = 0; i < CHURN_THREADS; i++) {
		void *ret;

		CHECK(!pthread_join(thread[i], &ret) && ret == r);
	}
}

static void op_exec(struct region *r)
{
	char *argv[] = { "torture", "child", NULL };
	int status;
	pid_t pid = vfork();

	CHECK(pid >= 0);
	if (pid == 0) {
		execv("/proc/self/exe", argv);
		_exit(127);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	if (status != 0 && atomic_fetch_add(&nr_bad, 1) < REPORTS_MAX)
		dprintf(STDERR_FILENO, "process %d: what it has executed ended with status %#x\n",
			(int)getpid(), (unsigned)status);
	op_sweep(r);
}

/* What op_exec() executes. */
static int executed(void)
{
	char *p = map_anonymous(32 * PAGE);

	fill(p, 32 * PAGE, 1);
	check_filled(p, 32 * PAGE, 1);
	return 0;
}

static void child(struct region *r);

static void op_fork(struct region *r)
{
	pid_t pid;
	int status;

	if (r->depth == GENERATIONS)
		return;
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0)
		child(r);
	atomic_fetch_add(&nr_forks, 1);
	if (random_below(r, 2))
		for (uint32_t i = 0; i < 4 * RUN_MAX; i++)
			write_page(r, random_below(r, r->pages));
	CHECK(waitpid(pid, &status, 0) == pid);
	if (status != 0) {
		dprintf(STDERR_FILENO, "process %d: its child %d ended with status %#x\n",
			(int)getpid(), (int)pid, (unsigned)status);
		atomic_fetch_add(&nr_bad, 1);
	}
	check_all(r);
}

#define OPERATION(name, weight) { op_##name, #name, weight }
static const struct {
	void (*run)(struct region *r);
	const char *name;
	uint32_t weight;
} operations[] = {
	OPERATION(check, 430),	    OPERATION(write, 430),	  OPERATION(sweep, 60),
	OPERATION(discard, 12),	    OPERATION(free, 6),		  OPERATION(map_over, 12),
	OPERATION(unmap, 10),	    OPERATION(protect, 12),	  OPERATION(move, 10),
	OPERATION(move_part, 6),    OPERATION(shrink_and_grow, 10), OPERATION(fork, 2),
	OPERATION(move_and_keep, 6), OPERATION(advise, 10),	  OPERATION(advise_fork, 4),
	OPERATION(direct_write, 4), OPERATION(direct_read, 4),	  OPERATION(vmsplice, 4),
	OPERATION(fixed, 4),	    OPERATION(threads, 3),	  OPERATION(exec, 1),
};
#define NR_OPERATIONS (sizeof(operations) / sizeof(*operations))

static const char *operation_name(uint64_t number)
{
	return number < NR_OPERATIONS ? operations[number].name : "(begin)";
}

static void one_operation(struct region *r)
{
	uint32_t total = 0, pick;

	for (size_t i = 0; i < NR_OPERATIONS; i++)
		total += operations[i].weight;
	pick = random_below(r, total);
	for (size_t i = 0;; i++) {
		if (pick < operations[i].weight) {
			r->call = ((r->call >> 8) + 1) << 8 | i;
			operations[i].run(r);
			break;
		}
		pick -= operations[i].weight;
	}
	atomic_fetch_add_explicit(&nr_calls, 1, memory_order_relaxed);
}

/* To another place, where the agent's memory does not lie in what was left out. */
static void move_what_is_there(struct region *r)
{
	char *base = map_anonymous((size_t)r->pages * PAGE);

	for (uint32_t i = 0; i < r->pages; i++) {
		if (r->model[i].inherited == LEFT_OUT) {
			must_hold(r, i, 0);
			continue;
		}
		settle(r, i, 1);
		memcpy(base + (size_t)i * PAGE, page_at(r, i), PAGE);
	}
	r->base = base;
	all_inherited(r);
}

/* The region as this child has it. */
static void inherit(struct region *r)
{
	for (uint32_t i = 0; i < r->pages; i++)
		if (r->model[i].inherited == WIPED)
			must_hold(r, i, 0);
	for (uint32_t i = 0; i < r->pages; i++) {
		if (r->model[i].inherited != LEFT_OUT)
			continue;
		if (mmap(page_at(r, i), PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != page_at(r, i)) {
			CHECK(errno == EEXIST);
			move_what_is_there(r);
			return;
		}
		forget(r, i, 1);
	}
}

/* The one thread of a forked child, with the region of the thread that forked. */
static void child(struct region *r)
{
	atomic_store(&nr_bad, 0);
	r->depth++;
	r->next_tag |= TAG_CHILD;
	r->random += r->depth;
	inherit(r);
	open_file(r);
	if (r->fixed) {
		r->fixed->depth = r->depth;
		check_all(r->fixed);
		r->fixed = NULL; /* the ring is the parent's */
	}
	check_all(r);
	for (uint32_t i = r->depth; i < r->pages; i += 3)
		write_page(r, i);
	for (uint32_t i = 0; i < 100; i++)
		one_operation(r);
	if (random_below(r, 4) == 0)
		op_fork(r);
	check_all(r);
	_exit(atomic_load(&nr_bad) != 0);
}

static void *thread_main(void *arg)
{
	struct region *r = arg;

	while (!atomic_load_explicit(&stop, memory_order_relaxed))
		one_operation(r);
	check_all(r);
	return NULL;
}

int main(int argc, char **argv)
{
	static struct region region[THREADS_MAX];
	pthread_t thread[THREADS_MAX];
	uint32_t nr_threads;
	uint64_t seed;
	int seconds;

	if (argc == 2)
		return executed();
	CHECK(argc == 5 || argc == 6);
	seconds = atoi(argv[1]);
	nr_threads = (uint32_t)atoi(argv[2]);
	nr_pages = (uint32_t)atoi(argv[3]);
	seed = strtoull(argv[4], NULL, 0);
	folder = argv[5];
	CHECK(seconds > 0 && nr_threads > 0 && nr_threads <= THREADS_MAX && nr_pages >= PAGES_MIN);
	for (uint32_t i = 0; i < nr_threads; i++) {
		struct region *r = &region[i];

		r->base = map_anonymous((size_t)nr_pages * PAGE);
		r->model = calloc(nr_pages, sizeof(*r->model));
		r->history = calloc(nr_pages, sizeof(*r->history));
		CHECK(r->model && r->history);
		memset(r->history, 0xff, nr_pages * sizeof(*r->history));
		r->pages = nr_pages;
		r->thread = i;
		r->random = seed * 2654435761u + i;
		r->next_tag = (uint64_t)(i + 1) << 56 | 1;
		open_file(r);
		open_ring(r);
		CHECK(!pthread_create(&thread[i], NULL, thread_main, r));
	}
	sleep((unsigned)seconds);
	atomic_store(&stop, true);
	for (uint32_t i = 0; i < nr_threads; i++)
		CHECK(!pthread_join(thread[i], NULL));
	printf("seed %#lx: %lu calls, %lu pages checked, %lu forks, %lu wrong\n", (unsigned long)seed,
	       (unsigned long)nr_calls, (unsigned long)nr_checks, (unsigned long)nr_forks,
	       (unsigned long)nr_bad);
	if (nr_bad)
		return 1;
	puts("ok");
	return 0;
}

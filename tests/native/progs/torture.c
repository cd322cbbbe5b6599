/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * torture SECONDS THREADS PAGES SEED: each thread does to a region of its own, in random order,
 * everything that programs do to their mappings, and knows for each page what it must hold.
 * Every byte of a page is checked.  Children are forked in the middle of it, check all that they
 * inherited, write a part, and fork once more.  Status 1 if any byte was wrong.
 *
 * What stands in a page names the write that put it there, so that a wrong page tells whose
 * content it shows: "tag" 0xTTcccccccccccccc is thread TT's write number c; a child's have bit 55.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "check.h"

#define WORDS	      (PAGE / 8)
#define TAG_CHILD     (1ull << 55)
#define THREADS_MAX   16
#define GENERATIONS   2	 /* of forked children below the program */
#define RUN_MAX	      64 /* pages that one call acts on */
#define PAGES_MIN     (2 * RUN_MAX)
#define REPORTS_MAX   10

/* What a page must hold: 0 zeros, else what write_page() made of the tag. */
struct model {
	uint64_t tag;
	bool freed; /* MADV_FREE: zeros are right too, from then on or later */
};

struct region {
	char *base;
	struct model *model; /* in managed memory as well */
	uint32_t pages, thread, depth;
	uint64_t random, next_tag;
};

static uint32_t nr_pages;
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

static void write_page(struct region *r, uint32_t i)
{
	volatile uint64_t *p = (volatile uint64_t *)page_at(r, i);
	uint64_t tag = r->next_tag++;

	for (uint32_t j = 0; j < WORDS; j++)
		p[j] = word_of(tag, j);
	r->model[i] = (struct model){ .tag = tag };
}

/* The first word that differs from what the tag makes, or WORDS. */
static uint32_t first_wrong(const volatile uint64_t *p, uint64_t tag)
{
	for (uint32_t j = 0; j < WORDS; j++)
		if (p[j] != word_of(tag, j))
			return j;
	return WORDS;
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
		*m = (struct model){ 0 };
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
	*m = (struct model){ .tag = r->next_tag };
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
	return n;
}

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
	write_page(r, random_below(r, r->pages));
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
	forget(r, first, n);
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
static void settle_freed(struct region *r)
{
	for (uint32_t i = 0; i < r->pages; i++) {
		if (!r->model[i].freed)
			continue;
		check_page(r, i);
		if (r->model[i].freed && r->model[i].tag)
			write_page(r, i);
		r->model[i].freed = false;
	}
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
	} else {
		r->base = p;
	}
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

static const struct {
	void (*run)(struct region *r);
	uint32_t weight;
} operations[] = {
	{ op_check, 430 }, { op_write, 430 },	 { op_sweep, 60 }, { op_discard, 12 },
	{ op_free, 6 },	   { op_map_over, 12 },	 { op_unmap, 10 }, { op_protect, 12 },
	{ op_move, 10 },   { op_move_part, 6 },	 { op_shrink_and_grow, 10 },
	{ op_fork, 2 },
};

static void one_operation(struct region *r)
{
	uint32_t total = 0, pick;

	for (size_t i = 0; i < sizeof(operations) / sizeof(*operations); i++)
		total += operations[i].weight;
	pick = random_below(r, total);
	for (size_t i = 0;; i++) {
		if (pick < operations[i].weight) {
			operations[i].run(r);
			break;
		}
		pick -= operations[i].weight;
	}
	atomic_fetch_add_explicit(&nr_calls, 1, memory_order_relaxed);
}

/* The one thread of a forked child, with the region of the thread that forked. */
static void child(struct region *r)
{
	atomic_store(&nr_bad, 0);
	r->depth++;
	r->next_tag |= TAG_CHILD;
	r->random += r->depth;
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

	CHECK(argc == 5);
	seconds = atoi(argv[1]);
	nr_threads = (uint32_t)atoi(argv[2]);
	nr_pages = (uint32_t)atoi(argv[3]);
	seed = strtoull(argv[4], NULL, 0);
	CHECK(seconds > 0 && nr_threads > 0 && nr_threads <= THREADS_MAX && nr_pages >= PAGES_MIN);
	for (uint32_t i = 0; i < nr_threads; i++) {
		struct region *r = &region[i];

		r->base = map_anonymous((size_t)nr_pages * PAGE);
		r->model = calloc(nr_pages, sizeof(*r->model));
		CHECK(r->model);
		r->pages = nr_pages;
		r->thread = i;
		r->random = seed * 2654435761u + i;
		r->next_tag = (uint64_t)(i + 1) << 56 | 1;
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

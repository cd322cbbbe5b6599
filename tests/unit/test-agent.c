/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* links: usmd/lib/fields.c */
/*
 * The agent's MOVE over a kernel that answers as Linux 6.18 does: what has left the program must
 * count as moved, with its content, whatever the answer was.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "usmd/tagger/agent.h"
#include "usmd/tagger/sys.h"

static long fake_sys6(long nr, long a, long b, long c, long d, long e, long f);
#define sys6 fake_sys6
#define sys_madvise(addr, bytes, advice) \
	fake_sys6(SYS_madvise, (long)(addr), (long)(bytes), advice, 0, 0, 0)
#include "usmd/tagger/agent-ops.c"

#define PAGES 16u

/* What the agent needs besides, and this test does not. */
enum usm_agent_state usm_agent_watch(struct usm_agent *a)
{
	(void)a;
	return USM_AGENT_RUNNING;
}

void usm_link_start(struct usm_agent *a)
{
	(void)a;
}

void usm_agent_lazyfree(struct usm_agent *a, uint32_t req)
{
	(void)a;
	(void)req;
}

/* Three areas of PAGES pages: the program's, staging and trash. */
static uint8_t *area[3];
static bool present[3][PAGES];
/* The page of the program at which the kernel has to look again, and what it says afterwards. */
static int stumbles_at;
static long says;

static bool *page_at(uint64_t addr, uint8_t **ret)
{
	for (unsigned k = 0; k < 3; k++) {
		uint64_t off = addr - (uint64_t)area[k];

		if (off >= PAGES * USM_PAGE_SIZE)
			continue;
		*ret = area[k] + off;
		return &present[k][off / USM_PAGE_SIZE];
	}
	fail_msg("not an address of this test: %#lx", (unsigned long)addr);
	return NULL;
}

static long move_one(uint64_t dst, uint64_t src)
{
	uint8_t *d, *s;
	bool *to = page_at(dst, &d), *from = page_at(src, &s);

	if (*to)
		return -EEXIST;
	if (!*from)
		return -ENOENT;
	memcpy(d, s, USM_PAGE_SIZE);
	memset(s, 0, USM_PAGE_SIZE);
	*to = true;
	*from = false;
	return 0;
}

static struct usm_agent agent;
static struct usm_agent_ops *ops;
/* The daemon has opened the gate meanwhile, and reads. */
static bool gate_opened;

static long move_pages(struct uffdio_move *m)
{
	long r = 0;
	uint64_t off = 0;

	if (gate_opened)
		atomic_store(&ops->gate, USM_GATE_READER);
	gate_opened = false;

	for (; off < m->len && r == 0; off += USM_PAGE_SIZE) {
		if (stumbles_at >= 0 && m->src + off == (uint64_t)area[0] + (unsigned)stumbles_at * USM_PAGE_SIZE) {
			/* The rest moves at the second look, and none of it is counted. */
			stumbles_at = -1;
			for (uint64_t o = off; o < m->len; o += USM_PAGE_SIZE)
				assert_int_equal(move_one(m->dst + o, m->src + o), 0);
			r = says;
			break;
		}
		r = move_one(m->dst + off, m->src + off);
		if (r < 0)
			break;
	}
	m->move = off ? (int64_t)off : r;
	return off == m->len ? 0 : off ? -EAGAIN : r;
}

static long fake_sys6(long nr, long a, long b, long c, long d, long e, long f)
{
	uint8_t *p;

	(void)a;
	(void)d;
	(void)e;
	(void)f;
	if (nr == SYS_ioctl && (unsigned long)b == UFFDIO_MOVE)
		return move_pages((struct uffdio_move *)c);
	if (nr == SYS_mincore) {
		for (long i = 0; i < b / (long)USM_PAGE_SIZE; i++)
			((uint8_t *)c)[i] = *page_at((uint64_t)a + (uint64_t)i * USM_PAGE_SIZE, &p);
		return 0;
	}
	if (nr == SYS_madvise && c == MADV_DONTNEED) {
		for (long i = 0; i < b / (long)USM_PAGE_SIZE; i++)
			*page_at((uint64_t)a + (uint64_t)i * USM_PAGE_SIZE, &p) = false;
		return 0;
	}
	fail_msg("unexpected system call %ld", nr);
	return -ENOSYS;
}

static uint8_t content(unsigned i)
{
	return (uint8_t)(i + 1);
}

/* An operation over all pages, as two runs: from first_run on, then those before. */
static void begin_move(unsigned first_run)
{
	ops = mmap(NULL, USM_OPS_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		   -1, 0);
	assert_true(ops != MAP_FAILED);
	for (unsigned k = 0; k < 3; k++) {
		area[k] = mmap(NULL, PAGES * USM_PAGE_SIZE, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		assert_true(area[k] != MAP_FAILED);
		memset(present[k], k == 0, sizeof(present[k]));
	}
	agent = (struct usm_agent){.ops = ops};
	agent.staging = (uint64_t)area[1];
	agent.trash = (uint64_t)area[2];
	ops->kind = USM_OPS_MOVE;
	ops->n = 0;
	for (unsigned i = 0; i < PAGES; i++) {
		memset(area[0] + i * USM_PAGE_SIZE, content(i), USM_PAGE_SIZE);
		ops->addr[ops->n++] =
			(uint64_t)area[0] + (i + first_run) % PAGES * USM_PAGE_SIZE;
	}
	stumbles_at = -1;
	atomic_store(&ops->req, 1);
}

static void end_move(void)
{
	for (unsigned k = 0; k < 3; k++)
		munmap(area[k], PAGES * USM_PAGE_SIZE);
	munmap(ops, USM_OPS_BYTES);
}

static void run_move(int stumble, long answer, unsigned first_run)
{
	begin_move(first_run);
	stumbles_at = stumble;
	says = answer;
	usm_agent_work(&agent);

	assert_int_equal(atomic_load(&ops->done), 1);
	for (unsigned i = 0; i < PAGES; i++) {
		unsigned page = (i + first_run) % PAGES;
		const uint8_t *data = (uint8_t *)ops + USM_OPS_DATA + i * USM_PAGE_SIZE;

		assert_false(present[0][page]);
		assert_false(present[1][i]);
		assert_int_equal(atomic_load(&ops->res[i]), 0);
		assert_int_equal(data[0], content(page));
		assert_int_equal(data[USM_PAGE_SIZE - 1], content(page));
	}
	end_move();
}

static void test_all_move(void **state)
{
	(void)state;
	run_move(-1, 0, 0);
	run_move(-1, 0, 5);
}

/* At each page, with what the kernel says of it, and with what a fork() makes of that. */
static void test_moved_without_a_word(void **state)
{
	(void)state;
	for (int page = 0; page < (int)PAGES; page++)
		for (unsigned first = 0; first < PAGES; first += 5) {
			run_move(page, -EEXIST, first);
			run_move(page, -EAGAIN, first);
		}
}

/* A page of zeros that somebody's look has left in staging does not pass for one that the program
 * has not got any more, nor keeps another out. */
static void test_staging_is_empty(void **state)
{
	(void)state;
	begin_move(0);
	present[0][3] = false;
	present[1][3] = present[1][7] = true;
	usm_agent_work(&agent);
	assert_int_equal(atomic_load(&ops->res[3]), -ENOENT);
	assert_int_equal(atomic_load(&ops->res[7]), 0);
	assert_int_equal(((uint8_t *)ops + USM_OPS_DATA)[7 * USM_PAGE_SIZE], content(7));
	end_move();
}

static void test_gate_is_the_readers(void **state)
{
	(void)state;
	begin_move(0);
	gate_opened = true;
	usm_agent_work(&agent);
	assert_int_equal(atomic_load(&ops->gate), USM_GATE_READER);
	end_move();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_gate_is_the_readers),
		cmocka_unit_test(test_staging_is_empty),
		cmocka_unit_test(test_all_move),
		cmocka_unit_test(test_moved_without_a_word),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

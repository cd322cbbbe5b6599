/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* links: usmd/lib/fields.c */
/*
 * The agent's link, when nobody takes the process back while the agent waits for a daemon: it answers
 * what a daemon would have answered, with a real userfaultfd.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "usmd/tagger/agent-link.c"

#define PAGES 8u

static struct usm_agent *agent;
static char *area;
static _Atomic bool killed;
static bool swapped;

int usm_agent_rejoin(struct usm_agent *a)
{
	(void)a;
	return -1;
}

bool usm_agent_has_swapped(struct usm_agent *a)
{
	(void)a;
	return swapped;
}

void usm_agent_kill_program(struct usm_agent *a)
{
	struct uffdio_zeropage z = { .range = { (uint64_t)area, PAGES * USM_PAGE_SIZE } };

	killed = true;
	/* What it would have ended. */
	for (unsigned i = 0; i < PAGES; i++, z.range.start += USM_PAGE_SIZE, z.range.len = USM_PAGE_SIZE)
		ioctl(a->u1, UFFDIO_ZEROPAGE, &z);
	pthread_exit(NULL);
}

long usm_thread_start(unsigned long flags, char *stack_end, void (*run)(struct usm_agent *a),
		      struct usm_agent *a)
{
	(void)flags;
	(void)stack_end;
	(void)run;
	(void)a;
	return -EAGAIN;
}

static int setup(void **state)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_PAGEFAULT_FLAG_WP,
	};
	struct uffdio_register reg;

	(void)state;
	agent = calloc(1, sizeof(*agent));
	agent->ops = mmap(NULL, USM_OPS_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(agent->ops, MAP_FAILED);
	area = mmap(NULL, PAGES * USM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		    -1, 0);
	assert_ptr_not_equal(area, MAP_FAILED);
	agent->u1 = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	assert_true(agent->u1 >= 0);
	assert_int_equal(ioctl(agent->u1, UFFDIO_API, &api), 0);
	reg = (struct uffdio_register){
		.range = { (uint64_t)area, PAGES * USM_PAGE_SIZE },
		.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
	};
	assert_int_equal(ioctl(agent->u1, UFFDIO_REGISTER, &reg), 0);
	atomic_store(&agent->life, USM_LIFE_MANAGED);
	agent->link_fd = (int)syscall(SYS_eventfd2, 0, EFD_NONBLOCK);
	assert_true(agent->link_fd >= 0);
	killed = swapped = false;
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	close(agent->u1);
	close(agent->link_fd);
	munmap(area, PAGES * USM_PAGE_SIZE);
	munmap(agent->ops, USM_OPS_BYTES);
	free(agent);
	return 0;
}

static void *run_link(void *userdata)
{
	give_up(userdata);
	return NULL;
}

static pthread_t link_of(void)
{
	pthread_t t;

	assert_int_equal(pthread_create(&t, NULL, run_link, agent), 0);
	return t;
}

static void end_link(pthread_t t)
{
	atomic_store(&agent->life, USM_LIFE_OVER);
	assert_int_equal(pthread_join(t, NULL), 0);
}

static char first_of(unsigned page)
{
	return *(volatile char *)(area + page * USM_PAGE_SIZE);
}

static void operation_on(unsigned page, int32_t result)
{
	uint32_t i = agent->n++;

	agent->addr[i] = (uint64_t)area + page * USM_PAGE_SIZE;
	atomic_store(&agent->ops->res[i], result);
	memset((char *)agent->ops + USM_OPS_DATA + i * USM_PAGE_SIZE, 'a' + (int)page, USM_PAGE_SIZE);
	atomic_store(&agent->can_wait, true);
}

/* What has not left is what the kernel says it is; what has is in the data area. */
static void test_missing(void **state)
{
	pthread_t t;

	(void)state;
	operation_on(1, 0);
	operation_on(2, -EBUSY);
	operation_on(3, 0);
	t = link_of();
	assert_int_equal(first_of(1), 'a' + 1);
	assert_int_equal(first_of(2), 0);
	assert_int_equal(first_of(3), 'a' + 3);
	assert_int_equal(first_of(0), 0);
	end_link(t);
	assert_true(agent->given_up);
	assert_false(killed);
}

static void *touch(void *userdata)
{
	return (void *)(uintptr_t)first_of((unsigned)(uintptr_t)userdata);
}

/* What an operation that is over has taken, the agent puts back: nobody answers before that. */
static void test_nothing_under_way(void **state)
{
	struct uffdio_copy c = { .dst = (uint64_t)area + USM_PAGE_SIZE, .len = USM_PAGE_SIZE };
	pthread_t waits, t;
	void *value;

	(void)state;
	operation_on(1, 0);
	atomic_store(&agent->can_wait, false);
	t = link_of();
	assert_int_equal(pthread_create(&waits, NULL, touch, (void *)1), 0);
	usleep(5 * LOOK_USEC);
	c.src = (uint64_t)agent->ops + USM_OPS_DATA;
	assert_int_equal(ioctl(agent->u1, UFFDIO_COPY, &c), 0);
	assert_int_equal(pthread_join(waits, &value), 0);
	assert_int_equal((uintptr_t)value, 'a' + 1);
	end_link(t);
}

static void test_unknown_page(void **state)
{
	pthread_t t;

	(void)state;
	operation_on(2, -EINPROGRESS);
	t = link_of();
	(void)first_of(2);
	end_link(t);
	assert_true(killed);
}

static void test_swapped_pages(void **state)
{
	pthread_t t;

	(void)state;
	swapped = true;
	t = link_of();
	end_link(t);
	assert_true(killed);
	assert_false(agent->given_up);
}

/* The two waits that an agent comes into by itself. */
static void test_what_the_agent_waits_for(void **state)
{
	struct uffdio_writeprotect wp = {
		.range = { (uint64_t)area, USM_PAGE_SIZE },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	pthread_t t;

	(void)state;
	atomic_store(&agent->can_wait, true);
	t = link_of();
	*(volatile char *)area = 'x';
	assert_int_equal(ioctl(agent->u1, UFFDIO_WRITEPROTECT, &wp), 0);
	assert_int_equal(madvise(area, USM_PAGE_SIZE, MADV_POPULATE_WRITE), 0);
	assert_int_equal(first_of(0), 'x');
	assert_int_equal(madvise(area, USM_PAGE_SIZE, MADV_FREE), 0);
	end_link(t);
}

static void test_fault_read_by_the_dead(void **state)
{
	struct pollfd p = { .fd = agent->u1, .events = POLLIN };
	struct uffd_msg m;
	pthread_t waits, t;
	void *value;

	(void)state;
	operation_on(4, 0);
	assert_int_equal(pthread_create(&waits, NULL, touch, (void *)4), 0);
	assert_int_equal(poll(&p, 1, 10000), 1);
	assert_int_equal(read(agent->u1, &m, sizeof(m)), sizeof(m));
	t = link_of();
	assert_int_equal(pthread_join(waits, &value), 0);
	assert_int_equal((uintptr_t)value, 'a' + 4);
	end_link(t);
}

/* The end of file is the agent's to find, where it does not wait: there may be a RELEASE before it. */
static void *agent_reads(void *userdata)
{
	struct usm_agent *a = userdata;

	usleep(3 * LOOK_USEC);
	atomic_store(&a->life, USM_LIFE_OVER);
	return NULL;
}

static void test_release_before_the_end(void **state)
{
	pthread_t t;

	(void)state;
	assert_int_equal(pthread_create(&t, NULL, agent_reads, agent), 0);
	assert_false(needs_daemon(agent));
	assert_int_equal(pthread_join(t, NULL), 0);
	atomic_store(&agent->life, USM_LIFE_MANAGED);
	atomic_store(&agent->can_wait, true);
	assert_true(needs_daemon(agent));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_missing),
		TEST(test_nothing_under_way),
		TEST(test_unknown_page),
		TEST(test_swapped_pages),
		TEST(test_what_the_agent_waits_for),
		TEST(test_fault_read_by_the_dead),
		TEST(test_release_before_the_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

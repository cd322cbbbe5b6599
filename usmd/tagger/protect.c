/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a fork() is about to share is write-protected first (ops->protect_fork): each copy that a
 * write makes afterwards is a fault, for which the daemon finds a frame, and no program gets
 * beyond the pool by forking.  Not the pages in ops->pins: the kernel writes them where it waits
 * for nobody.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "maps.h"
#include "sys.h"
#include "tagger.h"

/* Another thread changes mappings: its event is read in a moment. */
#define ATTEMPTS 20
#define ATTEMPT_USEC 50

struct protect {
	int u1;
	uint32_t register_mode;
	uint64_t staging, trash;
	struct usm_agent_ops *ops;
	uint64_t *pins; /* sorted page addresses */
	uint32_t nr_pins;
};

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void protect(struct protect *p, uint64_t start, uint64_t end, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = { .start = start, .len = end - start },
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	if (start >= end)
		return;
	for (unsigned i = 0; i < ATTEMPTS; i++) {
		if (sys3(SYS_ioctl, p->u1, UFFDIO_WRITEPROTECT, &wp) != -EAGAIN)
			return;
		sys_sleep_usec(ATTEMPT_USEC);
	}
}

/*
 * Registered by us, and not by a userfaultfd of the program's own: the kernel would protect that
 * one's pages too.  What is ours already stays registered as it is; what is so fresh that nobody
 * has registered it yet is registered in full: with write faults alone its pages could leave, and
 * the kernel would fill them with zeros.
 */
static bool is_ours(const struct protect *p, uint64_t start, uint64_t end)
{
	uint64_t batch = USM_OPS_BATCH * USM_PAGE_SIZE;
	struct uffdio_register reg = {
		.range = { .start = start, .len = end - start },
		.mode = p->register_mode,
	};

	/* These are registered for write faults only, and no child gets them. */
	if ((start < p->staging + batch && end > p->staging) ||
	    (start < p->trash + batch && end > p->trash))
		return false;
	return sys3(SYS_ioctl, p->u1, UFFDIO_REGISTER, &reg) == 0;
}

/* The range without the pins in it. */
static void protect_range(void *userdata, uint64_t start, uint64_t end, bool private_writable)
{
	struct protect *p = userdata;
	uint32_t lo = 0, hi = p->nr_pins;

	if (!private_writable || !is_ours(p, start, end))
		return;
	while (lo < hi) {
		uint32_t mid = (lo + hi) / 2;

		if (p->pins[mid] < start)
			lo = mid + 1;
		else
			hi = mid;
	}
	for (; lo < p->nr_pins && p->pins[lo] < end; lo++) {
		protect(p, start, p->pins[lo], true);
		start = p->pins[lo] + USM_PAGE_SIZE;
	}
	protect(p, start, end, true);
}

void usm_protect_fork(struct usm_tagger_state *s)
{
	struct protect p = {
		.u1 = s->u1,
		.register_mode = s->register_mode,
		.staging = s->agent->staging,
		.trash = s->agent->trash,
		.ops = s->agent->ops,
	};
	uint32_t nr = atomic_load(&p.ops->nr_pins), now;
	uint64_t bytes = (USM_OPS_PINS * sizeof(uint64_t) + 8191) & ~4095ul;
	long r = sys_mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint32_t wanted = USM_PROTECT_WANTED;

	if (sys_is_error(r))
		return;
	p.pins = (uint64_t *)r;
	for (uint32_t i = 0; i < nr && i < USM_OPS_PINS; i++)
		p.pins[p.nr_pins++] = atomic_load(&p.ops->pins[i]) & ~(USM_PAGE_SIZE - 1);
	qsort(p.pins, p.nr_pins, sizeof(*p.pins), compare);
	usm_maps_visit((char *)(r + (long)bytes - 4096), 4096, protect_range, &p);
	/* A thread that came meanwhile: its pin is in the table before it writes to the page. */
	now = atomic_load(&p.ops->nr_pins);
	for (uint32_t i = nr; i < now && i < USM_OPS_PINS; i++) {
		uint64_t page = atomic_load(&p.ops->pins[i]) & ~(USM_PAGE_SIZE - 1);

		protect(&p, page, page + USM_PAGE_SIZE, false);
	}
	atomic_compare_exchange_strong(&p.ops->protect_fork, &wanted, USM_PROTECT_DONE);
	sys2(SYS_munmap, r, bytes);
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What both swap tests need: a folder on a disk, a stand-in for the arena, pages. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka wants the four above first */
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "swap-file.h"
#include "swap.h"

#define FIXTURE_HASHES 65536u
#define MIB (1024ull * 1024ull)

struct fixture {
	char dir[128];
	struct usm_swap_shared shared;
	struct usm_hash *hash;
	struct usm_swap *swap;
	uint32_t reserved_first, reserved_n;
	int reserve_result;
	bool no_uring;
};

static inline int fixture_reserve(void *userdata, uint32_t first, uint32_t n)
{
	struct fixture *f = userdata;

	f->reserved_first = first;
	f->reserved_n = n;
	return f->reserve_result;
}

static inline int fixture_open(struct fixture *f)
{
	struct usm_swap_config c = {
		.shared = &f->shared,
		.hash = f->hash,
		.nr_hash = FIXTURE_HASHES,
		.reserve = fixture_reserve,
		.userdata = f,
		.no_uring = f->no_uring,
	};

	return usm_swap_new(&c, &f->swap);
}

/* $USM_TEST_DIR or /var/tmp: should be on a disk, as tmpfs gets no rings. */
static inline int fixture_setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	if (!f)
		return -1;
	memset(&usm_swap_test, 0, sizeof(usm_swap_test));
	snprintf(f->dir, sizeof(f->dir), "%s/usm-swap-XXXXXX",
		 getenv("USM_TEST_DIR") ?: "/var/tmp");
	f->hash = calloc(FIXTURE_HASHES, sizeof(*f->hash));
	if (!f->hash || !mkdtemp(f->dir) || fixture_open(f) < 0)
		return -1;
	*state = f;
	return 0;
}

static inline int fixture_teardown(void **state)
{
	struct fixture *f = *state;
	char command[256];

	memset(&usm_swap_test, 0, sizeof(usm_swap_test));
	usm_swap_free(f->swap);
	for (unsigned i = 0; i < USM_SWAP_DEVICES; i++)
		if (f->shared.device[i].in_use)
			close(f->shared.device[i].fd);
	snprintf(command, sizeof(command), "rm -rf '%s'", f->dir);
	if (system(command) != 0)
		return -1;
	free(f->hash);
	free(f);
	return 0;
}

/* A path in the folder; valid until the fourth call after. */
static inline const char *fixture_path(struct fixture *f, const char *name)
{
	static char path[4][USM_SWAP_PATH_MAX + 1];
	static unsigned next;
	char *p = path[next++ % 4];

	snprintf(p, USM_SWAP_PATH_MAX + 1, "%s/%s", f->dir, name);
	return p;
}

static inline int fixture_add(struct fixture *f, const char *name, uint64_t size, int priority)
{
	char *message = NULL;
	int r = usm_swap_add_file(f->swap, fixture_path(f, name), size, priority, false, &message);

	free(message);
	return r;
}

static inline uint8_t *pages_new(unsigned n)
{
	uint8_t *p = aligned_alloc(USM_SWAP_PAGE, (size_t)n * USM_SWAP_PAGE);

	assert_non_null(p);
	/* valgrind does not see what a ring writes there. */
	memset(p, 0, (size_t)n * USM_SWAP_PAGE);
	return p;
}

/* Bytes that depend on seed and on their place. */
static inline void page_fill(void *page, uint64_t seed)
{
	uint64_t *w = page;

	for (unsigned i = 0; i < USM_SWAP_PAGE / sizeof(*w); i++)
		w[i] = (seed + i) * 0x9e3779b97f4a7c15ull;
}

static inline bool page_is(const void *page, uint64_t seed)
{
	uint64_t expected[USM_SWAP_PAGE / sizeof(uint64_t)];

	page_fill(expected, seed);
	return memcmp(page, expected, USM_SWAP_PAGE) == 0;
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * family MIB ROUNDS: in each round a parent forks children that write a part of what they share and
 * end at different moments, while it goes on to check and to write all of its own.  What children
 * let go is handed over to those who still have it, in the middle of that.
 */
#include "check.h"

#define CHILDREN 4

/* Each page has the parent's word, and the round's. */
static void check_page(char *p, size_t i, uint64_t round)
{
	CHECK_WORD(p + i * PAGE, page_word(1, i));
	CHECK_WORD(p + i * PAGE + 64, page_word(round, i));
}

static void child(char *p, size_t pages, uint64_t round, unsigned number)
{
	unsigned random = (unsigned)round * 31 + number;

	for (size_t i = number; i < pages * (number + 1) / CHILDREN; i += 1 + random % 3) {
		check_page(p, i, round);
		*(volatile uint64_t *)(p + i * PAGE + 128) = page_word(2 + number, i);
		random = random * 1103515245 + 12345;
	}
	for (size_t i = number; i < pages; i += 7)
		check_page(p, i, round);
	_exit(0);
}

int main(int argc, char **argv)
{
	size_t size, pages, rounds;
	char *p;

	CHECK(argc == 3);
	size = (size_t)atoi(argv[1]) << 20;
	pages = size / PAGE;
	rounds = (size_t)atoi(argv[2]);
	CHECK(pages > 0 && rounds > 0);
	p = map_anonymous(size);
	fill(p, size, 1);
	for (size_t i = 0; i < pages; i++)
		*(volatile uint64_t *)(p + i * PAGE + 64) = page_word(1, i);
	for (uint64_t round = 1; round <= rounds; round++) {
		pid_t pid[CHILDREN];

		for (unsigned k = 0; k < CHILDREN; k++) {
			pid[k] = fork();
			CHECK(pid[k] >= 0);
			if (!pid[k])
				child(p, pages, round, k);
		}
		for (size_t i = 0; i < pages; i++)
			check_page(p, i, round);
		for (size_t i = 0; i < pages; i++) {
			*(volatile uint64_t *)(p + i * PAGE + 64) = page_word(round + 1, i);
			CHECK_WORD(p + i * PAGE + 128, 0ul);
		}
		for (unsigned k = 0; k < CHILDREN; k++) {
			wait_ok(pid[k]);
			for (size_t i = 0; i < pages; i++)
				check_page(p, i, round + 1);
		}
	}
	check_filled(p, size, 1);
	puts("ok");
	return 0;
}

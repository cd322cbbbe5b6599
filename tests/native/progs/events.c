/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * events SECONDS: one thread that does little but what userfaultfd announces: it drops pages, moves
 * a mapping to and fro, and now and then forks. None of it goes through libc, so that the tagger's
 * hooks see none of it. The rest of its memory must keep its content.
 */
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>

#include "check.h"

#define SIZE  (1ul << 20)
#define MOVED (8 * PAGE)

static void move(char *from, char *to)
{
	CHECK(syscall(SYS_mremap, from, MOVED, MOVED, MREMAP_MAYMOVE | MREMAP_FIXED, to) == (long)to);
}

int main(int argc, char **argv)
{
	char *kept = map_anonymous(SIZE), *dropped = map_anonymous(SIZE);
	char *places = map_anonymous(2 * MOVED), *here = places, *there = places + MOVED, *t;
	time_t end;
	int status;

	CHECK(argc == 2);
	end = time(NULL) + atoi(argv[1]);
	fill(kept, SIZE, 1);
	fill(here, MOVED, 2);
	for (unsigned long i = 0; time(NULL) < end; i++) {
		char *page = dropped + i % (SIZE / PAGE) * PAGE;

		*page = 1;
		CHECK(syscall(SYS_madvise, page, PAGE, MADV_DONTNEED) == 0);
		if (i % 4 == 0) {
			move(here, there);
			t = here;
			here = there;
			there = t;
		}
		if (i % 512 == 0) {
			pid_t child = fork();

			CHECK(child >= 0);
			if (child == 0)
				_exit(kept[SIZE / 2] == 0);
			CHECK(waitpid(child, &status, 0) == child && status == 0);
		}
	}
	check_filled(kept, SIZE, 1);
	check_filled(here, MOVED, 2);
	puts("ok");
	return 0;
}

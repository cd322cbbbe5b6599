/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Direct I/O and pipes on managed memory: the device writes into pages that
 * are about to leave or have left, and reads pages that are out.
 *
 *   direct-io MIB FILE
 */
#include <fcntl.h>

#include "check.h"

#define BLOCK (64 * 1024ul)

static void copy_through_pipe(char *from, char *to, size_t size)
{
	int ends[2];

	CHECK(!pipe(ends));
	for (size_t done = 0; done < size; done += PAGE) {
		CHECK(write(ends[1], from + done, PAGE) == (ssize_t)PAGE);
		CHECK(read(ends[0], to + done, PAGE) == (ssize_t)PAGE);
	}
	close(ends[0]);
	close(ends[1]);
}

int main(int argc, char **argv)
{
	size_t size;
	char *p, *q;
	int fd;

	CHECK(argc == 3);
	size = size_arg(2, argv);
	fd = open(argv[2], O_RDWR | O_CREAT | O_TRUNC | O_DIRECT | O_CLOEXEC, 0600);
	if (fd < 0 && errno == EINVAL) {
		puts("no O_DIRECT here");
		return 77;
	}
	CHECK(fd >= 0);
	p = map_anonymous(size);
	q = map_anonymous(size);
	fill(p, size, 1);
	fill(q, size, 2); /* pushes p out */
	for (size_t at = 0; at < size; at += BLOCK)
		CHECK(pwrite(fd, p + at, BLOCK, (off_t)at) == (ssize_t)BLOCK);
	for (size_t at = 0; at < size; at += BLOCK)
		CHECK(pread(fd, q + at, BLOCK, (off_t)at) == (ssize_t)BLOCK);
	check_filled(q, size, 1);
	check_filled(p, size, 1);
	fill(q, size, 3);
	copy_through_pipe(p, q, size);
	check_filled(q, size, 1);
	close(fd);
	unlink(argv[2]);
	puts("ok");
	return 0;
}

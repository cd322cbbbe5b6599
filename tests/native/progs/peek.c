/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * peek PID ADDRESS MIB TIMES [mem]: reads the memory of another program, which was filled under the
 * tag 1, by process_vm_readv, which waits for the page, or as debuggers do by /proc/PID/mem, which
 * does not.  A page may be refused; what is read must be right.
 */
#include <sys/uio.h>

#include "check.h"

static ssize_t read_page(pid_t pid, int mem, char *at, void *page)
{
	struct iovec to = {.iov_base = page, .iov_len = PAGE}, from = {.iov_base = at, .iov_len = PAGE};

	return mem >= 0 ? pread(mem, page, PAGE, (off_t)(uintptr_t)at) :
			  process_vm_readv(pid, &to, 1, &from, 1, 0);
}

int main(int argc, char **argv)
{
	static uint64_t page[PAGE / 8];
	size_t size, read = 0, refused = 0;
	unsigned times;
	int mem = -1;
	char *at;
	pid_t pid;

	CHECK(argc == 5 || argc == 6);
	pid = atoi(argv[1]);
	at = (char *)strtoul(argv[2], NULL, 0);
	size = (size_t)atoi(argv[3]) << 20;
	times = (unsigned)atoi(argv[4]);
	if (argc == 6) {
		char path[64];

		snprintf(path, sizeof(path), "/proc/%d/mem", (int)pid);
		mem = open(path, O_RDONLY);
		CHECK(mem >= 0);
	}
	for (unsigned k = 0; k < times; k++)
		for (size_t i = 0; i < size / PAGE; i++) {
			ssize_t n = read_page(pid, mem, at + i * PAGE, page);

			if (n < 0) {
				CHECK(errno == EFAULT || errno == EIO);
				refused++;
				continue;
			}
			CHECK(n == (ssize_t)PAGE);
			CHECK_WORD(&page[0], page_word(1, i));
			CHECK_WORD(&page[PAGE / 8 - 1], page_word(1, i));
			read++;
		}
	CHECK(read > 0);
	printf("read %zu, refused %zu\nok\n", read, refused);
	return 0;
}

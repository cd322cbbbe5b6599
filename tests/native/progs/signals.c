/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Signals interrupt a program that faults all the time, in user mode and inside
 * system calls; handlers run on the normal and on an alternate stack and touch
 * managed memory themselves.
 */
#include <signal.h>
#include <sys/time.h>

#include "check.h"

static char *memory;
static size_t nr_pages;
static volatile sig_atomic_t nr_signals;

static void on_alarm(int sig)
{
	size_t i = (size_t)nr_signals++ * 7919 % nr_pages;

	(void)sig;
	CHECK_WORD(memory + i * PAGE, page_word(1, i));
}

int main(int argc, char **argv)
{
	size_t size = size_arg(argc, argv);
	struct itimerval every_ms = { { 0, 1000 }, { 0, 1000 } }, off = { 0 };
	struct sigaction sa = { .sa_handler = on_alarm, .sa_flags = SA_ONSTACK };
	stack_t stack = { .ss_size = 64 * 1024 };
	int ends[2];

	nr_pages = size / PAGE;
	memory = map_anonymous(size);
	stack.ss_sp = map_anonymous(stack.ss_size);
	CHECK(!sigaltstack(&stack, NULL));
	CHECK(!pipe(ends));
	fill(memory, size, 1);
	CHECK(!sigaction(SIGALRM, &sa, NULL));
	CHECK(!setitimer(ITIMER_REAL, &every_ms, NULL));
	/* As long as it takes for signals to come at many places. */
	while (nr_signals < 1000) {
		check_filled(memory, size, 1);
		/* The kernel faults on our behalf, with a caught signal pending. */
		for (size_t i = 0; i < nr_pages; i += 5) {
			char *page = memory + i * PAGE;
			ssize_t n;

			do
				n = write(ends[1], page, PAGE);
			while (n < 0 && errno == EINTR);
			CHECK(n == (ssize_t)PAGE);
			do
				n = read(ends[0], page, PAGE);
			while (n < 0 && errno == EINTR);
			CHECK(n == (ssize_t)PAGE);
		}
	}
	CHECK(!setitimer(ITIMER_REAL, &off, NULL));
	check_filled(memory, size, 1);
	puts("ok");
	return 0;
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Threads that libc does not know. */
#include "agent.h"
#include "sys.h"

long usm_thread_start(unsigned long flags, char *stack_end, void (*run)(struct usm_agent *a),
		      struct usm_agent *a)
{
	void **top = (void **)stack_end - 2;
	long r;

	top[0] = (void *)run;
	top[1] = a;
	/* The new thread starts on its own stack: it pops its function and argument from there. */
	__asm__ volatile("xor %%edx, %%edx\n\t"
			 "xor %%r10d, %%r10d\n\t"
			 "xor %%r8d, %%r8d\n\t"
			 "syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "pop %%rax\n\t"
			 "pop %%rdi\n\t"
			 "call *%%rax\n\t"
			 "hlt\n"
			 "1:"
			 : "=a"(r)
			 : "a"((long)SYS_clone), "D"(flags), "S"(top)
			 : "rcx", "rdx", "r8", "r10", "r11", "memory");
	return r;
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * without-uring setup|enter COMMAND...: runs a command to which the kernel refuses io_uring: rings
 * cannot be made, or are made and then take no request.
 */
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "check.h"

int main(int argc, char **argv)
{
	uint32_t nr = argc > 2 && !strcmp(argv[1], "enter") ? SYS_io_uring_enter : SYS_io_uring_setup;
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {.len = sizeof(filter) / sizeof(*filter), .filter = filter};

	CHECK(argc > 2);
	CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
	execv(argv[2], argv + 2);
	CHECK(!"the command can be executed");
}

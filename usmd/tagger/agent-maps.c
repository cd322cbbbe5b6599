/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Giving the program's ranges back to the kernel, when no daemon is left to do it. */
#include <fcntl.h>

#include "agent.h"
#include "sys.h"

/* A line's beginning holds all that is looked at: "start-end rw-p offset dev inode". */
#define LINE_BYTES 96

static const char *parse_hex(const char *p, uint64_t *value)
{
	for (*value = 0;; p++) {
		if (*p >= '0' && *p <= '9')
			*value = *value << 4 | (uint64_t)(*p - '0');
		else if (*p >= 'a' && *p <= 'f')
			*value = *value << 4 | (uint64_t)(*p - 'a' + 10);
		else
			return p;
	}
}

/* What is not registered, or cannot be, is refused by the kernel and stays as it is. */
static void unregister_line(struct usm_agent *a, const char *line)
{
	struct uffdio_range range;
	uint64_t start, end;
	const char *p = parse_hex(line, &start);

	if (*p != '-')
		return;
	p = parse_hex(p + 1, &end);
	if (*p != ' ' || end <= start)
		return;
	range.start = start;
	range.len = end - start;
	sys3(SYS_ioctl, a->u1, UFFDIO_UNREGISTER, &range);
}

static void unregister_pass(struct usm_agent *a)
{
	long fd = sys4(SYS_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC, 0), r;
	char line[LINE_BYTES];
	uint32_t n = 0;

	if (fd < 0)
		return;
	/* The verify buffer is free: no operation runs any more. */
	while ((r = sys3(SYS_read, fd, a->verify, sizeof(a->verify))) > 0) {
		for (long i = 0; i < r; i++) {
			if (a->verify[i] == '\n') {
				line[n] = '\0';
				unregister_line(a, line);
				n = 0;
			} else if (n < sizeof(line) - 1) {
				line[n++] = a->verify[i];
			}
		}
	}
	sys_close((int)fd);
}

void usm_agent_unregister_all(struct usm_agent *a)
{
	unregister_pass(a);
	unregister_pass(a);
}

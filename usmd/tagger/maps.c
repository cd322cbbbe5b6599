/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>

#include "maps.h"
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

static void visit_line(const char *line, usm_maps_visit_t fn, void *userdata)
{
	uint64_t start, end;
	const char *p = parse_hex(line, &start);

	if (*p != '-')
		return;
	p = parse_hex(p + 1, &end);
	if (*p != ' ' || end <= start || !p[1] || !p[2] || !p[3])
		return;
	fn(userdata, start, end, p[2] == 'w' && p[4] == 'p');
}

void usm_maps_visit(char *buf, size_t size, usm_maps_visit_t fn, void *userdata)
{
	long fd = sys4(SYS_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC, 0), r;
	char line[LINE_BYTES];
	uint32_t n = 0;

	if (fd < 0)
		return;
	while ((r = sys3(SYS_read, fd, buf, size)) > 0) {
		for (long i = 0; i < r; i++) {
			if (buf[i] == '\n') {
				line[n] = '\0';
				visit_line(line, fn, userdata);
				n = 0;
			} else if (n < sizeof(line) - 1) {
				line[n++] = buf[i];
			}
		}
	}
	sys1(SYS_close, fd);
}

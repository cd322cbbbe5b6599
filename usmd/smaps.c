/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/cleanup.h"
#include "page.h"
#include "smaps.h"

int smaps_uninherited(pid_t pid, struct vpn_range **ret, unsigned *ret_n)
{
	_cleanup_free_ struct vpn_range *list = NULL;
	_cleanup_free_ char *line = NULL;
	_cleanup_fclose_ FILE *f = NULL;
	struct vpn_range now = {0};
	unsigned n = 0, cap = 0;
	bool private = false;
	size_t size = 0;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	f = fopen(path, "re");
	if (!f)
		return -errno;
	while (getline(&line, &size, f) >= 0) {
		unsigned long start, end;
		char perms[5];

		if (sscanf(line, "%lx-%lx %4s", &start, &end, perms) == 3 && perms[3]) {
			now = (struct vpn_range){.first = VPN(start), .end = VPN(end)};
			private = perms[3] == 'p';
			continue;
		}
		/* "wf": wiped on fork; "dc": not copied. */
		if (!private || strncmp(line, "VmFlags:", 8) || (!strstr(line, " wf") && !strstr(line, " dc")))
			continue;
		if (n == cap) {
			struct vpn_range *l;

			cap = cap ? 2 * cap : 16;
			l = realloc(list, cap * sizeof(*l));
			if (!l)
				return -ENOMEM;
			list = l;
		}
		list[n++] = now;
	}
	if (ferror(f))
		return -EIO;
	*ret = TAKE_PTR(list);
	*ret_n = n;
	return 0;
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Giving the program's ranges back to the kernel, when no daemon is left to do it. */
#include "agent.h"
#include "maps.h"
#include "sys.h"

/* What is not registered, or cannot be, is refused by the kernel and stays as it is. */
static void unregister(void *userdata, uint64_t start, uint64_t end, bool private_writable)
{
	struct usm_agent *a = userdata;
	struct uffdio_range range = { .start = start, .len = end - start };

	(void)private_writable; /* it may have been, when it was registered */
	sys3(SYS_ioctl, a->u1, UFFDIO_UNREGISTER, &range);
}

void usm_agent_unregister_all(struct usm_agent *a)
{
	/* The verify buffer is free: no operation runs any more. */
	for (int pass = 0; pass < 2; pass++)
		usm_maps_visit(a->verify, sizeof(a->verify), unregister, a);
}

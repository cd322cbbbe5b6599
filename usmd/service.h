/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What systemd says of the unit that this process belongs to.  It is asked directly, by its
 * private socket, which is root's and needs no message bus.  Waits at most a few seconds.
 */
#pragma once

#include <stdbool.h>

/* FileDescriptorStoreMax=; 0 also where no systemd has started us. -errno. */
int service_store_max(unsigned *ret);
/* Is it being stopped because it is to start again?  -errno. */
int service_is_restarting(void);

/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "lib/cleanup.h"
#include "lib/log.h"
#include "mechanism-userfault.h"

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC	    0xAA
#define USERFAULTFD_IOC_NEW _IO(USERFAULTFD_IOC, 0x00)
#endif

#define FEATURES_EVENTS                                                                            \
	(UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE |           \
	 UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_PAGEFAULT_FLAG_WP)

int userfault_handshake(int fd, bool events, bool move)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = (events ? FEATURES_EVENTS : 0) | (move ? UFFD_FEATURE_MOVE : 0),
	};

	return ioctl(fd, UFFDIO_API, &api) < 0 ? -errno : 0;
}

int userfault_probe(struct core *c, int dev_fd, enum usm_eviction_kind wanted)
{
	_cleanup_close_ int fd = ioctl(dev_fd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	struct uffdio_api api = {.api = UFFD_API};
	bool move;

	if (fd < 0)
		return log_error_errno(-errno, "Cannot make a userfaultfd: %m");
	if (ioctl(fd, UFFDIO_API, &api) < 0)
		return log_error_errno(-errno, "UFFDIO_API: %m");
	if (~api.features & FEATURES_EVENTS)
		return log_error_errno(-EOPNOTSUPP,
				       "This kernel's userfaultfd lacks events that usmd needs "
				       "(features %#llx); Linux 6.1 or later is needed",
				       (unsigned long long)api.features);
	move = api.features & UFFD_FEATURE_MOVE;
	if (wanted == USM_EVICTION_MOVE && !move)
		return log_error_errno(-EOPNOTSUPP, "'eviction move' needs Linux 6.8 or later; use "
						    "'eviction auto' or 'eviction lazyfree'");
	switch (wanted) {
	case USM_EVICTION_OFF:
		c->evict_modes = 0;
		break;
	case USM_EVICTION_MOVE:
		c->evict_modes = USM_EVICT_MOVE;
		break;
	case USM_EVICTION_LAZYFREE:
		c->evict_modes = USM_EVICT_LAZYFREE;
		break;
	case USM_EVICTION_AUTO:
		/* LAZYFREE besides, for pages that MOVE refuses. */
		c->evict_modes = USM_EVICT_LAZYFREE | (move ? USM_EVICT_MOVE : 0);
		break;
	}
	c->register_mode = UFFDIO_REGISTER_MODE_MISSING |
			   (c->evict_modes ? UFFDIO_REGISTER_MODE_WP : 0);
	return 0;
}

int userfault_copy(int fd, uint64_t vpn, const void *src, unsigned n, unsigned *ret_done)
{
	struct uffdio_copy copy = {
		.dst = vpn << 12,
		.src = (uintptr_t)src,
		.len = (uint64_t)n * USM_PAGE_SIZE,
	};

	if (likely(ioctl(fd, UFFDIO_COPY, &copy) == 0)) {
		*ret_done = n;
		return 0;
	}
	if (copy.copy > 0) {
		*ret_done = (unsigned)((uint64_t)copy.copy / USM_PAGE_SIZE);
		return -EAGAIN; /* the rest has not been tried */
	}
	*ret_done = 0;
	return -errno;
}

int userfault_wake(int fd, uint64_t vpn, uint64_t n)
{
	struct uffdio_range range = {.start = vpn << 12, .len = n << 12};

	return ioctl(fd, UFFDIO_WAKE, &range) < 0 ? -errno : 0;
}

int userfault_protect(int fd, uint64_t vpn, uint64_t n, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = {.start = vpn << 12, .len = n << 12},
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return ioctl(fd, UFFDIO_WRITEPROTECT, &wp) < 0 ? -errno : 0;
}

int userfault_register(int fd, uint64_t start, uint64_t end, unsigned mode)
{
	struct uffdio_register reg = {
		.range = {.start = start, .len = end - start},
		.mode = mode,
	};

	return ioctl(fd, UFFDIO_REGISTER, &reg) < 0 ? -errno : 0;
}

int userfault_unregister(int fd, uint64_t start, uint64_t end)
{
	struct uffdio_range range = {.start = start, .len = end - start};

	return ioctl(fd, UFFDIO_UNREGISTER, &range) < 0 ? -errno : 0;
}

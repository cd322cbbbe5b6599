/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <xxhash.h>

#include "lib/cleanup.h"
#include "lib/log.h"
#include "swap-file.h"

/* One write of the filling: large enough to keep a disk busy from one thread. */
#define FILL_BYTES (4u * 1024u * 1024u)

#define BCACHEFS_MAGIC 0xca451a4eu
#define ZFS_MAGIC      0x2fc12fc1u

enum fs_use {
	FS_DIRECT,   /* in place, and punching waits for direct I/O in flight */
	FS_NOCOW,    /* the same once the file is marked no-copy-on-write */
	FS_MEMORY,   /* keeps the file in memory */
	FS_BUFFERED, /* not known to wait: no request may outlive its thread */
	FS_REFUSED,  /* always writes elsewhere, and needs memory and space to do so */
};

static const struct fs_kind {
	uint32_t magic;
	const char *name;
	enum fs_use use;
} fs_kinds[] = {
	{ EXT4_SUPER_MAGIC, "ext4", FS_DIRECT },
	{ XFS_SUPER_MAGIC, "xfs", FS_DIRECT },
	{ BTRFS_SUPER_MAGIC, "btrfs", FS_NOCOW },
	{ TMPFS_MAGIC, "tmpfs", FS_MEMORY },
	{ RAMFS_MAGIC, "ramfs", FS_MEMORY },
	{ BCACHEFS_MAGIC, "bcachefs", FS_REFUSED },
	{ ZFS_MAGIC, "zfs", FS_REFUSED },
	{ NILFS_SUPER_MAGIC, "nilfs2", FS_REFUSED },
};

static const struct fs_kind fs_other = { 0, "this file system", FS_BUFFERED };

/* Returns error, so that callers can "return refuse(...)". */
static int __attribute__((format(printf, 3, 4))) refuse(char **ret_message, int error,
							const char *fmt, ...)
{
	va_list ap;
	char *text;

	if (!ret_message)
		return error;
	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) >= 0)
		*ret_message = text;
	va_end(ap);
	return error;
}

static uint64_t file_bytes(const struct usm_swap_device *d)
{
	return USM_SWAP_FILE_DATA + (uint64_t)d->nr_slots * USM_SWAP_PAGE;
}

static const struct fs_kind *fs_kind_of(int fd)
{
	struct statfs sf;

	if (fstatfs(fd, &sf) < 0)
		return NULL;
	for (size_t i = 0; i < ARRAY_SIZE(fs_kinds); i++)
		if (fs_kinds[i].magic == (uint32_t)sf.f_type)
			return &fs_kinds[i];
	return &fs_other;
}

static int set_direct(struct usm_swap_device *d, int fd, bool direct)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0)
		return -errno;
	flags &= ~(O_NONBLOCK | O_DIRECT);
	if (direct)
		flags |= O_DIRECT;
	if (fcntl(fd, F_SETFL, flags) < 0)
		return -errno;
	d->direct = direct;
	return 0;
}

/* Buffered, and no rings: what a thread has begun ends before the thread does. */
static int fall_back(struct usm_swap_device *d, int fd, const char *why)
{
	log_warning("swap file %s: no direct I/O: %s; it goes through the page cache, ignoring",
		    d->path, why);
	return set_direct(d, fd, false);
}

static int punch_scratch(int fd)
{
	while (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, USM_SWAP_FILE_SCRATCH,
			 USM_SWAP_FILE_SCRATCH_BYTES) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

/* btrfs: the flag only works on an empty file, so created says that it may be set. */
static int check_nocow(int fd, bool created)
{
	int flags;

	if (ioctl(fd, FS_IOC_GETFLAGS, &flags) < 0)
		return -errno;
	if (created) {
		flags |= FS_NOCOW_FL;
		if (ioctl(fd, FS_IOC_SETFLAGS, &flags) < 0 ||
		    ioctl(fd, FS_IOC_GETFLAGS, &flags) < 0)
			return -errno;
	}
	return flags & FS_NOCOW_FL ? 0 : -EOPNOTSUPP;
}

/* Decides how the file is used on its file system; before anything is written. */
static int choose_access(struct usm_swap_device *d, int fd, bool created, char **ret_message)
{
	const struct fs_kind *fs = fs_kind_of(fd);
	int r;

	if (!fs)
		return -errno;
	switch (fs->use) {
	case FS_REFUSED:
		return refuse(ret_message, -EOPNOTSUPP,
			      "%s is on %s, which never writes in place; put the swap file on "
			      "ext4, xfs or btrfs", d->path, fs->name);
	case FS_NOCOW:
		r = check_nocow(fd, created);
		if (r < 0)
			return refuse(ret_message, -EOPNOTSUPP,
				      "%s is on %s and is not marked no-copy-on-write; remove "
				      "it so that it is made anew, or choose another file system",
				      d->path, fs->name);
		break;
	case FS_MEMORY:
		return fall_back(d, fd, "the file system keeps the pages in memory");
	case FS_BUFFERED:
		return fall_back(d, fd, "not known to be safe on this file system");
	case FS_DIRECT:
		break;
	}
	r = set_direct(d, fd, true);
	if (r == -EINVAL)
		return fall_back(d, fd, "the file system does not have it");
	return r;
}

/* page: USM_SWAP_PAGE bytes, aligned. */
static int header_io(struct usm_swap_device *d, int fd, bool write, void *page)
{
	int r = usm_swap_io_sync(fd, write, page, USM_SWAP_PAGE, 0);

	if (r == -EINVAL && d->direct) {
		r = fall_back(d, fd, "the disk's blocks are larger than a page");
		if (r < 0)
			return r;
		r = usm_swap_io_sync(fd, write, page, USM_SWAP_PAGE, 0);
	}
	return r;
}

static uint64_t header_checksum(const struct usm_swap_file_header *h)
{
	return XXH3_64bits(h, offsetof(struct usm_swap_file_header, checksum));
}

static bool header_is_ours(const struct usm_swap_file_header *h)
{
	return h->magic == USM_SWAP_FILE_MAGIC && h->checksum == header_checksum(h) &&
	       (h->state == USM_SWAP_FILE_FILLING || h->state == USM_SWAP_FILE_READY);
}

static int header_write(struct usm_swap_device *d, int fd, struct usm_swap_file_header *h,
			enum usm_swap_file_state state)
{
	h->state = state;
	h->checksum = header_checksum(h);
	return header_io(d, fd, true, h);
}

static void *page_alloc(void)
{
	void *p = aligned_alloc(USM_SWAP_PAGE, USM_SWAP_PAGE);

	if (p)
		memset(p, 0, USM_SWAP_PAGE);
	return p;
}

static int random_bytes(void *buf, size_t n)
{
	while (getrandom(buf, n, 0) != (ssize_t)n)
		if (errno != EINTR)
			return -errno;
	return 0;
}

/* Writes zeros everywhere a request will ever go: a write into an extent that is
 * allocated but unwritten makes the file system convert it, a journal transaction on
 * each swap-out.  None of it needs to be durable (docs/swap.md). */
static int fill(struct usm_swap_device *d, int fd)
{
	uint64_t end = file_bytes(d);
	uint8_t *zeros;
	int r = 0;

	/* Not posix_fallocate: where the file system has no fallocate, it writes a
	 * byte a block, and the writes below allocate as well. */
	while (fallocate(fd, 0, 0, (off_t)end) < 0) {
		if (errno == EOPNOTSUPP)
			break;
		if (errno != EINTR)
			return -errno;
	}
	zeros = mmap(NULL, FILL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (zeros == MAP_FAILED)
		return -errno;
	for (uint64_t at = USM_SWAP_FILE_SCRATCH; r == 0 && at < end; at += FILL_BYTES) {
		r = usm_swap_io_sync(fd, true, zeros, MIN((uint64_t)FILL_BYTES, end - at), at);
		if (d->config->progress)
			d->config->progress(d->config->userdata);
	}
	munmap(zeros, FILL_BYTES);
	return r;
}

static int lock_file(int fd)
{
	return flock(fd, LOCK_EX | LOCK_NB) < 0 ? -errno : 0;
}

static bool path_names(const char *path, int fd)
{
	struct stat a, b;

	return lstat(path, &a) == 0 && fstat(fd, &b) == 0 && a.st_dev == b.st_dev &&
	       a.st_ino == b.st_ino;
}

/* Direct I/O is only used where quiesce will work: better a warning now than lost
 * data after a crash. */
static int probe_quiesce(struct usm_swap_device *d, int fd)
{
	int r;

	if (!d->direct)
		return 0;
	r = punch_scratch(fd);
	if (r == -EOPNOTSUPP)
		return fall_back(d, fd, "the file system cannot punch holes");
	return r;
}

static int create_locked(struct usm_swap_device *d, int fd, char **ret_message)
{
	_cleanup_free_ struct usm_swap_file_header *h = page_alloc();
	int r;

	if (!h)
		return -ENOMEM;
	r = choose_access(d, fd, true, ret_message);
	if (r < 0)
		return r;
	h->magic = USM_SWAP_FILE_MAGIC;
	h->version = USM_SWAP_FILE_VERSION;
	h->size_bytes = file_bytes(d);
	h->page_bytes = USM_SWAP_PAGE;
	r = random_bytes(h->uuid, sizeof(h->uuid));
	if (r < 0)
		return r;
	/* First of all, so that what a crash leaves behind is known as ours. */
	r = header_write(d, fd, h, USM_SWAP_FILE_FILLING);
	if (r < 0)
		return r;
	r = probe_quiesce(d, fd);
	if (r < 0)
		return r;
	r = fill(d, fd);
	if (r == -ENOSPC || r == -EDQUOT)
		return refuse(ret_message, r, "no space for %s of %llu bytes; free some, or "
			      "choose a smaller size or another place", d->path,
			      (unsigned long long)file_bytes(d));
	if (r < 0)
		return r;
	return header_write(d, fd, h, USM_SWAP_FILE_READY);
}

static int create(struct usm_swap_device *d, char **ret_message)
{
	_cleanup_close_ int fd = -1;
	int r;

	fd = open(d->path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY, 0600);
	if (fd < 0 && errno == EROFS)
		return refuse(ret_message, -EROFS, "%s is on a file system that is read-only for usmd. The "
			      "service may write to its state directory alone: a swap file elsewhere needs "
			      "[Service] ReadWritePaths=DIRECTORY (systemctl edit usmd.service)", d->path);
	if (fd < 0)
		return -errno;
	r = lock_file(fd);
	if (r == 0)
		r = create_locked(d, fd, ret_message);
	if (r < 0) {
		if (path_names(d->path, fd))
			unlink(d->path);
		/* To the caller -EEXIST means "look whether it can be reused". */
		return r == -EEXIST ? -EIO : r;
	}
	d->fd = TAKE_FD(fd);
	return 0;
}

/* Everything but the header. */
static int check_foreign(struct usm_swap_device *d, const struct stat *st, char **ret_message)
{
	if (!S_ISREG(st->st_mode))
		return refuse(ret_message, -EEXIST, "%s is not a regular file; choose another path",
			      d->path);
	if (st->st_uid != geteuid())
		return refuse(ret_message, -EEXIST, "%s belongs to user %u, expected %u; remove "
			      "it or choose another path", d->path, st->st_uid, geteuid());
	if (st->st_mode & (S_IRWXG | S_IRWXO))
		return refuse(ret_message, -EEXIST, "%s is accessible to others (mode %03o, "
			      "expected 600), who may have changed it; remove it", d->path,
			      st->st_mode & 0777);
	if (st->st_nlink != 1)
		return refuse(ret_message, -EEXIST, "%s has %lu names, expected 1; remove the "
			      "others", d->path, (unsigned long)st->st_nlink);
	return 0;
}

/* -ESTALE: it was half made, and is removed. */
static int reuse_locked(struct usm_swap_device *d, int fd, char **ret_message)
{
	_cleanup_free_ struct usm_swap_file_header *h = page_alloc();
	struct stat st;
	int r;

	if (!h)
		return -ENOMEM;
	if (fstat(fd, &st) < 0)
		return -errno;
	r = check_foreign(d, &st, ret_message);
	if (r < 0)
		return r;
	/* Buffered is fine for a look: nothing else has the file open. */
	if (st.st_size >= USM_SWAP_PAGE) {
		r = usm_swap_io_sync(fd, false, h, USM_SWAP_PAGE, 0);
		if (r < 0)
			return r;
	}
	if (!header_is_ours(h))
		return refuse(ret_message, -EEXIST, "%s exists and is not a swap file of usmd; "
			      "remove it or choose another path", d->path);
	if (h->state == USM_SWAP_FILE_FILLING) {
		if (!path_names(d->path, fd) || unlink(d->path) < 0)
			return refuse(ret_message, -EEXIST, "%s was left half made and cannot be "
				      "removed; remove it", d->path);
		return -ESTALE;
	}
	if (h->version != USM_SWAP_FILE_VERSION || h->page_bytes != USM_SWAP_PAGE)
		return refuse(ret_message, -EEXIST, "%s is of version %u with pages of %u bytes, "
			      "expected %u and %u; remove it", d->path, h->version, h->page_bytes,
			      USM_SWAP_FILE_VERSION, USM_SWAP_PAGE);
	if (h->size_bytes != file_bytes(d) || (uint64_t)st.st_size != file_bytes(d))
		return refuse(ret_message, -EEXIST, "%s has %llu bytes, %llu were asked for; ask "
			      "for its size, or remove it so that it is made anew", d->path,
			      (unsigned long long)st.st_size, (unsigned long long)file_bytes(d));

	r = choose_access(d, fd, false, ret_message);
	if (r < 0)
		return r;
	r = header_io(d, fd, false, h); /* finds out whether direct I/O works */
	if (r < 0)
		return r;
	r = probe_quiesce(d, fd);
	if (r < 0)
		return r;
	/* Somebody may have punched holes: better no space now than at a swap-out. */
	if (fallocate(fd, 0, 0, st.st_size) < 0 && errno != EOPNOTSUPP)
		return -errno;
	return 0;
}

static int reuse(struct usm_swap_device *d, char **ret_message)
{
	_cleanup_close_ int fd = -1;
	struct stat st;
	int r;

	/* Before open, which does things to devices and pipes. */
	if (lstat(d->path, &st) < 0)
		return -errno;
	r = check_foreign(d, &st, ret_message);
	if (r < 0)
		return r;
	fd = open(d->path, O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (fd < 0)
		return -errno;
	r = lock_file(fd);
	if (r == -EWOULDBLOCK)
		return refuse(ret_message, -EEXIST, "%s is in use already, by this or another usmd",
			      d->path);
	if (r < 0)
		return r;
	r = reuse_locked(d, fd, ret_message);
	if (r < 0)
		return r;
	d->fd = TAKE_FD(fd);
	return 0;
}

/* The descriptor of a dead engine's device. -EBADF, -EINVAL: it is something else. */
static int adopt(struct usm_swap_device *d)
{
	_cleanup_free_ struct usm_swap_file_header *h = page_alloc();
	struct stat st;
	int flags, r;

	if (!h)
		return -ENOMEM;
	flags = fcntl(d->fd, F_GETFL);
	if (flags < 0)
		return -errno;
	if (fstat(d->fd, &st) < 0)
		return -errno;
	if ((flags & O_ACCMODE) != O_RDWR || !S_ISREG(st.st_mode) ||
	    (uint64_t)st.st_size != file_bytes(d))
		return -EINVAL;
	/* Held by the open file that the keeper shares; a new lock means that it was lost. */
	r = lock_file(d->fd);
	if (r < 0)
		return r;
	d->direct = flags & O_DIRECT;
	r = usm_swap_io_sync(d->fd, false, h, USM_SWAP_PAGE, 0);
	if (r < 0) {
		/* The disk is broken: that is for those to suffer who need something on it. */
		log_warning_errno(r, "swap file %s: reading its header: %m, ignoring", d->path);
		return 0;
	}
	if (!header_is_ours(h) || h->version != USM_SWAP_FILE_VERSION ||
	    h->state != USM_SWAP_FILE_READY || h->size_bytes != file_bytes(d))
		return -EINVAL;
	return 0;
}

static int file_open(struct usm_swap_device *d, char **ret_message)
{
	int r;

	if (d->fd >= 0) {
		r = adopt(d);
	} else {
		r = create(d, ret_message);
		if (r == -EEXIST)
			r = reuse(d, ret_message);
		if (r == -ESTALE)
			r = create(d, ret_message);
	}
	if (r < 0)
		return r;
	d->data_offset = USM_SWAP_FILE_DATA;
	d->uring = d->direct && usm_swap_rings_enabled(d->rings);
	return 0;
}

static int file_quiesce(struct usm_swap_device *d)
{
	_cleanup_free_ void *zeros = NULL;
	int r;

	/* Buffered I/O is done by the engine's own threads, never by a ring, and those
	 * are gone once the keeper has reaped it. */
	if (!d->direct)
		return 0;
	r = punch_scratch(d->fd);
	if (r < 0)
		return r;
	/* On btrfs punching waits for its own range alone, but truncating waits for all
	 * direct I/O, also to the size that the file has. */
	while (ftruncate(d->fd, (off_t)file_bytes(d)) < 0)
		if (errno != EINTR)
			return -errno;
	/* Allocated again, as a hole cannot be punched where there is none on every
	 * file system.  What counts has happened, so no failure here is one. */
	zeros = aligned_alloc(USM_SWAP_PAGE, USM_SWAP_FILE_SCRATCH_BYTES);
	if (!zeros)
		return 0;
	memset(zeros, 0, USM_SWAP_FILE_SCRATCH_BYTES);
	r = usm_swap_io_sync(d->fd, true, zeros, USM_SWAP_FILE_SCRATCH_BYTES,
			     USM_SWAP_FILE_SCRATCH);
	if (r < 0)
		log_warning_errno(r, "swap file %s: rewriting the scratch block: %m, ignoring",
				  d->path);
	return 0;
}

static struct usm_swap_target target(const struct usm_swap_device *d)
{
	return (struct usm_swap_target){
		.fd = d->fd,
		.base = d->base,
		.data_offset = d->data_offset,
		.uring = d->uring,
	};
}

static void file_write(struct usm_swap_device *d, struct usm_swap_io *io, unsigned n)
{
	struct usm_swap_target t = target(d);

	usm_swap_io_batch(d->rings, &t, true, io, n);
}

static void file_read(struct usm_swap_device *d, struct usm_swap_io *io, unsigned n)
{
	struct usm_swap_target t = target(d);

	usm_swap_io_batch(d->rings, &t, false, io, n);
}

static void file_free(struct usm_swap_device *d, bool unlink_file)
{
	if (unlink_file) {
		if (!path_names(d->path, d->fd))
			log_warning("swap file %s: the path names another file now, ignoring",
				    d->path);
		else if (unlink(d->path) < 0)
			log_warning_errno(errno, "swap file %s: removing it: %m, ignoring",
					  d->path);
	}
	/* systemd may have it for a moment longer (store.h), and the path may be added again at once. */
	flock(d->fd, LOCK_UN);
}

const struct usm_swap_device_ops usm_swap_file_ops = {
	.name = "file",
	.open = file_open,
	.quiesce = file_quiesce,
	.write = file_write,
	.read = file_read,
	.free = file_free,
};

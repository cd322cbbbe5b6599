/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* links: usmd/swap*.c usmd/lib/log.c */
#include "swap-fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <xxhash.h>

#include "lib/cleanup.h"

/* A request on data, not on the header or the scratch block. */
#define IS_DATA(offset) ((offset) >= USM_SWAP_FILE_DATA)

static struct usm_swap_file_header header_of(const char *path)
{
	struct usm_swap_file_header h;
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &h, sizeof(h), 0), sizeof(h));
	return h;
}

static void header_put(const char *path, struct usm_swap_file_header h)
{
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

	h.checksum = XXH3_64bits(&h, offsetof(struct usm_swap_file_header, checksum));
	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, &h, sizeof(h), 0), sizeof(h));
}

/* Adds a file that must be refused; the message has to say why. */
static void assert_refused(struct fixture *f, const char *name, int error, const char *why)
{
	_cleanup_free_ char *message = NULL;

	assert_int_equal(usm_swap_add_file(f->swap, fixture_path(f, name), MIB, 0, false, &message),
			 error);
	assert_non_null(message);
	if (!strstr(message, why))
		fail_msg("\"%s\" does not say \"%s\"", message, why);
	assert_int_equal(f->shared.device[0].in_use, 0);
}

static void add_and_remove(struct fixture *f, const char *name, bool unlink_file)
{
	assert_int_equal(fixture_add(f, name, MIB, 0), 0);
	assert_int_equal(usm_swap_remove_begin(f->swap, fixture_path(f, name)), 0);
	assert_int_equal(usm_swap_remove_finish(f->swap, fixture_path(f, name), unlink_file), 0);
}

/* ---- creating and reusing ---- */

static void test_format(void **state)
{
	struct fixture *f = *state;
	struct usm_swap_file_header h;
	struct usm_swap_info info;
	struct stat st;

	assert_int_equal(fixture_add(f, "a", 3 * MIB + 100, 7), 0);
	assert_int_equal(stat(fixture_path(f, "a"), &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_int_equal(st.st_size, 3 * MIB);
	assert_true((uint64_t)st.st_blocks * 512 >= 3 * MIB);
	h = header_of(fixture_path(f, "a"));
	assert_memory_equal(&h.magic, "USMDSWAP", 8);
	assert_int_equal(h.version, 1);
	assert_int_equal(h.state, USM_SWAP_FILE_READY);
	assert_int_equal(h.size_bytes, 3 * MIB);
	assert_int_equal(h.page_bytes, 4096);
	assert_int_equal(h.checksum,
			 XXH3_64bits(&h, offsetof(struct usm_swap_file_header, checksum)));
	assert_int_equal(usm_swap_list(f->swap, &info, 1), 1);
	assert_int_equal(info.nr_slots, 3 * 256 - 32);
	assert_int_equal(info.priority, 7);
	assert_string_equal(info.path, fixture_path(f, "a"));
	assert_true(fcntl(f->shared.device[0].fd, F_GETFD) & FD_CLOEXEC);
}

static void test_reuse(void **state)
{
	struct fixture *f = *state;
	uint8_t uuid[16], secret[USM_SWAP_SECRET];

	add_and_remove(f, "a", false);
	memcpy(uuid, header_of(fixture_path(f, "a")).uuid, sizeof(uuid));
	memcpy(secret, f->shared.device[0].secret, sizeof(secret));
	assert_int_equal(fixture_add(f, "a", MIB, 0), 0);
	assert_memory_equal(uuid, header_of(fixture_path(f, "a")).uuid, sizeof(uuid));
	/* What was swapped before is not readable with the new secret. */
	assert_memory_not_equal(secret, f->shared.device[0].secret, sizeof(secret));
}

static void test_refuses_others(void **state)
{
	struct fixture *f = *state;
	struct usm_swap_file_header h;
	char path[160];
	int fd;

	snprintf(path, sizeof(path), "%s/a", f->dir);
	/* A foreign file keeps its bytes. */
	fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, "precious", 8), 8);
	assert_refused(f, "a", -EEXIST, "not a swap file of usmd");
	assert_int_equal(ftruncate(fd, 2 * MIB), 0);
	assert_refused(f, "a", -EEXIST, "not a swap file of usmd");
	assert_int_equal(lseek(fd, 0, SEEK_END), 2 * MIB);
	close(fd);
	assert_int_equal(unlink(path), 0);

	add_and_remove(f, "ours", false);
	assert_int_equal(symlink(fixture_path(f, "ours"), path), 0);
	assert_refused(f, "a", -EEXIST, "not a regular file");
	assert_int_equal(unlink(path), 0);
	assert_int_equal(mkfifo(path, 0600), 0);
	assert_refused(f, "a", -EEXIST, "not a regular file");
	assert_int_equal(unlink(path), 0);
	assert_int_equal(mkdir(path, 0700), 0);
	assert_refused(f, "a", -EEXIST, "not a regular file");
	assert_int_equal(rmdir(path), 0);

	assert_int_equal(rename(fixture_path(f, "ours"), path), 0);
	assert_int_equal(chmod(path, 0640), 0);
	assert_refused(f, "a", -EEXIST, "640");
	assert_int_equal(chmod(path, 0600), 0);
	assert_int_equal(link(path, fixture_path(f, "second")), 0);
	assert_refused(f, "a", -EEXIST, "2 names");
	assert_int_equal(unlink(fixture_path(f, "second")), 0);
	if (geteuid() == 0) {
		assert_int_equal(chown(path, 12345, 0), 0);
		assert_refused(f, "a", -EEXIST, "user 12345");
		assert_int_equal(chown(path, 0, 0), 0);
	}
	fd = open(path, O_RDWR | O_CLOEXEC);
	assert_int_equal(flock(fd, LOCK_EX), 0);
	assert_refused(f, "a", -EEXIST, "in use already");
	close(fd);
	assert_int_equal(truncate(path, 2 * MIB), 0);
	assert_refused(f, "a", -EEXIST, "2097152 bytes, 1048576 were asked for");
	assert_int_equal(truncate(path, MIB), 0);

	h = header_of(path);
	h.version = 2;
	header_put(path, h);
	assert_refused(f, "a", -EEXIST, "version 2");
	h.version = 1;
	header_put(path, h);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	assert_int_equal(pwrite(fd, "x", 1, 20), 1); /* in the uuid: wrong checksum */
	close(fd);
	assert_refused(f, "a", -EEXIST, "not a swap file of usmd");
	header_put(path, h);
	assert_int_equal(fixture_add(f, "a", MIB, 0), 0);
}

static void test_two_instances(void **state)
{
	struct fixture *f = *state, *other;

	assert_int_equal(fixture_setup((void **)&other), 0);
	assert_int_equal(fixture_add(f, "a", MIB, 0), 0);
	assert_int_equal(usm_swap_add_file(other->swap, fixture_path(f, "a"), MIB, 0, false, NULL),
			 -EEXIST);
	assert_int_equal(fixture_teardown((void **)&other), 0);
}

static void test_half_made_is_made_anew(void **state)
{
	struct fixture *f = *state;
	struct usm_swap_file_header h;
	uint8_t uuid[16];

	add_and_remove(f, "a", false);
	h = header_of(fixture_path(f, "a"));
	memcpy(uuid, h.uuid, sizeof(uuid));
	h.state = USM_SWAP_FILE_FILLING;
	header_put(fixture_path(f, "a"), h);
	assert_int_equal(truncate(fixture_path(f, "a"), 300000), 0);
	assert_int_equal(fixture_add(f, "a", MIB, 0), 0);
	h = header_of(fixture_path(f, "a"));
	assert_int_equal(h.state, USM_SWAP_FILE_READY);
	assert_memory_not_equal(uuid, h.uuid, sizeof(uuid));
}

static void test_remove_spares_another_file(void **state)
{
	struct fixture *f = *state;
	int fd;

	assert_int_equal(fixture_add(f, "a", MIB, 0), 0);
	assert_int_equal(rename(fixture_path(f, "a"), fixture_path(f, "moved")), 0);
	fd = open(fixture_path(f, "a"), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	close(fd);
	assert_int_equal(usm_swap_remove_begin(f->swap, fixture_path(f, "a")), 0);
	assert_int_equal(usm_swap_remove_finish(f->swap, fixture_path(f, "a"), true), 0);
	assert_int_equal(access(fixture_path(f, "a"), F_OK), 0);
}

static void test_tmpfs(void **state)
{
	struct fixture *f = *state;
	char dir[] = "/dev/shm/usm-swap-XXXXXX", path[64];
	_cleanup_free_ uint8_t *p = NULL;
	struct usm_swap_info info;
	struct usm_swap_io io[4];
	struct statfs sf;
	uint32_t slots[4];

	if (statfs("/dev/shm", &sf) < 0 || sf.f_type != 0x01021994) {
		print_message("skipped: /dev/shm is not a tmpfs\n");
		skip();
	}
	p = pages_new(4);
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/a", dir);
	assert_int_equal(usm_swap_add_file(f->swap, path, MIB, 0, false, NULL), 0);
	assert_int_equal(usm_swap_list(f->swap, &info, 1), 1);
	assert_false(info.direct || info.uring);
	assert_int_equal(usm_swap_alloc(f->swap, slots, 4), 4);
	for (unsigned i = 0; i < 4; i++) {
		io[i] = (struct usm_swap_io){ slots[i], p + (3 - i) * USM_SWAP_PAGE, 1 };
		page_fill(io[i].buf, i);
	}
	assert_int_equal(usm_swap_write(f->swap, io, 4), 0);
	f->swap = usm_swap_free(f->swap);
	assert_int_equal(fixture_open(f), 0);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(usm_swap_ref_recovered(f->swap, slots[i]), 0);
	assert_int_equal(usm_swap_read(f->swap, io, 4), 0);
	for (unsigned i = 0; i < 4; i++)
		usm_swap_unref(f->swap, slots[i]);
	assert_int_equal(usm_swap_remove_begin(f->swap, path), 0);
	assert_int_equal(usm_swap_remove_finish(f->swap, path, true), 0);
	assert_int_equal(rmdir(dir), 0);
}

/* ---- transfers that fail ---- */

static int test_errno;
static unsigned test_countdown;

static ssize_t fail_data(bool write, uint64_t offset, void *buf, uint64_t len, ssize_t res)
{
	(void)buf;
	(void)len;
	return write && IS_DATA(offset) ? -test_errno : res;
}

/* Half of what was asked for, down to odd bytes, each time. */
static ssize_t short_data(bool write, uint64_t offset, void *buf, uint64_t len, ssize_t res)
{
	(void)write;
	(void)buf;
	return IS_DATA(offset) && res > 1 && len > USM_SWAP_PAGE ? (ssize_t)(len / 2 + 7) : res;
}

static ssize_t no_progress(bool write, uint64_t offset, void *buf, uint64_t len, ssize_t res)
{
	(void)write;
	(void)buf;
	(void)len;
	return IS_DATA(offset) && res > 0 ? 512 : res;
}

static ssize_t interrupt_some(bool write, uint64_t offset, void *buf, uint64_t len, ssize_t res)
{
	(void)write;
	(void)buf;
	(void)len;
	return IS_DATA(offset) && ++test_countdown % 5 ? -test_errno : res;
}

static ssize_t flip_read(bool write, uint64_t offset, void *buf, uint64_t len, ssize_t res)
{
	(void)len;
	if (!write && IS_DATA(offset) && res > 0)
		((uint8_t *)buf)[1234] ^= 4;
	return res;
}

/* One page, then the disk is full. */
static ssize_t full_after_one(bool write, uint64_t offset, void *buf, uint64_t len, ssize_t res)
{
	(void)buf;
	(void)len;
	if (!write || !IS_DATA(offset) || res <= 0)
		return res;
	return offset == USM_SWAP_FILE_DATA ? (ssize_t)USM_SWAP_PAGE : -ENOSPC;
}

#define PAGES 150

struct batch {
	struct usm_swap_io io[PAGES];
	uint32_t slots[PAGES];
	uint8_t *pages;
};

/* stride 1: one run, plain system calls; else scattered over the ring. */
static void batch_init(struct fixture *f, struct batch *b, unsigned stride)
{
	b->pages = pages_new(PAGES);
	assert_int_equal(fixture_add(f, "a", MIB, 0), 0);
	assert_int_equal(usm_swap_alloc(f->swap, b->slots, PAGES), PAGES);
	for (unsigned i = 0; i < PAGES; i++) {
		uint32_t slot = b->slots[i * stride % PAGES];

		b->io[i] = (struct usm_swap_io){ slot, b->pages + i * USM_SWAP_PAGE, 1 };
		page_fill(b->io[i].buf, slot);
	}
}

static void batch_check(struct fixture *f, struct batch *b)
{
	memset(b->pages, 0, PAGES * USM_SWAP_PAGE);
	assert_int_equal(usm_swap_read(f->swap, b->io, PAGES), 0);
	for (unsigned i = 0; i < PAGES; i++)
		assert_true(page_is(b->io[i].buf, b->io[i].slot));
}

static void failures(struct fixture *f, unsigned stride)
{
	uint64_t total, used, errors;
	struct usm_swap_info info;
	struct batch b;

	batch_init(f, &b, stride);
	usm_swap_test.nr_ring_requests = usm_swap_test.nr_sync_requests = 0;

	/* Failed writes: passed through, counted, and the slots match nothing. */
	usm_swap_test.transfer = fail_data;
	for (unsigned k = 0; k < 2; k++) {
		test_errno = k ? EIO : ENOSPC;
		assert_int_equal(usm_swap_write(f->swap, b.io, PAGES), -test_errno);
		for (unsigned i = 0; i < PAGES; i++) {
			assert_int_equal(b.io[i].result, -test_errno);
			assert_false(usm_swap_slot_matches(f->swap, b.io[i].slot, b.io[i].buf));
		}
	}
	assert_int_equal(usm_swap_list(f->swap, &info, 1), 1);
	assert_int_equal(info.nr_errors, 2 * PAGES);
	assert_int_equal(info.nr_writes, 0);
	usm_swap_totals(f->swap, &total, &used, &errors);
	assert_int_equal(errors, 2 * PAGES);

	usm_swap_test.transfer = no_progress;
	assert_int_equal(usm_swap_write(f->swap, b.io, PAGES), -EIO);
	test_errno = EINTR;
	usm_swap_test.transfer = interrupt_some;
	assert_int_equal(usm_swap_write(f->swap, b.io, PAGES), 0);
	batch_check(f, &b);
	test_errno = EAGAIN;
	assert_int_equal(usm_swap_write(f->swap, b.io, PAGES), 0);
	batch_check(f, &b);
	usm_swap_test.transfer = short_data;
	assert_int_equal(usm_swap_write(f->swap, b.io, PAGES), 0);
	batch_check(f, &b);
	usm_swap_test.transfer = NULL;
	batch_check(f, &b);

	/* A flipped bit belongs to the page it is in. */
	usm_swap_test.transfer = flip_read;
	assert_int_equal(usm_swap_read(f->swap, b.io, PAGES), -EBADMSG);
	assert_int_equal(b.io[0].result, -EBADMSG);
	if (stride == 1) {
		assert_int_equal(b.io[1].result, 0);
		assert_int_equal(usm_swap_test.nr_ring_requests, 0);
	} else if (info.uring) {
		assert_true(usm_swap_test.nr_ring_requests > 8 * PAGES);
		assert_int_equal(usm_swap_test.nr_sync_requests, 0);
	}
	usm_swap_test.transfer = NULL;
	batch_check(f, &b);
	free(b.pages);
}

static void test_failures_of_one_run(void **state)
{
	failures(*state, 1);
}

static void test_failures_on_the_ring(void **state)
{
	failures(*state, 7);
}

static void test_run_fails_half_way(void **state)
{
	struct fixture *f = *state;
	struct batch b;

	batch_init(f, &b, 1);
	usm_swap_test.transfer = full_after_one;
	assert_int_equal(usm_swap_write(f->swap, b.io, PAGES), -ENOSPC);
	assert_int_equal(b.io[0].result, 0);
	for (unsigned i = 1; i < PAGES; i++)
		assert_int_equal(b.io[i].result, -ENOSPC);
	usm_swap_test.transfer = NULL;
	assert_int_equal(usm_swap_read(f->swap, b.io, 1), 0);
	free(b.pages);
}

static void test_truncated_by_others(void **state)
{
	struct fixture *f = *state;
	struct batch b;

	batch_init(f, &b, 1);
	assert_int_equal(usm_swap_write(f->swap, b.io, PAGES), 0);
	assert_int_equal(truncate(fixture_path(f, "a"), USM_SWAP_FILE_DATA + 2 * USM_SWAP_PAGE), 0);
	assert_int_equal(usm_swap_read(f->swap, b.io, PAGES), -EIO);
	assert_int_equal(b.io[1].result, 0);
	assert_int_equal(b.io[2].result, -EIO);
	free(b.pages);
}

static void test_corrupt_on_disk(void **state)
{
	struct fixture *f = *state;
	struct batch b;
	int fd;

	batch_init(f, &b, 1);
	assert_int_equal(usm_swap_write(f->swap, b.io, PAGES), 0);
	fd = open(fixture_path(f, "a"), O_WRONLY | O_CLOEXEC);
	assert_int_equal(pwrite(fd, "x", 1, USM_SWAP_FILE_DATA + 3 * USM_SWAP_PAGE + 99), 1);
	close(fd);
	assert_int_equal(usm_swap_read(f->swap, b.io, PAGES), -EBADMSG);
	for (unsigned i = 0; i < PAGES; i++)
		assert_int_equal(b.io[i].result, i == 3 ? -EBADMSG : 0);
	/* Another slot's page is not this slot's. */
	f->hash[b.slots[4]] = f->hash[b.slots[5]];
	assert_int_equal(usm_swap_read(f->swap, &b.io[4], 1), -EBADMSG);
	free(b.pages);
}

/* The next device takes what one could not; when it is full, that one is tried again. */
static void test_failing_device_comes_last(void **state)
{
	struct fixture *f = *state;
	_cleanup_free_ uint32_t *slots = NULL;
	_cleanup_free_ uint8_t *page = pages_new(1);
	struct usm_swap_info info[2];
	struct usm_swap_io io = {.buf = page};
	unsigned all;

	assert_int_equal(fixture_add(f, "first", MIB, 5), 0);
	assert_int_equal(fixture_add(f, "next", MIB, -5), 0);
	assert_int_equal(usm_swap_list(f->swap, info, 2), 2);
	all = (unsigned)info[1].nr_slots;
	slots = calloc(all, sizeof(*slots));
	assert_non_null(slots);

	assert_int_equal(usm_swap_alloc(f->swap, &io.slot, 1), 1);
	page_fill(page, 1);
	usm_swap_test.transfer = fail_data;
	test_errno = ENOSPC;
	assert_int_equal(usm_swap_write(f->swap, &io, 1), -ENOSPC);
	usm_swap_unref(f->swap, io.slot);
	assert_int_equal(usm_swap_alloc(f->swap, slots, all), all);
	assert_int_equal(usm_swap_list(f->swap, info, 2), 2);
	assert_int_equal(info[0].nr_used, 0);
	assert_int_equal(info[1].nr_used, all);
	assert_int_equal(usm_swap_alloc(f->swap, &io.slot, 1), 1);
	assert_int_equal(usm_swap_list(f->swap, info, 2), 2);
	assert_int_equal(info[0].nr_used, 1);
}

/* Again and again is told as what it is, and goes on when it is over. */
static ssize_t never_memory(bool write, uint64_t offset, void *buf, uint64_t len, ssize_t res)
{
	(void)write;
	(void)buf;
	(void)len;
	return IS_DATA(offset) ? -ENOMEM : res;
}

static void test_no_memory_is_no_io_error(void **state)
{
	struct fixture *f = *state;
	struct batch b;

	batch_init(f, &b, 7);
	assert_int_equal(usm_swap_write(f->swap, b.io, PAGES), 0);
	test_errno = ENOMEM;
	usm_swap_test.transfer = interrupt_some;
	batch_check(f, &b);
	usm_swap_test.transfer = never_memory;
	assert_int_equal(usm_swap_read(f->swap, b.io, PAGES), -ENOMEM);
	usm_swap_test.transfer = NULL;
	batch_check(f, &b);
	free(b.pages);
}

static ssize_t fail_fill(bool write, uint64_t offset, void *buf, uint64_t len, ssize_t res)
{
	(void)buf;
	(void)len;
	return write && offset == USM_SWAP_FILE_SCRATCH ? -test_errno : res;
}

static ssize_t fail_header(bool write, uint64_t offset, void *buf, uint64_t len, ssize_t res)
{
	(void)buf;
	(void)len;
	return write && offset == 0 ? -EIO : res;
}

static void test_failed_creation_leaves_nothing(void **state)
{
	struct fixture *f = *state;

	usm_swap_test.transfer = fail_fill;
	test_errno = ENOSPC;
	assert_refused(f, "a", -ENOSPC, "no space");
	assert_int_not_equal(access(fixture_path(f, "a"), F_OK), 0);
	test_errno = EIO;
	assert_int_equal(fixture_add(f, "a", MIB, 0), -EIO);
	assert_int_not_equal(access(fixture_path(f, "a"), F_OK), 0);
	usm_swap_test.transfer = fail_header;
	assert_int_equal(fixture_add(f, "a", MIB, 0), -EIO);
	assert_int_not_equal(access(fixture_path(f, "a"), F_OK), 0);
	usm_swap_test.transfer = NULL;
	assert_int_equal(fixture_add(f, "a", MIB, 0), 0);
}

static int refuse_ring(void)
{
	return -test_errno;
}

static void test_no_rings(void **state)
{
	static const int errors[] = { EPERM, ENOSYS, ENOMEM };
	struct fixture *f = *state;
	struct usm_swap_info info;
	struct batch b;

	batch_init(f, &b, 7);
	assert_int_equal(usm_swap_write(f->swap, b.io, PAGES), 0);
	for (unsigned k = 0; k < ARRAY_SIZE(errors); k++) {
		usm_swap_free(f->swap);
		test_errno = errors[k];
		usm_swap_test.ring_init = refuse_ring;
		assert_int_equal(fixture_open(f), 0);
		usm_swap_test.nr_ring_requests = 0;
		assert_int_equal(usm_swap_list(f->swap, &info, 1), 1);
		assert_false(info.uring);
		for (unsigned i = 0; i < PAGES; i++)
			assert_int_equal(usm_swap_ref_recovered(f->swap, b.slots[i]), 0);
		batch_check(f, &b);
		assert_int_equal(usm_swap_test.nr_ring_requests, 0);
	}
	free(b.pages);
}

/* Works twice, then fails for ever: the requests in flight are waited for, the rest
 * is done without the ring. */
static int submit_twice(void)
{
	return ++test_countdown > 2 ? -test_errno : 0;
}

static void test_ring_breaks(void **state)
{
	static const int errors[] = { EBADR, EAGAIN };
	struct fixture *f = *state;
	struct usm_swap_info info;
	struct batch b;

	batch_init(f, &b, 7);
	assert_int_equal(usm_swap_list(f->swap, &info, 1), 1);
	if (!info.uring) {
		print_message("skipped: no io_uring here\n");
		free(b.pages);
		skip();
	}
	for (unsigned k = 0; k < ARRAY_SIZE(errors); k++) {
		test_errno = errors[k];
		test_countdown = 0;
		usm_swap_test.ring_submit = submit_twice;
		usm_swap_test.nr_sync_requests = 0;
		assert_int_equal(usm_swap_write(f->swap, b.io, PAGES), 0);
		assert_true(usm_swap_test.nr_sync_requests > 0);
		usm_swap_test.ring_submit = NULL;
		batch_check(f, &b);
	}
	/* Break all of them: batches go on without. */
	for (unsigned k = 0; k < 10; k++) {
		test_countdown = 2;
		usm_swap_test.ring_submit = submit_twice;
		test_errno = EBADR;
		assert_int_equal(usm_swap_write(f->swap, b.io, PAGES), 0);
	}
	usm_swap_test.nr_ring_requests = 0;
	batch_check(f, &b);
	assert_int_equal(usm_swap_test.nr_ring_requests, 0);
	free(b.pages);
}

/* ---- quiesce ---- */

/* A process is killed with direct writes in flight on a ring that outlives it; after
 * usm_swap_new none of them may change the file any more.  Many megabytes, because a
 * fast disk finishes less than that while the process dies. */
#define LATE_REQUESTS 256u
#define LATE_BYTES    (256u * 1024u) /* of each */
#define LATE_SLOTS    (LATE_BYTES / USM_SWAP_PAGE)

static void test_quiesce_waits_for_the_dead(void **state)
{
	struct fixture *f = *state;
	const unsigned nr_slots = LATE_REQUESTS * LATE_SLOTS;
	_cleanup_free_ uint8_t *late = NULL, *p = NULL;
	_cleanup_free_ uint32_t *slots = NULL;
	struct usm_swap_io io[LATE_REQUESTS];
	struct usm_swap_info info;

	assert_int_equal(fixture_add(f, "a", 65 * MIB, 0), 0);
	assert_int_equal(usm_swap_list(f->swap, &info, 1), 1);
	if (!info.uring) {
		print_message("skipped: no io_uring here\n");
		skip(); /* leaves without clean-up, so nothing is allocated above */
	}
	late = pages_new(nr_slots);
	p = pages_new(LATE_REQUESTS);
	slots = calloc(nr_slots, sizeof(*slots));
	assert_non_null(slots);
	memset(late, 0xee, (size_t)nr_slots * USM_SWAP_PAGE);
	assert_int_equal(usm_swap_alloc(f->swap, slots, nr_slots), nr_slots);
	for (unsigned round = 0; round < 10; round++) {
		struct io_uring ring;
		pid_t pid;

		f->swap = usm_swap_free(f->swap);
		/* The parent keeps the ring open, as the keeper's table does. */
		assert_int_equal(io_uring_queue_init(LATE_REQUESTS, &ring, 0), 0);
		pid = fork();
		if (pid == 0) {
			for (unsigned i = 0; i < LATE_REQUESTS; i++)
				io_uring_prep_write(io_uring_get_sqe(&ring),
						    f->shared.device[0].fd, late + i * LATE_BYTES,
						    LATE_BYTES,
						    USM_SWAP_FILE_DATA + i * LATE_BYTES);
			io_uring_submit(&ring);
			kill(getpid(), SIGKILL);
		}
		assert_true(pid > 0);
		assert_int_equal(waitpid(pid, NULL, 0), pid);

		assert_int_equal(fixture_open(f), 0);
		/* One slot of each request, the last first. */
		for (unsigned i = 0; i < LATE_REQUESTS; i++) {
			uint32_t slot = slots[(LATE_REQUESTS - 1 - i) * LATE_SLOTS + round];

			assert_int_equal(usm_swap_ref_recovered(f->swap, slot), 0);
			io[i] = (struct usm_swap_io){ slot, p + i * USM_SWAP_PAGE, 1 };
			page_fill(io[i].buf, round * 1000 + i);
		}
		assert_int_equal(usm_swap_write(f->swap, io, LATE_REQUESTS), 0);
		usleep(50000);
		memset(p, 0, LATE_REQUESTS * USM_SWAP_PAGE);
		assert_int_equal(usm_swap_read(f->swap, io, LATE_REQUESTS), 0);
		for (unsigned i = 0; i < LATE_REQUESTS; i++)
			assert_true(page_is(io[i].buf, round * 1000 + i));
		io_uring_queue_exit(&ring);
	}
}

/* Punched and allocated again by each recovery: what was in it is gone.  This is what
 * tells on a disk that is too fast for the test above. */
static void test_quiesce_rewrites_scratch(void **state)
{
	struct fixture *f = *state;
	struct stat before, after;
	struct usm_swap_info info;
	char path[160];
	uint8_t byte;

	snprintf(path, sizeof(path), "%s/a", f->dir);
	assert_int_equal(fixture_add(f, "a", MIB, 0), 0);
	assert_int_equal(usm_swap_list(f->swap, &info, 1), 1);
	if (!info.direct) {
		print_message("skipped: no direct I/O here\n");
		skip();
	}
	assert_int_equal(stat(path, &before), 0);
	for (unsigned i = 0; i < 3; i++) {
		int fd = open(path, O_RDWR | O_CLOEXEC);

		f->swap = usm_swap_free(f->swap);
		assert_int_equal(pwrite(fd, "x", 1, USM_SWAP_FILE_SCRATCH + 99), 1);
		assert_int_equal(fdatasync(fd), 0);
		assert_int_equal(fixture_open(f), 0);
		assert_int_equal(pread(fd, &byte, 1, USM_SWAP_FILE_SCRATCH + 99), 1);
		assert_int_equal(byte, 0);
		close(fd);
	}
	assert_int_equal(stat(path, &after), 0);
	assert_int_equal(after.st_size, before.st_size);
	assert_int_equal(after.st_blocks, before.st_blocks);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, fixture_setup, fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_format),
		TEST(test_reuse),
		TEST(test_refuses_others),
		TEST(test_two_instances),
		TEST(test_half_made_is_made_anew),
		TEST(test_remove_spares_another_file),
		TEST(test_tmpfs),
		TEST(test_failures_of_one_run),
		TEST(test_failures_on_the_ring),
		TEST(test_run_fails_half_way),
		TEST(test_truncated_by_others),
		TEST(test_failing_device_comes_last),
		TEST(test_no_memory_is_no_io_error),
		TEST(test_corrupt_on_disk),
		TEST(test_failed_creation_leaves_nothing),
		TEST(test_no_rings),
		TEST(test_ring_breaks),
		TEST(test_quiesce_waits_for_the_dead),
		TEST(test_quiesce_rewrites_scratch),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "arena.h"
#include "lib/cleanup.h"

/* 8 GiB of 4 KiB nodes: 2 Mi leaves map 4 TiB of touched address space. Sparse. */
#define NODES_MAX (2u << 20)
/* Frames of all pools, lent ones included: 1 TiB of memory. Sparse. */
#define FRAMES_MAX (256u << 20)
/* Slots of all swap devices: 256 GiB. Sparse. */
#define SLOTS_MAX (64u << 20)

/* Free node numbers; the engine's own memory, rebuilt by a new engine. */
struct arena_nodes {
	pthread_mutex_t lock;
	uint32_t *stack;
	uint32_t n, cap;
};

static size_t page_up(size_t n)
{
	return (n + USM_PAGE_SIZE - 1) & ~(USM_PAGE_SIZE - 1);
}

static int nodes_new(struct arena *a)
{
	struct arena_nodes *f = calloc(1, sizeof(*f));

	if (!f)
		return -ENOMEM;
	pthread_mutex_init(&f->lock, NULL);
	a->free_nodes = f;
	atomic_store(&a->nodes_top, 1);
	return 0;
}

/* What is laid out otherwise cannot be read, whatever its version says. */
void arena_id(char id[ARENA_ID_MAX + 1])
{
	snprintf(id, ARENA_ID_MAX + 1, "%u.%zx.%zx.%x.%x.%x.%u.%zx", ARENA_VERSION,
		 sizeof(struct arena_header), sizeof(struct arena_process), FRAMES_MAX, SLOTS_MAX,
		 NODES_MAX, USM_ATTACH_VERSION, sizeof(struct usm_agent_ops));
}

static void set_bases(struct arena *a, char *base, int fd)
{
	struct arena_header *h = (struct arena_header *)base;

	a->h = h;
	a->process = (struct arena_process *)(base + h->off_process);
	a->root = (_Atomic uint32_t *)(base + h->off_root);
	a->frame = (struct arena_frame *)(base + h->off_frame);
	a->hash = (struct usm_hash *)(base + h->off_hash);
	a->node = (union arena_node *)(base + h->off_node);
	a->fd = fd;
}

static int map_arena(int fd, size_t bytes, char **ret)
{
	char *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);

	if (base == MAP_FAILED)
		return -errno;
	*ret = base;
	return 0;
}

int arena_new(struct arena **ret)
{
	_cleanup_free_ struct arena *a = calloc(1, sizeof(*a));
	_cleanup_close_ int fd = -1;
	struct arena_header h = {
		.magic = ARENA_MAGIC,
		.version = ARENA_VERSION,
		.nr_frames = FRAMES_MAX,
		.nr_hash = SLOTS_MAX,
		.nr_nodes = NODES_MAX,
		.dev_fd = -1,
		.attach_fd = -1,
		.control_fd = -1,
		.runtime_lock_fd = -1,
		.wake_fd = -1,
		.keeper_pidfd = -1,
	};
	char *base = NULL;
	int r;

	if (!a)
		return -ENOMEM;
	arena_id(h.id);
	h.off_process = page_up(sizeof(h));
	h.off_root = h.off_process + page_up(sizeof(struct arena_process) * ARENA_PROCESSES);
	h.off_frame = h.off_root + sizeof(uint32_t) * ARENA_ROOT * ARENA_PROCESSES;
	h.off_hash = h.off_frame + page_up(sizeof(struct arena_frame) * (size_t)FRAMES_MAX);
	h.off_node = h.off_hash + page_up(sizeof(struct usm_hash) * (size_t)SLOTS_MAX);
	h.bytes = h.off_node + (size_t)NODES_MAX * ARENA_NODE_BYTES;

	fd = memfd_create("usmd-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)h.bytes) < 0)
		return -errno;
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0)
		return -errno;
	r = map_arena(fd, h.bytes, &base);
	if (r < 0)
		return r;
	a->fd = fd;
	a->h = (struct arena_header *)base;
	/* Header and processes: read() writes events into a record, and must find memory. */
	r = arena_reserve(a, base, h.off_root);
	if (r >= 0)
		r = nodes_new(a);
	if (r < 0) {
		munmap(base, h.bytes);
		return r;
	}
	memcpy(a->h, &h, sizeof(h));
	set_bases(a, base, TAKE_FD(fd));
	*ret = TAKE_PTR(a);
	return 0;
}

int arena_open(int fd, struct arena **ret, char *ret_id)
{
	_cleanup_free_ struct arena *a = calloc(1, sizeof(*a));
	struct arena_header h;
	char id[ARENA_ID_MAX + 1], *base = NULL;
	struct stat st;
	int r;

	if (!a)
		return -ENOMEM;
	memset(&h, 0, sizeof(h));
	/* Another's header may be shorter. */
	if (fstat(fd, &st) < 0 || pread(fd, &h, sizeof(h), 0) < 0)
		return -errno;
	memcpy(ret_id, h.id, ARENA_ID_MAX);
	ret_id[ARENA_ID_MAX] = '\0';
	arena_id(id);
	if (h.magic != ARENA_MAGIC || h.version != ARENA_VERSION || strcmp(id, ret_id) != 0 ||
	    (uint64_t)st.st_size != h.bytes)
		return -EPROTONOSUPPORT;
	r = map_arena(fd, h.bytes, &base);
	if (r < 0)
		return r;
	r = nodes_new(a);
	if (r < 0) {
		munmap(base, h.bytes);
		return r;
	}
	set_bases(a, base, fd);
	*ret = TAKE_PTR(a);
	return 0;
}

static void mark(uint8_t *known, unsigned n, int fd)
{
	if (fd >= 0 && (unsigned)fd < n)
		known[fd] = 1;
}

void arena_mark_descriptors(struct arena *a, uint8_t *known, unsigned n)
{
	struct arena_header *h = a->h;

	for (unsigned i = 0; i < USM_SWAP_DEVICES; i++)
		if (h->swap.device[i].in_use)
			mark(known, n, h->swap.device[i].fd);
	for (unsigned i = 0; i < arena_processes(a); i++) {
		struct arena_process *s = &a->process[i];

		if (s->state == PROCESS_FREE)
			continue;
		mark(known, n, s->uffd);
		mark(known, n, s->sock);
		mark(known, n, s->opsfd);
		mark(known, n, s->pidfd);
		/* A FORK event that was read and not applied: its child's userfaultfd. */
		for (unsigned k = 0; k < ARENA_JOURNAL; k++)
			if (s->journal[k].event == UFFD_EVENT_FORK)
				mark(known, n, (int)s->journal[k].arg.fork.ufd);
	}
	for (int fd = 0; fd < (int)MIN(n, ARENA_FDS); fd++)
		if (arena_fd_is(h->orphan, fd))
			known[fd] = 1;
}

struct arena *arena_free(struct arena *a)
{
	if (!a)
		return NULL;
	if (a->free_nodes) {
		free(a->free_nodes->stack);
		free(a->free_nodes);
	}
	if (a->fd >= 0)
		close(a->fd);
	if (a->h)
		munmap(a->h, a->h->bytes);
	free(a);
	return NULL;
}

int arena_reserve(struct arena *a, const void *addr, size_t bytes)
{
	off_t off = (const char *)addr - (const char *)a->h;
	off_t end = (off_t)page_up((size_t)off + bytes);

	off &= ~(off_t)(USM_PAGE_SIZE - 1);
	for (;;) {
		if (fallocate(a->fd, 0, off, end - off) == 0)
			return 0;
		if (errno != EINTR)
			return -errno;
	}
}

void arena_discard(struct arena *a, void *addr, size_t bytes)
{
	off_t off = (char *)addr - (char *)a->h;

	/* On failure the memory stays and holds old data: zero it instead. */
	if (fallocate(a->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, (off_t)bytes) < 0)
		memset(addr, 0, bytes);
}

uint32_t arena_node_new(struct arena *a)
{
	struct arena_nodes *f = a->free_nodes;
	uint32_t n = 0;

	pthread_mutex_lock(&f->lock);
	if (f->n > 0) {
		n = f->stack[--f->n];
		pthread_mutex_unlock(&f->lock);
		memset(&a->node[n], 0, sizeof(a->node[n]));
		return n;
	}
	/* A number is used up only if it has got its memory: who gets none asks again and again. */
	n = atomic_load(&a->nodes_top);
	if (n < a->h->nr_nodes && arena_reserve(a, &a->node[n], ARENA_NODE_BYTES) >= 0)
		atomic_store(&a->nodes_top, n + 1);
	else
		n = 0;
	pthread_mutex_unlock(&f->lock);
	return n;
}

static void free_push(struct arena_nodes *f, uint32_t node)
{
	if (f->n == f->cap) {
		uint32_t cap = f->cap ? f->cap * 2 : 256;
		uint32_t *s = realloc(f->stack, cap * sizeof(*s));

		if (!s)
			return; /* leaked until the next engine recomputes */
		f->stack = s;
		f->cap = cap;
	}
	f->stack[f->n++] = node;
}

void arena_node_release(struct arena *a, uint32_t node)
{
	struct arena_nodes *f = a->free_nodes;

	pthread_mutex_lock(&f->lock);
	free_push(f, node);
	pthread_mutex_unlock(&f->lock);
}

int arena_nodes_recover(struct arena *a, const uint8_t *in_use, uint32_t top)
{
	struct arena_nodes *f = a->free_nodes;

	f->n = 0;
	for (uint32_t i = 1; i < top; i++)
		if (!in_use[i] && arena_reserve(a, &a->node[i], ARENA_NODE_BYTES) >= 0)
			free_push(f, i);
	atomic_store(&a->nodes_top, top);
	return 0;
}

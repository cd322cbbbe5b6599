/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dlfcn.h>
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <usm/list.h>

#include "lib/cleanup.h"
#include "lib/log.h"
#include "lib/parse.h"
#include "policy.h"
#include "process.h"
#include "reclaim.h"

/* Wrong answers are logged at most this often for each set. */
#define LOG_INTERVAL_NSEC 1000000000ull

/* A policy that names no victim that still is one this often in a row has none. */
#define STALE_VICTIMS 8

enum call { CALL_NONE, CALL_SETUP, CALL_ALLOC, CALL_VICTIMS, CALL_OTHER };

/* What this thread has asked of a policy; what the plugin calls back is judged by it. */
static __thread struct {
	enum call call;
	struct pool *pool;
	struct policy_set *set;
	uint32_t process;
	uint64_t vpn;
	uint32_t frame;
	uint32_t in_use; /* a frame that it offered though it is in use, 0: none */
	bool submitted;
	uint32_t *victims;
	unsigned nr_victims, max_victims;
	struct arena_worker *record;
} ctx;

void policy_thread(struct arena_worker *record)
{
	ctx.record = record;
}

static void enter(struct pool *pool, enum call call)
{
	ctx.call = call;
	ctx.pool = pool;
	ctx.set = pool->set;
	if (ctx.record) {
		atomic_store_explicit(&ctx.record->pool, pool->number + 1, memory_order_relaxed);
		atomic_store_explicit(&ctx.record->since_nsec, now_nsec(), memory_order_release);
	}
}

static void leave(void)
{
	ctx.call = CALL_NONE;
	if (ctx.record) {
		atomic_store_explicit(&ctx.record->since_nsec, 0, memory_order_release);
		atomic_store_explicit(&ctx.record->pool, 0, memory_order_relaxed);
	}
}

static void wrong_answer(struct policy_set *set, const char *what, uint64_t addr)
{
	struct core *c = set->pool->core;
	uint64_t now = now_nsec(), last = atomic_load(&set->log_nsec);
	const struct arena_process *asked = NULL;

	atomic_fetch_add(&c->arena->h->nr_policy_errors, 1);
	atomic_fetch_add(&set->policy[0].nr_errors, 1);
	if (now - last < LOG_INTERVAL_NSEC ||
	    !atomic_compare_exchange_strong(&set->log_nsec, &last, now))
		return;
	if (ctx.call == CALL_ALLOC)
		asked = c->process[ctx.process].shared;
	log_event(LOG_WARNING,
		  &((struct usm_log_fields){.event = "policy",
					    .message_id = USM_MSG_POLICY,
					    .process = asked ? asked->name : NULL,
					    .pid = asked ? asked->pid : 0,
					    .policy = set->policy[0].name,
					    .addr = addr}),
		  "Policy %s (%s): %s; refused", set->policy[0].name, set->file, what);
}

static struct policy *set_policy(struct policy_set *set)
{
	for (unsigned i = 0; i < set->nr_policies; i++)
		if (set->policy[i].is_default && set->policy[i].alloc.usm_alloc)
			return &set->policy[i];
	return &set->policy[0];
}

/* --- what plugins call ------------------------------------------------------------- */

static struct policy *registered(const char *name)
{
	struct policy_set *set = ctx.set;

	if (ctx.call != CALL_SETUP || !set) {
		log_warning("A policy registered '%s' outside its setup function; refused", name);
		return NULL;
	}
	if (!name || !usm_name_is_valid(name)) {
		log_warning("%s: a policy's name must be 1 to %d printable characters without "
			    "spaces or slashes; refused",
			    set->file, USM_NAME_MAX);
		return NULL;
	}
	for (unsigned i = 0; i < set->nr_policies; i++)
		if (!strcmp(set->policy[i].name, name))
			return &set->policy[i];
	if (set->nr_policies == POLICY_SET_MAX) {
		log_warning("%s: more than %d policies; '%s' refused", set->file, POLICY_SET_MAX,
			    name);
		return NULL;
	}
	set->policy[set->nr_policies].set = set;
	strcpy(set->policy[set->nr_policies].name, name);
	return &set->policy[set->nr_policies++];
}

int usm_register_alloc_policy_abi(const struct usm_alloc_policy_ops *ops, const char *name,
				  bool is_default, unsigned int abi, size_t size)
{
	struct policy *p;

	if (abi > USM_POLICY_ABI) {
		log_warning("Policy '%s' was built for policy ABI %u, this usmd has %u; refused", name,
			    abi, USM_POLICY_ABI);
		return 1;
	}
	p = registered(name);
	if (!p)
		return 1;
	memcpy(&p->alloc, ops, MIN(size, sizeof(p->alloc)));
	if (!p->alloc.usm_alloc || (!p->alloc.usm_pindex_free && !p->alloc.usm_free)) {
		log_warning("Policy '%s' lacks usm_alloc or usm_pindex_free; refused", name);
		memset(&p->alloc, 0, sizeof(p->alloc));
		return 1;
	}
	p->is_default = is_default;
	return 0;
}

int usm_register_swap_policy_abi(const struct usm_swap_policy_ops *ops, const char *name,
				 bool is_default, unsigned int abi, size_t size)
{
	struct policy *p;

	if (abi > USM_POLICY_ABI) {
		log_warning("Policy '%s' was built for policy ABI %u, this usmd has %u; refused", name,
			    abi, USM_POLICY_ABI);
		return 1;
	}
	p = registered(name);
	if (!p)
		return 1;
	memcpy(&p->swap, ops, MIN(size, sizeof(p->swap)));
	p->has_swap = true;
	p->is_default |= is_default;
	return 0;
}

/* The frame that an address names, if it belongs to the set that is being called. */
static bool own_frame(unsigned long paddr, uint32_t *ret)
{
	uint64_t n = (paddr - POOL_BASE) >> 12;

	if (!ctx.pool || paddr < POOL_BASE || paddr % USM_PAGE_SIZE || n < ctx.pool->first ||
	    n - ctx.pool->first >= ctx.pool->nr)
		return false;
	*ret = (uint32_t)n;
	return true;
}

int usmSubmitAllocEvent(struct usm_event *event)
{
	uint32_t frame;

	if (ctx.call != CALL_ALLOC || ctx.submitted || event->vaddr != ctx.vpn << 12)
		return 1;
	if (!own_frame(event->paddr, &frame)) {
		wrong_answer(ctx.set, "answered with a frame that is not its own", event->vaddr);
		return 1;
	}
	if (!pool_take(ctx.pool, frame, ctx.process, ctx.vpn)) {
		ctx.in_use = frame;
		/* usmd chose it itself meanwhile: that is no error of the policy. */
		if (ctx.pool->taken_by[frame - ctx.pool->first])
			wrong_answer(ctx.set, "answered with a frame that is not free", event->vaddr);
		return 1;
	}
	ctx.frame = frame;
	ctx.submitted = true;
	return 0;
}

void usmLinkPage(struct page *page, struct usm_event *event)
{
	page->virtualAddress = event->vaddr;
	page->process = event->origin;
}

int usm_clear_and_set(struct usm_event *event)
{
	uint32_t frame;

	if (!own_frame(event->paddr, &frame))
		return 1;
	return atomic_load(&pool_frame(ctx.pool->core, frame)->owner) ? 0 : 1;
}

static int swap_out(struct to_swap *victim)
{
	struct pool *pool = ctx.pool;
	uint32_t frame;

	if (!victim)
		return 1;
	if (!victim->page || !own_frame(victim->page->physicalAddress, &frame)) {
		if (ctx.set)
			wrong_answer(ctx.set, "named a victim that is not its own",
				     victim->swapped_address);
		free(victim);
		return 1;
	}
	free(victim);
	/* Its program has ended or unmapped it since it was chosen.  pool_release() has announced
	 * it: once more, and the policy could be told of a frame that it has given out again. */
	if (!atomic_load(&pool_frame(pool->core, frame)->owner))
		return 1;
	if (ctx.call == CALL_VICTIMS) {
		if (ctx.nr_victims == ctx.max_victims)
			return 1;
		ctx.victims[ctx.nr_victims++] = frame;
		return 0;
	}
	if (ctx.call == CALL_ALLOC) {
		/* The guides' form: evict inside usm_alloc, then look at the free list again.
		 * The wait is not decision time. */
		typeof(ctx) saved = ctx;

		leave();
		reclaim_frames_now(pool, &frame, 1);
		pool_flush(pool);
		ctx = saved;
		enter(pool, CALL_ALLOC);
		return 0;
	}
	return 1;
}

/* A page comes back when it is touched, not when a policy says so. */
static int swap_in(struct to_swap *page)
{
	(void)page;
	return 1;
}

static struct swap_device device = {
	.swap_dev_ops = {.swap_out = swap_out, .swap_in = swap_in},
	.name = "file",
};

struct swap_device *choose_swap_device(int process)
{
	(void)process;
	return &device;
}

/* As in <usm/usm.h>, which is for plugins alone. */
struct swap_node {
	struct list_head iulist;
	struct to_swap *toSwapHolder;
};
struct list_head *getSwapNode(struct swap_device *dev);

struct list_head *getSwapNode(struct swap_device *dev)
{
	/* The core finds the slot itself; the node is only what the guides' code fills in. */
	static __thread struct swap_node node;

	(void)dev;
	node = (struct swap_node){.iulist = {&node.iulist, &node.iulist}};
	return &node.iulist;
}

/* --- loading ----------------------------------------------------------------------- */

static int refuse(char **ret_message, int error, const char *fmt, const char *a, const char *b)
{
	if (ret_message && asprintf(ret_message, fmt, a, b) < 0)
		*ret_message = NULL;
	return error;
}

int policy_file_check(const char *file, char **ret_message)
{
	char path[PATH_MAX];
	struct stat st;

	if (!realpath(file, path))
		return refuse(ret_message, -errno, "Policy file %s: %s", file, strerror(errno));
	for (;;) {
		if (stat(path, &st) < 0)
			return -errno;
		/* A sticky folder like /tmp does not let others replace what is ours. */
		if ((st.st_uid != 0 && st.st_uid != geteuid()) ||
		    (st.st_mode & 022 && !(S_ISDIR(st.st_mode) && st.st_mode & S_ISVTX)))
			return refuse(ret_message, -EPERM,
				      "Policy file %s: %s must be owned by root and not be "
				      "writable by group or others",
				      file, path);
		if (!strcmp(path, "/"))
			return 0;
		dirname(path);
	}
}

int policy_set_load(struct pool *pool, const char *file, struct policy_set **ret,
		    char **ret_message)
{
	struct policy_set *set;
	int r = policy_file_check(file, ret_message);

	if (r < 0)
		return r;
	set = calloc(1, sizeof(*set));
	if (!set)
		return -ENOMEM;
	snprintf(set->file, sizeof(set->file), "%s", file);
	set->pool = pool;
	set->handle = dlopen(file, RTLD_NOW | RTLD_LOCAL);
	if (!set->handle) {
		r = refuse(ret_message, -ELIBBAD, "Cannot load policy file %s: %s", file, dlerror());
		policy_set_unload(set);
		return r;
	}
	set->ops = dlsym(set->handle, "dev_usm_ops");
	set->pages_list = dlsym(set->handle, "pagesList");
	set->evict_fallback = dlsym(set->handle, "usm_evict_fallback");
	if (!set->ops || !set->ops->usm_setup) {
		r = refuse(ret_message, -ENOEXEC,
			   "%s is not a policy: it has no 'struct usm_ops dev_usm_ops' with a "
			   "usm_setup function%s",
			   file, "");
		set->ops = NULL;
		policy_set_unload(set);
		return r;
	}
	if (set->pages_list)
		*set->pages_list = pool->pages;
	pool->set = set;
	enter(pool, CALL_SETUP);
	r = set->ops->usm_setup(pool->nr);
	leave();
	for (unsigned i = 0; r == 0 && i < set->nr_policies; i++)
		if (set->policy[i].alloc.usm_init && set->policy[i].alloc.usm_init() != 0)
			r = 1;
	if (r != 0 || !set->nr_policies || !set_policy(set)->alloc.usm_alloc) {
		r = refuse(ret_message, -ENOEXEC, "The setup of %s failed%s", file,
			   r ? "" : ": it registered no allocation policy");
		pool->set = NULL;
		policy_set_unload(set);
		return r;
	}
	*ret = set;
	return 0;
}

struct policy_set *policy_set_unload(struct policy_set *set)
{
	if (!set)
		return NULL;
	if (set->ops && set->ops->usm_free)
		set->ops->usm_free();
	if (set->handle)
		dlclose(set->handle);
	free(set);
	return NULL;
}

struct policy *policy_set_find(struct policy_set *set, const char *name)
{
	for (unsigned i = 0; i < set->nr_policies; i++)
		if (!strcmp(set->policy[i].name, name))
			return &set->policy[i];
	return NULL;
}

void policy_serve(struct process *p, struct pool *pool, const char *name)
{
	struct policy *policy = pool->set ? policy_set_find(pool->set, name) : NULL;

	/* A thread that sees one without the other takes the set's default for a moment. */
	atomic_store(&p->policy, NULL);
	atomic_store(&p->swap_policy, NULL);
	atomic_store(&p->pool, pool);
	atomic_store(&p->policy, policy && policy->alloc.usm_alloc ? policy : NULL);
}

int policy_swap_by(struct process *p, const char *name)
{
	struct pool *pool = atomic_load(&p->pool);
	struct policy *policy = NULL;
	bool none = !strcmp(name, "none");

	if (name[0] && !none && pool && pool->set)
		policy = policy_set_find(pool->set, name);
	atomic_store(&p->swap_policy, policy);
	atomic_store(&p->swap_none, none);
	return name[0] && !none && !policy ? -ENOENT : 0;
}

/* --- calling ----------------------------------------------------------------------- */

static void count_decision(struct policy *policy, unsigned n, uint64_t nsec)
{
	atomic_fetch_add_explicit(&policy->nr_allocs, n, memory_order_relaxed);
	atomic_fetch_add_explicit(&policy->nsec_total, nsec, memory_order_relaxed);
	if (n && nsec / n > atomic_load_explicit(&policy->nsec_max, memory_order_relaxed))
		atomic_store(&policy->nsec_max, nsec / n);
}

/* Who has the frame in his lists. */
static struct policy *taken_by(struct pool *pool, size_t page)
{
	unsigned n = pool->taken_by[page];

	return n && n <= pool->set->nr_policies ? &pool->set->policy[n - 1] : set_policy(pool->set);
}

/* Who is to name victims: the policies of the processes with pages here take turns. */
static struct policy *victims_by(struct pool *pool)
{
	struct core *c = pool->core;
	uint32_t n = arena_processes(c->arena), turn = atomic_load(&pool->victims_turn);

	for (uint32_t i = 0; pool->set->nr_policies > 1 && i < n; i++) {
		struct process *p = &c->process[(turn + i) % n];
		struct policy *policy;

		if (atomic_load(&p->shared->state) != PROCESS_LIVE ||
		    atomic_load(&p->pool) != pool || atomic_load(&p->nr_resident) <= 0)
			continue;
		atomic_store(&pool->victims_turn, (turn + i + 1) % n);
		policy = atomic_load(&p->swap_policy);
		if (!policy)
			policy = atomic_load(&p->policy);
		if (policy && policy->set == pool->set)
			return policy;
		break;
	}
	return set_policy(pool->set);
}

unsigned policy_alloc(struct pool *pool, uint32_t process, const uint64_t *vpn, unsigned n,
		      enum usm_event_type type, uint32_t *frames)
{
	struct policy *policy;
	uint64_t start;
	unsigned i;

	if (!pool->set) {
		for (i = 0; i < n; i++)
			if (!pool_take_any(pool, process, vpn[i], &frames[i]))
				break;
		return i;
	}
	pool_flush(pool);
	policy = atomic_load(&pool->core->process[process].policy);
	if (!policy || policy->set != pool->set)
		policy = set_policy(pool->set);
	ctx.process = process;
	ctx.in_use = 0;
	start = now_nsec();
	enter(pool, CALL_ALLOC);
	for (i = 0; i < n; i++) {
		struct usm_event event = {
			.vaddr = vpn[i] << 12,
			.length = USM_PAGE_SIZE,
			.origin = (int)process,
			.type = type,
		};
		int r;

		ctx.vpn = vpn[i];
		ctx.submitted = false;
		r = policy->alloc.usm_alloc(&event);
		if (ctx.submitted) {
			/* What it says after it has submitted does not take the frame back. */
			frames[i] = ctx.frame;
			pool->taken_by[ctx.frame - pool->first] =
				(uint8_t)(policy - pool->set->policy + 1);
			continue;
		}
		if (r == 0)
			wrong_answer(pool->set, "said that it allocated without submitting a frame",
				     event.vaddr);
		break;
	}
	leave();
	/* It would offer the same frame for ever: it is told that the frame is in use. */
	if (ctx.in_use)
		policy_give_back(pool, &ctx.in_use, 1);
	count_decision(policy, i, now_nsec() - start);
	return i;
}

unsigned policy_victims(struct pool *pool, uint32_t *frames, unsigned max)
{
	struct policy_set *set = pool->set;
	void (*fallback)(struct usm_event *);
	struct policy *policy;
	unsigned n;

	if (set) {
		pool_flush(pool);
		policy = victims_by(pool);
		fallback = set->evict_fallback ? *set->evict_fallback : NULL;
		ctx.victims = frames;
		ctx.nr_victims = 0;
		ctx.max_victims = max;
		enter(pool, CALL_VICTIMS);
		if (policy->has_swap && policy->swap.usm_swap) {
			policy->swap.usm_swap(max);
		} else if (fallback) {
			unsigned stale = 0;

			do {
				struct usm_event event = {.type = USM_EVENT_EVICT, .origin = -1};

				n = ctx.nr_victims;
				fallback(&event);
				stale = ctx.nr_victims > n ? 0 : stale + 1;
			} while (stale < STALE_VICTIMS && ctx.nr_victims < max);
		}
		leave();
		if (ctx.nr_victims)
			return ctx.nr_victims;
	}
	return pool_victims(pool, frames, max);
}

void policy_give_back(struct pool *pool, const uint32_t *frames, unsigned n)
{
	struct page *pages[USM_OPS_BATCH];

	for (unsigned j = 0; pool->set && j < pool->set->nr_policies; j++) {
		struct policy *policy = &pool->set->policy[j];
		unsigned k = 0;

		if (!policy->alloc.put_used_pages)
			continue;
		for (unsigned i = 0; i < n && k < USM_OPS_BATCH; i++)
			if (!pool_is_lent(pool, frames[i]) &&
			    atomic_load(&pool_frame(pool->core, frames[i])->owner) &&
			    taken_by(pool, frames[i] - pool->first) == policy)
				pages[k++] = &pool->pages[frames[i] - pool->first];
		if (!k)
			continue;
		enter(pool, CALL_OTHER);
		policy->alloc.put_used_pages(pages, k);
		leave();
	}
}

bool policy_oom(struct pool *pool, uint32_t process, uint64_t vpn)
{
	struct usm_event event = {
		.vaddr = vpn << 12, .length = USM_PAGE_SIZE, .origin = (int)process};
	struct policy *policy;
	int r;

	if (!pool->set)
		return false;
	policy = set_policy(pool->set);
	if (!policy->alloc.usm_oom)
		return false;
	enter(pool, CALL_OTHER);
	r = policy->alloc.usm_oom(&event);
	leave();
	return r == 0;
}

void policy_frame_freed(struct pool *pool, struct page *page)
{
	struct usm_event event = {
		.type = USM_EVENT_FREE,
		.paddr = page->physicalAddress,
		.length = USM_PAGE_SIZE,
		.origin = -1,
	};
	typeof(ctx) saved = ctx;
	struct policy *policy;

	if (!pool->set)
		return;
	policy = taken_by(pool, (size_t)(page - pool->pages));
	enter(pool, CALL_OTHER);
	if (policy->alloc.usm_pindex_free)
		policy->alloc.usm_pindex_free(&event);
	else
		policy->alloc.usm_free(&event);
	leave();
	ctx = saved;
}

unsigned policy_list(struct pool *pool, bool used, unsigned offset, uint32_t *frames, unsigned max)
{
	unsigned (*list)(struct page **, unsigned, unsigned) = NULL;
	unsigned n = 0, seen = 0;

	if (pool->set) {
		struct policy *policy = set_policy(pool->set);

		list = used ? policy->alloc.get_used_pages : policy->alloc.get_pages;
	}
	if (list) {
		_cleanup_free_ struct page **pages = calloc(max, sizeof(*pages));
		unsigned got;

		if (!pages)
			return 0;
		enter(pool, CALL_OTHER);
		got = list(pages, offset, max);
		leave();
		for (unsigned i = 0; i < MIN(got, max); i++) {
			ptrdiff_t at = pages[i] - pool->pages;

			if (at >= 0 && at < (ptrdiff_t)pool->nr)
				frames[n++] = pool->first + (uint32_t)at;
		}
		return n;
	}
	for (uint32_t i = 0; i < 2 * pool->nr && n < max; i++) {
		bool is_used = atomic_load(&pool_frame(pool->core, pool->first + i)->owner) != 0;

		if (is_used != used || (!used && i >= pool->nr) || seen++ < offset)
			continue;
		frames[n++] = pool->first + i;
	}
	return n;
}

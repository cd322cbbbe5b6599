/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Plugins, built while the test runs as a user would build them: what is not loaded and
 * why, wrong answers and what they cost, and what policyOne decides.
 */
#include "core-fixture.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>

#include "capture.h"
#include "lib/cleanup.h"

#define VPN0 0x1000ull

struct loaded {
	struct core_fixture *f;
	struct pool *pool;
	struct process *p;
	char *message;
	int result;
	char log[4096];
};

static void build(struct core_fixture *f, const char *source, const char *plugin, char *file,
		  size_t size)
{
	char command[1024];

	snprintf(file, size, "%s/%s.so", f->dir, plugin);
	snprintf(command, sizeof(command),
		 "cc -std=gnu11 -Wall -Wextra -O1 -fPIC -shared -DPLUGIN=%s -Iusmd/include -o %s %s",
		 plugin, file, source);
	assert_int_equal(system(command), 0);
	assert_int_equal(chmod(file, 0644), 0);
}

static void load_file(struct core_fixture *f, const char *file, struct loaded *ret)
{
	struct policy_set *set = (void *)1;
	struct capture c;

	*ret = (struct loaded){.f = f, .pool = fixture_pool(f, 0)};
	capture_begin(&c);
	ret->result = policy_set_load(ret->pool, file, &set, &ret->message);
	snprintf(ret->log, sizeof(ret->log), "%.4000s", capture_end(&c));
	if (ret->result < 0) {
		/* Outputs are untouched, and the pool serves on its own. */
		assert_ptr_equal(set, (void *)1);
		assert_null(ret->pool->set);
		return;
	}
	assert_ptr_equal(ret->pool->set, set);
	ret->p = fixture_process(f, "program");
}

static void load(struct core_fixture *f, const char *plugin, struct loaded *ret)
{
	char file[300];

	build(f, "tests/unit/policy-plugin.c", plugin, file, sizeof(file));
	load_file(f, file, ret);
}

static int plugin_int(struct loaded *l, const char *name)
{
	int *v = dlsym(l->pool->set->handle, name);

	assert_non_null(v);
	return *v;
}

/* One page; the frame's place in the pool, or -1. */
static int alloc_one(struct loaded *l, uint64_t vpn)
{
	uint32_t frame = 0;
	unsigned n = policy_alloc(l->pool, l->p->number, &vpn, 1, USM_EVENT_FIRST_TOUCH, &frame);

	if (!n)
		return -1;
	assert_int_equal(n, 1);
	assert_true(atomic_load(&pool_frame(&l->f->core, frame)->owner) ==
		    ARENA_OWNER(l->p->number, vpn));
	return (int)(frame - l->pool->first);
}

/* A wrong answer: no page gets a frame by it, and it is counted and logged. */
static void check_refused(struct loaded *l, uint64_t vpn, const char *text)
{
	struct core *c = &l->f->core;
	uint64_t errors = atomic_load(&c->arena->h->nr_policy_errors);
	int64_t used = atomic_load(&c->nr_used);
	struct capture cap;
	const char *log;

	atomic_store(&l->pool->set->log_nsec, 0);
	capture_begin(&cap);
	assert_int_equal(alloc_one(l, vpn), -1);
	log = capture_end(&cap);
	assert_int_equal(atomic_load(&c->arena->h->nr_policy_errors), errors + 1);
	assert_int_equal(atomic_load(&c->nr_used), used);
	assert_non_null(strstr(log, "Policy test"));
	assert_non_null(strstr(log, text));
}

static void check_not_loaded(struct loaded *l, int error, const char *text)
{
	assert_int_equal(l->result, error);
	assert_non_null(l->message);
	if (!strstr(l->message, text) && !strstr(l->log, text))
		fail_msg("expected '%s' in: %s / %s", text, l->message, l->log);
	free(l->message);
}

/* --- what is not loaded -------------------------------------------------------------- */

static void test_refused_plugins(void **state)
{
	static const struct {
		const char *plugin, *text;
	} cases[] = {
		{"NO_ALLOC", "lacks usm_alloc"},
		{"NO_FREE", "usm_pindex_free"},
		{"NEWER_ABI", "policy ABI 2"},
		{"BAD_NAME", "printable characters"},
		{"SETUP_FAILS", "setup of"},
		{"INIT_FAILS", "setup of"},
		{"REGISTERS_NONE", "registered no allocation policy"},
	};

	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		struct loaded l;

		load(*state, cases[i].plugin, &l);
		check_not_loaded(&l, -ENOEXEC, cases[i].text);
		pool_free(l.pool);
		((struct core_fixture *)*state)->core.pool[0] = NULL;
	}
}

static void write_file(const char *path, const char *text)
{
	FILE *file = fopen(path, "w");

	assert_non_null(file);
	fputs(text, file);
	fclose(file);
}

static void test_refused_files(void **state)
{
	struct core_fixture *f = *state;
	char file[300], source[300], link[300], path[600];
	struct loaded l;

	snprintf(file, sizeof(file), "%s/none.so", f->dir);
	load_file(f, file, &l);
	check_not_loaded(&l, -ENOENT, "none.so");
	pool_free(l.pool);
	write_file(file, "not a library");
	load_file(f, file, &l);
	check_not_loaded(&l, -ELIBBAD, "none.so");
	pool_free(l.pool);
	/* A library, but no policy. */
	snprintf(source, sizeof(source), "%s/empty.c", f->dir);
	write_file(source, "int nothing;\n");
	build(f, source, "EMPTY", file, sizeof(file));
	load_file(f, file, &l);
	check_not_loaded(&l, -ENOEXEC, "dev_usm_ops");
	pool_free(l.pool);

	/* Others could change it: by its mode, its owner, the folder above, through a link. */
	build(f, "tests/unit/policy-plugin.c", "GOOD", file, sizeof(file));
	assert_int_equal(policy_file_check(file, NULL), 0);
	assert_int_equal(chmod(file, 0664), 0);
	load_file(f, file, &l);
	check_not_loaded(&l, -EPERM, "must be owned by root and not be writable");
	pool_free(l.pool);
	assert_int_equal(chmod(file, 0646), 0);
	assert_int_equal(policy_file_check(file, NULL), -EPERM);
	assert_int_equal(chmod(file, 0644), 0);
	if (getuid() == 0) {
		assert_int_equal(chown(file, 65534, 65534), 0);
		assert_int_equal(policy_file_check(file, NULL), -EPERM);
		assert_int_equal(chown(file, 0, 0), 0);
	}
	assert_int_equal(policy_file_check(file, NULL), 0);
	assert_int_equal(chmod(f->dir, 0777), 0);
	assert_int_equal(policy_file_check(file, NULL), -EPERM);
	/* Sticky, as /tmp: others can put files there, but not replace ours. */
	assert_int_equal(chmod(f->dir, 01777), 0);
	assert_int_equal(policy_file_check(file, NULL), 0);
	assert_int_equal(chmod(f->dir, 0755), 0);
	snprintf(path, sizeof(path), "%s/open", f->dir);
	assert_int_equal(mkdir(path, 0755), 0);
	assert_int_equal(chmod(path, 0777), 0);
	snprintf(path, sizeof(path), "%s/open/good.so", f->dir);
	snprintf(link, sizeof(link), "%s/link.so", f->dir);
	assert_int_equal(rename(file, path), 0);
	assert_int_equal(symlink(path, link), 0);
	assert_int_equal(policy_file_check(link, NULL), -EPERM);
	f->core.pool[0] = NULL;
}

/* --- wrong answers --------------------------------------------------------------------- */

static void test_wrong_frames(void **state)
{
	struct loaded l;

	load(*state, "WRONG_FRAME", &l);
	assert_int_equal(l.result, 0);
	for (unsigned i = 0; i < 7; i++)
		check_refused(&l, VPN0 + i, "not its own");
	assert_int_equal(atomic_load(&l.pool->nr_used), 0);
}

static void test_taken_frame(void **state)
{
	struct loaded l;

	load(*state, "TAKEN_FRAME", &l);
	assert_int_equal(alloc_one(&l, VPN0), 0);
	check_refused(&l, VPN0 + 1, "not free");
	/* The page that had it still has it. */
	assert_true(atomic_load(&pool_frame(&l.f->core, l.pool->first)->owner) ==
		    ARENA_OWNER(l.p->number, VPN0));
}

static void test_other_wrong_answers(void **state)
{
	struct core_fixture *f = *state;
	struct loaded l;

	load(f, "ONLY_SAYS_SO", &l);
	check_refused(&l, VPN0, "without submitting");
	policy_set_unload(l.pool->set);
	pool_free(l.pool);

	/* A page that nobody asked for: refused, and its policy knows. */
	load(f, "WRONG_EVENT", &l);
	assert_int_equal(alloc_one(&l, VPN0), -1);
	assert_int_equal(atomic_load(&f->core.nr_used), 0);
	policy_set_unload(l.pool->set);
	pool_free(l.pool);

	load(f, "SUBMITS_TWICE", &l);
	assert_int_equal(alloc_one(&l, VPN0), 0);
	assert_int_equal(plugin_int(&l, "plugin_second_result"), 1);
	assert_int_equal(atomic_load(&f->core.nr_used), 1);
	pool_release(&f->core, l.pool->first);
	policy_set_unload(l.pool->set);
	pool_free(l.pool);

	/* What it says after it has submitted does not take the frame back. */
	load(f, "TAKES_IT_BACK", &l);
	assert_int_equal(alloc_one(&l, VPN0), 0);
	assert_int_equal(atomic_load(&f->core.nr_used), 1);
	pool_release(&f->core, l.pool->first);
	policy_set_unload(l.pool->set);
	pool_free(l.pool);

	load(f, "REGISTERS_LATE", &l);
	{
		struct capture c;

		capture_begin(&c);
		assert_int_equal(alloc_one(&l, VPN0), 0);
		assert_non_null(strstr(capture_end(&c), "outside its setup"));
	}
	assert_int_equal(plugin_int(&l, "plugin_late_result"), 1);
	assert_int_equal(l.pool->set->nr_policies, 1);
}

static void test_wrong_victims(void **state)
{
	struct core_fixture *f = *state;
	uint32_t frames[4] = {0};
	struct capture c;
	struct loaded l;

	load(f, "FOREIGN_VICTIM", &l);
	assert_int_equal(alloc_one(&l, VPN0), 0);
	capture_begin(&c);
	/* usmd goes its own way: the frames in use, in their order. */
	assert_int_equal(policy_victims(l.pool, frames, 4), 1);
	assert_non_null(strstr(capture_end(&c), "a victim that is not its own"));
	assert_int_equal(frames[0], l.pool->first);
	assert_true(atomic_load(&f->arena->h->nr_policy_errors) > 0);
	pool_release(&f->core, l.pool->first);
	policy_set_unload(l.pool->set);
	pool_free(l.pool);

	/* A frame that is free: its program has ended meanwhile, and the policy was told then.  Told
	 * again, it could take a frame that it has given out since for a free one. */
	load(f, "FREE_VICTIM", &l);
	assert_int_equal(alloc_one(&l, VPN0), 0);
	assert_int_equal(policy_victims(l.pool, frames, 4), 1);
	assert_int_equal(frames[0], l.pool->first);
	pool_flush(l.pool);
	assert_int_equal(plugin_int(&l, "plugin_nr_freed"), 0);
}

/* --- what is right ----------------------------------------------------------------------- */

static void test_sizes_of_ops(void **state)
{
	struct core_fixture *f = *state;
	uint32_t frame;
	struct loaded l;

	load(f, "LARGER_OPS", &l);
	assert_int_equal(l.result, 0);
	assert_int_equal(alloc_one(&l, VPN0), 0);
	pool_release(&f->core, l.pool->first);
	policy_set_unload(l.pool->set);
	pool_free(l.pool);

	load(f, "SMALLER_OPS", &l);
	assert_int_equal(l.result, 0);
	assert_null(l.pool->set->policy[0].alloc.put_used_pages);
	assert_int_equal(alloc_one(&l, VPN0), 0);
	frame = l.pool->first;
	policy_give_back(l.pool, &frame, 1);
	assert_int_equal(plugin_int(&l, "plugin_given_back"), 0);
	pool_release(&f->core, l.pool->first);
	policy_set_unload(l.pool->set);
	pool_free(l.pool);

	load(f, "FREE_BY_ADDRESS", &l);
	assert_int_equal(l.result, 0);
	assert_int_equal(alloc_one(&l, VPN0), 0);
	pool_release(&f->core, l.pool->first);
	pool_flush(l.pool);
	assert_int_equal(plugin_int(&l, "plugin_nr_freed"), 1);
}

static void test_two_policies(void **state)
{
	struct policy_set *set;
	struct loaded l;

	load(*state, "TWO_POLICIES", &l);
	assert_int_equal(l.result, 0);
	set = l.pool->set;
	assert_int_equal(set->nr_policies, 3);
	assert_ptr_equal(policy_set_find(set, "first"), &set->policy[0]);
	assert_ptr_equal(policy_set_find(set, "second"), &set->policy[1]);
	assert_ptr_equal(policy_set_find(set, "swapper"), &set->policy[2]);
	assert_null(policy_set_find(set, "third"));
	/* The default one decides for processes that name none of them. */
	assert_int_equal(alloc_one(&l, VPN0), 0);
	assert_int_equal(atomic_load(&set->policy[0].nr_allocs), 0);
	assert_int_equal(atomic_load(&set->policy[1].nr_allocs), 1);
	policy_serve(l.p, l.pool, "first");
	assert_int_equal(alloc_one(&l, VPN0 + 1), 1);
	assert_int_equal(atomic_load(&set->policy[0].nr_allocs), 1);
	/* One that cannot place pages does not. */
	policy_serve(l.p, l.pool, "swapper");
	assert_int_equal(alloc_one(&l, VPN0 + 2), 2);
	assert_int_equal(atomic_load(&set->policy[1].nr_allocs), 2);
	/* Who took a frame hears that it is free, and has it back if it could not leave. */
	pool_release(&l.f->core, l.pool->first);
	pool_flush(l.pool);
	assert_int_equal(plugin_int(&l, "plugin_nr_freed_first"), 0);
	pool_release(&l.f->core, l.pool->first + 1);
	pool_flush(l.pool);
	assert_int_equal(plugin_int(&l, "plugin_nr_freed_first"), 1);
	assert_int_equal(plugin_int(&l, "plugin_nr_freed"), 2);
}

static void test_swap_by_name(void **state)
{
	uint32_t frames[8];
	struct loaded l;

	load(*state, "TWO_POLICIES", &l);
	policy_serve(l.p, l.pool, "first");
	for (int i = 0; i < 6; i++)
		assert_int_equal(alloc_one(&l, VPN0 + (unsigned)i), i);
	atomic_store(&l.p->nr_resident, 6);
	/* Nothing said: the fallback of the file, not the third policy. */
	assert_int_equal(policy_swap_by(l.p, ""), 0);
	assert_int_equal(policy_victims(l.pool, frames, 2), 2);
	assert_int_equal(plugin_int(&l, "plugin_wanted"), 0);
	assert_int_equal(policy_swap_by(l.p, "swapper"), 0);
	assert_int_equal(policy_victims(l.pool, frames, 2), 2);
	assert_int_equal(plugin_int(&l, "plugin_wanted"), 2);
	assert_int_equal(frames[0], l.pool->first + 2);
	/* What was taken by a policy without put_used_pages is given to no other. */
	policy_give_back(l.pool, frames, 2);
	assert_int_equal(plugin_int(&l, "plugin_given_back"), 0);
	assert_int_equal(policy_swap_by(l.p, "stranger"), -ENOENT);
	assert_false(atomic_load(&l.p->swap_none));
	assert_int_equal(policy_swap_by(l.p, "none"), 0);
	assert_true(atomic_load(&l.p->swap_none));
	assert_int_equal(policy_swap_by(l.p, "second"), 0);
	assert_false(atomic_load(&l.p->swap_none));
}

static void test_swap_policy(void **state)
{
	uint32_t frames[8];
	struct loaded l;

	load(*state, "SWAP_POLICY", &l);
	for (int i = 0; i < 6; i++)
		assert_int_equal(alloc_one(&l, VPN0 + (unsigned)i), i);
	assert_int_equal(policy_victims(l.pool, frames, 4), 4);
	assert_int_equal(plugin_int(&l, "plugin_wanted"), 4);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(frames[i], l.pool->first + i);
	policy_give_back(l.pool, frames, 3);
	assert_int_equal(plugin_int(&l, "plugin_given_back"), 3);
}

/* The guides evict inside usm_alloc when there is no free page, and then look again. */
static void test_guide(void **state)
{
	struct core_fixture *f = *state;
	struct fake_agent agent = {.result = 0};
	struct loaded l;
	uint64_t slot;

	load(f, "GUIDE", &l);
	assert_int_equal(l.result, 0);
	fake_agent_memory(l.p);
	fixture_start_reclaim(f);
	fake_agent_start(&agent, l.p);
	reclaim_add(l.p);
	for (unsigned i = 0; i < FIXTURE_FRAMES; i++) {
		assert_int_equal(alloc_one(&l, VPN0 + i), (int)i);
		put_entry(l.p, VPN0 + i, PAGE_ENTRY(PAGE_RESIDENT, l.pool->first + i));
		atomic_fetch_add(&l.p->nr_resident, 1);
	}
	/* The oldest page leaves, and its frame serves. */
	assert_int_equal(alloc_one(&l, VPN0 + 1000), 0);
	assert_int_equal(agent.nr_operations, 1);
	slot = entry_of(l.p, VPN0);
	assert_int_equal(PAGE_STATE(slot), PAGE_SWAPPED);
	assert_int_equal(usm_swap_refs(f->core.swap, PAGE_VALUE(slot)), 1);
	assert_int_equal(alloc_one(&l, VPN0 + 1001), 1);
	/* One that cannot leave: the policy has it back, and gives no frame. */
	agent.result = -EBUSY;
	assert_int_equal(alloc_one(&l, VPN0 + 1002), -1);
	assert_int_equal(PAGE_STATE(entry_of(l.p, VPN0 + 2)), PAGE_RESIDENT);
	assert_int_equal(plugin_int(&l, "plugin_given_back"), 1);
	fixture_stop_reclaim(f);
	fake_agent_stop(&agent);
}

static void check_order(struct loaded *l, bool used, const uint32_t *expected, unsigned n)
{
	uint32_t frames[FIXTURE_FRAMES];

	assert_int_equal(policy_list(l->pool, used, 0, frames, n), n);
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(frames[i] - l->pool->first, expected[i]);
}

static void test_policy_one(void **state)
{
	struct core_fixture *f = *state;
	char file[300];
	uint32_t frames[8];
	struct loaded l;

	build(f, "usmd/policies/policyOne.c", "policyOne", file, sizeof(file));
	load_file(f, file, &l);
	assert_int_equal(l.result, 0);
	assert_non_null(policy_set_find(l.pool->set, "policyOne"));

	/* The first free frame serves. */
	for (int i = 0; i < 5; i++)
		assert_int_equal(alloc_one(&l, VPN0 + (unsigned)i), i);
	check_order(&l, true, (uint32_t[]){0, 1, 2, 3, 4}, 5);
	check_order(&l, false, (uint32_t[]){5, 6, 7}, 3);
	/* The listings skip. */
	assert_int_equal(policy_list(l.pool, true, 3, frames, 8), 2);
	assert_int_equal(frames[0] - l.pool->first, 3);
	assert_int_equal(policy_list(l.pool, true, 5, frames, 8), 0);
	/* The page that came first leaves first, and while it leaves it is in no list. */
	assert_int_equal(policy_victims(l.pool, frames, 2), 2);
	assert_int_equal(frames[0] - l.pool->first, 0);
	assert_int_equal(frames[1] - l.pool->first, 1);
	check_order(&l, true, (uint32_t[]){2, 3, 4}, 3);
	/* 0 could not leave: it is the youngest. 1 has left: it serves next. */
	policy_give_back(l.pool, &frames[0], 1);
	pool_release(&f->core, frames[1]);
	pool_flush(l.pool);
	check_order(&l, true, (uint32_t[]){2, 3, 4, 0}, 4);
	check_order(&l, false, (uint32_t[]){1, 5, 6}, 3);
	assert_int_equal(alloc_one(&l, VPN0 + 5), 1);
	/* One that is unmapped leaves the list. */
	pool_release(&f->core, l.pool->first + 3);
	pool_flush(l.pool);
	check_order(&l, true, (uint32_t[]){2, 4, 0, 1}, 4);
	check_order(&l, false, (uint32_t[]){3, 5}, 2);
	/* More than there are: all of them, and no more. */
	assert_int_equal(policy_victims(l.pool, frames, 8), 4);
	assert_int_equal(frames[0] - l.pool->first, 2);
	assert_int_equal(frames[3] - l.pool->first, 1);
	policy_give_back(l.pool, frames, 4);
	check_order(&l, true, (uint32_t[]){2, 4, 0, 1}, 4);
	/* All frames, and then none. */
	for (unsigned i = 4; i < FIXTURE_FRAMES; i++)
		assert_int_not_equal(alloc_one(&l, VPN0 + 100 + i), -1);
	assert_int_equal(alloc_one(&l, VPN0 + 200), -1);
	assert_int_equal(atomic_load(&f->arena->h->nr_policy_errors), 0);
	assert_int_equal(atomic_load(&l.pool->nr_used), FIXTURE_FRAMES);
}

static void test_policy_one_batch(void **state)
{
	struct core_fixture *f = *state;
	uint64_t vpn[FIXTURE_FRAMES + 8];
	uint32_t got[FIXTURE_FRAMES + 8];
	char file[300];
	struct loaded l;

	build(f, "usmd/policies/policyOne.c", "policyOne", file, sizeof(file));
	load_file(f, file, &l);
	for (unsigned i = 0; i < ARRAY_SIZE(vpn); i++)
		vpn[i] = VPN0 + i;
	/* From the first page on, as far as there are frames. */
	assert_int_equal(policy_alloc(l.pool, l.p->number, vpn, ARRAY_SIZE(vpn),
				      USM_EVENT_FIRST_TOUCH, got),
			 FIXTURE_FRAMES);
	for (unsigned i = 0; i < FIXTURE_FRAMES; i++)
		assert_int_equal(got[i], l.pool->first + i);
}

/* Without a policy: first fit, and frames in their order as victims. */
static void test_own_choice(void **state)
{
	struct core_fixture *f = *state;
	struct loaded l = {.f = f, .pool = fixture_pool(f, 0)};
	uint32_t frames[4];

	l.p = fixture_process(f, "program");
	for (int i = 0; i < 4; i++)
		assert_int_equal(alloc_one(&l, VPN0 + (unsigned)i), i);
	assert_int_equal(policy_victims(l.pool, frames, 2), 2);
	assert_int_equal(frames[0], l.pool->first);
	assert_int_equal(policy_victims(l.pool, frames, 2), 2);
	assert_int_equal(frames[0], l.pool->first + 2);
	assert_false(policy_oom(l.pool, l.p->number, VPN0));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, core_fixture_setup, core_fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_refused_plugins),
		TEST(test_refused_files),
		TEST(test_wrong_frames),
		TEST(test_taken_frame),
		TEST(test_other_wrong_answers),
		TEST(test_wrong_victims),
		TEST(test_sizes_of_ops),
		TEST(test_two_policies),
		TEST(test_swap_by_name),
		TEST(test_swap_policy),
		TEST(test_guide),
		TEST(test_policy_one),
		TEST(test_policy_one_batch),
		TEST(test_own_choice),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* links: usmd/config.c usmd/config-parse.c usmd/config-assign.c usmd/lib/parse.c */
/*
 * Any bytes as a configuration file.  What is accepted is within its bounds; and as the file that
 * usmctl assign keeps it takes an assignment, and loses nothing else.
 */
#include "fuzz.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <string.h>

#include "config.h"
#include "lib/cleanup.h"
#include "lib/parse.h"

#define NAME "fuzz.name"
#define FILE_MAX 4096

/* The user database is the machine's own. */
struct passwd *getpwnam(const char *name)
{
	static struct passwd user = { .pw_uid = 7 };

	return strcmp(name, "user") == 0 ? &user : NULL;
}

struct group *getgrnam(const char *name)
{
	static struct group group = { .gr_gid = 8 };

	return strcmp(name, "group") == 0 ? &group : NULL;
}

static char dir[] = "/dev/shm/usmd-fuzz-XXXXXX", path[64];

static void end(void)
{
	unlink(path);
	rmdir(dir);
}

static void begin(void)
{
	if (path[0])
		return;
	FUZZ_CHECK(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/%s", dir, USM_CONFIG_ASSIGN_FILE);
	atexit(end);
}

static void check_name(const char *name, bool may_be_empty)
{
	FUZZ_CHECK(usm_name_is_valid(name) || (may_be_empty && !name[0]));
}

static void check(const struct usm_config *c)
{
	FUZZ_CHECK(c->memory_bytes >= 1 << 20 && c->memory_bytes % 4096 == 0);
	FUZZ_CHECK(c->workers >= 1 && c->workers <= 64);
	FUZZ_CHECK(c->faultaround >= 1 && c->faultaround <= 256 &&
		   (c->faultaround & (c->faultaround - 1)) == 0);
	FUZZ_CHECK(c->low_permyriad < c->high_permyriad && c->high_permyriad <= 9000);
	FUZZ_CHECK((unsigned)c->mechanism <= USM_MECHANISM_MODULE);
	FUZZ_CHECK(c->grace_sec >= 1 && c->grace_sec <= 86400);
	FUZZ_CHECK((unsigned)c->eviction <= USM_EVICTION_OFF && (unsigned)c->oom <= USM_OOM_KILL);
	FUZZ_CHECK(c->threshold_percent <= 100);
	check_name(c->default_policy, false);
	check_name(c->threshold_policy, c->threshold_percent == 0);
	for (unsigned i = 0; i < c->nr_processes; i++) {
		FUZZ_CHECK(usm_rule_parse(c->processes[i].name, NULL) >= 0);
		check_name(c->processes[i].alloc_policy, true);
		check_name(c->processes[i].swap_policy, true);
		FUZZ_CHECK(usm_config_find(c, c->processes[i].name) == &c->processes[i]);
	}
	for (unsigned i = 0; i < c->nr_swaps; i++)
		FUZZ_CHECK(c->swaps[i].path[0] == '/' && strlen(c->swaps[i].path) < 256);
	for (unsigned i = 0; i < c->nr_policies; i++)
		FUZZ_CHECK(c->policies[i].path[0] == '/');
	for (unsigned i = 0; i < c->nr_allows; i++) {
		const struct usm_config_allow *a = &c->allows[i];

		FUZZ_CHECK(a->path ? usm_config_allows(c, a->path, "", a->is_group ? 1 : a->id, &a->id, 1) :
				     usm_config_allows(c, "", a->who, 1, NULL, 0));
	}
}

static void write_file(const uint8_t *data, size_t size)
{
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	FUZZ_CHECK(fd >= 0 && write(fd, data, size) == (ssize_t)size);
}

static unsigned nr_others(const struct usm_config *c)
{
	return c->nr_swaps + c->nr_policies + c->nr_allows + c->nr_processes -
	       (usm_config_find(c, NAME) != NULL);
}

static void check_assign(const struct usm_config *before)
{
	const struct usm_config_process *p = usm_config_find(before, NAME);
	bool has_line = p && (p->alloc_policy[0] || p->swap_policy[0] || p->limit_bytes);
	struct usm_config *after;

	if (has_line) {
		FUZZ_CHECK(usm_config_assign_unset(dir, NAME) == 0);
		FUZZ_CHECK(usm_config_assign_unset(dir, NAME) == -ENOENT);
	}
	FUZZ_CHECK(usm_config_assign_set(dir, NAME, 's', "other", UINT64_MAX, false) == 0);
	FUZZ_CHECK(usm_config_assign_set(dir, NAME, 'a', "policy", 3 << 20, false) == 0);
	FUZZ_CHECK(usm_config_load(path, NULL, &after) == 0);
	p = usm_config_find(after, NAME);
	FUZZ_CHECK(p && p->has_limit && strcmp(p->alloc_policy, "policy") == 0 && strcmp(p->swap_policy, "other") == 0 &&
		   p->limit_bytes == 3 << 20);
	FUZZ_CHECK(nr_others(after) == nr_others(before));
	usm_config_free(after);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct usm_config *c = NULL;
	int r, free_fd;

	if (size > FILE_MAX)
		return -1;
	begin();
	free_fd = fuzz_free_fd();
	write_file(data, size);
	r = usm_config_load(path, NULL, &c);
	FUZZ_CHECK(r == 0 ? c != NULL : r == -EINVAL && !c);
	if (c) {
		check(c);
		check_assign(c);
	} else {
		/* A file with a wrong line is left to whoever wrote it. */
		FUZZ_CHECK(usm_config_assign_set(dir, NAME, 'b', "policy", UINT64_MAX, false) == -EINVAL);
		FUZZ_CHECK(usm_config_assign_unset(dir, NAME) == -EINVAL);
	}
	usm_config_free(c);
	FUZZ_CHECK(fuzz_free_fd() == free_fd);
	return 0;
}

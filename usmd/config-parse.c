/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The directives: one table, one parser for each kind of value. */
#define _GNU_SOURCE 1 /* asprintf */
#include "config-parse.h"

#include <errno.h>
#include <grp.h>
#include <limits.h>
#include <string.h>

#include "cleanup.h"
#include "log.h"
#include "parse.h"
#include "swap.h"

#define WORKERS_MAX     64u
#define FAULTAROUND_MAX 256u
#define GRACE_MAX_SEC   86400u
#define PRIORITY_MAX    32767
#define MIB             (1024ull * 1024)
#define PAGE_BYTES      4096ull

/* Longest path of a policy file: what struct usm_policy_info shows. */
#define POLICY_FILE_MAX 255u

/* Above 90 % free there is no room left in which a policy could decide anything. */
#define WATERMARK_MAX_PERMYRIAD 9000u

struct directive {
	const char *name;
	const char *usage;
	unsigned min_values, max_values;
	/* 0, -EINVAL after logging what was expected, -ENOMEM. */
	int (*parse)(struct config_reader *r, const struct directive *d, char **values, unsigned n);
	size_t offset;            /* of the target in struct usm_config, where there is one */
	uint64_t min, max;        /* bounds of a number */
	const char *const *names; /* words of an enum, in its order, NULL-terminated */
	const char *expected;
};

static int bad_value(const struct config_reader *r, const struct directive *d, const char *value,
		     const char *expected)
{
	log_error("%s:%u: bad value '%s' for %s, expected %s", r->file, r->line, value, d->name,
		  expected);
	return -EINVAL;
}

static int bad_name(const struct config_reader *r, const struct directive *d, const char *value,
		    const char *what)
{
	log_error("%s:%u: bad value '%s' for %s, expected the name of a %s: 1 to %d printable "
		  "characters without / # \" \\",
		  r->file, r->line, value, d->name, what, USM_NAME_MAX);
	return -EINVAL;
}

/* Programs, a unit or a user: what process, limit and priority are about. */
static int check_rule(const struct config_reader *r, const struct directive *d, const char *value)
{
	if (usm_rule_parse(value, NULL) >= 0)
		return 0;
	if (strncmp(value, USM_RULE_UNIT_PREFIX, strlen(USM_RULE_UNIT_PREFIX)) == 0)
		return bad_value(r, d, value, "unit: and the full name of a unit, such as "
					      "redis-server.service");
	if (strncmp(value, USM_RULE_USER_PREFIX, strlen(USM_RULE_USER_PREFIX)) == 0)
		return bad_value(r, d, value, "user: and the name or number of a user");
	return bad_name(r, d, value, "process");
}

static void *target(const struct config_reader *r, const struct directive *d)
{
	return (char *)r->config + d->offset;
}

/* One more element, zeroed, at the end of array, which has n; NULL: no memory, and the
 * array is as it was. */
#define GROW(array, n)                                                                 \
	({                                                                             \
		typeof(array) *array_ = &(array);                                      \
		typeof(array) bigger_ = reallocarray(*array_, (n) + 1ul, sizeof(**array_)); \
		if (bigger_) {                                                         \
			*array_ = bigger_;                                             \
			bigger_ += (n);                                                \
			memset(bigger_, 0, sizeof(*bigger_));                          \
		}                                                                      \
		bigger_;                                                               \
	})

static int parse_number(struct config_reader *r, const struct directive *d, char **values,
			unsigned n)
{
	uint64_t value;

	(void)n;
	if (usm_parse_u64(values[0], d->min, d->max, &value) < 0)
		return bad_value(r, d, values[0], d->expected);
	*(unsigned *)target(r, d) = (unsigned)value;
	return 0;
}

static int parse_word(struct config_reader *r, const struct directive *d, char **values, unsigned n)
{
	(void)n;
	for (int i = 0; d->names[i]; i++)
		if (strcmp(values[0], d->names[i]) == 0) {
			*(int *)target(r, d) = i;
			return 0;
		}
	return bad_value(r, d, values[0], d->expected);
}

static int parse_faultaround(struct config_reader *r, const struct directive *d, char **values,
			     unsigned n)
{
	uint64_t value;

	(void)n;
	if (usm_parse_u64(values[0], d->min, d->max, &value) < 0 || (value & (value - 1)))
		return bad_value(r, d, values[0], d->expected);
	r->config->faultaround = (unsigned)value;
	return 0;
}

static int parse_page(struct config_reader *r, const struct directive *d, char **values, unsigned n)
{
	(void)n;
	return strcmp(values[0], "4096") == 0 ? 0 : bad_value(r, d, values[0], d->expected);
}

/* A size in whole pages between min and max. */
static int parse_bounded_size(const char *s, uint64_t ram_bytes, uint64_t min, uint64_t max,
			      uint64_t *ret)
{
	uint64_t bytes;
	int r;

	r = usm_parse_size(s, MIB, ram_bytes, &bytes);
	if (r < 0)
		return r;
	if (bytes < min || bytes > max)
		return -ERANGE;
	*ret = bytes & ~(PAGE_BYTES - 1);
	return 0;
}

static int parse_memory(struct config_reader *r, const struct directive *d, char **values,
			unsigned n)
{
	_cleanup_free_ char *said = NULL;
	char *old;

	(void)n;
	if (parse_bounded_size(values[0], r->ram_bytes, d->min, d->max,
			       &r->config->memory_bytes) < 0)
		return bad_value(r, d, values[0], d->expected);

	if (asprintf(&said, "%s:%u", r->file, r->line) < 0) {
		said = NULL;
		return -ENOMEM;
	}
	old = r->memory_said;
	r->memory_said = said;
	said = old;
	return 0;
}

static int parse_watermark(struct config_reader *r, const struct directive *d, char **values,
			   unsigned n)
{
	unsigned mark[2] = {};

	for (unsigned i = 0; i < n; i++)
		if (usm_parse_permyriad(values[i], &mark[i]) < 0 || mark[i] < d->min ||
		    mark[i] > d->max)
			return bad_value(r, d, values[i], d->expected);
	if (mark[0] >= mark[1]) {
		log_error("%s:%u: watermark LOW %s is not below HIGH %s, expected LOW below HIGH",
			  r->file, r->line, values[0], values[1]);
		return -EINVAL;
	}
	r->config->low_permyriad = mark[0];
	r->config->high_permyriad = mark[1];
	return 0;
}

static int parse_policy_name(struct config_reader *r, const struct directive *d, char **values,
			     unsigned n)
{
	(void)n;
	if (!usm_name_is_valid(values[0]))
		return bad_name(r, d, values[0], "policy");
	strcpy(target(r, d), values[0]); /* a valid name fits */
	return 0;
}

static int parse_threshold(struct config_reader *r, const struct directive *d, char **values,
			   unsigned n)
{
	size_t length = strlen(values[0]);
	uint64_t percent;

	(void)n;
	if (!usm_name_is_valid(values[1]))
		return bad_name(r, d, values[1], "policy");
	/* The original writes 80, people write 80%. */
	if (length > 1 && values[0][length - 1] == '%')
		values[0][length - 1] = '\0';
	if (usm_parse_u64(values[0], d->min, d->max, &percent) < 0)
		return bad_value(r, d, values[0], d->expected);
	r->config->threshold_percent = (unsigned)percent;
	strcpy(r->config->threshold_policy, values[1]);
	return 0;
}

struct usm_config_process *config_process(struct usm_config *c, const char *name)
{
	struct usm_config_process *p = (struct usm_config_process *)usm_config_find(c, name);

	if (p)
		return p;
	p = GROW(c->processes, c->nr_processes);
	if (!p)
		return NULL;
	strcpy(p->name, name);
	c->nr_processes++;
	return p;
}

/*
 * The same for a line.  A user who is not there, any more or yet, is no error: usmd would not
 * start for a package's user who was removed.
 */
static struct usm_config_process *rule_of_line(struct config_reader *r, const char *name)
{
	unsigned before = r->config->nr_processes;
	struct usm_config_process *p = config_process(r->config, name);
	const char *user;

	if (!p || r->config->nr_processes == before ||
	    usm_rule_parse(name, &user) != USM_RULE_USER)
		return p;
	p->has_uid = usm_find_user(user, &p->uid) >= 0;
	if (!p->has_uid)
		log_warning("%s:%u: there is no user '%s', ignoring", r->file, r->line, user);
	return p;
}

static int parse_process(struct config_reader *r, const struct directive *d, char **values,
			 unsigned n)
{
	const char *name = values[n - 2], *policy = values[n - 1];
	bool alloc = n == 2 || strcmp(values[0], "alloc") == 0;
	bool swap = n == 2 || strcmp(values[0], "swap") == 0;
	struct usm_config_process *p;
	char *file;

	if (!alloc && !swap)
		return bad_value(r, d, values[0], "alloc or swap before NAME POLICY");
	if (check_rule(r, d, name) < 0)
		return -EINVAL;
	if (!usm_name_is_valid(policy))
		return bad_name(r, d, policy, "policy");

	p = rule_of_line(r, name);
	if (!p)
		return -ENOMEM;
	file = strdup(r->file);
	if (!file)
		return -ENOMEM;
	free(p->file);
	p->file = file;
	p->line = r->line;
	if (alloc)
		strcpy(p->alloc_policy, policy);
	if (swap)
		strcpy(p->swap_policy, policy);
	return 0;
}

static int parse_priority(struct config_reader *r, const struct directive *d, char **values,
			  unsigned n)
{
	struct usm_config_process *p;
	int priority;

	(void)n;
	if (check_rule(r, d, values[0]) < 0)
		return -EINVAL;
	if (usm_parse_int(values[1], -PRIORITY_MAX, PRIORITY_MAX, &priority) < 0)
		return bad_value(r, d, values[1], d->expected);

	p = rule_of_line(r, values[0]);
	if (!p)
		return -ENOMEM;
	p->priority = priority;
	p->has_priority = true;
	return 0;
}

static int parse_limit(struct config_reader *r, const struct directive *d, char **values,
		       unsigned n)
{
	struct usm_config_process *p;
	uint64_t limit = 0;

	(void)n;
	if (check_rule(r, d, values[0]) < 0)
		return -EINVAL;
	/* 0 lifts what an earlier file, or a wider rule, said. */
	if (strcmp(values[1], "0") != 0 &&
	    parse_bounded_size(values[1], r->ram_bytes, d->min, d->max, &limit) < 0)
		return bad_value(r, d, values[1], d->expected);

	p = rule_of_line(r, values[0]);
	if (!p)
		return -ENOMEM;
	p->limit_bytes = limit;
	p->has_limit = true;
	return 0;
}

static bool is_file_path(const char *path, size_t max)
{
	size_t length = strlen(path);

	return path[0] == '/' && length > 1 && length <= max && path[length - 1] != '/';
}

static int parse_swap(struct config_reader *r, const struct directive *d, char **values, unsigned n)
{
	struct usm_config *c = r->config;
	struct usm_config_swap *s = NULL;
	uint64_t size = 0; /* "auto" */
	int priority = 0;

	if (!is_file_path(values[0], USM_SWAP_PATH_MAX))
		return bad_value(r, d, values[0], "the full path of a file, at most 255 bytes");
	if (strcmp(values[1], "auto") != 0 &&
	    parse_bounded_size(values[1], 0, d->min, d->max, &size) < 0)
		return bad_value(r, d, values[1], d->expected);
	if (n == 3 || (n == 4 && strcmp(values[2], "priority") != 0))
		return bad_value(r, d, values[2], "priority N after the size");
	if (n == 4 && usm_parse_int(values[3], -PRIORITY_MAX, PRIORITY_MAX, &priority) < 0)
		return bad_value(r, d, values[3], "a priority from -32767 to 32767");

	for (unsigned i = 0; i < c->nr_swaps; i++)
		if (strcmp(c->swaps[i].path, values[0]) == 0)
			s = &c->swaps[i];
	if (!s) {
		_cleanup_free_ char *path = NULL;

		if (c->nr_swaps >= USM_SWAP_DEVICES) {
			log_error("%s:%u: too many swap devices, expected at most %u", r->file,
				  r->line, USM_SWAP_DEVICES);
			return -EINVAL;
		}
		path = strdup(values[0]);
		if (!path)
			return -ENOMEM;
		s = GROW(c->swaps, c->nr_swaps);
		if (!s)
			return -ENOMEM;
		s->path = TAKE_PTR(path);
		c->nr_swaps++;
	}
	s->size_bytes = size;
	s->priority = priority;
	return 0;
}

static int parse_policy_file(struct config_reader *r, const struct directive *d, char **values,
			     unsigned n)
{
	struct usm_config *c = r->config;
	_cleanup_free_ char *path = NULL;
	struct usm_config_policy_file *p;
	size_t length = strlen(values[0]);

	(void)n;
	if (!is_file_path(values[0], POLICY_FILE_MAX) || length < 4 ||
	    strcmp(values[0] + length - 3, ".so") != 0)
		return bad_value(r, d, values[0], d->expected);

	for (unsigned i = 0; i < c->nr_policies; i++)
		if (strcmp(c->policies[i].path, values[0]) == 0)
			return 0;
	path = strdup(values[0]);
	if (!path)
		return -ENOMEM;
	p = GROW(c->policies, c->nr_policies);
	if (!p)
		return -ENOMEM;
	p->path = TAKE_PTR(path);
	c->nr_policies++;
	return 0;
}

/* A name that the group database knows, or a number. */
static int find_group(const char *who, gid_t *ret)
{
	const struct group *g;
	uint64_t number;

	/* The highest number means "no group" to the kernel. */
	if (usm_parse_u64(who, 0, UINT32_MAX - 1, &number) >= 0) {
		*ret = (gid_t)number;
		return 0;
	}
	g = getgrnam(who);
	if (!g)
		return -ENOENT;
	*ret = g->gr_gid;
	return 0;
}

/* "allow unit:NAME": systemd has put its programs there, whatever they are and whoever's. */
static int parse_allow_unit(struct config_reader *r, const struct directive *d, const char *value)
{
	struct usm_config *c = r->config;
	_cleanup_free_ char *who = NULL;
	struct usm_config_allow *a;
	const char *unit;

	if (usm_rule_parse(value, &unit) != USM_RULE_UNIT)
		return bad_value(r, d, value, "PATH USER, PATH @GROUP, or unit: and the full name of a "
					      "unit");
	for (unsigned i = 0; i < c->nr_allows; i++)
		if (!c->allows[i].path && strcmp(c->allows[i].who, unit) == 0)
			return 0;
	who = strdup(unit);
	if (!who)
		return -ENOMEM;
	a = GROW(c->allows, c->nr_allows);
	if (!a)
		return -ENOMEM;
	a->who = TAKE_PTR(who);
	c->nr_allows++;
	return 0;
}

static int parse_allow(struct config_reader *r, const struct directive *d, char **values,
		       unsigned n)
{
	_cleanup_free_ char *path = NULL, *who = NULL;
	struct usm_config *c = r->config;
	struct usm_config_allow *a;
	bool is_group;
	uid_t id;

	if (n == 1)
		return parse_allow_unit(r, d, values[0]);
	is_group = values[1][0] == '@';
	if (!is_file_path(values[0], PATH_MAX))
		return bad_value(r, d, values[0], "the full path of an executable");
	if ((is_group ? find_group(values[1] + 1, &id) : usm_find_user(values[1], &id)) < 0)
		return bad_value(r, d, values[1], d->expected);

	path = strdup(values[0]);
	who = strdup(values[1] + is_group);
	if (!path || !who)
		return -ENOMEM;
	a = GROW(c->allows, c->nr_allows);
	if (!a)
		return -ENOMEM;
	a->path = TAKE_PTR(path);
	a->who = TAKE_PTR(who);
	a->is_group = is_group;
	a->id = id;
	c->nr_allows++;
	return 0;
}

#define TARGET(field) .offset = offsetof(struct usm_config, field)
#define ONE_VALUE     .min_values = 1, .max_values = 1

/* In the order of their enums in config.h. */
static const char *const mechanism_names[] = { "auto", "userfault", "module", NULL };
static const char *const eviction_names[] = { "auto", "move", "lazyfree", "off", NULL };
static const char *const oom_names[] = { "wait", "exceed", "kill", NULL };

_Static_assert(sizeof(enum usm_mechanism_kind) == sizeof(int) &&
	       sizeof(enum usm_eviction_kind) == sizeof(int) &&
	       sizeof(enum usm_oom_kind) == sizeof(int), "parse_word stores an int");

static const struct directive directives[] = {
	{ .name = "memory", .usage = "memory SIZE", ONE_VALUE, .parse = parse_memory,
	  .min = CONFIG_MEMORY_MIN, .max = CONFIG_MEMORY_MAX,
	  .expected = "a size of at least 1M: a number of MB, or with K, M, G, T, or % of RAM" },
	{ .name = "workers", .usage = "workers N", ONE_VALUE, .parse = parse_number,
	  TARGET(workers), .min = 1, .max = WORKERS_MAX, .expected = "a number from 1 to 64" },
	{ .name = "page", .usage = "page 4096", ONE_VALUE, .parse = parse_page,
	  .expected = "4096, the only page size" },
	{ .name = "process", .usage = "process [alloc|swap] NAME POLICY",
	  .min_values = 2, .max_values = 3, .parse = parse_process },
	{ .name = "priority", .usage = "priority NAME N", .min_values = 2, .max_values = 2,
	  .parse = parse_priority, .expected = "a priority from -32767 to 32767" },
	{ .name = "threshold", .usage = "threshold PERCENT POLICY",
	  .min_values = 2, .max_values = 2, .parse = parse_threshold, .min = 1, .max = 100,
	  .expected = "a percentage from 1 to 100" },
	{ .name = "limit", .usage = "limit NAME SIZE", .min_values = 2, .max_values = 2,
	  .parse = parse_limit, .min = CONFIG_MEMORY_MIN, .max = CONFIG_MEMORY_MAX,
	  .expected = "0 (no limit) or a size of at least 1M: a number of MB, or with K, M, G, T, "
		      "or % of RAM" },
	{ .name = "default", .usage = "default POLICY", ONE_VALUE, .parse = parse_policy_name,
	  TARGET(default_policy) },
	{ .name = "swap", .usage = "swap PATH SIZE [priority N]", .min_values = 2, .max_values = 4,
	  .parse = parse_swap, .min = CONFIG_MEMORY_MIN, .max = CONFIG_MEMORY_MAX,
	  .expected = "auto or a size of at least 1M: a number of MB, or with K, M, G, T" },
	{ .name = "watermark", .usage = "watermark LOW% HIGH%", .min_values = 2, .max_values = 2,
	  .parse = parse_watermark, .min = 1, .max = WATERMARK_MAX_PERMYRIAD,
	  .expected = "a percentage from 0.01% to 90%" },
	{ .name = "faultaround", .usage = "faultaround N", ONE_VALUE, .parse = parse_faultaround,
	  .min = 1, .max = FAULTAROUND_MAX, .expected = "a power of two from 1 to 256" },
	{ .name = "mechanism", .usage = "mechanism auto|userfault|module", ONE_VALUE,
	  .parse = parse_word, TARGET(mechanism), .names = mechanism_names,
	  .expected = "auto, userfault or module" },
	{ .name = "eviction", .usage = "eviction auto|move|lazyfree|off", ONE_VALUE,
	  .parse = parse_word, TARGET(eviction), .names = eviction_names,
	  .expected = "auto, move, lazyfree or off" },
	{ .name = "oom", .usage = "oom wait|exceed|kill", ONE_VALUE, .parse = parse_word,
	  TARGET(oom), .names = oom_names, .expected = "wait, exceed or kill" },
	{ .name = "grace", .usage = "grace SECONDS", ONE_VALUE, .parse = parse_number,
	  TARGET(grace_sec), .min = 1, .max = GRACE_MAX_SEC,
	  .expected = "a number of seconds from 1 to 86400" },
	{ .name = "policy", .usage = "policy FILE.so", ONE_VALUE, .parse = parse_policy_file,
	  .expected = "the full path of a .so file, at most 255 bytes" },
	{ .name = "allow", .usage = "allow PATH USER|@GROUP' or 'allow unit:NAME", .min_values = 1, .max_values = 2,
	  .parse = parse_allow, .expected = "a user, or @ and a group, that exists" },
};

static int unknown_directive(const struct config_reader *r, const char *name)
{
	char known[256] = "";
	size_t n = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(directives) && n < sizeof(known); i++)
		n += (size_t)snprintf(known + n, sizeof(known) - n, "%s%s", i ? ", " : "",
				      directives[i].name);
	log_error("%s:%u: unknown directive '%s', expected one of %s", r->file, r->line, name,
		  known);
	return -EINVAL;
}

static int parse_words(struct config_reader *r, char **words, unsigned n)
{
	const struct directive *d;

	for (d = directives; d < directives + ARRAY_SIZE(directives); d++)
		if (strcmp(d->name, words[0]) == 0)
			break;
	if (d == directives + ARRAY_SIZE(directives))
		return unknown_directive(r, words[0]);

	n--;
	if (n < d->min_values || n > d->max_values) {
		log_error("%s:%u: %u value%s for %s, expected '%s'", r->file, r->line, n,
			  n == 1 ? "" : "s", d->name, d->usage);
		return -EINVAL;
	}
	return d->parse(r, d, words + 1, n);
}

unsigned config_split(char *line, char *words[CONFIG_WORDS_MAX])
{
	static const char blanks[] = " \t\r";
	char *save, *word;
	unsigned n = 0;

	line[strcspn(line, "#")] = '\0';
	for (word = strtok_r(line, blanks, &save); word; word = strtok_r(NULL, blanks, &save)) {
		if (n < CONFIG_WORDS_MAX)
			words[n] = word;
		n++;
	}
	return n;
}

int config_read_line(FILE *f, char *buf)
{
	bool control = false;
	size_t n = 0;
	int c;

	while ((c = getc_unlocked(f)) != EOF && c != '\n') {
		if ((c < ' ' && c != '\t' && c != '\r') || c == 0x7f)
			control = true;
		if (n < CONFIG_LINE_MAX - 1)
			buf[n] = (char)c;
		/* Without an end a device could keep us here for ever. */
		if (++n > CONFIG_FILE_MAX)
			return -EFBIG;
	}
	if (ferror(f))
		return errno ? -errno : -EIO;
	if (c == EOF && n == 0)
		return 0;
	if (n >= CONFIG_LINE_MAX)
		return -EMSGSIZE;
	buf[n] = '\0';
	return control ? -EILSEQ : 1;
}

static int read_lines(struct config_reader *r, FILE *f)
{
	char line[CONFIG_LINE_MAX], *words[CONFIG_WORDS_MAX];
	unsigned n;
	int k;

	for (r->line = 1; r->line <= CONFIG_FILE_MAX; r->line++) {
		k = config_read_line(f, line);
		if (k == 0)
			return 0;
		if (k == -EMSGSIZE) {
			log_error("%s:%u: line too long, expected less than %u bytes", r->file,
				  r->line, CONFIG_LINE_MAX);
		} else if (k == -EILSEQ) {
			log_error("%s:%u: control character, expected a line of text", r->file,
				  r->line);
		} else if (k < 0) {
			return k;
		} else {
			n = config_split(line, words);
			if (n == 0)
				continue;
			k = parse_words(r, words, n);
			if (k >= 0)
				continue;
			if (k != -EINVAL)
				return k;
		}
		r->nr_errors++;
	}
	return -EFBIG;
}

int config_read_file(struct config_reader *r, const char *path)
{
	_cleanup_fclose_ FILE *f = NULL;
	int k;

	f = fopen(path, "re");
	if (!f)
		return -errno;

	r->file = path;
	k = read_lines(r, f);
	r->file = NULL;
	return k;
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "parse.h"

#include <errno.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>

#include "config.h"

#define PERMYRIAD 10000u

/* Reads digits at *s and moves *s behind them. */
static int take_digits(const char **s, uint64_t *ret)
{
	const char *p = *s;
	uint64_t value = 0;

	if (*p < '0' || *p > '9')
		return -EINVAL;

	for (; *p >= '0' && *p <= '9'; p++)
		if (__builtin_mul_overflow(value, 10u, &value) ||
		    __builtin_add_overflow(value, (uint64_t)(*p - '0'), &value))
			return -ERANGE;

	*s = p;
	*ret = value;
	return 0;
}

int usm_parse_u64(const char *s, uint64_t min, uint64_t max, uint64_t *ret)
{
	uint64_t value;
	int r;

	r = take_digits(&s, &value);
	if (r < 0)
		return r;
	if (*s)
		return -EINVAL;
	if (value < min || value > max)
		return -ERANGE;

	*ret = value;
	return 0;
}

int usm_parse_int(const char *s, int min, int max, int *ret)
{
	bool negative = *s == '-' && min < 0;
	uint64_t magnitude;
	int64_t value;
	int r;

	r = usm_parse_u64(s + negative, 0, (uint64_t)INT_MAX + 1, &magnitude);
	if (r < 0)
		return r;
	value = negative ? -(int64_t)magnitude : (int64_t)magnitude;
	if (value < min || value > max)
		return -ERANGE;

	*ret = (int)value;
	return 0;
}

int usm_parse_permyriad(const char *s, unsigned *ret)
{
	uint64_t whole, value;
	int r;

	r = take_digits(&s, &whole);
	if (r < 0)
		return r;
	if (whole > 100)
		return -ERANGE;
	value = whole * 100;

	if (*s == '.') {
		unsigned unit = 10;

		s++;
		if (*s < '0' || *s > '9')
			return -EINVAL;
		for (; *s >= '0' && *s <= '9'; s++, unit /= 10) {
			if (unit == 0) /* finer than 1/10000 */
				return -EINVAL;
			value += (uint64_t)(*s - '0') * unit;
		}
	}
	if (strcmp(s, "%") != 0)
		return -EINVAL;
	if (value > PERMYRIAD)
		return -ERANGE;

	*ret = (unsigned)value;
	return 0;
}

int usm_parse_size(const char *s, uint64_t plain_unit, uint64_t total_bytes, uint64_t *ret)
{
	static const char suffixes[] = "KMGT";
	uint64_t number, unit, value;
	const char *rest = s, *suffix;
	unsigned permyriad;
	size_t length = strlen(s);
	int r;

	if (length > 0 && s[length - 1] == '%') {
		if (total_bytes == 0)
			return -EINVAL;
		r = usm_parse_permyriad(s, &permyriad);
		if (r < 0)
			return r;
		*ret = (uint64_t)((unsigned __int128)total_bytes * permyriad / PERMYRIAD);
		return 0;
	}

	r = take_digits(&rest, &number);
	if (r < 0)
		return r;

	if (*rest == '\0') {
		unit = plain_unit;
	} else {
		suffix = strchr(suffixes, *rest);
		if (!suffix || rest[1] != '\0')
			return -EINVAL;
		unit = 1024ull << (10 * (suffix - suffixes));
	}
	if (__builtin_mul_overflow(number, unit, &value))
		return -ERANGE;

	*ret = value;
	return 0;
}

bool usm_name_is_valid(const char *s)
{
	size_t length = strlen(s);

	if (length == 0 || length > USM_NAME_MAX)
		return false;
	if (strcmp(s, ".") == 0 || strcmp(s, "..") == 0)
		return false;

	for (; *s; s++)
		if (*s <= ' ' || *s > '~' || strchr("/#\"\\", *s))
			return false;
	return true;
}

/* systemd's own words for the unit's type; the others have no processes that go on. */
static const char *const unit_types[] = { ".service", ".scope" };

bool usm_unit_name_is_valid(const char *s)
{
	size_t length = strlen(s);
	bool has_type = false;

	if (length > USM_UNIT_MAX)
		return false;
	for (unsigned i = 0; i < sizeof(unit_types) / sizeof(unit_types[0]); i++) {
		size_t n = strlen(unit_types[i]);

		has_type |= length > n && strcmp(s + length - n, unit_types[i]) == 0;
	}
	/* No unit begins with its instance. */
	if (!has_type || *s == '@' || *s == '.')
		return false;
	for (; *s; s++)
		if (!(*s >= 'a' && *s <= 'z') && !(*s >= 'A' && *s <= 'Z') &&
		    !(*s >= '0' && *s <= '9') && !strchr(":-_.\\@", *s))
			return false;
	return true;
}

bool usm_unit_template(const char *unit, char *buf)
{
	const char *at = strchr(unit, '@'), *type = strrchr(unit, '.');

	if (!at || !type || type <= at + 1)
		return false;
	snprintf(buf, USM_UNIT_MAX + 1, "%.*s%s", (int)(at + 1 - unit), unit, type);
	return true;
}

bool usm_unit_is(const char *name, const char *unit)
{
	char template[USM_UNIT_MAX + 1];

	return strcmp(name, unit) == 0 ||
	       (usm_unit_template(unit, template) && strcmp(name, template) == 0);
}

int usm_find_user(const char *who, uid_t *ret)
{
	const struct passwd *p;
	uint64_t number;

	/* The highest number means "no user" to the kernel. */
	if (usm_parse_u64(who, 0, UINT32_MAX - 1, &number) >= 0) {
		*ret = (uid_t)number;
		return 0;
	}
	p = getpwnam(who);
	if (!p)
		return -ENOENT;
	*ret = p->pw_uid;
	return 0;
}

static const char *behind(const char *s, const char *prefix)
{
	size_t n = strlen(prefix);

	return strncmp(s, prefix, n) == 0 ? s + n : NULL;
}

int usm_rule_parse(const char *s, const char **ret_what)
{
	enum usm_rule_kind kind = USM_RULE_PROCESS;
	const char *what = s;
	bool valid;

	if (behind(s, USM_RULE_UNIT_PREFIX)) {
		kind = USM_RULE_UNIT;
		what = behind(s, USM_RULE_UNIT_PREFIX);
		valid = usm_unit_name_is_valid(what);
	} else if (behind(s, USM_RULE_USER_PREFIX)) {
		kind = USM_RULE_USER;
		what = behind(s, USM_RULE_USER_PREFIX);
		valid = usm_name_is_valid(what) && !strchr("-+~@", *what) && !strchr(what, ':');
	} else {
		valid = usm_name_is_valid(s);
	}
	if (!valid)
		return -EINVAL;
	if (ret_what)
		*ret_what = what;
	return (int)kind;
}

const char *usm_format_bytes(char *buf, size_t size, uint64_t bytes)
{
	static const char units[] = "BKMGTPE";
	unsigned i = 0;
	uint64_t unit = 1;

	while (units[i + 1] && bytes / unit >= 1024) {
		unit *= 1024;
		i++;
	}

	/* Cut, not rounded: what is shown is never more than what is there. */
	if (bytes % unit * 10 / unit)
		snprintf(buf, size, "%llu.%llu%c", (unsigned long long)(bytes / unit),
			 (unsigned long long)(bytes % unit * 10 / unit), units[i]);
	else
		snprintf(buf, size, "%llu%c", (unsigned long long)(bytes / unit), units[i]);
	return buf;
}

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Strict parsers for values that cross a trust boundary.  All return 0 or
 * -EINVAL / -ERANGE and leave *ret untouched on failure. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Decimal digits only, no sign, no spaces, within [min, max].  usm_parse_int takes a
 * leading '-' where min is negative. */
int usm_parse_u64(const char *s, uint64_t min, uint64_t max, uint64_t *ret);
int usm_parse_int(const char *s, int min, int max, int *ret);
/* "512K", "64M", "2G", "1T" (binary); "25%" of total_bytes (rejected when
 * total_bytes is 0); a plain number counts in plain_unit bytes. */
int usm_parse_size(const char *s, uint64_t plain_unit, uint64_t total_bytes, uint64_t *ret);
/* "1.5%" or "2%" -> permyriad. */
int usm_parse_permyriad(const char *s, unsigned *ret);
/* 1..USM_NAME_MAX bytes of printable ASCII without whitespace, '/', '#', '"', '\\'
 * and not "." or "..". */
bool usm_name_is_valid(const char *s);
#define USM_UNIT_MAX 255 /* as systemd has it */
/* As systemd has them, "redis-server@one.service"; of a template the instance is empty. */
bool usm_unit_name_is_valid(const char *s);

/* "getty@tty1.service" -> "getty@.service"; buf has USM_UNIT_MAX + 1 bytes.  False: it is no
 * instance. */
bool usm_unit_template(const char *unit, char *buf);
/* Is it the unit of that name, or an instance of that template? */
bool usm_unit_is(const char *name, const char *unit);
/* A name that the user database knows, or a number.  May block.  -ENOENT. */
int usm_find_user(const char *who, uid_t *ret);

/* Whom a rule is for: programs of a name, of a unit ("unit:NAME") or of a user ("user:NAME"). */
enum usm_rule_kind { USM_RULE_PROCESS, USM_RULE_UNIT, USM_RULE_USER };
#define USM_RULE_UNIT_PREFIX "unit:"
#define USM_RULE_USER_PREFIX "user:"
/* The kind; *ret_what, if not NULL, is the name behind the prefix.  -EINVAL: no such name. */
int usm_rule_parse(const char *s, const char **ret_what);
/* "1.5G", "256M", "12K", "0B" into buf. */
const char *usm_format_bytes(char *buf, size_t size, uint64_t bytes);

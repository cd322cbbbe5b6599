/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Strict parsers for values that cross a trust boundary.  All return 0 or
 * -EINVAL / -ERANGE and leave *ret untouched on failure. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

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
 * and not "." or ".."; "unit:NAME" passes. */
bool usm_name_is_valid(const char *s);
/* "1.5G", "256M", "12K", "0B" into buf. */
const char *usm_format_bytes(char *buf, size_t size, uint64_t bytes);

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* $USM_TEST_FILTER: only tests of that name, which may have wildcards; $USM_TEST_SKIP: without those.
 * Linked into each unit test. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka wants the four above first */
#include <cmocka.h>
#include <stdlib.h>

__attribute__((constructor)) static void filter(void)
{
	cmocka_set_test_filter(getenv("USM_TEST_FILTER"));
	cmocka_set_skip_filter(getenv("USM_TEST_SKIP"));
}

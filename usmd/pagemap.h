/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Bits of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst). */
#pragma once

#define PAGEMAP_PRESENT	  (1ull << 63)
#define PAGEMAP_SWAPPED	  (1ull << 62)
#define PAGEMAP_FILE	  (1ull << 61)
#define PAGEMAP_EXCLUSIVE (1ull << 56)

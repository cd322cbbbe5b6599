/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the ends of an operation share: collect.c (its results) and undo.c (none).  The reclaim
 * thread. */
#pragma once

#include "operation.h"
#include "page.h"
#include "process.h"

/* Bytes of the agent's staging area. */
#define OPERATION_STAGING_BYTES (USM_OPS_BATCH * USM_PAGE_SIZE)

/*
 * Page i of the operation leaves EVICTING for `to`, unless the page was unmapped or discarded
 * meanwhile.  Returns what was published.  A slot in `to` comes with a reference of its own, or is
 * the frame's clean slot, whose reference moves.  Not taken: the agent left it alone, so
 * what was announced was the program's.
 */
uint64_t operation_finish_page(struct process *p, unsigned i, page_entry *e, uint64_t to, bool taken);
/* After a fork the protection stays for the accounting of copies (fault.c). */
void operation_unprotect(struct process *p, uint64_t vpn);
/* None of its pages is EVICTING any more: the next one may come. */
void operation_end(struct process *p);

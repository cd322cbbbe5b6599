/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What peers of a socket do wrong: one journal entry each, but so many only, because whoever
 * may connect could fill the journal.  One struct a socket; on the thread of its event loop.
 */
#pragma once

#include <stdint.h>
#include <sys/socket.h>

/* In OFFENCES_NSEC.  A broken client shows at once, a hostile one is no news after that. */
#define OFFENCES_MAX  10u
#define OFFENCES_NSEC 60000000000ull

struct offences {
	uint64_t begin_nsec; /* of the time in which nr were logged; 0: never */
	unsigned nr;
};

/* event: as in struct usm_log_fields, and what the socket is for.  what: "sent no JSON object,
 * dropping it". */
void offence_log(struct offences *o, const char *event, const struct ucred *peer, const char *what);

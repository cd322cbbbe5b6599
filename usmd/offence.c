/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "offence.h"

#include <stdbool.h>

#include "core.h"
#include "lib/log.h"

void offence_log(struct offences *o, const char *event, const struct ucred *peer, const char *what)
{
	uint64_t now = now_nsec();

	if (o->begin_nsec == 0 || now - o->begin_nsec > OFFENCES_NSEC)
		*o = (struct offences){.begin_nsec = now};
	if (o->nr == OFFENCES_MAX)
		return;
	o->nr++;
	log_event(LOG_WARNING, &((struct usm_log_fields){.event = "client", .message_id = USM_MSG_CLIENT, .pid = peer->pid}),
		  "%s client of uid %u (pid %d) %s%s", event, peer->uid, peer->pid, what,
		  o->nr == OFFENCES_MAX ? "; more of this are not logged for a minute" : "");
}

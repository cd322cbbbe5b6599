/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <sys/capability.h>

#include "lib/cleanup.h"
#include "lib/log.h"
#include "privileges.h"

/* The same stand in units/usmd.service. */
static const cap_value_t needed[] = {
	/* A userfaultfd tells of forks only to who has it; /proc/PID of all users;
	 * process_vm_readv() of what is stuck with a stopped agent. */
	CAP_SYS_PTRACE,
	/* /proc/PID/pagemap can be opened by its user alone. */
	CAP_DAC_READ_SEARCH,
	/* A program whose page is lost is killed, whoever's it is. */
	CAP_KILL,
	/* mlockall(), where the limit is lower than what usmd uses. */
	CAP_IPC_LOCK,
	/* Last: folders of an instance that somebody else has made. */
	CAP_DAC_OVERRIDE,
};

static void free_cap(cap_t *caps)
{
	if (*caps)
		cap_free(*caps);
}

static bool is_needed(cap_value_t cap, unsigned nr_needed)
{
	for (unsigned i = 0; i < nr_needed; i++)
		if (needed[i] == cap)
			return true;
	return false;
}

int privileges_drop(bool others_folders)
{
	unsigned nr_needed = ARRAY_SIZE(needed) - !others_folders;
	_cleanup_(free_cap) cap_t caps = cap_get_proc();
	cap_flag_value_t has;

	if (!caps)
		return log_error_errno(-errno, "Cannot read usmd's capabilities: %m");
	/* The bounding set needs a capability that goes with the others. */
	for (cap_value_t cap = 0; cap_get_bound(cap) >= 0; cap++)
		if (cap_get_bound(cap) > 0 && !is_needed(cap, nr_needed) && cap_drop_bound(cap) < 0 &&
		    errno != EPERM)
			return log_error_errno(-errno, "Cannot drop capability %d: %m", cap);
	if (cap_clear_flag(caps, CAP_INHERITABLE) < 0)
		return log_error_errno(-errno, "Cannot drop capabilities: %m");
	for (cap_value_t cap = 0; cap_get_flag(caps, cap, CAP_PERMITTED, &has) == 0; cap++) {
		cap_flag_value_t keep = has == CAP_SET && is_needed(cap, nr_needed) ? CAP_SET : CAP_CLEAR;

		if (cap_set_flag(caps, CAP_PERMITTED, 1, &cap, keep) < 0 ||
		    cap_set_flag(caps, CAP_EFFECTIVE, 1, &cap, keep) < 0)
			return log_error_errno(-errno, "Cannot drop capability %d: %m", cap);
	}
	if (cap_set_proc(caps) < 0)
		return log_error_errno(-errno, "Cannot drop capabilities: %m");
	return 0;
}

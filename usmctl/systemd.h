/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What usmctl asks of the service manager, on the system bus. */
#pragma once

#include "drop-in.h"

struct systemd;

/* All return 0 or -errno with a malloc'd sentence in *ret_problem. */
int systemd_open(struct systemd **ret, char **ret_problem);
struct systemd *systemd_close(struct systemd *s);
/* unit: a service; of a template, what its instances are like.  -ENOENT: there is none. */
int systemd_unit(struct systemd *s, const char *unit, struct unit_settings *ret, char **ret_problem);
int systemd_reload(struct systemd *s, char **ret_problem);

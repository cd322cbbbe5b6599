/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How a process ceases to be managed.  For the janitor only. */
#pragma once

struct core;
struct process;
struct worker;

/* Its address space is gone, or nothing of it is managed any more: frees all that we have of it. */
void detach_dead(struct core *c, struct process *p);
/*
 * Lets a living process go, in steps of one tick: its pages come back; its agent is told,
 * after which the tagger's hooks register nothing more, and ends; what is registered is
 * unregistered.  Faults are served until then.  To be called each tick until it is detached.
 */
void detach_living(struct core *c, struct worker *w, struct process *p);

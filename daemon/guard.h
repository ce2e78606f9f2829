/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * guard.h - with QUEUE_GUARD (library daemon-guarded): a queue thread that calls malloc, calloc, realloc,
 * free or pthread_mutex_lock while it serves a mapped request aborts. Without: nothing.
 */
#ifndef DAEMON_GUARD_H
#define DAEMON_GUARD_H

#include <stdbool.h>

#ifdef QUEUE_GUARD
extern __thread int queue_guard_depth;
extern __thread unsigned long queue_guard_every; /* each that many-th allocation of this thread fails; 0: none */
#define queue_guard_enter() ((void)queue_guard_depth++)
#define queue_guard_leave() ((void)queue_guard_depth--)
bool queue_guard_no_memory(void); /* this allocation is to fail */
#else
#define queue_guard_enter() ((void)0)
#define queue_guard_leave() ((void)0)
#define queue_guard_no_memory() false
#endif

#endif

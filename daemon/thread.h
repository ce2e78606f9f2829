/* SPDX-License-Identifier: GPL-2.0-or-later */
/* thread.h - how the daemon starts its threads: signals blocked, small stack, a name. */
#ifndef DAEMON_THREAD_H
#define DAEMON_THREAD_H

#include <pthread.h>
#include <signal.h>

/* 0 or -errno. */
int thread_start(pthread_t *out, const char *name, void *(*fn)(void *), void *arg);
/* Block the signals that the main thread's loop receives (*set: which), ignore what must not end it. Before
 * any thread exists: they inherit it. */
void thread_main_signals(sigset_t *set);
/* For a thread that nobody waits for: SCHED_BATCH. What threads on the I/O path get in need, it does not, see
 * swap.h. */
void thread_batch(void);
/* For a thread on the I/O path, first of all: has its stack there. */
void thread_io_path(void);

#endif

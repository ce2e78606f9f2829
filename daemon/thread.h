/* SPDX-License-Identifier: GPL-2.0-or-later */
/* thread.h - how the daemon starts its threads: signals blocked, small stack, a name. */
#ifndef DAEMON_THREAD_H
#define DAEMON_THREAD_H

#include <pthread.h>

/* 0 or -errno. */
int thread_start(pthread_t *out, const char *name, void *(*fn)(void *), void *arg);
/* For a thread on the I/O path, first of all: has its stack there. */
void thread_io_path(void);

#endif

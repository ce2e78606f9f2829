/* SPDX-License-Identifier: GPL-2.0-or-later */
/* worker.h - the process that serves a device on behalf of its supervisor. */
#ifndef DAEMON_WORKER_H
#define DAEMON_WORKER_H

#include <stdbool.h>

/* Whether this process was started by a supervisor: its socket is there. */
bool worker_wanted(void);
/* Be the worker; the exit code. */
int worker_main(void);

#endif

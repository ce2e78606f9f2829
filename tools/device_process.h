/* SPDX-License-Identifier: GPL-2.0-or-later */
/* device_process.h - the processes of one device: starting its supervisor, being it. */
#ifndef TOOLS_DEVICE_PROCESS_H
#define TOOLS_DEVICE_PROCESS_H

#include "daemon/rundir.h"
#include "daemon/server.h"
#include "qcow2/error.h"

/*
 * Start a supervisor and wait until its device is ready: its node is in @device. opt->image is absolute.
 * -errno with err: nothing is left behind, even if the process died.
 */
int device_process_start(const struct server_options *opt, char *device, size_t size,
			 struct qcow2_error *err);
/* The same for a device whose processes died: wait until it serves again. -errno: it is as it was;
 * -ESHUTDOWN: it had been stopped or deleted: now its image is up to date and nothing of it is left. */
int device_process_recover(const struct run_state *st, struct qcow2_error *err);

/* Be the supervisor; prints the device on standard output when it is ready, and returns when it is gone. */
int device_process_foreground(const struct server_options *opt, struct qcow2_error *err);

#endif

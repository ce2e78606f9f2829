/* SPDX-License-Identifier: GPL-2.0-or-later */
/* device_process.h - the process that serves one device: starting it, being it. */
#ifndef TOOLS_DEVICE_PROCESS_H
#define TOOLS_DEVICE_PROCESS_H

#include "daemon/server.h"
#include "qcow2/error.h"

/*
 * Start a device process and wait until its device is ready: its node is in @device. opt->image is absolute.
 * -errno with err: nothing is left behind, even if the process died.
 */
int device_process_start(const struct server_options *opt, char *device, size_t size,
			 struct qcow2_error *err);

/* Be the device process; prints the device on standard output when it is ready, and returns when it is gone.
 */
int device_process_foreground(const struct server_options *opt, struct qcow2_error *err);

#endif

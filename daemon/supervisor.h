/* SPDX-License-Identifier: GPL-2.0-or-later */
/* supervisor.h - the process that outlives a device's workers: starts them, keeps what they need, starts the
 * next. */
#ifndef DAEMON_SUPERVISOR_H
#define DAEMON_SUPERVISOR_H

#include "rundir.h"
#include "server.h"

struct supervisor_options {
	const struct server_options *opt; /* of a new device */
	const struct run_state *recover; /* or of one whose processes all died; else NULL */
	bool foreground;
	/* Both may be NULL. The device has a number; it is ready to use: false if nobody heard that, then it
	 * is stopped again. */
	void (*added)(void *ctx, int id);
	bool (*ready)(void *ctx, const char *device);
	void *ctx;
};

/*
 * Be the supervisor until the device is gone: 0. Before ready(): -errno with err, nothing of a new device is
 * left behind, one to be recovered is as it was. After it: -EIO, what went wrong was logged.
 */
int supervisor_run(const struct supervisor_options *so, struct qcow2_error *err);

#endif

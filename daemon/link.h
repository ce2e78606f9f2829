/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * link.h - a worker's end of the socket to its supervisor.
 *
 * To the worker: `start` (settings, descriptors), `file` for each descriptor that an earlier worker left;
 * later `stop` or `leave`. To the supervisor: `file` (opened and locked), `added` (answered by `claimed` with
 * the directory's lock, or `error`), then `ready` or `error`; `read-only` should that change; at the end `stopped`
 * (answered by `removed`).
 */
#ifndef DAEMON_LINK_H
#define DAEMON_LINK_H

#include "custody.h"
#include "rundir.h"
#include "server.h"
#include "store.h"

#define LINK_FD 3 /* where a worker finds the socket */

struct link;

enum link_order { ORDER_NONE, ORDER_STOP, ORDER_LEAVE, ORDER_GONE };

/* What the supervisor said at the start. */
struct link_start {
	struct server_options opt; /* with .custody = &custody and .image = state.image */
	struct custody custody;
	struct run_state state; /* .id only if custody.recover; device and engine are "" */
	bool foreground;
};

/* Read the start from @sock (owned from now on, also on failure). *start must stay where it is until the link
 * is closed. 0 or -errno with err. */
int link_open(struct link **out, int sock, struct link_start *start, struct qcow2_error *err);
/* Releases what @start holds, too. */
void link_close(struct link *l, struct link_start *start);
int link_fd(const struct link *l);
/* The directory of the device, once the supervisor has made it; the caller's. */
int link_take_dir(struct link *l, struct rundir **out, struct qcow2_error *err);

/* The device serves: a false answer means that nobody has heard it. */
bool link_ready(struct link *l, const struct run_state *st);
/* The image of a writable device became read-only. */
void link_read_only(struct link *l);
void link_failed(struct link *l, const char *text);
/* The device is gone, or so is its image at least (@ret, @err: as server_stop() had it). Returns when the
 * supervisor has removed the directory and released the locks, @remark as rundir_retire() had it; false:
 * there is no supervisor any more. */
bool link_stopped(struct link *l, int ret, const struct qcow2_error *err, struct qcow2_error *remark);
/* What has come; does not wait. */
enum link_order link_order(struct link *l);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* client.h - asking a worker, ordering a supervisor. */
#ifndef TOOLS_CLIENT_H
#define TOOLS_CLIENT_H

#include "daemon/rundir.h"
#include "qcow2/error.h"
#include <systemd/sd-json.h>

/*
 * Call io.ublkqcow2.@method and wait for the answer as long as it takes. *reply (may be NULL) is the
 * caller's to unref. -EREMOTEIO: it answered with an error, err is its text; -ECONNRESET: it ended
 * without an answer; -errno: cannot be reached.
 */
int control_call(const struct run_state *st, const char *method, sd_json_variant **reply,
		 struct qcow2_error *err);

/*
 * Have the supervisor of @st carry out "restart", "recover" or "detach" (@force: even if the image cannot be
 * brought up to date) and wait for the end of it. remark: what it has to say about that ("": nothing).
 * -EREMOTEIO: it could not, err is why; -ECONNRESET: it ended without an answer; -errno: cannot be reached
 * (no message).
 */
int supervisor_order(const struct run_state *st, const char *order, bool force, struct qcow2_error *remark,
		     struct qcow2_error *err);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* client.h - asking a device process. */
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

#endif

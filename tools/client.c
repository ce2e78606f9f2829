// SPDX-License-Identifier: GPL-2.0-or-later
/* client.c - one Varlink call on a connection of its own. */
#include "client.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <systemd/sd-varlink.h>

static int remote_error(const char *error_id, sd_json_variant *parameters, const struct run_state *st,
			struct qcow2_error *err)
{
	sd_json_variant *text = sd_json_variant_by_key(parameters, "message");

	if (text && sd_json_variant_is_string(text))
		return qcow2_fail(err, -EREMOTEIO, "%s", sd_json_variant_string(text));
	return qcow2_fail(err, -EREMOTEIO, "%s: its process (pid %d) refused: %s", st->device, (int)st->pid,
			  error_id);
}

static int call(sd_varlink *link, const struct run_state *st, const char *method, sd_json_variant **reply,
		struct qcow2_error *err)
{
	sd_json_variant *parameters = NULL;
	const char *error_id = NULL;
	char name[64];
	int ret;

	snprintf(name, sizeof(name), "io.ublkqcow2.%s", method);
	sd_varlink_set_relative_timeout(link, UINT64_MAX);
	ret = sd_varlink_call(link, name, NULL, &parameters, &error_id);
	if (ret < 0)
		return -ECONNRESET;
	if (error_id)
		return remote_error(error_id, parameters, st, err);
	if (reply)
		*reply = sd_json_variant_ref(parameters);
	return 0;
}

int control_call(const struct run_state *st, const char *method, sd_json_variant **reply,
		 struct qcow2_error *err)
{
	sd_varlink *link = NULL;
	char path[300];
	int ret;

	ret = sd_varlink_connect_address(&link, run_path(path, sizeof(path), st->id, "control"));
	if (ret < 0)
		return qcow2_fail(err, ret, "%s: its process (pid %d) does not answer: %s", st->device,
				  (int)st->pid, strerror(-ret));
	ret = call(link, st, method, reply, err);
	sd_varlink_close_unref(link);
	return ret;
}

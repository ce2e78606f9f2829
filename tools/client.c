// SPDX-License-Identifier: GPL-2.0-or-later
/* client.c - one Varlink call, or one order, on a connection of its own. */
#include "client.h"
#include "daemon/message.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-varlink.h>
#include <unistd.h>

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

/* ---- the supervisor ---- */

static int connect_supervisor(int id)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	char path[300];
	int sock, ret;

	run_path(path, sizeof(path), id, "supervisor");
	if (strlen(path) >= sizeof(sun.sun_path))
		return -ENAMETOOLONG;
	strcpy(sun.sun_path, path);
	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return -errno;
	if (connect(sock, (struct sockaddr *)&sun, sizeof(sun)) == 0)
		return sock;
	ret = -errno;
	close(sock);
	return ret;
}

static int answer(int sock, struct qcow2_error *remark, struct qcow2_error *err)
{
	struct message m;
	int ret = message_receive(sock, &m, 0);
	char *text;

	if (ret)
		return -ECONNRESET;
	text = json_get_name(m.body, "text");
	if (strcmp(message_type(&m), "done") == 0)
		qcow2_fail(remark, 0, "%s", text ? text : "");
	else
		ret = qcow2_fail(err, -EREMOTEIO, "%s", text ? text : "?");
	free(text);
	message_clear(&m);
	return ret;
}

int supervisor_order(const struct run_state *st, const char *order, bool force, struct qcow2_error *remark,
		     struct qcow2_error *err)
{
	int sock = connect_supervisor(st->id), ret;
	sd_json_variant *v = NULL;

	if (sock < 0)
		return sock;
	ret = sd_json_buildo(&v, SD_JSON_BUILD_PAIR_STRING("type", order),
			     SD_JSON_BUILD_PAIR_BOOLEAN("force", force));
	ret = message_send(sock, ret, v, NULL, 0);
	if (!ret)
		ret = answer(sock, remark, err);
	close(sock);
	return ret;
}

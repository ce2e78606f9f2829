// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * message.c - packets of JSON and descriptors.
 *
 * Owns nothing between calls. A packet is at most MAX_BYTES long: two file names, escaped as badly as can be,
 * and some numbers. A descriptor that comes in belongs to the message until somebody takes it, so none leaks
 * by being unexpected.
 */
#include "message.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_BYTES 65536

union control {
	struct cmsghdr align;
	char bytes[CMSG_SPACE(MESSAGE_MAX_FDS * sizeof(int))];
};

static void put_fds(struct msghdr *h, const int *fds, unsigned count)
{
	struct cmsghdr *c;

	h->msg_controllen = CMSG_SPACE(count * sizeof(int));
	c = CMSG_FIRSTHDR(h);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(count * sizeof(int));
	memcpy(CMSG_DATA(c), fds, count * sizeof(int));
}

int message_send(int sock, int ret, sd_json_variant *body, const int *fds, unsigned count)
{
	union control control = { .bytes = { 0 } };
	struct iovec iov = { 0 };
	struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1 };
	char *text = NULL;
	ssize_t n;

	if (ret >= 0)
		ret = sd_json_variant_format(body, 0, &text);
	sd_json_variant_unref(body);
	if (ret < 0)
		return ret;
	iov.iov_base = text;
	iov.iov_len = strlen(text);
	if (count) {
		h.msg_control = &control;
		put_fds(&h, fds, count);
	}
	do
		n = sendmsg(sock, &h, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	ret = n < 0 ? -errno : 0;
	free(text);
	return ret;
}

int message_word(int sock, const char *type)
{
	sd_json_variant *v = NULL;
	int ret = sd_json_buildo(&v, SD_JSON_BUILD_PAIR_STRING("type", type));

	return message_send(sock, ret, v, NULL, 0);
}

int message_text(int sock, const char *type, const char *text)
{
	sd_json_variant *v = NULL;
	int ret = sd_json_buildo(&v, SD_JSON_BUILD_PAIR_STRING("type", type));

	if (ret >= 0)
		ret = json_put_name(&v, "text", text ? text : "");
	return message_send(sock, ret, v, NULL, 0);
}

static void take_fds(struct message *m, struct msghdr *h)
{
	struct cmsghdr *c;

	for (c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		m->fds = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int)); /* the buffer has no more */
		memcpy(m->fd, CMSG_DATA(c), m->fds * sizeof(int));
	}
}

int message_receive(int sock, struct message *m, int flags)
{
	char *text = malloc(MAX_BYTES + 1);
	struct iovec iov = { .iov_base = text, .iov_len = MAX_BYTES };
	union control control;
	struct msghdr h = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)
	};
	ssize_t n;
	int ret = 0;

	*m = (struct message){ NULL };
	if (!text)
		return -ENOMEM;
	do /* an end that died with packets unread is told once, before what it had sent */
		n = recvmsg(sock, &h, flags | MSG_CMSG_CLOEXEC);
	while (n < 0 && (errno == EINTR || errno == ECONNRESET));
	if (n <= 0) {
		ret = n < 0 ? -errno : -ECONNRESET;
		goto out;
	}
	take_fds(m, &h);
	text[n] = '\0';
	if (h.msg_flags & (MSG_TRUNC | MSG_CTRUNC) || sd_json_parse(text, 0, &m->body, NULL, NULL) < 0 ||
	    !sd_json_variant_is_object(m->body)) {
		message_clear(m);
		ret = -EBADMSG;
	}
out:
	free(text);
	return ret;
}

void message_clear(struct message *m)
{
	for (unsigned i = 0; i < m->fds; i++)
		if (m->fd[i] >= 0)
			close(m->fd[i]);
	sd_json_variant_unref(m->body);
	*m = (struct message){ NULL };
}

const char *message_type(const struct message *m)
{
	return message_string(m, "type");
}

const char *message_string(const struct message *m, const char *key)
{
	sd_json_variant *f = sd_json_variant_by_key(m->body, key);

	return f && sd_json_variant_is_string(f) ? sd_json_variant_string(f) : "";
}

uint64_t message_number(const struct message *m, const char *key)
{
	return json_get_number(m->body, key);
}

bool message_bool(const struct message *m, const char *key)
{
	return json_get_bool(m->body, key);
}

int message_take_fd(struct message *m, unsigned i)
{
	int fd = i < m->fds ? m->fd[i] : -1;

	if (fd >= 0)
		m->fd[i] = -1;
	return fd;
}

/* ---- members ---- */

int json_put_name(sd_json_variant **v, const char *key, const char *name)
{
	sd_json_variant *coded = NULL;
	char other[64];
	int ret = sd_json_variant_set_field_string(v, key, name);

	if (ret >= 0)
		return 0;
	snprintf(other, sizeof(other), "%s_base64", key);
	ret = sd_json_variant_new_base64(&coded, name, strlen(name));
	if (ret >= 0)
		ret = sd_json_variant_set_field(v, other, coded);
	sd_json_variant_unref(coded);
	return ret < 0 ? ret : 0;
}

char *json_get_name(sd_json_variant *v, const char *key)
{
	sd_json_variant *f = sd_json_variant_by_key(v, key);
	char other[64];
	void *bytes;
	char *name;
	size_t n;

	if (f)
		return strdup(sd_json_variant_is_string(f) ? sd_json_variant_string(f) : "");
	snprintf(other, sizeof(other), "%s_base64", key);
	f = sd_json_variant_by_key(v, other);
	if (!f || !sd_json_variant_is_string(f) || sd_json_variant_unbase64(f, &bytes, &n) < 0)
		return strdup("");
	name = strndup(bytes, n);
	free(bytes);
	return name;
}

uint64_t json_get_number(sd_json_variant *v, const char *key)
{
	sd_json_variant *f = sd_json_variant_by_key(v, key);

	return f && sd_json_variant_is_unsigned(f) ? sd_json_variant_unsigned(f) : 0;
}

bool json_get_bool(sd_json_variant *v, const char *key)
{
	sd_json_variant *f = sd_json_variant_by_key(v, key);

	return f && sd_json_variant_is_boolean(f) && sd_json_variant_boolean(f);
}

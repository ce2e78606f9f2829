/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * message.h - what supervisor, worker and command tell each other: one JSON object with a member `type` per
 * packet of a SOCK_SEQPACKET socket, with descriptors beside it. Members may be added, unknown ones are
 * ignored: the two ends may be different versions of the program.
 */
#ifndef DAEMON_MESSAGE_H
#define DAEMON_MESSAGE_H

#include <stdbool.h>
#include <stdint.h>
#include <systemd/sd-json.h>

#define MESSAGE_MAX_FDS 4u

struct message {
	sd_json_variant *body; /* an object */
	int fd[MESSAGE_MAX_FDS]; /* close-on-exec; -1 once somebody took it */
	unsigned fds;
};

/* Send @body (released in any case) with @count descriptors, which stay the caller's. @ret < 0: building
 * @body failed, nothing is sent. 0 or -errno; never raises SIGPIPE. */
int message_send(int sock, int ret, sd_json_variant *body, const int *fds, unsigned count);
/* A message of a type and nothing else; of a type and a text (any bytes; NULL: ""). */
int message_word(int sock, const char *type);
int message_text(int sock, const char *type, const char *text);

/* Wait for a packet (@flags: MSG_DONTWAIT: -EAGAIN if there is none). -ECONNRESET: the other end is gone;
 * -EBADMSG: not a message of ours. On 0 message_clear() it. */
int message_receive(int sock, struct message *m, int flags);
/* Releases the body and closes the descriptors that nobody took. */
void message_clear(struct message *m);

const char *message_type(const struct message *m); /* never NULL */
/* Members, 0, false or "" if they are missing or of another kind. */
uint64_t message_number(const struct message *m, const char *key);
bool message_bool(const struct message *m, const char *key);
const char *message_string(const struct message *m, const char *key); /* as long as the message */
/* Descriptor number @i, the caller's from now on; -1: there is none. */
int message_take_fd(struct message *m, unsigned i);

/* ---- file names need not be UTF-8, JSON strings are ---- */

/* Set @key to @name, or KEY_base64 if it is not UTF-8. 0 or -errno. */
int json_put_name(sd_json_variant **v, const char *key, const char *name);
/* malloc'ed; "" if it is missing; NULL: no memory. */
char *json_get_name(sd_json_variant *v, const char *key);
uint64_t json_get_number(sd_json_variant *v, const char *key); /* 0 if it is missing or no such number */
bool json_get_bool(sd_json_variant *v, const char *key);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * orders.h - /run/ublk-qcow2/ID/supervisor: one message.h packet per connection, `restart`, `recover` or
 * `detach` (with `force`: even if the image cannot be brought up to date); the answer, `done` or `error`,
 * comes when it is carried out.
 */
#ifndef DAEMON_ORDERS_H
#define DAEMON_ORDERS_H

#include "qcow2/error.h"
#include <poll.h>
#include <stdbool.h>

enum wish { WISH_NONE, WISH_RESTART, WISH_RECOVER, WISH_DETACH, WISH_FORCE };
#define WISH_BIT(w) (1u << (w))

#define ORDERS_CLIENTS 8u
#define ORDERS_POLLS (ORDERS_CLIENTS + 1)

struct orders {
	int listen; /* -1: not yet */
	struct orders_client {
		int fd; /* -1: free */
		enum wish wish; /* WISH_NONE: it has not said yet */
	} client[ORDERS_CLIENTS];
};

void orders_init(struct orders *o);
/* Listen for the device @id; its directory exists. 0 or -errno with err. */
int orders_listen(struct orders *o, int id, struct qcow2_error *err);
/* Fill in ORDERS_POLLS entries; look at them after poll(). Returns the WISH_BIT()s that are new. */
void orders_poll(const struct orders *o, struct pollfd *p);
unsigned orders_take(struct orders *o, const struct pollfd *p);
/* The WISH_BIT()s that wait for an answer. */
unsigned orders_open(const struct orders *o);
/* Answer the clients that wished one of @wishes: `done` (a remark in @text, or "") or `error`. */
void orders_answer(struct orders *o, unsigned wishes, bool ok, const char *text);
void orders_close(struct orders *o);

#endif

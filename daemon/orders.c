// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * orders.c - the supervisor's socket.
 *
 * Owns the listening socket and the connections. Only root gets at it: the directory is 0700. A client beyond
 * the eighth waits in the backlog; one that leaves is forgotten, what it wished is carried out all the same.
 */
#include "orders.h"
#include "message.h"
#include "rundir.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

void orders_init(struct orders *o)
{
	o->listen = -1;
	for (unsigned i = 0; i < ORDERS_CLIENTS; i++)
		o->client[i] = (struct orders_client){ .fd = -1 };
}

int orders_listen(struct orders *o, int id, struct qcow2_error *err)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	char path[300];
	int ret = 0;

	run_path(path, sizeof(path), id, "supervisor");
	if (strlen(path) >= sizeof(sun.sun_path))
		return qcow2_fail(err, -ENAMETOOLONG, "%s: %s", path, strerror(ENAMETOOLONG));
	strcpy(sun.sun_path, path);
	o->listen = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (o->listen < 0)
		return qcow2_fail(err, -errno, "%s: %s", path, strerror(errno));
	unlink(path); /* a dead supervisor's; the directory is ours */
	if (bind(o->listen, (struct sockaddr *)&sun, sizeof(sun)) < 0 || listen(o->listen, 16) < 0)
		ret = qcow2_fail(err, -errno, "%s: %s", path, strerror(errno));
	return ret;
}

void orders_poll(const struct orders *o, struct pollfd *p)
{
	bool room = false;

	for (unsigned i = 0; i < ORDERS_CLIENTS; i++) {
		p[i + 1] = (struct pollfd){ .fd = o->client[i].fd, .events = POLLIN };
		room |= o->client[i].fd < 0;
	}
	p[0] = (struct pollfd){ .fd = room ? o->listen : -1, .events = POLLIN };
}

static void welcome(struct orders *o)
{
	int fd = accept4(o->listen, NULL, NULL, SOCK_CLOEXEC);

	for (unsigned i = 0; fd >= 0 && i < ORDERS_CLIENTS; i++) {
		if (o->client[i].fd >= 0)
			continue;
		o->client[i] = (struct orders_client){ .fd = fd };
		return;
	}
	if (fd >= 0)
		close(fd);
}

static void forget(struct orders_client *c)
{
	close(c->fd);
	*c = (struct orders_client){ .fd = -1 };
}

static enum wish wish_of(const struct message *m)
{
	if (strcmp(message_type(m), "restart") == 0)
		return WISH_RESTART;
	if (strcmp(message_type(m), "recover") == 0)
		return WISH_RECOVER;
	if (strcmp(message_type(m), "detach") == 0)
		return message_bool(m, "force") ? WISH_FORCE : WISH_DETACH;
	return WISH_NONE;
}

/* Its wish, or WISH_NONE if it left, spoke twice or said nothing of sense. */
static enum wish hear(struct orders_client *c)
{
	enum wish wish = WISH_NONE;
	struct message m;

	if (message_receive(c->fd, &m, MSG_DONTWAIT) == 0) {
		wish = c->wish ? WISH_NONE : wish_of(&m);
		message_clear(&m);
	}
	if (wish)
		c->wish = wish;
	else
		forget(c);
	return wish;
}

unsigned orders_take(struct orders *o, const struct pollfd *p)
{
	unsigned wishes = 0;

	for (unsigned i = 0; i < ORDERS_CLIENTS; i++)
		if (p[i + 1].fd >= 0 && p[i + 1].revents)
			wishes |= WISH_BIT(hear(&o->client[i]));
	if (p[0].fd >= 0 && p[0].revents)
		welcome(o);
	return wishes & ~WISH_BIT(WISH_NONE);
}

unsigned orders_open(const struct orders *o)
{
	unsigned wishes = 0;

	for (unsigned i = 0; i < ORDERS_CLIENTS; i++)
		if (o->client[i].fd >= 0)
			wishes |= WISH_BIT(o->client[i].wish);
	return wishes & ~WISH_BIT(WISH_NONE);
}

void orders_answer(struct orders *o, unsigned wishes, bool ok, const char *text)
{
	for (unsigned i = 0; i < ORDERS_CLIENTS; i++) {
		struct orders_client *c = &o->client[i];

		if (c->fd < 0 || !(wishes & WISH_BIT(c->wish)))
			continue;
		message_text(c->fd, ok ? "done" : "error", text);
		forget(c);
	}
}

void orders_close(struct orders *o)
{
	for (unsigned i = 0; i < ORDERS_CLIENTS; i++)
		if (o->client[i].fd >= 0)
			forget(&o->client[i]);
	if (o->listen >= 0)
		close(o->listen);
	o->listen = -1;
}

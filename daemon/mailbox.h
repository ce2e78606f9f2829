/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mailbox.h - a lock-free list from many senders to one taker: misses from the queue threads to the
 * metadata thread, and answers back. Nodes are embedded in what they carry; nothing is allocated.
 */
#ifndef DAEMON_MAILBOX_H
#define DAEMON_MAILBOX_H

#include <stdbool.h>
#include <stddef.h>

struct letter {
	struct letter *next;
};

struct mailbox {
	struct letter *head; /* newest first */
};

/* Put a letter in; true if the box was empty: then the taker has to be woken. */
static inline bool mailbox_put(struct mailbox *box, struct letter *l)
{
	struct letter *head = __atomic_load_n(&box->head, __ATOMIC_RELAXED);

	do
		l->next = head;
	while (!__atomic_compare_exchange_n(&box->head, &head, l, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
	return !head;
}

/* Take everything, oldest first; NULL if there is nothing. Only one thread takes, so there is no ABA. */
static inline struct letter *mailbox_take(struct mailbox *box)
{
	struct letter *l = NULL, *next, *oldest = NULL;

	if (__atomic_load_n(&box->head, __ATOMIC_RELAXED))
		l = __atomic_exchange_n(&box->head, NULL, __ATOMIC_ACQUIRE);
	for (; l; l = next) {
		next = l->next;
		l->next = oldest;
		oldest = l;
	}
	return oldest;
}

#endif

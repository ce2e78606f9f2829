/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_switch.h - with QUEUE_GUARD (library daemon-guarded): switches that let a test break or widen what the
 * mapping table's protocol guards, and the promise of a flush. Without: nothing.
 *
 * - UBLK_QCOW2_TEST_SKIP_DRAIN=1: a withdrawal does not wait for the hits in flight (the image gets damaged)
 * - UBLK_QCOW2_TEST_HIT_DELAY=QUEUES:US[:EVERY]: on the queues of the bit mask QUEUES every EVERY-th hit
 *   (default: each) sleeps US microseconds between its lookup and its data I/O
 * - UBLK_QCOW2_TEST_NO_MEMORY=EVERY: while it serves, every EVERY-th allocation of the metadata thread fails
 * - UBLK_QCOW2_TEST_SKIP_FSYNC=1: no fsync of the image is made; all of them succeed
 * - UBLK_QCOW2_TEST_COPY=N: the N best ways of copying (server.c) are not used
 */
#ifndef DAEMON_TEST_SWITCH_H
#define DAEMON_TEST_SWITCH_H

#include <stdbool.h>

#ifdef QUEUE_GUARD
/* Read the environment; before any other thread runs. Ends the process when it cannot be understood. */
void test_switch_init(void);
/* On the thread of that queue, while it holds the range counter. */
void test_switch_hit(unsigned queue);
/* On the metadata thread, when it begins (and ends) to serve. */
void test_switch_serve(bool on);
bool test_switch_skip_fsync(void);
unsigned test_switch_copy(void);
#else
static inline void test_switch_init(void)
{
}

static inline void test_switch_hit(unsigned queue)
{
	(void)queue;
}

static inline void test_switch_serve(bool on)
{
	(void)on;
}

static inline bool test_switch_skip_fsync(void)
{
	return false;
}

static inline unsigned test_switch_copy(void)
{
	return 0;
}
#endif

#endif

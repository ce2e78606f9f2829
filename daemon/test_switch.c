/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_switch.c - the debug build's switches, from the environment (see the header).
 *
 * Owns the switches; built with QUEUE_GUARD only. Written once before the queue threads start, then only
 * read.
 */
#include "test_switch.h"
#include "fastmap.h"
#include "guard.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct {
	unsigned long queues; /* bit mask */
	unsigned long us, every;
} delay;
static unsigned long no_memory, copy;
static bool skip_fsync;

static void refuse(const char *name, const char *value)
{
	fprintf(stderr, "ublk-qcow2: %s=%s: not understood\n", name, value);
	exit(2);
}

static void read_delay(const char *name, const char *value)
{
	char *end;

	delay.every = 1;
	delay.queues = strtoul(value, &end, 0);
	if (*end != ':' || !delay.queues)
		refuse(name, value);
	delay.us = strtoul(end + 1, &end, 10);
	if (*end == ':')
		delay.every = strtoul(end + 1, &end, 10);
	if (*end || !delay.every)
		refuse(name, value);
}

static void read_number(const char *name, unsigned long *number)
{
	const char *value = getenv(name);
	char *end;

	if (!value)
		return;
	*number = strtoul(value, &end, 10);
	if (*end || !*number)
		refuse(name, value);
}

static bool read_flag(const char *name)
{
	const char *value = getenv(name);

	if (value && strcmp(value, "0") && strcmp(value, "1"))
		refuse(name, value);
	return value && *value == '1';
}

void test_switch_init(void)
{
	static const char delay_name[] = "UBLK_QCOW2_TEST_HIT_DELAY";
	const char *hit_delay = getenv(delay_name);

	fastmap_test_skip_drain = read_flag("UBLK_QCOW2_TEST_SKIP_DRAIN");
	skip_fsync = read_flag("UBLK_QCOW2_TEST_SKIP_FSYNC");
	if (hit_delay)
		read_delay(delay_name, hit_delay);
	read_number("UBLK_QCOW2_TEST_NO_MEMORY", &no_memory);
	read_number("UBLK_QCOW2_TEST_COPY", &copy);
}

void test_switch_hit(unsigned queue)
{
	static __thread unsigned long hits;
	struct timespec t = { .tv_sec = (time_t)(delay.us / 1000000),
			      .tv_nsec = (long)(delay.us % 1000000) * 1000 };

	if (delay.us && queue < 64 && delay.queues >> queue & 1 && ++hits % delay.every == 0)
		nanosleep(&t, NULL);
}

void test_switch_serve(bool on)
{
	queue_guard_every = on ? no_memory : 0;
}

bool test_switch_skip_fsync(void)
{
	return skip_fsync;
}

unsigned test_switch_copy(void)
{
	return (unsigned)copy;
}

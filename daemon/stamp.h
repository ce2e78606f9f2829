/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * stamp.h - when a process last had the chance to change its image.
 *
 * Every thread that submits I/O notes the time before it does, in memory that outlives the process (behind
 * the journal, in the same file). An image that was modified later than that was modified by somebody else:
 * it had no locks any more. Much of that a journal cannot see in the words it knows.
 */
#ifndef DAEMON_STAMP_H
#define DAEMON_STAMP_H

#include <stdint.h>
#include <time.h>

#define STAMPS 128u
/* A write may start that long after its thread noted the time: it waited for a CPU, or for the file's lock.
 */
#define STAMP_SLACK_NS 2000000000ull

struct stamps {
	struct {
		uint64_t ns; /* CLOCK_REALTIME_COARSE, as file times are; 0: never */
		uint64_t pad[7];
	} thread[STAMPS];
};
_Static_assert(sizeof(struct stamps) == 8192, "whole pages");

/* Costs a read of the vDSO's clock. @at may be NULL. */
static inline void stamp(uint64_t *at)
{
	struct timespec t;

	if (!at)
		return;
	clock_gettime(CLOCK_REALTIME_COARSE, &t);
	__atomic_store_n(at, (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec, __ATOMIC_RELAXED);
}

/* The latest of all; 0: none. */
static inline uint64_t stamps_latest(const struct stamps *s)
{
	uint64_t latest = 0;

	for (unsigned i = 0; i < STAMPS; i++)
		if (s->thread[i].ns > latest)
			latest = s->thread[i].ns;
	return latest;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * states.h - the files that a power cut could leave at one moment: what is durable plus, sector by sector,
 * any part of what is not; with a size between the durable one and the largest that was asked for.
 *
 * State 0 is everything issued so far, state 1 nothing of it, state 2 everything that completed (the two
 * prefixes); where an fsync is about to complete then come all subsets of the newest changes; then random
 * ones.
 */
#ifndef TESTS_CRASH_STATES_H
#define TESTS_CRASH_STATES_H

#include "device.h"
#include <stdio.h>

struct crash {
	uint8_t *bytes; /* of the file; the same as the device's durable ones between two states */
	uint64_t *value; /* of each sector */
	uint64_t size;
	uint64_t hash; /* of the whole file, size included */
	uint64_t body; /* the same without the first sector (the header) */
	/* to undo it: */
	uint32_t *patched;
	size_t npatched, cap;
	struct device *d;
};

void crash_init(struct crash *c, struct device *d);
void crash_free(struct crash *c);
/* Take over what became durable since the last call. */
void crash_rebase(struct crash *c);
/* How many states to look at now; *exhaustive: of these, subsets of the newest changes. */
unsigned crash_states(const struct device *d, enum point p, unsigned *exhaustive);
/* Make state @index of the moment (@seed names it); crash_undo() before the next. @trace: say what is in it.
 */
void crash_build(struct crash *c, uint64_t seed, unsigned index, unsigned exhaustive, FILE *trace);
void crash_undo(struct crash *c);

#endif

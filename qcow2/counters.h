/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * counters.h - one counter per host cluster, for check.c: sparse (untouched parts of a file cost
 * nothing), compact (a counter starts at one byte and its neighbourhood widens when it must),
 * saturating, and within a memory budget.
 */
#ifndef QCOW2_COUNTERS_H
#define QCOW2_COUNTERS_H

#include <stdbool.h>
#include <stdint.h>

struct counters {
	struct counters_node **top;
	uint64_t limit; /* indices are below it */
	uint64_t max; /* where a counter saturates */
	uint64_t *budget; /* bytes that may still be allocated; shared between sets */
};

/* limit <= 2^32. 0 or -ENOMEM; counters_free() is right in both cases. */
int counters_init(struct counters *c, uint64_t limit, uint64_t max, uint64_t *budget);
void counters_free(struct counters *c);

/* Add @n to counter @index. *lost: how much of @n did not fit below the maximum. 0 or -ENOMEM. */
int counters_add(struct counters *c, uint64_t index, uint64_t n, uint64_t *lost);
uint64_t counters_get(const struct counters *c, uint64_t index);
/* The first counter that is not zero, from *index on and before @end. False: there is none. */
bool counters_next(const struct counters *c, uint64_t *index, uint64_t end);

#endif

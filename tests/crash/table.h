/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * table.h - a mapping table for the library (struct qcow2_table_ops), and the hits on it: reads and writes
 * through published words that the library never sees, in flight for as long as the device likes.
 */
#ifndef TESTS_CRASH_TABLE_H
#define TESTS_CRASH_TABLE_H

#include "chain.h"
#include "model.h"

struct table;
/* @hit_done: sectors [first, first + n) are no longer in use by a hit. */
struct table *table_new(struct chain *c, struct model *m,
			void (*hit_done)(void *ctx, uint64_t first, uint64_t n), void *ctx);
void table_free(struct table *t);
struct qcow2_table_ops *table_ops(struct table *t);
/* Start a hit on up to @n sectors from @first on; returns how many it covers: 0 = no word there. */
uint64_t table_hit(struct table *t, uint64_t first, uint64_t n, bool write, uint64_t serial);
unsigned table_in_flight(const struct table *t);
/* Test-only breakage: withdraw does not wait for hits in flight. */
extern bool table_no_drain;

#endif

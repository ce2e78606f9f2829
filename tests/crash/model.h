/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * model.h - what a guest may find: for each sector every value that no durable later one has replaced.
 *
 * A value is replaced by one whose request was issued after its own had completed. A completed FLUSH makes
 * every request durable that had completed before the FLUSH was issued. Requests that overlap in time leave
 * either.
 */
#ifndef TESTS_CRASH_MODEL_H
#define TESTS_CRASH_MODEL_H

#include "crash.h"

struct model;
/* @initial: what each of the @n sectors holds, durably. */
struct model *model_new(const uint64_t *initial, uint64_t n);
void model_free(struct model *m);

#define ZERO_SERIAL (1ull << 63) /* set in the serial of a change to zeroes */
/* A change of sectors [first, first + n) is issued: to word_for(sector, serial), or zeroes; or, if @below is
 * not NULL (a word per sector of the disk), either to that or to what is said there. */
void model_issue(struct model *m, uint64_t first, uint64_t n, uint64_t serial, const uint64_t *below,
		 uint64_t clock);
/* It completed; @ok = false: it failed, so it may have changed them or not. */
void model_complete(struct model *m, uint64_t first, uint64_t n, uint64_t serial, uint64_t clock, bool ok);
/* A FLUSH issued at @clock completed. */
void model_flush(struct model *m, uint64_t clock);

/* May a crash now leave @value in the sector? */
bool model_allows(const struct model *m, uint64_t sector, uint64_t value);
/* May a read issued at @clock that completes now return it? */
bool model_reads(const struct model *m, uint64_t sector, uint64_t value, uint64_t clock);
/* Changes whenever something became forbidden. */
uint64_t model_epoch(const struct model *m);
/* The values of a sector, in words, for messages. */
const char *model_says(const struct model *m, uint64_t sector);
const char *model_word(uint64_t value);

#endif

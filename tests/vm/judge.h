// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * judge.h - what a read of a block device may return while others change it. The rules are in judge.c. Any
 * thread; blocks by number.
 */
#ifndef TESTS_JUDGE_H
#define TESTS_JUDGE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define BLOCK 4096u

/* A read of a block, from before it is issued. */
struct look {
	uint64_t start, floor; /* floor: the block's, at the start */
	uint32_t n; /* changes, at the start */
	bool quiet; /* none was running */
};

/* For blocks [0, n). Memory that there is not ends the process, here and below. */
void judge_init(unsigned n);
/* A block as it is found: true if it is zero or of one stamp. */
bool judge_take(unsigned b, const char *buf);
/* Before a write (false) or a clear (true) is issued: its sequence number. After it completed: end, and when.
 */
uint32_t start_change(unsigned b, bool clear);
uint64_t end_change(unsigned b, uint32_t seq);
/* What such a write writes: BLOCK bytes, aligned to 8. */
void put_stamps(char *buf, unsigned b, uint32_t seq);
/* Before a read is issued; after it completed and judge_time() was asked: whether it is right. The first
 * wrong ones are described on standard error. */
struct look start_look(unsigned b);
uint64_t judge_time(void);
bool judge_block(unsigned b, const char *buf, const struct look *l, uint64_t end);
bool was_written(unsigned b); /* a write has ended */
/* A read that started at @since, maybe long ago. */
struct look look_since(unsigned b, uint64_t since);
/* All blocks as lines of text; and one such line back, in the same order, after judge_init(): whether it is
 * one. */
void judge_save(FILE *f);
bool judge_load(const char *line);
/* Blocks judged; sectors with words of several changes. */
void judge_counts(uint64_t *judged, uint64_t *mixed);

#endif

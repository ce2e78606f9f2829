/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * ledger.h - a file that says what was written to a device, and what of it the device has promised to keep:
 * with it somebody else judges what a power cut left. Without ledger_open() the promises go nowhere. An error
 * ends the process with status 2.
 */
#ifndef TESTS_LEDGER_H
#define TESTS_LEDGER_H

#include <stdint.h>

/* A new file. Each promise is also a mark in the log of dm-log-writes device @log (its name); NULL: of none.
 */
void ledger_open(const char *path, const char *log);
/* Whatever ended until @since (judge_time()) in blocks [first, first + n) is durable. The N-th promise is a
 * line "mark ..." in the file, at once, and mark N in the log. Any thread. */
void ledger_promise(uint64_t since, unsigned first, unsigned n);
/* Add all that judge.h knows of blocks; once, while other threads may still be at it. */
void ledger_close(void);

/* After judge_init(@count): give judge.h all it knew. What follows is about the moment when @mark promises
 * had been made and no more. */
void ledger_load(const char *path, unsigned mark, unsigned count);
/* The last promise about a block; and when nothing more could be started that may be seen. For judge_block().
 */
uint64_t ledger_since(unsigned b);
uint64_t ledger_end(void);

#endif

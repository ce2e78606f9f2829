// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * judge.c - what a read of a block device may return while others change it.
 *
 * Content. A 4 KiB block is zero, or stamped: each of its 512 eight-byte words is magic | block | sector |
 * sequence. Every write of a block has a sequence number of its own, so a word tells which write it is from.
 *
 * Verdict. Each block has the list of all its changes (writes, and clears: discard, zero), with the times
 * when they started and ended, on one logical clock. Each word of a read must be the stamp of this block and
 * sector with the sequence of a write, or zero if a clear made it (or it was zero in the beginning), such
 * that this change started before the read ended, and no other change of the block started after this one
 * ended and ended before the read started. That is what a block device promises, no more and no less: after
 * two changes that ran at once either may have won, byte by byte (below us are a page cache and QEMU); but
 * words of other blocks, of older changes or of nobody are wrong. Which of them has won a later read
 * may not see otherwise than the first one that had the block to itself. Sectors with words of several legal
 * changes are counted as "mixed"; without overlapping changes there is no such thing.
 */
#include "judge.h"
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORDS (BLOCK / 8)
#define SECTOR_WORDS 64u
#define RUNNING UINT64_MAX
#define MAGIC 0xc5ull

struct change {
	uint64_t start, end;
	uint64_t lost; /* a read that ended then has shown that another one won */
	bool clear;
};

struct block {
	pthread_mutex_t lock;
	struct change *change; /* [sequence - first] */
	uint32_t n, cap, first;
	unsigned running;
	bool contested; /* changes overlapped, and nobody has seen yet which one won */
	uint64_t floor; /* the latest start of a change that has ended */
	bool written; /* a write has ended */
};

static struct block *block;
static unsigned blocks;
static uint64_t now; /* the clock */
static uint64_t judged, mixed;

static void add(uint64_t *counter, uint64_t by)
{
	__atomic_add_fetch(counter, by, __ATOMIC_RELAXED);
}

uint64_t judge_time(void)
{
	return __atomic_add_fetch(&now, 1, __ATOMIC_SEQ_CST);
}

static void out_of_memory(void)
{
	fprintf(stderr, "judge: out of memory\n");
	exit(2);
}

/* ---- stamps ---- */

static uint64_t stamp(unsigned b, unsigned sector, uint32_t seq)
{
	return MAGIC << 56 | (uint64_t)b << 35 | (uint64_t)sector << 32 | seq;
}

void put_stamps(char *buf, unsigned b, uint32_t seq)
{
	uint64_t *w = (uint64_t *)buf;

	for (unsigned i = 0; i < WORDS; i++)
		w[i] = stamp(b, i / SECTOR_WORDS, seq);
}

/* ---- what a block may hold ---- */

static void new_change(struct block *k, uint64_t start, uint64_t end, bool clear)
{
	if (k->n == k->cap) {
		k->cap = k->cap ? 2 * k->cap : 2;
		k->change = realloc(k->change, k->cap * sizeof(*k->change));
		if (!k->change)
			out_of_memory();
	}
	k->change[k->n++] = (struct change){ start, end, RUNNING, clear };
}

uint32_t start_change(unsigned b, bool clear)
{
	struct block *k = &block[b];
	uint32_t seq;

	pthread_mutex_lock(&k->lock);
	seq = k->first + k->n;
	new_change(k, judge_time(), RUNNING, clear);
	k->contested |= k->running++ > 0;
	pthread_mutex_unlock(&k->lock);
	return seq;
}

uint64_t end_change(unsigned b, uint32_t seq)
{
	struct block *k = &block[b];
	struct change *c;
	uint64_t end;

	pthread_mutex_lock(&k->lock);
	c = &k->change[seq - k->first];
	c->end = end = judge_time();
	if (c->start > k->floor)
		k->floor = c->start;
	k->running--;
	k->written |= !c->clear;
	pthread_mutex_unlock(&k->lock);
	return end;
}

struct look start_look(unsigned b)
{
	struct block *k = &block[b];
	struct look l;

	pthread_mutex_lock(&k->lock);
	l = (struct look){ .start = judge_time(), .floor = k->floor, .n = k->n, .quiet = !k->running };
	pthread_mutex_unlock(&k->lock);
	return l;
}

static bool may_be_seen(const struct change *c, const struct look *l, uint64_t end)
{
	return c->start < end && c->end >= l->floor && c->lost > l->start;
}

/* The whole block was @w (a stamp or 0), and nobody else was there: what overlapped and is not @w has lost.
 */
static void settle(struct block *k, uint64_t w, const struct look *l, uint64_t end)
{
	if (!k->contested || !l->quiet || l->n != k->n)
		return;
	for (uint32_t i = k->n, more = 64;
	     i-- && more--;) { /* older ones are overwritten, or nearly always */
		struct change *c = &k->change[i];

		if ((w ? c->clear || k->first + i != (uint32_t)w : !c->clear) && c->lost == RUNNING)
			c->lost = end;
	}
	k->contested = false;
}

/* NULL, or what is wrong with a word. */
static const char *judge_word(const struct block *k, unsigned sector, uint64_t w, const struct look *l,
			      uint64_t end)
{
	unsigned b = (unsigned)(k - block);
	uint32_t seq = (uint32_t)w, i = seq - k->first;

	if (!w) {
		for (i = k->n; i--;)
			if (k->change[i].clear && may_be_seen(&k->change[i], l, end))
				return NULL;
		return "zero, which nobody made it";
	}
	if (w >> 56 != MAGIC)
		return "garbage";
	if (w != stamp(b, sector, seq))
		return (w >> 35 & 0x1fffff) == b ? "of another sector" : "of another block";
	if (seq < k->first || i >= k->n || k->change[i].clear || k->change[i].start > end)
		return "a write that was never made";
	return may_be_seen(&k->change[i], l, end) ? NULL : "overwritten before";
}

static uint64_t shown_before(void)
{
	static uint64_t shown;

	return __atomic_fetch_add(&shown, 1, __ATOMIC_RELAXED);
}

bool judge_block(unsigned b, const char *buf, const struct look *l, uint64_t end)
{
	struct block *k = &block[b];
	const char *why = NULL;
	bool whole = true;

	pthread_mutex_lock(&k->lock);
	for (unsigned s = 0; s < BLOCK / 512 && !why; s++) {
		const uint64_t *w = (const uint64_t *)(buf + s * 512);
		bool one = !memcmp(w, w + 1, 512 - sizeof(*w));

		for (unsigned i = 0; i < (one ? 1 : SECTOR_WORDS) && !why; i++) {
			why = judge_word(k, s, w[i], l, end);
			if (why && shown_before() < 10)
				fprintf(stderr,
					"WRONG: block %u sector %u word %u: %016llx: %s (next sequence %u)\n",
					b, s, i, (unsigned long long)w[i], why, k->first + k->n);
		}
		add(&mixed, !one);
		whole &= one && (uint32_t)*w == *(const uint32_t *)buf;
	}
	if (whole && !why)
		settle(k, *(const uint64_t *)buf, l, end);
	pthread_mutex_unlock(&k->lock);
	add(&judged, 1);
	return !why;
}

/* ---- the rest ---- */

void judge_init(unsigned n)
{
	while (blocks)
		free(block[--blocks].change);
	free(block);
	blocks = n;
	block = calloc(n, sizeof(*block));
	if (!block)
		out_of_memory();
	for (unsigned b = 0; b < n; b++)
		pthread_mutex_init(&block[b].lock, NULL);
}

bool judge_take(unsigned b, const char *buf)
{
	static const struct look first;
	uint64_t w = *(const uint64_t *)buf;

	block[b].first = (uint32_t)w;
	new_change(&block[b], 0, 0, !w);
	return judge_block(b, buf, &first, 1);
}

bool was_written(unsigned b)
{
	return __atomic_load_n(&block[b].written, __ATOMIC_ACQUIRE);
}

struct look look_since(unsigned b, uint64_t since)
{
	struct look l = { .start = since };

	pthread_mutex_lock(&block[b].lock);
	for (uint32_t i = 0; i < block[b].n; i++) {
		const struct change *c = &block[b].change[i];

		if (c->end <= since && c->start > l.floor)
			l.floor = c->start;
	}
	pthread_mutex_unlock(&block[b].lock);
	return l;
}

void judge_save(FILE *f)
{
	for (unsigned b = 0; b < blocks; b++) {
		struct block *k = &block[b];

		pthread_mutex_lock(&k->lock);
		for (uint32_t i = 0; i < k->n; i++)
			fprintf(f, "change %u %u %" PRIu64 " %" PRIu64 " %" PRIu64 " %d\n", b, k->first + i,
				k->change[i].start, k->change[i].end, k->change[i].lost, k->change[i].clear);
		pthread_mutex_unlock(&k->lock);
	}
}

bool judge_load(const char *line)
{
	struct change c;
	unsigned b, seq;
	int clear;

	if (sscanf(line, "change %u %u %" SCNu64 " %" SCNu64 " %" SCNu64 " %d", &b, &seq, &c.start, &c.end,
		   &c.lost, &clear) != 6 ||
	    b >= blocks || (block[b].n && seq != block[b].first + block[b].n))
		return false;
	if (!block[b].n)
		block[b].first = seq;
	new_change(&block[b], c.start, c.end, clear);
	block[b].change[block[b].n - 1].lost = c.lost;
	return true;
}

void judge_counts(uint64_t *judged_blocks, uint64_t *mixed_sectors)
{
	*judged_blocks = judged;
	*mixed_sectors = mixed;
}

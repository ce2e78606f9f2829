/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * crash.h - what every part of the power-cut simulator uses: seeded random numbers, hashes, what a sector
 * holds, and the report of a finding, which ends the process.
 *
 * Everything is a function of (family, seed), so a finding can be repeated alone.
 */
#ifndef TESTS_CRASH_H
#define TESTS_CRASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SECTOR 512u /* what a disk writes whole or not at all */

/* ---- random numbers ---- */

struct rng {
	uint64_t s;
};

static inline uint64_t mix(uint64_t a, uint64_t b)
{
	uint64_t x = a * 0x9e3779b97f4a7c15ull ^ b;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

/* Below n; n > 0. */
static inline uint64_t rnd(struct rng *r, uint64_t n)
{
	r->s += 0x9e3779b97f4a7c15ull;
	return mix(r->s, 1) % n;
}

/* ---- content ---- */

/* A sector that a guest wrote repeats one word, which says where and which write; 0 = zeroes. */
static inline uint64_t word_for(uint64_t sector, uint64_t serial)
{
	return 0x5157ull << 48 | serial << 24 | sector;
}

/* Sectors [first, first + n) as write @serial writes them. */
static inline void fill_words(uint8_t *buf, uint64_t first, uint64_t n, uint64_t serial)
{
	uint64_t i, w;

	for (i = 0; i < n * SECTOR; i += 8) {
		w = word_for(first + i / SECTOR, serial);
		memcpy(buf + i, &w, 8);
	}
}

/* What 512 bytes hold: the word, or for anything else a hash. */
static inline uint64_t sector_value(const uint8_t *p)
{
	uint64_t first, w, h = 1;
	unsigned i;

	memcpy(&first, p, 8);
	if (!memcmp(p, p + 8, SECTOR - 8))
		return first;
	for (i = 0; i < SECTOR; i += 8) {
		memcpy(&w, p + i, 8);
		h = (h ^ w) * 0x9fb21c651e98df25ull;
		h ^= h >> 29;
	}
	return h | 1ull << 63;
}

/* ---- findings ---- */

struct where {
	const char *family;
	uint64_t seed, point;
	int64_t state; /* -1: not in a crash state */
	unsigned life;
	uint64_t judged; /* states so far, for the report */
};
extern struct where where;

/* Something is wrong: say where, how to repeat it and what, and exit(1). */
void finding(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
/* Called by finding() with the state that is being judged. */
extern void (*finding_details)(void);
/* The simulator itself cannot go on: exit(2). */
void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

#endif

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * states.c - choosing and building crash states.
 *
 * A state is a plan: for each (change, sector) whether it got there, a pure function of the plan, so that it
 * can be built, undone, traced and repeated. Changes are applied in the order of issue: a later write of a
 * sector wins over an earlier one, which may still be seen where the later one is missing. That reaches every
 * content that reordering can leave, since two different writes of one sector are never in flight together
 * (device.c).
 */
#include "states.h"
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>

#define FIXED 3u /* states 0 to 2 */
#define EXHAUSTIVE_MAX 5u /* changes: 32 subsets */

enum plan_kind { PLAN_WRITES, PLAN_SECTORS, PLAN_TORN, PLAN_SUBSET, PLAN_COMPLETED };
enum size_kind { SIZE_NATURAL, SIZE_DURABLE, SIZE_LARGEST, SIZE_BETWEEN };

struct plan {
	enum plan_kind kind;
	enum size_kind size;
	uint64_t seed;
	unsigned share; /* of 8 that are there (WRITES, SECTORS); the rest all or nothing (TORN, SUBSET) */
	unsigned first; /* SUBSET: bit 0 of mask; TORN: the torn change */
	unsigned mask;
};

void crash_init(struct crash *c, struct device *d)
{
	*c = (struct crash){ .d = d };
	c->bytes = mmap(NULL, DEVICE_MAX, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	c->value = calloc(DEVICE_MAX / SECTOR, sizeof(*c->value));
	if (c->bytes == MAP_FAILED || !c->value)
		die("out of memory");
	memcpy(c->bytes, d->durable, d->durable_size);
	memcpy(c->value, d->value, d->durable_size / SECTOR * sizeof(*c->value));
}

void crash_free(struct crash *c)
{
	munmap(c->bytes, DEVICE_MAX);
	free(c->value);
	free(c->patched);
}

static void copy_sector(struct crash *c, uint64_t s)
{
	memcpy(c->bytes + s * SECTOR, c->d->durable + s * SECTOR, SECTOR);
	c->value[s] = c->d->value[s];
}

void crash_rebase(struct crash *c)
{
	uint64_t s, n = DEVICE_MAX / SECTOR;

	for (s = 0; s < n; s++)
		if (c->value[s] != c->d->value[s])
			copy_sector(c, s);
}

unsigned crash_states(const struct device *d, enum point p, unsigned *exhaustive)
{
	unsigned n = d->nchanges < EXHAUSTIVE_MAX ? d->nchanges : EXHAUSTIVE_MAX;

	*exhaustive = 0;
	if (p == POINT_EVENT)
		return FIXED + 1;
	if (p == POINT_SYNC)
		*exhaustive = n > 1 ? 1u << n : 0;
	return FIXED + *exhaustive + 10;
}

/* ---- plans ---- */

static struct plan plan_for(const struct device *d, uint64_t seed, unsigned index, unsigned exhaustive)
{
	struct rng r = { mix(seed, index) };
	struct plan p = { .seed = rnd(&r, UINT64_MAX) };
	unsigned n = d->nchanges;

	if (index < FIXED) {
		p.kind = index == 2 ? PLAN_COMPLETED : PLAN_WRITES;
		p.share = index ? 0 : 8;
		return p;
	}
	if (index - FIXED < exhaustive) {
		p.kind = PLAN_SUBSET;
		p.mask = index - FIXED;
		p.first = n > EXHAUSTIVE_MAX ? n - EXHAUSTIVE_MAX : 0;
		p.share = rnd(&r, 2) ? 8 : 0;
		return p;
	}
	p.kind = (enum plan_kind)rnd(&r, 3);
	p.share = 1 + (unsigned)rnd(&r, 7);
	p.size = rnd(&r, 3) ? SIZE_NATURAL : (enum size_kind)rnd(&r, 4);
	if (p.kind == PLAN_TORN) {
		p.first = n ? (unsigned)rnd(&r, n) : 0;
		p.share = rnd(&r, 2) ? 8 : 0;
	}
	return p;
}

/* Did @sector of @c, change number @i, get there? */
static bool arrived(const struct plan *p, const struct change *c, unsigned i, uint64_t sector)
{
	switch (p->kind) {
	case PLAN_WRITES:
		return mix(p->seed, i) % 8 < p->share;
	case PLAN_SECTORS:
		return mix(mix(p->seed, i), sector) % 8 < p->share;
	case PLAN_TORN:
		return i == p->first ? mix(p->seed, sector) % 2 : p->share;
	case PLAN_COMPLETED:
		return c->completed;
	default:
		return i >= p->first ? p->mask >> (i - p->first) & 1 : p->share;
	}
}

static uint64_t size_for(const struct device *d, const struct plan *p)
{
	uint64_t size = d->durable_size, natural = size, largest = size, s;
	const struct change *c;
	unsigned i = 0;

	TAILQ_FOREACH (c, &d->changes, link) {
		if (c->op != HOST_PUNCH && c->len && c->off + c->len > size) {
			largest = c->off + c->len > largest ? c->off + c->len : largest;
			for (s = (c->off + c->len) / SECTOR; s * SECTOR > natural && s * SECTOR > c->off; s--)
				if (arrived(p, c, i, s - 1))
					natural = s * SECTOR;
		}
		i++;
	}
	if (p->size == SIZE_DURABLE)
		return size;
	if (p->size == SIZE_LARGEST)
		return largest;
	if (p->size == SIZE_BETWEEN)
		return size + mix(p->seed, 7) % ((largest - size) / SECTOR + 1) * SECTOR;
	return natural;
}

/* ---- building ---- */

static void patch(struct crash *c, uint64_t s, const uint8_t *data, uint64_t value)
{
	if (c->npatched == c->cap) {
		c->cap = c->cap ? 2 * c->cap : 256;
		c->patched = realloc(c->patched, c->cap * sizeof(*c->patched));
		if (!c->patched)
			die("out of memory");
	}
	c->patched[c->npatched++] = (uint32_t)s;
	c->hash ^= device_hash_of(s, c->value[s]) ^ device_hash_of(s, value);
	c->value[s] = value;
	if (data)
		memcpy(c->bytes + s * SECTOR, data, SECTOR);
	else
		memset(c->bytes + s * SECTOR, 0, SECTOR);
}

static void trace_change(FILE *f, const struct change *ch, unsigned i, const struct plan *p, uint64_t size)
{
	static const char *const name[] = { "read", "write", "zero", "punch", "fsync" };
	uint64_t s;

	fprintf(f, "  %3u %-5s 0x%06" PRIx64 "+0x%04" PRIx64 " %s ", i, name[ch->op], ch->off, ch->len,
		ch->completed ? "completed" : "in flight");
	for (s = ch->off / SECTOR; s < (ch->off + ch->len) / SECTOR; s++)
		putc(!arrived(p, ch, i, s) ? '.' : s * SECTOR < size ? 'X' : '>', f);
	putc('\n', f);
}

void crash_build(struct crash *c, uint64_t seed, unsigned index, unsigned exhaustive, FILE *trace)
{
	struct device *d = c->d;
	struct plan p = plan_for(d, seed, index, exhaustive);
	const struct change *ch;
	unsigned i = 0;
	uint64_t k, s;

	c->size = size_for(d, &p);
	c->hash = d->hash;
	if (trace)
		fprintf(trace,
			"  durable: %" PRIu64 " bytes; this file: %" PRIu64
			" bytes; changes pending, X = there, > = behind the end, . = lost:\n",
			d->durable_size, c->size);
	TAILQ_FOREACH (ch, &d->changes, link) {
		for (k = 0; k < ch->len / SECTOR; k++) {
			s = ch->off / SECTOR + k;
			if (arrived(&p, ch, i, s) && s * SECTOR < c->size && c->value[s] != ch->value[k])
				patch(c, s, ch->data ? ch->data + k * SECTOR : NULL, ch->value[k]);
		}
		if (trace)
			trace_change(trace, ch, i, &p, c->size);
		i++;
	}
	c->body = c->hash ^ device_hash_of(0, c->value[0]) ^ mix(c->size, 3);
	c->hash ^= mix(c->size, 3);
}

void crash_undo(struct crash *c)
{
	while (c->npatched)
		copy_sector(c, c->patched[--c->npatched]);
}

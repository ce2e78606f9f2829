/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * slice_index.c - a hash table with linear probing, at most half full.
 *
 * Owns its memory, of a fixed size, filled when it is made. Removing moves later entries of the run back, so
 * there are no tombstones and a run stays short. An entry is copied to its new place before the old one is
 * overwritten; a reader that is past the one and has not reached the other finds nothing. It cannot run in a
 * circle, as half of the entries are always empty.
 */
#include "slice_index.h"
#include "memory.h"
#include <errno.h>
#include <stdlib.h>

struct slice_index_entry {
	uint64_t slice_plus_1; /* 0: empty */
	uint64_t slot;
};

static uint32_t home(const struct slice_index *x, uint64_t slice)
{
	return (uint32_t)((slice * 0x9e3779b97f4a7c15ull) >> 32) & x->mask;
}

int slice_index_init(struct slice_index *x, uint32_t slices)
{
	uint32_t entries = 4;

	while (entries < 2 * (uint64_t)slices)
		entries *= 2;
	x->mask = entries - 1;
	x->entry = calloc(entries, sizeof(*x->entry));
	if (!x->entry)
		return -ENOMEM;
	memory_fill(x->entry, entries * sizeof(*x->entry)); /* a look must not wait for memory */
	return 0;
}

void slice_index_exit(struct slice_index *x)
{
	free(x->entry);
}

static uint64_t load(const uint64_t *from)
{
	return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}

static void set(struct slice_index *x, uint32_t i, uint64_t slice_plus_1, uint64_t slot)
{
	__atomic_store_n(&x->entry[i].slot, slot, __ATOMIC_RELEASE);
	__atomic_store_n(&x->entry[i].slice_plus_1, slice_plus_1, __ATOMIC_RELEASE);
}

/* Where the slice is, or the empty entry where it would be. */
static uint32_t place(const struct slice_index *x, uint64_t slice)
{
	uint32_t i = home(x, slice);
	uint64_t there;

	while ((there = load(&x->entry[i].slice_plus_1)) && there != slice + 1)
		i = (i + 1) & x->mask;
	return i;
}

uint32_t slice_index_find(const struct slice_index *x, uint64_t slice)
{
	const struct slice_index_entry *e = &x->entry[place(x, slice)];

	return load(&e->slice_plus_1) == slice + 1 ? (uint32_t)load(&e->slot) : SLICE_INDEX_NONE;
}

void slice_index_insert(struct slice_index *x, uint64_t slice, uint32_t slot)
{
	set(x, place(x, slice), slice + 1, slot);
}

/* An entry may move to the hole if that lies between its home and its place. */
void slice_index_remove(struct slice_index *x, uint64_t slice)
{
	uint32_t hole = place(x, slice), i = hole;

	for (;;) {
		struct slice_index_entry *e;

		i = (i + 1) & x->mask;
		e = &x->entry[i];
		if (!e->slice_plus_1)
			break;
		if (((i - home(x, e->slice_plus_1 - 1)) & x->mask) < ((i - hole) & x->mask))
			continue;
		set(x, hole, e->slice_plus_1, e->slot);
		hole = i;
	}
	set(x, hole, 0, 0);
}

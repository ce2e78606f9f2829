/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * entry.h - the only place where L1, L2, refcount-table and refcount words are decoded and encoded.
 *
 * A table block is handed around as `void *` (raw bytes of the file); everyone reads it through
 * these functions. Decoders never fail silently: a word the specification forbids gives
 * EXT_INVALID, and the caller turns that into -EUCLEAN.
 */
#ifndef QCOW2_ENTRY_H
#define QCOW2_ENTRY_H

#include <asm/byteorder.h>
#include <endian.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include "format.h"
#include "geometry.h"

enum extent_kind {
	EXT_UNALLOCATED, /* read the backing file, or zeroes without one */
	EXT_ZERO, /* reads as zeroes, no host cluster */
	EXT_ZERO_ALLOC, /* reads as zeroes, but keeps a (stale) host cluster */
	EXT_DATA, /* plain data at .host */
	EXT_COMPRESSED, /* compressed bytes at .host, .clen bytes at most */
	EXT_INVALID, /* forbidden by the specification */
};

/* What one L2 entry says. host is a byte offset in the image file. */
struct l2_entry {
	enum extent_kind kind;
	bool copied; /* OFLAG_COPIED: refcount is exactly one (active tables only) */
	uint64_t host; /* DATA, ZERO_ALLOC: cluster aligned; COMPRESSED: any byte */
	uint32_t clen; /* COMPRESSED: bytes from .host to the end of the last sector */
};

/* Big-endian words at any alignment, for variable-length records (extensions, snapshots, bitmaps). */
static inline uint16_t load_be16(const void *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof(v));
	return be16toh(v);
}

static inline uint32_t load_be32(const void *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return be32toh(v);
}

static inline uint64_t load_be64(const void *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return be64toh(v);
}

static inline uint64_t table_get(const void *block, uint32_t index)
{
	return be64toh(((const uint64_t *)block)[index]);
}

static inline void table_set(void *block, uint32_t index, uint64_t word)
{
	((uint64_t *)block)[index] = htobe64(word);
}

/* The word as it lies in the file. */
static inline uint64_t table_raw(uint64_t word)
{
	return htobe64(word);
}

/* L1 word -> L2 table offset (0 = none). Returns false if the word is invalid. */
static inline bool l1_decode(const struct geometry *g, uint64_t word, uint64_t *l2, bool *copied)
{
	*l2 = word & QCOW2_L1_OFFSET_MASK;
	*copied = word & QCOW2_COPIED;
	if (word & QCOW2_L1_RESERVED || !cluster_aligned(g, *l2))
		return false;
	return *l2 || !*copied; /* COPIED without a table: QEMU aborts on it */
}

static inline uint64_t l1_encode(uint64_t l2)
{
	return l2 | QCOW2_COPIED;
}

static inline struct l2_entry l2_decode_compressed(const struct geometry *g, uint64_t word)
{
	unsigned x = 62 - (g->cluster_bits - 8);
	struct l2_entry e = { .kind = EXT_COMPRESSED };
	uint64_t sectors = (word & ((1ull << 62) - 1)) >> x;

	e.host = word & ((1ull << x) - 1);
	e.clen = (uint32_t)((sectors + 1) * 512 - (e.host & 511));
	if (word & QCOW2_COPIED || !e.host || e.host >= QCOW2_MAX_HOST_OFFSET)
		e.kind = EXT_INVALID;
	return e;
}

/* L2 word (standard tables, not extended L2) -> entry. */
static inline struct l2_entry l2_decode(const struct geometry *g, uint64_t word)
{
	struct l2_entry e = { .copied = word & QCOW2_COPIED };
	uint64_t reserved = QCOW2_L2_RESERVED | (g->version < 3 ? QCOW2_L2_ZERO : 0);

	if (word & QCOW2_L2_COMPRESSED)
		return l2_decode_compressed(g, word);
	e.host = word & QCOW2_L2_OFFSET_MASK;
	if (word & reserved || !cluster_aligned(g, e.host))
		e.kind = EXT_INVALID;
	else if (word & QCOW2_L2_ZERO)
		e.kind = e.host ? EXT_ZERO_ALLOC : EXT_ZERO;
	else
		e.kind = e.host ? EXT_DATA : EXT_UNALLOCATED;
	if (!e.host)
		e.copied = false; /* meaningless there; QEMU ignores it too */
	return e;
}

/* Entry -> word for every kind we write (never COMPRESSED, always a cluster we own alone). */
static inline uint64_t l2_encode(enum extent_kind kind, uint64_t host)
{
	switch (kind) {
	case EXT_DATA:
		return host | QCOW2_COPIED;
	case EXT_ZERO_ALLOC:
		return host | QCOW2_COPIED | QCOW2_L2_ZERO;
	case EXT_ZERO:
		return QCOW2_L2_ZERO;
	default:
		return 0;
	}
}

/* Refcount table word -> refcount block offset (0 = none); false if invalid. */
static inline bool rt_decode(const struct geometry *g, uint64_t word, uint64_t *rb)
{
	*rb = word & ~QCOW2_REFTABLE_RESERVED;
	return !(word & QCOW2_REFTABLE_RESERVED) && cluster_aligned(g, *rb) && *rb < QCOW2_MAX_HOST_OFFSET;
}

/* Refcount number @index of a block (or of a part of one that starts at index 0). */
static inline uint64_t refcount_decode(const struct geometry *g, const void *block, uint32_t index)
{
	unsigned bits = 1u << g->refcount_order;

	switch (g->refcount_order) {
	case 6:
		return be64toh(((const uint64_t *)block)[index]);
	case 5:
		return be32toh(((const uint32_t *)block)[index]);
	case 4:
		return be16toh(((const uint16_t *)block)[index]);
	case 3:
		return ((const uint8_t *)block)[index];
	default: /* 1, 2, 4 bits: least significant bits first */
		return ((const uint8_t *)block)[index * bits / 8] >> (index * bits % 8) & ((1u << bits) - 1);
	}
}

static inline void refcount_encode(const struct geometry *g, void *block, uint32_t index, uint64_t value)
{
	unsigned bits = 1u << g->refcount_order, shift;
	uint8_t *byte, mask;

	switch (g->refcount_order) {
	case 6:
		((uint64_t *)block)[index] = htobe64(value);
		return;
	case 5:
		((uint32_t *)block)[index] = htobe32((uint32_t)value);
		return;
	case 4:
		((uint16_t *)block)[index] = htobe16((uint16_t)value);
		return;
	case 3:
		((uint8_t *)block)[index] = (uint8_t)value;
		return;
	default:
		byte = (uint8_t *)block + index * bits / 8;
		shift = index * bits % 8;
		mask = (uint8_t)(((1u << bits) - 1) << shift);
		*byte = (uint8_t)((*byte & ~mask) | (value << shift & mask));
	}
}

/* The 8 bytes of the block that hold refcount @index, with that one set; returns their offset in the block. */
static inline uint32_t refcount_raw(const struct geometry *g, const void *block, uint32_t index, uint64_t value,
				    uint64_t *raw)
{
	unsigned per_word = 6 - g->refcount_order; /* log2 */
	uint32_t at = index >> per_word << 3;

	memcpy(raw, (const char *)block + at, sizeof(*raw));
	refcount_encode(g, raw, index & ((1u << per_word) - 1), value);
	return at;
}

#endif

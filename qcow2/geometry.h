/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * geometry.h - guest offset -> indices, host offset -> refcount indices. Pure arithmetic on values
 * that header.c has already checked against the limits of format.h, so no shift here can overflow:
 * guest sizes are below 2^63, cluster_bits is 9..21, refcount_bits is 1..64.
 */
#ifndef QCOW2_GEOMETRY_H
#define QCOW2_GEOMETRY_H

#include <stdbool.h>
#include <stdint.h>

struct geometry {
	uint64_t size; /* guest bytes, a multiple of 512 (the specification's size rounded down) */
	unsigned version; /* 2 or 3 */
	unsigned cluster_bits; /* 9..21 */
	unsigned refcount_order; /* 0..6 */
	/* derived by geometry_init() */
	uint32_t cluster_size;
	unsigned l2_bits; /* log2(entries per L2 table) */
	unsigned block_bits; /* log2(metadata cache unit) = min(cluster_bits, 12) */
	uint32_t block_size;
	unsigned rb_bits; /* log2(refcounts per refcount block) */
	uint64_t refcount_max; /* largest value a refcount can hold */
};

static inline void geometry_init(struct geometry *g)
{
	g->cluster_size = 1u << g->cluster_bits;
	g->l2_bits = g->cluster_bits - 3;
	g->block_bits = g->cluster_bits < 12 ? g->cluster_bits : 12;
	g->block_size = 1u << g->block_bits;
	g->rb_bits = g->cluster_bits + 3 - g->refcount_order;
	g->refcount_max = g->refcount_order == 6 ? UINT64_MAX : (1ull << (1u << g->refcount_order)) - 1;
}

static inline uint64_t cluster_of(const struct geometry *g, uint64_t off)
{
	return off >> g->cluster_bits;
}

static inline uint32_t in_cluster(const struct geometry *g, uint64_t off)
{
	return (uint32_t)(off & (g->cluster_size - 1));
}

static inline uint64_t cluster_down(const struct geometry *g, uint64_t off)
{
	return off & ~(uint64_t)(g->cluster_size - 1);
}

static inline uint64_t cluster_up(const struct geometry *g, uint64_t off)
{
	return cluster_down(g, off + g->cluster_size - 1);
}

static inline uint64_t l1_index(const struct geometry *g, uint64_t off)
{
	return off >> (g->cluster_bits + g->l2_bits);
}

static inline uint32_t l2_index(const struct geometry *g, uint64_t off)
{
	return (uint32_t)(off >> g->cluster_bits) & ((1u << g->l2_bits) - 1);
}

/* L1 entries that @size guest bytes need. */
static inline uint64_t size_to_l1(const struct geometry *g, uint64_t size)
{
	unsigned shift = g->cluster_bits + g->l2_bits;

	return (size >> shift) + !!(size & ((1ull << shift) - 1));
}

/* Refcount table index and index within the refcount block of a host cluster number. */
static inline uint64_t rt_index(const struct geometry *g, uint64_t cluster)
{
	return cluster >> g->rb_bits;
}

static inline uint32_t rb_index(const struct geometry *g, uint64_t cluster)
{
	return (uint32_t)(cluster & ((1ull << g->rb_bits) - 1));
}

/* Clusters that @bytes occupy. */
static inline uint64_t clusters_for(const struct geometry *g, uint64_t bytes)
{
	return (bytes >> g->cluster_bits) + !!(bytes & (g->cluster_size - 1));
}

static inline bool cluster_aligned(const struct geometry *g, uint64_t off)
{
	return !(off & (g->cluster_size - 1));
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * refcount.c - refcounts in cached blocks, and the structures that hold them.
 *
 * Missing refcount blocks and a bigger table are made by one op at a time (struct maker); everybody who needs
 * one waits for it. Nothing a new structure occupies was covered by a refcount block before, so it cannot be in
 * use by anything with a refcount:
 *  - a new block lies on the first free cluster it covers itself, and counts itself;
 *  - a bigger table lies, after the blocks that cover it and themselves, right behind what the old table covers.
 * Both are written whole at once (nothing refers to them); the table entry or header pointer is a change of the
 * open generation, which commit.c writes after them (invariant 3). A crash before that leaves bytes past
 * the end of what is referenced, which the next allocation there overwrites.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "alloc.h"
#include "cache.h"
#include "commit.h"
#include "metamap.h"
#include "refcount.h"

struct maker {
	struct op op;
	bool running;
	struct waitq waiters;
	uint64_t cluster; /* the one to be covered */
	void *buf; /* what is being written */
	uint64_t first; /* host cluster it goes to */
	uint64_t blocks; /* growth: new refcount blocks before the table */
	uint64_t table_clusters; /* growth: clusters of the new table */
	uint64_t copied; /* growth: bytes of the old table copied */
};

struct refcounts {
	struct qcow2_image *img;
	struct maker maker;
};

static uint64_t rt_entries(const struct qcow2_image *img)
{
	return (uint64_t)img->hdr.rt_clusters << (img->geo.cluster_bits - 3);
}

uint64_t refcount_covered(const struct qcow2_image *img)
{
	return rt_entries(img) << img->geo.rb_bits;
}

/* Refcounts per cached block: log2. */
static unsigned per_block_bits(const struct geometry *g)
{
	return g->block_bits + 3 - g->refcount_order;
}

/* The cached block that holds the refcount of @cluster; -ENOENT: there is none (all zero). */
static int rb_block(struct qcow2_image *img, uint64_t cluster, struct block **b, uint32_t *in, struct op *waiter)
{
	const struct geometry *g = &img->geo;
	uint64_t idx = rt_index(g, cluster), rb;
	unsigned bits = per_block_bits(g);
	uint32_t i;
	int ret;

	if (idx >= rt_entries(img))
		return -ENOENT;
	ret = cache_get_word(img, BLK_RT, img->hdr.rt_offset, idx, b, &i, waiter);
	if (ret)
		return ret;
	if (!rt_decode(g, table_get((*b)->data, i), &rb))
		return image_corrupt(img);
	if (!rb)
		return -ENOENT;
	if (metamap_get(img->meta, cluster_of(g, rb)) != META_RB)
		return image_corrupt(img);
	*in = rb_index(g, cluster) & ((1u << bits) - 1);
	return cache_get(img, BLK_RB, rb + ((uint64_t)(rb_index(g, cluster) >> bits) << g->block_bits), b, waiter);
}

int refcount_get(struct qcow2_image *img, uint64_t cluster, uint64_t *count, struct op *waiter)
{
	struct block *b;
	uint32_t in;
	int ret = rb_block(img, cluster, &b, &in, waiter);

	*count = ret ? 0 : refcount_decode(&img->geo, b->data, in);
	return ret == -ENOENT ? 0 : ret;
}

int refcount_peek(struct qcow2_image *img, uint64_t cluster, uint64_t *count)
{
	struct block *b;
	uint32_t in;
	int ret = rb_block(img, cluster, &b, &in, NULL);

	if (!ret)
		*count = refcount_decode(&img->geo, b->data, in);
	return ret;
}

int refcount_next_zero(struct qcow2_image *img, uint64_t from, uint64_t *found, struct op *waiter)
{
	uint32_t in, n = 1u << per_block_bits(&img->geo);
	struct block *b;
	int ret;

	for (;; from += n - in) {
		*found = from;
		ret = rb_block(img, from, &b, &in, waiter);
		if (ret)
			return ret == -ENOENT ? 0 : ret;
		for (; in < n; in++, from++) {
			if (!refcount_decode(&img->geo, b->data, in)) {
				*found = from;
				return 0;
			}
		}
	}
}

int refcount_set(struct qcow2_image *img, uint64_t cluster, uint64_t count)
{
	struct block *b;
	uint64_t raw;
	uint32_t in;
	int ret = rb_block(img, cluster, &b, &in, NULL);

	if (ret)
		return ret;
	in = refcount_raw(&img->geo, b->data, in, count, &raw);
	block_store64(img, b, in, raw);
	return 0;
}

/* ---- the maker ---- */

static struct maker *maker_of(struct qcow2_image *img)
{
	return &img->refs->maker;
}

static struct qcow2_image *image_of(struct op *op)
{
	struct maker *m = (struct maker *)((char *)op - offsetof(struct maker, op));

	return ((struct refcounts *)((char *)m - offsetof(struct refcounts, maker)))->img;
}

static enum step make_block(struct op *op);
static enum step make_link(struct op *op);
static enum step grow_copy(struct op *op);
static enum step grow_write(struct op *op);
static enum step grow_switch(struct op *op);

int refcount_new(struct qcow2_image *img)
{
	img->refs = calloc(1, sizeof(*img->refs));
	if (!img->refs)
		return -ENOMEM;
	img->refs->img = img;
	waitq_init(&img->refs->maker.waiters);
	return 0;
}

void refcount_free(struct qcow2_image *img)
{
	if (!img->refs)
		return;
	buf_free(img->refs->maker.buf);
	free(img->refs);
	img->refs = NULL;
}

int refcount_ensure(struct qcow2_image *img, uint64_t cluster, struct op *waiter)
{
	struct maker *m = maker_of(img);
	struct block *b;
	uint32_t in;
	int ret = -EWOULDBLOCK;

	if (!m->running) {
		ret = rb_block(img, cluster, &b, &in, waiter);
		if (ret != -ENOENT)
			return ret;
		m->running = true;
		m->cluster = cluster;
		op_init(&m->op, img->run);
		op_then(&m->op, make_block);
		op_start(&m->op);
	}
	op_wait(&m->waiters, waiter);
	return -EWOULDBLOCK;
}

static enum step made(struct maker *m, int err)
{
	buf_free(m->buf);
	m->buf = NULL;
	m->running = false;
	waitq_wake(&m->waiters, err);
	return STEP_DONE;
}

/* Register clusters as metadata before they are written; -EUCLEAN if something is known to be there. */
static int claim(struct qcow2_image *img, uint64_t first, uint64_t n, enum meta_type type)
{
	int ret = metamap_add(img->meta, first, n, type);

	if (ret == -EEXIST)
		return image_corrupt(img);
	if (!ret)
		alloc_claim(img, first, n);
	return ret;
}

static void unclaim(struct qcow2_image *img, uint64_t first, uint64_t n)
{
	uint64_t c;

	for (c = first; c < first + n; c++)
		metamap_set(img->meta, c, META_NONE);
}

static int grow_start(struct qcow2_image *img, struct maker *m);

/* A block for m->cluster, placed on it: the whole range it covers has no refcounts, so it is free. */
static enum step make_block(struct op *op)
{
	struct qcow2_image *img = image_of(op);
	const struct geometry *g = &img->geo;
	struct maker *m = maker_of(img);
	int ret;

	if (rt_index(g, m->cluster) >= rt_entries(img)) {
		ret = grow_start(img, m);
		if (ret)
			return made(m, ret);
		op_then(op, grow_copy);
		return STEP_NEXT;
	}
	m->first = m->cluster;
	m->buf = buf_alloc(g->cluster_size);
	if (!m->buf)
		return made(m, -ENOMEM);
	memset(m->buf, 0, g->cluster_size);
	refcount_encode(g, m->buf, rb_index(g, m->first), 1);
	ret = claim(img, m->first, 1, META_RB);
	if (ret)
		return made(m, ret);
	ret = commit_format(img, op, m->first << g->cluster_bits, m->buf, g->cluster_size, META_RB);
	if (ret)
		return made(m, ret);
	op_then(op, make_link);
	return STEP_NEXT;
}

static enum step make_link(struct op *op)
{
	struct qcow2_image *img = image_of(op);
	struct maker *m = maker_of(img);
	struct block *b;
	uint32_t in;
	int ret = op->err;

	if (!ret)
		ret = cache_get_word(img, BLK_RT, img->hdr.rt_offset, rt_index(&img->geo, m->first), &b, &in, op);
	if (ret == -EWOULDBLOCK)
		return STEP_NEXT;
	if (ret) {
		unclaim(img, m->first, 1);
		return made(m, ret);
	}
	block_store64(img, b, in * 8, table_raw(m->first << img->geo.cluster_bits));
	return made(m, 0);
}

/* Choose the new table's size and place, and fill in the new refcount blocks. */
static int grow_start(struct qcow2_image *img, struct maker *m)
{
	const struct geometry *g = &img->geo;
	uint64_t per_rb = 1ull << g->rb_bits, need, i, total;

	m->first = refcount_covered(img);
	need = rt_index(g, m->cluster) + 1;
	m->table_clusters = clusters_for(g, need * 8);
	if (m->table_clusters < img->hdr.rt_clusters + img->hdr.rt_clusters / 2 + 1)
		m->table_clusters = img->hdr.rt_clusters + img->hdr.rt_clusters / 2 + 1;
	if (m->table_clusters << g->cluster_bits > QCOW2_MAX_REFTABLE_BYTES)
		m->table_clusters = QCOW2_MAX_REFTABLE_BYTES >> g->cluster_bits;
	m->blocks = 1;
	while (m->blocks * per_rb < m->blocks + m->table_clusters)
		m->blocks++;
	total = m->blocks + m->table_clusters;
	if ((m->table_clusters << (g->cluster_bits - 3)) <= rt_index(g, m->first) + m->blocks ||
	    (m->first + total) << g->cluster_bits >= QCOW2_MAX_HOST_OFFSET)
		return -EFBIG;
	m->buf = buf_alloc(total << g->cluster_bits);
	if (!m->buf)
		return -ENOMEM;
	memset(m->buf, 0, total << g->cluster_bits);
	for (i = 0; i < total; i++) /* the blocks are contiguous, so one index runs through all of them */
		refcount_encode(g, (char *)m->buf + ((i >> g->rb_bits) << g->cluster_bits),
				(uint32_t)(i & (per_rb - 1)), 1);
	m->copied = 0;
	return 0;
}

static void *new_table(const struct qcow2_image *img, const struct maker *m)
{
	return (char *)m->buf + (m->blocks << img->geo.cluster_bits);
}

/* The old table, block by block, through the cache: entries that are not written yet included. */
static enum step grow_copy(struct op *op)
{
	struct qcow2_image *img = image_of(op);
	struct maker *m = maker_of(img);
	uint64_t bytes = (uint64_t)img->hdr.rt_clusters << img->geo.cluster_bits;
	struct block *b;
	int ret = op->err;

	for (; !ret && m->copied < bytes; m->copied += img->geo.block_size) {
		ret = cache_get(img, BLK_RT, img->hdr.rt_offset + m->copied, &b, op);
		if (ret)
			break;
		memcpy((char *)new_table(img, m) + m->copied, b->data, img->geo.block_size);
	}
	if (ret == -EWOULDBLOCK)
		return STEP_NEXT;
	if (ret)
		return made(m, ret);
	op_then(op, grow_write);
	return STEP_NEXT;
}

static enum step grow_write(struct op *op)
{
	struct qcow2_image *img = image_of(op);
	const struct geometry *g = &img->geo;
	struct maker *m = maker_of(img);
	uint64_t i, slot = rt_index(g, m->first);
	int ret;

	for (i = 0; i < m->blocks; i++)
		table_set((char *)new_table(img, m), (uint32_t)(slot + i), (m->first + i) << g->cluster_bits);
	ret = claim(img, m->first, m->blocks, META_RB);
	if (ret)
		return made(m, ret);
	ret = claim(img, m->first + m->blocks, m->table_clusters, META_RT);
	if (ret) {
		unclaim(img, m->first, m->blocks);
		return made(m, ret);
	}
	op_then(op, grow_switch);
	ret = commit_format(img, op, m->first << g->cluster_bits, m->buf, m->blocks << g->cluster_bits, META_RB);
	if (!ret)
		ret = commit_format(img, op, (m->first + m->blocks) << g->cluster_bits, new_table(img, m),
				    m->table_clusters << g->cluster_bits, META_RT);
	if (ret)
		op->err = ret;
	return STEP_NEXT;
}

static enum step grow_switch(struct op *op)
{
	struct qcow2_image *img = image_of(op);
	const struct geometry *g = &img->geo;
	struct maker *m = maker_of(img);
	uint64_t old = img->hdr.rt_offset, old_n = img->hdr.rt_clusters;

	if (op->err) {
		unclaim(img, m->first, m->blocks + m->table_clusters);
		return made(m, op->err);
	}
	cache_drop(img, old, old_n << g->cluster_bits);
	unclaim(img, cluster_of(g, old), old_n);
	commit_lower(img, cluster_of(g, old), old_n);
	commit_move_reftable(img, (m->first + m->blocks) << g->cluster_bits, (uint32_t)m->table_clusters);
	return made(m, 0); /* whoever waited looks again: the block itself may still be missing */
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * map.c - L1 and L2 tables through the cache.
 *
 * Invariants: an entry is used only after entry.h found it valid and its host cluster was found to lie inside
 * the file and to hold no metadata. An L2 table is changed only if the L1 entry has COPIED. A new or copied
 * L2 table is written whole before the L1 entry (a change of the open generation) names it; until that
 * is durable its clusters are META_L2_NEW, so that commit.c writes its blocks first (invariant 3).
 * A crash in between leaks the new table.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "alloc.h"
#include "cache.h"
#include "commit.h"
#include "journal.h"
#include "map.h"
#include "metamap.h"
#include "refcount.h"

/* Makes one L2 table at a time. */
struct map {
	struct op op;
	struct qcow2_image *img;
	bool running;
	struct waitq waiters; /* for this table */
	struct waitq others; /* for another one: its errors are not theirs */
	uint64_t l1; /* index */
	uint64_t old; /* the shared table, 0 = none */
	struct cluster_run run;
	void *buf;
};

/* A host cluster that guest data or a table may lie on. */
static bool host_valid(const struct qcow2_image *img, uint64_t host)
{
	if (host >= QCOW2_MAX_HOST_OFFSET || host < img->geo.cluster_size)
		return false;
	return host < img->file_end || (img->alloc && host < alloc_end(img));
}

/* The L2 table of @guest; 0 in *l2 = none. */
static int l2_table(struct qcow2_image *img, uint64_t guest, uint64_t *l2, bool *copied, struct op *waiter)
{
	uint64_t index = l1_index(&img->geo, guest);
	enum meta_type meta;
	struct block *b;
	uint32_t in;
	int ret;

	if (index >= img->hdr.l1_entries)
		return -EUCLEAN;
	ret = cache_get_word(img, BLK_L1, img->hdr.l1_offset, index, &b, &in, waiter);
	if (ret)
		return ret;
	if (!l1_decode(&img->geo, table_get(b->data, in), l2, copied) || (*l2 && !host_valid(img, *l2)))
		return image_corrupt(img);
	if (!*l2 || !img->meta)
		return 0;
	meta = metamap_get(img->meta, cluster_of(&img->geo, *l2));
	return meta == META_L2 || meta == META_L2_NEW ? 0 : image_corrupt(img);
}

/* Host bytes [at, at + len) lie on no metadata that we know of. */
static bool off_metadata(const struct qcow2_image *img, uint64_t at, uint64_t len)
{
	uint64_t c, last = cluster_of(&img->geo, at + len - 1);

	for (c = cluster_of(&img->geo, at); img->meta && c <= last; c++)
		if (metamap_get(img->meta, c))
			return false;
	return true;
}

static bool entry_valid(const struct qcow2_image *img, const struct l2_entry *l)
{
	switch (l->kind) {
	case EXT_INVALID:
		return false;
	case EXT_DATA:
	case EXT_ZERO_ALLOC:
		return host_valid(img, l->host) && off_metadata(img, l->host, 1);
	case EXT_COMPRESSED: /* the last one may pass the end of the file, its sectors are counted in full */
		return (l->host < img->file_end || (img->alloc && l->host < alloc_end(img))) &&
		       off_metadata(img, l->host, l->clen);
	default:
		return true;
	}
}

static bool continues(const struct geometry *g, const struct l2_entry *first, const struct l2_entry *l, uint32_t n)
{
	if (l->kind != first->kind || l->copied != first->copied || l->kind == EXT_COMPRESSED)
		return false;
	return !first->host || l->host == first->host + ((uint64_t)n << g->cluster_bits);
}

int map_lookup(struct qcow2_image *img, uint64_t guest, uint64_t len, struct extent *e, struct op *waiter)
{
	const struct geometry *g = &img->geo;
	uint64_t l2, covered, span = 1ull << (g->cluster_bits + g->l2_bits);
	struct l2_entry first, l;
	struct block *b;
	uint32_t in, n, max;
	bool copied;
	int ret = l2_table(img, guest, &l2, &copied, waiter);

	if (ret)
		return ret;
	if (!l2) {
		*e = (struct extent){ .kind = EXT_UNALLOCATED, .len = min_u64(len, span - (guest & (span - 1))) };
		return 0;
	}
	ret = cache_get_word(img, BLK_L2, l2, l2_index(g, guest), &b, &in, waiter);
	if (ret)
		return ret == -EUCLEAN ? image_corrupt(img) : ret;
	first = l2_decode(g, table_get(b->data, in));
	if (!entry_valid(img, &first))
		return image_corrupt(img);
	max = (1u << (g->block_bits - 3)) - in;
	covered = g->cluster_size - in_cluster(g, guest);
	for (n = 1; n < max && covered < len; n++, covered += g->cluster_size) {
		l = l2_decode(g, table_get(b->data, in + n));
		if (!continues(g, &first, &l, n) || !entry_valid(img, &l))
			break;
	}
	*e = (struct extent){ .kind = first.kind, .copied = first.copied && copied, .host = first.host,
			      .len = min_u64(len, covered), .clen = first.clen };
	if (e->host && e->kind != EXT_COMPRESSED)
		e->host += in_cluster(g, guest);
	return 0;
}

/* Every host cluster the compressed bytes touch loses one reference. */
static void drop_entry(struct qcow2_image *img, const struct l2_entry *l)
{
	const struct geometry *g = &img->geo;
	uint64_t first = cluster_of(g, l->host), last = first;

	if (l->kind == EXT_COMPRESSED)
		last = cluster_of(g, l->host + l->clen - 1);
	if (l->host)
		commit_lower(img, first, last - first + 1);
}

int map_set(struct qcow2_image *img, uint64_t guest, uint64_t n, enum extent_kind kind, uint64_t host,
	    struct op *waiter)
{
	const struct geometry *g = &img->geo;
	struct block *b;
	uint64_t l2, i, named = 0;
	uint32_t in;
	bool copied;
	int ret;

	if (journal_full(img)) {
		commit_wait(img, waiter);
		return -EWOULDBLOCK;
	}
	ret = l2_table(img, guest, &l2, &copied, waiter);
	if (!ret && (!l2 || !copied))
		return -EUCLEAN;
	if (!ret)
		ret = cache_get_word(img, BLK_L2, l2, l2_index(g, guest), &b, &in, waiter);
	if (ret)
		return ret;
	for (i = 0; i < n; i++) {
		uint64_t at = host ? host + (i << g->cluster_bits) : 0;
		struct l2_entry old = l2_decode(g, table_get(b->data, (uint32_t)(in + i)));

		if (old.host != at) {
			drop_entry(img, &old);
			named += at != 0;
		}
		block_store64(img, b, (uint32_t)(in + i) * 8, table_raw(l2_encode(kind, at)));
	}
	journal_used(img, cluster_of(g, host), named); /* new ones: a run from alloc.c, or none */
	return 0;
}

/* ---- making L2 tables ---- */

static struct map *of(struct op *op)
{
	return (struct map *)((char *)op - offsetof(struct map, op));
}

static enum step table_alloc(struct op *op);
static enum step table_write(struct op *op);
static enum step table_link(struct op *op);

int map_new(struct qcow2_image *img)
{
	img->map = calloc(1, sizeof(*img->map));
	if (!img->map)
		return -ENOMEM;
	img->map->img = img;
	waitq_init(&img->map->waiters);
	waitq_init(&img->map->others);
	return 0;
}

void map_free(struct qcow2_image *img)
{
	if (!img->map)
		return;
	buf_free(img->map->buf);
	free(img->map);
	img->map = NULL;
}

int map_prepare(struct qcow2_image *img, uint64_t guest, struct op *waiter)
{
	struct map *m = img->map;
	uint64_t l2, l1 = l1_index(&img->geo, guest);
	bool copied;
	int ret = l2_table(img, guest, &l2, &copied, waiter);

	if (ret || (l2 && copied))
		return ret;
	if (!m->running) {
		m->running = true;
		m->l1 = l1;
		m->old = l2;
		m->run.n = 0;
		op_init(&m->op, img->run);
		op_then(&m->op, table_alloc);
		op_start(&m->op);
	}
	op_wait(l1 == m->l1 ? &m->waiters : &m->others, waiter); /* whoever waited looks again */
	return -EWOULDBLOCK;
}

static enum step table_end(struct map *m, int err)
{
	if (err && m->run.n) {
		metamap_set(m->img->meta, m->run.first, META_NONE);
		commit_lower(m->img, m->run.first, 1);
	}
	buf_free(m->buf);
	m->buf = NULL;
	m->running = false;
	waitq_wake(&m->waiters, err);
	waitq_wake(&m->others, 0);
	return STEP_DONE;
}

static enum step table_alloc(struct op *op)
{
	struct map *m = of(op);
	struct qcow2_image *img = m->img;
	const struct geometry *g = &img->geo;
	int ret = op->err;

	if (!ret)
		ret = alloc_clusters(img, 1, &m->run, op);
	if (ret == -EWOULDBLOCK)
		return STEP_NEXT;
	if (!ret)
		ret = metamap_add(img->meta, m->run.first, 1, META_L2_NEW);
	if (!ret) {
		m->buf = buf_alloc(g->cluster_size);
		ret = m->buf ? 0 : -ENOMEM;
	}
	if (ret)
		return table_end(m, ret);
	memset(m->buf, 0, g->cluster_size);
	if (m->old) /* shared with a snapshot, so never dirty in our cache: the file has it */
		op_read(op, img->file, m->buf, g->cluster_size, m->old);
	op_then(op, table_write);
	return STEP_NEXT;
}

/* Entries of a copied table are shared now: none may keep COPIED. */
static void clear_copied(const struct geometry *g, void *table)
{
	uint32_t i;

	for (i = 0; i < 1u << g->l2_bits; i++)
		table_set(table, i, table_get(table, i) & ~QCOW2_COPIED);
}

static enum step table_write(struct op *op)
{
	struct map *m = of(op);
	const struct geometry *g = &m->img->geo;
	int ret = op->err;

	if (!ret && m->old)
		clear_copied(g, m->buf);
	if (!ret)
		ret = commit_format(m->img, op, m->run.first << g->cluster_bits, m->buf, g->cluster_size,
				    META_L2_NEW);
	if (ret)
		return table_end(m, ret);
	op_then(op, table_link);
	return STEP_NEXT;
}

static enum step table_link(struct op *op)
{
	struct map *m = of(op);
	struct qcow2_image *img = m->img;
	uint64_t host = m->run.first << img->geo.cluster_bits;
	struct block *b;
	uint32_t in;
	int ret = op->err;

	if (!ret)
		ret = cache_get_word(img, BLK_L1, img->hdr.l1_offset, m->l1, &b, &in, op);
	if (ret == -EWOULDBLOCK)
		return STEP_NEXT;
	if (!ret)
		ret = commit_new_l2(img, host);
	if (ret)
		return table_end(m, ret);
	block_store64(img, b, in * 8, table_raw(l1_encode(host)));
	journal_used(img, m->run.first, 1);
	if (m->old) {
		/* Other tables may name the old one still: its clusters stay what they are to the overlap
		 * check only while the active L1 names them. */
		metamap_set(img->meta, cluster_of(&img->geo, m->old), META_NONE);
		cache_drop(img, m->old, img->geo.cluster_size);
		commit_lower(img, cluster_of(&img->geo, m->old), 1);
	}
	return table_end(m, 0);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * discard.c - DISCARD and WRITE_ZEROES.
 *
 * Whole clusters change their entries under an exclusive range, withdrawn and drained first; the host clusters
 * they gave up go through commit.c (invariant 4) before anybody may use or punch them. Partial clusters of a
 * WRITE_ZEROES are ordinary writes of zeroes; of a DISCARD they are left alone (it is a hint).
 * Version 2 has no zero flag: over a backing file zeroes are written and discards ignored.
 */
#include <errno.h>
#include <string.h>
#include "cache.h"
#include "commit.h"
#include "discard.h"
#include "journal.h"
#include "map.h"
#include "publish.h"

#define ZERO_CHUNK (256u << 10) /* explicit zeroes per write */

static struct clearer *of(struct op *op)
{
	return (struct clearer *)((char *)op - offsetof(struct clearer, op));
}

static enum step clear_head(struct op *op);
static enum step clear_middle(struct op *op);
static enum step clear_withdraw(struct op *op);
static enum step clear_next(struct op *op);
static enum step clear_tail(struct op *op);
static enum step clear_end(struct op *op);

void clear_start(struct clearer *c, struct qcow2_image *img, uint64_t guest, uint64_t len, bool zero, bool keep,
		 struct op *parent)
{
	const struct geometry *g = &img->geo;

	memset(c, 0, sizeof(*c));
	c->img = img;
	c->parent = parent;
	c->guest = guest;
	c->end = guest + len;
	c->zero = zero;
	c->keep = keep;
	c->pos = cluster_up(g, guest);
	c->stop = c->end == g->size ? cluster_up(g, c->end) : cluster_down(g, c->end);
	if (g->version < 3 && chain_has_backing(img, guest))
		c->stop = c->pos; /* nothing by entries */
	if (c->stop < c->pos)
		c->stop = c->pos;
	op_get(parent);
	op_init(&c->op, img->run);
	op_then(&c->op, zero ? clear_head : clear_middle);
	op_start(&c->op);
}

/* Write zeroes to [from, to), a piece at a time. True while there is more to do. */
static bool write_zeroes(struct clearer *c, uint64_t *from, uint64_t to)
{
	uint64_t n = min_u64(to > *from ? to - *from : 0, ZERO_CHUNK);

	if (!n || c->op.err)
		return false;
	if (!c->zeroes) {
		c->zeroes = buf_alloc(ZERO_CHUNK);
		if (!c->zeroes) {
			c->op.err = -ENOMEM;
			return false;
		}
		memset(c->zeroes, 0, ZERO_CHUNK);
	}
	write_start(&c->writer, c->img, *from, n, c->zeroes, &c->op);
	*from += n;
	return true;
}

static enum step clear_head(struct op *op)
{
	struct clearer *c = of(op);
	uint64_t to = c->pos < c->stop ? c->pos : c->end;

	if (!write_zeroes(c, &c->guest, to))
		op_then(op, clear_middle);
	return STEP_NEXT;
}

static enum step clear_middle(struct op *op)
{
	struct clearer *c = of(op);
	int ret;

	if (c->pos >= c->stop || op->err) {
		op_then(op, clear_end);
		return STEP_NEXT;
	}
	ret = change_ready(c->img, op);
	if (ret == -EWOULDBLOCK)
		return STEP_NEXT;
	if (ret) {
		op->err = ret;
		op_then(op, clear_end);
		return STEP_NEXT;
	}
	range_lock(c->img, &c->range, op, c->pos, c->stop, true);
	op_then(op, clear_withdraw);
	return STEP_NEXT;
}

static enum step clear_withdraw(struct op *op)
{
	struct clearer *c = of(op);

	(void)withdraw(c->img, c->pos, c->stop, op);
	op_then(op, clear_next);
	return STEP_NEXT;
}

/* The new kind of an entry, and whether it keeps its host cluster. False: leave it as it is. */
static bool new_kind(const struct clearer *c, const struct extent *e, enum extent_kind *kind, bool *keep_host)
{
	bool v3 = c->img->geo.version >= 3;

	*kind = v3 ? EXT_ZERO : EXT_UNALLOCATED;
	*keep_host = false;
	switch (e->kind) {
	case EXT_ZERO:
		return false;
	case EXT_UNALLOCATED: /* a discard does not hide the backing file */
		return c->zero && v3 && chain_has_backing(c->img, c->pos);
	case EXT_DATA:
	case EXT_ZERO_ALLOC:
		if (c->zero && c->keep && v3 && e->copied) {
			*kind = EXT_ZERO_ALLOC;
			*keep_host = true;
			return e->kind == EXT_DATA;
		}
		return true;
	default:
		return true;
	}
}

/* One extent of whole clusters; 0 with c->pos moved on, -EWOULDBLOCK or an error. */
static int clear_extent(struct clearer *c, struct op *op)
{
	const struct geometry *g = &c->img->geo;
	uint64_t n, limit = cluster_up(g, g->size);
	enum extent_kind kind;
	struct extent e;
	bool keep_host;
	int ret = map_lookup(c->img, c->pos, min_u64(c->stop, limit) - c->pos, &e, op);

	if (ret)
		return ret;
	n = cluster_of(g, cluster_up(g, e.len));
	if (!new_kind(c, &e, &kind, &keep_host)) {
		c->pos += n << g->cluster_bits;
		return 0;
	}
	if (c->img->mode != MODE_RW)
		return -EROFS;
	if (commit_lower_full(c->img) || journal_full(c->img) ||
	    cache_dirty_count(c->img) > 2 * cache_dirty_limit(c->img)) {
		commit_wait(c->img, op);
		return -EWOULDBLOCK;
	}
	ret = map_prepare(c->img, c->pos, op);
	if (!ret)
		ret = map_set(c->img, c->pos, n, kind, keep_host ? e.host : 0, op);
	if (!ret)
		c->pos += n << g->cluster_bits;
	return ret;
}

static enum step clear_next(struct op *op)
{
	struct clearer *c = of(op);
	int ret = op->err;

	while (!ret && c->pos < c->stop)
		ret = clear_extent(c, op);
	if (ret == -EWOULDBLOCK)
		return STEP_NEXT;
	if (ret)
		op->err = ret;
	if (!ret)
		publish(c->img, c->range.start, c->range.end, &c->range);
	range_unlock(c->img, &c->range);
	c->guest = c->stop;
	op_then(op, c->zero ? clear_tail : clear_end);
	return STEP_NEXT;
}

static enum step clear_tail(struct op *op)
{
	struct clearer *c = of(op);

	if (!write_zeroes(c, &c->guest, c->end))
		op_then(op, clear_end);
	return STEP_NEXT;
}

static enum step clear_end(struct op *op)
{
	struct clearer *c = of(op);

	buf_free(c->zeroes);
	op_put(c->parent, op->err);
	return STEP_DONE;
}

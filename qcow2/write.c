/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * write.c - the writer.
 *
 * If every cluster of the range is ours alone, the data goes there directly under a shared range. Otherwise the
 * range is taken exclusively, its words are withdrawn and drained (commit.c invariant 6), and run after run:
 *  1. clusters are allocated (refcounts raised in the cache),
 *  2. the new data and what surrounds it in the first and last cluster (cow.c) is written,
 *  3. only then the L2 entries are set in the cache and the words published.
 * A write below the host's direct I/O granularity also takes the range exclusively: it is a read-modify-write.
 * If anything fails before 3 the clusters are given back and the guest still sees the old content. A crash before
 * the commit leaks the clusters.
 */
#include <errno.h>
#include <string.h>
#include "broken.h"
#include "cache.h"
#include "commit.h"
#include "cow.h"
#include "journal.h"
#include "map.h"
#include "publish.h"
#include "write.h"

static struct writer *of(struct op *op)
{
	return (struct writer *)((char *)op - offsetof(struct writer, op));
}

static enum step write_begin(struct op *op);
static enum step write_shared(struct op *op);
static enum step write_withdraw(struct op *op);
static enum step write_next(struct op *op);
static enum step write_run(struct op *op);
static enum step write_filled(struct op *op);
static enum step write_link(struct op *op);
static enum step write_end(struct op *op);

void write_start(struct writer *w, struct qcow2_image *img, uint64_t guest, uint64_t len, const void *buf,
		 struct op *parent)
{
	memset(w, 0, sizeof(*w));
	w->img = img;
	w->parent = parent;
	w->buf = buf;
	w->guest = w->pos = guest;
	w->end = guest + len;
	op_get(parent);
	op_init(&w->op, img->run);
	op_then(&w->op, write_begin);
	op_start(&w->op);
}

int change_ready(struct qcow2_image *img, struct op *op)
{
	if (op->err)
		return op->err;
	if (img->lost)
		return -EIO;
	if (img->mode != MODE_RW)
		return -EROFS;
	if (cache_dirty_count(img) > 2 * cache_dirty_limit(img)) {
		commit_wait(img, op);
		return -EWOULDBLOCK;
	}
	return commit_first_write(img, op);
}

static bool host_aligned(const struct writer *w)
{
	uint32_t a = w->img->file->dio_align;

	return a <= 1 || !((w->guest | w->end) % a);
}

static void take_range(struct writer *w, bool exclusive)
{
	const struct geometry *g = &w->img->geo;

	range_lock(w->img, &w->range, &w->op, cluster_down(g, w->guest), cluster_up(g, w->end), exclusive);
}

static const char *data_at(const struct writer *w, uint64_t guest)
{
	return w->buf + (guest - w->guest);
}

static enum step write_begin(struct op *op)
{
	struct writer *w = of(op);
	int ret = change_ready(w->img, op);

	if (ret == -EWOULDBLOCK)
		return STEP_NEXT;
	if (ret) {
		op->err = ret;
		op_then(op, write_end);
		return STEP_NEXT;
	}
	take_range(w, !host_aligned(w));
	op_then(op, host_aligned(w) ? write_shared : write_withdraw);
	return STEP_NEXT;
}

static bool in_place(const struct extent *e)
{
	return e->kind == EXT_DATA && e->copied;
}

/* 0: every byte may be written in place; 1: not; or an error. */
static int all_in_place(struct writer *w)
{
	uint64_t pos = w->guest;
	struct extent e;
	int ret;

	for (; pos < w->end; pos += e.len) {
		ret = map_lookup(w->img, pos, w->end - pos, &e, &w->op);
		if (ret)
			return ret;
		if (!in_place(&e))
			return 1;
	}
	return 0;
}

static enum step write_shared(struct op *op)
{
	struct writer *w = of(op);
	struct extent e;
	int ret = op->err ? op->err : all_in_place(w);

	if (ret == -EWOULDBLOCK)
		return STEP_NEXT;
	if (ret == 1) {
		range_unlock(w->img, &w->range);
		take_range(w, true);
		op_then(op, write_withdraw);
		return STEP_NEXT;
	}
	if (!ret && w->img->mode != MODE_RW)
		ret = -EROFS;
	for (; !ret && w->pos < w->end; w->pos += e.len) {
		ret = map_lookup(w->img, w->pos, w->end - w->pos, &e, NULL);
		if (!ret)
			op_write(op, w->img->file, data_at(w, w->pos), e.len, e.host);
	}
	if (!ret)
		publish_around(w->img, w->guest, w->end, &w->range);
	if (ret == -EWOULDBLOCK) /* evicted since: a write twice does no harm */
		w->pos = w->guest;
	else if (ret)
		op->err = ret;
	op_then(op, ret == -EWOULDBLOCK ? write_shared : write_end);
	return STEP_NEXT;
}

static enum step write_withdraw(struct op *op)
{
	struct writer *w = of(op);

	(void)withdraw(w->img, w->guest, w->end, op);
	op_then(op, write_next);
	return STEP_NEXT;
}

/* Clusters for the run that starts with extent e at w->pos. */
static int get_run(struct writer *w, const struct extent *e)
{
	const struct geometry *g = &w->img->geo;
	uint64_t want;
	int ret;

	if (journal_full(w->img)) {
		commit_wait(w->img, &w->op);
		return -EWOULDBLOCK;
	}
	ret = map_prepare(w->img, w->pos, &w->op); /* 0: e came from an L2 block, so the run lies in one */
	if (ret)
		return ret;
	w->run_guest = cluster_down(g, w->pos);
	want = cluster_of(g, cluster_up(g, w->pos + e->len) - w->run_guest);
	w->reused = e->kind == EXT_ZERO_ALLOC && e->copied;
	w->over_zeroes = e->kind == EXT_UNALLOCATED && !chain_has_backing(w->img, w->run_guest);
	if (w->reused)
		w->run = (struct cluster_run){ .first = cluster_of(g, e->host), .n = want };
	else
		ret = alloc_clusters(w->img, want, &w->run, &w->op);
	if (!ret)
		w->run_end = min_u64(w->end, w->run_guest + (w->run.n << g->cluster_bits));
	return ret;
}

static enum step write_next(struct op *op)
{
	struct writer *w = of(op);
	struct extent e;
	int ret = op->err;

	while (!ret && w->pos < w->end) {
		ret = map_lookup(w->img, w->pos, w->end - w->pos, &e, op);
		if (!ret && w->img->mode != MODE_RW)
			ret = -EROFS;
		if (!ret && in_place(&e)) {
			op_write(op, w->img->file, data_at(w, w->pos), e.len, e.host);
			w->pos += e.len;
			continue;
		}
		if (!ret)
			ret = get_run(w, &e);
		if (!ret) {
			op_then(op, write_run);
			return STEP_NEXT;
		}
	}
	if (ret == -EWOULDBLOCK)
		return STEP_NEXT;
	if (ret)
		op->err = ret;
	op_then(op, write_end);
	return STEP_NEXT;
}

/* Give back what was allocated and fail. */
static enum step run_failed(struct writer *w, int err)
{
	if (!w->reused)
		commit_lower(w->img, w->run.first, w->run.n);
	w->op.err = err;
	op_then(&w->op, write_end);
	return STEP_NEXT;
}

static uint64_t run_host(const struct writer *w)
{
	return w->run.first << w->img->geo.cluster_bits;
}

/* Write the run: data and fill directly, or put together first. */
static enum step write_run(struct op *op)
{
	struct writer *w = of(op);
	uint64_t size = w->run.n << w->img->geo.cluster_bits, head = w->pos - w->run_guest;
	uint64_t tail = w->run_guest + size - w->run_end;
	int ret = op->err;

	if (!ret)
		ret = w->over_zeroes ? COW_ZERO : cow_plan(w->img, w->run_guest, head, w->run_end, tail, op);
	if (ret == -EWOULDBLOCK)
		return STEP_NEXT;
	if (ret < 0)
		return run_failed(w, ret);
	if (ret == COW_ZERO && (host_aligned(w) || !(head | tail))) {
		if (!w->run.fresh) {
			op_zero(op, w->img->file, head, run_host(w));
			op_zero(op, w->img->file, tail, run_host(w) + size - tail);
		}
		op_write(op, w->img->file, data_at(w, w->pos), w->run_end - w->pos, run_host(w) + head);
		op_then(op, write_link);
		return STEP_NEXT;
	}
	w->fill = buf_alloc(size);
	if (!w->fill)
		return run_failed(w, -ENOMEM);
	memset(w->fill, 0, size);
	memcpy(w->fill + head, data_at(w, w->pos), w->run_end - w->pos);
	cow_read(&w->head, w->img, w->run_guest, head, w->fill, op);
	cow_read(&w->tail, w->img, w->run_end, tail, w->fill + size - tail, op);
	op_then(op, write_filled);
	return STEP_NEXT;
}

static enum step write_filled(struct op *op)
{
	struct writer *w = of(op);

	if (op->err)
		return run_failed(w, op->err);
	if (BROKEN(DATA_FIRST))
		(void)map_set(w->img, w->run_guest, w->run.n, EXT_DATA, run_host(w), NULL);
	op_write(op, w->img->file, w->fill, w->run.n << w->img->geo.cluster_bits, run_host(w));
	op_then(op, write_link);
	return STEP_NEXT;
}

/* Everything of the run is in its clusters: now the mapping may change. */
static enum step write_link(struct op *op)
{
	struct writer *w = of(op);
	int ret = op->err;

	if (!ret && w->img->mode != MODE_RW)
		ret = -EROFS;
	if (!ret)
		ret = map_set(w->img, w->run_guest, w->run.n, EXT_DATA, run_host(w), op);
	if (ret == -EWOULDBLOCK)
		return STEP_NEXT;
	if (ret)
		return run_failed(w, ret);
	buf_free(w->fill);
	w->fill = NULL;
	w->pos = w->run_end;
	op_then(op, write_next);
	return STEP_NEXT;
}

static enum step write_end(struct op *op)
{
	struct writer *w = of(op);

	buf_free(w->fill);
	if (w->range.exclusive && w->range.listed && !op->err)
		publish(w->img, w->guest, w->end, &w->range);
	range_unlock(w->img, &w->range);
	op_put(w->parent, op->err);
	return STEP_DONE;
}

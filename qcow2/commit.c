/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * commit.c - all metadata ordering; the only file that writes metadata.
 *
 * Invariants (DESIGN section 5; tests name the numbers)
 *  1. Data and copy-on-write bytes are durable before any L2 entry that names them is written.
 *  2. Raised refcounts are durable before any L2 or L1 entry that refers to the clusters.
 *  3. L2 table before the L1 entry; refcount block before its table entry; new table before the header pointer.
 *  4. Removals reversed: the reference is durably gone -> the refcount is lowered, durably -> only then is the
 *     cluster punched or reused.
 *  5. Autoclear bits are cleared durably before the first write.
 *  6. Words are withdrawn and drained before a mapping changes (write.c, discard.c; checked there).
 *  7. A FLUSH completes when its generation is durable; a failed fsync is never later reported as success.
 * After a crash: leaks at most.
 *
 * Every change of a cached block belongs to the open generation. A commit closes it: each dirty block is copied
 * (so entries of the next generation never ride along) and the copies are written in stages, empty ones skipped:
 *  S1 L2 blocks of tables that no L1 entry in the file names yet, refcount blocks; fdatasync (covers guest data too)
 *  S2 refcount table entries; fdatasync; header; fdatasync
 *  S3 other L2 blocks and L1 entries; fdatasync: the generation is durable, its waiters are told
 *  S4 references dropped in this generation lower the cached refcounts, which S1 of the next generation writes;
 *     until that is durable the clusters are in quarantine (metamap), afterwards punched and given back.
 * A failed write leaves the generation's changes dirty: waiters get the error, a later commit tries again. (Any part
 * of the failed one may be in the file: if it got to S3, its new L2 tables are no longer new.) A
 * failed fsync makes the image read-only for good (image_set_mode) and every later FLUSH fails.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "alloc.h"
#include "broken.h"
#include "commit.h"
#include "journal.h"
#include "metamap.h"
#include "refcount.h"

#define HEADER_WORDS 14u /* of 8 bytes: all that is ever changed of the header */
#define LOWER_MAX (64u << 10) /* clusters on their way to be freed before writers wait */
#define UNREAD_MAX 1024u /* runs, far from filling a journal; more are leaked */

struct run {
	uint64_t first, n; /* host clusters */
};

struct runs {
	struct run *v;
	size_t n, cap;
	uint64_t clusters;
};

enum stage { S1_TABLES, S2_REFTABLE, S2_HEADER, S3_ENTRIES, STAGES };

struct frozen {
	struct block *block;
	void *data;
	enum stage stage;
};

struct commit {
	struct qcow2_image *img;
	struct op op;
	bool running, wanted;
	struct waitq open_waiters, closing_waiters;
	struct frozen *frozen;
	size_t nfrozen, frozen_cap;
	enum stage stage;
	int failed; /* first error of this commit */
	bool scarce; /* or there was no memory to lower something after it */
	struct runs lower_open, lower_closing; /* references dropped, not yet applied */
	struct runs unread; /* nor can they be, as their refcount block is not read: the next commit tries again */
	struct runs lowered, lowered_closing; /* applied to the cache: quarantine */
	size_t applied; /* lower_closing: runs done */
	struct runs new_open, new_closing; /* new L2 tables (first = cluster) */
	struct block *header; /* always cached, pinned for the image's life */
	bool first_write_done, autoclear_pending;
	bool closing; /* what is unread stays leaked */
};

static enum step commit_close(struct op *op);
static enum step commit_write_stage(struct op *op);
static enum step commit_sync_stage(struct op *op);
static enum step commit_stage_done(struct op *op);
static enum step commit_apply_lower(struct op *op);
static enum step commit_end(struct op *op);

static struct commit *of(struct op *op)
{
	return (struct commit *)((char *)op - offsetof(struct commit, op));
}

/* ---- runs of clusters ---- */

static int runs_add(struct runs *r, uint64_t first, uint64_t n)
{
	struct run *last = r->n ? &r->v[r->n - 1] : NULL;

	r->clusters += n;
	if (last && last->first + last->n == first) {
		last->n += n;
		return 0;
	}
	if (r->n == r->cap) {
		size_t cap = r->cap ? r->cap * 2 : 64;
		struct run *v = realloc(r->v, cap * sizeof(*v));

		if (!v) {
			r->clusters -= n;
			return -ENOMEM;
		}
		r->v = v;
		r->cap = cap;
	}
	r->v[r->n++] = (struct run){ first, n };
	return 0;
}

static void runs_clear(struct runs *r)
{
	r->n = 0;
	r->clusters = 0;
}

static void runs_free(struct runs *r)
{
	free(r->v);
	*r = (struct runs){ 0 };
}

/* Append src to dst and empty src; what does not fit into memory is leaked. */
static void runs_move(struct runs *dst, struct runs *src)
{
	size_t i;

	if (!dst->n) {
		struct runs tmp = *dst;

		*dst = *src;
		*src = tmp;
		return;
	}
	for (i = 0; i < src->n; i++)
		runs_add(dst, src->v[i].first, src->v[i].n);
	runs_clear(src);
}

/* ---- the open generation ---- */

int commit_new(struct qcow2_image *img, const void *header)
{
	struct commit *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	c->img = img;
	c->header = cache_insert(img, BLK_HEADER, 0, header);
	if (!c->header) {
		free(c);
		return -ENOMEM;
	}
	block_pin(c->header);
	waitq_init(&c->open_waiters);
	waitq_init(&c->closing_waiters);
	c->first_write_done = !img->hdr.autoclear;
	img->commit = c;
	return 0;
}

void commit_free(struct qcow2_image *img)
{
	struct commit *c = img->commit;

	if (!c)
		return;
	runs_free(&c->lower_open);
	runs_free(&c->lower_closing);
	runs_free(&c->unread);
	runs_free(&c->lowered);
	runs_free(&c->lowered_closing);
	runs_free(&c->new_open);
	runs_free(&c->new_closing);
	free(c->frozen);
	free(c);
	img->commit = NULL;
}

void commit_start(struct qcow2_image *img)
{
	struct commit *c = img->commit;

	if (!c)
		return;
	c->wanted = true;
	if (c->running)
		return;
	c->running = true;
	op_init(&c->op, img->run);
	op_then(&c->op, commit_close);
	op_start(&c->op);
}

void commit_wait(struct qcow2_image *img, struct op *op)
{
	op_wait(&img->commit->open_waiters, op);
	commit_start(img);
}

bool commit_dirty(const struct qcow2_image *img)
{
	const struct commit *c = img->commit;

	return c && (cache_dirty_count(img) || c->lower_open.n || c->lower_closing.n || c->lowered.n);
}

bool commit_running(const struct qcow2_image *img)
{
	return img->commit && img->commit->running;
}

bool commit_owns(const struct qcow2_image *img, const struct op *op)
{
	return img->commit && op == &img->commit->op;
}

bool commit_lower_full(const struct qcow2_image *img)
{
	const struct commit *c = img->commit;

	return c->lower_open.clusters + c->lower_closing.clusters + c->lowered.clusters > LOWER_MAX;
}

void commit_lower(struct qcow2_image *img, uint64_t first, uint64_t n)
{
	if (BROKEN(REMOVAL_FIRST) && n == 1 && !refcount_set(img, first, 0))
		return;
	journal_lower(img, first, n);
	(void)runs_add(&img->commit->lower_open, first, n);
}

void commit_restore_lower(struct qcow2_image *img, uint64_t first, uint64_t n)
{
	(void)runs_add(&img->commit->lower_open, first, n);
}

bool commit_lower_pending(const struct qcow2_image *img)
{
	return img->commit->lower_open.n || img->commit->lower_closing.n || img->commit->unread.n;
}

bool commit_scarce(const struct qcow2_image *img)
{
	return img->commit->failed == -ENOMEM || img->commit->scarce;
}

void commit_closing(struct qcow2_image *img, bool closing)
{
	img->commit->closing = closing;
}

static void each_run(const struct runs *r, size_t from, void (*fn)(void *ctx, uint64_t first, uint64_t n), void *ctx)
{
	for (; from < r->n; from++)
		if (r->v[from].n)
			fn(ctx, r->v[from].first, r->v[from].n);
}

void commit_each_lower(struct qcow2_image *img, void (*fn)(void *ctx, uint64_t first, uint64_t n), void *ctx)
{
	each_run(&img->commit->unread, 0, fn, ctx);
	each_run(&img->commit->lower_closing, img->commit->applied, fn, ctx);
	each_run(&img->commit->lower_open, 0, fn, ctx);
}

int commit_new_l2(struct qcow2_image *img, uint64_t l2)
{
	return runs_add(&img->commit->new_open, cluster_of(&img->geo, l2), 1);
}

/* ---- closing a generation ---- */

static enum stage stage_of(struct qcow2_image *img, const struct block *b)
{
	switch (b->type) {
	case BLK_RB:
		return BROKEN(REFCOUNTS_FIRST) ? S3_ENTRIES : S1_TABLES;
	case BLK_RT:
		return BROKEN(BLOCK_FIRST) ? S1_TABLES : S2_REFTABLE;
	case BLK_HEADER:
		return BROKEN(TABLE_FIRST) ? S1_TABLES : S2_HEADER;
	case BLK_L2:
		return metamap_get(img->meta, cluster_of(&img->geo, b->off)) == META_L2_NEW ? S1_TABLES : S3_ENTRIES;
	default:
		return BROKEN(L2_FIRST) ? S1_TABLES : S3_ENTRIES;
	}
}

/* The overlap check: does the block still lie where its kind of metadata is known to be? */
static bool in_place(struct qcow2_image *img, const struct block *b)
{
	static const enum meta_type want[] = {
		[BLK_HEADER] = META_HEADER, [BLK_L1] = META_L1, [BLK_L2] = META_L2,
		[BLK_RT] = META_RT,	    [BLK_RB] = META_RB,
	};
	enum meta_type is = metamap_get(img->meta, cluster_of(&img->geo, b->off));

	return is == want[b->type] || (b->type == BLK_L2 && is == META_L2_NEW) || BROKEN(OVERLAP);
}

static void freeze(void *ctx, struct block *b)
{
	struct commit *c = ctx;
	struct frozen *f = &c->frozen[c->nfrozen++];

	block_pin(b);
	f->block = b;
	f->stage = stage_of(c->img, b);
	f->data = cache_buffer(c->img);
	if (f->data)
		memcpy(f->data, b->data, c->img->geo.block_size);
	else if (!c->failed)
		c->failed = -ENOMEM;
	if (!in_place(c->img, b)) { /* never write it */
		c->failed = image_corrupt(c->img);
		cache_drop(c->img, b->off, c->img->geo.block_size);
	}
}

static enum step commit_close(struct op *op)
{
	struct commit *c = of(op);
	unsigned n = cache_dirty_count(c->img) + 1; /* freeze() may set the corrupt bit: the header */

	op->err = 0;
	op->sync_failed = false;
	c->wanted = false;
	c->scarce = false;
	c->failed = c->img->mode == MODE_FAILED || c->img->lost ? -EIO : 0;
	c->nfrozen = 0;
	c->applied = 0;
	c->stage = S1_TABLES;
	TAILQ_CONCAT(&c->closing_waiters, &c->open_waiters, link);
	if (n > c->frozen_cap) {
		struct frozen *v = realloc(c->frozen, n * sizeof(*v));

		if (v) {
			c->frozen = v;
			c->frozen_cap = n;
		} else {
			c->failed = -ENOMEM;
		}
	}
	if (!c->failed) {
		if (c->closing)
			runs_clear(&c->unread);
		runs_move(&c->lower_open, &c->unread);
		runs_move(&c->lower_closing, &c->lower_open);
		runs_move(&c->lowered_closing, &c->lowered);
		runs_move(&c->new_closing, &c->new_open);
		journal_close(c->img);
		cache_take_dirty(c->img, freeze, c);
	}
	if (c->failed) {
		op_then(op, commit_end);
		return STEP_NEXT;
	}
	op_then(op, commit_write_stage);
	return STEP_NEXT;
}

/* ---- the stages ---- */

static size_t stage_writes(const struct commit *c, enum stage s)
{
	size_t i, n = 0;

	for (i = 0; i < c->nfrozen; i++)
		n += c->frozen[i].stage == s;
	return n;
}

/* Of the stages after S1: that one is never skipped, its fdatasync orders data before entries and is all that a
 * FLUSH without changes needs. */
static bool stage_needed(const struct commit *c, enum stage s)
{
	return stage_writes(c, s);
}

static enum step commit_write_stage(struct op *op)
{
	struct commit *c = of(op);
	struct qcow2_image *img = c->img;
	size_t i, n = stage_writes(c, c->stage);

	op_then(op, n == 1 ? commit_stage_done : commit_sync_stage);
	for (i = 0; i < c->nfrozen; i++) {
		struct frozen *f = &c->frozen[i];

		/* Also if the block was dropped since (the table moved): later stages rest on what it says, and its
		 * clusters are not free before a later generation. */
		if (f->stage != c->stage)
			continue;
		if (BROKEN(FROZEN))
			memcpy(f->data, f->block->data, img->geo.block_size);
		if (n == 1) /* one submission: the write with its fsync linked behind it */
			op_write_fsync(op, img->file, f->data, img->geo.block_size, f->block->off);
		else
			op_write(op, img->file, f->data, img->geo.block_size, f->block->off);
	}
	return STEP_NEXT;
}

static enum step commit_sync_stage(struct op *op)
{
	struct commit *c = of(op);

	if (op->err) { /* a write failed: nothing to sync, the changes stay dirty */
		c->failed = op->err;
		op_then(op, commit_end);
		return STEP_NEXT;
	}
	op_fsync(op, c->img->file);
	op_then(op, commit_stage_done);
	return STEP_NEXT;
}

/* The fsync of c->stage completed. */
static enum step commit_stage_done(struct op *op)
{
	struct commit *c = of(op);

	if (op->err) {
		c->failed = op->err;
		if (op->sync_failed && !BROKEN(FSYNC_FAILURE)) { /* what the host dropped we cannot know: never claim success again */
			c->img->lost = true;
			journal_lost(c->img);
			image_set_mode(c->img, MODE_RO);
		}
		op_then(op, commit_end);
		return STEP_NEXT;
	}
	if (BROKEN(FLUSH_LAST))
		waitq_wake(&c->closing_waiters, 0);
	do
		c->stage++;
	while (c->stage < STAGES && !stage_needed(c, c->stage));
	op_then(op, c->stage < STAGES ? commit_write_stage : commit_end);
	return STEP_NEXT;
}

/* ---- the end: durable, or everything is dirty again ---- */

static void thaw(struct commit *c)
{
	size_t i;

	for (i = 0; i < c->nfrozen; i++) {
		struct frozen *f = &c->frozen[i];

		buf_free(f->data);
		if (c->failed)
			block_dirty(c->img, f->block);
		block_unpin(f->block);
	}
	c->nfrozen = 0;
}

/* From now on a crash may find the new tables reachable. */
static void tables_reachable(struct commit *c)
{
	size_t i;
	uint64_t k;

	for (i = 0; i < c->new_closing.n; i++)
		for (k = 0; k < c->new_closing.v[i].n; k++)
			if (metamap_get(c->img->meta, c->new_closing.v[i].first + k) == META_L2_NEW)
				metamap_set(c->img->meta, c->new_closing.v[i].first + k, META_L2);
	runs_clear(&c->new_closing);
}

static void punch(struct commit *c, struct op *op)
{
	const struct geometry *g = &c->img->geo;
	size_t i;

	if (c->img->discard != QCOW2_DISCARD_UNMAP)
		return;
	for (i = 0; i < c->lowered_closing.n; i++)
		op_punch(op, c->img->file, c->lowered_closing.v[i].n << g->cluster_bits,
			 c->lowered_closing.v[i].first << g->cluster_bits);
}

static enum step commit_end(struct op *op)
{
	struct commit *c = of(op);
	c->img->stats.commits++;
	thaw(c);
	if (c->failed == -ENOMEM)
		image_make_room(c->img);
	if (c->failed) {
		runs_move(&c->lower_open, &c->lower_closing);
		runs_move(&c->lowered, &c->lowered_closing);
		if (c->stage == S3_ENTRIES)
			tables_reachable(c);
		else
			runs_move(&c->new_open, &c->new_closing);
	} else {
		tables_reachable(c);
		journal_truncate(c->img);
		punch(c, op);
	}
	waitq_wake(&c->closing_waiters, c->failed);
	cache_wake(c->img, c->failed);
	op->err = 0;
	op_then(op, commit_apply_lower);
	return STEP_NEXT;
}

/* Lowered refcounts of the previous generation are durable, their clusters punched: free at last. */
static void release_quarantine(struct commit *c)
{
	size_t i;
	uint64_t k;

	for (i = 0; i < c->lowered_closing.n; i++)
		for (k = 0; k < c->lowered_closing.v[i].n; k++) {
			uint64_t cluster = c->lowered_closing.v[i].first + k;

			if (metamap_get(c->img->meta, cluster) == META_QUARANTINE)
				metamap_set(c->img->meta, cluster, META_NONE);
			if (!BROKEN(REUSE))
				alloc_freed(c->img, cluster);
		}
	c->img->stats.freed += c->lowered_closing.clusters;
	runs_clear(&c->lowered_closing);
}

/* Lower one cluster in the cache; 0, -EWOULDBLOCK or an error. */
static int lower_one(struct commit *c, struct op *op, uint64_t cluster)
{
	struct qcow2_image *img = c->img;
	uint64_t count;
	int ret = refcount_get(img, cluster, &count, op);

	if (ret)
		return ret;
	if (!count)
		return image_corrupt(img);
	/* Quarantine first: the allocator must never see a zero that is not durable. */
	if (count == 1 && !BROKEN(QUARANTINE) && metamap_add(img->meta, cluster, 1, META_QUARANTINE))
		return -EEXIST;
	ret = refcount_set(img, cluster, count - 1);
	if (!ret && count == 1)
		(void)runs_add(&c->lowered, cluster, 1); /* no memory: leaked in the quarantine */
	return ret;
}

/* No room to record more: what is left of lower_closing waits for the next commit, which makes some. */
static void put_off(struct commit *c)
{
	for (; c->applied < c->lower_closing.n; c->applied++)
		if (c->lower_closing.v[c->applied].n)
			(void)runs_add(&c->lower_open, c->lower_closing.v[c->applied].first,
				       c->lower_closing.v[c->applied].n);
	c->wanted = true;
}

static enum step commit_apply_lower(struct op *op)
{
	struct commit *c = of(op);
	struct runs *l = &c->lower_closing;

	release_quarantine(c);
	op_then(op, commit_apply_lower);
	while (c->applied < l->n && c->img->mode == MODE_RW) {
		struct run *r = &l->v[c->applied];
		int ret = op->err ? op->err : r->n ? lower_one(c, op, r->first) : 0;

		if (ret == -EWOULDBLOCK)
			return STEP_NEXT;
		op->err = 0;
		if (ret == -ENOMEM) {
			c->scarce = true;
			image_make_room(c->img);
		}
		if (!r->n) {
			c->applied++;
			continue;
		}
		/* Not read: for another time. Any other error, and what is too much: the cluster stays leaked. */
		if (ret >= 0 || ret == -EUCLEAN || ret == -EEXIST || c->unread.n >= UNREAD_MAX ||
		    runs_add(&c->unread, r->first, 1))
			journal_lowered(c->img, r->first);
		r->first++;
		r->n--;
		if (journal_reserve_short(c->img)) {
			put_off(c);
			break;
		}
	}
	runs_clear(l);
	c->running = false;
	if (c->wanted)
		commit_start(c->img);
	return STEP_DONE;
}

/* ---- tables written whole, header changes ---- */

int commit_format(struct qcow2_image *img, struct op *op, uint64_t off, const void *data, uint64_t len,
		  enum meta_type type)
{
	const struct geometry *g = &img->geo;
	uint64_t c, first = cluster_of(g, off), n = len >> g->cluster_bits;

	assert(cluster_aligned(g, off) && cluster_aligned(g, len));
	for (c = first; c < first + n; c++)
		if (metamap_get(img->meta, c) != type)
			return image_corrupt(img);
	op_write(op, img->file, data, len, off);
	return 0;
}

bool commit_first_write_done(const struct qcow2_image *img)
{
	return img->commit && img->commit->first_write_done;
}

static void store_header(struct qcow2_image *img, const uint64_t *raw)
{
	uint32_t i;

	for (i = 0; i < HEADER_WORDS; i++)
		block_store64(img, img->commit->header, i * 8, raw[i]);
}

static void store_features(struct qcow2_image *img)
{
	uint64_t raw[HEADER_WORDS];

	memcpy(raw, img->commit->header->data, sizeof(raw));
	header_set_features(raw, img->hdr.incompatible, img->hdr.autoclear);
	store_header(img, raw);
}

int commit_first_write(struct qcow2_image *img, struct op *waiter)
{
	struct commit *c = img->commit;

	if (c->first_write_done || (BROKEN(AUTOCLEAR_FIRST) && c->autoclear_pending))
		return 0;
	if (!c->autoclear_pending) {
		img->hdr.autoclear = 0;
		store_features(img);
		c->autoclear_pending = true;
	} else if (!c->header->dirty && c->header->pins == 1) { /* written, and not being written */
		c->first_write_done = true;
		return 0;
	}
	commit_wait(img, waiter);
	return -EWOULDBLOCK;
}

void commit_move_reftable(struct qcow2_image *img, uint64_t off, uint32_t clusters)
{
	uint64_t raw[HEADER_WORDS];

	img->hdr.rt_offset = off;
	img->hdr.rt_clusters = clusters;
	memcpy(raw, img->commit->header->data, sizeof(raw));
	header_set_reftable(raw, off, clusters);
	store_header(img, raw);
}

void commit_mark_corrupt(struct qcow2_image *img)
{
	struct commit *c = img->commit;

	if (!c || img->hdr.incompatible & QCOW2_INCOMPAT_CORRUPT || img->geo.version < 3)
		return;
	img->hdr.incompatible |= QCOW2_INCOMPAT_CORRUPT;
	store_features(img);
	commit_start(img);
}

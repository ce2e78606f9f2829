// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * repair_refcounts.c - stored refcounts become what the references say; first the planned copies of data.
 *
 * In place where table and blocks are sound and there; else all of them are written anew behind the end of
 * the file (a block device: behind the last cluster in use), with refcounts for themselves, and the header is
 * switched when they are durable. The old ones are then free without having been touched, so that a crash
 * leaves either the old or the new.
 *
 * Invariants: memory is one refcount block, the new table and a byte per entry of it. The file never grows
 * over an offset that some entry names beyond its end: that entry would become valid, and the cluster ours.
 * Entries of the old refcount table are cleared for that, which changes no refcount. The new structures hold
 * refcounts beyond the end, too, where an entry points: free, those clusters would be given to somebody else.
 */
#include "repair_impl.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ENTRIES (QCOW2_MAX_REFTABLE_BYTES / 8)
#define MAX_CLUSTER 0x7ffffffeull /* beyond, no check would look at the file again */

/* Stored, or what to assume of a cluster of the file when its refcount cannot be known: in use. */
static uint64_t stored_or_used(struct repair *r, uint64_t cl)
{
	struct check *c = r->c;
	bool inside = cl < clusters_for(&c->hdr.geo, c->file_size);
	uint32_t index;
	uint64_t off;
	void *piece;

	if (!check_piece(c, cl, &piece, &off, &index))
		return inside;
	if (!piece) /* no block, or one beyond the end */
		return off >= c->hdr.geo.cluster_size && inside;
	return refcount_decode(&c->hdr.geo, piece, index);
}

uint64_t repair_target(struct repair *r, uint64_t cl)
{
	uint64_t refs = counters_get(&r->c->refs, cl), stored;

	if (refs && (counters_get(&r->c->stuck, cl) || (r->moves.any && repair_moving(r->c, cl)))) {
		stored = stored_or_used(r, cl);
		return stored ? stored : 1;
	}
	if (!r->keep || counters_get(&r->c->spared, cl))
		return refs;
	stored = stored_or_used(r, cl);
	return stored > refs ? stored : refs;
}

/* ---- in place ---- */

static uint64_t fix_piece(struct repair *r, void *piece, uint64_t base, uint64_t end, bool raise)
{
	const struct geometry *g = &r->c->hdr.geo;
	uint64_t cl, stored, target, n = 0;

	for (cl = base; cl < end; cl++) {
		stored = refcount_decode(g, piece, (uint32_t)(cl - base));
		target = repair_target(r, cl);
		if (raise ? stored >= target : stored <= target)
			continue;
		refcount_encode(g, piece, (uint32_t)(cl - base), target);
		n++;
	}
	return n;
}

int repair_refcounts(struct repair *r, bool raise)
{
	uint64_t per_piece = check_per_piece(r->c), base, end, off, n, first;
	struct check *c = r->c;
	uint32_t index;
	void *piece;
	int ret = 0;

	if (!raise && r->keep)
		return 0;
	for (base = 0; !ret && base < c->nb_clusters; base = end) {
		end = min_u64(base + per_piece, c->nb_clusters);
		first = base;
		if (!check_piece(c, base, &piece, &off, &index) || !piece)
			continue;
		if (raise ? !counters_next(&c->refs, &first, end)
			  : check_all_zero(piece, c->hdr.geo.block_size))
			continue;
		n = fix_piece(r, piece, base, end, raise);
		if (n)
			ret = repair_write(r, piece, c->hdr.geo.block_size, off, "a refcount block");
		*(raise ? &r->res->raised : &r->res->lowered) += n;
		r->fixes += n;
	}
	return ret ? ret : c->failed;
}

/* ---- anew ---- */

struct rebuild {
	struct repair *r;
	uint8_t *need; /* per entry of the table: a block is needed */
	uint64_t copies; /* first cluster of the data to be moved */
	uint64_t base; /* after them: first cluster of the new table, then blocks */
	uint64_t last; /* and the last one */
	uint64_t entries, blocks;
	uint32_t rt_clusters;
	bool unknown; /* something is referenced beyond the end and its refcount cannot be read */
};

static int need(struct rebuild *b, uint64_t cluster)
{
	uint64_t i = rt_index(&b->r->c->hdr.geo, cluster);

	if (i >= MAX_ENTRIES)
		return -EFBIG;
	b->blocks += !b->need[i];
	b->need[i] = 1;
	if (i >= b->entries)
		b->entries = i + 1;
	return 0;
}

/* Blocks that the clusters of the file need. */
static int need_for_file(struct rebuild *b)
{
	uint64_t per_block = 1ull << b->r->c->hdr.geo.rb_bits, cl, base, end;
	struct check *c = b->r->c;
	int ret = 0;

	for (cl = 0; !ret && counters_next(&c->refs, &cl, c->nb_clusters); cl = (cl | (per_block - 1)) + 1)
		ret = need(b, cl);
	if (!b->r->keep)
		return ret;
	for (base = 0; !ret && base < c->nb_clusters; base = end) {
		end = min_u64(base + per_block, c->nb_clusters);
		for (cl = base; cl < end && !repair_target(b->r, cl); cl++)
			;
		if (cl < end)
			ret = need(b, cl);
	}
	return ret;
}

/* Those that hold refcounts of what is referenced beyond its end. */
static int need_ahead(struct rebuild *b)
{
	struct check *c = b->r->c;
	uint64_t i, off;
	uint32_t index;
	void *piece;
	int ret = 0;

	for (i = 0; !ret && counters_next(&c->ahead, &i, c->rt_entries); i++) {
		if (!check_piece(c, i << c->hdr.geo.rb_bits, &piece, &off, &index))
			b->unknown = true;
		else if (piece)
			ret = need(b, i << c->hdr.geo.rb_bits);
		/* Entries of the old table may all name the same block. */
		if (b->blocks > c->nb_clusters)
			ret = -EFBIG;
	}
	return ret;
}

/* And those that the new structures need for themselves, until that needs no more. */
static int place(struct rebuild *b)
{
	const struct geometry *g = &b->r->c->hdr.geo;
	uint64_t blocks, cl;
	int ret = 0;

	do {
		blocks = b->blocks;
		b->rt_clusters = (uint32_t)clusters_for(g, b->entries * 8);
		b->last = b->base + b->rt_clusters + b->blocks - 1;
		for (cl = b->copies; !ret && cl <= b->last; cl++)
			ret = need(b, cl);
	} while (!ret && (b->blocks != blocks || clusters_for(g, b->entries * 8) != b->rt_clusters));
	return b->last > MAX_CLUSTER ? -EFBIG : ret;
}

/* The old table names what will be inside the file, and cannot be changed: it lies upon something else. */
static bool old_table_in_use(const struct rebuild *b)
{
	const struct check *c = b->r->c;
	uint64_t cl = cluster_of(&c->hdr.geo, c->hdr.rt_offset), end = cl + c->hdr.rt_clusters, rb;
	bool used = false, ahead = false;
	uint32_t i;

	for (; cl < end; cl++)
		used |= counters_get(&c->refs, cl) || counters_get(&c->spared, cl) != 1;
	for (i = 0; i < c->rt_entries; i++) {
		rt_decode(&c->hdr.geo, table_get(c->rt, i), &rb);
		cl = cluster_of(&c->hdr.geo, rb);
		ahead |= cl >= c->nb_clusters && cl <= b->last;
	}
	return used && ahead;
}

/* NULL, or why the new structures cannot be where they would have to be. */
static const char *no_place(const struct rebuild *b)
{
	const struct check *c = b->r->c;
	uint64_t end = (b->last + 1) << c->hdr.geo.cluster_bits;

	if (b->unknown)
		return "an entry points beyond the end of the file, where the refcounts cannot be read";
	if (end > c->beyond || old_table_in_use(b))
		return "they would lie where an entry points beyond the end of the file";
	if (b->r->file->fixed_size && b->r->keep)
		return "no place of the device is certainly free";
	if (b->r->file->fixed_size && end > c->file_size)
		return "there is no room on the device";
	return end > QCOW2_MAX_HOST_OFFSET ? "the file is too large" : NULL;
}

/* Entries of the old table that name what will be inside the file. */
static int clear_old_entries(struct rebuild *b)
{
	const struct geometry *g = &b->r->c->hdr.geo;
	struct check *c = b->r->c;
	uint64_t zero = 0, rb;
	uint32_t i;
	int ret = 0;

	for (i = 0; !ret && i < c->rt_entries; i++) {
		rt_decode(g, table_get(c->rt, i), &rb);
		if (cluster_of(g, rb) >= c->nb_clusters && cluster_of(g, rb) <= b->last)
			ret = repair_write(b->r, &zero, sizeof(zero), c->hdr.rt_offset + 8ull * i,
					   "the refcount table");
	}
	return ret ? ret : repair_sync(b->r);
}

static void fill_block(struct rebuild *b, uint64_t index, void *block)
{
	const struct geometry *g = &b->r->c->hdr.geo;
	uint64_t first = index << g->rb_bits, end = first + (1ull << g->rb_bits), file_end, cl;
	struct check *c = b->r->c;

	memset(block, 0, g->cluster_size);
	file_end = min_u64(end, c->nb_clusters);
	for (cl = first; b->r->keep && cl < end; cl++)
		refcount_encode(g, block, (uint32_t)(cl - first), repair_target(b->r, cl));
	for (cl = first; !b->r->keep && counters_next(&c->refs, &cl, file_end); cl++)
		refcount_encode(g, block, (uint32_t)(cl - first), repair_target(b->r, cl));
	for (cl = first > b->copies ? first : b->copies; cl < end && cl <= b->last; cl++)
		refcount_encode(g, block, (uint32_t)(cl - first),
				cl < b->base ? b->r->moves.list[cl - b->copies].refs : 1);
}

static int write_structures(struct rebuild *b)
{
	const struct geometry *g = &b->r->c->hdr.geo;
	uint64_t rt_bytes = (uint64_t)b->rt_clusters << g->cluster_bits, i, at;
	void *rt = calloc(1, rt_bytes), *block = malloc(g->cluster_size);
	int ret = rt && block ? 0 : check_nomem(b->r->c);

	at = (b->base + b->rt_clusters) << g->cluster_bits;
	for (i = 0; !ret && i < b->entries; i++) {
		if (!b->need[i])
			continue;
		fill_block(b, i, block);
		table_set(rt, (uint32_t)i, at);
		ret = repair_write(b->r, block, g->cluster_size, at, "a refcount block");
		at += g->cluster_size;
	}
	if (!ret)
		ret = repair_write(b->r, rt, rt_bytes, b->base << g->cluster_bits, "the refcount table");
	free(block);
	free(rt);
	return ret ? ret : b->r->c->failed;
}

int repair_rebuild(struct repair *r, bool *done)
{
	const struct geometry *g = &r->c->hdr.geo;
	struct rebuild b = { .r = r, .need = calloc(1, MAX_ENTRIES) };
	const char *why;
	int ret;

	*done = false;
	if (!b.need)
		return check_nomem(r->c);
	b.copies = r->file->fixed_size ? cluster_of(g, r->c->res->image_end) : r->c->nb_clusters;
	b.base = b.copies + r->moves.nr;
	ret = need_for_file(&b);
	if (!ret)
		ret = need_ahead(&b);
	if (!ret)
		ret = place(&b);
	why = ret == -EFBIG ? "the file is too large" : no_place(&b);
	if (why) {
		ret = repair_leave(r, "the refcount table and blocks cannot be rebuilt: %s", why);
		goto free_need;
	}
	if (!ret)
		ret = repair_copied(r, false);
	if (!ret)
		ret = repair_sync(r);
	if (!ret)
		ret = clear_old_entries(&b);
	if (!ret)
		ret = repair_copy_data(r, b.copies);
	if (!ret)
		ret = write_structures(&b);
	if (!ret)
		ret = repair_sync(r);
	if (!ret)
		ret = repair_set_reftable(r, b.base << g->cluster_bits, b.rt_clusters);
	if (!ret)
		ret = repair_sync(r);
	if (!ret) {
		*done = r->res->rebuilt = true;
		r->fixes++;
	}

free_need:
	free(b.need);
	return ret;
}

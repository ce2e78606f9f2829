/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * check_meta.c - the references that are neither L1 nor L2: snapshot table, refcount table and
 * blocks, the LUKS header, and the bitmaps (directory, tables, clusters).
 *
 * Invariants: a directory or table that cannot be parsed is an error and counts what was
 * understood; nothing is allocated beyond the limits of format.h. The refcount blocks come last:
 * a block that anything else references already is in the wrong place.
 */
#include "check_impl.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define SNAPSHOTS_FIRST 65536u /* bytes of the snapshot table tried first */

int check_load_snapshots(struct check *c)
{
	const struct qcow2_header *h = &c->hdr;
	uint64_t avail, len;
	size_t used;
	void *buf;
	int ret;

	if (!h->nb_snapshots)
		return 0;
	/* Whole clusters: the last one of the file may be cut, what is missing reads as zeroes. */
	avail = cluster_up(&h->geo, c->file_size);
	avail = avail > h->snapshots_offset ? avail - h->snapshots_offset : 0;
	avail = min_u64(avail, QCOW2_MAX_SNAPSHOT_BYTES);
	for (len = min_u64(avail, SNAPSHOTS_FIRST);; len = min_u64(avail, len * 2)) {
		buf = malloc(len + 1);
		if (!buf)
			return check_nomem(c);
		ret = check_read(c, buf, len, h->snapshots_offset, "snapshot table");
		if (!ret)
			ret = snapshots_parse(h, buf, len, c->file_size, &c->snapshots, &used, c->file->path,
					      c->err);
		free(buf);
		if (ret != -EAGAIN)
			break;
		if (len == avail)
			return qcow2_fail(c->err, -EINVAL,
					  "%s: the snapshot table passes the end of the file", c->name);
	}
	c->snapshots_bytes = ret ? 0 : used;
	return ret;
}

/* Version 3 wants the 64-bit VM state size and the disk size of every snapshot. */
static void check_snapshot_entries(struct check *c)
{
	uint32_t i;

	for (i = 0; c->hdr.geo.version >= 3 && i < c->hdr.nb_snapshots; i++)
		if (c->snapshots[i].incomplete)
			check_error(c, 1, "snapshot %s (%s): its extra data is incomplete",
				    c->snapshots[i].id, c->snapshots[i].name);
}

/* ---- bitmaps ---- */

static int bitmap_table_word(struct check *c, uint64_t word, uint64_t n, uint64_t n_active)
{
	uint64_t host = word & QCOW2_BITMAP_OFFSET_MASK;

	if (word & QCOW2_BITMAP_RESERVED || !cluster_aligned(&c->hdr.geo, host)) {
		check_blind(c, n, "bitmap table entry 0x%016" PRIx64 " is invalid", word);
		return 0;
	}
	return host ? check_count(c, host, c->hdr.geo.cluster_size, n, true, NULL) : 0;
}

/* One entry of the directory; *pos moves to the next. False: damaged, no next one can be found. */
static bool bitmap_entry(struct check *c, const uint8_t *dir, uint64_t len, uint64_t *pos, struct region *r)
{
	const struct qcow2_disk_bitmap *d = (const void *)(dir + *pos);
	uint64_t entries, name, extra, bytes;

	if (len - *pos < sizeof(*d))
		return false;
	entries = load_be32(&d->table_size);
	name = load_be16(&d->name_size);
	extra = load_be32(&d->extra_data_size);
	bytes = (sizeof(*d) + extra + name + 7) & ~7ull;
	if (bytes > len - *pos || extra || !name || name > QCOW2_MAX_BITMAP_NAME ||
	    d->granularity_bits < QCOW2_MIN_GRANULARITY_BITS ||
	    d->granularity_bits > QCOW2_MAX_GRANULARITY_BITS || !entries ||
	    entries > QCOW2_MAX_BITMAP_TABLE || load_be32(&d->flags) & QCOW2_BITMAP_FLAGS_RESERVED)
		return false;
	*r = (struct region){ .off = load_be64(&d->table_offset), .bytes = entries * 8 };
	*pos += bytes;
	return r->off && cluster_aligned(&c->hdr.geo, r->off);
}

/* A bitmap covers the disk, one bit per granule, in whole 64-bit words; one that was in use when its
 * writer died is dead anyway. */
static bool bitmap_fits(const struct check *c, const struct qcow2_disk_bitmap *d)
{
	uint64_t granule = 1ull << d->granularity_bits, words;

	if (load_be32(&d->flags) & QCOW2_BITMAP_IN_USE)
		return true;
	words = (c->hdr.geo.size / granule + !!(c->hdr.geo.size % granule) + 63) / 64;
	return load_be32(&d->table_size) == clusters_for(&c->hdr.geo, words * 8);
}

/* Fill @r with the tables that lie inside the file; returns how many. */
static uint32_t bitmap_tables(struct check *c, const uint8_t *dir, struct region *r)
{
	const struct qcow2_header *h = &c->hdr;
	const struct qcow2_disk_bitmap *d;
	uint64_t pos = 0;
	uint32_t i, nr = 0;

	for (i = 0; i < h->nb_bitmaps; i++) {
		d = (const void *)(dir + pos);
		if (!bitmap_entry(c, dir, h->bitmap_dir_size, &pos, &r[nr])) {
			check_blind(c, 1, "bitmap directory: entry %" PRIu32 " is invalid", i);
			return nr;
		}
		if (!bitmap_fits(c, d))
			check_blind(c, 1, "bitmap directory: entry %" PRIu32 " does not fit the disk's size",
				    i);
		if (table_problem(&h->geo, r[nr].off, r[nr].bytes, UINT64_MAX, c->file_size))
			check_blind(c, 1,
				    "bitmap directory: the table of entry %" PRIu32 " is beyond the file", i);
		else
			nr++;
	}
	if (pos != h->bitmap_dir_size)
		check_blind(c, 1, "bitmap directory: %" PRIu64 " bytes follow the last entry",
			    h->bitmap_dir_size - pos);
	return nr;
}

static int check_bitmaps(struct check *c)
{
	const struct qcow2_header *h = &c->hdr;
	struct region *r = NULL;
	uint8_t *dir = NULL;
	int ret;

	if (!h->nb_bitmaps)
		return 0;
	ret = check_count(c, h->bitmap_dir_offset, h->bitmap_dir_size, 1, true, NULL);
	if (ret)
		return ret;
	dir = malloc(h->bitmap_dir_size + 1);
	r = calloc(h->nb_bitmaps, sizeof(*r));
	ret = dir && r ? 0 : check_nomem(c);
	if (!ret)
		ret = check_read(c, dir, h->bitmap_dir_size, h->bitmap_dir_offset, "bitmap directory");
	if (!ret)
		ret = check_regions(c, r, bitmap_tables(c, dir, r), "bitmap table", bitmap_table_word);
	free(r);
	free(dir);
	return ret;
}

/* ---- refcount structures ---- */

/* A refcount table or block that cannot be trusted: an error, and one more reason to rebuild them. */
static void refcounts_bad(struct check *c, const char *what, uint32_t index, uint64_t at)
{
	c->refcounts_bad = true;
	check_error(c, 1, "refcount block %" PRIu32 " (0x%" PRIx64 ") %s", index, at, what);
}

/* Count a cluster of the refcount structures. */
static int count_refcounts(struct check *c, uint64_t off, uint64_t len)
{
	const struct geometry *g = &c->hdr.geo;
	uint64_t cl, ignored;

	if (!c->spare_refcounts)
		return check_count(c, off, len, 1, true, NULL);
	for (cl = cluster_of(g, off); cl <= cluster_of(g, off + len - 1); cl++)
		if (counters_add(&c->spared, cl, 1, &ignored))
			return check_nomem(c);
	return 0;
}

static int check_refcount_block(struct check *c, uint32_t index)
{
	const struct geometry *g = &c->hdr.geo;
	uint64_t word = table_get(c->rt, index), rb;
	int ret;

	if (!word)
		return 0;
	if (!rt_decode(g, word, &rb)) {
		c->refcounts_bad = true;
		check_error(c, 1, "refcount table entry %" PRIu32 " (0x%016" PRIx64 ") is invalid", index,
			    word);
		return 0;
	}
	if (cluster_of(g, rb) >= c->nb_clusters) {
		refcounts_bad(c, "is beyond the end of the file", index, rb);
		return 0;
	}
	ret = count_refcounts(c, rb, g->cluster_size);
	if (ret || c->spare_refcounts)
		return ret;
	if (counters_get(&c->refs, cluster_of(g, rb)) != 1)
		refcounts_bad(c, "is also used for something else", index, rb);
	else if (counters_get(&c->over, cluster_of(g, rb)))
		c->refcounts_bad = true;
	return 0;
}

/* All references are counted: has the refcount table its clusters for itself? */
static void judge_refcount_table(struct check *c)
{
	const struct geometry *g = &c->hdr.geo;
	uint64_t cl = cluster_of(g, c->hdr.rt_offset), end = cl + c->hdr.rt_clusters;

	for (; cl < end; cl++)
		if (counters_get(&c->refs, cl) != 1 || counters_get(&c->over, cl))
			c->refcounts_bad = true;
}

int check_metadata(struct check *c)
{
	const struct qcow2_header *h = &c->hdr;
	uint32_t i;
	int ret;

	check_snapshot_entries(c);
	ret = check_count(c, h->snapshots_offset, c->snapshots_bytes, 1, true, NULL);
	if (!ret)
		ret = count_refcounts(c, h->rt_offset, c->rt_entries * 8ull);
	if (!ret)
		ret = check_count(c, h->crypto_offset, h->crypto_length, 1, true, NULL);
	if (!ret)
		ret = check_bitmaps(c);
	for (i = 0; !ret && i < c->rt_entries; i++)
		ret = check_refcount_block(c, i);
	if (!ret)
		judge_refcount_table(c);
	return ret;
}

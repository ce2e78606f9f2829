/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * check.c - is an image consistent? Set-up, the stored refcounts, and the comparison.
 *
 * Steps: parse header and snapshot table; count every reference to a host cluster (check_refs.c,
 * check_meta.c); compare the counts with the stored refcounts. COPIED flags are judged by the stored
 * refcounts while the tables are read. What counts as one error follows `qemu-img check`, so that
 * the two can be compared; in addition this checker calls an error what QEMU lets pass:
 *  - metadata that shares a cluster with anything else, even if the stored refcount agrees;
 *  - the zero flag in a version 2 image.
 *
 * Invariants: reads only; nothing in the image is trusted; memory is the counters' budget plus a few
 * tables whose size format.h limits; work is bounded by the size of the file. Shares no code with
 * map.c, refcount.c or cache.c, so that it can contradict them.
 */
#include "check_impl.h"
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CLUSTERS 0x7fffffffull /* of the file; as in QEMU */
#define COUNTER_BUDGET (4ull << 30)
#define MAX_FINDINGS 10000u /* of each kind are reported, all are counted */

/* ---- findings ---- */

static void __attribute__((format(printf, 3, 0))) report(struct check *c, bool error, const char *fmt,
							 va_list ap)
{
	char text[512];

	if (!c->cb || !c->cb->finding || c->findings[error] > MAX_FINDINGS)
		return;
	if (c->findings[error]++ < MAX_FINDINGS)
		vsnprintf(text, sizeof(text), fmt, ap);
	else
		snprintf(text, sizeof(text), "further %s are counted but not listed",
			 error ? "errors" : "leaks");
	c->cb->finding(c->cb->ctx, error, text);
}

void check_error(struct check *c, uint64_t n, const char *fmt, ...)
{
	va_list ap;

	c->res->errors += n;
	va_start(ap, fmt);
	report(c, true, fmt, ap);
	va_end(ap);
}

void check_blind(struct check *c, uint64_t n, const char *fmt, ...)
{
	va_list ap;

	c->res->errors += n;
	c->blind += n;
	va_start(ap, fmt);
	report(c, true, fmt, ap);
	va_end(ap);
}

void check_leak(struct check *c, uint64_t n, const char *fmt, ...)
{
	va_list ap;

	c->res->leaks += n;
	va_start(ap, fmt);
	report(c, false, fmt, ap);
	va_end(ap);
}

void check_progress(struct check *c, uint64_t done, uint64_t total)
{
	if (c->cb && c->cb->progress)
		c->cb->progress(c->cb->ctx, done, total);
}

int check_nomem(struct check *c)
{
	return qcow2_fail(c->err, -ENOMEM, "%s: not enough memory to check this image", c->name);
}

int check_read(struct check *c, void *buf, uint64_t len, uint64_t off, const char *what)
{
	int ret = c->file->ops->pread(c->file, buf, len, off);

	return ret ? qcow2_fail(c->err, ret, "%s: reading %s at 0x%" PRIx64 ": %s", c->name, what, off,
				strerror(-ret))
		   : 0;
}

/* ---- counting ---- */

/* What is referenced beyond the end has a refcount as well. */
static int count_ahead(struct check *c, uint64_t off, uint64_t len)
{
	const struct geometry *g = &c->hdr.geo;
	uint64_t i = rt_index(g, cluster_of(g, off)), last = rt_index(g, cluster_of(g, off + len - 1)),
		 ignored;

	c->beyond = min_u64(c->beyond, off);
	for (; i <= last && i < c->rt_entries; i++)
		if (counters_add(&c->ahead, i, 1, &ignored))
			return check_nomem(c);
	return 0;
}

int check_count(struct check *c, uint64_t off, uint64_t len, uint64_t n, bool meta, bool *inside)
{
	const struct geometry *g = &c->hdr.geo;
	uint64_t cl, last, lost, ignored;
	bool ok =
		len <= c->file_size + g->cluster_size - 1 && off <= c->file_size + g->cluster_size - 1 - len;

	if (inside)
		*inside = ok;
	if (!len)
		return 0;
	if (!ok) {
		check_blind(c, n,
			    "0x%" PRIx64 " bytes at 0x%" PRIx64 " are referenced beyond the end of the file",
			    len, off);
		return count_ahead(c, off, len);
	}
	last = cluster_of(g, off + len - 1);
	if (last >= c->nb_clusters)
		c->nb_clusters = last + 1;
	for (cl = cluster_of(g, off); cl <= last; cl++) {
		if (counters_add(&c->refs, cl, n, &lost) || (meta && counters_add(&c->meta, cl, n, &ignored)))
			return check_nomem(c);
		if (!lost)
			continue;
		check_error(c, lost, "cluster %" PRIu64 ": more references than a refcount can hold", cl);
		if (counters_add(&c->over, cl, lost, &ignored))
			return check_nomem(c);
	}
	return 0;
}

/* ---- stored refcounts ---- */

#define PIECES 256u /* direct-mapped cache of 4 KiB pieces of refcount blocks */

struct refcount_piece {
	uint64_t off; /* in the file; 0 = empty */
	uint64_t bytes[512];
};

/* Refcounts of one piece as they are stored; NULL: all zero. */
static void *load_piece(struct check *c, uint64_t off)
{
	uint32_t size = c->hdr.geo.block_size;
	struct refcount_piece *p = &c->pieces[(off >> c->hdr.geo.block_bits) % PIECES];
	int ret;

	if (off >= c->file_size)
		return NULL;
	if (p->off != off) {
		p->off = 0;
		ret = check_read(c, p->bytes, size, off, "a refcount block");
		if (ret) { /* the answer no longer matters: the check fails */
			c->failed = ret;
			return NULL;
		}
		p->off = off;
	}
	return p->bytes;
}

static unsigned piece_bits(const struct geometry *g)
{
	return g->block_bits + 3 - g->refcount_order;
}

uint64_t check_per_piece(const struct check *c)
{
	return 1ull << piece_bits(&c->hdr.geo);
}

bool check_piece(struct check *c, uint64_t cluster, void **piece, uint64_t *off, uint32_t *index)
{
	const struct geometry *g = &c->hdr.geo;
	uint64_t rti = rt_index(g, cluster), rb = 0;
	unsigned per_piece = piece_bits(g);
	uint32_t i = rb_index(g, cluster);

	*piece = NULL;
	*index = i & ((1u << per_piece) - 1);
	if (rti >= c->rt_entries)
		return true;
	/* Reserved bits were reported; the offset may still be right. */
	rt_decode(g, table_get(c->rt, (uint32_t)rti), &rb);
	if (!cluster_aligned(g, rb))
		return false;
	*off = rb + ((uint64_t)(i >> per_piece) << g->block_bits);
	if (rb)
		*piece = load_piece(c, *off);
	return true;
}

bool check_stored(struct check *c, uint64_t cluster, uint64_t *refcount)
{
	uint32_t index;
	uint64_t off;
	void *piece;

	if (!check_piece(c, cluster, &piece, &off, &index))
		return false;
	*refcount = piece ? refcount_decode(&c->hdr.geo, piece, index) : 0;
	return true;
}

/* ---- comparing ---- */

/* Is the cluster metadata that something else uses, too? */
static bool overlaps(const struct check *c, uint64_t cl, uint64_t refs)
{
	uint64_t l2 = counters_get(&c->l2, cl);

	if (refs < 2 || refs == c->hdr.geo.refcount_max)
		return false;
	return counters_get(&c->meta, cl) || (l2 && l2 != refs);
}

static void compare_one(struct check *c, uint64_t cl, uint64_t stored)
{
	uint64_t refs = counters_get(&c->refs, cl);
	bool overlap = overlaps(c, cl, refs);

	c->overlaps += overlap;

	if (stored || refs)
		c->res->image_end = (cl + 1) << c->hdr.geo.cluster_bits;
	if (stored < refs)
		check_error(c, 1, "cluster %" PRIu64 ": refcount %" PRIu64 ", but %" PRIu64 " references", cl,
			    stored, refs);
	else if (stored > refs)
		check_leak(c, 1, "cluster %" PRIu64 ": refcount %" PRIu64 ", but %" PRIu64 " references", cl,
			   stored, refs);
	else if (overlap)
		check_error(c, 1, "cluster %" PRIu64 " holds metadata and is referenced %" PRIu64 " times",
			    cl, refs);
}

bool check_all_zero(const void *piece, uint32_t bytes)
{
	const char *p = piece;

	return !p || (!p[0] && !memcmp(p, p + 1, bytes - 1));
}

static void compare(struct check *c)
{
	const struct geometry *g = &c->hdr.geo;
	uint64_t per_piece = check_per_piece(c), base, end, cl, off;
	uint32_t index;
	void *piece;

	for (base = 0; base < c->nb_clusters; base = end) {
		end = min_u64(base + per_piece, c->nb_clusters);
		check_progress(c, c->nb_clusters + base, 2 * c->nb_clusters);
		if (!check_piece(c, base, &piece, &off, &index))
			check_error(c, 1, "clusters %" PRIu64 " to %" PRIu64 ": the refcounts cannot be read",
				    base, end - 1);
		else if (check_all_zero(piece, g->block_size))
			for (cl = base; counters_next(&c->refs, &cl, end); cl++) {
				c->refcounts_bad |= !piece;
				compare_one(c, cl, 0);
			}
		else
			for (cl = base; cl < end; cl++)
				compare_one(c, cl, refcount_decode(g, piece, (uint32_t)(cl - base)));
	}
}

/* ---- set-up ---- */

/* Encryption changes no reference, and a dirty or corrupt image is what a check is for. */
static int gate(struct check *c)
{
	struct qcow2_header h = c->hdr;

	h.crypt_method = QCOW2_CRYPT_NONE;
	return header_gate(&h, true, c->file->path, c->err);
}

int check_header(struct check *c)
{
	const char *path = c->file->path;
	uint8_t first[4096];
	size_t len, have;
	void *buf;
	int ret;

	escape_name(c->name, sizeof(c->name), path, strlen(path));
	ret = c->file->ops->size(c->file, &c->file_size);
	if (ret)
		return qcow2_fail(c->err, ret, "%s: cannot find its size: %s", c->name, strerror(-ret));
	have = (size_t)min_u64(c->file_size, sizeof(first));
	ret = check_read(c, first, have, 0, "the header");
	if (ret)
		return ret;
	len = header_peek(first, have, path, c->err);
	if (!len)
		return -EINVAL;
	have = (size_t)min_u64(c->file_size, len);
	buf = malloc(len);
	if (!buf)
		return check_nomem(c);
	ret = check_read(c, buf, have, 0, "the header");
	if (!ret)
		ret = header_parse(&c->hdr, buf, have, c->file_size, path, c->err);
	free(buf);
	return ret ? ret : gate(c);
}

static int prepare(struct check *c)
{
	const struct geometry *g = &c->hdr.geo;
	uint64_t limit, rt_bytes = (uint64_t)c->hdr.rt_clusters << g->cluster_bits;

	c->nb_clusters = clusters_for(g, c->file_size);
	if (c->nb_clusters > MAX_CLUSTERS)
		return qcow2_fail(c->err, -EFBIG,
				  "%s: the file has %" PRIu64 " clusters, at most %llu can be checked",
				  c->name, c->nb_clusters, MAX_CLUSTERS);
	c->budget = COUNTER_BUDGET;
	c->rt_entries = (uint32_t)(rt_bytes / 8);
	c->rt = malloc(rt_bytes);
	c->chunk = malloc(CHECK_CHUNK);
	c->pieces = calloc(PIECES, sizeof(*c->pieces));
	if (!c->rt || !c->chunk || !c->pieces)
		return check_nomem(c);
	/* A compressed extent may touch one cluster past the end, an unaligned one another. */
	limit = c->nb_clusters + 2;
	c->beyond = UINT64_MAX;
	if (counters_init(&c->refs, limit, g->refcount_max, &c->budget) ||
	    counters_init(&c->meta, limit, UINT64_MAX, &c->budget) ||
	    counters_init(&c->l2, limit, UINT64_MAX, &c->budget) ||
	    counters_init(&c->l2_active, limit, UINT64_MAX, &c->budget) ||
	    counters_init(&c->over, limit, UINT64_MAX, &c->budget) ||
	    counters_init(&c->spared, limit, UINT64_MAX, &c->budget) ||
	    counters_init(&c->ahead, c->rt_entries, UINT64_MAX, &c->budget))
		return check_nomem(c);
	return check_read(c, c->rt, rt_bytes, c->hdr.rt_offset, "the refcount table");
}

static int check_all(struct check *c)
{
	int ret;

	c->res->clusters = clusters_for(&c->hdr.geo, c->hdr.geo.size);
	ret = check_load_snapshots(c);
	if (!ret)
		ret = check_count(c, 0, c->hdr.geo.cluster_size, 1, true, NULL); /* the header */
	if (!ret)
		ret = check_l1_tables(c);
	if (!ret)
		ret = check_metadata(c);
	if (!ret)
		compare(c);
	return ret ? ret : c->failed;
}

int check_run(struct check *c)
{
	int ret;

	memset(c->res, 0, sizeof(*c->res));
	ret = check_header(c);
	if (!ret)
		ret = prepare(c);
	return ret ? ret : check_all(c);
}

void check_end(struct check *c)
{
	counters_free(&c->moving);
	counters_free(&c->stuck);
	counters_free(&c->ahead);
	counters_free(&c->spared);
	counters_free(&c->over);
	counters_free(&c->l2_active);
	counters_free(&c->l2);
	counters_free(&c->meta);
	counters_free(&c->refs);
	free(c->pieces);
	free(c->chunk);
	free(c->rt);
	free(c->snapshots);
}

int qcow2_check(struct host_file *file, const struct check_callbacks *cb, struct check_result *res,
		struct qcow2_error *err)
{
	struct check c = { .file = file, .cb = cb, .res = res, .err = err };
	int ret = check_run(&c);

	check_end(&c);
	return ret;
}

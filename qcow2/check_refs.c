/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * check_refs.c - the references that L1 and L2 tables make.
 *
 * Two passes. First all L1 tables (the active one and those of the snapshots) are swept together:
 * each stretch of the file that some of them cover is read once, and an entry counts once for every
 * table that holds it. That gives, per L2 table, how many L1 entries point to it, and how many of
 * them are active. Then each L2 table is walked once and its entries count that often.
 * So snapshots that share L2 tables get the same counts as if each were walked alone, and an image
 * with four million L1 entries for one L2 table costs no more than one with one.
 *
 * Invariant: work is bounded by the size of the file; an L2 table that is not cluster aligned or not
 * inside the file is an error and is not walked.
 */
#include "check_impl.h"
#include <inttypes.h>
#include <stdlib.h>

/* ---- sweeping tables that may overlap ---- */

/* At @pos, @all more (or fewer) regions begin or end; @active of them are active. */
struct edge {
	uint64_t pos;
	int all, active;
};

static int edge_cmp(const void *a, const void *b)
{
	uint64_t x = ((const struct edge *)a)->pos, y = ((const struct edge *)b)->pos;

	return x < y ? -1 : x > y;
}

typedef int (*stretch_fn)(struct check *c, uint64_t off, uint64_t end, uint64_t n, uint64_t n_active,
			  void *arg);

/* Call @fn for each stretch covered by the same number of regions. The edges are sorted here. */
static int sweep(struct check *c, struct edge *edges, size_t nr, stretch_fn fn, void *arg)
{
	int64_t all = 0, active = 0;
	size_t i;
	int ret;

	qsort(edges, nr, sizeof(*edges), edge_cmp);
	for (i = 0; i + 1 < nr; i++) {
		all += edges[i].all;
		active += edges[i].active;
		if (!all || edges[i].pos == edges[i + 1].pos)
			continue;
		ret = fn(c, edges[i].pos, edges[i + 1].pos, (uint64_t)all, (uint64_t)active, arg);
		if (ret)
			return ret;
	}
	return 0;
}

static int count_stretch(struct check *c, uint64_t off, uint64_t end, uint64_t n, uint64_t n_active,
			 void *arg)
{
	return check_count(c, off, end - off, n, true, NULL);
}

struct visit {
	const char *what;
	entry_fn fn;
};

static int visit_stretch(struct check *c, uint64_t off, uint64_t end, uint64_t n, uint64_t n_active,
			 void *arg)
{
	const struct visit *v = arg;
	uint32_t len, i;
	uint64_t word;
	int ret;

	for (; off < end; off += len) {
		len = (uint32_t)min_u64(end - off, CHECK_CHUNK);
		ret = check_read(c, c->chunk, len, off, v->what);
		if (ret)
			return ret;
		for (i = 0; i < len / 8; i++) {
			word = table_get(c->chunk, i);
			ret = word ? v->fn(c, word, n, n_active) : 0;
			if (ret)
				return ret;
		}
	}
	return 0;
}

/* Edges of all regions; @whole: up to the end of their last cluster, which is theirs alone. */
static void make_edges(const struct check *c, struct edge *e, const struct region *r, uint32_t nr, bool whole)
{
	uint64_t end;
	uint32_t i;

	for (i = 0; i < nr; i++) {
		end = r[i].off + r[i].bytes;
		if (whole)
			end = cluster_up(&c->hdr.geo, end);
		*e++ = (struct edge){ r[i].off, 1, r[i].active };
		*e++ = (struct edge){ end, -1, -(int)r[i].active };
	}
}

int check_regions(struct check *c, const struct region *r, uint32_t nr, const char *what, entry_fn fn)
{
	struct visit v = { what, fn };
	struct edge *edges = calloc(2 * (size_t)nr + 1, sizeof(*edges));
	int ret;

	if (!edges)
		return check_nomem(c);
	make_edges(c, edges, r, nr, true);
	ret = sweep(c, edges, 2 * (size_t)nr, count_stretch, NULL);
	if (ret)
		goto free_edges;
	make_edges(c, edges, r, nr, false);
	ret = sweep(c, edges, 2 * (size_t)nr, visit_stretch, &v);

free_edges:
	free(edges);
	return ret;
}

/* ---- COPIED ---- */

/* COPIED must be set exactly where the stored refcount is one; an unknown refcount was reported. */
static void judge_copied(struct check *c, const char *what, uint64_t word, uint64_t host, bool copied,
			 uint64_t n)
{
	uint64_t refcount;

	if (!n || !check_stored(c, cluster_of(&c->hdr.geo, host), &refcount) || (refcount == 1) == copied)
		return;
	c->copied_missing += copied ? 0 : n;
	check_error(c, n, "%s entry 0x%016" PRIx64 ": COPIED is %s but the refcount is %" PRIu64, what, word,
		    copied ? "set" : "not set", refcount);
}

/* ---- L1 ---- */

static int l1_word(struct check *c, uint64_t word, uint64_t n, uint64_t n_active)
{
	const struct geometry *g = &c->hdr.geo;
	uint64_t l2, lost;
	bool copied, inside;
	int ret;

	l1_decode(g, word, &l2, &copied);
	if (word & QCOW2_L1_RESERVED)
		check_blind(c, n, "L1 entry 0x%016" PRIx64 ": reserved bits are set", word);
	if (!l2) {
		if (!(word & QCOW2_L1_RESERVED))
			check_blind(c, n, "L1 entry 0x%016" PRIx64 ": COPIED without an L2 table", word);
		return 0;
	}
	judge_copied(c, "L1", word, l2, copied, n_active);
	ret = check_count(c, l2, g->cluster_size, n, false, &inside);
	if (ret)
		return ret;
	if (!cluster_aligned(g, l2)) {
		check_blind(c, n, "L1 entry 0x%016" PRIx64 ": L2 table is not cluster aligned", word);
		return 0;
	}
	if (!inside)
		return 0;
	ret = counters_add(&c->l2, cluster_of(g, l2), n, &lost);
	if (!ret && n_active)
		ret = counters_add(&c->l2_active, cluster_of(g, l2), n_active, &lost);
	return ret ? check_nomem(c) : 0;
}

/* ---- L2 ---- */

static int compressed_word(struct check *c, uint64_t word, const struct l2_entry *e, uint64_t n,
			   uint64_t n_active)
{
	if (word & QCOW2_COPIED)
		check_blind(c, n, "L2 entry 0x%016" PRIx64 ": a compressed cluster with COPIED set", word);
	c->res->allocated += n_active;
	c->res->compressed += n_active;
	return check_count(c, e->host, e->clen, n, false, NULL);
}

static int standard_word(struct check *c, uint64_t word, const struct l2_entry *e, uint64_t n,
			 uint64_t n_active)
{
	const struct geometry *g = &c->hdr.geo;

	if (word & QCOW2_L2_RESERVED)
		check_blind(c, n, "L2 entry 0x%016" PRIx64 ": reserved bits are set", word);
	else if (word & QCOW2_L2_ZERO && g->version < 3)
		check_error(c, n, "L2 entry 0x%016" PRIx64 ": zero flag in a version 2 image", word);
	if (!e->host)
		return 0;
	if (!cluster_aligned(g, e->host))
		check_blind(c, n, "L2 entry 0x%016" PRIx64 ": cluster is not aligned", word);
	judge_copied(c, "L2", word, e->host, e->copied, n_active);
	c->res->allocated += n_active;
	return check_count(c, e->host, g->cluster_size, n, false, NULL);
}

static int l2_word(struct check *c, uint64_t word, uint64_t n, uint64_t n_active)
{
	/* An invalid entry is taken apart, too: what it names must still be counted. */
	struct l2_entry e = l2_decode(&c->hdr.geo, word);

	if (word & QCOW2_L2_COMPRESSED)
		return compressed_word(c, word, &e, n, n_active);
	return standard_word(c, word, &e, n, n_active);
}

/* Walk each L2 table once, in the order of the file. */
static int walk_l2_tables(struct check *c)
{
	struct visit v = { "L2 table", l2_word };
	uint32_t size = c->hdr.geo.cluster_size;
	uint64_t cl, off;
	int ret;

	for (cl = 0; counters_next(&c->l2, &cl, c->nb_clusters); cl++) {
		off = cl << c->hdr.geo.cluster_bits;
		ret = visit_stretch(c, off, off + size, counters_get(&c->l2, cl),
				    counters_get(&c->l2_active, cl), &v);
		if (ret)
			return ret;
		check_progress(c, cl, 2 * c->nb_clusters);
	}
	return 0;
}

int check_l1_tables(struct check *c)
{
	uint32_t n = c->hdr.nb_snapshots, nr = 0, i;
	struct region *r = calloc(n + (size_t)1, sizeof(*r));
	int ret;

	if (!r)
		return check_nomem(c);
	if (c->hdr.l1_entries)
		r[nr++] = (struct region){ c->hdr.l1_offset, c->hdr.l1_entries * 8ull, true };
	for (i = 0; i < n; i++)
		if (c->snapshots[i].l1_entries)
			r[nr++] = (struct region){ c->snapshots[i].l1_offset,
						   c->snapshots[i].l1_entries * 8ull, false };
	ret = check_regions(c, r, nr, "L1 table", l1_word);
	free(r);
	return ret ? ret : walk_l2_tables(c);
}

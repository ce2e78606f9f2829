// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * repair_tables.c - what is put right in L1 and L2 tables.
 *
 * Invariant: a table is written only if every reference to its clusters is one to that table: what also is
 * guest data is not touched. A COPIED flag in such a place keeps the refcount that goes with it.
 */
#include "repair_impl.h"

/* Go through a table that is ours alone; *n += words changed. */
static int fix_table(struct repair *r, uint64_t off, uint64_t bytes, const char *what, repair_word_fn fn,
		     bool arg, uint64_t *n)
{
	struct check *c = r->c;
	uint32_t len, i, first, end;
	uint64_t word;
	int ret;

	for (; bytes; off += len, bytes -= len) {
		len = (uint32_t)min_u64(bytes, CHECK_CHUNK);
		ret = check_read(c, c->chunk, len, off, what);
		if (ret)
			return ret;
		for (i = 0, first = UINT32_MAX, end = 0; i < len / 8; i++) {
			word = table_get(c->chunk, i);
			if (!word || !fn(r, &word, arg))
				continue;
			table_set(c->chunk, i, word);
			first = i < first ? i : first;
			end = i + 1;
			++*n;
		}
		if (end)
			ret = repair_write(r, (char *)c->chunk + 8ull * first, 8ull * (end - first),
					   off + 8ull * first, what);
		if (ret)
			return ret;
	}
	return 0;
}

bool repair_l2_alone(const struct check *c, uint64_t cl)
{
	return counters_get(&c->refs, cl) == counters_get(&c->l2, cl) && !counters_get(&c->meta, cl) &&
	       !counters_get(&c->over, cl);
}

/* Every reference to the active L1 table is one to a table: the flags in it are flags for all of them. */
static bool l1_alone(const struct check *c)
{
	const struct geometry *g = &c->hdr.geo;
	uint64_t cl = cluster_of(g, c->hdr.l1_offset), end = cl + clusters_for(g, c->hdr.l1_entries * 8ull);

	for (; cl < end; cl++)
		if (counters_get(&c->meta, cl) != 1 || counters_get(&c->over, cl) ||
		    counters_get(&c->refs, cl) != 1 + counters_get(&c->l2, cl))
			return false;
	return true;
}

int repair_l2_tables(struct repair *r, const struct counters *which, repair_table_fn may, repair_word_fn fn,
		     bool arg, uint64_t *n)
{
	struct check *c = r->c;
	uint64_t cl;
	int ret = 0;

	for (cl = 0; !ret && counters_next(which, &cl, c->nb_clusters); cl++) {
		r->table_refs = counters_get(&c->l2, cl);
		r->table_active = counters_get(&c->l2_active, cl);
		if (may(c, cl))
			ret = fix_table(r, cl << c->hdr.geo.cluster_bits, c->hdr.geo.cluster_size, "L2 table",
					fn, arg, n);
	}
	return ret;
}

/* ---- COPIED that cannot be changed ---- */

static bool l2_not_alone(const struct check *c, uint64_t cl)
{
	return !repair_l2_alone(c, cl);
}

static void stick(struct repair *r, uint64_t host)
{
	uint64_t cl = cluster_of(&r->c->hdr.geo, host), ignored;

	if (host && cl < r->c->nb_clusters && counters_add(&r->c->stuck, cl, 1, &ignored))
		r->c->failed = check_nomem(r->c);
}

static bool l1_stuck(struct repair *r, uint64_t *word, bool arg)
{
	uint64_t l2;
	bool copied;

	l1_decode(&r->c->hdr.geo, *word, &l2, &copied);
	if (copied)
		stick(r, l2);
	return false;
}

static bool l2_stuck(struct repair *r, uint64_t *word, bool arg)
{
	struct l2_entry e = l2_decode(&r->c->hdr.geo, *word);

	if (!(*word & QCOW2_L2_COMPRESSED) && e.copied)
		stick(r, e.host);
	return false;
}

int repair_find_stuck(struct repair *r)
{
	struct check *c = r->c;
	uint64_t none = 0;
	int ret = counters_init(&c->stuck, c->nb_clusters + 2, UINT64_MAX, &c->budget) ? check_nomem(c) : 0;

	if (!ret && c->hdr.l1_entries && !l1_alone(c))
		ret = fix_table(r, c->hdr.l1_offset, c->hdr.l1_entries * 8ull, "L1 table", l1_stuck, false,
				&none);
	if (!ret)
		ret = repair_l2_tables(r, &c->l2_active, l2_not_alone, l2_stuck, false, &none);
	return ret ? ret : c->failed;
}

/* ---- COPIED ---- */

/* COPIED of a reference to @host is to be changed to @set. */
static bool copied_differs(struct repair *r, uint64_t host, bool copied, bool set)
{
	struct check *c = r->c;
	uint64_t cl = cluster_of(&c->hdr.geo, host);

	if (!host || copied == set || cl >= c->nb_clusters)
		return false;
	/* A refcount that cannot count all of them is none that allows to write in place. */
	return (repair_target(r, cl) == 1 && !counters_get(&c->over, cl)) == set;
}

static bool l1_copied(struct repair *r, uint64_t *word, bool set)
{
	uint64_t l2;
	bool copied;

	l1_decode(&r->c->hdr.geo, *word, &l2, &copied);
	if (!copied_differs(r, l2, copied, set))
		return false;
	*word ^= QCOW2_COPIED;
	return true;
}

static bool l2_copied(struct repair *r, uint64_t *word, bool set)
{
	struct l2_entry e = l2_decode(&r->c->hdr.geo, *word);

	if (*word & QCOW2_L2_COMPRESSED || !copied_differs(r, e.host, e.copied, set))
		return false;
	*word ^= QCOW2_COPIED;
	return true;
}

int repair_copied(struct repair *r, bool set)
{
	struct check *c = r->c;
	uint64_t n = 0;
	int ret = 0;

	if (c->hdr.l1_entries && l1_alone(c))
		ret = fix_table(r, c->hdr.l1_offset, c->hdr.l1_entries * 8ull, "L1 table", l1_copied, set,
				&n);
	if (!ret)
		ret = repair_l2_tables(r, &c->l2_active, repair_l2_alone, l2_copied, set, &n);
	r->res->copied += n;
	r->fixes += n;
	return ret ? ret : c->failed;
}

/* ---- zero clusters ---- */

static bool unaligned_zero(struct repair *r, uint64_t *word, bool arg)
{
	const struct geometry *g = &r->c->hdr.geo;
	struct l2_entry e = l2_decode(g, *word);

	if (*word & (QCOW2_L2_COMPRESSED | QCOW2_L2_RESERVED) || !(*word & QCOW2_L2_ZERO) ||
	    cluster_aligned(g, e.host))
		return false;
	*word = l2_encode(EXT_ZERO, 0);
	return true;
}

int repair_zeroes(struct repair *r)
{
	uint64_t n = 0;
	int ret;

	if (r->c->hdr.geo.version < 3)
		return 0;
	ret = repair_l2_tables(r, &r->c->l2, repair_l2_alone, unaligned_zero, false, &n);
	r->res->zeroed += n;
	r->fixes += n;
	return ret;
}

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * repair_move.c - guest data that shares its cluster with metadata gets a copy of its own.
 *
 * An L2 entry that names a table would let the guest write over it. What the guest reads there now stays what
 * it reads: the cluster is copied behind the end of the file, the new refcounts count the copy, and when both
 * are durable the entry changes. A crash before that leaves copies that are leaked, no more.
 *
 * Only clusters are taken whose every use is known: one table, else plain data entries in L2 tables that are
 * no such clusters themselves. In the round of the move their refcount does not change: the entries still say
 * COPIED.
 */
#include "repair_impl.h"
#include <stdlib.h>

#define MAX_MOVES 1024u /* in one round */
#define MAX_MOVE_BYTES (64ull << 20)

/* References to a cluster that holds exactly one thing of metadata, by something else; 0: nothing to do. */
static uint64_t foreign_refs(const struct check *c, uint64_t cl)
{
	uint64_t refs = counters_get(&c->refs, cl), meta = counters_get(&c->meta, cl),
		 l2 = counters_get(&c->l2, cl);

	if (meta + !!l2 != 1 || counters_get(&c->over, cl))
		return 0;
	return refs - (meta ? meta : l2);
}

bool repair_moving(const struct check *c, uint64_t cl)
{
	uint64_t refs = counters_get(&c->moving, cl);

	return refs && refs == foreign_refs(c, cl);
}

/* The host cluster of a plain data entry (zero or not) that might be moved. */
static bool data_cluster(struct repair *r, uint64_t word, uint64_t *cl)
{
	struct l2_entry e = l2_decode(&r->c->hdr.geo, word);

	*cl = cluster_of(&r->c->hdr.geo, e.host);
	return (e.kind == EXT_DATA || e.kind == EXT_ZERO_ALLOC) && *cl < r->c->nb_clusters &&
	       r->table_refs <= r->c->hdr.geo.refcount_max;
}

static bool count_foreign(struct repair *r, uint64_t *word, bool arg)
{
	uint64_t cl, ignored;

	if (data_cluster(r, *word, &cl) && foreign_refs(r->c, cl) &&
	    counters_add(&r->c->moving, cl, r->table_refs, &ignored))
		r->c->failed = check_nomem(r->c);
	return false;
}

static bool plan_move(struct repair *r, uint64_t *word, bool arg)
{
	struct moves *m = &r->moves;
	uint64_t cl;

	if (!data_cluster(r, *word, &cl) || !repair_moving(r->c, cl) || *word & QCOW2_L2_ZERO)
		return false;
	if (m->nr < MAX_MOVES)
		m->list[m->nr] = (struct move){ cl, r->table_refs };
	m->nr++;
	return false;
}

/* Call @fn for the entries of all tables that may be written; it changes none. */
static int scan(struct repair *r, repair_word_fn fn)
{
	uint64_t none = 0;
	int ret = repair_l2_tables(r, &r->c->l2, repair_l2_alone, fn, false, &none);

	return ret ? ret : r->c->failed;
}

int repair_plan_moves(struct repair *r)
{
	struct check *c = r->c;
	uint64_t cl, found = 0;
	int ret;

	r->moves = (struct moves){ 0 };
	if (!c->overlaps || r->no_moves)
		return 0;
	r->moves.list = calloc(MAX_MOVES, sizeof(*r->moves.list));
	if (!r->moves.list || counters_init(&c->moving, c->nb_clusters + 2, UINT64_MAX, &c->budget))
		return check_nomem(c);
	ret = scan(r, count_foreign);
	for (cl = 0; !ret && counters_next(&c->moving, &cl, c->nb_clusters); cl++)
		found += repair_moving(c, cl);
	if (!ret && found)
		ret = scan(r, plan_move);
	r->moves.any = found;
	if (r->moves.nr <= MAX_MOVES && r->moves.nr <= MAX_MOVE_BYTES >> c->hdr.geo.cluster_bits)
		return ret;
	r->moves.any = false;
	r->moves.nr = 0;
	return ret ? ret : repair_leave(r, "too many data clusters lie upon metadata");
}

int repair_copy_data(struct repair *r, uint64_t to)
{
	const struct geometry *g = &r->c->hdr.geo;
	struct moves *m = &r->moves;
	void *buf = malloc(g->cluster_size);
	uint64_t i;
	int ret = buf ? 0 : check_nomem(r->c);

	m->to = to;
	for (i = 0; !ret && i < m->nr; i++) {
		ret = check_read(r->c, buf, g->cluster_size, m->list[i].from << g->cluster_bits, "data");
		if (!ret)
			ret = repair_write(r, buf, g->cluster_size, (to + i) << g->cluster_bits, "data");
	}
	free(buf);
	return ret;
}

static bool move_entry(struct repair *r, uint64_t *word, bool arg)
{
	uint64_t cl, to;

	if (!data_cluster(r, *word, &cl) || !repair_moving(r->c, cl))
		return false;
	if (*word & QCOW2_L2_ZERO) {
		*word = l2_encode(EXT_ZERO, 0);
		return true;
	}
	to = (r->moves.to + r->moves.next++) << r->c->hdr.geo.cluster_bits;
	*word = l2_encode(EXT_DATA, to);
	if (r->table_refs != 1)
		*word &= ~QCOW2_COPIED;
	return true;
}

int repair_move_entries(struct repair *r)
{
	uint64_t n = 0;
	int ret = repair_l2_tables(r, &r->c->l2, repair_l2_alone, move_entry, false, &n);

	r->res->moved += n;
	r->fixes += n;
	return ret;
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * repair_impl.h - what the files of the repair share: repair.c (rounds, order, header),
 * repair_refcounts.c (refcounts, refcount structures), repair_tables.c (L1 and L2 entries), repair_move.c
 * (data away from metadata).
 */
#ifndef QCOW2_REPAIR_IMPL_H
#define QCOW2_REPAIR_IMPL_H

#include "check_impl.h"
#include "repair.h"

/* Data entries that name metadata, each to get a copy of its own, in the order of the tables. */
struct moves {
	struct move {
		uint64_t from; /* host cluster */
		uint64_t refs; /* references to the L2 table with the entry */
	} *list;
	uint64_t nr; /* zero clusters need no copy and are not in the list */
	bool any; /* there are entries to change */
	uint64_t next; /* while the entries are changed: the next one's, */
	uint64_t to; /* and the host cluster of the first copy */
};

struct repair {
	struct host_file *file;
	struct qcow2_repair_result *res;
	struct qcow2_error *err;
	struct check *c; /* what is true now */
	bool keep; /* something may hide references: no refcount goes down */
	bool autoclear_done;
	bool unsynced; /* written since the last fsync */
	uint64_t fixes; /* of this round */
	struct moves moves; /* of this round */
	bool no_moves; /* there is no room for them */
	/* the L2 table at hand */
	uint64_t table_refs;
	bool table_active;
};

/* Buffered; with a message on failure. 0 or -errno. */
int repair_write(struct repair *r, const void *buf, uint64_t len, uint64_t off, const char *what);
int repair_sync(struct repair *r);
int repair_set_reftable(struct repair *r, uint64_t off, uint32_t clusters);
/* Remember why something is left; returns 0. */
int __attribute__((format(printf, 2, 3))) repair_leave(struct repair *r, const char *fmt, ...);

/* The refcount that @cluster shall have. Constant through a round. */
uint64_t repair_target(struct repair *r, uint64_t cluster);
/* Raise (else lower) refcounts in place where the target says so. */
int repair_refcounts(struct repair *r, bool raise);
/* Write new refcount structures behind everything else, and before them room for the moves, and have the
 * header name them. *done is false if that is impossible, .left says why. */
int repair_rebuild(struct repair *r, bool *done);

/* A word that has to change: true, and *word is the new one. */
typedef bool (*repair_word_fn)(struct repair *r, uint64_t *word, bool arg);
/* May the L2 table be written? */
typedef bool (*repair_table_fn)(const struct check *c, uint64_t cluster);
/* Go through the L2 tables that @which counts and @may allows; *n += words changed. */
int repair_l2_tables(struct repair *r, const struct counters *which, repair_table_fn may, repair_word_fn fn,
		     bool arg, uint64_t *n);
/* Every reference to the cluster is one by an L1 entry. */
bool repair_l2_alone(const struct check *c, uint64_t cluster);

/* Find the clusters whose refcount must not go beyond one because of an entry that cannot be changed. */
int repair_find_stuck(struct repair *r);
/* Set (else clear) COPIED in the active tables where the target says so. */
int repair_copied(struct repair *r, bool set);
/* Zero clusters that name an unaligned host cluster drop it. */
int repair_zeroes(struct repair *r);

/* Fill r->moves. */
int repair_plan_moves(struct repair *r);
/* A data entry of the plan names the cluster, and all that share it with metadata are in the plan. */
bool repair_moving(const struct check *c, uint64_t cluster);
/* Copy the data to where the entries will point (not synced); then, that being durable, change the entries.
 */
int repair_copy_data(struct repair *r, uint64_t to);
int repair_move_entries(struct repair *r);

#endif

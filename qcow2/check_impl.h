/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * check_impl.h - what the three files of the checker share: check.c (set-up, stored refcounts, the
 * comparison), check_refs.c (L1 and L2 tables), check_meta.c (snapshot table, refcount table, LUKS
 * header, bitmaps). repair.c works on what they found.
 */
#ifndef QCOW2_CHECK_IMPL_H
#define QCOW2_CHECK_IMPL_H

#include "check.h"
#include "counters.h"
#include "entry.h"
#include "header.h"

#define CHECK_CHUNK 65536u /* bytes of a table read at a time */

struct refcount_piece; /* a cached part of a refcount block */

struct check {
	struct host_file *file;
	const struct check_callbacks *cb;
	struct check_result *res;
	struct qcow2_error *err;
	char name[256]; /* of the file, escaped */

	struct qcow2_header hdr;
	uint64_t file_size;
	uint64_t nb_clusters; /* of the file; one more once the last compressed cluster passes the end */
	struct snapshot_info *snapshots; /* hdr.nb_snapshots; NULL = none */
	uint64_t snapshots_bytes;
	void *rt; /* the refcount table, raw */
	uint32_t rt_entries;

	uint64_t budget; /* bytes left for the counters */
	struct counters refs; /* references, saturating as a stored refcount would */
	struct counters
		meta; /* of these: tables and blocks that belong to one owner; L2 tables may be shared */
	struct counters l2; /* of these: by L1 entries, to L2 tables that can be walked */
	struct counters l2_active; /* of these: from the active L1 table */

	struct refcount_piece *pieces;
	void *chunk; /* CHECK_CHUNK bytes, for the one table that is being read */
	uint64_t findings[2]; /* reported so far: leaks, errors */

	/* for repair.c */
	bool spare_refcounts; /* in: refcount table and blocks are no references, they are in .spared */
	struct counters spared;
	struct counters over; /* references that .refs cannot hold */
	struct counters ahead; /* by refcount table entry: references beyond the end of the file */
	struct counters stuck, moving; /* repair_tables.c, repair_move.c */
	uint64_t blind; /* of the errors: may hide references */
	uint64_t overlaps; /* clusters with metadata and something else */
	uint64_t copied_missing; /* of the errors: COPIED is not set where the refcount is one */
	uint64_t beyond; /* lowest host offset of what is referenced beyond the end of the file */
	bool refcounts_bad; /* the refcount table or a block is misplaced, shared or missing */

	int failed; /* -errno: a refcount block could not be read */
};

/* Count @n errors (leaks) and report them as one finding. */
void check_error(struct check *c, uint64_t n, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* An error that may hide references: what is not referenced may still be needed. */
void check_blind(struct check *c, uint64_t n, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void check_leak(struct check *c, uint64_t n, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void check_progress(struct check *c, uint64_t done, uint64_t total);
int check_nomem(struct check *c);

/* The whole check. .file, .res, .err and perhaps .cb are set, the rest is zero; check_end() in any case. */
int check_run(struct check *c);
/* Its first step: .name, .file_size and .hdr. */
int check_header(struct check *c);
void check_end(struct check *c);

/* Read, with a message on failure. 0 or -errno. */
int check_read(struct check *c, void *buf, uint64_t len, uint64_t off, const char *what);

/*
 * Count @n references (@meta: by their only legal owner) to every cluster that [off, off + len) touches. A
 * range that passes the end of the file by a cluster or more is an error and counts nothing: *inside = false
 * (may be NULL). 0 or -ENOMEM.
 */
int check_count(struct check *c, uint64_t off, uint64_t len, uint64_t n, bool meta, bool *inside);

/* The stored refcount of a cluster. False: nobody can know, its refcount block is misplaced. */
bool check_stored(struct check *c, uint64_t cluster, uint64_t *refcount);

/*
 * The stored refcounts that lie together in the file, a piece of block_size bytes at most: *piece (NULL: all
 * zero; valid until the next call) and where it lies, *index of the refcount of @cluster in it.
 * False: misplaced.
 */
bool check_piece(struct check *c, uint64_t cluster, void **piece, uint64_t *off, uint32_t *index);
/* Refcounts in a piece; the first one is that of a multiple of this number. */
uint64_t check_per_piece(const struct check *c);
bool check_all_zero(const void *piece, uint32_t bytes);

/*
 * Tables that may overlap each other in a hostile image: [off, off + bytes), 8-byte entries. Every
 * entry is visited once, with the number of tables that hold it, so that the work is bounded by the
 * size of the file whatever the tables claim.
 */
struct region {
	uint64_t off, bytes;
	bool active; /* the active L1 table */
};
typedef int (*entry_fn)(struct check *c, uint64_t word, uint64_t n, uint64_t n_active);
/* Count the clusters of all regions as metadata, then call @fn for each entry that is not zero. */
int check_regions(struct check *c, const struct region *r, uint32_t nr, const char *what, entry_fn fn);

int check_l1_tables(struct check *c); /* active and snapshots, with all L2 tables below them */
int check_load_snapshots(struct check *c);
int check_metadata(struct check *c); /* everything that is no L1 or L2 table; last the refcount blocks */

#endif

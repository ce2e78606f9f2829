/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * image.h - an open image as the library's own files see it. Each part below belongs to the file
 * named beside it; the others use only that file's functions.
 */
#ifndef QCOW2_IMAGE_H
#define QCOW2_IMAGE_H

#include "entry.h"
#include "header.h"
#include "op.h"
#include "qcow2.h"

enum image_mode { MODE_RW, MODE_RO, MODE_FAILED };

/* One file of the backing chain, number 0 being the image itself. */
struct chain_link {
	struct host_file *file;
	struct qcow2_image *img; /* NULL: raw */
	uint64_t size; /* guest bytes it provides, rounded up to 512 for raw */
};

struct qcow2_image {
	struct qcow2_header hdr; /* image.c; refcount.c moves rt_offset and rt_clusters */
	struct geometry geo; /* constant */
	struct host_file *file;
	uint64_t file_end; /* size at open, rounded up to a cluster */
	struct runq rq; /* op.c; of the top image: serves the whole chain */
	struct runq *run; /* the top image's rq */
	enum image_mode mode; /* image.c only */
	struct op mode_op; /* image.c: waits for the drain when the mode drops; part of the image, so it cannot fail */
	bool lost; /* an fsync failed: no FLUSH may succeed any more */
	enum qcow2_discard discard;

	struct cache *cache; /* cache.c */
	struct metamap *meta; /* metamap.c; NULL when read-only */
	struct alloc *alloc; /* alloc.c; NULL when read-only */
	struct refcounts *refs; /* refcount.c; NULL when read-only */
	struct commit *commit; /* commit.c; NULL when read-only */
	struct decompressor *decomp; /* compress.c; made on first use */
	struct ranges *ranges; /* range.c */
	struct journal *journal; /* journal.c; NULL: none */
	struct overlay *overlay; /* journal_replay.c: tables are read through it; NULL: none */
	struct map *map; /* map.c: creation of L2 tables */

	struct chain_link *chain; /* backing.c; top image only */
	unsigned chain_len;
	struct qcow2_table_ops table; /* publish.c */

	TAILQ_HEAD(, request) requests; /* request.c: guest requests in flight */
	struct qcow2_stats stats;
};

/* image.c */
/* Lower the mode, never raise it; withdraws the words that the new mode does not allow. */
void image_set_mode(struct qcow2_image *img, enum image_mode mode);
/* Something found no memory, and will be tried again: what is cached gives way. */
void image_make_room(struct qcow2_image *img);
/* The image contradicts itself: mode ro, corrupt bit set if possible. Returns -EUCLEAN. */
int image_corrupt(struct qcow2_image *img);
/* Open one qcow2 file without its backing chain (backing.c adds that). Owns @file. */
int image_open_one(struct qcow2_image **out, struct host_file *file, const struct qcow2_options *opt,
		   struct runq *run, struct qcow2_error *err);
/* Free one image: memory and file, nothing is written. */
void image_free_one(struct qcow2_image *img);

/* backing.c */
int chain_open(struct qcow2_image *img, const struct qcow2_options *opt, struct qcow2_error *err);
void chain_close(struct qcow2_image *img);
/* True if unallocated clusters at @guest or after may hold something else than zeroes. */
bool chain_has_backing(const struct qcow2_image *img, uint64_t guest);

/* What answers a guest range, after walking the chain. */
struct chain_extent {
	enum extent_kind kind; /* EXT_DATA, EXT_ZERO or EXT_COMPRESSED */
	unsigned depth; /* chain index that answered */
	bool absent; /* zeroes because no file from there on has anything to say */
	uint64_t host; /* byte of file @depth for the first byte of the range */
	uint64_t len;
	uint32_t clen;
	bool copied; /* depth 0: may be written in place */
};
/* 0, -EWOULDBLOCK (waiter, if not NULL, waits for a block) or -EUCLEAN/-EIO. len > 0, inside the image. */
int chain_lookup(struct qcow2_image *img, uint64_t guest, uint64_t len, struct chain_extent *e, struct op *waiter);

#endif

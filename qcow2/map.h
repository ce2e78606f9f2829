/* SPDX-License-Identifier: GPL-2.0-or-later */
/* map.h - guest clusters to host clusters: lookup and change of one image's L1/L2 tables. */
#ifndef QCOW2_MAP_H
#define QCOW2_MAP_H

#include "image.h"

struct extent {
	enum extent_kind kind;
	bool copied; /* ours alone: may be written in place (DATA, ZERO_ALLOC) */
	uint64_t host; /* byte for the first guest byte asked for; COMPRESSED: start of the compressed bytes */
	uint64_t len; /* guest bytes, <= asked; COMPRESSED: to the end of its cluster at most */
	uint32_t clen;
};

/*
 * What [guest, guest + len) is, len cut at the first change. 0, -EWOULDBLOCK, -EUCLEAN (an entry that is invalid,
 * points past the end of the file, or, when writable, at metadata), or a read error.
 */
int map_lookup(struct qcow2_image *img, uint64_t guest, uint64_t len, struct extent *e, struct op *waiter);
/* The L2 table of @guest exists and is ours alone: 0, or -EWOULDBLOCK while it is made (an empty one, or a
 * copy of a shared one; waiter gets the error). */
int map_prepare(struct qcow2_image *img, uint64_t guest, struct op *waiter);
/*
 * Set the entries of n clusters from @guest (within one L2 cache block, as map_lookup() never crosses one;
 * map_prepare() gave 0). @host advances by a cluster each for DATA and ZERO_ALLOC. References that the old
 * entries held are dropped (commit_lower), except host clusters that the new entry keeps. 0, -EWOULDBLOCK or
 * an error; nothing is changed unless 0.
 */
int map_set(struct qcow2_image *img, uint64_t guest, uint64_t n, enum extent_kind kind, uint64_t host,
	    struct op *waiter);

int map_new(struct qcow2_image *img);
void map_free(struct qcow2_image *img);

#endif

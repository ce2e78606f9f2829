/* SPDX-License-Identifier: GPL-2.0-or-later */
/* alloc.h - which host clusters are free, and where the file ends. */
#ifndef QCOW2_ALLOC_H
#define QCOW2_ALLOC_H

#include "image.h"

int alloc_new(struct qcow2_image *img, uint64_t file_size);
void alloc_free(struct qcow2_image *img);

struct cluster_run {
	uint64_t first; /* host cluster */
	uint64_t n;
	bool fresh; /* never used since the file had this size: reads as zeroes */
};
/*
 * Take up to @want contiguous free clusters: refcount 1 in the open generation, not in the metamap. 0 with
 * run->n >= 1; -EWOULDBLOCK; -EUCLEAN (a cluster that holds metadata has refcount 0: nothing is handed out);
 * -EFBIG; I/O errors. Clusters that end up unused go back by commit_lower().
 */
int alloc_clusters(struct qcow2_image *img, uint64_t want, struct cluster_run *run, struct op *waiter);
/* The cluster is free again. */
void alloc_freed(struct qcow2_image *img, uint64_t cluster);
/* Host clusters from here on were never used and lie past the end of the file (bytes, cluster aligned). */
uint64_t alloc_end(const struct qcow2_image *img);
/* Clusters [first, first + n) are used from now on, without refcounts (refcount.c places its own blocks). */
void alloc_claim(struct qcow2_image *img, uint64_t first, uint64_t n);

#endif

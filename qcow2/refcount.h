/* SPDX-License-Identifier: GPL-2.0-or-later */
/* refcount.h - refcounts of host clusters in the cache; creation of refcount blocks, growth of the table. */
#ifndef QCOW2_REFCOUNT_H
#define QCOW2_REFCOUNT_H

#include "image.h"

/*
 * The refcount of @cluster. 0 with *count (0 too where no refcount block exists), -EWOULDBLOCK,
 * -EUCLEAN (the table or the block's place is corrupt) or a read error.
 */
int refcount_get(struct qcow2_image *img, uint64_t cluster, uint64_t *count, struct op *waiter);
/* The same if its block exists and is cached, else -ENOENT or -EWOULDBLOCK; starts nothing. */
int refcount_peek(struct qcow2_image *img, uint64_t cluster, uint64_t *count);
/* *found = the first cluster >= from whose refcount is 0 (maybe past what the table covers). Same errors. */
int refcount_next_zero(struct qcow2_image *img, uint64_t from, uint64_t *found, struct op *waiter);
/* Set it in the open generation. The block must be cached (just after refcount_get() gave 0 and a block
 * exists), else -EWOULDBLOCK. */
int refcount_set(struct qcow2_image *img, uint64_t cluster, uint64_t count);
/*
 * Make sure that a refcount block exists for @cluster: 0, or -EWOULDBLOCK (it is being made; waiter is woken,
 * with the error if that fails: -ENOSPC, -EFBIG when the table would exceed 8 MiB, ...).
 */
int refcount_ensure(struct qcow2_image *img, uint64_t cluster, struct op *waiter);
/* Clusters that the refcount table can cover as it is. */
uint64_t refcount_covered(const struct qcow2_image *img);

int refcount_new(struct qcow2_image *img);
void refcount_free(struct qcow2_image *img);

#endif

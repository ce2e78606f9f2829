/* SPDX-License-Identifier: GPL-2.0-or-later */
/* commit.h - all metadata ordering; see commit.c for the invariants. */
#ifndef QCOW2_COMMIT_H
#define QCOW2_COMMIT_H

#include "cache.h"
#include "image.h"
#include "metamap.h"

/* @header: the first block of the file. */
int commit_new(struct qcow2_image *img, const void *header);
void commit_free(struct qcow2_image *img);

/* Close the open generation and write it out as soon as the one before is done. */
void commit_start(struct qcow2_image *img);
/* Wait until everything changed or written so far is durable: one pending thing of @op, with the error. */
void commit_wait(struct qcow2_image *img, struct op *op);
/* Something is left to commit: dirty blocks, or freed clusters on their way. */
bool commit_dirty(const struct qcow2_image *img);
/* A commit is running. */
bool commit_running(const struct qcow2_image *img);
/* @op is the commit itself. */
bool commit_owns(const struct qcow2_image *img, const struct op *op);
/* Clusters waiting to be freed exceed the bound: the caller should commit_wait() before freeing more. */
bool commit_lower_full(const struct qcow2_image *img);

/*
 * Drop one reference of each host cluster in [first, first + n) once the removal of the reference that
 * the open generation contains is durable. Never fails: out of memory leaks the clusters (allowed after any
 * crash too; check --repair=leaks finds them).
 */
void commit_lower(struct qcow2_image *img, uint64_t first, uint64_t n);
/* The same for what the journal of a killed process says: it is recorded already. */
void commit_restore_lower(struct qcow2_image *img, uint64_t first, uint64_t n);
/* References that are dropped, their refcounts not lowered yet. */
bool commit_lower_pending(const struct qcow2_image *img);
/* The last commit found no memory for all that it had to do. */
bool commit_scarce(const struct qcow2_image *img);
/* If @closing: from now on those whose refcounts cannot be read stay leaked. Else every commit tries them again, though
 * commit_dirty() does not count them. */
void commit_closing(struct qcow2_image *img, bool closing);
void commit_each_lower(struct qcow2_image *img, void (*fn)(void *ctx, uint64_t first, uint64_t n), void *ctx);
/* The open generation's L1 entry makes this L2 table (host offset) reachable. 0 or -ENOMEM. */
int commit_new_l2(struct qcow2_image *img, uint64_t l2);

/* Write a whole new table (len bytes, cluster multiple) where nothing refers to it yet; @op waits. -EUCLEAN if
 * it would overlap other metadata. Its clusters are in the metamap already, as @type. */
int commit_format(struct qcow2_image *img, struct op *op, uint64_t off, const void *data, uint64_t len,
		  enum meta_type type);

/* The first write may go ahead: 0, or -EWOULDBLOCK (waiter waits until the autoclear bits are durably cleared). */
int commit_first_write(struct qcow2_image *img, struct op *waiter);
bool commit_first_write_done(const struct qcow2_image *img);
/* The refcount table now lies elsewhere: header change of the open generation. */
void commit_move_reftable(struct qcow2_image *img, uint64_t off, uint32_t clusters);
/* Set the corrupt bit, best effort, asynchronously. */
void commit_mark_corrupt(struct qcow2_image *img);

#endif

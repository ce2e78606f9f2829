/* SPDX-License-Identifier: GPL-2.0-or-later */
/* cache.h - metadata blocks (geometry.block_size bytes each) by host offset. */
#ifndef QCOW2_CACHE_H
#define QCOW2_CACHE_H

#include "image.h"

enum block_type { BLK_HEADER, BLK_L1, BLK_L2, BLK_RT, BLK_RB };

struct block {
	uint64_t off; /* host bytes */
	void *data;
	enum block_type type;
	bool valid, loading;
	bool dirty; /* changed in the open generation */
	bool doomed; /* dropped while pinned: freed by the last unpin, never written again */
	unsigned pins;
	struct waitq waiters;
	struct host_io io;
	struct cache *cache;
	TAILQ_ENTRY(block) lru;
	TAILQ_ENTRY(block) dirty_link; /* the open generation's list */
	struct block *hash_next;
};

int cache_new(struct qcow2_image *img, uint64_t bytes);
void cache_free(struct qcow2_image *img);
/*
 * The block at @off (a multiple of the block size). 0: *out is valid until the caller returns to the
 * run queue (or unpins it). -EWOULDBLOCK: being loaded or no room; waiter (may be NULL: then nothing is
 * started) is woken, with the error in op->err if the load fails. -EUCLEAN: it is cached as another type.
 */
int cache_get(struct qcow2_image *img, enum block_type type, uint64_t off, struct block **out, struct op *waiter);
/* The same for the block that holds word @index of a table of 8-byte words at @table (L1, L2, refcount table); *in:
 * the word's index in the block. */
int cache_get_word(struct qcow2_image *img, enum block_type type, uint64_t table, uint64_t index, struct block **out,
		   uint32_t *in, struct op *waiter);
/* Put a block in whose content (block size bytes) is known; NULL: out of memory. Not there yet. */
struct block *cache_insert(struct qcow2_image *img, enum block_type type, uint64_t off, const void *data);
/* A buffer for a copy of a block, the caller's; clean blocks go for it. NULL: out of memory. */
void *cache_buffer(struct qcow2_image *img);
/* Memory is short for something else: some clean blocks go. */
void cache_give(struct qcow2_image *img);
void block_pin(struct block *b);
void block_unpin(struct block *b);
/* Mark as changed in the open generation (again: after a failed commit). */
void block_dirty(struct qcow2_image *img, struct block *b);
/* Change 8 bytes (as they lie in the file) at @at in the block, in the open generation: the only way a cached block
 * changes, as the journal must know. */
void block_store64(struct qcow2_image *img, struct block *b, uint32_t at, uint64_t raw);
/* Forget every block of the range, dirty or not: its clusters are no longer metadata. */
void cache_drop(struct qcow2_image *img, uint64_t off, uint64_t len);
/* The dirty list handed to a commit: calls fn for each block and clears its dirty flag. */
void cache_take_dirty(struct qcow2_image *img, void (*fn)(void *ctx, struct block *b), void *ctx);
unsigned cache_dirty_count(const struct qcow2_image *img);
/* More than this should trigger a commit; writers wait at twice that. */
unsigned cache_dirty_limit(const struct qcow2_image *img);
/* Room was made (a commit ended): wake those that found every block in use. */
void cache_wake(struct qcow2_image *img, int err);

#endif

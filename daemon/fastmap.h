/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fastmap.h - the mapping table of DESIGN section 3 and its coherence protocol (section 4).
 *
 * Writers (publish, withdraw) run on the metadata thread only; readers (queue threads, later the
 * BPF program) hold their slice's range counter from before the lookup until their I/O completed.
 */
#ifndef DAEMON_FASTMAP_H
#define DAEMON_FASTMAP_H

#include "qcow2/qcow2.h"
#include <stdbool.h>
#include <stdint.h>

#define FASTMAP_SLICE_CLUSTERS 512u /* guest clusters per slice */
#define FASTMAP_BUCKETS 1024u /* range counters */
#define FASTMAP_MAX_FILES 64u /* files of the chain a word can name */

/*
 * A word: what one guest cluster is. 0 = unknown (a miss).
 * bits 0-1 kind (1 data, 2 zero), bit 2 writable, bits 3-8 file index, bits 9-55 host offset / 512.
 */
#define FASTMAP_KIND 3ull
#define FASTMAP_DATA 1ull
#define FASTMAP_ZERO 2ull
#define FASTMAP_WRITABLE 4ull
#define FASTMAP_FILE_SHIFT 3
#define FASTMAP_FILE (63ull << FASTMAP_FILE_SHIFT)
#define FASTMAP_HOST 0x00fffffffffffe00ull

/* One slot as it lies in the table (shared with BPF later). */
struct fastmap_slot {
	uint64_t slice_plus_1; /* 0 = none */
	uint64_t referenced; /* set by readers, cleared by the eviction clock */
	uint64_t reserved[6];
	uint64_t word[FASTMAP_SLICE_CLUSTERS];
};

struct fastmap;

/* readers: number of queue threads. cache_bytes: table size. cluster_bits 0: told later, by the function
 * below, as the hooks go into qcow2_open() and the cluster size comes out of it; nothing is published before
 * that. */
int fastmap_new(struct fastmap **out, unsigned cluster_bits, uint64_t cache_bytes, unsigned readers);
void fastmap_set_cluster_bits(struct fastmap *f, unsigned cluster_bits);
/* No drain may be waited for any more. */
void fastmap_free(struct fastmap *f);
/* The hooks for qcow2_open(). */
void fastmap_table_ops(struct fastmap *f, struct qcow2_table_ops *ops);

/* A reader's hold on a slice; returned by fastmap_enter(), given to fastmap_leave(). */
struct fastmap_hold {
	uint16_t bucket;
	uint8_t phase;
};

/* One extent of a lookup. */
struct fastmap_extent {
	uint64_t host; /* byte offset in file; undefined for zero */
	uint32_t len;
	uint8_t file;
	bool zero;
};

/*
 * Reader side, thread @reader only, lock free, never blocks. enter: take the counter of the slice that
 * holds @guest. lookup: translate [guest, guest + len), which must lie within one slice, into at most max
 * extents (adjacent ones merged); returns their number, or 0 = miss (an unknown word, a write to a word that
 * is not writable, more than max extents, a slot that is being reused). leave: the I/O completed.
 */
struct fastmap_hold fastmap_enter(struct fastmap *f, unsigned reader, uint64_t guest);
unsigned fastmap_lookup(struct fastmap *f, uint64_t guest, uint32_t len, bool write,
			struct fastmap_extent *ext, unsigned max);
void fastmap_leave(struct fastmap *f, unsigned reader, struct fastmap_hold hold);

/* Called by leave() when a drain may have finished; wakes the metadata thread (any thread). */
void fastmap_set_wake(struct fastmap *f, void (*wake)(void *ctx), void *ctx);
/* Metadata thread, after a wake: finish drains whose old phase reached zero (op_put of their waiters). */
void fastmap_poll(struct fastmap *f);
/* Slots in use, drains done (statistics). */
void fastmap_counts(const struct fastmap *f, uint64_t *slots, uint64_t *withdrawals, uint64_t *drains);

/* Test switch: withdraw() reports drained at once (the coherence test must then fail). */
extern bool fastmap_test_skip_drain;

#endif

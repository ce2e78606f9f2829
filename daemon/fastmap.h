/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fastmap.h - the mapping table of DESIGN section 3 and its coherence protocol (section 4).
 *
 * Writers (publish, withdraw) run on the metadata thread only; readers (queue threads, the BPF program
 * in the kernel) hold their slice's range counter from before the lookup until their I/O completed.
 */
#ifndef DAEMON_FASTMAP_H
#define DAEMON_FASTMAP_H

#include "bpf/mapping.h" /* words and slots */
#include "qcow2/qcow2.h"
#include <stdbool.h>
#include <stdint.h>

#define FASTMAP_BUCKETS 1024u /* range counters */
#define FASTMAP_MAX_FILES 64u /* files of the chain a word can name */

struct fastmap;

/*
 * Readers that are not threads of this process: the kernel's. They see the table in memory of theirs, and
 * count themselves.
 */
struct fastmap_peer {
	struct fastmap_slot *slot; /* zeroes, fastmap_slots() of them; the owner's memory */
	/* Metadata thread. Where the peer finds a slice from now on; that it is to be found no more. It need
	 * not succeed: the slot's header decides. */
	void (*tell)(void *ctx, uint64_t slice, uint32_t slot);
	void (*forget)(void *ctx, uint64_t slice);
	/*
	 * Metadata thread; words of the slices [first, end) have just become 0. 0: no I/O that may have used
	 * one of them is in flight. -EWOULDBLOCK: fastmap_peer_drained() with @ticket follows. Tickets grow.
	 */
	int (*drain)(void *ctx, uint64_t first, uint64_t end, uint64_t ticket);
	/* Drains are asked for no more, and fastmap_peer_drained() is not called any more when this returns.
	 */
	void (*stop)(void *ctx);
	void *ctx;
};

/* Slots of a table of that size; at least 4. */
unsigned fastmap_slots(uint64_t cache_bytes);
/* readers: number of queue threads. cache_bytes: table size. cluster_bits 0: told later, by the function
 * below, as the hooks go into qcow2_open() and the cluster size comes out of it; nothing is published before
 * that. peer: NULL, or the kernel's readers (copied): then the table is in its memory. */
int fastmap_new(struct fastmap **out, unsigned cluster_bits, uint64_t cache_bytes, unsigned readers,
		const struct fastmap_peer *peer);
/* Any thread: what the peer was asked to drain with this ticket or a lower one is drained. */
void fastmap_peer_drained(struct fastmap *f, uint64_t ticket);
/* Metadata thread. Off: the peer finds nothing from now on, as nothing is published; its I/O in flight is not
 * waited for, but drained as ever. Nothing happens to a table without a peer. */
void fastmap_peer_off(struct fastmap *f, bool off);
/* The metadata thread has ended: no wake-ups any more when this returns. */
void fastmap_stop_peer(struct fastmap *f);
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

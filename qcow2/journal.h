/* SPDX-License-Identifier: GPL-2.0-or-later */
/* journal.h - what a killed process knew and the file does not; see journal.c. */
#ifndef QCOW2_JOURNAL_H
#define QCOW2_JOURNAL_H

#include "cache.h"
#include "image.h"

/* ---- the memory, as it outlives the process (native byte order: it never leaves the machine) ---- */

#define JOURNAL_MAGIC 0x6c6e6a326f637175ull /* "uqco2jnl" */
#define JOURNAL_VERSION 1u
#define JOURNAL_LOST 1u /* flags: an fsync failed, so nothing may be called durable any more */

struct journal_header {
	uint64_t magic; /* stored last */
	uint32_t version, flags;
	uint64_t size; /* bytes, header included */
	unsigned char boot_id[16];
	uint64_t dev, ino; /* of the image */
	uint64_t tail, head; /* positions of records: [tail, head) are valid; record p lies at p % capacity */
	uint64_t reserved[6];
};
static_assert(sizeof(struct journal_header) == 120, "journal header");

enum record_type { REC_WORD = 1, REC_ALLOC, REC_USED, REC_LOWER, REC_LOWERED, REC_RESET };

struct journal_record {
	uint64_t what; /* type << 60; WORD: | block type << 56 | byte offset in the file / 8 */
	uint64_t a; /* WORD: old raw 8 bytes; RESET: 0; else first host cluster */
	uint64_t b; /* WORD: new raw 8 bytes; RESET: 0; else number of clusters */
};
static_assert(sizeof(struct journal_record) == 24, "journal record");

#define JOURNAL_OFFSET_MASK ((1ull << 56) - 1)

static inline struct journal_record *journal_records(void *mem)
{
	return (struct journal_record *)((char *)mem + sizeof(struct journal_header));
}

/* Records that @size bytes of memory can hold. */
static inline uint64_t journal_capacity(uint64_t size)
{
	return size <= sizeof(struct journal_header)
		       ? 0
		       : (size - sizeof(struct journal_header)) / sizeof(struct journal_record);
}

/* ---- sets of clusters, as a list of runs; a cluster may be in it several times ---- */

struct cluster_set {
	struct {
		uint64_t first, n;
	} *v;
	size_t start, n, cap; /* v[start..n), those without clusters count for nothing */
	size_t runs; /* with clusters */
};

/* 0 or -ENOMEM (nothing added). */
int cluster_set_add(struct cluster_set *s, uint64_t first, uint64_t n);
/* Remove each cluster once; those that are not in it are passed over. 0 or -ENOMEM (a run to be split stays).
 */
int cluster_set_remove(struct cluster_set *s, uint64_t first, uint64_t n);
void cluster_set_clear(struct cluster_set *s);

/* ---- writing it; every function is a no-op for an image without a journal ---- */

/* Go on with the memory that journal_replay() accepted. 0, -ENOMEM, or -EINVAL (too small for this image). */
int journal_attach(struct qcow2_image *img, const struct qcow2_journal *mem, struct qcow2_error *err);
void journal_free(struct qcow2_image *img);

/* 8 bytes of the file at @off will change from @old to @new. */
void journal_word(struct qcow2_image *img, enum block_type type, uint64_t off, uint64_t old, uint64_t new);
/* The clusters have refcount 1 and nothing names them; something names them now. */
void journal_alloc(struct qcow2_image *img, uint64_t first, uint64_t n);
void journal_used(struct qcow2_image *img, uint64_t first, uint64_t n);
/* One reference of each is dropped, its refcount is not lowered yet (allocated ones too: nothing will name
 * them); the refcount is lowered, or never will be. */
void journal_lower(struct qcow2_image *img, uint64_t first, uint64_t n);
void journal_lowered(struct qcow2_image *img, uint64_t cluster);

/*
 * Everything appended so far counts from now on. Before anybody outside learns of a change: a request's
 * done(), the mapping table, the file's metadata. Never between the records of one change.
 */
void journal_publish(struct qcow2_image *img);
/* The open generation closes: publishes, and remembers where its records end. */
void journal_close(struct qcow2_image *img);
/* The generation last closed is durable: its records go. */
void journal_truncate(struct qcow2_image *img);
/* An fsync failed: a process that goes on after a kill must know. */
void journal_lost(struct qcow2_image *img);

/* A request has to commit_wait() before it changes anything. */
bool journal_full(const struct qcow2_image *img);
/* Lowering refcounts has to stop until a commit truncated the journal. */
bool journal_reserve_short(const struct qcow2_image *img);

/* ---- reading it (journal_replay.c) ---- */

/*
 * Bring @file to where the journal says it was, durably, before anything in it is parsed. *lower: the
 * clusters that are to lose one reference, for commit_lower(); the caller clears it. Killed anywhere in it:
 * run it again. If an fsync had failed neither is changed, and *over (else NULL) is what the image's tables
 * are to be read through, never written; the caller frees it. On failure neither file nor journal has
 * changed unless the host failed a write. -EINVAL not a journal, of another version or size; -ESTALE of
 * another boot or image, or the file was changed by somebody else; -EUCLEAN records that cannot be; -ENOMEM,
 * and whatever the host said
 */
struct overlay;
int journal_replay(struct host_file *file, const struct qcow2_journal *mem, struct cluster_set *lower,
		   struct overlay **over, struct qcow2_error *err);
/* Put into @data, the file's bytes [off, off + len), the words that lie there. */
void overlay_patch(const struct overlay *over, void *data, uint64_t off, uint32_t len);
void overlay_free(struct overlay *over);

#endif

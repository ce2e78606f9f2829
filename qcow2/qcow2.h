/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qcow2.h - the public interface of the format library.
 *
 * An image is driven by one thread: it submits requests, calls qcow2_run() and gets done()
 * callbacks from there. The library starts no thread, takes no lock and prints nothing.
 * All offsets and lengths are bytes. Functions return 0 or -errno.
 */
#ifndef QCOW2_QCOW2_H
#define QCOW2_QCOW2_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>
#include "error.h"
#include "io.h"

struct qcow2_image;

/* ---- opening ---- */

enum backing_format { BACKING_UNKNOWN, BACKING_RAW, BACKING_QCOW2 };

/* How the library opens the other files of a chain. */
struct qcow2_opener {
	/* Open @path (already resolved) read-only. Regular files and block devices only. On failure
	 * -errno with err filled in. @format: what the file is opened as (decides its locks). */
	int (*open)(void *ctx, const char *path, enum backing_format format, struct host_file **out,
		    struct qcow2_error *err);
	void *ctx;
};

/*
 * The mapping table (DESIGN section 3), seen from the library. All three run on the image's
 * thread. guest and len are multiples of the cluster size (the last cluster of the image counts in
 * full). NULL ops: no table.
 */
struct op;
enum word_kind { WORD_DATA, WORD_ZERO };
struct qcow2_table_ops {
	/* From now on [guest, guest + len) may be served without asking: DATA from host_off of file
	 * number @file (0 = the image itself, writable only there), ZERO as zeroes. A hint. */
	void (*publish)(void *ctx, uint64_t guest, uint64_t len, enum word_kind kind, unsigned file,
			uint64_t host_off, bool writable);
	/* Remove every word of the range. Returns 0 when no I/O that used a word of it is in flight;
	 * else -EWOULDBLOCK, having done op_get(waiter); op_put(waiter, 0) follows from the image's
	 * thread when the last of them completed. */
	int (*withdraw)(void *ctx, uint64_t guest, uint64_t len, struct op *waiter);
	void *ctx;
};

enum qcow2_discard { QCOW2_DISCARD_UNMAP, QCOW2_DISCARD_IGNORE };

struct qcow2_options {
	bool read_only;
	uint64_t cache_bytes; /* metadata cache, 0 = default (2 MiB); at least 64 blocks are used */
	enum qcow2_discard discard;
	enum backing_format backing_format; /* used when the image names a backing file without its format */
	const struct qcow2_table_ops *table; /* copied; may be NULL */
	const struct qcow2_opener *opener; /* copied; NULL: an image with a backing file is refused */
	const struct qcow2_journal *journal; /* copied, formatted before; NULL: none. Not with read_only */
};

/*
 * A journal: memory that outlives the process (a file on tmpfs), so that a kill at any moment loses nothing that
 * a request's done() reported, flushed or not. It knows nothing that survives a reboot: a power cut is what it was.
 */
#define QCOW2_JOURNAL_BYTES (2u << 20)
struct qcow2_journal {
	void *mem; /* 8-byte aligned, the caller's; in use until the image is closed */
	uint64_t size; /* bytes: qcow2_journal_size(), smaller ones are for tests */
	unsigned char boot_id[16];
	uint64_t dev, ino; /* of the image file */
};
uint64_t qcow2_journal_size(void);
/* Make @mem an empty journal of that boot and image, whatever it holds. */
void qcow2_journal_format(const struct qcow2_journal *j);
/* True if it is a journal with records in it, of whatever image: qcow2_open() has to see it. False after a close without
 * error. */
bool qcow2_journal_live(const struct qcow2_journal *j);
/* The same, and it is of the image file @j->dev, @j->ino. */
bool qcow2_journal_of(const struct qcow2_journal *j);
/* An fsync had failed: its records are never applied, only looked through. */
bool qcow2_journal_lost(const struct qcow2_journal *j);

/*
 * Open an image over @file (which the image owns from now on, also on failure) and its backing
 * chain. Blocking. Changes nothing on disk, unless a journal with records is given: these are applied first, durably
 * (killed in it: open again), then the image goes on where the killed process was. No I/O of that process may
 * still be under way. A journal that does not fit is refused, and neither it nor the image is changed.
 *  -EINVAL  not a qcow2 image or a header the specification forbids (says which field)
 *  -ENOTSUP a feature we refuse by name (unknown incompatible bit, encryption, data file, extended L2)
 *  -EUCLEAN inconsistent metadata, or the corrupt/dirty bit and not read_only
 *  -ELOOP   the backing chain contains itself or is longer than 256
 *  -ESTALE  the journal is of another boot or image, or somebody else changed the image since (-EINVAL, -EUCLEAN: it is
 *           no journal, or damaged)
 *  -ENOMEM, and whatever the host said
 */
int qcow2_open(struct qcow2_image **out, struct host_file *file, const struct qcow2_options *opt,
	       struct qcow2_error *err);

struct qcow2_info {
	uint64_t size; /* guest bytes */
	uint32_t cluster_size;
	unsigned version, refcount_bits;
	unsigned chain_length; /* files in the chain, 1 = no backing file */
	bool read_only;
	const char *mode; /* "rw", "ro" or "failed" */
	const char *compression; /* "zlib" or "zstd" */
};
void qcow2_get_info(const struct qcow2_image *img, struct qcow2_info *info);
/* File number @index of the chain (0 = the image itself) or NULL past its end. */
struct host_file *qcow2_chain_file(struct qcow2_image *img, unsigned index);
/* The bytes of a block of its metadata, 0 if it is raw. Metadata is transferred in such blocks, so the file's
 * direct I/O alignment may not be larger once requests are served. */
uint32_t qcow2_chain_block_size(const struct qcow2_image *img, unsigned index);

/* ---- requests ---- */

enum qcow2_req_op { QCOW2_READ, QCOW2_WRITE, QCOW2_WRITE_ZEROES, QCOW2_DISCARD, QCOW2_FLUSH };
#define QCOW2_REQ_NO_UNMAP 1u /* WRITE_ZEROES: keep the space allocated */

/*
 * One guest request; the caller owns the memory until done() runs, exactly once, from qcow2_run().
 * off and len are multiples of 512 with off + len <= size, else -EINVAL; len 0 is a no-op.
 * buf: READ/WRITE only, len bytes, aligned to 4096 (READ/WRITE) for direct I/O.
 * res: 0; -EIO, -ENOSPC, ... from the host; -EUCLEAN (the image is corrupt here; it becomes
 * read-only and nothing was changed); -EROFS (read-only image or mode).
 * A WRITE is in the image after done() but durable only after a later FLUSH.
 */
struct qcow2_req {
	enum qcow2_req_op op;
	unsigned flags;
	uint64_t off, len;
	void *buf;
	void (*done)(struct qcow2_req *req, int res);
	void *owner;
};
/* Start a request. -ENOMEM, here or from done(): there was no memory for it, nothing else is wrong, it can be
 * started again. Never calls done() itself. -ENOMEM: not started, done() will not run. */
int qcow2_submit(struct qcow2_image *img, struct qcow2_req *req);

/* Run everything that can run now. With wait, first block until some host I/O completed or the
 * backend was woken, unless a step is ready. Returns false when nothing is in flight any more. */
bool qcow2_run(struct qcow2_image *img, bool wait);

/* Start a commit now if there are uncommitted changes (periodic write-back). */
void qcow2_commit_start(struct qcow2_image *img);
/* True if metadata changes are waiting to be committed. */
bool qcow2_dirty(const struct qcow2_image *img);

/* Submit a request and run until it completed; for tools and tests. */
int qcow2_sync(struct qcow2_image *img, enum qcow2_req_op op, void *buf, uint64_t len, uint64_t off);

/*
 * Close: withdraw all words, commit everything, give freed clusters back, sync, close the files
 * and free the memory (always, whatever is returned). No request may be in flight. Blocking.
 * Returns the first error: what was not flushed before may then be lost.
 */
int qcow2_close(struct qcow2_image *img, struct qcow2_error *err);

/*
 * Memory for requests, their buffers and cached blocks, of every image of the process, instead of malloc's.
 * get(): like aligned_alloc(), aligned to size rounded up to a power of two, at most to 4096; NULL: none now.
 * ready(): bytes that get() can give away altogether without NULL; the cache keeps few enough blocks dirty for
 * that. It would like @want of them: have more soon, if possible. One thread at a time. Copied; NULL: malloc again, when no image is open.
 */
struct qcow2_memory {
	void *(*get)(void *ctx, size_t size);
	void (*put)(void *ctx, void *p);
	size_t (*ready)(void *ctx, size_t want);
	void *ctx;
};
void qcow2_use_memory(const struct qcow2_memory *m);

/* ---- looking ---- */

/* What backs a guest range, down the whole chain. */
struct qcow2_map_extent {
	uint64_t guest, len;
	bool data; /* false: reads as zeroes */
	bool zero; /* explicit or implied zeroes */
	bool present; /* some file of the chain allocates it */
	bool compressed;
	unsigned depth; /* file number in the chain that answers */
	bool has_host; /* data not compressed; zeroes whose cluster is kept */
	uint64_t host; /* byte offset in that file, if has_host */
};
/* The extent that starts at @guest (len > 0, ends at the image's size at the latest). Blocking. */
int qcow2_map(struct qcow2_image *img, uint64_t guest, struct qcow2_map_extent *out);

struct qcow2_stats {
	uint64_t commits, withdrawals, drains, flushes;
	uint64_t allocated, freed; /* host clusters */
	uint64_t cache_hits, cache_misses;
};
void qcow2_get_stats(const struct qcow2_image *img, struct qcow2_stats *st);

/* One line per stuck or running step, for SIGUSR1. */
void qcow2_dump(const struct qcow2_image *img, FILE *out);

#endif

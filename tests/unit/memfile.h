/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * memfile.h - a host file in memory that records what it is asked, fails what it is told to and holds what it
 * is told to hold. Sparse, growable, deterministic: I/O is carried out by poll(), in the order of submission.
 *
 * A disk outlives the host_files opened on it, so that a test can close an image and look at, damage or
 * reopen what is left. The record says which writes an fsync covers: those that completed before it was
 * submitted.
 */
#ifndef TESTS_MEMFILE_H
#define TESTS_MEMFILE_H

#include "qcow2/io.h"
#include "unit.h"
#include <errno.h>

#define DISK_CHUNK 65536u

struct event {
	enum host_op op;
	uint64_t off, len;
	uint8_t *data; /* HOST_WRITE: what was written */
	unsigned submitted, completed; /* moments of one clock */
	int res;
};

struct disk {
	uint8_t **chunk;
	size_t chunks;
	uint64_t size;
	uint32_t dio_align;
	uint64_t ino;
	const char *path;
	bool fixed_size;
	/* the record */
	bool record;
	struct event *event;
	size_t events, events_cap;
	unsigned clock;
	/* orders: masks of 1 << enum host_op */
	unsigned hold; /* stay queued, */
	unsigned let; /* but so many of them pass first */
	unsigned fail; /* may fail, with fail_err: */
	int fail_err;
	unsigned fail_nth; /* the nth of them from now on (1 = the next); 0 = none */
	bool fail_always; /* and all after it */
	unsigned failed; /* so many did */
	void (*on_fail)(const struct host_io *io); /* is told of each, but for pread */
	unsigned seen[HOST_FSYNC + 1];
	unsigned opened, delivered;
	void *journal; /* memimg.h: of the image opened last */
	STAILQ_HEAD(, host_io) queue;
};

struct memfile {
	struct host_file host; /* first */
	struct disk *disk;
};

static uint64_t disk_next_ino = 100;

static inline struct disk *disk_new(void)
{
	struct disk *d = calloc(1, sizeof(*d));

	assert_non_null(d);
	d->dio_align = 1;
	d->ino = disk_next_ino++;
	d->path = "disk.qcow2";
	STAILQ_INIT(&d->queue);
	return d;
}

static inline void disk_forget(struct disk *d)
{
	while (d->events)
		free(d->event[--d->events].data);
}

static inline void disk_free(struct disk *d)
{
	size_t i;

	assert_true(STAILQ_EMPTY(&d->queue));
	assert_int_equal(d->opened, 0); /* every file was closed, once */
	disk_forget(d);
	for (i = 0; i < d->chunks; i++)
		free(d->chunk[i]);
	free(d->chunk);
	free(d->event);
	free(d->journal);
	free(d);
}

/* The byte at @off and how many follow it in memory; NULL: never written. */
static inline uint8_t *disk_at(struct disk *d, uint64_t off, uint64_t *len, bool make)
{
	size_t i = (size_t)(off / DISK_CHUNK);

	if (*len > DISK_CHUNK - off % DISK_CHUNK)
		*len = DISK_CHUNK - off % DISK_CHUNK;
	if (i >= d->chunks && make) {
		d->chunk = realloc(d->chunk, (i + 1) * sizeof(*d->chunk));
		assert_non_null(d->chunk);
		memset(d->chunk + d->chunks, 0, (i + 1 - d->chunks) * sizeof(*d->chunk));
		d->chunks = i + 1;
	}
	if (i < d->chunks && !d->chunk[i] && make)
		d->chunk[i] = calloc(1, DISK_CHUNK);
	return i < d->chunks && d->chunk[i] ? d->chunk[i] + off % DISK_CHUNK : NULL;
}

static inline void disk_get(struct disk *d, uint64_t off, void *buf, uint64_t len)
{
	uint64_t n;

	for (; len; len -= n, off += n, buf = (char *)buf + n) {
		const uint8_t *p;

		n = len;
		p = disk_at(d, off, &n, false);
		if (p)
			memcpy(buf, p, n);
		else
			memset(buf, 0, n);
	}
}

/* buf NULL: zeroes. */
static inline void disk_put(struct disk *d, uint64_t off, const void *buf, uint64_t len)
{
	uint64_t n;

	if (off + len > d->size)
		d->size = off + len;
	for (; len; len -= n, off += n) {
		uint8_t *p;

		n = len;
		p = disk_at(d, off, &n, buf != NULL);
		if (p && buf)
			memcpy(p, buf, n);
		else if (p)
			memset(p, 0, n);
		buf = buf ? (const char *)buf + n : NULL;
	}
}

static inline uint64_t disk_be(struct disk *d, uint64_t off, unsigned bytes)
{
	uint8_t b[8];
	uint64_t v = 0;
	unsigned i;

	disk_get(d, off, b, bytes);
	for (i = 0; i < bytes; i++)
		v = v << 8 | b[i];
	return v;
}

static inline void disk_set_be(struct disk *d, uint64_t off, uint64_t value, unsigned bytes)
{
	uint8_t b[8];

	put_be(b, value, bytes);
	disk_put(d, off, b, bytes);
}

/* The content alone: no record, no orders. */
static inline struct disk *disk_clone(struct disk *d)
{
	struct disk *c = disk_new();
	uint8_t *buf = malloc(DISK_CHUNK);
	size_t i;

	assert_non_null(buf);
	for (i = 0; i < d->chunks; i++)
		if (d->chunk[i])
			disk_put(c, (uint64_t)i * DISK_CHUNK, d->chunk[i], DISK_CHUNK);
	free(buf);
	c->size = d->size;
	return c;
}

static inline bool disk_equal(struct disk *a, struct disk *b)
{
	static uint8_t x[DISK_CHUNK], y[DISK_CHUNK];
	uint64_t off;

	for (off = 0; off < a->size; off += DISK_CHUNK) {
		disk_get(a, off, x, DISK_CHUNK);
		disk_get(b, off, y, DISK_CHUNK);
		if (memcmp(x, y, DISK_CHUNK))
			return false;
	}
	return a->size == b->size;
}

/* Fail the nth I/O among those of the mask @ops; @always: and all after it. */
static inline void disk_fail(struct disk *d, unsigned ops, int err, unsigned nth, bool always)
{
	d->fail = ops;
	d->fail_err = err;
	d->fail_nth = nth;
	d->fail_always = always;
	d->failed = 0;
}

/* ---- the backend ---- */

static inline struct disk *disk_of(const struct host_file *file)
{
	return ((const struct memfile *)file)->disk;
}

static inline bool disk_shall_fail(struct disk *d, enum host_op op)
{
	if (!(d->fail & 1u << op) || !d->fail_nth)
		return false;
	if (d->fail_nth > 1) {
		d->fail_nth--;
		return false;
	}
	if (!d->fail_always)
		d->fail_nth = 0;
	d->failed++;
	return true;
}

static inline int disk_carry_out(struct disk *d, const struct host_io *io)
{
	bool fails = disk_shall_fail(d, io->op);
	uint64_t len = io->len;

	d->seen[io->op]++;
	if (io->op == HOST_READ || io->op == HOST_WRITE)
		assert_int_equal((io->off | io->len) % d->dio_align, 0);
	else
		assert_int_equal((io->off | io->len) % 512, 0);
	if (fails && d->on_fail)
		d->on_fail(io);
	if (fails) /* torn: anything up to half of it may have got there */
		len = io->op == HOST_WRITE || io->op == HOST_ZERO ? io->len / 1024 * 512 : 0;
	if (io->op == HOST_READ && !fails)
		disk_get(d, io->off, io->buf, len);
	else if (io->op == HOST_WRITE)
		disk_put(d, io->off, io->buf, len);
	else if (io->op == HOST_ZERO)
		disk_put(d, io->off, NULL, len);
	else if (io->op == HOST_PUNCH && io->off < d->size)
		disk_put(d, io->off, NULL, len < d->size - io->off ? len : d->size - io->off);
	return fails ? d->fail_err : 0;
}

static inline void disk_note(struct disk *d, const struct host_io *io, unsigned submitted, int res)
{
	struct event *e;

	if (!d->record || io->op == HOST_READ)
		return;
	if (d->events == d->events_cap) {
		d->events_cap = d->events_cap ? 2 * d->events_cap : 64;
		d->event = realloc(d->event, d->events_cap * sizeof(*d->event));
		assert_non_null(d->event);
	}
	e = &d->event[d->events++];
	*e = (struct event){ .op = io->op,
			     .off = io->off,
			     .len = io->len,
			     .submitted = submitted,
			     .res = res,
			     .completed = ++d->clock };
	if (io->op == HOST_WRITE)
		e->data = exact_copy(io->buf, io->len);
}

static inline void memfile_submit(struct host_io *io)
{
	struct disk *d = disk_of(io->file);

	assert_true(io->op == HOST_READ || io->op == HOST_FSYNC || !io->file->read_only);
	io->progress = ++d->clock;
	STAILQ_INSERT_TAIL(&d->queue, io, link);
}

static inline unsigned memfile_poll(struct host_file *file, bool wait)
{
	struct disk *d = disk_of(file);
	STAILQ_HEAD(, host_io) now = STAILQ_HEAD_INITIALIZER(now), held = STAILQ_HEAD_INITIALIZER(held);
	struct host_io *io, *next;
	unsigned n = 0;
	int res;

	STAILQ_CONCAT(&now, &d->queue);
	while ((io = STAILQ_FIRST(&now))) {
		unsigned submitted = (unsigned)io->progress;

		STAILQ_REMOVE_HEAD(&now, link);
		if (d->hold & 1u << io->op && d->let)
			d->let--;
		else if (d->hold & 1u << io->op) {
			STAILQ_INSERT_TAIL(&held, io, link);
			continue;
		}
		for (res = 0; io; io = next, n++, submitted = d->clock) {
			next = io->then;
			res = res ? -ECANCELED : disk_carry_out(d, io);
			if (res != -ECANCELED)
				disk_note(d, io, submitted, res);
			d->clock++;
			io->done(io, res);
			if (next && !res && d->hold & 1u << next->op && d->let) {
				d->let--;
			} else if (next && !res && d->hold & 1u << next->op) { /* a held link waits alone */
				next->progress = d->clock;
				STAILQ_INSERT_TAIL(&held, next, link);
				next = NULL;
			}
		}
	}
	STAILQ_CONCAT(&held, &d->queue);
	STAILQ_CONCAT(&d->queue, &held);
	d->delivered += n;
	return n;
}

static inline int memfile_pread(struct host_file *file, void *buf, size_t len, uint64_t off)
{
	if (disk_shall_fail(disk_of(file), HOST_READ))
		return disk_of(file)->fail_err;
	disk_get(disk_of(file), off, buf, len);
	return 0;
}

static inline int memfile_size(struct host_file *file, uint64_t *size)
{
	*size = disk_of(file)->size;
	return 0;
}

static inline void memfile_close(struct host_file *file)
{
	disk_of(file)->opened--;
	free(file);
}

static const struct host_ops memfile_ops = { memfile_submit, memfile_poll, memfile_pread, memfile_size,
					     memfile_close };

static inline struct host_file *disk_open(struct disk *d, bool read_only)
{
	struct memfile *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	f->disk = d;
	f->host = (struct host_file){ .ops = &memfile_ops,
				      .dev = 1,
				      .ino = d->ino,
				      .dio_align = d->dio_align,
				      .mem_align = d->dio_align > 1 ? 512 : 1,
				      .read_only = read_only,
				      .fixed_size = d->fixed_size,
				      .path = d->path };
	d->opened++;
	return &f->host;
}

#endif

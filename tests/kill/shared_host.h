/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * shared_host.h - host files in memory that parent and child share: what a killed child wrote stays, as in
 * the page cache. I/O completes in random order; what was submitted and not carried out when the child dies
 * is still in its slot, so that the parent can let it happen or not (a supervisor waits until nothing can
 * happen any more).
 */
#ifndef TESTS_SHARED_HOST_H
#define TESTS_SHARED_HOST_H

#include "qcow2/qcow2.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define FILES 3u
#define FILE_BYTES (64ull << 20)
#define SLOTS 512u
#define SLOT_BYTES (512u << 10)

struct slot {
	bool busy;
	bool landing; /* being carried out: a sector is never torn, so the parent finishes it */
	enum host_op op;
	uint64_t off, len;
};

struct shared_file {
	char name[32];
	uint64_t size;
	uint8_t *data;
};

struct shared_disk {
	struct shared_file file[FILES]; /* 0: the image */
	struct slot slot[SLOTS + 1]; /* the last: writes past the library */
	uint8_t *payload; /* (SLOTS + 1) * SLOT_BYTES */
	uint32_t dio_align;
};

static struct shared_disk *disk;
static void hook(void);
static uint64_t rnd(uint64_t n);
static void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

static inline void *share(uint64_t bytes)
{
	void *p =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	return p;
}

static inline void disk_init(void)
{
	unsigned i;

	disk = share(sizeof(*disk));
	disk->payload = share((SLOTS + 1ull) * SLOT_BYTES);
	for (i = 0; i < FILES; i++)
		disk->file[i].data = share(FILE_BYTES);
}

static inline void disk_forget(unsigned i)
{
	struct shared_file *f = &disk->file[i];

	madvise(f->data, FILE_BYTES, MADV_REMOVE);
	f->size = 0;
	f->name[0] = 0;
}

/* ---- one open file; child-local ---- */

struct shared_host {
	struct host_file host; /* first */
	struct shared_file *f;
	struct host_io *queue[SLOTS];
	uint16_t slot[SLOTS];
	unsigned n;
};

static inline void land(struct shared_file *f, enum host_op op, uint64_t off, const uint8_t *data,
			uint64_t len)
{
	if (off + len > FILE_BYTES)
		die("host I/O at %llu", (unsigned long long)off);
	if (op == HOST_PUNCH && off + len > f->size)
		len = off < f->size ? f->size - off : 0;
	else if (op != HOST_PUNCH && off + len > f->size)
		f->size = off + len;
	if (op == HOST_WRITE)
		memcpy(f->data + off, data, len);
	else
		memset(f->data + off, 0, len);
}

/* The child is dead: each of its I/Os happened, did not, or happened for some sectors. Nothing follows later.
 */
static inline void disk_settle(void)
{
	unsigned i;
	uint64_t at;

	for (i = 0; i <= SLOTS; i++) {
		struct slot *s = &disk->slot[i];
		uint8_t *data = disk->payload + (uint64_t)i * SLOT_BYTES;
		uint64_t how = s->landing ? 1 : rnd(3), unit = disk->dio_align > 512 ? disk->dio_align : 512;

		for (at = 0; s->busy && how && at < s->len; at += unit)
			if (how == 1 || rnd(2))
				land(&disk->file[0], s->op, s->off + at, data + at,
				     s->len - at < unit ? s->len - at : unit);
		s->busy = s->landing = false;
	}
}

static inline void slot_fill(unsigned i, enum host_op op, uint64_t off, const void *data, uint64_t len)
{
	struct slot *s = &disk->slot[i];

	s->op = op;
	s->off = off;
	s->len = len;
	s->landing = false;
	if (op == HOST_WRITE)
		memcpy(disk->payload + (uint64_t)i * SLOT_BYTES, data, len);
	__atomic_store_n(&s->busy, true, __ATOMIC_RELEASE);
}

static inline void slot_land(struct shared_file *f, unsigned i)
{
	struct slot *s = &disk->slot[i];

	__atomic_store_n(&s->landing, true, __ATOMIC_RELEASE);
	land(f, s->op, s->off, disk->payload + (uint64_t)i * SLOT_BYTES, s->len);
	__atomic_store_n(&s->busy, false, __ATOMIC_RELEASE);
	__atomic_store_n(&s->landing, false, __ATOMIC_RELEASE);
}

/* One write that is submitted and done at once. */
static inline void disk_write_now(uint64_t off, const void *data, uint64_t len)
{
	slot_fill(SLOTS, HOST_WRITE, off, data, len);
	slot_land(&disk->file[0], SLOTS);
}

static void shared_submit(struct host_io *io)
{
	struct shared_host *h = (struct shared_host *)io->file;
	unsigned i = 0;

	if (h->n == SLOTS)
		die("too much host I/O at once");
	if (io->op == HOST_WRITE || io->op == HOST_ZERO || io->op == HOST_PUNCH) {
		while (i < SLOTS && disk->slot[i].busy)
			i++;
		if (i == SLOTS || (io->op == HOST_WRITE && io->len > SLOT_BYTES))
			die("host I/O of %llu bytes", (unsigned long long)io->len);
		slot_fill(i, io->op, io->off, io->buf, io->len);
	}
	h->slot[h->n] = (uint16_t)i;
	h->queue[h->n++] = io;
	hook();
}

static void carry_out(struct shared_host *h, struct host_io *io, unsigned slot)
{
	uint64_t have = io->off < h->f->size ? h->f->size - io->off : 0;

	if (io->op == HOST_READ) {
		have = have < io->len ? have : io->len;
		memcpy(io->buf, h->f->data + io->off, have);
		memset((char *)io->buf + have, 0, io->len - have);
	} else if (io->op != HOST_FSYNC) {
		slot_land(h->f, slot);
	}
}

static unsigned shared_poll(struct host_file *file, bool wait)
{
	struct shared_host *h = (struct shared_host *)file;
	unsigned k, slot, n = 0, budget = 1 + (unsigned)rnd(4);

	while (h->n && n++ < budget) {
		struct host_io *io, *then;

		k = (unsigned)rnd(h->n);
		io = h->queue[k];
		slot = h->slot[k];
		h->queue[k] = h->queue[--h->n];
		h->slot[k] = h->slot[h->n];
		hook();
		carry_out(h, io, slot);
		hook();
		then = io->then;
		io->done(io, 0);
		if (then)
			shared_submit(then);
	}
	return n;
}

static int shared_pread(struct host_file *file, void *buf, size_t len, uint64_t off)
{
	struct host_io io = { .op = HOST_READ, .buf = buf, .len = len, .off = off };

	carry_out((struct shared_host *)file, &io, 0);
	return 0;
}

static int shared_size(struct host_file *file, uint64_t *size)
{
	*size = ((struct shared_host *)file)->f->size;
	return 0;
}

static void shared_close(struct host_file *file)
{
	free(file);
}

static const struct host_ops shared_ops = { shared_submit, shared_poll, shared_pread, shared_size,
					    shared_close };

static inline struct host_file *shared_open(unsigned i, bool ro)
{
	struct shared_host *h = calloc(1, sizeof(*h));
	uint32_t align = i ? 1 : disk->dio_align;

	if (!h)
		die("out of memory");
	h->f = &disk->file[i];
	h->host = (struct host_file){ .ops = &shared_ops,
				      .dev = 1,
				      .ino = i + 1,
				      .dio_align = align,
				      .mem_align = align > 1 ? 512 : 1,
				      .read_only = ro,
				      .path = disk->file[i].name };
	return &h->host;
}

#endif

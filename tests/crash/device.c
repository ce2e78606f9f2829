// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * device.c - the recorded host file.
 *
 * Invariants: durable + all changes, in order = what was ever written; live = durable + all completed
 * changes; value[] and hash describe durable. A buffer must not change while its write is in flight, and two
 * changes of one sector are never in flight together with different content: then nobody could say what the
 * file holds.
 */
#include "device.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>

struct flight {
	struct host_io *io;
	struct change *change; /* NULL: read or fsync */
	uint64_t issued, ripe;
};

struct opened {
	struct host_file file; /* first */
	struct device *d;
	unsigned slow_one_in;
};

static struct device *device_of(const struct host_file *f)
{
	return ((const struct opened *)f)->d;
}

static void *map_zeroes(uint64_t len)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("out of memory");
	return p;
}

struct device *device_new(const void *bytes, uint64_t size, uint64_t seed)
{
	struct device *d = calloc(1, sizeof(*d));
	uint64_t s;

	if (!d)
		die("out of memory");
	if (size > DEVICE_MAX)
		die("an image of %" PRIu64 " bytes is too big for the simulator", size);
	d->rng.s = seed;
	d->dio_align = 1;
	d->durable = map_zeroes(DEVICE_MAX);
	d->live = map_zeroes(DEVICE_MAX);
	d->value = map_zeroes(DEVICE_MAX / SECTOR * sizeof(*d->value));
	memcpy(d->durable, bytes, size);
	memcpy(d->live, bytes, size);
	d->durable_size = d->live_size = size;
	for (s = 0; s * SECTOR < size; s++) {
		d->value[s] = sector_value(d->durable + s * SECTOR);
		d->hash ^= device_hash_of(s, d->value[s]);
	}
	TAILQ_INIT(&d->changes);
	return d;
}

static void change_free(struct device *d, struct change *c)
{
	TAILQ_REMOVE(&d->changes, c, link);
	d->nchanges--;
	free(c->data);
	free(c->value);
	free(c);
}

void device_free(struct device *d)
{
	if (d->opened || d->nflights)
		die("a device is freed in use");
	while (!TAILQ_EMPTY(&d->changes))
		change_free(d, TAILQ_FIRST(&d->changes));
	munmap(d->durable, DEVICE_MAX);
	munmap(d->live, DEVICE_MAX);
	munmap(d->value, DEVICE_MAX / SECTOR * sizeof(*d->value));
	free(d->flight);
	free(d);
}

static void observe(struct device *d, enum point p)
{
	if (d->observe)
		d->observe(d->ctx, p);
}

/* ---- issue ---- */

static void check_overlap(const struct device *d, const struct change *c)
{
	const struct change *o;
	uint64_t at;

	for (size_t i = 0; i < d->nflights; i++) {
		o = d->flight[i].change;
		if (!o || o->off >= c->off + c->len || c->off >= o->off + o->len)
			continue;
		for (at = o->off > c->off ? o->off : c->off; at < o->off + o->len && at < c->off + c->len;
		     at += SECTOR)
			if (o->value[(at - o->off) / SECTOR] != c->value[(at - c->off) / SECTOR])
				finding("two changes of the sector at 0x%" PRIx64
					" of the file are in flight together",
					at);
	}
}

static struct change *change_new(struct device *d, const struct host_io *io)
{
	struct change *c = calloc(1, sizeof(*c));
	uint64_t i, n = io->len / SECTOR;

	if ((io->off | io->len) % SECTOR || !io->len)
		finding("host operation %d at %" PRIu64 "+%" PRIu64 " is not in sectors", io->op, io->off,
			io->len);
	if (io->off + io->len > (d->fixed_size ? d->durable_size : DEVICE_MAX))
		finding("the file grows to %" PRIu64 " bytes", io->off + io->len);
	if (c)
		c->value = calloc(n, sizeof(*c->value));
	if (!c || !c->value)
		die("out of memory");
	c->op = io->op;
	c->off = io->off;
	c->len = io->len;
	c->issued = d->clock;
	if (io->op == HOST_WRITE) {
		c->data = malloc(io->len);
		if (!c->data)
			die("out of memory");
		memcpy(c->data, io->buf, io->len);
		for (i = 0; i < n; i++)
			c->value[i] = sector_value(c->data + i * SECTOR);
	}
	check_overlap(d, c);
	TAILQ_INSERT_TAIL(&d->changes, c, link);
	d->nchanges++;
	d->writes++;
	return c;
}

static void device_submit(struct host_io *io)
{
	struct device *d = device_of(io->file);
	struct flight f = { .io = io, .issued = ++d->clock };

	if ((io->op == HOST_READ || io->op == HOST_WRITE) && (io->off | io->len) % d->dio_align)
		finding("host I/O at %" PRIu64 "+%" PRIu64 " is not aligned", io->off, io->len);
	if (io->op != HOST_READ && io->op != HOST_FSYNC) {
		if (io->file->read_only)
			finding("a file that is open for reading is changed");
		f.change = change_new(d, io);
	}
	/* Most are quick, some are overtaken by many. */
	f.ripe = d->clock + (rnd(&d->rng, ((struct opened *)io->file)->slow_one_in) ? rnd(&d->rng, 10)
										    : rnd(&d->rng, 400));
	if (d->nflights == d->cap) {
		d->cap = d->cap ? 2 * d->cap : 64;
		d->flight = realloc(d->flight, d->cap * sizeof(*d->flight));
		if (!d->flight)
			die("out of memory");
	}
	d->flight[d->nflights++] = f;
	if (f.change)
		observe(d, POINT_EVENT);
}

/* ---- completion ---- */

static void put(uint8_t *to, const struct change *c)
{
	if (c->data)
		memcpy(to + c->off, c->data, c->len);
	else
		memset(to + c->off, 0, c->len);
}

static void extend(uint64_t *size, const struct change *c)
{
	if (c->op != HOST_PUNCH && c->len && c->off + c->len > *size)
		*size = c->off + c->len;
}

/* The change is on disk for good. */
static void settle(struct device *d, struct change *c)
{
	uint64_t i, s;

	put(d->durable, c);
	extend(&d->durable_size, c);
	for (i = 0; i < c->len / SECTOR; i++) {
		s = c->off / SECTOR + i;
		d->hash ^= device_hash_of(s, d->value[s]) ^ device_hash_of(s, c->value[i]);
		d->value[s] = c->value[i];
	}
	change_free(d, c);
}

static bool fails(struct device *d, unsigned one_in)
{
	return one_in && !rnd(&d->rng, one_in);
}

static int end_sync(struct device *d, const struct flight *f)
{
	struct change *c, *next;
	bool failed = fails(d, d->fail_sync_one_in);

	observe(d, POINT_SYNC);
	d->syncs++;
	for (c = TAILQ_FIRST(&d->changes); c; c = next) {
		next = TAILQ_NEXT(c, link);
		if (!c->completed || c->completed > f->issued || c->dropped)
			continue;
		if (failed)
			c->dropped = true;
		else
			settle(d, c);
	}
	return failed ? -EIO : 0;
}

static int end_change(struct device *d, const struct flight *f)
{
	struct change *c = f->change;
	int res = 0;

	if (c->data && memcmp(c->data, f->io->buf, c->len))
		finding("the buffer of a write in flight (0x%" PRIx64 "+%" PRIu64 ") was changed", c->off,
			c->len);
	if (fails(d, d->fail_one_in)) { /* torn: a part may have got there */
		c->len = c->op == HOST_PUNCH ? 0 : rnd(&d->rng, c->len / SECTOR + 1) * SECTOR;
		res = rnd(&d->rng, 2) ? -EIO : -ENOSPC;
	}
	put(d->live, c);
	extend(&d->live_size, c);
	c->completed = d->clock;
	return res;
}

static void read_live(struct device *d, void *buf, uint64_t len, uint64_t off)
{
	uint64_t have = off < d->live_size ? d->live_size - off : 0;

	if (have > len)
		have = len;
	memcpy(buf, d->live + off, have);
	memset((char *)buf + have, 0, len - have);
}

static void complete(struct device *d, struct flight f)
{
	struct host_io *io = f.io, *then = io->then;
	int res = 0;

	if (f.change) {
		d->clock++;
		res = end_change(d, &f);
		observe(d, POINT_EVENT);
	} else if (io->op == HOST_FSYNC) {
		res = end_sync(d, &f);
		d->clock++;
	} else {
		res = fails(d, d->fail_one_in) ? -EIO : 0;
		if (!res)
			read_live(d, io->buf, io->len, io->off);
	}
	io->done(io, res);
	if (then && res)
		then->done(then, -ECANCELED);
	else if (then)
		device_submit(then);
}

unsigned device_poll(struct device *d, bool wait)
{
	unsigned n = 0, budget = 1 + (unsigned)rnd(&d->rng, 3);
	size_t i, k, best, ripe;
	struct flight f;

	for (; d->nflights && n < budget; n++) {
		for (best = 0, ripe = 0, i = 0; i < d->nflights; i++) {
			if (d->flight[i].ripe < d->flight[best].ripe)
				best = i;
			ripe += d->flight[i].ripe <= d->clock;
		}
		k = ripe ? rnd(&d->rng, ripe) : 0;
		for (i = 0; ripe && i < d->nflights; i++)
			if (d->flight[i].ripe <= d->clock && !k--)
				best = i;
		f = d->flight[best];
		d->flight[best] = d->flight[--d->nflights];
		complete(d, f);
	}
	return n;
}

void device_kill(struct device *d)
{
	struct change *c;
	size_t i;

	for (i = 0; i < d->nflights; i++) {
		c = d->flight[i].change;
		if (!c)
			continue;
		if (rnd(&d->rng, 2))
			c->len = rnd(&d->rng, c->len / SECTOR + 1) * SECTOR;
		put(d->live, c);
		extend(&d->live_size, c);
		c->completed = ++d->clock;
	}
	d->nflights = 0;
	d->opened = 0;
	observe(d, POINT_EVENT);
}

/* ---- the library's view ---- */

static unsigned opened_poll(struct host_file *f, bool wait)
{
	return device_poll(device_of(f), wait);
}

static int opened_pread(struct host_file *f, void *buf, size_t len, uint64_t off)
{
	read_live(device_of(f), buf, len, off);
	return 0;
}

static int opened_size(struct host_file *f, uint64_t *size)
{
	*size = device_of(f)->live_size;
	return 0;
}

static void opened_close(struct host_file *f)
{
	device_of(f)->opened--;
	free(f);
}

static const struct host_ops device_ops = { device_submit, opened_poll, opened_pread, opened_size,
					    opened_close };

struct host_file *device_open(struct device *d, const char *path, bool read_only, uint64_t ino,
			      unsigned slow_one_in)
{
	struct opened *o = calloc(1, sizeof(*o));

	if (!o)
		die("out of memory");
	o->d = d;
	o->slow_one_in = slow_one_in;
	o->file = (struct host_file){ .ops = &device_ops,
				      .dev = 1,
				      .ino = ino,
				      .dio_align = d->dio_align,
				      .mem_align = d->dio_align > 1 ? SECTOR : 1,
				      .read_only = read_only,
				      .fixed_size = d->fixed_size,
				      .path = path };
	d->opened++;
	return &o->file;
}

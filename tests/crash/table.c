// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * table.c - words per guest cluster, hits on them, and drains.
 *
 * A hit looks its word up when it starts and uses it until its I/O completed, as every engine does. A
 * withdrawal removes the words, then waits for the hits that started before.
 */
#include "table.h"
#include "judge.h"
#include "qcow2/op.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

bool table_no_drain;

struct word {
	bool valid, writable;
	enum word_kind kind;
	unsigned file;
	uint64_t host;
};

struct hit {
	struct host_io io;
	struct table *t;
	uint64_t first, n, serial, issued;
	TAILQ_ENTRY(hit) link;
};

struct drain {
	struct op *waiter;
	uint64_t first, end, clock;
	TAILQ_ENTRY(drain) link;
};

struct table {
	struct chain *c;
	struct model *m;
	void (*hit_done)(void *ctx, uint64_t first, uint64_t n);
	void *ctx;
	struct word *word;
	uint64_t nwords;
	struct host_file *file; /* the image, for hits */
	TAILQ_HEAD(, hit) hits;
	TAILQ_HEAD(, drain) drains;
	unsigned in_flight;
	struct qcow2_table_ops ops;
};

/* ---- the library's side ---- */

static void publish(void *ctx, uint64_t guest, uint64_t len, enum word_kind kind, unsigned file,
		    uint64_t host_off, bool writable)
{
	struct table *t = ctx;
	uint64_t cs = t->c->t->cluster_size, i;

	if (guest % cs || len % cs || (guest + len) / cs > t->nwords)
		finding("words are published for %" PRIu64 "+%" PRIu64, guest, len);
	if (writable && judge_autoclear((struct span){ t->c->image->durable, t->c->image->durable_size }))
		finding("a writable word is published while autoclear bits are set");
	if (writable && (file || kind != WORD_DATA))
		finding("a word of file %u, kind %d, is writable", file, kind);
	for (i = guest / cs; i < (guest + len) / cs; i++, host_off += cs)
		t->word[i] = (struct word){ true, writable, kind, file, host_off };
}

static bool busy(const struct table *t, const struct drain *d)
{
	const struct hit *h;

	TAILQ_FOREACH (h, &t->hits, link)
		if (h->issued < d->clock && h->first < d->end && d->first < h->first + h->n)
			return true;
	return false;
}

static int withdraw(void *ctx, uint64_t guest, uint64_t len, struct op *waiter)
{
	struct table *t = ctx;
	uint64_t cs = t->c->t->cluster_size, i;
	struct drain d = { waiter, guest / SECTOR, (guest + len) / SECTOR, ++t->c->image->clock, { 0 } },
		     *copy;

	for (i = guest / cs; i * cs < guest + len && i < t->nwords; i++)
		t->word[i].valid = false;
	if (!busy(t, &d) || table_no_drain)
		return 0;
	copy = malloc(sizeof(*copy));
	if (!copy)
		die("out of memory");
	*copy = d;
	TAILQ_INSERT_TAIL(&t->drains, copy, link);
	op_get(waiter);
	return -EWOULDBLOCK;
}

/* ---- hits ---- */

static void wake(struct table *t)
{
	struct drain *d, *next;

	for (d = TAILQ_FIRST(&t->drains); d; d = next) {
		next = TAILQ_NEXT(d, link);
		if (busy(t, d))
			continue;
		TAILQ_REMOVE(&t->drains, d, link);
		op_put(d->waiter, 0);
		free(d);
	}
}

static void check_read(struct table *t, uint64_t first, uint64_t n, const uint8_t *buf, uint64_t issued)
{
	uint64_t i, v;

	for (i = 0; i < n; i++) {
		v = buf ? sector_value(buf + i * SECTOR) : 0;
		if (!model_reads(t->m, first + i, v, issued))
			finding("a hit reads %s in sector %" PRIu64 "; it may hold %s", model_word(v),
				first + i, model_says(t->m, first + i));
	}
}

static void hit_end(struct host_io *io, int res)
{
	struct hit *h = io->owner;
	struct table *t = h->t;

	TAILQ_REMOVE(&t->hits, h, link);
	t->in_flight--;
	if (io->op == HOST_WRITE)
		model_complete(t->m, h->first, h->n, h->serial, ++t->c->image->clock, !res);
	else if (!res)
		check_read(t, h->first, h->n, io->buf, h->issued);
	t->hit_done(t->ctx, h->first, h->n);
	free(io->buf);
	free(h);
	wake(t);
}

/* Backing files do not change: read at once. */
static void read_backing(struct table *t, const struct word *w, uint64_t first, uint64_t n, uint64_t in)
{
	/* The template names the raw file first, which is the last of the chain. */
	struct device *d = t->c->backing[t->c->t->backings - w->file];
	uint64_t from = w->host + in * SECTOR;

	if (from + n * SECTOR > DEVICE_MAX)
		finding("a word names byte %" PRIu64 " of backing file %u", from, w->file);
	check_read(t, first, n, d->live + from, ++t->c->image->clock);
}

uint64_t table_hit(struct table *t, uint64_t first, uint64_t n, bool write, uint64_t serial)
{
	uint64_t per = t->c->t->cluster_size / SECTOR, in = first % per;
	struct word w = t->word[first / per];
	struct hit *h;

	if (n > per - in)
		n = per - in;
	if (!w.valid || (write && !w.writable))
		return 0;
	if (w.kind == WORD_DATA && w.file) {
		read_backing(t, &w, first, n, in);
		return 0;
	}
	if (w.kind == WORD_ZERO) {
		check_read(t, first, n, NULL, ++t->c->image->clock);
		return 0;
	}
	h = calloc(1, sizeof(*h));
	if (!h)
		die("out of memory");
	*h = (struct hit){ .t = t, .first = first, .n = n, .serial = serial, .issued = ++t->c->image->clock };
	h->io = (struct host_io){ .op = write ? HOST_WRITE : HOST_READ,
				  .file = t->file,
				  .off = w.host + in * SECTOR,
				  .len = n * SECTOR,
				  .buf = aligned_alloc(SECTOR, n * SECTOR),
				  .done = hit_end,
				  .owner = h };
	if (!h->io.buf)
		die("out of memory");
	TAILQ_INSERT_TAIL(&t->hits, h, link);
	t->in_flight++;
	if (write) {
		fill_words(h->io.buf, first, n, serial);
		model_issue(t->m, first, n, serial, NULL, h->issued);
	}
	t->file->ops->submit(&h->io);
	return n;
}

/* ---- life ---- */

struct table *table_new(struct chain *c, struct model *m,
			void (*hit_done)(void *ctx, uint64_t first, uint64_t n), void *ctx)
{
	struct table *t = calloc(1, sizeof(*t));

	if (!t)
		die("out of memory");
	t->c = c;
	t->m = m;
	t->hit_done = hit_done;
	t->ctx = ctx;
	t->nwords = (c->t->sectors * SECTOR + c->t->cluster_size - 1) / c->t->cluster_size;
	t->word = calloc(t->nwords, sizeof(*t->word));
	if (!t->word)
		die("out of memory");
	t->file = device_open(c->image, "hits", false, 1, 3);
	TAILQ_INIT(&t->hits);
	TAILQ_INIT(&t->drains);
	t->ops = (struct qcow2_table_ops){ publish, withdraw, t };
	return t;
}

void table_free(struct table *t)
{
	if (t->in_flight)
		die("a table is freed in use");
	t->file->ops->close(t->file);
	free(t->word);
	free(t);
}

struct qcow2_table_ops *table_ops(struct table *t)
{
	return &t->ops;
}

unsigned table_in_flight(const struct table *t)
{
	return t->in_flight;
}

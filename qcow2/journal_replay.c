/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * journal_replay.c - after a kill: the journal's words into the file, its sets of clusters to who opens it.
 *
 * The words are those since the last durable generation, so writing them equals committing the open and the
 * closing generation as one, in the order of commit.c: refcount blocks; fdatasync (always: it covers guest
 * data and whole new tables too) - refcount table; fdatasync - header; fdatasync - L2; fdatasync - L1;
 * fdatasync A lowered refcount was recorded only after its removal was durable, so it may go first. A power
 * cut in between is then like any other. Each word in the file must be what the journal found there or put
 * there, else the file is not the one that was left, and nothing is written. Clusters of ALLOC are named by
 * no word that counts, so they lose their reference as those of LOWER do: the journal is left with these as
 * LOWER. tail moves last; killed before, the same happens again.
 *
 * After a failed fsync (LOST) nothing of that is done: what the host dropped no later fsync makes durable, so
 * no entry may come to name it. The image is opened read-only and its tables are read through the words
 * (struct overlay), so that what was completed stays readable; the journal stays as it is.
 *
 * The memory is not trusted: a record that cannot be is refused before anything is written.
 */
#include "broken.h"
#include "journal.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LOWER (1ull << 24) /* clusters in both sets: many times what commit.c lets pile up */
#define HEADER_BYTES 128u
#define MAX_CLUSTER (QCOW2_MAX_HOST_OFFSET >> QCOW2_MIN_CLUSTER_BITS)

struct word {
	unsigned stage;
	uint64_t off, pos; /* bytes in the file; record */
	uint64_t old, new;
};

struct replay {
	struct host_file *file;
	struct journal_header *h;
	struct journal_record *rec;
	uint64_t capacity, tail, head; /* a copy of what was found */
	uint64_t file_end; /* no table goes past it */
	struct word *words; /* sorted by stage, offset, position */
	size_t nwords;
	struct cluster_set alloc, lower;
	struct qcow2_error *err;
};

static const unsigned stage_of[] = {
	[BLK_RB] = 0, [BLK_RT] = 1, [BLK_HEADER] = 2, [BLK_L2] = 3, [BLK_L1] = 4
};
#define STAGES 5u

static int refuse(const struct replay *r, int code, const char *why)
{
	return qcow2_fail(r->err, code, "%s: the journal does not match its image: %s", r->file->path, why);
}

/* ---- reading the records ---- */

static int check_header(struct replay *r, const struct qcow2_journal *mem)
{
	const struct journal_header *h = r->h;

	if (!mem->mem || !journal_capacity(mem->size) || h->magic != JOURNAL_MAGIC)
		return refuse(r, -EINVAL, "it is not a journal");
	if (h->version != JOURNAL_VERSION)
		return refuse(r, -EINVAL, "it is of another version");
	if (h->size != mem->size)
		return refuse(r, -EINVAL, "its size is wrong");
	if (memcmp(h->boot_id, mem->boot_id, sizeof(h->boot_id)))
		return refuse(r, -ESTALE, "it is of another boot");
	if (h->dev != mem->dev || h->ino != mem->ino)
		return refuse(r, -ESTALE, "it is of another file");
	r->capacity = journal_capacity(mem->size);
	r->tail = h->tail;
	r->head = h->head;
	if (r->tail > r->head && r->tail - r->head < r->capacity && !(r->tail % r->capacity) &&
	    r->tail >> 62 == 0)
		r->head = r->tail; /* killed while it started over */
	if (r->head >> 62 || r->tail > r->head || r->head - r->tail > r->capacity)
		return refuse(r, -EUCLEAN, "its ends are wrong");
	return 0;
}

static const struct journal_record *record(const struct replay *r, uint64_t pos)
{
	return &r->rec[pos % r->capacity];
}

static bool record_valid(const struct journal_record *rec)
{
	uint64_t arg = rec->what & ((1ull << 60) - 1), off = rec->what & JOURNAL_OFFSET_MASK;

	switch (rec->what >> 60) {
	case REC_WORD:
		return arg >> 56 <= BLK_RB &&
		       off < (arg >> 56 == BLK_HEADER ? HEADER_BYTES : QCOW2_MAX_HOST_OFFSET) / 8;
	case REC_ALLOC:
	case REC_USED:
	case REC_LOWER:
	case REC_LOWERED:
		return !arg && rec->b && rec->b <= MAX_LOWER && rec->a < MAX_CLUSTER &&
		       rec->b <= MAX_CLUSTER - rec->a;
	case REC_RESET:
		return !arg && !rec->a && !rec->b;
	default:
		return false;
	}
}

static int word_order(const void *x, const void *y)
{
	const struct word *a = x, *b = y;

	if (a->stage != b->stage)
		return a->stage < b->stage ? -1 : 1;
	if (a->off != b->off)
		return a->off < b->off ? -1 : 1;
	return a->pos < b->pos ? -1 : a->pos > b->pos;
}

/* All words, sorted; *sets: the record behind the last RESET, from which the sets are to be read. */
static int read_words(struct replay *r, uint64_t *sets)
{
	uint64_t pos, n = r->head - r->tail;

	*sets = r->tail;
	r->words = malloc((n ? n : 1) * sizeof(*r->words));
	if (!r->words)
		return -ENOMEM;
	for (pos = r->tail; pos < r->head; pos++) {
		const struct journal_record *rec = record(r, pos);

		if (!record_valid(rec))
			return refuse(r, -EUCLEAN, "it holds a record that cannot be");
		if (rec->what >> 60 == REC_RESET)
			*sets = pos + 1;
		if (rec->what >> 60 != REC_WORD)
			continue;
		r->words[r->nwords++] = (struct word){ .stage = stage_of[rec->what >> 56 & 15],
						       .off = (rec->what & JOURNAL_OFFSET_MASK) * 8,
						       .pos = pos,
						       .old = rec->a,
						       .new = rec->b };
	}
	qsort(r->words, r->nwords, sizeof(*r->words), word_order);
	return 0;
}

static int apply_set(struct replay *r, const struct journal_record *rec)
{
	int ret;

	switch (rec->what >> 60) {
	case REC_ALLOC:
		return cluster_set_add(&r->alloc, rec->a, rec->b);
	case REC_USED:
		return cluster_set_remove(&r->alloc, rec->a, rec->b);
	case REC_LOWER:
		ret = cluster_set_remove(&r->alloc, rec->a, rec->b);
		return ret ? ret : cluster_set_add(&r->lower, rec->a, rec->b);
	case REC_LOWERED:
		return cluster_set_remove(&r->lower, rec->a, rec->b);
	default:
		return 0;
	}
}

/* The sets as they are at the end: all of it in r->lower. */
static int read_sets(struct replay *r, uint64_t from)
{
	uint64_t pos, total = 0;
	size_t i;
	int ret = 0;

	for (pos = from; !ret && pos < r->head; pos++)
		ret = apply_set(r, record(r, pos));
	for (i = r->alloc.start; !ret && i < r->alloc.n; i++)
		if (r->alloc.v[i].n)
			ret = cluster_set_add(&r->lower, r->alloc.v[i].first, r->alloc.v[i].n);
	for (i = r->lower.start; !ret && i < r->lower.n; i++) {
		total += r->lower.v[i].n;
		if (total > MAX_LOWER)
			ret = refuse(r, -EUCLEAN, "it holds more clusters than can be");
	}
	return ret;
}

/* ---- the words against the file ---- */

/* Words are read and written in units that hold whole words and can be written alone. */
static uint64_t unit_of(const struct host_file *f)
{
	return f->dio_align > 512 ? f->dio_align : 512;
}

static size_t same_word(const struct replay *r, size_t i)
{
	size_t k = i;

	while (k < r->nwords && r->words[k].stage == r->words[i].stage && r->words[k].off == r->words[i].off)
		k++;
	return k;
}

/* Is each word what the first record found or a later one put there? */
static int check_words(struct replay *r, void *buf)
{
	uint64_t unit = unit_of(r->file), have = UINT64_MAX, start, found;
	size_t i, end, k;
	int ret;

	for (i = 0; i < r->nwords; i = end) {
		end = same_word(r, i);
		start = r->words[i].off - r->words[i].off % unit;
		if (start >= r->file_end)
			return refuse(r, -ESTALE, "the image is shorter than it was");
		ret = start == have ? 0 : r->file->ops->pread(r->file, buf, unit, start);
		if (ret)
			return qcow2_fail(r->err, ret, "%s: cannot read it to apply its journal: %s",
					  r->file->path, strerror(-ret));
		have = start;
		memcpy(&found, (char *)buf + (r->words[i].off - start), 8);
		for (k = i; found != r->words[i].old && k < end; k++)
			if (found == r->words[k].new)
				break;
		if (k == end)
			return refuse(r, -ESTALE, "the image was changed by somebody else");
	}
	return 0;
}

struct waiter {
	int res;
	bool done;
};

static void io_done(struct host_io *io, int res)
{
	struct waiter *w = io->owner;

	w->res = res;
	w->done = true;
}

static int host_do(const struct replay *r, enum host_op op, void *buf, uint64_t len, uint64_t off)
{
	struct waiter w = { 0 };
	struct host_io io = {
		.op = op, .file = r->file, .off = off, .len = len, .buf = buf, .done = io_done, .owner = &w
	};

	r->file->ops->submit(&io);
	while (!w.done)
		r->file->ops->poll(r->file, true);
	return w.res;
}

/* Write the words [i, end) of one unit. */
static int write_unit(const struct replay *r, void *buf, uint64_t start, size_t i, size_t end)
{
	uint64_t unit = unit_of(r->file);
	int ret = r->file->ops->pread(r->file, buf, unit, start);

	for (; i < end; i++) /* by position: the last value stays */
		memcpy((char *)buf + (r->words[i].off - start), &r->words[i].new, 8);
	return ret ? ret : host_do(r, HOST_WRITE, buf, unit, start);
}

static int write_words(struct replay *r, void *buf)
{
	uint64_t unit = unit_of(r->file);
	size_t i = 0, first, end;
	unsigned stage;
	int ret = 0;

	for (stage = 0; !ret && stage < STAGES; stage++) {
		for (first = i; !ret && i < r->nwords && r->words[i].stage == stage; i = end) {
			uint64_t start = r->words[i].off - r->words[i].off % unit;

			for (end = i; end < r->nwords && r->words[end].stage == stage &&
				      r->words[end].off - start < unit;)
				end++;
			ret = write_unit(r, buf, start, i, end);
		}
		if (!ret && r->nwords && (i > first || !stage))
			ret = host_do(r, HOST_FSYNC, NULL, 0, 0);
	}
	return ret ? qcow2_fail(r->err, ret, "%s: cannot apply its journal: %s", r->file->path,
				strerror(-ret))
		   : 0;
}

/* ---- what is left of the journal ---- */

/* Nothing but LOWER from @from on: a recovery was killed when it had recorded that. */
static bool only_lower(const struct replay *r, uint64_t from)
{
	uint64_t pos;

	for (pos = from; pos < r->head; pos++)
		if (record(r, pos)->what >> 60 != REC_LOWER)
			return false;
	return from > r->tail; /* a RESET before it */
}

/* Leave RESET and r->lower in it; or nothing. */
static int shorten(struct replay *r, uint64_t sets)
{
	uint64_t pos = r->head, runs = 0;
	size_t i;

	for (i = r->lower.start; i < r->lower.n; i++)
		runs += r->lower.v[i].n != 0;
	if (runs && only_lower(r, sets)) {
		__atomic_store_n(&r->h->tail, sets - 1, __ATOMIC_RELEASE);
		return 0;
	}
	if (!runs) {
		__atomic_store_n(&r->h->tail, r->head, __ATOMIC_RELEASE);
		__atomic_store_n(&r->h->head, r->head, __ATOMIC_RELEASE); /* it may lie before tail */
		return 0;
	}
	if (r->capacity - (r->head - r->tail) < runs + 1)
		return refuse(r, -EUCLEAN, "it is too full");
	r->rec[pos++ % r->capacity] = (struct journal_record){ .what = (uint64_t)REC_RESET << 60 };
	for (i = r->lower.start; i < r->lower.n; i++)
		if (r->lower.v[i].n)
			r->rec[pos++ % r->capacity] =
				(struct journal_record){ (uint64_t)REC_LOWER << 60, r->lower.v[i].first,
							 r->lower.v[i].n };
	__atomic_store_n(&r->h->head, pos, __ATOMIC_RELEASE);
	__atomic_store_n(&r->h->tail, r->head, __ATOMIC_RELEASE);
	return 0;
}

/* ---- instead, after a failed fsync ---- */

struct overlay {
	struct word *words;
	size_t n;
};

/* The words move to *over. */
static int make_overlay(struct replay *r, struct overlay **over)
{
	*over = calloc(1, sizeof(**over));
	if (!*over)
		return -ENOMEM;
	(*over)->words = r->words;
	(*over)->n = r->nwords;
	r->words = NULL;
	return 0;
}

void overlay_patch(const struct overlay *over, void *data, uint64_t off, uint32_t len)
{
	size_t i;

	for (i = 0; i < over->n; i++) /* by position: the last value stays */
		if (over->words[i].off >= off && over->words[i].off < off + len)
			memcpy((char *)data + (over->words[i].off - off), &over->words[i].new, 8);
}

void overlay_free(struct overlay *over)
{
	if (over)
		free(over->words);
	free(over);
}

int journal_replay(struct host_file *file, const struct qcow2_journal *mem, struct cluster_set *lower,
		   struct overlay **over, struct qcow2_error *err)
{
	struct replay r = { .file = file, .h = mem->mem, .err = err };
	uint64_t sets = 0;
	void *buf = buf_alloc(unit_of(file));
	int ret = buf ? check_header(&r, mem) : -ENOMEM;

	*over = NULL;
	if (!ret) {
		ret = file->ops->size(file, &r.file_end);
		if (ret)
			qcow2_fail(err, ret, "%s: cannot tell its size: %s", file->path, strerror(-ret));
		r.file_end = (r.file_end | ((1u << QCOW2_MAX_CLUSTER_BITS) - 1)) + 1;
	}
	if (!ret) {
		r.rec = journal_records(mem->mem);
		ret = read_words(&r, &sets);
	}
	if (!ret)
		ret = read_sets(&r, sets);
	if (!ret)
		ret = check_words(&r, buf);
	if (!ret && r.h->flags & JOURNAL_LOST && !BROKEN(LOST_REPLAY)) {
		ret = make_overlay(&r, over);
		cluster_set_clear(&r.lower);
	} else if (!ret) {
		ret = write_words(&r, buf);
		if (!ret)
			ret = shorten(&r, sets);
	}
	if (ret == -ENOMEM)
		qcow2_fail(err, ret, "%s: out of memory", file->path);
	buf_free(buf);
	free(r.words);
	cluster_set_clear(&r.alloc);
	if (ret)
		cluster_set_clear(&r.lower);
	*lower = r.lower;
	return ret;
}

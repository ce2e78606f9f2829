/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * journal.c - a physical redo journal in memory that outlives the process.
 *
 * When the process is killed, data is in the file; what is lost is metadata: cached blocks and the lists of
 * commit.c. The journal holds every change of a cached word since the last durable generation (absolute
 * values) and two sets of host clusters: ALLOC (refcount 1, named by nothing) and LOWER (named no more,
 * refcount not lowered). A kill leaves memory as the stores were, so records need neither checksum nor flush:
 * they are appended behind `head` and count once head has moved over them (a release store).
 *
 * Invariants
 *  - What was published is a state the image really had: head moves only when no change is half recorded.
 *  - Whoever outside learns of a change (done(), the mapping table, the file's metadata) does so after it was
 * published.
 *  - `tail` passes a change only after it is durable, and before any cluster it dropped is given back; so no
 * record names a block that has become something else.
 *  - A RESET with both sets is published before tail moves: what the sets were before it does not matter any
 * more.
 *
 * Room, in records (capacity N = 87376 for QCOW2_JOURNAL_BYTES). A change of one cached L2 block is at most
 * 2 per entry; `slack` is that, and the few of the makers and of requests that fail. Requests change nothing
 * while more than `limit` and one per run of ALLOC are in use (A of these: one per request in flight, so
 * thousands at most), so at most F = limit + slack + A are in use when they stop, the sets' runs included
 * (each was recorded after tail). Only lowering goes on, as long as 3 F are free. Of those a commit that ends
 * takes 1 + F (RESET and sets), a recovery once as many, and makers and failing requests the rest. After a
 * truncation RESET, sets and what came during the commit are at most 2 F, so that lowering gets on if N >= 6
 * F: limit = N / 6 - slack at most. With QCOW2_JOURNAL_BYTES limit is 5461, slack 1088, N / 6 14562: A may
 * be 8013. Should it overflow all the same, the image fails; what is published stays true.
 *
 * A power cut loses the journal, and nothing of the ordering in commit.c rests on it.
 */
#include "journal.h"
#include "commit.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LIMIT_BYTES (128u << 10) /* of records: more makes requests wait for a commit */
#define LIMIT_MIN 16u
#define LOOK_BACK 4u

struct journal {
	struct journal_header *h;
	struct journal_record *rec;
	uint64_t capacity, limit, reserve; /* records */
	uint64_t end; /* position behind the last appended one; >= head */
	uint64_t closed; /* end of the generation being committed */
	struct cluster_set alloc;
	bool broken; /* it overflowed: nothing is published any more */
};

/* ---- sets ---- */

/* Room for one more run. Moves the runs. */
static int make_room(struct cluster_set *s)
{
	size_t i, k = 0, cap = s->cap ? s->cap * 2 : 64;
	void *v;

	if (s->n < s->cap)
		return 0;
	for (i = s->start; i < s->n; i++)
		if (s->v[i].n)
			s->v[k++] = s->v[i];
	s->start = 0;
	s->n = k;
	if (k < s->cap / 2)
		return 0;
	v = realloc(s->v, cap * sizeof(*s->v));
	if (!v)
		return -ENOMEM;
	s->v = v;
	s->cap = cap;
	return 0;
}

static void push(struct cluster_set *s, uint64_t first, uint64_t n)
{
	s->v[s->n].first = first;
	s->v[s->n++].n = n;
	s->runs++;
}

int cluster_set_add(struct cluster_set *s, uint64_t first, uint64_t n)
{
	int ret = make_room(s);

	if (!ret)
		push(s, first, n);
	return ret;
}

/* Take [first, first + n) out of run i, which holds it. There is room. */
static void cut(struct cluster_set *s, size_t i, uint64_t first, uint64_t n)
{
	uint64_t before = first - s->v[i].first, after = s->v[i].n - before - n;

	if (before && after)
		push(s, first + n, after);
	if (!before)
		s->v[i].first = first + n;
	s->v[i].n = before ? before : after;
	s->runs -= !s->v[i].n;
	while (s->start < s->n && !s->v[s->start].n)
		s->start++;
}

int cluster_set_remove(struct cluster_set *s, uint64_t first, uint64_t n)
{
	while (n) {
		uint64_t next = UINT64_MAX, k; /* the first one behind @first that is in it */
		int ret = make_room(s);
		size_t i;

		if (ret)
			return ret;
		for (i = s->start; i < s->n; i++) {
			if (first >= s->v[i].first && first - s->v[i].first < s->v[i].n)
				break;
			if (s->v[i].n && s->v[i].first > first && s->v[i].first < next)
				next = s->v[i].first;
		}
		k = min_u64(n, i < s->n ? s->v[i].first + s->v[i].n - first : next - first);
		if (i < s->n)
			cut(s, i, first, k);
		first += k;
		n -= k;
	}
	return 0;
}

void cluster_set_clear(struct cluster_set *s)
{
	free(s->v);
	*s = (struct cluster_set){ 0 };
}

/* ---- the memory ---- */

uint64_t qcow2_journal_size(void)
{
	return QCOW2_JOURNAL_BYTES;
}

void qcow2_journal_format(const struct qcow2_journal *mem)
{
	struct journal_header *h = mem->mem;

	__atomic_store_n(&h->magic, 0, __ATOMIC_RELEASE);
	h->version = JOURNAL_VERSION;
	h->flags = 0;
	h->size = mem->size;
	memcpy(h->boot_id, mem->boot_id, sizeof(h->boot_id));
	h->dev = mem->dev;
	h->ino = mem->ino;
	h->tail = h->head = 0;
	memset(h->reserved, 0, sizeof(h->reserved));
	__atomic_store_n(&h->magic, JOURNAL_MAGIC, __ATOMIC_RELEASE);
}

bool qcow2_journal_live(const struct qcow2_journal *mem)
{
	const struct journal_header *h = mem->mem;

	return mem->size >= sizeof(*h) && h->magic == JOURNAL_MAGIC && h->tail < h->head;
}

bool qcow2_journal_of(const struct qcow2_journal *mem)
{
	const struct journal_header *h = mem->mem;

	return qcow2_journal_live(mem) && h->dev == mem->dev && h->ino == mem->ino;
}

bool qcow2_journal_lost(const struct qcow2_journal *mem)
{
	const struct journal_header *h = mem->mem;

	return qcow2_journal_live(mem) && h->flags & JOURNAL_LOST;
}

int journal_attach(struct qcow2_image *img, const struct qcow2_journal *mem, struct qcow2_error *err)
{
	uint64_t slack = 2ull * (img->geo.block_size / 8) + 64;
	struct journal *j;

	if (journal_capacity(mem->size) / 6 < slack + LIMIT_MIN)
		return qcow2_fail(err, -EINVAL, "%s: its journal is too small: %llu bytes", img->file->path,
				  (unsigned long long)mem->size);
	j = calloc(1, sizeof(*j));
	if (!j)
		return qcow2_fail(err, -ENOMEM, "%s: out of memory", img->file->path);
	j->h = mem->mem;
	j->rec = journal_records(mem->mem);
	j->capacity = journal_capacity(mem->size);
	j->limit = min_u64(LIMIT_BYTES / sizeof(*j->rec), j->capacity / 6 - slack);
	j->reserve = j->capacity / 2;
	j->end = j->closed = j->h->head;
	img->journal = j;
	return 0;
}

void journal_free(struct qcow2_image *img)
{
	if (!img->journal)
		return;
	cluster_set_clear(&img->journal->alloc);
	free(img->journal);
	img->journal = NULL;
}

static uint64_t used(const struct journal *j)
{
	return j->end - j->h->tail;
}

/* Not because of what is allocated: who has to wait for a commit may be the one who is to name it. */
bool journal_full(const struct qcow2_image *img)
{
	const struct journal *j = img->journal;

	return j && used(j) > j->limit + j->alloc.runs;
}

bool journal_reserve_short(const struct qcow2_image *img)
{
	const struct journal *j = img->journal;

	return j && j->capacity - used(j) < j->reserve;
}

/* ---- appending ---- */

static struct journal_record *at(const struct journal *j, uint64_t pos)
{
	return &j->rec[pos % j->capacity];
}

static uint64_t type_word(enum record_type type)
{
	return (uint64_t)type << 60;
}

static void append(struct qcow2_image *img, uint64_t what, uint64_t a, uint64_t b)
{
	struct journal *j = img->journal;

	if (j->broken)
		return;
	if (used(j) >=
	    j->capacity) { /* cannot be, see above; what is not recorded must not be told to anybody */
		j->broken = true;
		image_set_mode(img, MODE_FAILED);
		return;
	}
	*at(j, j->end++) = (struct journal_record){ what, a, b };
}

/* A record appended, not yet published and no RESET, @back before the end; NULL: no such. */
static struct journal_record *recent(const struct journal *j, uint64_t back)
{
	struct journal_record *r;

	if (j->end - j->h->head < back)
		return NULL;
	r = at(j, j->end - back);
	return r->what == type_word(REC_RESET) ? NULL : r;
}

void journal_word(struct qcow2_image *img, enum block_type type, uint64_t off, uint64_t old, uint64_t new)
{
	uint64_t what = type_word(REC_WORD) | (uint64_t)type << 56 | off / 8, back;
	struct journal *j = img->journal;
	struct journal_record *r;

	if (!j)
		return;
	for (back = 1; back <= LOOK_BACK && (r = recent(j, back)); back++)
		if (r->what == what) {
			r->b = new;
			return;
		}
	append(img, what, old, new);
}

/* Runs grow; only over words, as the order of records of the sets matters. */
static void append_run(struct qcow2_image *img, enum record_type type, uint64_t first, uint64_t n)
{
	struct journal *j = img->journal;
	struct journal_record *r;
	uint64_t back;

	for (back = 1; back <= LOOK_BACK && (r = recent(j, back)); back++) {
		if (r->what == type_word(type) && r->a + r->b == first) {
			r->b += n;
			return;
		}
		if (r->what >> 60 != REC_WORD)
			break;
	}
	append(img, type_word(type), first, n);
}

void journal_alloc(struct qcow2_image *img, uint64_t first, uint64_t n)
{
	if (!img->journal)
		return;
	append_run(img, REC_ALLOC, first, n);
	(void)cluster_set_add(&img->journal->alloc, first, n); /* no memory: a leak if we are killed */
}

void journal_used(struct qcow2_image *img, uint64_t first, uint64_t n)
{
	if (!img->journal || !n)
		return;
	append_run(img, REC_USED, first, n);
	(void)cluster_set_remove(&img->journal->alloc, first, n);
}

void journal_lower(struct qcow2_image *img, uint64_t first, uint64_t n)
{
	if (!img->journal)
		return;
	append_run(img, REC_LOWER, first, n);
	(void)cluster_set_remove(&img->journal->alloc, first, n);
}

void journal_lowered(struct qcow2_image *img, uint64_t cluster)
{
	if (img->journal)
		append_run(img, REC_LOWERED, cluster, 1);
}

/* ---- publishing and truncating ---- */

void journal_publish(struct qcow2_image *img)
{
	struct journal *j = img->journal;

	if (j && !j->broken && j->h->head != j->end)
		__atomic_store_n(&j->h->head, j->end, __ATOMIC_RELEASE);
}

void journal_close(struct qcow2_image *img)
{
	if (!img->journal)
		return;
	journal_publish(img);
	img->journal->closed = img->journal->end;
}

/* Nothing is recorded that matters: start over at the memory's beginning, so that an idle image touches few
 * pages. tail first: a journal whose tail lies behind its head is empty, too. */
static void make_empty(struct journal *j)
{
	uint64_t over = j->end % j->capacity;

	if (over)
		j->end += j->capacity - over;
	j->closed = j->end;
	__atomic_store_n(&j->h->tail, j->end, __ATOMIC_RELEASE);
	__atomic_store_n(&j->h->head, j->end, __ATOMIC_RELEASE);
}

static void append_lower(void *ctx, uint64_t first, uint64_t n)
{
	append(ctx, type_word(REC_LOWER), first, n);
}

void journal_truncate(struct qcow2_image *img)
{
	struct journal *j = img->journal;
	size_t i;

	if (!j || j->broken)
		return;
	if (j->closed == j->end && !j->alloc.runs && !commit_lower_pending(img)) {
		make_empty(j);
		return;
	}
	append(img, type_word(REC_RESET), 0, 0);
	for (i = j->alloc.start; i < j->alloc.n; i++)
		if (j->alloc.v[i].n)
			append(img, type_word(REC_ALLOC), j->alloc.v[i].first, j->alloc.v[i].n);
	commit_each_lower(img, append_lower, img);
	if (j->broken)
		return;
	journal_publish(img);
	__atomic_store_n(&j->h->tail, j->closed, __ATOMIC_RELEASE);
}

void journal_lost(struct qcow2_image *img)
{
	if (img->journal)
		__atomic_store_n(&img->journal->h->flags, img->journal->h->flags | JOURNAL_LOST,
				 __ATOMIC_RELEASE);
}

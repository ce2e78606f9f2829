// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * workload.c - the guest, and the power cuts.
 *
 * A run is a chain of lives: the first begins with a template, each further one with a state that a power cut
 * in the life before left. A life opens the image, keeps requests and hits in flight and closes it. Requests
 * of the guest do not overlap, but a discard or zeroing of whole clusters may race with a hit. At each moment
 * that changes what a crash could leave the observer judges some of the states there.
 */
#include "workload.h"
#include "chain.h"
#include "judge.h"
#include "qcow2/op.h"
#include "sample.h"
#include "states.h"
#include "table.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <time.h>

#define DEPTH 24u
#define LIVES 3u
#define JOURNAL_BYTES (256u << 10) /* small: it gets full */
#define OLD_DATA (1u << 20) /* bytes of it behind an image on a block device */

struct life;

struct job {
	struct qcow2_req req;
	struct life *life;
	bool busy;
	uint64_t serial, issued;
	uint64_t first, n; /* sectors whose content it changes */
	uint8_t *buf;
};

struct life {
	const struct family *f;
	struct chain c;
	struct rng rng; /* of the guest */
	struct model *m;
	struct table *table;
	struct qcow2_journal journal; /* mem NULL: none */
	struct job jobs[DEPTH];
	uint8_t *busy, *hit; /* per sector */
	uint64_t last_hit; /* sector */
	unsigned depth, ops;
	uint64_t max_sectors; /* of a request */
	uint64_t *serial;
	/* the power cuts */
	struct crash crash;
	struct judge judge;
	uint64_t synced; /* device.syncs that crash knows */
	uint64_t seed, first_point;
	uint64_t next_at; /* the point that the next life begins with, counted in this life; 0 = none */
	uint8_t *next;
	uint64_t next_size;
	struct sampling sampling;
	const struct replay *replay;
	struct totals *sum;
};

/* ---- sets of hashes ---- */

struct set {
	uint64_t *slot, mask, n;
};

/* False: it was there. */
static bool set_add(struct set *s, uint64_t key)
{
	struct set bigger;
	uint64_t i;

	if (s->n * 2 >= s->mask) {
		bigger = (struct set){ .mask = s->mask ? s->mask * 2 + 1 : 4095 };
		bigger.slot = calloc(bigger.mask + 1, sizeof(*bigger.slot));
		if (!bigger.slot)
			die("out of memory");
		for (i = 0; s->slot && i <= s->mask; i++)
			if (s->slot[i])
				set_add(&bigger, s->slot[i]);
		free(s->slot);
		*s = bigger;
	}
	key += !key;
	for (i = key & s->mask; s->slot[i]; i = (i + 1) & s->mask)
		if (s->slot[i] == key)
			return false;
	s->slot[i] = key;
	s->n++;
	return true;
}

static void set_clear(struct set *s)
{
	free(s->slot);
	*s = (struct set){ 0 };
}

static struct set files; /* of the family */
static struct set judged; /* of the life: files under the rules of one epoch */

void workload_forget(void)
{
	set_clear(&files);
}

/* ---- power cuts ---- */

static struct life *shown; /* for finding_details() */
static unsigned shown_exhaustive;

static struct span span_of(const struct life *l)
{
	return (struct span){ l->crash.bytes, l->crash.size };
}

static uint64_t state_seed(const struct life *l)
{
	return mix(l->seed, where.point);
}

static void show_state(void)
{
	struct crash *c = &shown->crash;
	static bool again;

	if (where.state < 0 || again)
		return;
	again = true;
	crash_undo(c);
	crash_build(c, state_seed(shown), (unsigned)where.state, shown_exhaustive, stderr);
	judge_check(span_of(shown), stderr);
}

static void judge_one(struct life *l, unsigned index)
{
	uint64_t pick = mix(state_seed(l), index + 1000);

	where.judged++;
	l->sum->judged++;
	judge_state(&l->judge, span_of(l), l->crash.body);
	if (l->sampling.reuse && !(pick % l->sampling.reuse)) {
		sample_recovery(&l->judge, span_of(l), pick);
		l->sum->recovered++;
	}
	if (l->sampling.qemu && !(mix(pick, 1) % l->sampling.qemu)) {
		sample_qemu(&l->judge, span_of(l));
		l->sum->asked++;
	}
}

/* Begin the next life with this state? */
static void keep_state(struct life *l)
{
	free(l->next);
	l->next = malloc(l->crash.size);
	if (!l->next)
		die("out of memory");
	memcpy(l->next, l->crash.bytes, l->crash.size);
	l->next_size = l->crash.size;
}

static void replay_one(struct life *l, unsigned index, unsigned exhaustive)
{
	if (index != l->replay->state)
		return;
	*l->replay->reached = true;
	crash_build(&l->crash, state_seed(l), index, exhaustive, stdout);
	if (l->replay->image)
		sample_write(l->replay->image, span_of(l));
	judge_state(&l->judge, span_of(l), l->crash.body);
	sample_recovery(&l->judge, span_of(l), 1);
	sample_qemu(&l->judge, span_of(l));
	printf("point %" PRIu64 " state %u is acceptable\n", where.point, index);
	crash_undo(&l->crash);
}

static void cut(struct life *l, unsigned index, unsigned exhaustive)
{
	where.state = index;
	shown = l;
	shown_exhaustive = exhaustive;
	crash_build(&l->crash, state_seed(l), index, exhaustive, NULL);
	l->sum->states++;
	if (set_add(&judged, mix(l->crash.hash, model_epoch(l->m)))) {
		l->sum->distinct += set_add(&files, l->crash.hash);
		judge_one(l, index);
	}
	crash_undo(&l->crash);
}

static void observe(void *ctx, enum point p)
{
	struct life *l = ctx;
	unsigned exhaustive, n, i;

	where.point++;
	l->sum->points++;
	if (l->synced != l->c.image->syncs) {
		crash_rebase(&l->crash);
		l->synced = l->c.image->syncs;
	}
	n = crash_states(l->c.image, p, &exhaustive);
	if (l->next_at && where.point == l->first_point + l->next_at) {
		crash_build(&l->crash, state_seed(l), (unsigned)(mix(state_seed(l), 9) % n), exhaustive,
			    NULL);
		keep_state(l);
		crash_undo(&l->crash);
	}
	for (i = 0; i < n; i++) {
		if (!l->replay || l->replay->state < 0)
			cut(l, i, exhaustive);
		else if (l->replay->point == where.point)
			replay_one(l, i, exhaustive);
	}
	where.state = -1;
}

/* ---- the guest ---- */

static bool idle(const uint8_t *busy, uint64_t first, uint64_t n)
{
	return !memchr(busy + first, 1, n);
}

static void job_done(struct qcow2_req *req, int res)
{
	struct job *j = req->owner;
	struct life *l = j->life;
	uint64_t i, v, now = ++l->c.image->clock;

	j->busy = false;
	if (res && (!l->f->faults || res == -EUCLEAN))
		finding("request %d at %" PRIu64 "+%" PRIu64 ": %s", req->op, req->off, req->len,
			strerror(-res));
	if (req->op == QCOW2_FLUSH) {
		if (res)
			return;
		model_flush(l->m, j->issued);
		l->sum->flushes++;
		observe(l, POINT_FLUSH);
		return;
	}
	memset(l->busy + req->off / SECTOR, 0, req->len / SECTOR);
	if (req->op != QCOW2_READ)
		model_complete(l->m, j->first, j->n, j->serial, now, !res);
	else if (!res)
		for (i = 0; i < req->len / SECTOR; i++) {
			v = sector_value(j->buf + i * SECTOR);
			if (!model_reads(l->m, req->off / SECTOR + i, v, j->issued))
				finding("sector %" PRIu64 " reads %s; it may hold %s", req->off / SECTOR + i,
					model_word(v), model_says(l->m, req->off / SECTOR + i));
		}
}

/* A discard makes whole clusters zeroes (in version 2 not over a backing file) and leaves the rest alone. */
static void discard_extent(const struct life *l, struct job *j)
{
	const struct template *t = l->c.t;
	uint64_t per = t->cluster_size / SECTOR, first = (j->first + per - 1) / per * per,
		 end = j->first + j->n;
	bool kept = t->version < 3 && j->first < t->below_sectors;

	if (end != t->sectors)
		end = end / per * per;
	j->first = first;
	j->n = end > first && !kept ? end - first : 0;
}

static enum qcow2_req_op pick_op(struct life *l, bool *hit)
{
	const struct mixture *m = &l->f->mix;
	uint64_t k = rnd(&l->rng, m->write + m->zero + m->discard + m->read + m->flush + m->hit);

	*hit = false;
	if (k < m->write)
		return QCOW2_WRITE;
	if ((k -= m->write) < m->zero)
		return QCOW2_WRITE_ZEROES;
	if ((k -= m->zero) < m->discard)
		return QCOW2_DISCARD;
	if ((k -= m->discard) < m->read)
		return QCOW2_READ;
	if ((k -= m->read) < m->flush)
		return QCOW2_FLUSH;
	*hit = true;
	return rnd(&l->rng, 3) ? QCOW2_WRITE : QCOW2_READ;
}

/* True if there is a word. */
static bool start_hit(struct life *l, uint64_t first, uint64_t n, bool write)
{
	if (!idle(l->busy, first, n) || !idle(l->hit, first, n))
		return false;
	n = table_hit(l->table, first, n, write, ++*l->serial);
	if (n)
		l->last_hit = first;
	memset(l->hit + first, 1, n);
	l->sum->hits += n != 0;
	return n;
}

static void hit_done(void *ctx, uint64_t first, uint64_t n)
{
	struct life *l = ctx;

	memset(l->hit + first, 0, n);
}

/* Where: anywhere, or one of few places again and again; of whole clusters if @whole. */
static void pick_place(struct life *l, bool whole, uint64_t *first, uint64_t *n)
{
	uint64_t sectors = l->c.t->sectors, per = l->c.t->cluster_size / SECTOR;
	uint64_t span = rnd(&l->rng, 3) ? sectors : sectors / 8 + 1;

	*first = rnd(&l->rng, span);
	*n = 1 + rnd(&l->rng, rnd(&l->rng, 4) ? 8 : l->max_sectors);
	if (whole) {
		if (l->f->mix.hit && rnd(&l->rng, 2))
			*first = l->last_hit;
		*first = *first / per * per;
		*n = (*n + per - 1) / per * per;
	}
	if (*n > sectors - *first)
		*n = sectors - *first;
}

static bool start_job(struct life *l, struct job *j)
{
	bool hit, whole, race;
	enum qcow2_req_op op = pick_op(l, &hit);
	uint64_t first, n;
	unsigned i;

	whole = op != QCOW2_READ && !hit && rnd(&l->rng, 3) < (op == QCOW2_WRITE ? 1 : 2);
	pick_place(l, whole, &first, &n);
	for (i = 0; hit && i < 4 && !start_hit(l, first, n, op == QCOW2_WRITE); i++)
		pick_place(l, false, &first, &n);
	if (hit)
		return true;
	/* The end of the disk is never a race: there a whole cluster may be cut. */
	race = whole && op != QCOW2_WRITE && first + n < l->c.t->sectors &&
	       (l->c.t->version >= 3 || !l->c.t->backings);
	if (op == QCOW2_FLUSH)
		n = 0;
	else if (!idle(l->busy, first, n) || (!race && !idle(l->hit, first, n)))
		return false;
	j->first = first;
	j->n = n;
	j->issued = ++l->c.image->clock;
	j->serial = ++*l->serial;
	j->req = (struct qcow2_req){ .op = op,
				     .off = op == QCOW2_FLUSH ? 0 : first * SECTOR,
				     .len = n * SECTOR,
				     .buf = op <= QCOW2_WRITE ? j->buf : NULL,
				     .done = job_done,
				     .owner = j };
	if (op == QCOW2_DISCARD)
		discard_extent(l, j);
	if (op == QCOW2_WRITE_ZEROES && rnd(&l->rng, l->f->keep ? 2 : 8) == 0)
		j->req.flags = QCOW2_REQ_NO_UNMAP;
	if (op == QCOW2_WRITE)
		fill_words(j->buf, first, n, j->serial);
	else
		j->serial |= ZERO_SERIAL;
	if (op == QCOW2_WRITE || op == QCOW2_WRITE_ZEROES || op == QCOW2_DISCARD)
		/* A discard does not hide the backing file where nothing is allocated. */
		model_issue(l->m, j->first, j->n, j->serial,
			    op == QCOW2_DISCARD && l->c.t->backings ? l->c.t->below : NULL, j->issued);
	memset(l->busy + first, 1, n);
	j->busy = true;
	if (qcow2_submit(l->c.img, &j->req))
		die("out of memory");
	return true;
}

/* @kill: stop when the last request has begun. */
static void guest(struct life *l, unsigned ops, bool kill)
{
	unsigned started = 0, active, i, turns = 0;

	do {
		for (i = 0, active = 0; i < l->depth; i++) {
			if (!l->jobs[i].busy && started < ops && rnd(&l->rng, 3) && start_job(l, &l->jobs[i]))
				started++;
			active += l->jobs[i].busy;
		}
		qcow2_run(l->c.img, true);
		if (!rnd(&l->rng, 40))
			qcow2_commit_start(l->c.img);
		if (turns++ > 1000000) {
			qcow2_dump(l->c.img, stderr);
			finding("requests do not end");
		}
	} while (started < ops || (!kill && (active || table_in_flight(l->table))));
}

/* What completed is there when the next process has applied the journal; the rest may be. */
static void life_kill(struct life *l)
{
	unsigned i, fail = l->c.image->fail_one_in, fail_sync = l->c.image->fail_sync_one_in;

	table_free(l->table);
	chain_kill(&l->c);
	for (i = 0; i < DEPTH; i++) {
		if (l->jobs[i].busy &&
		    (l->jobs[i].req.op == QCOW2_WRITE || l->jobs[i].req.op == QCOW2_WRITE_ZEROES ||
		     l->jobs[i].req.op == QCOW2_DISCARD))
			model_complete(l->m, l->jobs[i].first, l->jobs[i].n, l->jobs[i].serial,
				       ++l->c.image->clock, false);
		l->jobs[i].busy = false;
	}
	memset(l->busy, 0, l->c.t->sectors);
	l->table = table_new(&l->c, l->m, hit_done, l);
	l->c.image->fail_one_in = l->c.image->fail_sync_one_in = 0; /* test_faults lets the opening fail */
	chain_begin(&l->c, table_ops(l->table), rnd(&l->rng, 2), &l->journal);
	l->c.image->fail_one_in = fail;
	l->c.image->fail_sync_one_in = fail_sync;
}

/* ---- one life ---- */

static void life_begin(struct life *l, const struct template *t, const void *bytes, uint64_t size)
{
	uint64_t *content = calloc(t->sectors, sizeof(*content)), i;

	if (!content)
		die("out of memory");
	chain_init(&l->c, t, bytes, size, mix(l->seed, 1));
	l->c.image->fixed_size = l->f->blockdev;
	l->c.image->dio_align = l->f->dio_align ? l->f->dio_align : 1;
	crash_init(&l->crash, l->c.image);
	crash_build(&l->crash, 0, 1, 0, NULL);
	judge_content(t, span_of(l), content);
	for (i = 0; !where.life && i < t->sectors; i++)
		if (content[i] != t->content[i])
			finding("the template: sector %" PRIu64 " holds %s, not %s", i,
				model_word(content[i]), model_word(t->content[i]));
	l->m = model_new(content, t->sectors);
	l->judge = (struct judge){ .t = t, .model = l->m, .body = l->crash.body, .values = content };
	l->busy = calloc(t->sectors, 1);
	l->hit = calloc(t->sectors, 1);
	if (!l->busy || !l->hit)
		die("out of memory");
	for (i = 0; i < DEPTH; i++) {
		l->jobs[i].life = l;
		l->jobs[i].buf = buf_alloc(l->max_sectors * SECTOR + t->cluster_size);
		if (!l->jobs[i].buf)
			die("out of memory");
	}
	l->table = table_new(&l->c, l->m, hit_done, l);
	if (l->f->killed) {
		l->journal = (struct qcow2_journal){
			.mem = buf_alloc(JOURNAL_BYTES), .size = JOURNAL_BYTES, .dev = 1, .ino = 1
		};
		if (!l->journal.mem)
			die("out of memory");
		qcow2_journal_format(&l->journal);
	}
	chain_begin(&l->c, table_ops(l->table), rnd(&l->rng, 2), l->f->killed ? &l->journal : NULL);
	l->c.image->observe = observe;
	l->c.image->ctx = l;
	if (l->f->faults) {
		l->c.image->fail_one_in = rnd(&l->rng, 2) ? 30 : 0;
		l->c.image->fail_sync_one_in = l->c.image->fail_one_in ? 0 : 40;
	}
}

/* Close is a flush of everything, and gives back what was freed. */
static void life_close(struct life *l, uint64_t leaks)
{
	struct qcow2_error err = { "" };
	uint64_t issued = ++l->c.image->clock, after;
	unsigned exhaustive;
	int ret = qcow2_close(l->c.img, &err);

	if (ret && !l->f->faults)
		finding("close: %s", err.text);
	if (ret)
		return;
	model_flush(l->m, issued);
	observe(l, POINT_FLUSH);
	(void)crash_states(l->c.image, POINT_FLUSH, &exhaustive);
	crash_build(&l->crash, state_seed(l), 1, exhaustive, NULL);
	after = sample_leaks(span_of(l));
	if (after > leaks && !l->c.image->fail_one_in)
		finding("%" PRIu64 " clusters are leaked after close, %" PRIu64 " were before", after, leaks);
	crash_undo(&l->crash);
}

static void life_end(struct life *l)
{
	unsigned i;

	while (l->c.image->nflights)
		device_poll(l->c.image, true);
	l->sum->writes += l->c.image->writes;
	l->sum->syncs += l->c.image->syncs;
	l->sum->lives++;
	table_free(l->table);
	buf_free(l->journal.mem);
	for (i = 0; i < DEPTH; i++)
		buf_free(l->jobs[i].buf);
	free(l->busy);
	free(l->hit);
	free(l->judge.values);
	model_free(l->m);
	crash_free(&l->crash);
	chain_fini(&l->c);
	set_clear(&judged);
}

/* Returns true with l->next if there is another one. */
static bool life_run(struct life *l, const struct template *t, const void *bytes, uint64_t size)
{
	static const unsigned depths[] = { 1, 3, 8, DEPTH };
	uint64_t leaks, kills;

	l->depth = depths[rnd(&l->rng, 4)];
	l->ops = 20 + (unsigned)rnd(&l->rng, rnd(&l->rng, 8) ? 60 : 400);
	l->max_sectors = rnd(&l->rng, 3) ? 16 : 64;
	l->next_at = where.life + 1 < LIVES && rnd(&l->rng, 2) ? 20 + rnd(&l->rng, 300) : 0;
	l->first_point = where.point;
	life_begin(l, t, bytes, size);
	leaks = sample_leaks(span_of(l));
	for (kills = l->f->killed ? rnd(&l->rng, 4) : 0; kills; kills--) {
		guest(l, 5 + (unsigned)rnd(&l->rng, 30), true);
		life_kill(l);
	}
	guest(l, l->ops, false);
	life_close(l, leaks);
	life_end(l);
	return l->next;
}

void workload_run(const struct family *f, uint64_t seed, struct sampling sampling,
		  const struct replay *replay, struct totals *sum)
{
	struct rng r = { mix(seed, 77) };
	const struct template *t = f->templates;
	uint64_t k = rnd(&r, f->ntemplates), serial = 16, size;
	struct timespec start, end;
	uint8_t *bytes;
	double took;

	for (; k; k--)
		t = t->next;
	clock_gettime(CLOCK_MONOTONIC, &start);
	finding_details = show_state;
	where = (struct where){ .family = f->name, .seed = seed, .state = -1, .judged = where.judged };
	size = t->image.size + (f->blockdev ? OLD_DATA : 0);
	bytes = malloc(size);
	if (!bytes)
		die("out of memory");
	memset(bytes, 0xa5, size);
	memcpy(bytes, t->image.bytes, t->image.size);
	for (; bytes; where.life++) {
		struct life l = {
			.f = f, .serial = &serial, .sampling = sampling, .replay = replay, .sum = sum
		};

		l.seed = mix(seed, where.life);
		l.rng.s = l.seed;
		life_run(&l, t, bytes, size);
		free(bytes);
		bytes = l.next;
		size = l.next_size;
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	took = (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9;
	sum->seconds += took;
	sum->worst = took > sum->worst ? took : sum->worst;
	sum->runs++;
}

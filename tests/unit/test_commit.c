// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The ordering rules at the top of commit.c, on recorded host I/O: explicit orders of writes and fsyncs per
 * scenario, and behind them every crash state of every scenario: what was durable plus any part of what was
 * not must have no errors for our check and must hold what was flushed.
 */
#include "memimg.h"
#include "qcow2/alloc.h"
#include "qcow2/commit.h"

#define CS 4096ull
#define SECTORS 2048u /* 1 MiB guests */

/* ---- crash states ---- */

/* Which pattern bytes (0..63) each sector may hold, from a moment of the record on. */
struct promise {
	size_t from; /* events */
	uint64_t may[SECTORS];
};

static struct promise promises[64];
static unsigned npromises;
static uint64_t now_may[SECTORS], last[SECTORS];
static struct disk *before; /* the disk when recording began */

static void promise(struct disk *d)
{
	assert_true(npromises < COUNT(promises));
	promises[npromises].from = d->events;
	memcpy(promises[npromises++].may, now_may, sizeof(now_may));
}

static void start_record(struct disk *d)
{
	unsigned i;

	npromises = 0;
	for (i = 0; i < SECTORS; i++)
		now_may[i] = last[i];
	disk_forget(d);
	d->record = true;
	before = disk_clone(d);
	promise(d);
}

/* The guest starts to put @fill there: from now on both are right. */
static void may_become(struct disk *d, uint64_t off, uint64_t len, unsigned fill)
{
	uint64_t i;

	for (i = off / 512; i < (off + len) / 512; i++) {
		last[i] = 1ull << fill;
		now_may[i] |= last[i];
	}
	promise(d);
}

static void rec_write(struct qcow2_image *img, struct disk *d, uint64_t off, uint64_t len, unsigned fill)
{
	may_become(d, off, len, fill);
	assert_int_equal(do_write(img, off, len, (int)fill), 0);
}

static void rec_discard(struct qcow2_image *img, struct disk *d, uint64_t off, uint64_t len)
{
	may_become(d, off, len, 0);
	assert_int_equal(do_req(img, QCOW2_DISCARD, off, len, 0), 0);
}

static void rec_flush(struct qcow2_image *img, struct disk *d)
{
	assert_int_equal(do_flush(img), 0);
	memcpy(now_may, last, sizeof(now_may));
	promise(d);
}

static void apply(struct disk *c, const struct event *e)
{
	if (e->res)
		return;
	if (e->op == HOST_WRITE)
		disk_put(c, e->off, e->data, e->len);
	else if (e->op == HOST_ZERO)
		disk_put(c, e->off, NULL, e->len);
	else if (e->op == HOST_PUNCH && e->off < c->size)
		disk_put(c, e->off, NULL, e->len < c->size - e->off ? e->len : c->size - e->off);
}

static bool durable(const struct disk *d, size_t i, size_t upto)
{
	size_t k;

	for (k = i + 1; k < upto; k++)
		if (d->event[k].op == HOST_FSYNC && !d->event[k].res &&
		    d->event[k].submitted > d->event[i].completed)
			return true;
	return false;
}

static void judge(struct disk *c, const struct promise *p, size_t at, uint64_t subset)
{
	struct check_result res = disk_check(c, false);
	static unsigned char buf[SECTORS * 512];
	struct qcow2_options ro = { .read_only = true };
	struct qcow2_image *img;
	unsigned i;

	if (res.errors) {
		disk_check(c, true);
		fail_msg("crash before event %zu, subset %llx: %llu errors", at, (unsigned long long)subset,
			 (unsigned long long)res.errors);
	}
	img = open_image(c, &ro);
	assert_int_equal(qcow2_sync(img, QCOW2_READ, buf, sizeof(buf), 0), 0);
	close_image(img);
	for (i = 0; i < SECTORS; i++)
		if (buf[512 * i] > 63 || !(p->may[i] >> buf[512 * i] & 1))
			fail_msg("crash before event %zu, subset %llx: sector %u holds %u", at,
				 (unsigned long long)subset, i, buf[512 * i]);
}

/* The crash comes when @at events were carried out; bit i of @subset: the i-th volatile one got there. */
static void crash(struct disk *d, size_t at, uint64_t subset)
{
	struct disk *c = disk_clone(before);
	unsigned bit = 0, p = npromises;
	size_t i;

	for (i = 0; i < at; i++)
		if (durable(d, i, at) || subset >> (bit++ & 63) & 1)
			apply(c, &d->event[i]);
	while (p && promises[p - 1].from > at)
		p--;
	judge(c, &promises[p - 1], at, subset);
	disk_free(c);
}

static uint64_t crash_states(struct disk *d)
{
	uint64_t states = 0, s, rnd = 88172645463325252ull;
	size_t at, i;
	unsigned n;

	d->record = false;
	for (at = 0; at <= d->events; at++) {
		if (at < d->events && d->event[at].op != HOST_FSYNC)
			continue;
		for (n = 0, i = 0; i < at; i++)
			n += !durable(d, i, at);
		for (s = 0; s < 1ull << (n < 7 ? n : 7); s++, states++)
			crash(d, at, n <= 7 ? s : s << (n - 7)); /* the newest seven, the older ones lost */
		for (i = 0; n > 7 && i < 100; i++, states++) {
			rnd ^= rnd << 13;
			rnd ^= rnd >> 7;
			rnd ^= rnd << 17;
			crash(d, at, i ? rnd : ~0ull);
		}
	}
	disk_free(before);
	print_message("    %llu crash states\n", (unsigned long long)states);
	return states;
}

/* ---- looking at the record ---- */

#define NONE SIZE_MAX

/* The first event from @from on that writes any byte of [off, off + len). */
static size_t write_of(const struct disk *d, size_t from, uint64_t off, uint64_t len)
{
	for (; from < d->events; from++) {
		const struct event *e = &d->event[from];

		if (e->op != HOST_FSYNC && e->op != HOST_PUNCH && e->off < off + len && off < e->off + e->len)
			return from;
	}
	return NONE;
}

static size_t op_after(const struct disk *d, size_t from, enum host_op op)
{
	for (; from < d->events; from++)
		if (d->event[from].op == op)
			return from;
	return NONE;
}

/* @a is durable before @b is submitted (b = number of events: now). */
static void assert_before(const struct disk *d, size_t a, size_t b)
{
	size_t k;

	assert_true(a != NONE && b != NONE);
	for (k = a + 1; k < b; k++)
		if (d->event[k].op == HOST_FSYNC && d->event[k].submitted > d->event[a].completed &&
		    (b == d->events || d->event[b].submitted > d->event[k].completed))
			return;
	fail_msg("event %zu (op %d at %llu) is not durable before event %zu", a, d->event[a].op,
		 (unsigned long long)d->event[a].off, b);
}

/* The word at @at as event @e wrote it. */
static uint64_t word_in(const struct disk *d, size_t e, uint64_t at)
{
	uint64_t v = 0;
	unsigned i;

	assert_true(e != NONE && d->event[e].off <= at && at + 8 <= d->event[e].off + d->event[e].len);
	for (i = 0; i < 8; i++)
		v = v << 8 | d->event[e].data[at - d->event[e].off + i];
	return v;
}

static int setup(void **state)
{
	unsigned i;

	for (i = 0; i < SECTORS; i++)
		last[i] = 1;
	return 0;
}

/* ---- scenarios ---- */

/* Allocate + flush in an empty image: 1, 2, 3, 7. */
static void allocate_flush(void **state)
{
	struct disk *d = disk_make(&(struct spec){ 0 });
	struct qcow2_image *img = open_image(d, NULL);
	size_t data, rb, l2, l1;

	start_record(d);
	rec_write(img, d, 3 * CS + 512, 2 * CS, 1);
	assert_true(write_of(d, 0, disk_l1_at(d, 0), 8) == NONE); /* nothing refers to it before a commit */
	rec_flush(img, d);
	data = write_of(d, 0, disk_host(d, 3 * CS), CS);
	rb = write_of(d, 0, disk_rb(d, 0), CS);
	l1 = write_of(d, 0, disk_l1_at(d, 0), 8);
	l2 = write_of(d, rb, disk_l2_at(d, 3 * CS), 8);
	assert_before(d, data, l1);
	assert_before(d, rb, l1);
	assert_before(d, l2, l1);
	assert_before(d, l1, d->events); /* the flush is done */
	close_image(img);
	assert_true(crash_states(d) > 10);
	assert_clean(d);
	disk_free(d);
}

/* An entry in an existing table: data and refcount durable first. */
static void allocate_in_old_table(void **state)
{
	struct disk *d = disk_make(&(struct spec){ 0 });
	struct qcow2_image *img = open_image(d, NULL);
	size_t data, rb, l2;

	assert_int_equal(do_write(img, 0, CS, 0), 0);
	quiesce(img, d);
	start_record(d);
	rec_write(img, d, 5 * CS, CS, 2);
	assert_int_equal(d->events, 1); /* the data alone */
	rec_flush(img, d);
	data = write_of(d, 0, disk_host(d, 5 * CS), CS);
	rb = write_of(d, 0, disk_rb(d, 0), CS);
	l2 = write_of(d, 0, disk_l2_at(d, 5 * CS), 8);
	assert_before(d, data, l2);
	assert_before(d, rb, l2);
	assert_before(d, l2, d->events);
	assert_true(write_of(d, 0, disk_l1_at(d, 0), 8) == NONE);
	close_image(img);
	crash_states(d);
	disk_free(d);
}

/* A flush without any change is an fsync all the same; one of writes in place covers them. */
static void flush_is_never_elided(void **state)
{
	struct disk *d = disk_make(&(struct spec){ 0 });
	struct qcow2_image *img = open_image(d, NULL);

	assert_int_equal(do_write(img, 0, CS, 0), 0);
	quiesce(img, d);
	start_record(d);
	rec_flush(img, d);
	assert_int_equal(d->events, 1);
	assert_int_equal(d->event[0].op, HOST_FSYNC);
	rec_write(img, d, 512, 1024, 3);
	assert_int_equal(d->events, 2);
	rec_flush(img, d);
	assert_before(d, 1, d->events);
	assert_int_equal(d->events, 3);
	close_image(img);
	crash_states(d);
	disk_free(d);
}

/* Copy-on-write of a cluster shared with a snapshot: 1 to 4; the snapshot keeps its content. */
static void cow_of_snapshot(void **state)
{
	struct disk *d = disk_make(&(struct spec){ 0 });
	struct qcow2_image *img = open_image(d, NULL);
	uint64_t old_host, old_l2, new_l2;
	size_t data, l1, rb, raise;

	assert_int_equal(do_write(img, 0, 8 * CS, 4), 0);
	close_image(img);
	disk_snapshot(d);
	assert_clean(d);
	npromises = 0;
	img = open_image(d, NULL);
	old_host = disk_host(d, 2 * CS);
	old_l2 = disk_be(d, disk_l1_at(d, 0), 8);
	may_become(d, 0, 8 * CS, 4);
	start_record(d);
	rec_write(img, d, 2 * CS + 1024, 512, 5);
	rec_flush(img, d);
	new_l2 = disk_be(d, disk_l1_at(d, 0), 8) & OFFSET_BITS;
	assert_true(new_l2 != old_l2 && disk_host(d, 2 * CS) != old_host);
	data = write_of(d, 0, disk_host(d, 2 * CS), CS);
	l1 = write_of(d, 0, disk_l1_at(d, 0), 8);
	raise = write_of(d, 0, disk_rb(d, 0), CS);
	assert_before(d, data, l1);
	assert_before(d, raise, l1);
	assert_before(d, write_of(d, 0, new_l2, CS), l1);
	/* the shared table and cluster lose a reference only after that */
	assert_int_equal(disk_refcount(d, old_host / CS), 2);
	assert_int_equal(disk_refcount(d, old_l2 / CS), 2);
	quiesce(img, d);
	rb = write_of(d, l1, disk_rb(d, 0), CS);
	assert_before(d, l1, rb);
	assert_int_equal(disk_refcount(d, old_host / CS), 1);
	assert_int_equal(disk_refcount(d, old_l2 / CS), 1);
	assert_true(write_of(d, 0, old_host, CS) == NONE); /* the snapshot's */
	assert_true(write_of(d, 0, old_l2, CS) == NONE);
	assert_true(op_after(d, 0, HOST_PUNCH) == NONE);
	reads(img, 2 * CS, 1024, 4);
	reads(img, 2 * CS + 1024, 512, 5);
	reads(img, 2 * CS + 1536, CS - 1536, 4);
	close_image(img);
	assert_clean(d);
	crash_states(d);
	disk_free(d);
}

/* Discard, then writes that want space: 4. The cluster is neither punched nor reused too early. */
static void discard_reuse(void **state)
{
	struct disk *d = disk_make(&(struct spec){ 0 });
	struct qcow2_image *img = open_image(d, NULL);
	size_t gone, lowered, punch, reuse;
	uint64_t freed;
	unsigned i;

	npromises = 0;
	may_become(d, 0, 4 * CS, 6);
	assert_int_equal(do_write(img, 0, 4 * CS, 6), 0);
	quiesce(img, d);
	freed = disk_host(d, CS);
	start_record(d);
	rec_discard(img, d, CS, CS);
	for (i = 0; i < 8; i++) { /* a commit between the writes: the removal becomes durable on the way */
		rec_write(img, d, (8 + i) * CS, CS, 7 + i);
		if (i % 2)
			rec_flush(img, d);
	}
	gone = write_of(d, 0, disk_l2_at(d, CS), 8);
	lowered = write_of(d, gone, disk_rb(d, 0), CS);
	punch = op_after(d, 0, HOST_PUNCH);
	reuse = write_of(d, 0, freed, CS);
	assert_before(d, gone, lowered);
	assert_true(punch != NONE && d->event[punch].off == freed && d->event[punch].len == CS);
	assert_before(d, lowered, punch);
	assert_true(reuse != NONE); /* the space does come back */
	assert_true(reuse > punch);
	close_image(img);
	crash_states(d);
	assert_clean(d);
	disk_free(d);
}

/* The same at every step of the way: while it is not durable the allocator does not see it. */
static void quarantine(void **state)
{
	struct disk *d = disk_make(&(struct spec){ 0 });
	struct qcow2_image *img = open_image(d, NULL);
	uint64_t freed;

	assert_int_equal(do_write(img, 0, 4 * CS, 6), 0);
	quiesce(img, d);
	freed = disk_host(d, CS);
	assert_int_equal(do_req(img, QCOW2_DISCARD, CS, CS, 0), 0);
	assert_int_equal(do_write(img, 10 * CS, CS, 1), 0);
	assert_int_equal(do_flush(img), 0); /* generation 1: the entry is gone */
	assert_true(disk_host(d, 10 * CS) != freed);
	assert_int_equal(disk_refcount(d, freed / CS), 1);
	assert_int_equal(metamap_get(img->meta, freed / CS), META_QUARANTINE);
	assert_int_equal(do_write(img, 11 * CS, CS, 1), 0); /* refcount 0 in the cache, not on disk */
	d->hold = 1u << HOST_FSYNC;
	qcow2_commit_start(img); /* generation 2 carries the lowered refcount */
	settle(img, d);
	assert_int_equal(disk_refcount(d, freed / CS), 0);
	assert_int_equal(do_write(img, 12 * CS, CS, 1), 0);
	assert_int_equal(d->seen[HOST_PUNCH], 0);
	d->hold = 0;
	settle(img, d);
	assert_int_equal(d->seen[HOST_PUNCH], 1);
	assert_int_equal(metamap_get(img->meta, freed / CS), META_NONE);
	assert_int_equal(do_write(img, 13 * CS, CS, 2), 0);
	quiesce(img, d);
	assert_true(disk_host(d, 11 * CS) != freed);
	assert_true(disk_host(d, 12 * CS) != freed);
	assert_int_equal(disk_host(d, 13 * CS), freed);
	close_image(img);
	assert_clean(d);
	disk_free(d);
}

/* The refcount table grows (512-byte clusters, 64-bit refcounts: it covers 4096 clusters): 3 and 4 for it. */
static void table_growth(void **state)
{
	struct disk *d = disk_make(&(struct spec){ .bits = 9, .order = 6 });
	uint64_t leaks = fill_host(d, 4096 - 70), old_rt = disk_be(d, 48, 8), new_rt, off;
	struct qcow2_image *img = open_image(d, NULL);
	struct check_result res;
	size_t head;

	start_record(d);
	for (off = 0; off < 65536; off += 8192) {
		rec_write(img, d, off, 8192, 2 + (unsigned)(off / 8192));
		rec_flush(img, d);
	}
	new_rt = disk_be(d, 48, 8);
	assert_true(new_rt != old_rt);
	head = write_of(d, 0, 48, 8);
	assert_before(d, write_of(d, 0, new_rt, 512), head);
	assert_before(d, write_of(d, 0, disk_rb(d, new_rt / 512), 512), head);
	assert_true(disk_host(d, 65536 - 512) >= 4096 * 512);
	assert_before(d, head, write_of(d, head, disk_l2_at(d, 65536 - 512), 8));
	assert_before(d, head, write_of(d, head, disk_rb(d, old_rt / 512), 512));
	quiesce(img, d);
	close_image(img);
	res = disk_check(d, false);
	assert_int_equal(res.errors, 0);
	assert_int_equal(res.leaks, leaks);
	crash_states(d);
	disk_free(d);
}

/*
 * The table grows while a commit is writing that holds an entry of the old one: the entry must still be
 * written, or what that commit calls durable rests on a refcount block that nothing refers to.
 */
static void growth_during_commit(void **state)
{
	struct disk *d = disk_make(&(struct spec){ .bits = 9, .order = 6 });
	struct qcow2_image *img;
	struct job flush, write;
	uint64_t old_rt = disk_be(d, 48, 8);

	fill_host(d, 4096 - 64); /* the last refcount block is missing */
	img = open_image(d, NULL);
	start_record(d);
	rec_write(img, d, 0, 4096, 3); /* makes it */
	d->hold = 1u << HOST_FSYNC;
	job_start(&flush, img, QCOW2_FLUSH, 0, 0, 0);
	settle(img, d);
	may_become(d, 32768, 65536, 4);
	job_start(&write, img, QCOW2_WRITE, 32768, 65536, 4);
	settle(img, d);
	assert_int_equal(job_end(&write), 0);
	assert_true(img->hdr.rt_offset != old_rt);
	assert_false(flush.done);
	d->hold = 0;
	while (!flush.done)
		qcow2_run(img, true);
	assert_int_equal(job_end(&flush), 0);
	memcpy(now_may, last, 8 * sizeof(now_may[0])); /* the first write is flushed, the second not */
	promise(d);
	rec_flush(img, d);
	close_image(img);
	crash_states(d);
	assert_int_equal(disk_check(d, true).errors, 0);
	disk_free(d);
}

/* Unknown autoclear bits are durably gone before anything else is written: 5. Reading leaves them. */
static void autoclear(void **state)
{
	struct disk *d = disk_make(&(struct spec){ .autoclear = 0x8000000000000001ull });
	struct qcow2_image *img = open_image(d, NULL);
	struct job a, b;

	start_record(d);
	reads(img, 0, CS, 0);
	rec_flush(img, d);
	assert_false(commit_first_write_done(img));
	assert_true(write_of(d, 0, 0, 512) == NONE);
	may_become(d, 0, CS, 9);
	may_become(d, 9 * CS, CS, 8);
	d->hold = 1u << HOST_FSYNC;
	job_start(&a, img, QCOW2_WRITE, 0, CS, 9);
	job_start(&b, img, QCOW2_WRITE, 9 * CS, CS, 8);
	settle(img, d);
	assert_false(a.done || b.done);
	d->hold = 0;
	settle(img, d);
	assert_int_equal(job_end(&a), 0);
	assert_int_equal(job_end(&b), 0);
	assert_int_equal(disk_be(d, 88, 8), 0);
	assert_before(d, write_of(d, 0, 88, 8), write_of(d, 0, CS * 4, ~0ull >> 1));
	assert_int_equal(word_in(d, write_of(d, 0, 88, 8), 88), 0);
	rec_flush(img, d);
	close_image(img);
	crash_states(d);
	assert_clean(d);
	disk_free(d);
}

/* An entry set while a commit is in flight is not in what that commit writes: its data may not be durable. */
static void generations_are_frozen(void **state)
{
	struct disk *d = disk_make(&(struct spec){ 0 });
	struct qcow2_image *img = open_image(d, NULL);
	struct job flush;
	uint64_t at;
	size_t l2;

	assert_int_equal(do_write(img, 0, CS, 0), 0);
	quiesce(img, d);
	start_record(d);
	rec_write(img, d, CS, CS, 2);
	d->hold = 1u << HOST_FSYNC;
	job_start(&flush, img, QCOW2_FLUSH, 0, 0, 0);
	settle(img, d);
	rec_write(img, d, 2 * CS, CS, 3); /* same L2 block, same refcount block, next generation */
	d->hold = 0;
	while (!flush.done)
		qcow2_run(img, true);
	assert_int_equal(job_end(&flush), 0);
	at = disk_l2_at(d, 2 * CS);
	l2 = write_of(d, 0, at, 8);
	assert_true(word_in(d, l2, at - 8) != 0);
	assert_int_equal(word_in(d, l2, at), 0);
	assert_true(qcow2_dirty(img));
	rec_flush(img, d);
	l2 = write_of(d, l2 + 1, at, 8);
	assert_true(word_in(d, l2, at) != 0);
	assert_before(d, write_of(d, 0, disk_host(d, 2 * CS), CS), l2);
	close_image(img);
	crash_states(d);
	assert_clean(d);
	disk_free(d);
}

/* The same where a stage has several writes. */
static void several_blocks_are_frozen(void **state)
{
	struct disk *d = disk_make(&(struct spec){ .bits = 9 });
	struct qcow2_image *img = open_image(d, NULL);
	struct job flush;
	uint64_t at[2], i;

	for (i = 0; i < 2; i++)
		assert_int_equal(do_write(img, 32768 * i, 512, 0), 0);
	quiesce(img, d);
	start_record(d);
	for (i = 0; i < 2; i++)
		rec_write(img, d, 32768 * i + 512, 512, 2);
	d->hold = 1u << HOST_FSYNC;
	job_start(&flush, img, QCOW2_FLUSH, 0, 0, 0);
	settle(img, d);
	for (i = 0; i < 2; i++)
		rec_write(img, d, 32768 * i + 1024, 512, 3);
	d->hold = 0;
	while (!flush.done)
		qcow2_run(img, true);
	assert_int_equal(job_end(&flush), 0);
	for (i = 0; i < 2; i++) {
		at[i] = disk_l2_at(d, 32768 * i + 1024);
		assert_true(word_in(d, write_of(d, 0, at[i], 8), at[i] - 8) != 0);
		assert_int_equal(word_in(d, write_of(d, 0, at[i], 8), at[i]), 0);
	}
	rec_flush(img, d);
	close_image(img);
	crash_states(d);
	assert_clean(d);
	disk_free(d);
}

/* A flush that arrives while a commit runs waits for the next one: that commit knows nothing of its writes.
 */
static void flush_waits_for_its_own_generation(void **state)
{
	struct disk *d = disk_make(&(struct spec){ 0 });
	struct qcow2_image *img = open_image(d, NULL);
	struct job first, second;

	start_record(d);
	rec_write(img, d, CS, CS, 2);
	d->hold = 1u << HOST_FSYNC;
	job_start(&first, img, QCOW2_FLUSH, 0, 0, 0);
	settle(img, d);
	rec_write(img, d, 100 * CS, CS, 3);
	job_start(&second, img, QCOW2_FLUSH, 0, 0, 0);
	settle(img, d);
	assert_false(first.done || second.done);
	d->hold = 0;
	while (!first.done)
		qcow2_run(img, true);
	assert_false(second.done);
	while (!second.done)
		qcow2_run(img, true);
	assert_int_equal(job_end(&first), 0);
	assert_int_equal(job_end(&second), 0);
	memcpy(now_may, last, sizeof(last));
	promise(d);
	close_image(img);
	crash_states(d);
	disk_free(d);
}

/* A failed write of metadata fails the flush; the next one writes it again and succeeds. */
static void failed_write_is_repeated(void **state)
{
	struct disk *d = disk_make(&(struct spec){ 0 });
	struct qcow2_image *img = open_image(d, NULL);
	unsigned n;

	for (n = 1; n <= 3; n++) {
		assert_int_equal(do_write(img, n * CS, CS, (int)n), 0);
		disk_fail(d, 1u << HOST_WRITE, -ENOSPC, n, false);
		assert_int_equal(do_flush(img), n == 3 && !d->failed ? 0 : -ENOSPC);
		d->fail = 0;
		assert_int_equal(do_flush(img), 0);
		assert_int_equal(disk_check(d, true).errors, 0);
		assert_true(disk_host(d, n * CS) != 0);
	}
	close_image(img);
	assert_clean(d);
	disk_free(d);
}

/* A table whose first commit failed is old once one succeeded: its entries then wait for their data again. */
static void new_table_after_failure(void **state)
{
	struct disk *d = disk_make(&(struct spec){ 0 });
	struct qcow2_image *img = open_image(d, NULL);
	uint64_t at;

	npromises = 0;
	may_become(d, 0, CS, 1);
	assert_int_equal(do_write(img, 0, CS, 1), 0);
	disk_fail(d, 1u << HOST_WRITE, -EIO, 1, false);
	assert_int_equal(do_flush(img), -EIO);
	quiesce(img, d);
	at = disk_l2_at(d, CS);
	assert_int_equal(metamap_get(img->meta, at / CS), META_L2);
	start_record(d);
	rec_write(img, d, CS, CS, 2);
	rec_flush(img, d);
	assert_before(d, write_of(d, 0, disk_host(d, CS), CS), write_of(d, 0, at, 8));
	close_image(img);
	crash_states(d);
	assert_clean(d);
	disk_free(d);
}

/*
 * A commit fails when the L1 entry of a new table has reached the file: power may go now and leave the table reachable,
 * so what the next commit puts into it waits for its data and refcounts.
 */
static void new_table_made_reachable_by_a_failed_commit(void **state)
{
	struct disk *d = disk_make(&(struct spec){ 0 });
	struct qcow2_image *img = open_image(d, NULL);
	size_t l2;

	npromises = 0;
	may_become(d, 0, CS, 1);
	assert_int_equal(do_write(img, 0, CS, 1), 0);
	disk_fail(d, 1u << HOST_WRITE, -EIO, 3, false); /* refcounts, L2, then L1: torn */
	assert_int_equal(do_flush(img), -EIO);
	assert_int_equal(d->failed, 1);
	assert_true(disk_l2_at(d, 0) != 0);
	start_record(d);
	rec_write(img, d, CS, CS, 2);
	rec_flush(img, d);
	l2 = write_of(d, 0, disk_l2_at(d, CS), 8);
	assert_before(d, write_of(d, 0, disk_host(d, CS), CS), l2);
	assert_before(d, write_of(d, 0, disk_rb(d, 0), CS), l2);
	close_image(img);
	crash_states(d);
	assert_clean(d);
	disk_free(d);
}

/* 7: after a failed fsync nothing is ever called durable again, wherever in the commit it was. */
static void failed_fsync_is_final(void **state)
{
	unsigned n;

	for (n = 1; n < 4; n++) {
		struct disk *d = disk_make(&(struct spec){ 0 });
		struct qcow2_image *img = open_image(d, NULL);
		struct qcow2_error err = { "" };
		unsigned syncs;

		assert_int_equal(do_write(img, 0, CS, 1), 0);
		disk_fail(d, 1u << HOST_FSYNC, -EIO, n, false);
		if (n < 3)
			assert_int_equal(do_flush(img), -EIO);
		else
			assert_int_equal(do_flush(img), 0);
		if (d->failed) {
			syncs = d->seen[HOST_WRITE];
			assert_int_equal(do_flush(img), -EIO);
			assert_int_equal(do_write(img, 0, CS, 2), -EIO);
			assert_int_equal(do_req(img, QCOW2_DISCARD, 0, CS, 0), -EIO);
			assert_int_equal(do_zero(img, 0, CS, 0), -EIO);
			reads(img, 0, CS, 1);
			assert_int_equal(qcow2_close(img, &err), -EIO);
			assert_non_null(strstr(err.text, "disk.qcow2"));
			assert_int_equal(d->seen[HOST_WRITE], syncs); /* nothing more was written */
		} else {
			d->fail = 0;
			close_image(img);
		}
		assert_int_equal(disk_check(d, true).errors, 0);
		disk_free(d);
	}
}

/* The last references go in one commit, their refcounts in the next, the space after it. Close does all. */
static void close_gives_everything_back(void **state)
{
	struct disk *d = disk_make(&(struct spec){ 0 });
	struct qcow2_image *img = open_image(d, NULL);

	assert_int_equal(do_write(img, 0, 16 * CS, 1), 0);
	assert_int_equal(do_req(img, QCOW2_DISCARD, 4 * CS, 8 * CS, 0), 0);
	close_image(img);
	assert_int_equal(d->seen[HOST_PUNCH], 1);
	assert_clean(d);
	disk_free(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(allocate_flush, setup),
		cmocka_unit_test_setup(allocate_in_old_table, setup),
		cmocka_unit_test_setup(flush_is_never_elided, setup),
		cmocka_unit_test_setup(cow_of_snapshot, setup),
		cmocka_unit_test_setup(discard_reuse, setup),
		cmocka_unit_test_setup(quarantine, setup),
		cmocka_unit_test_setup(table_growth, setup),
		cmocka_unit_test_setup(growth_during_commit, setup),
		cmocka_unit_test_setup(autoclear, setup),
		cmocka_unit_test_setup(generations_are_frozen, setup),
		cmocka_unit_test_setup(several_blocks_are_frozen, setup),
		cmocka_unit_test_setup(flush_waits_for_its_own_generation, setup),
		cmocka_unit_test(failed_write_is_repeated),
		cmocka_unit_test_setup(new_table_after_failure, setup),
		cmocka_unit_test_setup(new_table_made_reachable_by_a_failed_commit, setup),
		cmocka_unit_test(failed_fsync_is_final),
		cmocka_unit_test(close_gives_everything_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Refcounts and the allocator over them: all seven widths, refcount blocks made when they are missing, the
 * table growing once and twice, its limits, places that are taken, and which clusters are handed out.
 */
#include "memimg.h"
#include "qcow2/alloc.h"
#include "qcow2/commit.h"
#include "qcow2/refcount.h"

static struct disk *d;
static struct qcow2_image *img;

/* ---- an op that calls a function until it does not block ---- */

struct call {
	struct op op;
	int (*fn)(struct call *c);
	uint64_t arg, out;
	struct cluster_run run;
	int ret; /* 1: not yet */
};

static enum step call_step(struct op *op)
{
	struct call *c = (struct call *)op;
	int ret = op->err ? op->err : c->fn(c);

	if (ret == -EWOULDBLOCK)
		return STEP_NEXT;
	c->ret = ret;
	return STEP_DONE;
}

static int call(struct call *c, int (*fn)(struct call *c), uint64_t arg)
{
	unsigned turns = 0;

	*c = (struct call){ .fn = fn, .arg = arg, .ret = 1 };
	op_init(&c->op, img->run);
	op_then(&c->op, call_step);
	op_start(&c->op);
	while (c->ret == 1 && turns++ < 10000)
		qcow2_run(img, true);
	return c->ret;
}

static int get_fn(struct call *c)
{
	return refcount_get(img, c->arg, &c->out, &c->op);
}

static int next_fn(struct call *c)
{
	return refcount_next_zero(img, c->arg, &c->out, &c->op);
}

static int ensure_fn(struct call *c)
{
	return refcount_ensure(img, c->arg, &c->op);
}

static int alloc_fn(struct call *c)
{
	return alloc_clusters(img, c->arg, &c->run, &c->op);
}

static uint64_t get(uint64_t cluster)
{
	struct call c;

	assert_int_equal(call(&c, get_fn, cluster), 0);
	return c.out;
}

static struct cluster_run take(uint64_t want)
{
	struct call c;

	assert_int_equal(call(&c, alloc_fn, want), 0);
	assert_true(c.run.n >= 1 && c.run.n <= want);
	return c.run;
}

/* What tests took by hand is nobody's: give it back before the end. */
static void give(struct cluster_run run)
{
	commit_lower(img, run.first, run.n);
}

static void start(const struct spec *s)
{
	d = disk_make(s);
	img = open_image(d, NULL);
}

static void finish(void)
{
	close_image(img);
	assert_clean(d);
	disk_free(d);
}

/* ---- widths ---- */

/* Every width holds 0 and its maximum, next to others, through cache and commit. */
static void widths(void **state)
{
	static const unsigned orders[] = { 7, 1, 2, 3, 4, 5, 6 };
	unsigned i;

	for (i = 0; i < COUNT(orders); i++) {
		unsigned bits = orders[i] == 7 ? 1 : 1u << orders[i];
		uint64_t max = bits == 64 ? UINT64_MAX : (1ull << bits) - 1, c;

		start(&(struct spec){ .bits = 9, .order = orders[i] });
		assert_int_equal(img->geo.refcount_max, max);
		assert_int_equal(get(3), 1);
		assert_int_equal(get(4), 0);
		assert_int_equal(get(1ull << 40), 0); /* no block: nothing has a reference there */
		for (c = 10; c < 20; c++)
			assert_int_equal(refcount_set(img, c, c % 2 ? max : 0), 0);
		assert_int_equal(refcount_set(img, 21, max / 2 + 1), 0);
		for (c = 10; c < 20; c++)
			assert_int_equal(get(c), c % 2 ? max : 0);
		assert_int_equal(get(21), max / 2 + 1);
		assert_int_equal(get(20), 0);
		assert_int_equal(get(22), 0);
		assert_int_equal(do_flush(img), 0);
		for (c = 0; c < 32; c++) /* on disk it is the same, read by other code */
			assert_int_equal(disk_refcount(d, c), get(c));
		close_image(img);
		disk_free(d);
	}
}

/* A saturated count goes down by one reference only; the cluster is not given away. */
static void saturated(void **state)
{
	static const unsigned orders[] = { 1, 2, 3, 4, 5, 6 };
	unsigned i;

	for (i = 0; i < COUNT(orders); i++) {
		start(&(struct spec){ .bits = 9, .order = orders[i] });
		assert_int_equal(get(3), 1);
		assert_int_equal(refcount_set(img, 20, img->geo.refcount_max), 0);
		commit_lower(img, 20, 1);
		quiesce(img, d);
		assert_int_equal(get(20), img->geo.refcount_max - 1);
		assert_int_equal(metamap_get(img->meta, 20), META_NONE);
		assert_int_equal(d->seen[HOST_PUNCH], 0);
		close_image(img);
		disk_free(d);
	}
}

/* A run of several, one call. */
static void lower_runs(void **state)
{
	struct cluster_run a, b;

	start(&(struct spec){ 0 });
	a = take(5);
	b = take(3);
	assert_int_equal(b.first, a.first + 5);
	give(a);
	quiesce(img, d);
	assert_int_equal(get(a.first), 0);
	assert_int_equal(get(a.first + 4), 0);
	assert_int_equal(get(b.first), 1);
	assert_int_equal(take(100).first, a.first); /* first fit */
	give((struct cluster_run){ a.first, 5, false });
	give(b);
	finish();
}

/* ---- looking for space ---- */

static void next_zero(void **state)
{
	struct call c;

	start(&(struct spec){ .bits = 9, .order = 6 }); /* 64 counts in a block */
	assert_int_equal(call(&c, next_fn, 0), 0);
	assert_int_equal(c.out, 4);
	for (uint64_t i = 0; i < 64; i++)
		refcount_set(img, i, 1);
	assert_int_equal(call(&c, next_fn, 0), 0);
	assert_int_equal(c.out, 64); /* past the only block */
	assert_int_equal(call(&c, next_fn, 100000), 0);
	assert_int_equal(c.out, 100000); /* past the table */
	close_image(img);
	disk_free(d);
}

static void peek_starts_nothing(void **state)
{
	uint64_t n, reads_before;

	start(&(struct spec){ .bits = 9, .order = 6 });
	reads_before = d->seen[HOST_READ];
	assert_int_equal(refcount_peek(img, 1, &n), -EWOULDBLOCK);
	settle(img, d);
	assert_int_equal(d->seen[HOST_READ], reads_before);
	assert_int_equal(get(1), 1);
	assert_int_equal(refcount_peek(img, 1, &n), 0);
	assert_int_equal(n, 1);
	assert_int_equal(refcount_peek(img, 64, &n), -ENOENT);
	assert_int_equal(refcount_set(img, 64, 1), -ENOENT);
	finish();
}

/* A run ends where a count is not zero, where metadata lies and where the next block is missing. */
static void runs_end(void **state)
{
	struct cluster_run r, rest;

	start(&(struct spec){ .bits = 9, .order = 6 });
	assert_int_equal(get(10), 0);
	refcount_set(img, 10, 1);
	r = take(100);
	assert_int_equal(r.first, 4);
	assert_int_equal(r.n, 6);
	assert_true(r.fresh);
	rest = take(100);
	assert_int_equal(rest.first, 11);
	assert_int_equal(rest.n, 64 - 11);
	give(r);
	give(rest);
	commit_lower(img, 10, 1);
	finish();
}

/* ---- refcount blocks ---- */

/* A missing block lies on the first cluster it covers, counts itself, and is in the table after a commit. */
static void block_creation(void **state)
{
	struct cluster_run r[3];
	struct call c;
	unsigned i;

	start(&(struct spec){ .bits = 9, .order = 6 });
	assert_int_equal(call(&c, ensure_fn, 5), 0);
	assert_int_equal(d->seen[HOST_WRITE], 0);
	r[0] = take(60);
	for (i = 1; i < 3; i++) {
		r[i] = take(60);
		assert_int_equal(r[i].first, 64 * i + (i == 1) + (i == 2 ? -3 : 0)); /* 65..124, then 125.. */
	}
	assert_int_equal(get(64), 1);
	assert_int_equal(metamap_get(img->meta, 64), META_RB);
	assert_int_equal(do_flush(img), 0);
	assert_int_equal(disk_be(d, 512 + 8, 8), 64 * 512);
	assert_int_equal(disk_refcount(d, 64), 1);
	for (i = 0; i < 3; i++)
		give(r[i]);
	quiesce(img, d);
	assert_int_equal(disk_refcount(d, 64), 1); /* blocks stay */
	finish();
}

/* One is made at a time; everybody who needs one waits for it and gets it. */
static void many_wait_for_a_block(void **state)
{
	struct job j[12];
	unsigned i;

	start(&(struct spec){ .bits = 9, .order = 6 });
	for (i = 0; i < 12; i++)
		job_start(&j[i], img, QCOW2_WRITE, 65536 * i, 16384, 1 + (int)i);
	while (qcow2_run(img, true))
		;
	for (i = 0; i < 12; i++) {
		assert_int_equal(job_end(&j[i]), 0);
		reads(img, 65536 * i, 16384, 1 + (int)i);
	}
	finish();
}

/* The block cannot be written: the writers get the error; later it works, and nothing is lost or leaked. */
static void block_creation_fails(void **state)
{
	struct cluster_run r;
	struct call c;

	start(&(struct spec){ .bits = 9, .order = 6 });
	r = take(60);
	disk_fail(d, WRITES, -ENOSPC, 1, true);
	assert_int_equal(call(&c, alloc_fn, 1), -ENOSPC);
	assert_int_equal(metamap_get(img->meta, 64), META_NONE);
	assert_int_equal(call(&c, alloc_fn, 1), -ENOSPC);
	d->fail = 0;
	assert_int_equal(call(&c, alloc_fn, 1), 0);
	assert_int_equal(c.run.first, 65);
	give(c.run);
	give(r);
	finish();
}

/* The place of a new block holds metadata (whose block is missing): corrupt, not overwritten. */
static void block_place_taken(void **state)
{
	struct call c;

	start(&(struct spec){ .bits = 9, .order = 6 });
	assert_int_equal(metamap_add(img->meta, 64, 1, META_SNAPSHOT), 0);
	take(60);
	assert_int_equal(call(&c, alloc_fn, 1), -EUCLEAN);
	assert_int_equal(img->mode, MODE_RO);
	assert_int_equal(disk_be(d, 64 * 512, 8), 0);
	close_image(img);
	disk_free(d);
}

/* A table entry that is no refcount block. */
static void bad_table_entry(void **state)
{
	static const uint64_t words[] = { 512, 1, 3 * 512, 1ull << 60, 100 * 512 };
	struct call c;
	unsigned i;

	for (i = 0; i < COUNT(words); i++) {
		start(&(struct spec){ .bits = 9, .order = 6 });
		disk_set_be(d, 512 + 8, words[i], 8); /* after open has looked */
		assert_int_equal(call(&c, get_fn, 64), -EUCLEAN);
		assert_int_equal(img->mode, MODE_RO);
		close_image(img);
		disk_free(d);
	}
}

/* ---- growth ---- */

/* Everything below @upto is taken; blocks are made on the way. */
static void take_up_to(uint64_t upto)
{
	struct cluster_run r;

	do
		r = take(64);
	while (r.first + r.n < upto);
}

/* 512-byte clusters, 64-bit counts: one table cluster covers 4096 clusters, the grown one 8192, then 16384.
 */
static void growth_twice(void **state)
{
	uint64_t rt[3], leaks, used;
	struct check_result res;

	start(&(struct spec){ .bits = 9, .order = 6 });
	rt[0] = img->hdr.rt_offset;
	assert_int_equal(refcount_covered(img), 4096);
	take_up_to(4096);
	take(1);
	rt[1] = img->hdr.rt_offset;
	assert_true(rt[1] > rt[0]);
	assert_int_equal(img->hdr.rt_clusters, 2);
	assert_int_equal(refcount_covered(img), 8192);
	assert_int_equal(rt[1] / 512, 4097); /* behind the block that covers it */
	assert_int_equal(metamap_get(img->meta, 1), META_NONE);
	assert_int_equal(metamap_get(img->meta, 4096), META_RB);
	assert_int_equal(metamap_get(img->meta, 4098), META_RT);
	assert_int_equal(get(4096), 1);
	assert_int_equal(get(4098), 1);
	assert_int_equal(get(4000), 1); /* the old blocks are in the new table */
	quiesce(img, d);
	assert_int_equal(disk_be(d, 48, 8), rt[1]);
	assert_int_equal(disk_be(d, 56, 4), 2);
	assert_int_equal(get(1), 0); /* the old table's place is free */
	take_up_to(8192);
	take(1);
	rt[2] = img->hdr.rt_offset;
	assert_int_equal(img->hdr.rt_clusters, 4);
	assert_int_equal(refcount_covered(img), 16384);
	assert_int_equal(do_write(img, 0, 65536, 3), 0);
	quiesce(img, d);
	assert_int_equal(disk_be(d, 48, 8), rt[2]);
	assert_int_equal(get(rt[1] / 512), 0);
	close_image(img);
	res = disk_check(d, false);
	assert_int_equal(res.errors, 0);
	assert_true(res.leaks > 8000); /* what the test took */
	leaks = res.leaks;
	img = open_image(d, NULL); /* the next one sees it all */
	used = get(8191);
	assert_int_equal(used, 1);
	reads(img, 0, 65536, 3);
	close_image(img);
	assert_int_equal(disk_check(d, false).leaks, leaks);
	disk_free(d);
}

/* A failed growth leaves the old table in charge. */
static void growth_fails(void **state)
{
	struct call c;
	uint64_t rt;
	unsigned n;

	for (n = 1; n <= 2; n++) { /* the blocks, the table */
		start(&(struct spec){ .bits = 9, .order = 6 });
		rt = img->hdr.rt_offset;
		take_up_to(4096);
		assert_int_equal(do_flush(img), 0);
		disk_fail(d, WRITES, -ENOSPC, n, false);
		assert_int_equal(call(&c, alloc_fn, 1), -ENOSPC);
		assert_int_equal(d->failed, 1);
		assert_int_equal(img->hdr.rt_offset, rt);
		assert_int_equal(metamap_get(img->meta, 1), META_RT);
		assert_int_equal(metamap_get(img->meta, 4096), META_NONE);
		assert_int_equal(call(&c, alloc_fn, 1), 0);
		assert_true(img->hdr.rt_offset != rt);
		close_image(img);
		assert_int_equal(disk_check(d, true).errors, 0);
		disk_free(d);
	}
}

/* With 1-bit counts and 4096-byte clusters a block covers 32768 clusters: nothing grows here, nothing is
 * made. */
static void no_growth(void **state)
{
	struct cluster_run r;

	start(&(struct spec){ .order = 7 });
	r = take(2000);
	assert_int_equal(r.n, 2000);
	assert_int_equal(d->seen[HOST_WRITE], 0);
	give(r);
	finish();
}

/* The table may not exceed 8 MiB. */
static void growth_limit(void **state)
{
	struct call c;

	start(&(struct spec){ .bits = 9, .order = 6 });
	img->hdr.rt_clusters = 16384; /* as if it had grown */
	assert_int_equal(refcount_covered(img), 16384 * 4096);
	assert_int_equal(call(&c, ensure_fn, 16384 * 4096), -EFBIG);
	assert_int_equal(img->mode, MODE_RW);
	assert_int_equal(d->seen[HOST_WRITE], 0);
	close_image(img);
	disk_free(d);
}

/* ---- fresh ---- */

/* Clusters past everything the file ever held read as zeroes; others do not. */
static void fresh(void **state)
{
	struct cluster_run r;

	d = disk_make(&(struct spec){ 0 });
	disk_put(d, 10 * 4096, NULL, 100); /* the file goes on, uncounted */
	img = open_image(d, NULL);
	r = take(6);
	assert_int_equal(r.first, 4);
	assert_false(r.fresh);
	give(r);
	assert_int_equal(alloc_end(img), 11 * 4096);
	r = take(1);
	assert_false(r.fresh);
	give(r);
	r = take(1);
	assert_true(r.fresh);
	give(r);
	quiesce(img, d);
	assert_false(take(1).fresh); /* used before */
	give((struct cluster_run){ 4, 1, false });
	finish();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(widths),
		cmocka_unit_test(saturated),
		cmocka_unit_test(lower_runs),
		cmocka_unit_test(next_zero),
		cmocka_unit_test(peek_starts_nothing),
		cmocka_unit_test(runs_end),
		cmocka_unit_test(block_creation),
		cmocka_unit_test(many_wait_for_a_block),
		cmocka_unit_test(block_creation_fails),
		cmocka_unit_test(block_place_taken),
		cmocka_unit_test(bad_table_entry),
		cmocka_unit_test(growth_twice),
		cmocka_unit_test(growth_fails),
		cmocka_unit_test(no_growth),
		cmocka_unit_test(growth_limit),
		cmocka_unit_test(fresh),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

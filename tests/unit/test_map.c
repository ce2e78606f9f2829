// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * L1 and L2 tables: what a lookup says and where it stops, what it never trusts, the making of tables (empty,
 * copied from a shared one, by several at once, failing), what map_set() changes and whose references it
 * drops.
 */
#include "memimg.h"
#include "qcow2/alloc.h"
#include "qcow2/commit.h"
#include "qcow2/map.h"

#define CS 4096ull

static struct disk *d;
static struct qcow2_image *img;

struct call {
	struct op op;
	int (*fn)(struct call *c);
	uint64_t guest, len;
	struct extent e;
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

static void call_start(struct call *c, int (*fn)(struct call *c), uint64_t guest, uint64_t len)
{
	*c = (struct call){ .fn = fn, .guest = guest, .len = len, .ret = 1 };
	op_init(&c->op, img->run);
	op_then(&c->op, call_step);
	op_start(&c->op);
}

static int call(struct call *c, int (*fn)(struct call *c), uint64_t guest, uint64_t len)
{
	unsigned turns = 0;

	call_start(c, fn, guest, len);
	while (c->ret == 1 && turns++ < 10000)
		qcow2_run(img, true);
	return c->ret;
}

static int lookup_fn(struct call *c)
{
	return map_lookup(img, c->guest, c->len, &c->e, &c->op);
}

static int prepare_fn(struct call *c)
{
	return map_prepare(img, c->guest, &c->op);
}

static struct extent look(uint64_t guest, uint64_t len)
{
	struct call c;

	assert_int_equal(call(&c, lookup_fn, guest, len), 0);
	return c.e;
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

/* Open a damaged image; the lookup of guest 0 must fail. */
static void damaged(uint64_t word)
{
	struct call c;
	unsigned ro;

	for (ro = 0; ro < 2; ro++) {
		start(&(struct spec){ 0 });
		assert_int_equal(do_write(img, 0, 2 * CS, 1), 0);
		close_image(img);
		disk_set_be(d, disk_l2_at(d, 0), word, 8);
		img = open_image(d, &(struct qcow2_options){ .read_only = ro });
		assert_int_equal(call(&c, lookup_fn, 0, CS), -EUCLEAN);
		assert_int_equal(call(&c, lookup_fn, CS, CS), 0); /* the neighbour is fine */
		close_image(img);
		disk_free(d);
	}
}

static void lookup(void **state)
{
	struct extent e;

	start(&(struct spec){ 0 });
	e = look(0, 1 << 20);
	assert_int_equal(e.kind, EXT_UNALLOCATED); /* no table at all */
	assert_int_equal(e.len, 1 << 20);
	assert_int_equal(do_write(img, 2 * CS, 4 * CS, 1), 0);
	e = look(0, 1 << 20);
	assert_int_equal(e.kind, EXT_UNALLOCATED);
	assert_int_equal(e.len, 2 * CS);
	e = look(2 * CS + 700, 1 << 20);
	assert_int_equal(e.kind, EXT_DATA);
	assert_true(e.copied);
	assert_int_equal(e.len, 4 * CS - 700);
	assert_int_equal(e.host % CS, 700);
	assert_int_equal(look(2 * CS, 100).len, 100); /* never more than asked */
	assert_int_equal(do_zero(img, 4 * CS, CS, 0), 0);
	assert_int_equal(look(2 * CS, 1 << 20).len, 2 * CS);
	assert_int_equal(look(4 * CS, 1 << 20).kind, EXT_ZERO);
	assert_int_equal(look(4 * CS, 1 << 20).len, CS);
	assert_int_equal(do_zero(img, 2 * CS, CS, QCOW2_REQ_NO_UNMAP), 0);
	e = look(2 * CS, CS);
	assert_int_equal(e.kind, EXT_ZERO_ALLOC);
	assert_true(e.host != 0);
	finish();
}

/* Clusters that do not follow each other on the host end an extent, so do blocks and tables. */
static void lookup_stops(void **state)
{
	start(&(struct spec){ .bits = 9 });
	assert_int_equal(do_write(img, 512, 512, 1), 0);
	assert_int_equal(do_write(img, 0, 512, 2), 0);
	assert_int_equal(look(0, 1024).len, 512);
	assert_int_equal(do_write(img, 32768, 32768, 3), 0); /* the second table: 64 entries */
	assert_int_equal(look(32768, 1 << 20).len, 32768);
	assert_int_equal(look(65536, 1 << 20).len, 32768); /* there is no third, but it ends */
	finish();
}

static void lookup_without_waiting(void **state)
{
	struct extent e;

	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 0, CS, 1), 0);
	close_image(img);
	img = open_image(d, NULL);
	assert_int_equal(map_lookup(img, 0, CS, &e, NULL), -EWOULDBLOCK);
	settle(img, d);
	assert_int_equal(map_lookup(img, 0, CS, &e, NULL), -EWOULDBLOCK);
	look(0, CS);
	assert_int_equal(map_lookup(img, 0, CS, &e, NULL), 0);
	finish();
}

static void lookup_read_error(void **state)
{
	struct call c;

	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 0, CS, 1), 0);
	close_image(img);
	img = open_image(d, NULL);
	disk_fail(d, 1u << HOST_READ, -EIO, 2, false); /* the L2 block */
	assert_int_equal(call(&c, lookup_fn, 0, CS), -EIO);
	assert_int_equal(call(&c, lookup_fn, 0, CS), 0);
	assert_int_equal(img->mode, MODE_RW); /* an I/O error is not corruption */
	finish();
}

static void bad_entries(void **state)
{
	damaged(1ull << 40 | QCOW2_COPIED); /* past the file */
	damaged(CS / 2 | QCOW2_COPIED);
	damaged(4 * CS | QCOW2_COPIED | 2);
	damaged(4 * CS | QCOW2_COPIED | 1ull << 60);
	damaged(QCOW2_L2_COMPRESSED | 1ull << 50);
	damaged(QCOW2_L2_COMPRESSED);
	damaged(QCOW2_L2_COMPRESSED | QCOW2_COPIED | 4 * CS);
}

/* ... and one that reads fine but is fatal to write: only when we may write are places of metadata known. */
static void entry_on_metadata(void **state)
{
	struct call c;
	uint64_t l1;
	unsigned compressed;

	for (compressed = 0; compressed < 2; compressed++) {
		start(&(struct spec){ 0 });
		assert_int_equal(do_write(img, 0, 2 * CS, 1), 0);
		close_image(img);
		l1 = disk_be(d, 40, 8);
		/* compressed: begins on the cluster before, ends one sector into the L1 table */
		disk_set_be(d, disk_l2_at(d, 0),
			    compressed ? QCOW2_L2_COMPRESSED | 1ull << 58 | (l1 - 512) : l1 | QCOW2_COPIED, 8);
		img = open_image(d, NULL);
		assert_int_equal(call(&c, lookup_fn, 0, CS), -EUCLEAN);
		assert_int_equal(call(&c, lookup_fn, CS, CS), 0);
		close_image(img);
		disk_free(d);
	}
}

/* An L1 word changed behind our back after open. */
static void bad_l1(void **state)
{
	static const uint64_t words[] = { QCOW2_COPIED, 1ull << 60 | 4 * CS, 4 * CS + 512, 1ull << 50, 3 * CS,
					  5 * CS }; /* the last: data, all zeroes */
	struct call c;
	unsigned i;

	for (i = 0; i < COUNT(words); i++) {
		start(&(struct spec){ 0 });
		assert_int_equal(do_write(img, 0, CS, 0), 0);
		close_image(img);
		img = open_image(d, NULL);
		disk_set_be(d, disk_l1_at(d, 0), words[i], 8);
		assert_int_equal(call(&c, lookup_fn, 0, CS), -EUCLEAN);
		assert_int_equal(img->mode, MODE_RO);
		close_image(img);
		disk_free(d);
	}
}

/* ---- tables ---- */

static void new_table(void **state)
{
	struct call c;
	uint64_t l2;

	start(&(struct spec){ .bits = 9 });
	assert_int_equal(call(&c, prepare_fn, 32768, 0), 0);
	assert_int_equal(disk_be(d, disk_l1_at(d, 32768), 8), 0); /* not before a commit */
	l2 = 4 * 512;
	assert_int_equal(metamap_get(img->meta, 4), META_L2_NEW);
	assert_int_equal(look(32768, 1 << 20).kind, EXT_UNALLOCATED);
	assert_int_equal(do_flush(img), 0);
	assert_int_equal(disk_be(d, disk_l1_at(d, 32768), 8), l2 | QCOW2_COPIED);
	assert_int_equal(metamap_get(img->meta, 4), META_L2);
	assert_int_equal(call(&c, prepare_fn, 32768 + 512, 0), 0);
	assert_false(qcow2_dirty(img));
	finish();
}

/* Two for one table: it is made once. Two for different ones: both are made. */
static void several_at_once(void **state)
{
	struct call c[4];
	struct qcow2_stats st;
	unsigned i;

	start(&(struct spec){ .bits = 9 });
	for (i = 0; i < 4; i++)
		call_start(&c[i], prepare_fn, i / 2 * 32768, 0);
	settle(img, d);
	for (i = 0; i < 4; i++)
		assert_int_equal(c[i].ret, 0);
	qcow2_get_stats(img, &st);
	assert_int_equal(st.allocated, 2);
	finish();
}

/* A copy has no COPIED in it; what the old one named is named by both; the old one loses our reference. */
static void copied_table(void **state)
{
	struct call c;
	uint64_t old, i;

	start(&(struct spec){ .bits = 9 });
	assert_int_equal(do_write(img, 0, 20 * 512, 1), 0);
	close_image(img);
	disk_snapshot(d);
	old = disk_be(d, disk_l1_at(d, 0), 8);
	for (i = 0; i < 20; i++) /* as if somebody had forgotten to clear them */
		disk_set_be(d, disk_l2_at(d, 512 * i), disk_entry(d, 512 * i) | (i % 3 ? QCOW2_COPIED : 0),
			    8);
	img = open_image(d, NULL);
	assert_false(look(512, 512).copied); /* the table is not ours, so the cluster is not */
	assert_int_equal(call(&c, prepare_fn, 0, 0), 0);
	assert_false(look(512, 512).copied);
	assert_int_equal(look(0, 1 << 20).len, 20 * 512);
	quiesce(img, d);
	assert_true((disk_be(d, disk_l1_at(d, 0), 8) & OFFSET_BITS) != old);
	assert_int_equal(disk_refcount(d, old / 512), 1);
	for (i = 0; i < 20; i++) {
		assert_int_equal(disk_entry(d, 512 * i) & QCOW2_COPIED, 0);
		assert_int_equal(disk_refcount(d, disk_host(d, 512 * i) / 512), 2);
		assert_int_equal(disk_be(d, old + 8 * i, 8) & OFFSET_BITS, disk_host(d, 512 * i));
	}
	reads(img, 0, 20 * 512, 1);
	close_image(img);
	assert_int_equal(disk_check(d, false).leaks, 0);
	disk_free(d);
}

/* The table cannot be written, read or linked: whoever waits is told, the cluster comes back, then it works.
 */
static void making_fails(void **state)
{
	struct call c;
	unsigned n, ops;

	for (ops = 0; ops < 2; ops++) {
		for (n = 1; n < 5; n++) {
			start(&(struct spec){ .bits = 9 });
			assert_int_equal(do_write(img, 0, 512, 1), 0);
			close_image(img);
			disk_snapshot(d);
			img = open_image(d, NULL);
			disk_fail(d, ops ? WRITES : 1u << HOST_READ, -EIO, n, false);
			if (call(&c, prepare_fn, 0, 0) == 0)
				assert_int_equal(d->failed, 0);
			else
				assert_int_equal(c.ret, -EIO);
			assert_true(d->failed || n > 1);
			d->fail = 0;
			assert_int_equal(call(&c, prepare_fn, 0, 0), 0);
			reads(img, 0, 512, 1);
			finish();
		}
	}
}

/* The table of one cannot be written: whoever waited to make another table is not told, and makes it. */
static void error_of_another_table(void **state)
{
	struct call c[4];
	unsigned i;

	start(&(struct spec){ .bits = 9 });
	disk_fail(d, WRITES, -EIO, 1, false);
	for (i = 0; i < 4; i++)
		call_start(&c[i], prepare_fn, i / 2 * 32768, 0);
	settle(img, d);
	for (i = 0; i < 4; i++)
		assert_int_equal(c[i].ret, i < 2 ? -EIO : 0);
	finish();
}

/* ---- map_set ---- */

/* Only in a table that is ours. */
static void set_needs_a_table(void **state)
{
	start(&(struct spec){ 0 });
	look(0, CS);
	assert_int_equal(map_set(img, 0, 1, EXT_ZERO, 0, NULL), -EUCLEAN);
	assert_false(qcow2_dirty(img));
	finish();
}

/* An entry that changes drops its old cluster, one that keeps it does not. */
static void set_drops(void **state)
{
	uint64_t host;
	struct call c;

	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 0, 3 * CS, 1), 0);
	quiesce(img, d);
	host = look(0, CS).host;
	assert_int_equal(call(&c, prepare_fn, 0, 0), 0);
	assert_int_equal(map_set(img, 0, 3, EXT_ZERO_ALLOC, host, NULL), 0);
	assert_int_equal(map_set(img, 0, 1, EXT_DATA, host, NULL), 0);
	quiesce(img, d);
	assert_int_equal(disk_refcount(d, host / CS), 1);
	assert_int_equal(disk_entry(d, 0), host | QCOW2_COPIED);
	assert_int_equal(disk_entry(d, CS), (host + CS) | QCOW2_COPIED | QCOW2_L2_ZERO);
	assert_int_equal(map_set(img, CS, 2, EXT_ZERO, 0, NULL), 0);
	quiesce(img, d);
	assert_int_equal(disk_entry(d, 2 * CS), QCOW2_L2_ZERO);
	assert_int_equal(disk_refcount(d, host / CS), 1);
	assert_int_equal(disk_refcount(d, host / CS + 1), 0);
	assert_int_equal(disk_refcount(d, host / CS + 2), 0);
	finish();
}

/* A compressed entry holds a reference of every cluster that its bytes touch. */
static void set_drops_compressed(void **state)
{
	uint64_t a, b, host;
	struct call c;

	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 4 * CS, CS, 1), 0);
	close_image(img);
	a = disk_append(d);
	b = disk_append(d);
	assert_int_equal(b, a + CS);
	host = a + CS - 600; /* 1112 bytes: the last sector of a, two of b */
	disk_set_be(d, disk_l2_at(d, 0), QCOW2_L2_COMPRESSED | 2ull << 58 | host, 8);
	assert_clean(d);
	img = open_image(d, NULL);
	assert_int_equal(look(0, 1 << 20).kind, EXT_COMPRESSED);
	assert_int_equal(look(0, 1 << 20).len, CS);
	assert_int_equal(look(0, CS).host, host);
	assert_int_equal(call(&c, prepare_fn, 0, 0), 0);
	assert_int_equal(map_set(img, 0, 1, EXT_ZERO, 0, NULL), 0);
	quiesce(img, d);
	assert_int_equal(disk_refcount(d, a / CS), 0);
	assert_int_equal(disk_refcount(d, b / CS), 0);
	finish();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lookup),
		cmocka_unit_test(lookup_stops),
		cmocka_unit_test(lookup_without_waiting),
		cmocka_unit_test(lookup_read_error),
		cmocka_unit_test(bad_entries),
		cmocka_unit_test(entry_on_metadata),
		cmocka_unit_test(bad_l1),
		cmocka_unit_test(new_table),
		cmocka_unit_test(several_at_once),
		cmocka_unit_test(copied_table),
		cmocka_unit_test(making_fails),
		cmocka_unit_test(error_of_another_table),
		cmocka_unit_test(set_needs_a_table),
		cmocka_unit_test(set_drops),
		cmocka_unit_test(set_drops_compressed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

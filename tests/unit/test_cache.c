// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The metadata cache: loads once for many, bounded, what it evicts and what never, errors, types, dropping,
 * and that dirty blocks start a commit. The blocks here are spare clusters of an image, read as refcount
 * blocks.
 */
#include "memimg.h"
#include "qcow2/cache.h"
#include "qcow2/commit.h"

#define CS 4096ull
#define SPARE 64 /* first spare cluster */

static struct disk *d;
static struct qcow2_image *img;

struct waiter {
	struct op op;
	int ret; /* 1: not woken */
};

static enum step woken(struct op *op)
{
	((struct waiter *)op)->ret = op->err;
	return STEP_DONE;
}

/* As from inside a step. */
static int get(struct waiter *w, uint64_t off, struct block **b)
{
	int ret;

	*b = NULL;
	*w = (struct waiter){ .ret = 1 };
	op_init(&w->op, img->run);
	op_then(&w->op, woken);
	op_get(&w->op);
	ret = cache_get(img, BLK_RB, off, b, &w->op);
	op_put(&w->op, 0);
	return ret;
}

static struct block *load(uint64_t n)
{
	struct waiter w;
	struct block *b;
	int ret = get(&w, (SPARE + n) * CS, &b);

	settle(img, d);
	if (ret == -EWOULDBLOCK) {
		assert_int_equal(w.ret, 0);
		ret = cache_get(img, BLK_RB, (SPARE + n) * CS, &b, NULL);
	}
	assert_int_equal(ret, 0);
	assert_int_equal(disk_be(d, (SPARE + n) * CS, 4), SPARE + n);
	assert_int_equal(((uint8_t *)b->data)[3], (SPARE + n) & 255);
	return b;
}

static int setup(void **state)
{
	uint64_t i;

	d = disk_make(&(struct spec){ 0 });
	for (i = 0; i < 200; i++)
		disk_set_be(d, (SPARE + i) * CS, SPARE + i, 4);
	img = open_image(d, &(struct qcow2_options){ .cache_bytes = 1 }); /* 64 blocks at least */
	return 0;
}

static int teardown(void **state)
{
	close_image(img);
	disk_free(d);
	return 0;
}

static void loads_once(void **state)
{
	struct waiter w[5];
	struct block *b;
	unsigned i;

	d->hold = 1u << HOST_READ;
	for (i = 0; i < 5; i++)
		assert_int_equal(get(&w[i], SPARE * CS, &b), -EWOULDBLOCK);
	settle(img, d);
	assert_int_equal(w[0].ret, 1);
	d->hold = 0;
	settle(img, d);
	for (i = 0; i < 5; i++)
		assert_int_equal(w[i].ret, 0);
	assert_int_equal(d->seen[HOST_READ], 1);
	assert_int_equal(get(&w[0], SPARE * CS, &b), 0);
	assert_int_equal(d->seen[HOST_READ], 1);
	settle(img, d);
}

/* A failed load tells every waiter and leaves nothing: the next one tries again. */
static void load_fails(void **state)
{
	struct waiter w[2];
	struct block *b;

	disk_fail(d, 1u << HOST_READ, -EIO, 1, false);
	assert_int_equal(get(&w[0], SPARE * CS, &b), -EWOULDBLOCK);
	assert_int_equal(get(&w[1], SPARE * CS, &b), -EWOULDBLOCK);
	settle(img, d);
	assert_int_equal(w[0].ret, -EIO);
	assert_int_equal(w[1].ret, -EIO);
	load(0);
	assert_int_equal(d->seen[HOST_READ], 2);
}

static void types(void **state)
{
	struct block *b;

	load(0);
	assert_int_equal(cache_get(img, BLK_L2, SPARE * CS, &b, NULL), -EUCLEAN);
	assert_int_equal(cache_get(img, BLK_RB, (SPARE + 1) * CS, &b, NULL),
			 -EWOULDBLOCK); /* starts nothing */
	settle(img, d);
	assert_int_equal(d->seen[HOST_READ], 1);
}

/* The least recently used one goes. */
static void evicts(void **state)
{
	struct block *b;
	unsigned i;

	for (i = 0; i < 62; i++) /* and the header: one place left */
		load(i);
	load(0); /* used again */
	load(100);
	load(101);
	load(102);
	assert_int_equal(cache_get(img, BLK_RB, SPARE * CS, &b, NULL), 0);
	assert_int_equal(cache_get(img, BLK_RB, (SPARE + 1) * CS, &b, NULL), -EWOULDBLOCK);
	assert_int_equal(cache_get(img, BLK_RB, (SPARE + 2) * CS, &b, NULL), -EWOULDBLOCK);
	assert_int_equal(cache_get(img, BLK_RB, (SPARE + 3) * CS, &b, NULL), 0);
}

static void pinned_and_loading_stay(void **state)
{
	struct block *b = load(0), *again;
	struct waiter w[80];
	unsigned i;

	block_pin(b);
	for (i = 1; i < 150; i++)
		load(i);
	assert_int_equal(cache_get(img, BLK_RB, SPARE * CS, &again, NULL), 0);
	assert_ptr_equal(b, again);
	block_unpin(b);
	for (i = 0; i < 150; i++)
		load(i);
	/* all places loading: the next ones wait for room, and get it */
	d->hold = 1u << HOST_READ;
	for (i = 0; i < 80; i++)
		assert_int_equal(get(&w[i], (SPARE + i % 80) * CS, &b), -EWOULDBLOCK);
	assert_true(d->seen[HOST_READ] >= 299);
	d->hold = 0;
	settle(img, d);
	for (i = 0; i < 80; i++)
		assert_int_equal(w[i].ret, 0);
}

/* While a commit runs and nearly all is dirty the few clean ones do not push each other out: a lookup needs several
 * at once. */
static void crowded(void **state)
{
	struct waiter w;
	struct block *b;
	unsigned i;

	for (i = 0; i < 62; i++)
		load(i);
	d->hold = WRITES | 1u << HOST_FSYNC;
	for (i = 0; i < 62; i++) {
		metamap_add(img->meta, SPARE + i, 1, META_RB);
		assert_int_equal(cache_get(img, BLK_RB, (SPARE + i) * CS, &b, NULL), 0);
		block_dirty(img, b);
	}
	settle(img, d);
	for (i = 0; i < 62; i++) { /* those that the commit took, too: all of the next generation */
		assert_int_equal(cache_get(img, BLK_RB, (SPARE + i) * CS, &b, NULL), 0);
		block_dirty(img, b);
	}
	assert_true(commit_running(img));
	load(100);
	assert_int_equal(get(&w, (SPARE + 101) * CS, &b), -EWOULDBLOCK);
	settle(img, d);
	assert_int_equal(w.ret, 1); /* waits for the commit */
	assert_int_equal(cache_get(img, BLK_RB, (SPARE + 100) * CS, &b, NULL), 0);
	d->hold = 0;
	settle(img, d);
	assert_int_equal(w.ret, 0);
	load(101);
	assert_int_equal(cache_get(img, BLK_RB, (SPARE + 100) * CS, &b, NULL), 0);
}

/* An op that needs two blocks at once. */
static enum step both(struct op *op)
{
	struct waiter *w = (struct waiter *)op;
	struct block *b;
	unsigned i;
	int ret = op->err;

	for (i = 0; !ret && i < 2; i++)
		ret = cache_get(img, BLK_RB, (SPARE + 100 + i) * CS, &b, op);
	if (ret == -EWOULDBLOCK)
		return STEP_NEXT;
	w->ret = ret;
	return STEP_DONE;
}

/* One place left for two blocks: they do not take it from each other for ever, but wait until there is room. */
static void two_blocks_one_place(void **state)
{
	struct waiter w = { .ret = 1 };
	struct block *b[62];
	unsigned i, reads;

	for (i = 0; i < COUNT(b); i++) {
		b[i] = load(i);
		block_pin(b[i]);
	}
	reads = d->seen[HOST_READ];
	op_init(&w.op, img->run);
	op_then(&w.op, both);
	op_start(&w.op);
	for (i = 0; i < 1000; i++)
		qcow2_run(img, false);
	assert_true(d->seen[HOST_READ] < reads + 8);
	for (i = 0; i < COUNT(b); i++)
		block_unpin(b[i]);
	cache_wake(img, 0);
	settle(img, d);
	assert_int_equal(w.ret, 0);
}

/* Dirty blocks are never evicted; too many of them start a commit. */
static void dirty(void **state)
{
	struct block *b;
	unsigned i;

	b = load(0);
	memset(b->data, 0x55, 8);
	block_dirty(img, b);
	block_dirty(img, b); /* twice is once */
	assert_int_equal(cache_dirty_count(img), 1);
	for (i = 1; i < 150; i++)
		load(i);
	assert_int_equal(cache_get(img, BLK_RB, SPARE * CS, &b, NULL), 0);
	assert_int_equal(*(uint8_t *)b->data, 0x55);
	for (i = 0; i < 16; i++)
		metamap_add(img->meta, SPARE + i, 1, META_RB);
	metamap_add(img->meta, SPARE + 16, 1, META_RB);
	for (i = 1; i < 16; i++) {
		assert_false(commit_running(img));
		block_dirty(img, load(i));
	}
	assert_false(commit_running(img)); /* 16 = a quarter */
	assert_int_equal(cache_dirty_limit(img), 16);
	b = load(16);
	block_dirty(img, b);
	assert_true(commit_running(img));
	settle(img, d);
	assert_int_equal(cache_dirty_count(img), 0);
	assert_int_equal(disk_be(d, SPARE * CS, 2), 0x5555);
}

/* A block whose place is not where its kind of metadata lies is never written. */
static void overlap_check(void **state)
{
	struct block *b = load(0);

	memset(b->data, 0x55, 8);
	block_dirty(img, b); /* the metamap knows nothing of it */
	assert_int_equal(do_flush(img), -EUCLEAN);
	settle(img, d);
	assert_int_equal(disk_be(d, SPARE * CS, 4), SPARE);
	assert_int_equal(img->mode, MODE_RO);
	assert_int_equal(disk_be(d, 72, 8), QCOW2_INCOMPAT_CORRUPT);
}

static void drop(void **state)
{
	struct block *b = load(0), *again;
	struct waiter w;

	block_dirty(img, b);
	load(1);
	cache_drop(img, SPARE * CS, 2 * CS);
	assert_int_equal(cache_dirty_count(img), 0);
	assert_int_equal(cache_get(img, BLK_RB, SPARE * CS, &again, NULL), -EWOULDBLOCK);
	assert_int_equal(cache_get(img, BLK_RB, (SPARE + 1) * CS, &again, NULL), -EWOULDBLOCK);
	/* pinned: until it is let go, and never dirty again */
	b = load(0);
	block_pin(b);
	cache_drop(img, SPARE * CS, CS);
	block_dirty(img, b);
	assert_int_equal(cache_dirty_count(img), 0);
	block_unpin(b);
	assert_int_equal(cache_get(img, BLK_RB, SPARE * CS, &again, NULL), -EWOULDBLOCK);
	/* loading: whoever waits is woken and looks again */
	d->hold = 1u << HOST_READ;
	assert_int_equal(get(&w, SPARE * CS, &b), -EWOULDBLOCK);
	cache_drop(img, SPARE * CS, CS);
	d->hold = 0;
	settle(img, d);
	assert_int_equal(w.ret, 0);
	assert_int_equal(cache_get(img, BLK_RB, SPARE * CS, &again, NULL), -EWOULDBLOCK);
}

static void insert(void **state)
{
	static uint8_t data[CS];
	struct block *b, *again;

	data[0] = 0x66;
	b = cache_insert(img, BLK_L2, (SPARE + 9) * CS, data);
	assert_non_null(b);
	assert_int_equal(cache_get(img, BLK_L2, (SPARE + 9) * CS, &again, NULL), 0);
	assert_ptr_equal(b, again);
	assert_int_equal(*(uint8_t *)b->data, 0x66);
	assert_int_equal(d->seen[HOST_READ], 0);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(loads_once),
		TEST(load_fails),
		TEST(types),
		TEST(evicts),
		TEST(pinned_and_loading_stay),
		TEST(crowded),
		TEST(two_blocks_one_place),
		TEST(dirty),
		TEST(overlap_check),
		TEST(drop),
		TEST(insert),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * DISCARD and WRITE_ZEROES: which entry each kind of cluster gets (v2, v3, with and without a backing file),
 * NO_UNMAP, partial clusters, --discard=ignore, and that space is punched, but only after the commits.
 */
#include "memimg.h"

#define CS 4096ull

static struct disk *d, *base; /* base: raw, all bytes 0x42 */
static struct qcow2_image *img;

static int open_base(void *ctx, const char *path, enum backing_format format, struct host_file **out,
		     struct qcow2_error *err)
{
	*out = disk_open(base, true);
	return 0;
}

static void start_with(const struct spec *s, enum qcow2_discard discard)
{
	static const struct qcow2_opener opener = { .open = open_base };
	struct qcow2_options opt = { .opener = &opener, .discard = discard };
	uint8_t *buf = malloc(1 << 20);

	assert_non_null(buf);
	d = disk_make(s);
	if (s->backing) {
		base = disk_new();
		memset(buf, 0x42, 1 << 20);
		disk_put(base, 0, buf, 1 << 20);
	}
	free(buf);
	img = open_image(d, &opt);
}

static void start(const struct spec *s)
{
	start_with(s, QCOW2_DISCARD_UNMAP);
}

static void finish(void)
{
	close_image(img);
	assert_clean(d);
	disk_free(d);
	if (base)
		disk_free(base);
	base = NULL;
}

static const struct spec v3, v2 = { .version = 2 };
static const struct spec v3_backing = { .backing = "base", .format = "raw" };
static const struct spec v2_backing = { .version = 2, .backing = "base", .format = "raw" };

static void discard_v3(void **state)
{
	uint64_t host;

	start(&v3);
	assert_int_equal(do_write(img, 0, 4 * CS, 1), 0);
	quiesce(img, d);
	host = disk_host(d, CS);
	d->record = true;
	assert_int_equal(do_req(img, QCOW2_DISCARD, CS, 2 * CS, 0), 0);
	assert_int_equal(d->events, 0); /* nothing before the commits */
	reads(img, CS, 2 * CS, 0);
	reads(img, 0, CS, 1);
	reads(img, 3 * CS, CS, 1);
	assert_int_equal(do_flush(img), 0);
	assert_int_equal(disk_entry(d, CS), QCOW2_L2_ZERO);
	assert_int_equal(d->seen[HOST_PUNCH], 0);
	assert_int_equal(disk_be(d, host, 1), 1);
	quiesce(img, d);
	assert_int_equal(d->seen[HOST_PUNCH], 1);
	assert_int_equal(d->event[d->events - 1].op, HOST_PUNCH);
	assert_int_equal(d->event[d->events - 1].off, host);
	assert_int_equal(d->event[d->events - 1].len, 2 * CS); /* one for the whole run */
	assert_int_equal(d->event[d->events - 2].op, HOST_FSYNC);
	assert_int_equal(disk_be(d, host, 1), 0);
	assert_int_equal(disk_refcount(d, host / CS), 0);
	finish();
}

/* Zeroes, not the backing file's bytes, after a discard of allocated clusters; others are left alone. */
static void discard_over_backing(void **state)
{
	start(&v3_backing);
	assert_int_equal(do_write(img, 0, 2 * CS, 1), 0);
	assert_int_equal(do_req(img, QCOW2_DISCARD, CS, 4 * CS, 0), 0);
	reads(img, 0, CS, 1);
	reads(img, CS, CS, 0);
	reads(img, 2 * CS, 8 * CS, 0x42);
	quiesce(img, d);
	assert_int_equal(disk_entry(d, CS), QCOW2_L2_ZERO);
	assert_int_equal(disk_entry(d, 2 * CS), 0);
	finish();
}

static void discard_v2(void **state)
{
	start(&v2);
	assert_int_equal(do_write(img, 0, 4 * CS, 1), 0);
	assert_int_equal(do_req(img, QCOW2_DISCARD, CS, 2 * CS, 0), 0);
	reads(img, CS, 2 * CS, 0);
	quiesce(img, d);
	assert_int_equal(disk_entry(d, CS), 0);
	assert_int_equal(d->seen[HOST_PUNCH], 1);
	finish();
}

/* No zero flag there: unmapping would bring the backing file's bytes back. */
static void discard_v2_over_backing(void **state)
{
	start(&v2_backing);
	assert_int_equal(do_write(img, 0, 2 * CS, 1), 0);
	assert_int_equal(do_req(img, QCOW2_DISCARD, 0, 4 * CS, 0), 0);
	reads(img, 0, 2 * CS, 1);
	reads(img, 2 * CS, 2 * CS, 0x42);
	assert_int_equal(do_zero(img, CS, 2 * CS, 0), 0);
	reads(img, 0, CS, 1);
	reads(img, CS, 2 * CS, 0);
	reads(img, 3 * CS, CS, 0x42);
	quiesce(img, d);
	assert_true(disk_host(d, 2 * CS) != 0); /* real zeroes */
	finish();
}

/* More than one piece of explicit zeroes (256 KiB). */
static void zero_v2_over_backing_long(void **state)
{
	start(&v2_backing);
	assert_int_equal(do_zero(img, 512, 700 << 10, 0), 0);
	reads(img, 0, 512, 0x42);
	reads(img, 512, 700 << 10, 0);
	reads(img, 512 + (700 << 10), CS, 0x42);
	finish();
}

static void discard_partial(void **state)
{
	start(&v3);
	assert_int_equal(do_write(img, 0, 4 * CS, 1), 0);
	assert_int_equal(do_req(img, QCOW2_DISCARD, 512, 2 * CS, 0), 0); /* one whole cluster in it */
	reads(img, 0, CS, 1);
	reads(img, CS, CS, 0);
	reads(img, 2 * CS, 2 * CS, 1);
	assert_int_equal(do_req(img, QCOW2_DISCARD, 512, 1024, 0), 0);
	reads(img, 0, CS, 1);
	finish();
}

static void discard_last(void **state)
{
	struct spec s = { .size = 3 * CS + 512 };

	start(&s);
	assert_int_equal(do_write(img, 0, s.size, 1), 0);
	assert_int_equal(do_req(img, QCOW2_DISCARD, 3 * CS, 512, 0), 0); /* counts as whole */
	reads(img, 3 * CS, 512, 0);
	quiesce(img, d);
	assert_int_equal(disk_host(d, 3 * CS), 0);
	finish();
}

static void ignore(void **state)
{
	start_with(&v3, QCOW2_DISCARD_IGNORE);
	assert_int_equal(do_write(img, 0, 4 * CS, 1), 0);
	assert_int_equal(do_req(img, QCOW2_DISCARD, 0, 4 * CS, 0), 0);
	reads(img, 0, 4 * CS, 1);
	assert_int_equal(do_zero(img, 0, 2 * CS, 0),
			 0); /* is an order, not a hint; the space is not given back */
	reads(img, 0, 2 * CS, 0);
	quiesce(img, d);
	assert_int_equal(d->seen[HOST_PUNCH], 0);
	finish();
}

static void zero_unmaps(void **state)
{
	uint64_t host;

	start(&v3);
	assert_int_equal(do_write(img, 0, 4 * CS, 1), 0);
	quiesce(img, d);
	host = disk_host(d, CS);
	assert_int_equal(do_zero(img, CS - 512, CS + 1024, 0), 0);
	reads(img, 0, CS - 512, 1);
	reads(img, CS - 512, CS + 1024, 0);
	reads(img, 2 * CS + 512, CS, 1);
	quiesce(img, d);
	assert_int_equal(disk_entry(d, CS), QCOW2_L2_ZERO);
	assert_int_equal(disk_refcount(d, host / CS), 0);
	finish();
}

/* The space stays; over nothing there is nothing to keep. */
static void zero_no_unmap(void **state)
{
	uint64_t host;

	start(&v3);
	assert_int_equal(do_write(img, 0, 2 * CS, 1), 0);
	quiesce(img, d);
	host = disk_host(d, CS);
	assert_int_equal(do_zero(img, CS, 2 * CS, QCOW2_REQ_NO_UNMAP), 0);
	reads(img, CS, 2 * CS, 0);
	quiesce(img, d);
	assert_int_equal(disk_entry(d, CS), host | QCOW2_COPIED | QCOW2_L2_ZERO);
	assert_int_equal(disk_refcount(d, host / CS), 1);
	assert_int_equal(disk_host(d, 2 * CS), 0);
	assert_int_equal(d->seen[HOST_PUNCH], 0);
	assert_int_equal(do_req(img, QCOW2_DISCARD, CS, CS, 0), 0); /* now it may go */
	quiesce(img, d);
	assert_int_equal(disk_entry(d, CS), QCOW2_L2_ZERO);
	assert_int_equal(disk_refcount(d, host / CS), 0);
	finish();
}

static void zero_over_backing(void **state)
{
	start(&v3_backing);
	assert_int_equal(do_zero(img, 512, 4 * CS, 0), 0);
	reads(img, 0, 512, 0x42);
	reads(img, 512, 4 * CS, 0);
	reads(img, 4 * CS + 512, CS, 0x42);
	quiesce(img, d);
	assert_int_equal(disk_entry(d, 2 * CS), QCOW2_L2_ZERO);
	finish();
}

/* Inside one cluster. */
static void zero_partial(void **state)
{
	start(&v3);
	assert_int_equal(do_write(img, 0, CS, 1), 0);
	assert_int_equal(do_zero(img, 512, 1024, 0), 0);
	reads(img, 0, 512, 1);
	reads(img, 512, 1024, 0);
	reads(img, 1536, CS - 1536, 1);
	finish();
}

/* A cluster that a snapshot needs keeps its bytes. */
static void shared(void **state)
{
	uint64_t host;

	start(&v3);
	assert_int_equal(do_write(img, 0, 4 * CS, 1), 0);
	close_image(img);
	disk_snapshot(d);
	host = disk_host(d, 0);
	img = open_image(d, NULL);
	assert_int_equal(do_req(img, QCOW2_DISCARD, 0, 2 * CS, 0), 0);
	assert_int_equal(do_zero(img, 2 * CS, CS, QCOW2_REQ_NO_UNMAP), 0);
	reads(img, 0, 3 * CS, 0);
	reads(img, 3 * CS, CS, 1);
	quiesce(img, d);
	assert_int_equal(d->seen[HOST_PUNCH], 0);
	assert_int_equal(disk_be(d, host, 1), 1);
	assert_int_equal(disk_refcount(d, host / CS), 1);
	finish();
}

/* Over several L2 tables and many clusters; a second time nothing is left to do. */
static void everything(void **state)
{
	static const struct spec tiny = { .bits = 9 };
	uint64_t at;

	start(&tiny);
	for (at = 0; at < 1 << 20; at += 65536)
		assert_int_equal(do_write(img, at, 32768, 1), 0);
	assert_int_equal(do_req(img, QCOW2_DISCARD, 0, 1 << 20, 0), 0);
	reads(img, 0, 1 << 20, 0);
	quiesce(img, d);
	assert_int_equal(do_req(img, QCOW2_DISCARD, 0, 1 << 20, 0), 0);
	assert_false(qcow2_dirty(img));
	finish();
}

static void no_op_without_mapping(void **state)
{
	start(&v3);
	assert_int_equal(do_req(img, QCOW2_DISCARD, 0, 1 << 20, 0), 0);
	assert_int_equal(do_zero(img, 0, 1 << 20, 0), 0);
	assert_false(qcow2_dirty(img));
	assert_int_equal(d->seen[HOST_WRITE], 0);
	finish();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(discard_v3),
		cmocka_unit_test(discard_over_backing),
		cmocka_unit_test(discard_v2),
		cmocka_unit_test(discard_v2_over_backing),
		cmocka_unit_test(zero_v2_over_backing_long),
		cmocka_unit_test(discard_partial),
		cmocka_unit_test(discard_last),
		cmocka_unit_test(ignore),
		cmocka_unit_test(zero_unmaps),
		cmocka_unit_test(zero_no_unmap),
		cmocka_unit_test(zero_over_backing),
		cmocka_unit_test(zero_partial),
		cmocka_unit_test(shared),
		cmocka_unit_test(everything),
		cmocka_unit_test(no_op_without_mapping),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

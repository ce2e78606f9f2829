// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * An image from open to close: what is refused, read-only, the mode ladder after a failed fsync and after
 * corruption was met (error to the request, corrupt bit set, nothing else changed), and that close says what
 * it could not do.
 */
#include "memimg.h"

#define CS 4096ull
#define CORRUPT 2ull

static struct disk *d;
static struct qcow2_image *img;

static int try_open(bool read_only, struct qcow2_error *err)
{
	struct qcow2_options opt = { .read_only = read_only };
	int ret;

	img = NULL;
	err->text[0] = 0;
	ret = qcow2_open(&img, disk_open(d, read_only), &opt, err);
	if (ret) {
		assert_null(img);
		assert_non_null(strstr(err->text, "disk.qcow2"));
		assert_int_equal(d->opened, 0); /* the file is closed */
	}
	return ret;
}

/* Refused read-write; read-only either refused with the same or fine. Nothing is changed. */
static void refused(int rw, int ro, const char *words)
{
	struct disk *same = disk_clone(d);
	struct qcow2_error err;

	assert_int_equal(try_open(false, &err), rw);
	if (!strstr(err.text, words))
		fail_msg("\"%s\" does not say \"%s\"", err.text, words);
	assert_int_equal(try_open(true, &err), ro);
	if (!ro)
		close_image(img);
	assert_true(disk_equal(d, same));
	disk_free(same);
	disk_free(d);
}

static void with_data(void)
{
	d = disk_make(&(struct spec){ 0 });
	img = open_image(d, NULL);
	assert_int_equal(do_write(img, 0, 8 * CS, 1), 0);
	close_image(img);
}

static void gate(void **state)
{
	d = disk_make(&(struct spec){ .incompatible = 1ull << 40 });
	refused(-ENOTSUP, -ENOTSUP, "bit 40");
	d = disk_make(&(struct spec){ .incompatible = 1 });
	refused(-EUCLEAN, 0, "dirty");
	d = disk_make(&(struct spec){ .incompatible = CORRUPT });
	refused(-EUCLEAN, 0, "corrupt");
	d = disk_make(&(struct spec){ .incompatible = 4 });
	refused(-ENOTSUP, -ENOTSUP, "data file");
	d = disk_make(&(struct spec){ 0 });
	disk_set_be(d, 0, 0, 4);
	refused(-EINVAL, -EINVAL, "not a qcow2 image");
	d = disk_new();
	refused(-EINVAL, -EINVAL, "not a qcow2 image");
	d = disk_make(&(struct spec){ .backing = "base", .format = "raw" });
	refused(-ENOTSUP, -ENOTSUP, "backing file");
}

/* Tables on top of each other or outside the file: never writable. */
static void overlapping_tables(void **state)
{
	with_data();
	disk_set_be(d, disk_l1_at(d, 0), disk_be(d, 40, 8) | QCOW2_COPIED, 8); /* L2 table = L1 table */
	refused(-EUCLEAN, 0, "overlap");
	with_data();
	disk_set_be(d, disk_l1_at(d, 0), 1ull << 40 | QCOW2_COPIED, 8);
	refused(-EUCLEAN, 0, "outside");
	with_data();
	disk_set_be(d, disk_l1_at(d, 0), QCOW2_COPIED, 8); /* QEMU 10 aborts on a write there */
	refused(-EUCLEAN, 0, "corrupt");
	with_data();
	disk_set_be(d, disk_be(d, 48, 8) + 8, 0, 8);
	disk_set_be(d, disk_be(d, 48, 8) + 8, disk_be(d, 40, 8), 8); /* refcount block = L1 table */
	refused(-EUCLEAN, 0, "overlap");
	with_data();
	disk_set_be(d, disk_be(d, 48, 8), CS / 2, 8);
	refused(-EUCLEAN, 0, "corrupt");
}

static void read_only(void **state)
{
	struct qcow2_options opt = { .read_only = true };
	struct qcow2_info info;
	struct disk *same;

	with_data();
	same = disk_clone(d);
	img = open_image(d, &opt);
	qcow2_get_info(img, &info);
	assert_string_equal(info.mode, "ro");
	assert_true(info.read_only);
	reads(img, 0, 8 * CS, 1);
	assert_int_equal(do_write(img, 0, CS, 2), -EROFS);
	assert_int_equal(do_zero(img, 0, CS, 0), -EROFS);
	assert_int_equal(do_req(img, QCOW2_DISCARD, 0, CS, 0), -EROFS);
	assert_int_equal(do_flush(img), 0);
	close_image(img);
	assert_true(disk_equal(d, same));
	disk_free(same);
	disk_free(d);
}

static void info(void **state)
{
	struct qcow2_info i;

	d = disk_make(&(struct spec){ .bits = 10, .order = 5, .size = 12345 * 512 });
	img = open_image(d, NULL);
	qcow2_get_info(img, &i);
	assert_int_equal(i.size, 12345 * 512);
	assert_int_equal(i.cluster_size, 1024);
	assert_int_equal(i.version, 3);
	assert_int_equal(i.refcount_bits, 32);
	assert_int_equal(i.chain_length, 1);
	assert_string_equal(i.mode, "rw");
	assert_string_equal(i.compression, "zlib");
	assert_non_null(qcow2_chain_file(img, 0));
	assert_null(qcow2_chain_file(img, 1));
	close_image(img);
	disk_free(d);
}

/* Opening and closing without a write changes nothing. */
static void open_close(void **state)
{
	struct disk *same;

	with_data();
	disk_set_be(d, 88, 0xfd, 8); /* all but the raw bit */
	same = disk_clone(d);
	img = open_image(d, NULL);
	reads(img, 0, 8 * CS, 1);
	close_image(img);
	assert_true(disk_equal(d, same));
	disk_free(same);
	disk_free(d);
}

static void failed_fsync(void **state)
{
	struct qcow2_error err = { "" };
	struct qcow2_info i;
	unsigned writes;

	with_data();
	img = open_image(d, NULL);
	assert_int_equal(do_write(img, 0, CS, 2), 0);
	disk_fail(d, 1u << HOST_FSYNC, -EIO, 1, false);
	assert_int_equal(do_flush(img), -EIO);
	qcow2_get_info(img, &i);
	assert_string_equal(i.mode, "ro");
	writes = d->seen[HOST_WRITE];
	assert_int_equal(do_flush(img), -EIO);
	assert_int_equal(do_write(img, 0, CS, 3), -EIO); /* in place */
	assert_int_equal(do_write(img, 90 * CS, CS, 3), -EIO);
	assert_int_equal(do_zero(img, 0, CS, 0), -EIO);
	reads(img, 0, CS, 2);
	reads(img, CS, 7 * CS, 1);
	assert_int_equal(qcow2_close(img, &err), -EIO);
	assert_int_equal(d->seen[HOST_WRITE], writes);
	assert_non_null(strstr(err.text, "may be lost"));
	disk_free(d);
}

/* ---- corruption met on the way ---- */

/* A damaged active image: the request fails, the bit is set, and every other byte stays as it was. */
static void meets(int (*request)(void), uint64_t still_reads)
{
	struct disk *same = disk_clone(d);
	struct qcow2_info i;

	img = open_image(d, NULL);
	assert_int_equal(request(), -EUCLEAN);
	settle(img, d);
	qcow2_get_info(img, &i);
	assert_string_equal(i.mode, "ro");
	assert_int_equal(do_write(img, still_reads, CS, 9), -EROFS);
	reads(img, still_reads, CS, 1);
	close_image(img);
	assert_int_equal(disk_be(d, 72, 8), CORRUPT);
	disk_set_be(d, 72, 0, 8);
	assert_true(disk_equal(d, same));
	disk_free(same);
	disk_free(d);
}

static int write_first(void)
{
	return do_write(img, 0, CS, 5);
}

static int write_new(void)
{
	return do_write(img, 100 * CS, CS, 5);
}

static int write_part(void)
{
	return do_write(img, 512, 512, 5);
}

static int discard_first(void)
{
	return do_req(img, QCOW2_DISCARD, 0, CS, 0);
}

static int read_first(void)
{
	return do_req(img, QCOW2_READ, 0, CS, 0);
}

static void entry_names_metadata(void **state)
{
	int (*const requests[])(void) = { write_first, write_part, discard_first, read_first };
	unsigned i, k;

	for (i = 0; i < COUNT(requests); i++)
		for (k = 0; k < 5; k++) {
			uint64_t target;

			with_data();
			target = k < 4 ? k * CS : disk_be(d, disk_l1_at(d, 0), 8) & OFFSET_BITS;
			disk_set_be(d, disk_l2_at(d, 0), target | QCOW2_COPIED, 8);
			if (!target) { /* no cluster at all */
				disk_set_be(d, disk_l2_at(d, 0), QCOW2_COPIED | 0x200, 8);
			}
			meets(requests[i], CS);
		}
}

static void entry_beyond_the_file(void **state)
{
	int (*const requests[])(void) = { write_first, write_part, discard_first, read_first };
	unsigned i;

	for (i = 0; i < COUNT(requests); i++) {
		with_data();
		disk_set_be(d, disk_l2_at(d, 0), 68ull << 30 | QCOW2_COPIED, 8);
		meets(requests[i], CS);
		with_data();
		disk_set_be(d, disk_l2_at(d, 0), (d->size + CS - 1) / CS * CS | QCOW2_COPIED, 8);
		meets(requests[i], CS);
	}
}

/* The allocator finds live metadata with refcount 0: nothing is handed out. */
static void metadata_with_refcount_0(void **state)
{
	unsigned c;

	for (c = 0; c < 4; c++) {
		with_data();
		disk_set_refcount(d, c, 0);
		meets(write_new, CS);
	}
	with_data();
	disk_set_refcount(d, (disk_be(d, disk_l1_at(d, 0), 8) & OFFSET_BITS) / CS, 0);
	meets(write_new, CS);
}

/* All the metadata is without refcounts: cluster 0 is not given away. */
static void empty_refcount_table(void **state)
{
	with_data();
	disk_set_be(d, disk_be(d, 48, 8), 0, 8);
	meets(write_new, CS);
}

/* A refcount that must be lowered is 0 already: noticed in the commit. */
static int discard_and_commit(void)
{
	assert_int_equal(discard_first(), 0);
	qcow2_commit_start(img);
	settle(img, d);
	return do_write(img, 0, CS, 5) == -EROFS ? -EUCLEAN : 0;
}

static void lowered_below_0(void **state)
{
	with_data();
	disk_set_refcount(d, disk_host(d, 0) / CS, 0);
	img = open_image(d, NULL);
	assert_int_equal(discard_and_commit(), -EUCLEAN);
	settle(img, d);
	close_image(img);
	assert_int_equal(disk_be(d, 72, 8), CORRUPT);
	disk_free(d);
}

/* What was written before the corruption was met is not lost by it, whether the image can be marked or not.
 */
static void earlier_writes_survive(void **state)
{
	unsigned version;

	for (version = 2; version <= 3; version++) {
		d = disk_make(&(struct spec){ .version = version });
		img = open_image(d, NULL);
		assert_int_equal(do_write(img, 0, 8 * CS, 1), 0);
		close_image(img);
		disk_set_be(d, disk_l2_at(d, 0), 68ull << 30 | QCOW2_COPIED, 8);
		img = open_image(d, NULL);
		assert_int_equal(do_write(img, 50 * CS, CS, 7), 0);
		assert_int_equal(write_first(), -EUCLEAN);
		close_image(img);
		img = open_image(d, &(struct qcow2_options){ .read_only = true });
		reads(img, 50 * CS, CS, 7);
		close_image(img);
		disk_free(d);
	}
}

/* ... and if they cannot be written, close says so. */
static void close_after_corruption_reports(void **state)
{
	struct qcow2_error err = { "" };

	with_data();
	disk_set_be(d, disk_l2_at(d, 0), 68ull << 30 | QCOW2_COPIED, 8);
	img = open_image(d, NULL);
	assert_int_equal(do_write(img, 50 * CS, CS, 7), 0);
	disk_fail(d, 1u << HOST_WRITE, -ENOSPC, 1, true);
	assert_int_equal(write_first(), -EUCLEAN);
	settle(img, d);
	assert_int_equal(qcow2_close(img, &err), -ENOSPC);
	assert_non_null(strstr(err.text, "may be lost"));
	disk_free(d);
}

/* ---- closing ---- */

static void close_reports(void **state)
{
	static const struct {
		unsigned ops;
		int err;
	} faults[] = { { 1u << HOST_WRITE, -ENOSPC },
		       { 1u << HOST_WRITE, -EIO },
		       { 1u << HOST_FSYNC, -EIO } };
	struct qcow2_error err;
	unsigned i, n;

	for (i = 0; i < COUNT(faults); i++) {
		for (n = 1; n < 4; n++) {
			with_data();
			img = open_image(d, NULL);
			assert_int_equal(do_write(img, 60 * CS, CS, 2), 0);
			assert_int_equal(do_req(img, QCOW2_DISCARD, 0, CS, 0), 0);
			disk_fail(d, faults[i].ops, faults[i].err, n, true);
			err.text[0] = 0;
			assert_int_equal(qcow2_close(img, &err), faults[i].err);
			assert_true(d->failed);
			assert_non_null(strstr(err.text, "disk.qcow2: closing: "));
			assert_int_equal(disk_check(d, false).errors, 0);
			disk_free(d);
		}
	}
}

/* A mapping seen from outside. */
static void map_extents(void **state)
{
	struct qcow2_map_extent e;

	with_data();
	img = open_image(d, NULL);
	assert_int_equal(do_zero(img, 2 * CS, CS, QCOW2_REQ_NO_UNMAP), 0);
	assert_int_equal(qcow2_map(img, 512, &e), 0);
	assert_true(e.data && e.present && e.has_host && !e.zero && !e.compressed);
	assert_int_equal(e.len, 2 * CS - 512);
	assert_int_equal(e.host, disk_host(d, 0) + 512);
	assert_int_equal(qcow2_map(img, 2 * CS, &e), 0);
	assert_true(!e.data && e.zero && e.present && e.has_host); /* the cluster stays */
	assert_int_equal(e.host, disk_host(d, 2 * CS));
	assert_int_equal(qcow2_map(img, 8 * CS, &e), 0);
	assert_true(!e.data && e.zero && !e.present && !e.has_host);
	assert_int_equal(qcow2_map(img, 1 << 20, &e), -EINVAL);
	close_image(img);
	disk_free(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(gate),
		cmocka_unit_test(overlapping_tables),
		cmocka_unit_test(read_only),
		cmocka_unit_test(info),
		cmocka_unit_test(open_close),
		cmocka_unit_test(failed_fsync),
		cmocka_unit_test(entry_names_metadata),
		cmocka_unit_test(entry_beyond_the_file),
		cmocka_unit_test(metadata_with_refcount_0),
		cmocka_unit_test(empty_refcount_table),
		cmocka_unit_test(lowered_below_0),
		cmocka_unit_test(earlier_writes_survive),
		cmocka_unit_test(close_after_corruption_reports),
		cmocka_unit_test(close_reports),
		cmocka_unit_test(map_extents),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Repair of images of all kinds, what leaves an image alone, block devices, errors of the host. */
#include "check_kinds.h"
#include "repair_disk.h"

static bool encrypted(const struct recipe *r)
{
	return strstr(r->options, "key-secret");
}

/* Offset of the first refcount table entry. */
static uint64_t reftable(struct disk *d)
{
	return disk_be(d, 48, 8);
}

static bool unchanged(struct disk *d, struct disk *origin)
{
	return disk_equal(d, origin) && d->size == origin->size;
}

/* ---- all kinds ---- */

enum wreck { NO_BLOCK, NO_REFCOUNTS, TABLE_MISPLACED, ONE_MORE, WRECKS };
static const char *const wreck_names[] = { "no block", "no refcounts", "table misplaced", "one more" };

/* One refcount more for all clusters that have one and can. */
static void one_more(struct disk *d)
{
	uint64_t clusters = d->size / disk_cluster(d), i, now, bits = 1ull << disk_order(d);

	for (i = 0; i < clusters; i++) {
		now = disk_refcount(d, i);
		if (now && (bits > 63 || now + 1 < 1ull << bits))
			disk_set_refcount(d, i, now + 1);
	}
}

static void wreck(struct disk *d, enum wreck how)
{
	uint64_t rb = disk_be(d, reftable(d), 8);

	switch (how) {
	case NO_BLOCK:
		disk_set_be(d, reftable(d), 0, 8);
		break;
	case NO_REFCOUNTS:
		disk_put(d, rb, NULL, disk_cluster(d));
		break;
	case TABLE_MISPLACED:
		disk_set_be(d, reftable(d), rb + 512, 8); /* for clusters of 512 bytes: another one */
		break;
	default:
		one_more(d);
	}
}

static void judge_whole(const struct recipe *r, const char *what, struct disk *d)
{
	struct verdict v;

	assert_clean(d);
	assert_int_equal(disk_wrong_bits(d), 0);
	disk_store(d, "repaired");
	if (encrypted(r))
		return;
	v = theirs("repaired");
	if (v.refused || v.errors || v.leaks)
		fail_msg("%s, %s: qemu-img finds %" PRIu64 "/%" PRIu64, r->name, what, v.errors, v.leaks);
	if (sh("qemu-img compare -q -f qcow2 -F qcow2 i.qcow2 repaired"))
		fail_msg("%s, %s: other content", r->name, what);
}

static void judge_kind(const struct recipe *r)
{
	struct disk *origin, *d;
	struct qcow2_repair_result res;
	enum wreck how;

	make(r);
	origin = disk_load("i.qcow2");
	d = disk_clone(origin);
	assert_int_equal(repair_disk(d, QCOW2_REPAIR_ALL, &res), 0);
	assert_true(disk_wrong_bits(origin) || unchanged(d, origin));
	judge_whole(r, "nothing to do", d);
	disk_free(d);
	for (how = 0; how < WRECKS; how++) {
		d = disk_clone(origin);
		wreck(d, how);
		if (repair_disk(d, QCOW2_REPAIR_ALL, &res))
			fail_msg("%s, %s: not repaired", r->name, wreck_names[how]);
		judge_whole(r, wreck_names[how], d);
		disk_free(d);
	}
	disk_free(origin);
}

static void test_kinds(void **state_)
{
	size_t i;

	need_qemu_img();
	for (i = 0; i < COUNT(recipes); i++)
		judge_kind(&recipes[i]);
}

/* ---- leaks ---- */

/* A sound image with some data and a snapshot. */
static struct disk *sound(const struct spec *s)
{
	struct disk *d = disk_make(s);
	struct qcow2_image *img = open_image(d, NULL);

	assert_int_equal(do_write(img, 0, 64 << 10, 1), 0);
	assert_int_equal(do_write(img, 256 << 10, 4096, 2), 0);
	close_image(img);
	return d;
}

static void test_leaks(void **state_)
{
	struct disk *d = sound(&(struct spec){ 0 });
	struct qcow2_repair_result res;
	uint64_t size;

	disk_append(d);
	disk_append(d);
	size = d->size;
	crash_states("leaks", d, QCOW2_REPAIR_LEAKS, &res);
	assert_int_equal(repair_disk(d, QCOW2_REPAIR_LEAKS, &res), 0);
	assert_int_equal(res.before.leaks, 2);
	assert_int_equal(res.lowered, 2);
	assert_int_equal(res.copied, 0);
	assert_false(res.rebuilt);
	assert_int_equal(d->size, size);
	assert_clean(d);
	disk_free(d);
}

/* A refcount that falls to one gives COPIED back; a crash before that is repaired as a leak, too. */
static void test_leaks_copied(void **state_)
{
	struct disk *d = sound(&(struct spec){ 0 });
	struct qcow2_repair_result res;
	uint64_t at = disk_l2_at(d, 4096), word = disk_be(d, at, 8);

	disk_set_be(d, at, word & ~QCOW2_COPIED, 8);
	disk_set_refcount(d, (word & OFFSET_BITS) >> disk_bits(d), 2);
	crash_states("leaks, COPIED", d, QCOW2_REPAIR_LEAKS, &res);
	assert_int_equal(res.lowered, 1);
	assert_int_equal(res.copied, 1);
	assert_int_equal(repair_disk(d, QCOW2_REPAIR_LEAKS, &res), 0);
	assert_clean(d);
	assert_int_equal(disk_be(d, at, 8), word);
	disk_free(d);
}

/* Errors may hide that a cluster is needed: a repair of leaks then changes nothing. */
static void test_leaks_beside_errors(void **state_)
{
	struct disk *d = sound(&(struct spec){ 0 }), *origin;
	struct qcow2_repair_result res;

	disk_append(d);
	disk_set_refcount(d, disk_host(d, 0) >> disk_bits(d), 0);
	origin = disk_clone(d);
	assert_int_equal(repair_disk(d, QCOW2_REPAIR_LEAKS, &res), 0);
	assert_true(unchanged(d, origin));
	assert_true(res.after.errors > 0 && res.after.leaks == 1);
	assert_non_null(strstr(res.left, "nothing was freed"));
	assert_int_equal(repair_disk(d, QCOW2_REPAIR_ALL, &res), 0);
	assert_clean(d);
	disk_free(origin);
	disk_free(d);
}

/* ---- what must not be freed, or written over ---- */

/* An L1 entry that lost its way: the L2 table and the data it named stay allocated, even if nobody knows
 * that. */
static void test_hidden_references(void **state_)
{
	struct disk *d = sound(&(struct spec){ 0 });
	struct qcow2_repair_result res;
	uint64_t at = disk_l1_at(d, 0), l2 = disk_be(d, at, 8), data = disk_host(d, 4096),
		 clusters = d->size >> 12, i;

	disk_set_be(d, at, l2 | 1ull << 60 | 512, 8);
	disk_set_be(d, reftable(d), disk_be(d, reftable(d), 8) + 512, 8); /* no refcounts any more */
	assert_int_equal(repair_disk(d, QCOW2_REPAIR_ALL, &res), 0);
	assert_true(res.rebuilt && res.after.errors);
	assert_non_null(strstr(res.left, "may hide"));
	for (i = 0; i < clusters; i++)
		assert_int_equal(!disk_refcount(d, i), i == 1); /* the old refcount table is free */
	assert_true(disk_refcount(d, data >> 12) == 1);
	/* somebody finds out what the entry was */
	disk_set_be(d, at, l2, 8);
	assert_int_equal(repair_disk(d, QCOW2_REPAIR_ALL, &res), 0);
	assert_clean(d);
	disk_free(d);
}

/* New structures at the end would lie where an entry points: they are not written. */
static void test_no_place(void **state_)
{
	struct disk *d = sound(&(struct spec){ 0 }), *origin;
	struct qcow2_repair_result res;

	disk_set_be(d, disk_l2_at(d, 4096), d->size | QCOW2_COPIED, 8);
	disk_set_be(d, reftable(d), 0, 8);
	origin = disk_clone(d);
	assert_int_equal(repair_disk(d, QCOW2_REPAIR_ALL, &res), 0);
	assert_true(unchanged(d, origin));
	assert_true(res.after.errors == res.before.errors && !res.rebuilt);
	assert_non_null(strstr(res.left, "beyond the end of the file"));
	disk_free(origin);
	disk_free(d);
}

/* What an entry names beyond the end keeps its refcount: free, the cluster would be somebody else's one day.
 */
static void test_counted_beyond(void **state_)
{
	const uint64_t near = 1000, far = 2100; /* the second refcount block begins with cluster 2048 */
	struct disk *d = sound(&(struct spec){ 0 }), *origin;
	struct qcow2_repair_result res;
	uint64_t block = disk_append(d);

	disk_set_be(d, reftable(d) + 8, block, 8);
	disk_set_refcount(d, near, 1);
	disk_set_refcount(d, far, 1);
	disk_set_be(d, disk_l2_at(d, 4096), near << 12 | QCOW2_COPIED, 8);
	disk_set_be(d, disk_l2_at(d, 8192), far << 12 | QCOW2_COPIED, 8);
	disk_set_be(d, reftable(d) + 16, 1, 8);
	origin = disk_clone(d);
	crash_states("counted beyond", d, QCOW2_REPAIR_ALL, &res);
	assert_int_equal(repair_disk(d, QCOW2_REPAIR_ALL, &res), 0);
	assert_true(res.rebuilt);
	assert_int_equal(res.after.errors, 2);
	assert_int_equal(disk_refcount(d, near), 1);
	assert_int_equal(disk_refcount(d, far), 1);
	disk_free(d);
	/* nobody can know them */
	disk_set_be(origin, reftable(origin) + 8, block + 512, 8);
	d = disk_clone(origin);
	assert_int_equal(repair_disk(d, QCOW2_REPAIR_ALL, &res), 0);
	assert_true(unchanged(d, origin));
	assert_non_null(strstr(res.left, "the refcounts cannot be read"));
	disk_free(origin);
	disk_free(d);
}

/* A block device does not grow: what is written anew lies behind the last cluster in use, or nowhere. */
static void test_device(void **state_)
{
	struct disk *d = sound(&(struct spec){ 0 }), *origin;
	struct qcow2_repair_result res;
	uint64_t used = d->size;

	d->fixed_size = true;
	disk_set_be(d, reftable(d), 0, 8);
	origin = disk_clone(d);
	assert_int_equal(repair_disk(d, QCOW2_REPAIR_ALL, &res), 0);
	assert_true(unchanged(d, origin));
	assert_non_null(strstr(res.left, "no room on the device"));
	d->size = used + (1 << 20);
	assert_int_equal(repair_disk(d, QCOW2_REPAIR_ALL, &res), 0);
	assert_clean(d);
	assert_true(res.rebuilt);
	assert_int_equal(d->size, used + (1 << 20));
	assert_true(reftable(d) >= used);
	disk_free(origin);
	disk_free(d);
}

/* Data upon metadata moves, and reads as before. */
static void test_move(void **state_)
{
	struct disk *d = sound(&(struct spec){ 0 });
	struct qcow2_repair_result res;
	uint64_t l1 = disk_be(d, 40, 8), at = disk_l2_at(d, 4096);
	struct content was, is;

	disk_set_be(d, at, l1 | QCOW2_COPIED, 8);
	disk_set_be(d, disk_l2_at(d, 8192), l1 | QCOW2_COPIED | QCOW2_L2_ZERO, 8);
	was = content_of(disk_open(d, true), 1 << 20);
	crash_states("move", d, QCOW2_REPAIR_ALL, &res);
	assert_int_equal(repair_disk(d, QCOW2_REPAIR_ALL, &res), 0);
	assert_int_equal(res.moved, 2);
	assert_clean(d);
	is = content_of(disk_open(d, true), 1 << 20);
	assert_true(content_kept(&was, &is));
	assert_int_not_equal(disk_host(d, 4096), l1);
	assert_int_equal(disk_entry(d, 8192), QCOW2_L2_ZERO);
	content_free(&was);
	content_free(&is);
	disk_free(d);
}

/* Two references where a refcount cannot count them: nobody may write in place. */
static void test_saturated(void **state_)
{
	struct disk *d = sound(&(struct spec){ .order = 7 });
	struct qcow2_repair_result res;

	disk_set_be(d, disk_l2_at(d, 4096), disk_entry(d, 0), 8);
	assert_int_equal(repair_disk(d, QCOW2_REPAIR_ALL, &res), 0);
	assert_true(res.after.errors > 0);
	assert_false(disk_entry(d, 0) & QCOW2_COPIED);
	assert_false(disk_entry(d, 4096) & QCOW2_COPIED);
	disk_free(d);
}

/* ---- header bits ---- */

static void test_bits(void **state_)
{
	struct disk *d = sound(&(struct spec){ 0 }), *origin;
	struct qcow2_repair_result res;

	disk_set_be(d, 72, QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT, 8);
	disk_set_be(d, 88, 1ull << 40, 8);
	disk_set_refcount(d, disk_host(d, 0) >> 12, 3); /* and COPIED is wrong */
	crash_states("bits", d, QCOW2_REPAIR_ALL, &res);
	assert_true(res.dirty_cleared && res.corrupt_cleared);
	/* the unknown autoclear bit goes before anything else is written */
	d->record = true;
	assert_int_equal(repair_disk(d, QCOW2_REPAIR_ALL, &res), 0);
	assert_true(d->events > 4);
	assert_true(d->event[0].op == HOST_WRITE && d->event[0].off == 0 && !d->event[0].data[90]);
	assert_int_equal(d->event[0].data[79], QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
	assert_int_equal(d->event[1].op, HOST_FSYNC);
	assert_int_equal(d->event[d->events - 2].off, 0);
	assert_int_equal(d->event[d->events - 1].op, HOST_FSYNC);
	assert_int_equal(disk_be(d, 72, 8), 0);
	assert_int_equal(disk_be(d, 88, 8), 0);
	/* nothing to do: the bit of somebody else stays */
	disk_set_be(d, 88, 1ull << 40, 8);
	origin = disk_clone(d);
	assert_int_equal(repair_disk(d, QCOW2_REPAIR_ALL, &res), 0);
	assert_true(unchanged(d, origin));
	disk_free(origin);
	/* an error stays: so does what says so */
	disk_set_be(d, 72, QCOW2_INCOMPAT_CORRUPT, 8);
	disk_set_be(d, disk_l2_at(d, 4096), 1ull << 60, 8);
	assert_int_equal(repair_disk(d, QCOW2_REPAIR_ALL, &res), 0);
	assert_int_equal(disk_wrong_bits(d), QCOW2_INCOMPAT_CORRUPT);
	assert_false(res.corrupt_cleared);
	disk_free(d);
}

/* ---- before an image is opened ---- */

static int before_open(struct disk *d, bool leaks, struct qcow2_repair_result *res, struct qcow2_error *err)
{
	struct host_file *f = disk_open(d, false);
	int ret = qcow2_repair_before_open(f, leaks, res, err);

	f->ops->close(f);
	return ret;
}

static void left_alone(struct disk *d, bool leaks)
{
	struct disk *origin = disk_clone(d);
	struct qcow2_error err = { "" };
	struct qcow2_repair_result res;

	assert_int_equal(before_open(d, leaks, &res, &err), 0);
	assert_true(unchanged(d, origin));
	assert_int_equal(res.before.errors + res.before.leaks, 0);
	disk_free(origin);
}

static void test_before_open(void **state_)
{
	struct disk *d = sound(&(struct spec){ 0 });
	struct qcow2_error err = { "" };
	struct qcow2_repair_result res;
	struct qcow2_image *img;

	left_alone(d, false);
	left_alone(d, true);
	disk_append(d);
	left_alone(d, false); /* a leak nobody asked about */
	assert_int_equal(before_open(d, true, &res, &err), 0);
	assert_int_equal(res.before.leaks, 1);
	assert_clean(d);
	/* as a crash leaves an image with lazy refcounts */
	disk_set_be(d, 72, QCOW2_INCOMPAT_DIRTY, 8);
	disk_set_refcount(d, disk_host(d, 0) >> 12, 0);
	disk_append(d);
	assert_int_equal(before_open(d, false, &res, &err), 0);
	assert_true(res.dirty_cleared);
	assert_clean(d);
	img = open_image(d, NULL);
	reads(img, 0, 64 << 10, 1);
	close_image(img);
	/* refused by the open: not touched */
	disk_set_refcount(d, disk_host(d, 0) >> 12, 0);
	disk_set_be(d, 72, QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT, 8);
	disk_set_refcount(d, 0, 0);
	left_alone(d, true);
	disk_set_be(d, 72, QCOW2_INCOMPAT_DIRTY | 1ull << 50, 8);
	left_alone(d, true);
	disk_set_be(d, 72, QCOW2_INCOMPAT_DIRTY, 8);
	disk_set_be(d, 32, QCOW2_CRYPT_AES, 4);
	left_alone(d, true);
	disk_set_be(d, 32, 0, 4);
	/* what cannot be repaired is not opened */
	disk_set_be(d, disk_l2_at(d, 4096), 1ull << 60, 8);
	assert_int_equal(before_open(d, false, &res, &err), -EUCLEAN);
	assert_non_null(strstr(err.text, "disk.qcow2: 1 errors are left after the repair"));
	assert_int_equal(disk_wrong_bits(d), QCOW2_INCOMPAT_DIRTY);
	disk_set_be(d, 72, 0, 8);
	err.text[0] = 0;
	assert_int_equal(before_open(d, true, &res, &err), -EUCLEAN);
	assert_non_null(strstr(err.text, "keep leaked clusters from being freed"));
	disk_free(d);
}

/* ---- errors of the host ---- */

/* Whichever write or fsync fails: so does the repair, with a message, and the next one succeeds. */
static void test_host_errors(void **state_)
{
	static const unsigned ops[] = { 1u << HOST_WRITE, 1u << HOST_FSYNC };
	struct qcow2_repair_result res;
	struct disk *origin = sound(&(struct spec){ 0 }), *d;
	unsigned i, nth, failed = 0;
	int ret;

	disk_set_be(origin, 72, QCOW2_INCOMPAT_DIRTY, 8);
	disk_set_be(origin, disk_l2_at(origin, 4096), disk_be(origin, 40, 8), 8); /* to the L1 table */
	disk_set_refcount(origin, disk_host(origin, 0) >> 12, 0);
	for (i = 0; i < COUNT(ops); i++) {
		for (nth = 1, ret = -1; ret; nth++) {
			assert_true(nth < 100);
			d = disk_clone(origin);
			disk_fail(d, ops[i], -ENOSPC, nth, false);
			ret = repair_disk(d, QCOW2_REPAIR_ALL, &res);
			assert_true(ret == 0 || ret == -ENOSPC);
			assert_int_equal(ret ? 1 : 0, d->failed);
			failed += d->failed;
			if (ret)
				assert_int_equal(disk_wrong_bits(d) || !kinds_of(d).errors, 1);
			d->fail = 0;
			assert_int_equal(repair_disk(d, QCOW2_REPAIR_ALL, &res), 0);
			assert_clean(d);
			disk_free(d);
		}
	}
	assert_true(failed > 10);
	disk_free(origin);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_kinds),
		cmocka_unit_test(test_leaks),
		cmocka_unit_test(test_leaks_copied),
		cmocka_unit_test(test_leaks_beside_errors),
		cmocka_unit_test(test_hidden_references),
		cmocka_unit_test(test_no_place),
		cmocka_unit_test(test_counted_beyond),
		cmocka_unit_test(test_device),
		cmocka_unit_test(test_move),
		cmocka_unit_test(test_saturated),
		cmocka_unit_test(test_bits),
		cmocka_unit_test(test_before_open),
		cmocka_unit_test(test_host_errors),
	};

	return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Repair of the hand-made damages of check_damages.h, judged by our check, by qemu-img check and beside what
 * qemu-img check -r makes of the same image.
 */
#include "check_damages.h"
#include "repair_judge.h"

/*
 * What repair=all cannot make clean. QEMU_TOO: qemu-img check -r all leaves errors, too, or gives up. OURS:
 * qemu-img is content; each block says why we are not.
 */
enum left { QEMU_TOO, OURS };
static const struct {
	const char *name;
	enum left left;
} left[] = {
	/* an entry that cannot be right; here qemu-img frees what it may have named, we do not */
	{ "plain l1_to_data", QEMU_TOO },
	{ "plain l1_to_itself", QEMU_TOO },
	{ "plain l2_reserved_low", QEMU_TOO },
	{ "plain l2_reserved_high", QEMU_TOO },
	{ "plain l2_reserved_alone", QEMU_TOO },
	{ "plain l1_reserved_low", QEMU_TOO },
	{ "plain l1_reserved_high", QEMU_TOO },
	{ "plain l2_unaligned", QEMU_TOO },
	{ "plain l1_unaligned", QEMU_TOO },
	{ "plain l2_beyond", QEMU_TOO },
	{ "plain l2_at_end", QEMU_TOO },
	{ "plain l2_far_beyond", QEMU_TOO },
	{ "plain l1_beyond", QEMU_TOO },
	{ "plain l1_copied_alone", QEMU_TOO },
	{ "plain l2_table_ones", QEMU_TOO },
	{ "plain comp_copied", QEMU_TOO },
	{ "plain comp_longer", QEMU_TOO },
	{ "plain comp_past_end", QEMU_TOO },
	{ "plain comp_beyond", QEMU_TOO },
	{ "plain truncated", QEMU_TOO },
	{ "snap l2_reserved_low", QEMU_TOO },
	{ "snap snap_l1_reserved", QEMU_TOO },
	{ "snap snap_l1_beyond", QEMU_TOO },
	{ "bitmap bitmap_dir_zeroed", QEMU_TOO },
	{ "bitmap bitmap_entry_reserved", QEMU_TOO },
	{ "bitmap bitmap_entry_unaligned", QEMU_TOO },
	{ "bitmap bitmap_count", QEMU_TOO },
	{ "bitmap bitmap_disk_smaller", QEMU_TOO },
	/* metadata shares its cluster with something that is no plain data entry: an error for us alone */
	{ "plain l2_to_l2", OURS }, /* the entry is in the very table it names */
	{ "plain overlap_l2_agreed", OURS },
	{ "plain comp_in_header", OURS },
	{ "plain comp_at_zero", OURS },
	{ "snap snap_l1_is_active", OURS },
	{ "bitmap bitmap_entry_to_l1", OURS },
	/* nor is that an error for QEMU */
	{ "plain version_2_zero", OURS },
	/* qemu-img loads and stores all bitmaps */
	{ "bitmap bitmap_entry_beyond", OURS },
	/* qemu-img writes a new snapshot table */
	{ "snap snap_extra_short", OURS },
};

static int find_left(const char *name)
{
	size_t i;

	for (i = 0; i < COUNT(left); i++)
		if (!strcmp(left[i].name, name))
			return (int)i;
	return -1;
}

static void copy(const char *from, const char *to)
{
	assert_int_equal(sh("cp %s %s", from, to), 0);
}

static bool same(const char *a, const char *b)
{
	return sh("cmp -s %s %s", a, b) == 0;
}

static uint64_t header_bits(const char *name)
{
	struct img m = img_load(name);
	uint64_t bits = get(&m, 4, 4) < 3 ? 0 : get64(&m, 72);

	free(m.b);
	return bits & (QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
}

/* repair=all of a damaged image: how much is left. */
static struct verdict repair_all(const struct damage *d, const struct verdict *before)
{
	struct content was = content("damaged"), is;
	struct qcow2_repair_result res;
	struct verdict after;

	copy("damaged", "all");
	assert_int_equal(repair_file("all", QCOW2_REPAIR_ALL, &res), 0);
	after = ours("all");
	is = content("all");
	if (!content_kept(&was, &is))
		fail_msg("%s: guest data changed", d->name);
	content_free(&was);
	content_free(&is);
	assert_int_equal(res.before.errors, before->errors);
	assert_int_equal(res.before.leaks, before->leaks);
	assert_int_equal(res.after.errors, after.errors);
	assert_int_equal(res.after.leaks, after.leaks);
	if (after.errors > before->errors)
		fail_msg("%s: more errors than before", d->name);
	if (after.errors)
		assert_true(res.left[0]);
	else
		assert_int_equal(header_bits("all"), 0);
	copy("all", "twice");
	assert_int_equal(repair_file("twice", QCOW2_REPAIR_ALL, &res), 0);
	if (!same("all", "twice"))
		fail_msg("%s: a second repair finds something to do", d->name);
	return after;
}

static void judge_all(const struct damage *d, const struct verdict *before)
{
	struct verdict a = repair_all(d, before), b = theirs("all"), q;
	int known = find_left(d->name);
	bool clean = !a.errors && !a.leaks;

	copy("damaged", "qemu");
	sh("timeout -s KILL 20 qemu-img check -q -f qcow2 -r all qemu >messages 2>&1");
	q = theirs("qemu");
	if (clean != (known < 0) || (clean && (b.refused || b.errors || b.leaks)) ||
	    (!clean && (left[known].left == QEMU_TOO) != (q.refused || q.killed || q.errors))) {
		show(d->name, &a, &b);
		show("qemu-img check -r all", &a, &q);
		fail_msg("%s: not as expected", d->name);
	}
	/* the guest sees the same in both; more than 1: qemu-img could not read all */
	if (clean && !q.refused && !q.errors && sh("qemu-img compare -q all qemu 2>messages") == 1)
		fail_msg("%s: qemu-img's repair shows other content", d->name);
}

static void judge_leaks(const struct damage *d, const struct verdict *before)
{
	struct qcow2_repair_result res;
	struct verdict after, q;

	copy("damaged", "leaks");
	assert_int_equal(repair_file("leaks", QCOW2_REPAIR_LEAKS, &res), 0);
	after = ours("leaks");
	q = theirs("leaks");
	if (!before->errors) {
		if (after.errors || after.leaks || q.errors || q.leaks)
			fail_msg("%s: leaks are left", d->name);
	} else if (after.errors && !same("leaks", "damaged")) {
		fail_msg("%s: a repair of leaks changed an image with errors", d->name);
	}
}

static void test_damages(void **state)
{
	struct verdict before;
	struct img m;
	size_t i;

	need_qemu_img();
	make_victims();
	for (i = 0; i < COUNT(damages); i++) {
		m = img_load(damages[i].image);
		damages[i].fn(&m);
		img_store(&m, "damaged");
		free(m.b);
		before = ours("damaged");
		if (before.refused) {
			struct qcow2_repair_result res;

			copy("damaged", "all");
			assert_true(repair_file("all", QCOW2_REPAIR_ALL, &res) < 0);
			assert_true(same("all", "damaged"));
			continue;
		}
		judge_all(&damages[i], &before);
		judge_leaks(&damages[i], &before);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_damages),
	};

	return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}

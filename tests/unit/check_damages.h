/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * check_damages.h - hand-made damage to the images of check_judge.h, and how our check and qemu-img's agree
 * on each.
 *
 * EXACT: errors == corruptions and leaks == leaks. VERDICT: QEMU's counting is not followed (the
 * case says why), but both must find errors, and leaks, or neither. STRICT: ours is an error where
 * QEMU sees none (check.c's essay lists them). REFUSED: ours cannot even begin.
 */
#ifndef TESTS_CHECK_DAMAGES_H
#define TESTS_CHECK_DAMAGES_H

#include "check_judge.h"

/* Entries of the two images below: 0..15 data, 32 zero with cluster, 64..66 compressed; L1 1: data. */
#define ZALLOC 32
#define COMP 64

/* ---- damage: "plain" and "snap" images alike unless said otherwise ---- */

static void d_none(struct img *m)
{
}

static void d_data_refcount_0(struct img *m)
{
	set_refcount(m, data(m, 3), 0);
}

static void d_data_refcount_2(struct img *m)
{
	set_refcount(m, data(m, 3), 2);
}

static void d_data_refcount_max(struct img *m)
{
	set_refcount(m, data(m, 3), 0xffff);
}

static void d_l2_refcount_0(struct img *m)
{
	set_refcount(m, l2(m, 0, 0), 0);
}

static void d_header_refcount_0(struct img *m)
{
	set_refcount(m, 0, 0);
}

static void d_header_refcount_2(struct img *m)
{
	set_refcount(m, 0, 2);
}

static void d_l1_refcount_0(struct img *m)
{
	set_refcount(m, l1(m, 0), 0);
}

static void d_rt_refcount_0(struct img *m)
{
	set_refcount(m, rt(m, 0), 0);
}

static void d_rb_refcount_0(struct img *m)
{
	set_refcount(m, get64(m, rt(m, 0)), 0);
}

static void d_rb_zeroed(struct img *m)
{
	memset(m->b + get64(m, rt(m, 0)), 0, 1u << m->bits);
}

static void d_l2_copied_cleared(struct img *m)
{
	clear64(m, l2(m, 0, 3), QCOW2_COPIED);
}

static void d_zalloc_copied_cleared(struct img *m)
{
	clear64(m, l2(m, 0, ZALLOC), QCOW2_COPIED);
}

static void d_l1_copied_cleared(struct img *m)
{
	clear64(m, l1(m, 0), QCOW2_COPIED);
}

static void d_l1_copied_set(struct img *m)
{
	or64(m, l1(m, 0), QCOW2_COPIED);
}

static void d_l2_to_refcount_block(struct img *m)
{
	point(m, l2(m, 0, 3), get64(m, rt(m, 0)));
}

static void d_l2_to_refcount_table(struct img *m)
{
	point(m, l2(m, 0, 3), rt(m, 0));
}

static void d_l2_to_l1(struct img *m)
{
	point(m, l2(m, 0, 3), l1(m, 0));
}

static void d_l2_to_l2(struct img *m)
{
	point(m, l2(m, 0, 3), l2(m, 0, 0));
}

static void d_l2_to_neighbour(struct img *m)
{
	point(m, l2(m, 0, 3), data(m, 4));
}

static void d_l1_to_other_l2(struct img *m)
{
	point(m, l1(m, 0), get64(m, l1(m, 1)) & OFFSET);
}

static void d_l1_to_data(struct img *m)
{
	point(m, l1(m, 0), data(m, 3));
}

static void d_l1_to_itself(struct img *m)
{
	point(m, l1(m, 1), l1(m, 0));
}

static void d_l2_reserved_low(struct img *m)
{
	or64(m, l2(m, 0, 3), 2);
}

static void d_l2_reserved_high(struct img *m)
{
	or64(m, l2(m, 0, 3), 1ull << 58);
}

static void d_l2_reserved_alone(struct img *m)
{
	set64(m, l2(m, 0, 200), 1ull << 56);
}

static void d_l1_reserved_low(struct img *m)
{
	or64(m, l1(m, 0), 1);
}

static void d_l1_reserved_high(struct img *m)
{
	or64(m, l1(m, 0), 1ull << 62);
}

static void d_l2_unaligned(struct img *m)
{
	or64(m, l2(m, 0, 3), 512);
}

static void d_zalloc_unaligned(struct img *m)
{
	or64(m, l2(m, 0, ZALLOC), 1024);
}

static void d_l1_unaligned(struct img *m)
{
	or64(m, l1(m, 0), 512);
}

static void d_l2_beyond(struct img *m)
{
	point(m, l2(m, 0, 3), m->len * 1000);
}

static void d_l2_at_end(struct img *m)
{
	point(m, l2(m, 0, 3), m->len);
}

static void d_l2_far_beyond(struct img *m)
{
	point(m, l2(m, 0, 3), OFFSET & ~0xfffull);
}

static void d_l1_beyond(struct img *m)
{
	point(m, l1(m, 0), m->len * 7);
}

static void d_l1_zeroed(struct img *m)
{
	set64(m, l1(m, 0), 0);
}

static void d_l1_copied_alone(struct img *m)
{
	set64(m, l1(m, 0), QCOW2_COPIED);
}

static void d_l2_zeroed(struct img *m)
{
	set64(m, l2(m, 0, 3), 0);
}

static void d_l2_copied_alone(struct img *m)
{
	set64(m, l2(m, 0, 200), QCOW2_COPIED);
}

static void d_l2_table_zeroed(struct img *m)
{
	memset(m->b + l2(m, 0, 0), 0, 1u << m->bits);
}

static void d_l2_table_ones(struct img *m)
{
	memset(m->b + l2(m, 0, 0), 0xff, 1u << m->bits);
}

static void d_rt_zeroed(struct img *m)
{
	set64(m, rt(m, 0), 0);
}

static void d_rt_reserved(struct img *m)
{
	or64(m, rt(m, 0), 1);
}

static void d_rt_unaligned(struct img *m)
{
	or64(m, rt(m, 0), 512);
}

static void d_rt_beyond(struct img *m)
{
	set64(m, rt(m, 0), m->len * 3);
}

static void d_rt_second_beyond(struct img *m)
{
	set64(m, rt(m, 1), m->len);
}

static void d_rt_duplicate(struct img *m)
{
	set64(m, rt(m, 1), get64(m, rt(m, 0)));
}

static void d_rt_to_data(struct img *m)
{
	set64(m, rt(m, 1), data(m, 3));
}

static void d_rt_to_l1(struct img *m)
{
	set64(m, rt(m, 1), l1(m, 0));
}

static void d_comp_to_data(struct img *m)
{
	set64(m, l2(m, 0, COMP), QCOW2_L2_COMPRESSED | data(m, 3));
}

static void d_comp_in_header(struct img *m)
{
	set64(m, l2(m, 0, COMP), QCOW2_L2_COMPRESSED | 0x200);
}

static void d_comp_at_zero(struct img *m)
{
	set64(m, l2(m, 0, COMP), QCOW2_L2_COMPRESSED);
}

static void d_comp_copied(struct img *m)
{
	or64(m, l2(m, 0, COMP), QCOW2_COPIED);
}

static void d_comp_longer(struct img *m)
{
	or64(m, l2(m, 0, COMP), 0xfull << 58);
} /* 16 sectors */
static void d_comp_at_end(struct img *m)
{
	set64(m, l2(m, 0, COMP), QCOW2_L2_COMPRESSED | m->len);
}

static void d_comp_past_end(struct img *m)
{
	set64(m, l2(m, 0, COMP), QCOW2_L2_COMPRESSED | 15ull << 58 | (m->len - 512));
}

static void d_comp_beyond(struct img *m)
{
	set64(m, l2(m, 0, COMP), QCOW2_L2_COMPRESSED | 1ull << 50);
}

static void d_comp_zeroed(struct img *m)
{
	set64(m, l2(m, 0, COMP), 0);
}

static void d_dirty_and_corrupt(struct img *m)
{
	or64(m, 72, QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
}

static void d_unknown_incompatible(struct img *m)
{
	or64(m, 72, 1ull << 40);
}

static void d_no_magic(struct img *m)
{
	m->b[0] = 0;
}

static void d_cluster_bits_40(struct img *m)
{
	put32(m->b, 20, 40);
}

static void d_l1_size_huge(struct img *m)
{
	put32(m->b, 36, 0x7fffffff);
}

static void d_truncated(struct img *m)
{
	m->len = (m->len >> m->bits) / 2 << m->bits;
}

static void d_grown(struct img *m) /* a cluster at the end with a refcount but no reference */
{
	m->b = realloc(m->b, m->len + (1u << m->bits));
	assert_non_null(m->b);
	memset(m->b + m->len, 0, 1u << m->bits);
	set_refcount(m, m->len, 1);
	m->len += 1u << m->bits;
}

static void d_version_2_zero(struct img *m)
{
	put32(m->b, 4, 2);
	set64(m, l2(m, 0, ZALLOC + 64), QCOW2_L2_ZERO);
}
/* The stored refcount agrees with two references, so that QEMU is content. */
static void d_overlap_l1_agreed(struct img *m)
{
	set_refcount(m, data(m, 3), 0);
	set_refcount(m, l1(m, 0), 2);
	set64(m, l2(m, 0, 3), l1(m, 0));
}

static void d_overlap_l2_agreed(struct img *m)
{
	set_refcount(m, data(m, 3), 0);
	set_refcount(m, l2(m, 0, 0), 2);
	set64(m, l2(m, 0, 3), l2(m, 0, 0));
	clear64(m, l1(m, 0), QCOW2_COPIED);
}

/* "snap" only */
static void d_shared_copied_set(struct img *m)
{
	or64(m, l2(m, 0, 3), QCOW2_COPIED);
}

static void d_snap_l1_zeroed(struct img *m)
{
	set64(m, get64(m, snapshot(m)), 0);
}

static void d_snap_l1_reserved(struct img *m)
{
	or64(m, get64(m, snapshot(m)), 1ull << 56);
}

static void d_snap_l1_beyond(struct img *m)
{
	point(m, get64(m, snapshot(m)), m->len * 5);
}

static void d_snap_l1_is_active(struct img *m)
{
	set64(m, snapshot(m), l1(m, 0));
}

static void d_snap_l1_unaligned(struct img *m)
{
	set64(m, snapshot(m), l1(m, 0) + 8);
}

static void d_snap_l1_shorter(struct img *m)
{
	put32(m->b, snapshot(m) + 8, 1);
}

static void d_snap_none(struct img *m)
{
	put32(m->b, offsetof(struct qcow2_disk_header, nb_snapshots), 0);
}

static void d_snap_fewer(struct img *m)
{
	put32(m->b, offsetof(struct qcow2_disk_header, nb_snapshots), 1);
}

static void d_snap_extra_short(struct img *m)
{
	/* the extra data of the last entry becomes part of its id */
	uint64_t at = snapshot(m), extra = get(m, at + 36, 4), id = get(m, at + 12, 2);

	put32(m->b, at + 36, 8);
	put16(m->b, at + 12, id + extra - 8);
}

static void d_snap_table_refcount(struct img *m)
{
	set_refcount(m, snapshot(m), 0);
}

static void d_snap_l1_refcount(struct img *m)
{
	set_refcount(m, get64(m, snapshot(m)), 3);
}

/* "bitmap" only: offset of the extension's data, of the directory, of the first table */
static uint64_t bitmap_ext(const struct img *m)
{
	uint64_t at = get(m, 100, 4);

	while (get(m, at, 4) != QCOW2_EXT_BITMAPS)
		at += 8 + ((get(m, at + 4, 4) + 7) & ~7ull);
	return at + 8;
}

static uint64_t bitmap_dir(const struct img *m)
{
	return get64(m, bitmap_ext(m) + 16);
}

static uint64_t bitmap_table(const struct img *m)
{
	return get64(m, bitmap_dir(m));
}

static void d_bitmap_autoclear(struct img *m)
{
	clear64(m, 88, QCOW2_AUTOCLEAR_BITMAPS);
}

static void d_bitmap_entry_reserved(struct img *m)
{
	or64(m, bitmap_table(m), 2);
}

static void d_bitmap_entry_unaligned(struct img *m)
{
	or64(m, bitmap_table(m), 512);
}

static void d_bitmap_entry_beyond(struct img *m)
{
	set64(m, bitmap_table(m), m->len * 2);
}

static void d_bitmap_entry_to_l1(struct img *m)
{
	set64(m, bitmap_table(m), l1(m, 0));
}

static void d_bitmap_dir_refcount(struct img *m)
{
	set_refcount(m, bitmap_dir(m), 0);
}

static void d_bitmap_table_refcount(struct img *m)
{
	set_refcount(m, bitmap_table(m), 2);
}

static void d_bitmap_dir_zeroed(struct img *m)
{
	memset(m->b + bitmap_dir(m), 0, 24);
}

static void d_bitmap_disk_smaller(struct img *m)
{
	set64(m, 24, 0);
}

static void d_bitmap_count(struct img *m)
{
	put32(m->b, bitmap_ext(m), 1);
}

enum how { EXACT, VERDICT, STRICT, REFUSED };

struct damage {
	const char *image;
	void (*fn)(struct img *m);
	const char *name;
	enum how how;
};

#define D(image_, fn_, how_) { image_, d_##fn_, image_ " " #fn_, how_ }
static const struct damage damages[] = {
	D("plain", none, EXACT),
	D("plain", data_refcount_0, EXACT),
	D("plain", data_refcount_2, EXACT),
	D("plain", data_refcount_max, EXACT),
	D("plain", l2_refcount_0, EXACT),
	D("plain", header_refcount_0, EXACT),
	D("plain", header_refcount_2, EXACT),
	D("plain", l1_refcount_0, EXACT),
	D("plain", rt_refcount_0, EXACT),
	D("plain", rb_refcount_0, EXACT),
	D("plain", rb_zeroed, EXACT),
	D("plain", l2_copied_cleared, EXACT),
	D("plain", zalloc_copied_cleared, EXACT),
	D("plain", l1_copied_cleared, EXACT),
	D("plain", l2_to_refcount_block, EXACT),
	D("plain", l2_to_refcount_table, EXACT),
	D("plain", l2_to_l1, EXACT),
	D("plain", l2_to_l2, EXACT),
	D("plain", l2_to_neighbour, EXACT),
	D("plain", l1_to_other_l2, EXACT),
	D("plain", l1_to_data, EXACT),
	D("plain", l1_to_itself, EXACT),
	D("plain", l2_reserved_low, EXACT),
	D("plain", l2_reserved_high, EXACT),
	D("plain", l2_reserved_alone, EXACT),
	D("plain", l1_reserved_low, EXACT),
	D("plain", l1_reserved_high, EXACT),
	D("plain", l2_unaligned, EXACT),
	D("plain", zalloc_unaligned, EXACT),
	/* QEMU walks the misplaced table and counts whatever the bytes there say; we do not. */
	D("plain", l1_unaligned, VERDICT),
	D("plain", l2_beyond, EXACT),
	D("plain", l2_at_end, EXACT),
	D("plain", l2_far_beyond, EXACT),
	D("plain", l1_beyond, EXACT),
	D("plain", l1_zeroed, EXACT),
	/* QEMU takes the header for an L2 table. */
	D("plain", l1_copied_alone, VERDICT),
	D("plain", l2_zeroed, EXACT),
	D("plain", l2_copied_alone, EXACT),
	D("plain", l2_table_zeroed, EXACT),
	D("plain", l2_table_ones, EXACT),
	D("plain", rt_zeroed, EXACT),
	D("plain", rt_reserved, EXACT),
	/* QEMU counts each cluster whose refcount it cannot read as a check error, we count each range. */
	D("plain", rt_unaligned, VERDICT),
	D("plain", rt_beyond, EXACT),
	D("plain", rt_second_beyond, EXACT),
	D("plain", rt_duplicate, EXACT),
	D("plain", rt_to_data, EXACT),
	D("plain", rt_to_l1, EXACT),
	D("plain", comp_to_data, EXACT),
	D("plain", comp_in_header, EXACT),
	D("plain", comp_at_zero, EXACT),
	D("plain", comp_copied, EXACT),
	D("plain", comp_longer, EXACT),
	D("plain", comp_at_end, EXACT),
	D("plain", comp_past_end, EXACT),
	D("plain", comp_beyond, EXACT),
	D("plain", comp_zeroed, EXACT),
	D("plain", dirty_and_corrupt, EXACT),
	D("plain", unknown_incompatible, REFUSED),
	D("plain", no_magic, REFUSED),
	D("plain", cluster_bits_40, REFUSED),
	D("plain", l1_size_huge, REFUSED),
	D("plain", truncated, EXACT),
	D("plain", grown, EXACT),
	D("plain", version_2_zero, STRICT),
	D("plain", overlap_l1_agreed, STRICT),
	D("plain", overlap_l2_agreed, STRICT),
	D("snap", none, EXACT),
	D("snap", shared_copied_set, EXACT),
	D("snap", l1_copied_set, EXACT),
	D("snap", data_refcount_0, EXACT),
	D("snap", data_refcount_max, EXACT),
	D("snap", l2_to_neighbour, EXACT),
	D("snap", l1_zeroed, EXACT),
	D("snap", l1_to_other_l2, EXACT),
	D("snap", l2_table_zeroed, EXACT),
	D("snap", l2_reserved_low, EXACT),
	D("snap", snap_l1_zeroed, EXACT),
	D("snap", snap_l1_reserved, EXACT),
	D("snap", snap_l1_beyond, EXACT),
	D("snap", snap_l1_is_active, EXACT),
	/* QEMU skips that snapshot and would free its clusters on repair; we do not judge the rest. */
	D("snap", snap_l1_unaligned, REFUSED),
	D("snap", snap_l1_shorter, EXACT),
	D("snap", snap_none, EXACT),
	D("snap", snap_fewer, EXACT),
	D("snap", snap_extra_short, EXACT),
	D("snap", snap_table_refcount, EXACT),
	D("snap", snap_l1_refcount, EXACT),
	D("bitmap", none, EXACT),
	D("bitmap", bitmap_autoclear, EXACT),
	D("bitmap", bitmap_entry_beyond, EXACT),
	D("bitmap", bitmap_entry_to_l1, EXACT),
	D("bitmap", bitmap_dir_refcount, EXACT),
	D("bitmap", bitmap_table_refcount, EXACT),
	/* QEMU gives up when the directory or a table is damaged. */
	D("bitmap", bitmap_dir_zeroed, VERDICT),
	D("bitmap", bitmap_entry_reserved, VERDICT),
	D("bitmap", bitmap_entry_unaligned, VERDICT),
	D("bitmap", bitmap_count, VERDICT),
	D("bitmap", bitmap_disk_smaller, VERDICT),
};

#endif

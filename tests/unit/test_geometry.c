// SPDX-License-Identifier: GPL-2.0-or-later
/* Offsets to indices, against numbers worked out by hand, and at the ends of the allowed ranges. */
#include "qcow2/geometry.h"
#include "unit.h"

static struct geometry geometry(unsigned cluster_bits, unsigned refcount_order)
{
	struct geometry g = { .version = 3, .cluster_bits = cluster_bits, .refcount_order = refcount_order };

	geometry_init(&g);
	return g;
}

static void derived_values(void **state)
{
	struct geometry g = geometry(16, 4);

	assert_int_equal(g.cluster_size, 65536);
	assert_int_equal(g.l2_bits, 13);
	assert_int_equal(g.block_size, 4096);
	assert_int_equal(g.rb_bits, 15);
	assert_int_equal(g.refcount_max, 65535);

	g = geometry(9, 0);
	assert_int_equal(g.cluster_size, 512);
	assert_int_equal(g.l2_bits, 6);
	assert_int_equal(g.block_bits, 9);
	assert_int_equal(g.block_size, 512);
	assert_int_equal(g.rb_bits, 12);
	assert_int_equal(g.refcount_max, 1);

	g = geometry(21, 6);
	assert_int_equal(g.cluster_size, 2097152);
	assert_int_equal(g.l2_bits, 18);
	assert_int_equal(g.block_size, 4096);
	assert_int_equal(g.rb_bits, 18);
	assert_true(g.refcount_max == UINT64_MAX);

	assert_true(geometry(12, 5).refcount_max == UINT32_MAX);
	assert_int_equal(geometry(12, 3).refcount_max, 255);
	assert_int_equal(geometry(12, 2).refcount_max, 15);
	assert_int_equal(geometry(12, 1).refcount_max, 3);
}

static void guest_indices(void **state)
{
	struct geometry g = geometry(16, 4);
	uint64_t off = (3ull << 29) + (5ull << 16) + 7; /* L1 3, L2 5, byte 7 */

	assert_int_equal(l1_index(&g, off), 3);
	assert_int_equal(l2_index(&g, off), 5);
	assert_int_equal(in_cluster(&g, off), 7);
	assert_int_equal(cluster_of(&g, off), 3 * 8192 + 5);
	assert_int_equal(cluster_down(&g, off), off - 7);
	assert_int_equal(cluster_up(&g, off), off - 7 + 65536);
	assert_int_equal(cluster_up(&g, off - 7), off - 7);
	assert_int_equal(l2_index(&g, (1ull << 29) - 1), 8191);
	assert_int_equal(l1_index(&g, (1ull << 29) - 1), 0);
	assert_int_equal(l2_index(&g, 1ull << 29), 0);
}

static void l1_sizes(void **state)
{
	struct geometry g = geometry(16, 4);
	unsigned bits;

	assert_int_equal(size_to_l1(&g, 0), 0);
	assert_int_equal(size_to_l1(&g, 1), 1);
	assert_int_equal(size_to_l1(&g, 1ull << 29), 1);
	assert_int_equal(size_to_l1(&g, (1ull << 29) + 1), 2);
	/* hostile sizes must not wrap to a small table */
	for (bits = 9; bits <= 21; bits++) {
		g = geometry(bits, 4);
		assert_int_equal(size_to_l1(&g, UINT64_MAX), (UINT64_MAX >> (2 * bits - 3)) + 1);
	}
}

static void refcount_indices(void **state)
{
	struct geometry g = geometry(16, 4); /* 32768 refcounts in a block */

	assert_int_equal(rt_index(&g, 32767), 0);
	assert_int_equal(rb_index(&g, 32767), 32767);
	assert_int_equal(rt_index(&g, 32768), 1);
	assert_int_equal(rb_index(&g, 32768), 0);
	g = geometry(9, 6); /* 64 refcounts in a block */
	assert_int_equal(rt_index(&g, 130), 2);
	assert_int_equal(rb_index(&g, 130), 2);
	g = geometry(21, 0); /* 2^24 of them */
	assert_int_equal(rt_index(&g, (1ull << 24) + 9), 1);
	assert_int_equal(rb_index(&g, (1ull << 24) + 9), 9);
}

static void cluster_counts(void **state)
{
	struct geometry g = geometry(9, 4);

	assert_int_equal(clusters_for(&g, 0), 0);
	assert_int_equal(clusters_for(&g, 1), 1);
	assert_int_equal(clusters_for(&g, 512), 1);
	assert_int_equal(clusters_for(&g, 513), 2);
	assert_int_equal(clusters_for(&g, UINT64_MAX), 1ull << 55);
	assert_true(cluster_aligned(&g, 1024));
	assert_false(cluster_aligned(&g, 1025));
	assert_false(cluster_aligned(&g, 1024 + 256));
	assert_int_equal(min_u64(1, UINT64_MAX), 1);
	assert_int_equal(min_u64(UINT64_MAX, 2), 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(derived_values), cmocka_unit_test(guest_indices),
		cmocka_unit_test(l1_sizes),	  cmocka_unit_test(refcount_indices),
		cmocka_unit_test(cluster_counts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

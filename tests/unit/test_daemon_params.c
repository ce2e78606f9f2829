// SPDX-License-Identifier: GPL-2.0-or-later
/* The block device's limits, for ordinary and for extreme images. */
#include "daemon/params.h"
#include "unit.h"

static struct device_shape ordinary(void)
{
	return (struct device_shape){
		.size = 1ull << 30,
		.cluster_size = 65536,
		.block_size = 512,
		.io_align = 4096,
		.mem_align = 512,
		.max_io = 512 << 10,
		.unmap = true,
	};
}

static void an_ordinary_image(void **state)
{
	struct device_shape s = ordinary();
	struct ublk_params p;

	device_params(&s, &p);
	assert_int_equal(p.basic.attrs, UBLK_ATTR_VOLATILE_CACHE); /* no FUA */
	assert_int_equal(p.basic.logical_bs_shift, 9);
	assert_int_equal(p.basic.physical_bs_shift, 12);
	assert_int_equal(p.basic.io_min_shift, 12);
	assert_int_equal(p.basic.io_opt_shift, 16);
	assert_int_equal(p.basic.max_sectors, 1024);
	assert_int_equal(p.basic.chunk_sectors, 512 * 128);
	assert_int_equal(p.basic.dev_sectors, 1 << 21);
	assert_int_equal(p.dma.alignment, 511);
	assert_int_equal(p.discard.discard_granularity, 65536);
	assert_int_equal(p.discard.max_discard_sectors, 1 << 21);
	assert_int_equal(p.discard.max_write_zeroes_sectors, 1 << 21);
	assert_int_equal(p.discard.max_discard_segments, 1);
}

static void what_may_be_changed(void **state)
{
	struct device_shape s = ordinary();
	struct ublk_params p;

	s.unmap = false;
	device_params(&s, &p);
	assert_int_equal(p.discard.max_discard_sectors, 0);
	assert_true(p.discard.max_write_zeroes_sectors > 0);
	s.read_only = true;
	device_params(&s, &p);
	assert_int_equal(p.basic.attrs, UBLK_ATTR_READ_ONLY);
	assert_false(p.types & UBLK_PARAM_TYPE_DISCARD);
}

/* What the driver checks in SET_PARAMS, over everything an image can be. */
static void the_driver_accepts_it(void **state)
{
	for (uint32_t cluster = 512; cluster <= 2u << 20; cluster *= 2) {
		for (uint32_t align = 1; align <= cluster; align *= align == 1 ? 512 : 2) {
			for (uint32_t block = 512; block <= 4096; block *= 8) {
				struct device_shape s = ordinary();
				struct ublk_params p;

				s.cluster_size = cluster;
				s.io_align = align;
				s.block_size = block;
				s.mem_align = 4096;
				s.size = (1ull << 30) + 512;
				device_params(&s, &p);
				assert_true(p.basic.logical_bs_shift <= p.basic.physical_bs_shift);
				assert_true(p.basic.physical_bs_shift <= p.basic.io_min_shift);
				assert_true(p.basic.io_min_shift <= p.basic.io_opt_shift);
				assert_true((1u << p.basic.physical_bs_shift) >= align);
				assert_int_equal(p.basic.dev_sectors % (block / 512), 0);
				assert_true(p.basic.chunk_sectors >= block / 512);
				assert_true(p.dma.alignment < block && p.dma.alignment >= 511);
				assert_true(p.discard.max_discard_sectors * 512ull >= cluster);
			}
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_ordinary_image),
		cmocka_unit_test(what_may_be_changed),
		cmocka_unit_test(the_driver_accepts_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

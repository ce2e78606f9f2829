/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * params.c - the block device's limits.
 *
 * Owns nothing. A request never crosses a slice of the mapping table (chunk_sectors), so that one range
 * counter covers it. The device has a volatile write cache and no FUA: the block layer then sends FUA writes
 * as a write and a FLUSH.
 */
#include "params.h"
#include "fastmap.h"
#include <string.h>

#define SECTOR 512u
#define MAX_DISCARD (1u << 30) /* bytes, */
#define MAX_DISCARD_CLUSTERS 16384u /* and clusters: one request's work is bounded */
#define MAX_OPT (1u << 20)

static uint8_t log2_of(uint32_t power_of_two)
{
	return (uint8_t)__builtin_ctz(power_of_two);
}

static uint32_t clamp(uint32_t v, uint32_t low, uint32_t high)
{
	return v < low ? low : v > high ? high : v;
}

static uint32_t max_discard_sectors(const struct device_shape *s)
{
	uint64_t clusters = (uint64_t)s->cluster_size * MAX_DISCARD_CLUSTERS;

	return (uint32_t)(clusters < MAX_DISCARD ? clusters : MAX_DISCARD) / SECTOR;
}

void device_params(const struct device_shape *s, struct ublk_params *p)
{
	/* At most the cluster size: buffered files may have clusters below the logical block size, too. */
	uint32_t physical = clamp(s->io_align, s->block_size,
				  s->cluster_size > s->block_size ? s->cluster_size : s->block_size);

	memset(p, 0, sizeof(*p));
	p->len = sizeof(*p);
	p->types = UBLK_PARAM_TYPE_BASIC | UBLK_PARAM_TYPE_DISCARD | UBLK_PARAM_TYPE_DMA_ALIGN;
	p->basic = (struct ublk_param_basic){
		.attrs = s->read_only ? UBLK_ATTR_READ_ONLY : UBLK_ATTR_VOLATILE_CACHE,
		.logical_bs_shift = log2_of(s->block_size),
		.physical_bs_shift = log2_of(physical),
		.io_min_shift = log2_of(physical),
		.io_opt_shift =
			log2_of(clamp(s->cluster_size, physical, MAX_OPT > physical ? MAX_OPT : physical)),
		.max_sectors = s->max_io / SECTOR,
		.chunk_sectors = s->cluster_size / SECTOR * FASTMAP_SLICE_CLUSTERS,
		.dev_sectors = s->size / s->block_size * (s->block_size / SECTOR),
	};
	/*
	 * At most the logical block size: the kernel checks lengths against it, too. Where a file wants more,
	 * a data I/O that does not fit fails and goes to the metadata thread. A kernel without this type
	 * (before 6.14) masks it out.
	 */
	p->dma.alignment = clamp(s->mem_align, SECTOR, s->block_size) - 1;
	if (s->read_only) {
		p->types &= ~UBLK_PARAM_TYPE_DISCARD;
		return;
	}
	p->discard = (struct ublk_param_discard){
		.discard_granularity = s->cluster_size,
		.max_discard_sectors = s->unmap ? max_discard_sectors(s) : 0,
		.max_write_zeroes_sectors = max_discard_sectors(s),
		.max_discard_segments = 1,
	};
}

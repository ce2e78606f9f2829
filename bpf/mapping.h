/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mapping.h - the mapping table as it lies in memory: what the daemon (daemon/fastmap.c), its queue threads
 * and the BPF program (mapping.bpf.h) agree on. Plain C for both; architecture.md has the protocol.
 *
 * The table is an array of slots. A slice (512 consecutive guest clusters) may be in any of them; where, an
 * index says: for the program a BPF hash map, for the daemon's threads daemon/slice_index.c.
 */
#ifndef BPF_MAPPING_H
#define BPF_MAPPING_H

typedef __UINT64_TYPE__ mapping_u64;
typedef __UINT32_TYPE__ mapping_u32;

#define FASTMAP_SLICE_CLUSTERS 512u /* guest clusters per slice */

/*
 * A word: what one guest cluster is. 0 = unknown (a miss).
 * bits 0-1 kind (1 data, 2 zero), bit 2 writable, bits 3-8 file index, bits 9-55 host offset / 512.
 */
#define FASTMAP_KIND 3ull
#define FASTMAP_DATA 1ull
#define FASTMAP_ZERO 2ull
#define FASTMAP_WRITABLE 4ull
#define FASTMAP_FILE_SHIFT 3
#define FASTMAP_FILE (63ull << FASTMAP_FILE_SHIFT)
#define FASTMAP_HOST 0x00fffffffffffe00ull

struct fastmap_slot {
	mapping_u64 slice_plus_1; /* 0 = none */
	mapping_u64 referenced; /* set by readers, cleared by the eviction clock */
	mapping_u64 reserved[6];
	mapping_u64 word[FASTMAP_SLICE_CLUSTERS];
};

#endif

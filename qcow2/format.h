/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * format.h - what a qcow2 file looks like on disk: types, bit names, limits.
 *
 * Source: QEMU's docs/interop/qcow2.txt ("the specification"). Every word is big endian; the
 * __be types are swapped in entry.h (tables) and header.c (header, extensions, snapshots) only.
 */
#ifndef QCOW2_FORMAT_H
#define QCOW2_FORMAT_H

#include <assert.h>
#include <linux/types.h>
#include <stddef.h>
#include <stdint.h>

#define QCOW2_MAGIC 0x514649fbu /* "QFI\xfb" */

/* Limits, enforced before any use or allocation. */
#define QCOW2_MIN_CLUSTER_BITS 9
#define QCOW2_MAX_CLUSTER_BITS 21
#define QCOW2_MAX_REFCOUNT_ORDER 6
#define QCOW2_MAX_L1_BYTES (32u << 20)
#define QCOW2_MAX_REFTABLE_BYTES (8u << 20)
#define QCOW2_MAX_SNAPSHOTS 65536u
#define QCOW2_MAX_SNAPSHOT_BYTES (64u << 20)
#define QCOW2_MAX_SNAPSHOT_EXTRA 1024u
#define QCOW2_MAX_BITMAPS 65535u
#define QCOW2_MAX_BACKING_NAME 1023u
#define QCOW2_MAX_HOST_OFFSET (1ull << 56)
#define QCOW2_MAX_CHAIN 256u

/* Header, "Header" section. Version 2 ends before incompatible_features (72 bytes). */
struct qcow2_disk_header {
	__be32 magic;
	__be32 version;
	__be64 backing_file_offset;
	__be32 backing_file_size;
	__be32 cluster_bits;
	__be64 size;
	__be32 crypt_method;
	__be32 l1_size;
	__be64 l1_table_offset;
	__be64 refcount_table_offset;
	__be32 refcount_table_clusters;
	__be32 nb_snapshots;
	__be64 snapshots_offset;
	__be64 incompatible_features;
	__be64 compatible_features;
	__be64 autoclear_features;
	__be32 refcount_order;
	__be32 header_length;
	__u8 compression_type; /* only if header_length > 104 */
	__u8 padding[7];
} __attribute__((packed));

static_assert(offsetof(struct qcow2_disk_header, incompatible_features) == 72, "v2 header is 72 bytes");
static_assert(offsetof(struct qcow2_disk_header, compression_type) == 104, "v3 header is 104 bytes");
static_assert(sizeof(struct qcow2_disk_header) == 112, "header with compression type is 112 bytes");

#define QCOW2_V2_HEADER 72u
#define QCOW2_V3_HEADER 104u

/* Incompatible features: an unknown one forbids opening. */
#define QCOW2_INCOMPAT_DIRTY (1ull << 0)
#define QCOW2_INCOMPAT_CORRUPT (1ull << 1)
#define QCOW2_INCOMPAT_DATA_FILE (1ull << 2)
#define QCOW2_INCOMPAT_COMPRESSION (1ull << 3)
#define QCOW2_INCOMPAT_EXTENDED_L2 (1ull << 4)
#define QCOW2_INCOMPAT_KNOWN 0x1full

#define QCOW2_COMPAT_LAZY_REFCOUNTS (1ull << 0)

/* Autoclear features: an unknown one is cleared before the first write. */
#define QCOW2_AUTOCLEAR_BITMAPS (1ull << 0)
#define QCOW2_AUTOCLEAR_RAW_DATA (1ull << 1)

#define QCOW2_CRYPT_NONE 0u
#define QCOW2_CRYPT_AES 1u
#define QCOW2_CRYPT_LUKS 2u

#define QCOW2_COMPRESSION_ZLIB 0u
#define QCOW2_COMPRESSION_ZSTD 1u

/* Header extensions, each 8 byte aligned, after header_length. */
struct qcow2_disk_ext {
	__be32 type;
	__be32 len;
};

#define QCOW2_EXT_END 0x00000000u
#define QCOW2_EXT_BACKING_FORMAT 0xe2792acau
#define QCOW2_EXT_FEATURE_NAMES 0x6803f857u
#define QCOW2_EXT_BITMAPS 0x23852875u
#define QCOW2_EXT_CRYPTO 0x0537be77u
#define QCOW2_EXT_DATA_FILE 0x44415441u

struct qcow2_disk_feature_name {
	__u8 type; /* 0 incompatible, 1 compatible, 2 autoclear */
	__u8 bit;
	char name[46];
};
static_assert(sizeof(struct qcow2_disk_feature_name) == 48, "feature name entry");

/* Snapshot table entry: header, extra data, id, name, padding to 8 bytes. */
struct qcow2_disk_snapshot {
	__be64 l1_table_offset;
	__be32 l1_size;
	__be16 id_len;
	__be16 name_len;
	__be32 date_sec;
	__be32 date_nsec;
	__be64 vm_clock_nsec;
	__be32 vm_state_size;
	__be32 extra_len;
} __attribute__((packed));
static_assert(sizeof(struct qcow2_disk_snapshot) == 40, "snapshot header");

/* LUKS header extension: where the encryption header lies in the file. */
struct qcow2_disk_crypto {
	__be64 offset;
	__be64 length;
};

/* Bitmap directory entry: this, extra data (none is defined), name, padding to 8 bytes. */
struct qcow2_disk_bitmap {
	__be64 table_offset;
	__be32 table_size; /* entries */
	__be32 flags;
	__u8 type;
	__u8 granularity_bits;
	__be16 name_size;
	__be32 extra_data_size;
};
static_assert(sizeof(struct qcow2_disk_bitmap) == 24, "bitmap directory entry");

#define QCOW2_MAX_BITMAP_NAME 1023u
#define QCOW2_MAX_BITMAP_TABLE 0x8000000u /* entries */
#define QCOW2_MIN_GRANULARITY_BITS 9
#define QCOW2_MAX_GRANULARITY_BITS 31
#define QCOW2_BITMAP_IN_USE 1u
#define QCOW2_BITMAP_FLAGS_RESERVED 0xfffffff8u
#define QCOW2_BITMAP_OFFSET_MASK 0x00fffffffffffe00ull /* bitmap table entry */
#define QCOW2_BITMAP_RESERVED 0xff000000000001feull

/* L1 entry ("L1 table entry"), L2 entry ("L2 table entry", standard and compressed). */
#define QCOW2_L1_OFFSET_MASK 0x00fffffffffffe00ull
#define QCOW2_L1_RESERVED 0x7f000000000001ffull
#define QCOW2_L2_OFFSET_MASK 0x00fffffffffffe00ull
#define QCOW2_L2_RESERVED 0x3f000000000001feull
#define QCOW2_COPIED (1ull << 63)
#define QCOW2_L2_COMPRESSED (1ull << 62)
#define QCOW2_L2_ZERO (1ull << 0) /* version 3 only */

#define QCOW2_REFTABLE_RESERVED 0x1ffull

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* compressed.h - compressed clusters for the images of memimg.h, made by zlib itself. */
#ifndef TESTS_COMPRESSED_H
#define TESTS_COMPRESSED_H

#include "memimg.h"
#include <zlib.h>

/* Put a compressed cluster of bytes @fill at @guest; its L2 table exists. */
static inline void disk_compressed(struct disk *d, uint64_t guest, int fill)
{
	uint64_t cs = disk_cluster(d), host = disk_append(d), sectors;
	uint8_t plain[65536], packed[65536];
	z_stream z = {
		.next_in = plain, .avail_in = (unsigned)cs, .next_out = packed, .avail_out = (unsigned)cs
	};

	assert_true(cs <= sizeof(plain));
	memset(plain, fill, cs);
	assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY), Z_OK);
	assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
	sectors = (z.total_out - 1) / 512;
	disk_put(d, host, packed, z.total_out);
	deflateEnd(&z);
	disk_set_be(d, disk_l2_at(d, guest),
		    QCOW2_L2_COMPRESSED | sectors << (62 - (disk_bits(d) - 8)) | host, 8);
}

#endif

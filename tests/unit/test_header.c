// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The header: every limit accepted at its edge and refused one past it, hostile extensions and names,
 * the feature gate, patching. What qemu-img writes is in test_header_qemu.c.
 */
#include "header_fields.h"
#include "qcow2/header.h"
#include "unit.h"
#include <errno.h>
#include <inttypes.h>

/* Enough for the largest first cluster; the file is said to be this long, too. */
static unsigned char image[2u << 20];
static uint64_t file_size;
static struct qcow2_header h;
static struct qcow2_error err;

/* A valid header: refcount table in cluster 1, L1 table in cluster 3, a file of @clusters clusters. */
static void fresh(unsigned version, unsigned cluster_bits, uint64_t clusters)
{
	memset(image, 0, sizeof(image));
	memcpy(image, "QFI\xfb", 4);
	put32(image, VERSION, version);
	put32(image, CLUSTER_BITS, cluster_bits);
	put64(image, SIZE, 1 << 20);
	put32(image, L1_SIZE, cluster_bits == 9 ? 32 : cluster_bits == 10 ? 8 : cluster_bits == 11 ? 2 : 1);
	put64(image, L1_OFFSET, 3ull << cluster_bits);
	put64(image, RT_OFFSET, 1ull << cluster_bits);
	put32(image, RT_CLUSTERS, 1);
	if (version == 3) {
		put32(image, REFCOUNT_ORDER, 4);
		put32(image, HEADER_LENGTH, 112);
	}
	file_size = clusters << cluster_bits;
}

static int parse(void)
{
	memset(&err, 0, sizeof(err));
	return header_parse(&h, image, sizeof(image), file_size, "disk.qcow2", &err);
}

static void ok(void)
{
	int ret = parse();

	if (ret)
		fail_msg("refused: %s", err.text);
	assert_string_equal(err.text, "");
}

/* Refused, and the message names the image and says @what. */
static void refused(const char *what)
{
	assert_int_equal(parse(), -EINVAL);
	assert_ptr_equal(strstr(err.text, "disk.qcow2: "), err.text);
	if (!strstr(err.text, what))
		fail_msg("\"%s\" does not say \"%s\"", err.text, what);
}

static size_t peek(size_t len)
{
	void *copy = exact_copy(image, len);
	size_t ret;

	memset(&err, 0, sizeof(err));
	ret = header_peek(copy, len, "disk.qcow2", &err);
	assert_int_equal(!ret, err.text[0] != 0);
	free(copy);
	return ret;
}

static void peek_answers(void **state)
{
	unsigned bits;

	for (bits = 9; bits <= 21; bits++) {
		fresh(3, bits, 4);
		assert_int_equal(peek(72), 1u << bits);
		assert_int_equal(peek(512), 1u << bits);
		fresh(2, bits, 4);
		assert_int_equal(peek(72), 1u << bits);
	}
	assert_int_equal(peek(71), 0);
	assert_non_null(strstr(err.text, "cut off after 71 bytes"));
	assert_int_equal(peek(3), 0);
	assert_string_equal(err.text, "disk.qcow2: not a qcow2 image (no QFI magic)");
	assert_int_equal(peek(0), 0);
	image[3] = 0xfa;
	assert_int_equal(peek(512), 0);
	assert_string_equal(err.text, "disk.qcow2: not a qcow2 image (no QFI magic)");
}

static void versions(void **state)
{
	fresh(2, 16, 4);
	ok();
	assert_int_equal(h.geo.version, 2);
	fresh(3, 16, 4);
	ok();
	assert_int_equal(h.geo.version, 3);
	put32(image, VERSION, 0);
	refused("header: version is 0, must be 2 or 3");
	put32(image, VERSION, 1);
	refused("header: version is 1, must be 2 or 3 (this is a qcow image");
	put32(image, VERSION, 4);
	refused("header: version is 4, must be 2 or 3");
	put32(image, VERSION, UINT32_MAX);
	refused("version is 4294967295");
}

static void cluster_bits(void **state)
{
	fresh(3, 9, 4);
	ok();
	fresh(3, 21, 4);
	ok();
	fresh(3, 16, 4);
	put32(image, CLUSTER_BITS, 8);
	refused("header: cluster_bits is 8, must be 9 to 21");
	put32(image, CLUSTER_BITS, 22);
	refused("header: cluster_bits is 22, must be 9 to 21");
	put32(image, CLUSTER_BITS, 0);
	refused("cluster_bits is 0");
	put32(image, CLUSTER_BITS, UINT32_MAX);
	refused("cluster_bits is 4294967295");
}

static void fields(void **state)
{
	fresh(3, 16, 10);
	put64(image, SIZE, (1 << 20) + 700);
	put32(image, L1_SIZE, 3);
	put32(image, CRYPT, 2);
	put32(image, NB_SNAPSHOTS, 2);
	put64(image, SNAPSHOTS_OFFSET, 5 << 16);
	put64(image, INCOMPATIBLE, 0x13);
	put64(image, COMPATIBLE, 0x8000000000000001ull);
	put64(image, AUTOCLEAR, 0x4000000000000002ull);
	put32(image, REFCOUNT_ORDER, 6);
	ok();
	assert_int_equal(h.disk_size, (1 << 20) + 700);
	assert_int_equal(h.geo.size, (1 << 20) + 512);
	assert_int_equal(h.geo.cluster_bits, 16);
	assert_int_equal(h.geo.cluster_size, 65536);
	assert_int_equal(h.geo.refcount_order, 6);
	assert_int_equal(h.geo.rb_bits, 13);
	assert_int_equal(h.l1_entries, 3);
	assert_int_equal(h.l1_offset, 3 << 16);
	assert_int_equal(h.rt_offset, 1 << 16);
	assert_int_equal(h.rt_clusters, 1);
	assert_int_equal(h.crypt_method, 2);
	assert_int_equal(h.nb_snapshots, 2);
	assert_int_equal(h.snapshots_offset, 5 << 16);
	assert_true(h.incompatible == 0x13);
	assert_true(h.compatible == 0x8000000000000001ull);
	assert_true(h.autoclear == 0x4000000000000002ull);
	assert_int_equal(h.header_length, 112);
	assert_int_equal(h.unknown_incompat_bit, -1);
	assert_string_equal(h.backing_name, "");
	assert_string_equal(h.backing_format, "");
	assert_false(h.has_data_file_name);
}

/* A version 2 header ends at 72: what follows is an extension, not feature words. */
static void version2(void **state)
{
	fresh(2, 16, 4);
	put32(image, 72, 0xe2792aca);
	put32(image, 76, 3);
	memcpy(image + 80, "raw", 3);
	ok();
	assert_string_equal(h.backing_format, "raw");
	assert_true(h.incompatible == 0 && h.compatible == 0 && h.autoclear == 0);
	assert_int_equal(h.geo.refcount_order, 4);
	assert_int_equal(h.header_length, 72);
	assert_int_equal(h.compression, 0);
}

static void header_length(void **state)
{
	unsigned len;

	fresh(3, 9, 4);
	for (len = 0; len <= 600; len++) {
		put32(image, HEADER_LENGTH, len);
		if (len >= 104 && len <= 512 && len % 8 == 0)
			ok();
		else
			refused("header_length is ");
	}
	put32(image, HEADER_LENGTH, UINT32_MAX - 7);
	refused("header_length is 4294967288, must be a multiple of 8 from 104 to 512");
}

static void compression_type(void **state)
{
	fresh(3, 16, 4);
	image[COMPRESSION] = 1;
	put64(image, INCOMPATIBLE, 1 << 3);
	ok();
	assert_int_equal(h.compression, 1);
	image[COMPRESSION] = 0;
	refused("compression_type is 0 but incompatible feature bit 3 is set");
	image[COMPRESSION] = 2;
	refused("compression_type is 2, must be 0 (zlib) or 1 (zstd)");
	put64(image, INCOMPATIBLE, 0);
	image[COMPRESSION] = 1;
	refused("compression_type is 1 but incompatible feature bit 3 is not set");

	/* with a 104 byte header the byte belongs to an extension (here: an END with a length) */
	fresh(3, 16, 4);
	put32(image, HEADER_LENGTH, 104);
	put32(image, 104, 0x01020304);
	ok();
	assert_int_equal(h.compression, 0);
	put64(image, INCOMPATIBLE, 1 << 3);
	refused("incompatible feature bit 3 is set");
}

static void refcount_order(void **state)
{
	unsigned order;

	fresh(3, 16, 4);
	for (order = 0; order <= 6; order++) {
		put32(image, REFCOUNT_ORDER, order);
		ok();
		assert_int_equal(h.geo.refcount_order, order);
		assert_int_equal(h.geo.rb_bits, 19 - order);
	}
	put32(image, REFCOUNT_ORDER, 7);
	refused("refcount_order is 7, must be 0 to 6");
	put32(image, REFCOUNT_ORDER, UINT32_MAX);
	refused("refcount_order is 4294967295");
}

static void extended_l2_clusters(void **state)
{
	fresh(3, 14, 4);
	put64(image, INCOMPATIBLE, 1 << 4);
	ok();
	fresh(3, 13, 4);
	put64(image, INCOMPATIBLE, 1 << 4);
	refused("cluster_bits is 13, must be at least 14");
}

static void refcount_table(void **state)
{
	unsigned bits;

	for (bits = 9; bits <= 21; bits++) { /* 8 MiB and no more */
		fresh(3, bits, 4 + (8u << 20 >> bits));
		put64(image, RT_OFFSET, 4ull << bits);
		put32(image, RT_CLUSTERS, 8u << 20 >> bits);
		ok();
		put32(image, RT_CLUSTERS, (8u << 20 >> bits) + 1);
		refused("refcount_table_clusters is ");
	}
	put32(image, RT_CLUSTERS, 0);
	refused("refcount_table_clusters is 0, must be 1 to 4");
	put32(image, RT_CLUSTERS, UINT32_MAX);
	refused("refcount_table_clusters is 4294967295");
	fresh(3, 16, 4);
	put64(image, RT_OFFSET, (1 << 16) + 512);
	refused("refcount table at 66048 (1 clusters) is not cluster aligned");
	put64(image, RT_OFFSET, 0);
	refused("refcount table at 0 (1 clusters) is inside the header cluster");
}

static void l1_limits(void **state)
{
	fresh(3, 16, 600); /* 32 MiB = 512 clusters */
	put32(image, L1_SIZE, 4u << 20);
	ok();
	put32(image, L1_SIZE, (4u << 20) + 1);
	refused("l1_size is 4194305, must be at most 4194304");
	put32(image, L1_SIZE, UINT32_MAX);
	refused("l1_size is 4294967295");

	fresh(3, 16, 4); /* 512 MiB per entry */
	put64(image, SIZE, 2ull << 29);
	put32(image, L1_SIZE, 2);
	ok();
	put64(image, SIZE, (2ull << 29) + 1);
	refused("l1_size is 2, must be at least 3 for a disk of 1073741825 bytes");
	put64(image, SIZE, UINT64_MAX);
	refused("l1_size is 2, must be at least 34359738368");
	put64(image, L1_OFFSET, (3 << 16) + 8);
	put64(image, SIZE, 1 << 20);
	refused("L1 table at 196616 (2 entries) is not cluster aligned");
	put64(image, L1_OFFSET, 0);
	refused("L1 table at 0 (2 entries) is inside the header cluster");
	put32(image, L1_SIZE, 0);
	refused("l1_size is 0, must be at least 1");
	put64(image, SIZE, 0);
	ok(); /* an empty disk needs no table */
}

static void snapshot_table(void **state)
{
	fresh(3, 16, 100);
	put64(image, SNAPSHOTS_OFFSET, 50 << 16);
	put32(image, NB_SNAPSHOTS, 65536); /* 2.5 MiB at least = 40 clusters */
	ok();
	put32(image, NB_SNAPSHOTS, 65537);
	refused("nb_snapshots is 65537, must be at most 65536");
	put32(image, NB_SNAPSHOTS, UINT32_MAX);
	refused("nb_snapshots is 4294967295");
	put32(image, NB_SNAPSHOTS, 65536);
	put64(image, SNAPSHOTS_OFFSET, 60 << 16);
	ok();
	put64(image, SNAPSHOTS_OFFSET, 61 << 16);
	refused("snapshot table at 3997696 (65536 snapshots) is beyond the end of the file");

	put32(image, NB_SNAPSHOTS, 0); /* checked even then */
	ok();
	put64(image, SNAPSHOTS_OFFSET, 101 << 16);
	refused("snapshot table at 6619136 (0 snapshots) is beyond the end of the file");
	put64(image, SNAPSHOTS_OFFSET, (50 << 16) + 8);
	refused("is not cluster aligned");
	put64(image, SNAPSHOTS_OFFSET, 0);
	ok();
	put32(image, NB_SNAPSHOTS, 1);
	refused("is inside the header cluster");
}

/* Every table, at offsets that lie at, just past and absurdly far past the end of the file. */
static void tables_inside_file(void **state)
{
	static const unsigned at[] = { L1_OFFSET, RT_OFFSET, SNAPSHOTS_OFFSET };
	static const uint64_t bad[] = {
		10ull << 16, 1ull << 40, 1ull << 56, 1ull << 62, 1ull << 63, -65536ull
	};
	unsigned t, i;

	for (t = 0; t < COUNT(at); t++) {
		fresh(3, 16, 10);
		put32(image, NB_SNAPSHOTS, 1);
		put64(image, SNAPSHOTS_OFFSET, 4 << 16);
		put64(image, at[t], 9 << 16);
		ok();
		file_size -= 65535; /* the last cluster is only partly there */
		ok();
		file_size -= 1;
		refused("is beyond the end of the file");
		for (i = 0; i < COUNT(bad); i++) {
			file_size = 10 << 16;
			put64(image, at[t], bad[i]);
			refused("is beyond the end of the file");
			file_size = bad[i]; /* even a file that large: host offsets end at 2^56 */
			refused("is beyond the end of the file");
		}
		put64(image, at[t], (1ull << 56) - 65536); /* the last cluster a pointer can name */
		file_size = 1ull << 60;
		ok();
		file_size = UINT64_MAX;
		ok();
		put64(image, at[t], 1ull << 56);
		refused("is beyond the end of the file");
	}
}

static void backing_name(void **state)
{
	char want[1024];

	fresh(3, 16, 4);
	put32(image, BACKING_SIZE, UINT32_MAX); /* undefined without an offset */
	ok();
	assert_string_equal(h.backing_name, "");

	memset(want, 'n', 1023);
	want[1023] = 0;
	put64(image, BACKING_OFFSET, 65536 - 1023);
	put32(image, BACKING_SIZE, 1023);
	memset(image + 65536 - 1023, 'n', 1023);
	ok(); /* ends with the cluster, not terminated */
	assert_string_equal(h.backing_name, want);
	put64(image, BACKING_OFFSET, 65536 - 1022);
	refused("backing_file_size is 1023, the name at 64514 leaves the first cluster");
	put64(image, BACKING_OFFSET, 60000);
	put32(image, BACKING_SIZE, 1024);
	refused("backing_file_size is 1024, must be at most 1023");
	put32(image, BACKING_SIZE, UINT32_MAX);
	refused("backing_file_size is 4294967295");

	memcpy(image + 120, "base.img", 9);
	put64(image, BACKING_OFFSET, 120);
	put32(image, BACKING_SIZE, 8);
	ok();
	assert_string_equal(h.backing_name, "base.img");
	put32(image, BACKING_SIZE, 9);
	refused("contains a NUL byte");
	put32(image, BACKING_SIZE, 0);
	ok();
	assert_string_equal(h.backing_name, "");
	put64(image, BACKING_OFFSET, 65536); /* empty, at the very end */
	ok();
	put64(image, BACKING_OFFSET, 65537);
	refused("backing_file_offset is 65537, must be 112 to 65536");
	put64(image, BACKING_OFFSET, UINT64_MAX);
	refused("backing_file_offset is 18446744073709551615");
	put64(image, BACKING_OFFSET, 111); /* in the header itself */
	refused("backing_file_offset is 111");
}

static size_t ext(size_t pos, uint32_t type, const void *data, uint32_t len)
{
	put32(image, pos, type);
	put32(image, pos + 4, len);
	memcpy(image + pos + 8, data, len);
	return pos + 8 + ((len + 7) & ~7u);
}

static void extensions(void **state)
{
	size_t pos;

	fresh(3, 16, 4);
	pos = ext(112, 0x12345678, "unknown", 7);
	pos = ext(pos, 0xe2792aca, "qcow2", 5);
	pos = ext(pos, 0x44415441, "data", 4);
	pos = ext(pos, 0x0537be77, "0123456789abcdef", 16);
	pos = ext(pos, 0, "", 0);
	put32(image, pos, 0xffffffff); /* not looked at any more */
	put32(image, pos + 4, 0xffffffff);
	ok();
	assert_string_equal(h.backing_format, "qcow2");
	assert_true(h.has_data_file_name);

	fresh(3, 16, 4);
	ext(112, 0xe2792aca, "a\nb\0\x1b[31m\x80", 10); /* odd: escaped */
	ok();
	assert_string_equal(h.backing_format, "a\\x0ab\\x00\\x1b[31m\\x80");
	ext(112, 0xe2792aca, "0123456789012345678901234567890123456789", 40); /* long: cut */
	ok();
	assert_string_equal(h.backing_format, "0123456789012345678901234567890");
}

/* The area ends at the backing file name, else with the first cluster; lengths must fit in it. */
static void extension_limits(void **state)
{
	fresh(3, 9, 4);
	put32(image, 112, 0x11111111);
	put32(image, 116, 512 - 120);
	ok(); /* fills the cluster; no END needed */
	put32(image, 116, 512 - 119);
	refused("extension 0x11111111 is 393 bytes, only 392 remain");
	put32(image, 116, UINT32_MAX);
	refused("extension 0x11111111 is 4294967295 bytes, only 392 remain");
	put32(image, 116, UINT32_MAX - 6); /* would round up to 0 */
	refused("only 392 remain");
	put32(image, 112, 0);
	put32(image, 116, 512 - 119);
	refused("extension 0x00000000 is 393 bytes");

	fresh(3, 9, 4);
	put64(image, BACKING_OFFSET, 152);
	put32(image, BACKING_SIZE, 4);
	memcpy(image + 152, "base", 4);
	put32(image, 112, 0x11111111);
	put32(image, 116, 32);
	ok();
	put32(image, 116, 33);
	refused("extension 0x11111111 is 33 bytes, only 32 remain");
	put64(image, BACKING_OFFSET, 112); /* no area at all */
	memcpy(image + 112, "base", 4);
	ok();
	put64(image, BACKING_OFFSET, 119); /* 7 bytes are no extension */
	memcpy(image + 119, "base", 4);
	refused("extension at 112 is cut off, 7 bytes remain");
	put64(image, BACKING_OFFSET, 120);
	memcpy(image + 120, "base", 4);
	put64(image, 112, 0);
	ok();
}

static void bitmaps_extension(void **state)
{
	unsigned char data[32] = { 0 };

	fresh(3, 16, 8);
	put32(data, 0, 65535);
	put64(data, 8, 2 << 16); /* directory size */
	put64(data, 16, 6 << 16); /* and place: ends with the file */
	ext(112, 0x23852875, data, 24);
	ok();
	assert_int_equal(h.nb_bitmaps, 0); /* stale: the autoclear bit is not set */
	put64(image, AUTOCLEAR, 1);
	ok();
	assert_int_equal(h.nb_bitmaps, 65535);
	assert_int_equal(h.bitmap_dir_offset, 6 << 16);
	assert_int_equal(h.bitmap_dir_size, 2 << 16);

	put32(image, 120, 65536);
	refused("nb_bitmaps is 65536, must be 1 to 65535");
	put32(image, 120, 0);
	refused("nb_bitmaps is 0");
	put32(image, 120, 1);
	put64(image, 128, (2 << 16) + 1);
	refused("bitmap directory at 393216 (131073 bytes) is beyond the end of the file");
	put64(image, 128, UINT64_MAX);
	refused("is larger than allowed");
	put64(image, 128, 64);
	put64(image, 136, (6 << 16) + 512);
	refused("is not cluster aligned");
	ext(112, 0x23852875, data, 23);
	refused("bitmaps extension is 23 bytes, must be 24");
	ext(112, 0x23852875, data, 32);
	refused("bitmaps extension is 32 bytes");
	put64(image, AUTOCLEAR, 0);
	ok();
}

static void crypto_extension(void **state)
{
	unsigned char data[24] = { 0 };

	fresh(3, 16, 8);
	put64(data, 0, 5 << 16);
	put64(data, 8, 3 << 16); /* ends with the file */
	ext(112, 0x0537be77, data, 16);
	ok();
	assert_int_equal(h.crypto_offset, 0); /* only LUKS has one */
	put32(image, CRYPT, 2);
	ok();
	assert_int_equal(h.crypto_offset, 5 << 16);
	assert_int_equal(h.crypto_length, 3 << 16);
	put64(image, 128, (3 << 16) + 1);
	refused("LUKS header at 327680 (196609 bytes) is beyond the end of the file");
	put64(image, 128, UINT64_MAX);
	refused("is beyond the end of the file");
	put64(image, 128, 512);
	put64(image, 120, (5 << 16) + 512);
	refused("is not cluster aligned");
	ext(112, 0x0537be77, data, 15);
	refused("LUKS extension is 15 bytes, must be 16");
	ext(112, 0x0537be77, data, 17);
	refused("LUKS extension is 17 bytes");
}

/* One entry of the feature name table. */
static void feature(unsigned char *at, unsigned type, unsigned bit, const char *name)
{
	memset(at, 0, 48);
	at[0] = (unsigned char)type;
	at[1] = (unsigned char)bit;
	memcpy(at + 2, name, strlen(name) < 46 ? strlen(name) : 46);
}

static void feature_names(void **state)
{
	unsigned char table[48 * 4 + 20] = { 0 };

	fresh(3, 16, 4);
	put64(image, INCOMPATIBLE, 1ull << 63 | 1 << 9);
	ok();
	assert_int_equal(h.unknown_incompat_bit, 9); /* the lowest */
	assert_string_equal(h.unknown_incompat_name, "");

	feature(table, 1, 9, "compatible nine");
	feature(table + 48, 0, 63, "sixty-three");
	feature(table + 96, 0, 9, "time\x1btravel");
	feature(table + 144, 2, 9, "autoclear nine");
	ext(112, 0x6803f857, table, sizeof(table)); /* the 20 bytes at the end are no entry */
	ok();
	assert_string_equal(h.unknown_incompat_name, "time\\x1btravel");
	feature(table + 96, 0, 9, "0123456789012345678901234567890123456789012345"); /* 46: unterminated */
	ext(112, 0x6803f857, table, sizeof(table));
	ok();
	assert_string_equal(h.unknown_incompat_name, "0123456789012345678901234567890123456789012345");
}

/* At every length below one cluster: an error, no crash, no read past the end (heap copy, ASan). */
static void truncated(void **state)
{
	size_t len;

	fresh(3, 9, 4);
	put64(image, BACKING_OFFSET, 500);
	put32(image, BACKING_SIZE, 12);
	memset(image + 500, 'b', 12);
	ext(112, 0xe2792aca, "qcow2", 5);
	for (len = 0; len <= 512; len++) {
		void *copy = exact_copy(image, len);

		memset(&err, 0, sizeof(err));
		assert_int_equal(header_parse(&h, copy, len, len, "disk.qcow2", &err), -EINVAL);
		assert_string_not_equal(err.text, "");
		memset(&err, 0, sizeof(err));
		assert_int_equal(header_parse(&h, copy, len, file_size, "disk.qcow2", &err),
				 len < 512 ? -EINVAL : 0);
		free(copy);
	}
	assert_string_equal(h.backing_name, "bbbbbbbbbbbb");
	/* the message may be unwanted */
	assert_int_equal(header_parse(&h, image, 100, file_size, "disk.qcow2", NULL), -EINVAL);
}

/* Hostile bytes all over: whatever is accepted obeys the limits. Deterministic. */
static void random_bytes(void **state)
{
	uint64_t seed = 88172645463325252ull;
	unsigned char *copy, *start;
	unsigned i, j, accepted = 0;

	for (i = 0; i < 200000; i++) {
		if (i % 64 == 0)
			fresh(i & 64 ? 3 : 2, 9, 64);
		start = image;
		copy = exact_copy(start, 512);
		for (j = 0; j < 1 + i % 5; j++) {
			seed ^= seed << 13;
			seed ^= seed >> 7;
			seed ^= seed << 17;
			copy[8 + seed % 160] = (unsigned char)(seed >> 40 & (seed >> 62 ? 0xff : 0x11));
		}
		copy[20] = copy[21] = copy[22] = 0;
		copy[23] = 9;
		if (!header_parse(&h, copy, 512, file_size, "disk.qcow2", NULL)) {
			accepted++;
			assert_true(h.geo.refcount_order <= 6 && h.l1_entries <= 4u << 20);
			assert_true(size_to_l1(&h.geo, h.disk_size) <= h.l1_entries);
			assert_true(h.l1_offset + h.l1_entries * 8ull <= file_size);
			assert_true(h.rt_clusters && h.rt_offset + h.rt_clusters * 512ull <= file_size);
			assert_true(h.nb_snapshots <= 65536 && h.snapshots_offset <= file_size);
			assert_true(strlen(h.backing_name) <= 504);
		}
		free(copy);
	}
	assert_true(accepted > 1000); /* the test reaches behind the first check */
}

/* ---- gate ---- */

static int gate(uint64_t incompatible, bool read_only)
{
	put64(image, INCOMPATIBLE, incompatible);
	ok();
	return header_gate(&h, read_only, "disk.qcow2", &err);
}

static void says(const char *what)
{
	if (!strstr(err.text, what))
		fail_msg("\"%s\" does not say \"%s\"", err.text, what);
}

static void gate_plain(void **state)
{
	fresh(3, 16, 4);
	put64(image, COMPATIBLE, UINT64_MAX); /* never in the way */
	put64(image, AUTOCLEAR, UINT64_MAX & ~3ull);
	assert_int_equal(gate(0, false), 0);
	assert_int_equal(gate(0, true), 0);
	assert_string_equal(err.text, "");
	image[COMPRESSION] = 1;
	assert_int_equal(gate(1 << 3, false), 0);
}

static void gate_dirty_corrupt(void **state)
{
	fresh(3, 16, 4);
	assert_int_equal(gate(1, true), 0);
	assert_int_equal(gate(2, true), 0);
	assert_int_equal(gate(3, true), 0);
	assert_int_equal(gate(1, false), -EUCLEAN);
	says("disk.qcow2: header: ");
	says("dirty");
	says("attach --read-only");
	says("ublk-qcow2 check --repair=all");
	assert_int_equal(gate(2, false), -EUCLEAN);
	says("corrupt");
	says("attach --read-only");
	says("ublk-qcow2 check --repair=all");
}

static void gate_unsupported(void **state)
{
	unsigned bit;

	fresh(3, 16, 4);
	for (bit = 5; bit < 64; bit++) {
		char want[32];

		snprintf(want, sizeof(want), "bit %u ", bit);
		assert_int_equal(gate(1ull << bit, true), -ENOTSUP);
		says(want);
		assert_int_equal(gate(1ull << bit | 3, false), -ENOTSUP);
	}
	assert_int_equal(gate(1 << 2, true), -ENOTSUP);
	says("external data file");
	assert_int_equal(gate(1 << 4, true), -ENOTSUP);
	says("extended L2");
	put64(image, AUTOCLEAR, 2);
	assert_int_equal(gate(0, true), -ENOTSUP);
	says("raw external data");
	put64(image, AUTOCLEAR, 0);
	put32(image, CRYPT, 1);
	assert_int_equal(gate(0, true), -ENOTSUP);
	says("AES");
	put32(image, CRYPT, 2);
	assert_int_equal(gate(0, false), -ENOTSUP);
	says("LUKS");
	put32(image, CRYPT, 3);
	assert_int_equal(gate(0, true), -ENOTSUP);
	says("crypt_method 3");
}

static void gate_names_feature(void **state)
{
	unsigned char table[48];

	fresh(3, 16, 4);
	feature(table, 0, 40, "time travel");
	ext(112, 0x6803f857, table, sizeof(table));
	assert_int_equal(gate(1ull << 40, true), -ENOTSUP);
	says("incompatible feature \"time travel\" (bit 40) is not supported");
}

/* ---- patching ---- */

/* Only bytes [from, to) of @now differ from @before. */
static void only_changed(const unsigned char *before, const unsigned char *now, size_t from, size_t to)
{
	assert_memory_equal(before, now, from);
	assert_memory_equal(before + to, now + to, 512 - to);
}

static void patching(void **state)
{
	unsigned char b[512], before[512];
	unsigned i;

	for (i = 0; i < sizeof(b); i++)
		b[i] = (unsigned char)(i * 7 + 1);
	put32(b, VERSION, 3);
	memcpy(before, b, sizeof(b));
	header_set_reftable(b, 0x1122334455660000ull, 0xa1b2c3d4);
	only_changed(before, b, 48, 60);
	assert_memory_equal(b + 48, "\x11\x22\x33\x44\x55\x66\x00\x00\xa1\xb2\xc3\xd4", 12);

	memcpy(before, b, sizeof(b));
	header_set_features(b, 0x0102030405060708ull, 0x1112131415161718ull);
	only_changed(before, b, 72, 96);
	assert_memory_equal(b + 80, before + 80, 8); /* compatible bits stay */
	assert_memory_equal(b + 72, "\x01\x02\x03\x04\x05\x06\x07\x08", 8);
	assert_memory_equal(b + 88, "\x11\x12\x13\x14\x15\x16\x17\x18", 8);

	put32(b, VERSION, 2); /* no feature words: nothing may change */
	memcpy(before, b, sizeof(b));
	header_set_features(b, UINT64_MAX, UINT64_MAX);
	assert_memory_equal(b, before, 512);
}

/* ---- names ---- */

static void check_escape(size_t size, const char *src, size_t len, const char *want)
{
	char *dst = malloc(size);

	assert_non_null(dst);
	memset(dst, 'X', size);
	escape_name(dst, size, src, len);
	assert_string_equal(dst, want);
	free(dst);
}

static void escaping(void **state)
{
	check_escape(64, "plain name.img", 14, "plain name.img");
	check_escape(64, "", 0, "");
	check_escape(64, "a\0b\n\x1b[2J\x7f~", 10, "a\\x00b\\x0a\\x1b[2J\\x7f~");
	check_escape(64, "\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", 9, "\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80");
	check_escape(64, "\xc2\x9b|\xc2\xa0", 5, "\\xc2\\x9b|\xc2\xa0"); /* C1: CSI */
	check_escape(64, "\x80\xff\xc3", 3, "\\x80\\xff\\xc3"); /* not UTF-8, cut UTF-8 */
	check_escape(64, "\xc0\xaf\xe0\x80\xaf", 5, "\\xc0\\xaf\\xe0\\x80\\xaf"); /* overlong */
	check_escape(64, "\xed\xa0\x80", 3, "\\xed\\xa0\\x80"); /* surrogate */
	check_escape(64, "\xf4\x90\x80\x80", 4, "\\xf4\\x90\\x80\\x80"); /* above U+10FFFF */
	check_escape(1, "abc", 3, "");
	check_escape(3, "abc", 3, "ab");
	check_escape(4, "abc", 3, "abc");
	check_escape(6, "ab\ncd", 5, "ab"); /* never half an escape */
	check_escape(7, "ab\ncd", 5, "ab\\x0a");
	check_escape(3, "a\xc3\xa4", 3, "a"); /* nor half a character */
	check_escape(4, "a\xc3\xa4", 3, "a\xc3\xa4");
}

static void name_in_message_is_escaped(void **state)
{
	fresh(3, 16, 4);
	put32(image, REFCOUNT_ORDER, 9);
	memset(&err, 0, sizeof(err));
	assert_int_equal(header_parse(&h, image, sizeof(image), file_size, "a\x1b[1m\nb", &err), -EINVAL);
	assert_string_equal(err.text, "a\\x1b[1m\\x0ab: header: refcount_order is 9, must be 0 to 6");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(peek_answers),
		cmocka_unit_test(versions),
		cmocka_unit_test(cluster_bits),
		cmocka_unit_test(fields),
		cmocka_unit_test(version2),
		cmocka_unit_test(header_length),
		cmocka_unit_test(compression_type),
		cmocka_unit_test(refcount_order),
		cmocka_unit_test(extended_l2_clusters),
		cmocka_unit_test(refcount_table),
		cmocka_unit_test(l1_limits),
		cmocka_unit_test(snapshot_table),
		cmocka_unit_test(tables_inside_file),
		cmocka_unit_test(backing_name),
		cmocka_unit_test(extensions),
		cmocka_unit_test(extension_limits),
		cmocka_unit_test(bitmaps_extension),
		cmocka_unit_test(crypto_extension),
		cmocka_unit_test(feature_names),
		cmocka_unit_test(truncated),
		cmocka_unit_test(random_bytes),
		cmocka_unit_test(gate_plain),
		cmocka_unit_test(gate_dirty_corrupt),
		cmocka_unit_test(gate_unsupported),
		cmocka_unit_test(gate_names_feature),
		cmocka_unit_test(patching),
		cmocka_unit_test(escaping),
		cmocka_unit_test(name_in_message_is_escaped),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

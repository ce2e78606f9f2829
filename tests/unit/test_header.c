// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The header: every limit accepted at its edge and refused one past it, hostile names, patching. Extensions
 * and the feature gate are in test_header_features.c, what qemu-img writes is in test_header_qemu.c.
 */
#include "header_image.h"
#include <inttypes.h>

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
		cmocka_unit_test(truncated),
		cmocka_unit_test(random_bytes),
		cmocka_unit_test(patching),
		cmocka_unit_test(escaping),
		cmocka_unit_test(name_in_message_is_escaped),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

// SPDX-License-Identifier: GPL-2.0-or-later
/* Header extensions, hostile ones too, and the feature gate. */
#include "header_image.h"

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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(extensions),	      cmocka_unit_test(extension_limits),
		cmocka_unit_test(bitmaps_extension),  cmocka_unit_test(crypto_extension),
		cmocka_unit_test(feature_names),      cmocka_unit_test(gate_plain),
		cmocka_unit_test(gate_dirty_corrupt), cmocka_unit_test(gate_unsupported),
		cmocka_unit_test(gate_names_feature),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

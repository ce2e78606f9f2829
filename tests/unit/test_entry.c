// SPDX-License-Identifier: GPL-2.0-or-later
/* Words of L1, L2, refcount table and refcount blocks: every flag combination, every width. */
#include "qcow2/entry.h"
#include "unit.h"

#define ZERO 1ull
#define COPIED (1ull << 63)
#define COMPRESSED (1ull << 62)

static struct geometry geometry(unsigned version, unsigned cluster_bits, unsigned refcount_order)
{
	struct geometry g = { .version = version,
			      .cluster_bits = cluster_bits,
			      .refcount_order = refcount_order };

	geometry_init(&g);
	return g;
}

static void loads(void **state)
{
	const unsigned char b[] = { 0xff, 1, 2, 3, 4, 5, 6, 7, 8 };
	unsigned char table[16] = { 0 };

	assert_int_equal(load_be16(b + 1), 0x0102);
	assert_int_equal(load_be32(b + 1), 0x01020304);
	assert_int_equal(load_be64(b + 1), 0x0102030405060708ull);
	table_set(table, 1, 0x1122334455667788ull);
	assert_int_equal(table[7], 0);
	assert_int_equal(table[8], 0x11);
	assert_int_equal(table[15], 0x88);
	assert_int_equal(table_get(table, 1), 0x1122334455667788ull);
	assert_int_equal(table_get(table, 0), 0);
}

static void l1_words(void **state)
{
	struct geometry g = geometry(3, 16, 4);
	uint64_t l2;
	bool copied;
	unsigned bit;

	assert_true(l1_decode(&g, 0, &l2, &copied));
	assert_int_equal(l2, 0);
	assert_false(copied);
	assert_true(l1_decode(&g, 0x30000, &l2, &copied));
	assert_int_equal(l2, 0x30000);
	assert_false(copied);
	assert_true(l1_decode(&g, COPIED | 0x30000, &l2, &copied));
	assert_int_equal(l2, 0x30000);
	assert_true(copied);
	assert_true(l1_encode(0x30000) == (COPIED | 0x30000));
	assert_false(l1_decode(&g, COPIED, &l2, &copied)); /* QEMU aborts on this one */
	for (bit = 0; bit < 63; bit++) /* reserved bits and offsets inside a cluster */
		assert_int_equal(l1_decode(&g, 0x30000ull ^ (1ull << bit), &l2, &copied),
				 bit >= 16 && bit < 56);
}

struct l2_case {
	uint64_t word;
	enum extent_kind v3, v2;
	uint64_t host;
	bool copied;
};

static void l2_flags(void **state)
{
	static const struct l2_case cases[] = {
		{ 0, EXT_UNALLOCATED, EXT_UNALLOCATED, 0, false },
		{ ZERO, EXT_ZERO, EXT_INVALID, 0, false },
		{ 0x50000, EXT_DATA, EXT_DATA, 0x50000, false },
		{ 0x50000 | ZERO, EXT_ZERO_ALLOC, EXT_INVALID, 0x50000, false },
		{ 0x50000 | COPIED, EXT_DATA, EXT_DATA, 0x50000, true },
		{ 0x50000 | COPIED | ZERO, EXT_ZERO_ALLOC, EXT_INVALID, 0x50000, true },
		/* COPIED without a cluster means nothing: QEMU ignores it and calls the image clean */
		{ COPIED, EXT_UNALLOCATED, EXT_UNALLOCATED, 0, false },
		{ COPIED | ZERO, EXT_ZERO, EXT_INVALID, 0, false },
		{ 0x00ffffffffff0000ull, EXT_DATA, EXT_DATA, 0x00ffffffffff0000ull, false },
	};
	struct geometry v3 = geometry(3, 16, 4), v2 = geometry(2, 16, 4);
	struct l2_entry e;
	unsigned i;

	for (i = 0; i < COUNT(cases); i++) {
		e = l2_decode(&v3, cases[i].word);
		assert_int_equal(e.kind, cases[i].v3);
		assert_int_equal(e.host, cases[i].host);
		assert_int_equal(e.copied, cases[i].copied);
		assert_int_equal(l2_decode(&v2, cases[i].word).kind, cases[i].v2);
	}
}

static void l2_bad_bits(void **state)
{
	struct geometry g = geometry(3, 16, 4), small = geometry(3, 9, 4);
	unsigned bit;

	for (bit = 1; bit < 62; bit++) {
		enum extent_kind want = bit >= 16 && bit < 56 ? EXT_DATA : EXT_INVALID;

		assert_int_equal(l2_decode(&g, (1ull << 55 | 1ull << 16) ^ (1ull << bit)).kind, want);
		want = bit >= 9 && bit < 56 ? EXT_DATA : EXT_INVALID;
		assert_int_equal(l2_decode(&small, (1ull << 55 | 1ull << 9) ^ (1ull << bit)).kind, want);
	}
}

static void l2_round_trip(void **state)
{
	struct geometry g = geometry(3, 16, 4);
	struct l2_entry e = l2_decode(&g, l2_encode(EXT_DATA, 0x70000));

	assert_int_equal(e.kind, EXT_DATA);
	assert_int_equal(e.host, 0x70000);
	assert_true(e.copied);
	e = l2_decode(&g, l2_encode(EXT_ZERO_ALLOC, 0x70000));
	assert_int_equal(e.kind, EXT_ZERO_ALLOC);
	assert_int_equal(e.host, 0x70000);
	assert_true(e.copied);
	assert_int_equal(l2_encode(EXT_ZERO, 0), 1);
	assert_int_equal(l2_encode(EXT_UNALLOCATED, 0), 0);
}

/* Descriptors: host offset in the low x bits, sectors - 1 above, x = 62 - (cluster_bits - 8). */
static void compressed_examples(void **state)
{
	static const struct {
		unsigned cluster_bits;
		uint64_t word, host;
		uint32_t clen;
	} good[] = {
		{ 16, COMPRESSED | 0x50000, 0x50000, 512 }, /* x = 54 */
		{ 16, COMPRESSED | 1ull << 54 | 0x50000, 0x50000, 1024 },
		{ 16, COMPRESSED | 1ull << 54 | 0x500ff, 0x500ff, 1024 - 0xff },
		{ 16, COMPRESSED | 0x501ff, 0x501ff, 1 }, /* the last byte of a sector */
		{ 16, COMPRESSED | 0xffull << 54 | 0x50000, 0x50000, 131072 },
		{ 16, COMPRESSED | ((1ull << 54) - 1), (1ull << 54) - 1, 1 },
		{ 9, COMPRESSED | 1ull << 61 | 0x1234, 0x1234, 1024 - 0x34 }, /* x = 61: one bit of length */
		{ 9, COMPRESSED | 0x1200, 0x1200, 512 },
		{ 21, COMPRESSED | 0x1fffull << 49 | 0x200000, 0x200000, 4u << 20 }, /* x = 49 */
		{ 21, COMPRESSED | 0x0fffull << 49 | 0x200001, 0x200001, (2u << 20) - 1 },
		{ 21, COMPRESSED | ((1ull << 49) - 512), (1ull << 49) - 512, 512 },
		{ 21, COMPRESSED | 1ull << 49 | 1, 1, 1023 },
	};
	struct l2_entry e;
	unsigned i;

	for (i = 0; i < COUNT(good); i++) {
		struct geometry g = geometry(i & 1 ? 2 : 3, good[i].cluster_bits, 4);

		e = l2_decode(&g, good[i].word);
		assert_int_equal(e.kind, EXT_COMPRESSED);
		assert_int_equal(e.host, good[i].host);
		assert_int_equal(e.clen, good[i].clen);
		assert_false(e.copied);
	}
}

static void compressed_invalid(void **state)
{
	struct geometry g = geometry(3, 16, 4), small = geometry(3, 9, 4);

	assert_int_equal(l2_decode(&g, COMPRESSED | COPIED | 0x50000).kind, EXT_INVALID);
	assert_int_equal(l2_decode(&g, COMPRESSED).kind, EXT_INVALID); /* host 0 is the header */
	/* with small clusters the field reaches beyond the largest host offset */
	assert_int_equal(l2_decode(&small, COMPRESSED | ((1ull << 56) - 1)).kind, EXT_COMPRESSED);
	assert_int_equal(l2_decode(&small, COMPRESSED | 1ull << 56).kind, EXT_INVALID);
}

static void refcount_table_words(void **state)
{
	struct geometry g = geometry(3, 16, 4);
	uint64_t rb;
	unsigned bit;

	assert_true(rt_decode(&g, 0, &rb));
	assert_int_equal(rb, 0);
	assert_true(rt_decode(&g, 0x20000, &rb));
	assert_int_equal(rb, 0x20000);
	for (bit = 0; bit < 64; bit++)
		assert_int_equal(rt_decode(&g, 0x20000ull ^ (1ull << bit), &rb), bit >= 16 && bit < 56);
}

/* Bit order by hand: below 8 bits the first refcount is in the least significant bits. */
static void refcount_layout(void **state)
{
	_Alignas(8) const unsigned char block[64] = { 0x81, 0xe4, 0x12, 0x34, 0, 0, 0, 9,
						      1,    0,	  0,	0,    0, 0, 0, 2 };
	struct geometry g = geometry(3, 16, 0);

	assert_int_equal(refcount_decode(&g, block, 0), 1);
	assert_int_equal(refcount_decode(&g, block, 1), 0);
	assert_int_equal(refcount_decode(&g, block, 7), 1);
	g = geometry(3, 16, 1);
	assert_int_equal(refcount_decode(&g, block, 4), 0);
	assert_int_equal(refcount_decode(&g, block, 5), 1);
	assert_int_equal(refcount_decode(&g, block, 6), 2);
	assert_int_equal(refcount_decode(&g, block, 7), 3);
	g = geometry(3, 16, 2);
	assert_int_equal(refcount_decode(&g, block, 4), 2);
	assert_int_equal(refcount_decode(&g, block, 5), 1);
	g = geometry(3, 16, 3);
	assert_int_equal(refcount_decode(&g, block, 1), 0xe4);
	g = geometry(3, 16, 4);
	assert_int_equal(refcount_decode(&g, block, 1), 0x1234);
	g = geometry(3, 16, 5);
	assert_int_equal(refcount_decode(&g, block, 1), 9);
	g = geometry(3, 16, 6);
	assert_int_equal(refcount_decode(&g, block, 1), 0x0100000000000002ull);
}

static void refcount_round_trip(void **state)
{
	_Alignas(8) unsigned char block[512];
	unsigned order, i, j, count;

	for (order = 0; order <= 6; order++) {
		struct geometry g = geometry(3, 9, order);

		count = 1u << g.rb_bits;
		assert_int_equal(count, 4096 >> order);
		for (i = 0; i < count; i += 1 + i / 7) {
			memset(block, 0, sizeof(block));
			refcount_encode(&g, block, i, g.refcount_max);
			for (j = 0; j < count; j++) /* its own value, and no neighbour's */
				assert_true(refcount_decode(&g, block, j) == (j == i ? g.refcount_max : 0));
			memset(block, 0xff, sizeof(block));
			refcount_encode(&g, block, i, 0);
			for (j = 0; j < count; j++)
				assert_true(refcount_decode(&g, block, j) == (j == i ? 0 : g.refcount_max));
			refcount_encode(&g, block, i, 1);
			assert_int_equal(refcount_decode(&g, block, i), 1);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(loads),
		cmocka_unit_test(l1_words),
		cmocka_unit_test(l2_flags),
		cmocka_unit_test(l2_bad_bits),
		cmocka_unit_test(l2_round_trip),
		cmocka_unit_test(compressed_examples),
		cmocka_unit_test(compressed_invalid),
		cmocka_unit_test(refcount_table_words),
		cmocka_unit_test(refcount_layout),
		cmocka_unit_test(refcount_round_trip),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

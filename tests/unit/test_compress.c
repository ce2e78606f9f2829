// SPDX-License-Identifier: GPL-2.0-or-later
/* One cluster out or an error: good streams, cuts, bombs, windows, frames, and what qemu-img writes. */
#include "qcow2/compress.h"
#include "qcow2/entry.h"
#include "qemu_img.h"
#include "unit.h"
#include <errno.h>
#include <malloc.h>
#include <zlib.h>
#include <zstd.h>

#define ZLIB QCOW2_COMPRESSION_ZLIB
#define ZSTD QCOW2_COMPRESSION_ZSTD
#define MAX (2u << 20)

static unsigned char *plain, *result, *packed; /* MAX + slack each */

static int setup(void **state)
{
	uint32_t i, x = 1;

	plain = malloc(4 * MAX);
	result = malloc(MAX);
	packed = malloc(8 * MAX);
	if (!plain || !result || !packed)
		return -1;
	for (i = 0; i < 4 * MAX; i++) { /* compresses to about a quarter, with far matches */
		x = x * 1103515245 + 12345;
		plain[i] = i % 7000 > 500 ? plain[i - 500] : (unsigned char)("abcd"[x >> 30]);
	}
	return scratch_setup(state);
}

static int teardown(void **state)
{
	free(plain);
	free(result);
	free(packed);
	return scratch_teardown(state);
}

static uint32_t deflated(const void *src, uint32_t len, int window, int level)
{
	z_stream z = { 0 };

	assert_int_equal(deflateInit2(&z, level, Z_DEFLATED, window, 9, Z_DEFAULT_STRATEGY), Z_OK);
	z.next_in = (void *)src;
	z.avail_in = len;
	z.next_out = packed;
	z.avail_out = 8 * MAX;
	assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
	deflateEnd(&z);
	return 8 * MAX - z.avail_out;
}

/* A frame as QEMU writes it, or with a forced window (then streamed, so that the header names it). */
static uint32_t zstd_frame(void *dst, const void *src, uint32_t len, int window_log, int checksum)
{
	ZSTD_CCtx *c = ZSTD_createCCtx();
	ZSTD_outBuffer o = { dst, 4 * MAX, 0 };
	ZSTD_inBuffer i = { src, len, 0 };

	assert_non_null(c);
	ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, checksum);
	if (window_log) {
		assert_false(ZSTD_isError(ZSTD_CCtx_setParameter(c, ZSTD_c_windowLog, window_log)));
		ZSTD_compressStream2(c, &o, &i, ZSTD_e_continue);
	}
	assert_int_equal(ZSTD_compressStream2(c, &o, &i, ZSTD_e_end), 0);
	ZSTD_freeCCtx(c);
	return (uint32_t)o.pos;
}

/* Decompress exactly @len bytes of packed (heap copy: ASan sees any read past them). */
static int unpack(unsigned type, uint32_t cluster, uint32_t len)
{
	struct decompressor *d = decompressor_new(type, cluster);
	void *in = exact_copy(packed, len), *dst = malloc(cluster);
	int ret;

	assert_non_null(d);
	assert_non_null(dst);
	memset(dst, 0xee, cluster);
	ret = decompress(d, dst, in, len);
	memcpy(result, dst, cluster);
	decompressor_free(d);
	free(dst);
	free(in);
	return ret;
}

static void expect_plain(unsigned type, uint32_t cluster, uint32_t len)
{
	assert_int_equal(unpack(type, cluster, len), 0);
	assert_memory_equal(result, plain, cluster);
}

static void round_trips(void **state)
{
	unsigned bits;
	uint32_t len;

	for (bits = 9; bits <= 21; bits++) {
		expect_plain(ZLIB, 1u << bits, deflated(plain, 1u << bits, -12, Z_DEFAULT_COMPRESSION));
		expect_plain(ZLIB, 1u << bits, deflated(plain, 1u << bits, -9, 1));
		expect_plain(ZSTD, 1u << bits, zstd_frame(packed, plain, 1u << bits, 0, 0));
		expect_plain(ZSTD, 1u << bits, zstd_frame(packed, plain, 1u << bits, 0, 1));
	}
	len = deflated(plain, 65536, -12, 0); /* stored blocks: longer than the cluster */
	assert_true(len > 65536);
	expect_plain(ZLIB, 65536, len);
}

/* The entry counts whole sectors: a neighbour's bytes or zeroes follow the stream. */
static void trailing_bytes(void **state)
{
	static const int fill[] = { 0, 0xff, 0x55 };
	unsigned i;
	uint32_t len;

	for (i = 0; i < COUNT(fill); i++) {
		len = deflated(plain, 65536, -12, 6);
		memset(packed + len, fill[i], 511);
		expect_plain(ZLIB, 65536, len + 511);
		len = zstd_frame(packed, plain, 65536, 0, 1);
		memset(packed + len, fill[i], 511);
		expect_plain(ZSTD, 65536, len + 511);
	}
	len = zstd_frame(packed, plain, 65536, 0, 0);
	len += zstd_frame(packed + len, plain, 65536, 0, 0); /* the neighbour begins at once */
	expect_plain(ZSTD, 65536, len);
}

/* Each cut is an error, except the one that only loses the end marker of a full deflate stream. */
static void every_cut(void **state)
{
	uint32_t len = deflated(plain, 4096, -12, 6), cut;
	int ret;

	for (cut = 0; cut < len; cut++) {
		ret = unpack(ZLIB, 4096, cut);
		if (cut + 2 < len)
			assert_int_equal(ret, -EUCLEAN);
		else if (ret == 0)
			assert_memory_equal(result, plain, 4096);
	}
	expect_plain(ZLIB, 4096, len);
	len = zstd_frame(packed, plain, 4096, 0, 1);
	for (cut = 0; cut < len; cut++)
		assert_int_equal(unpack(ZSTD, 4096, cut), -EUCLEAN);
	expect_plain(ZSTD, 4096, len);
}

/* All the data but no final block: QEMU reads it, so do we. */
static void unfinished_deflate(void **state)
{
	z_stream z = { .next_in = plain, .avail_in = 4096, .next_out = packed, .avail_out = MAX };

	assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY), Z_OK);
	assert_int_equal(deflate(&z, Z_SYNC_FLUSH), Z_OK);
	expect_plain(ZLIB, 4096, MAX - z.avail_out);
	deflateEnd(&z);
}

static void wrong_length(void **state)
{
	static const int off_by[] = { -512, -1, 1, 2, 258, 512, 65536 };
	unsigned i;

	for (i = 0; i < COUNT(off_by); i++) {
		uint32_t n = (uint32_t)(65536 + off_by[i]);

		assert_int_equal(unpack(ZLIB, 65536, deflated(plain, n, -12, 6)), -EUCLEAN);
		assert_int_equal(unpack(ZLIB, 65536, deflated(plain, n, -12, 0)), -EUCLEAN);
		assert_int_equal(unpack(ZSTD, 65536, zstd_frame(packed, plain, n, 0, 0)), -EUCLEAN);
		assert_int_equal(unpack(ZSTD, 65536, zstd_frame(packed, plain, n, 17, 0)), -EUCLEAN);
	}
}

static void garbage(void **state)
{
	uint32_t len, i;

	memset(packed, 0, 1024);
	assert_int_equal(unpack(ZLIB, 4096, 1024), -EUCLEAN);
	assert_int_equal(unpack(ZSTD, 4096, 1024), -EUCLEAN);
	memset(packed, 0xff, 1024);
	assert_int_equal(unpack(ZLIB, 4096, 1024), -EUCLEAN);
	assert_int_equal(unpack(ZSTD, 4096, 1024), -EUCLEAN);
	len = deflated(plain, 4096, 15, 6); /* with a zlib header */
	assert_int_equal(unpack(ZLIB, 4096, len), -EUCLEAN);
	assert_int_equal(unpack(ZSTD, 4096, len), -EUCLEAN);
	len = zstd_frame(packed, plain, 4096, 0, 1);
	assert_int_equal(unpack(ZLIB, 4096, len), -EUCLEAN);
	for (i = 0; i < len; i++) { /* a checksum sees every flipped bit */
		packed[i] ^= 0x10;
		if (unpack(ZSTD, 4096, len) == 0)
			assert_memory_equal(result, plain, 4096); /* unused header bit */
		packed[i] ^= 0x10;
	}
	packed[len - 1] ^= 1;
	assert_int_equal(unpack(ZSTD, 4096, len), -EUCLEAN);
	/* a good frame of zstd 0.5, which libzstd may know: one raw block, the end */
	memcpy(packed, "\x25\xb5\x2f\xfd\0\x40\0\x04zstd\xc0\0\0", 15);
	assert_int_equal(unpack(ZSTD, 4, 15), -EUCLEAN);
}

static void frames(void **state)
{
	uint32_t len;

	len = zstd_frame(packed, plain, 1000, 0, 0); /* several frames make one cluster */
	len += zstd_frame(packed + len, plain + 1000, 3000, 0, 1);
	len += zstd_frame(packed + len, plain, 0, 0, 0);
	len += zstd_frame(packed + len, plain + 4000, 96, 0, 0);
	expect_plain(ZSTD, 4096, len);
	len = zstd_frame(packed, plain, 4000, 0, 0); /* the second one is too long */
	len += zstd_frame(packed + len, plain + 4000, 97, 0, 0);
	assert_int_equal(unpack(ZSTD, 4096, len), -EUCLEAN);

	memcpy(packed, "\x50\x2a\x4d\x18\x04\0\0\0....", 12); /* a skippable frame first */
	len = 12 + zstd_frame(packed + 12, plain, 4096, 0, 0);
	expect_plain(ZSTD, 4096, len);
	for (len = 0; len + 12 <= 1200; len += 12) /* nothing else */
		memcpy(packed + len, "\x5f\x2a\x4d\x18\x04\0\0\0....", 12);
	assert_int_equal(unpack(ZSTD, 4096, len), -EUCLEAN);
	memcpy(packed, "\x50\x2a\x4d\x18\xff\xff\xff\xff", 8); /* claims 4 GiB */
	assert_int_equal(unpack(ZSTD, 4096, len), -EUCLEAN);
}

/* Memory in use while a decompressor that has just seen packed[0..len) is alive. */
static size_t memory_for(unsigned type, uint32_t cluster, uint32_t len, int want)
{
	size_t before = mallinfo2().uordblks + mallinfo2().hblkhd, after;
	struct decompressor *d = decompressor_new(type, cluster);

	assert_non_null(d);
	assert_int_equal(decompress(d, result, packed, len), want);
	after = mallinfo2().uordblks + mallinfo2().hblkhd;
	decompressor_free(d);
	return after - before;
}

static void windows(void **state)
{
	/* magic, no single segment and no content size, window byte, one raw last block of 4 bytes */
	static const unsigned char head[] = { 0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0x21, 0, 0, 1, 2, 3, 4 };
	unsigned log, mantissa;
	uint32_t len;

	for (log = 10; log <= 41; log++)
		for (mantissa = 0; mantissa < 8; mantissa++) {
			bool small = log < 27 || (log == 27 && !mantissa);

			memcpy(packed, head, sizeof(head));
			packed[5] = (unsigned char)((log - 10) << 3 | mantissa);
			assert_int_equal(unpack(ZSTD, 4, sizeof(head)), small ? 0 : -EUCLEAN);
		}
	for (log = 10; log <= 27; log++) { /* real streams; matches never reach behind the cluster */
		len = zstd_frame(packed, plain, MAX, (int)log, 0);
		assert_int_equal(packed[5] >> 3, log - 10);
		expect_plain(ZSTD, MAX, len);
	}
	/* a window of 128 MiB costs nothing */
	assert_true(memory_for(ZSTD, MAX, len, 0) < 1u << 20);
}

static void bombs(void **state)
{
	uint32_t len;
	unsigned char *zeroes = calloc(4, MAX);

	assert_non_null(zeroes);
	len = deflated(zeroes, 4 * MAX, -12, 9);
	assert_true(len < 16384);
	assert_int_equal(unpack(ZLIB, 65536, len), -EUCLEAN);
	assert_true(memory_for(ZLIB, 65536, len, -EUCLEAN) < 1u << 20);
	len = zstd_frame(packed, zeroes, 4 * MAX, 0, 0);
	assert_true(len < 4096);
	assert_int_equal(unpack(ZSTD, 65536, len), -EUCLEAN);
	assert_true(memory_for(ZSTD, 65536, len, -EUCLEAN) < 1u << 20);
	free(zeroes);
}

/* One decompressor for many clusters: an error leaves nothing behind. */
static void reuse(void **state)
{
	unsigned type, i;

	for (type = ZLIB; type <= ZSTD; type++) {
		struct decompressor *d = decompressor_new(type, 65536);
		uint32_t len = type == ZLIB ? deflated(plain, 65536, -12, 6)
					    : zstd_frame(packed, plain, 65536, 0, 0);

		assert_non_null(d);
		for (i = 0; i < 20; i++) {
			assert_int_equal(decompress(d, result, packed, len / 2), -EUCLEAN);
			assert_int_equal(decompress(d, result, packed + 9, len - 9), -EUCLEAN);
			memset(result, 0, 65536);
			assert_int_equal(decompress(d, result, packed, len), 0);
			assert_memory_equal(result, plain, 65536);
		}
		decompressor_free(d);
	}
	decompressor_free(NULL);
}

/* The compressed clusters of an image, found with the same decoder that the library uses. */
static unsigned unpack_image(const char *name, uint32_t cluster)
{
	struct geometry g = { .version = 3,
			      .cluster_bits = (unsigned)__builtin_ctz(cluster),
			      .refcount_order = 4 };
	struct decompressor *d;
	unsigned char *file;
	unsigned found = 0;
	uint64_t size, l2, i;
	bool copied;
	size_t len;

	geometry_init(&g);
	file = slurp(name, 0, &len, &size);
	d = decompressor_new(file[104], cluster);
	assert_non_null(d);
	assert_true(l1_decode(&g, load_be64(file + load_be64(file + 40)), &l2, &copied) && l2);
	for (i = 0; i < 1u << g.l2_bits && i * cluster < MAX; i++) {
		struct l2_entry e = l2_decode(&g, load_be64(file + l2 + i * 8));
		uint32_t n;

		if (e.kind != EXT_COMPRESSED)
			continue;
		assert_true(e.host < size);
		n = e.host + e.clen > size ? (uint32_t)(size - e.host) : e.clen;
		assert_int_equal(decompress(d, result, file + e.host, n), 0);
		assert_memory_equal(result, plain + i * cluster, cluster);
		found++;
	}
	decompressor_free(d);
	free(file);
	return found;
}

static void qemu_writes(void **state)
{
	static const char *const types[] = { "zlib", "zstd" };
	static const uint32_t clusters[] = { 512, 4096, 65536, MAX };
	char path[128];
	unsigned t, c;
	FILE *f;

	need_qemu_img();
	snprintf(path, sizeof(path), "%s/plain.raw", scratch_dir);
	f = fopen(path, "w");
	assert_non_null(f);
	assert_int_equal(fwrite(plain, 1, MAX, f), MAX);
	assert_int_equal(fclose(f), 0);
	for (t = 0; t < COUNT(types); t++)
		for (c = 0; c < COUNT(clusters); c++) {
			assert_int_equal(sh("qemu-img convert -c -f raw -O qcow2 -o "
					    "compression_type=%s,cluster_size=%u "
					    "plain.raw c.qcow2",
					    types[t], clusters[c]),
					 0);
			assert_true(unpack_image("c.qcow2", clusters[c]) > 0);
		}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_trips),	cmocka_unit_test(trailing_bytes),
		cmocka_unit_test(every_cut),	cmocka_unit_test(unfinished_deflate),
		cmocka_unit_test(wrong_length), cmocka_unit_test(garbage),
		cmocka_unit_test(frames),	cmocka_unit_test(windows),
		cmocka_unit_test(bombs),	cmocka_unit_test(reuse),
		cmocka_unit_test(qemu_writes),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}

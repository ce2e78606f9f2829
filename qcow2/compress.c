// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * compress.c - one compressed cluster in, exactly one cluster out.
 *
 * Owns: the zlib and zstd decoder states, one per decompressor, reused for every cluster.
 * Invariants: output goes straight into the caller's cluster, which is also the only history a match
 * can refer to; so memory is the fixed decoder state (zlib about 12 KiB, zstd about 160 KiB) whatever
 * the stream asks for, and a bomb ends where the cluster ends. A stream must fill the cluster and must
 * not go on after it. Trailing bytes of the last sector belong to a neighbour and are not judged.
 *
 * QEMU writes raw deflate with a 12-bit window, or zstd frames with windows of at most 2 MiB, reads
 * several frames in a row and refuses windows above 128 MiB; so do we. It does not see data beyond the
 * cluster in a deflate stream; we refuse that.
 */
#include "compress.h"
#include "entry.h"
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

#define DEFLATE_WINDOW (-12) /* negative: no zlib header */
#define ZSTD_MAX_WINDOW (1ull << 27) /* what zstd's own tools and QEMU read without being asked */
#define ZSTD_SKIPPABLE_MASK 0xfffffff0u

struct decompressor {
	uint32_t cluster_size;
	ZSTD_DCtx *zstd; /* NULL: zlib */
	z_stream zlib;
};

struct decompressor *decompressor_new(unsigned type, uint32_t cluster_size)
{
	struct decompressor *d = calloc(1, sizeof(*d));

	if (!d)
		return NULL;
	d->cluster_size = cluster_size;
	if (type == QCOW2_COMPRESSION_ZSTD) {
		d->zstd = ZSTD_createDCtx();
		if (!d->zstd)
			goto free_d;
	} else if (inflateInit2(&d->zlib, DEFLATE_WINDOW) != Z_OK) {
		goto free_d;
	}
	return d;

free_d:
	free(d);
	return NULL;
}

void decompressor_free(struct decompressor *d)
{
	if (!d)
		return;
	if (d->zstd)
		ZSTD_freeDCtx(d->zstd);
	else
		inflateEnd(&d->zlib);
	free(d);
}

/* The cluster is full but the stream did not say that it ends: does it yield one more byte? Cut off in
 * its end marker is harmless, going on is not. */
static int inflate_ends(z_stream *z)
{
	unsigned char spare;
	int ret;

	z->next_out = &spare;
	z->avail_out = 1;
	ret = inflate(z, Z_FINISH);
	if (ret == Z_MEM_ERROR)
		return -ENOMEM;
	return z->avail_out && (ret == Z_STREAM_END || ret == Z_BUF_ERROR) ? 0 : -EUCLEAN;
}

static int decompress_zlib(struct decompressor *d, void *out, const void *in, uint32_t in_len)
{
	z_stream *z = &d->zlib;
	int ret;

	if (inflateReset(z) != Z_OK)
		return -EUCLEAN;
	z->next_in = (void *)in; /* older zlib headers lack the const */
	z->avail_in = in_len;
	z->next_out = out;
	z->avail_out = d->cluster_size;
	ret = inflate(z, Z_FINISH);
	if (ret == Z_MEM_ERROR)
		return -ENOMEM;
	if (z->avail_out)
		return -EUCLEAN;
	if (ret == Z_BUF_ERROR)
		return inflate_ends(z);
	return ret == Z_STREAM_END ? 0 : -EUCLEAN;
}

/*
 * Is this the start of a frame we want libzstd to decode? Today's format or a skippable frame, not one
 * of the pre-1.0 formats that libzstd may also know, and no giant window (RFC 8878, 3.1.1.1).
 */
static bool frame_allowed(const unsigned char *in, size_t len)
{
	uint32_t magic;
	uint64_t base;

	if (len < 6)
		return false; /* shorter than any frame */
	magic = (uint32_t)in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 | (uint32_t)in[3] << 24;
	if ((magic & ZSTD_SKIPPABLE_MASK) == ZSTD_MAGIC_SKIPPABLE_START)
		return true;
	if (magic != ZSTD_MAGICNUMBER)
		return false;
	if (in[4] & 0x20) /* single segment: the window is the content, which must fit in the cluster */
		return true;
	base = 1ull << (10 + (in[5] >> 3));
	return base + base / 8 * (in[5] & 7) <= ZSTD_MAX_WINDOW;
}

static int decompress_zstd(struct decompressor *d, void *out, const void *in, uint32_t in_len)
{
	const unsigned char *src = in;
	unsigned char *dst = out;
	size_t left = d->cluster_size, len = in_len, frame, got;

	/* Frame by frame, so that what follows the last one is never looked at. */
	while (left) {
		if (!frame_allowed(src, len))
			return -EUCLEAN;
		frame = ZSTD_findFrameCompressedSize(src, len);
		if (ZSTD_isError(frame) || frame > len)
			return -EUCLEAN;
		got = ZSTD_decompressDCtx(d->zstd, dst, left, src, frame);
		if (ZSTD_isError(got) || got > left)
			return -EUCLEAN;
		src += frame;
		len -= frame;
		dst += got;
		left -= got;
	}
	return 0;
}

int decompress(struct decompressor *d, void *out, const void *in, uint32_t in_len)
{
	if (d->zstd)
		return decompress_zstd(d, out, in, in_len);
	return decompress_zlib(d, out, in, in_len);
}

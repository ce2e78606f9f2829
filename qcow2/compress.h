/* SPDX-License-Identifier: GPL-2.0-or-later */
/* compress.h - one compressed cluster in, exactly one cluster out, bounded memory. */
#ifndef QCOW2_COMPRESS_H
#define QCOW2_COMPRESS_H

#include <stdint.h>

struct decompressor; /* holds the zlib/zstd state, reused for every cluster */

/* type: QCOW2_COMPRESSION_*. NULL: out of memory. */
struct decompressor *decompressor_new(unsigned type, uint32_t cluster_size);
void decompressor_free(struct decompressor *d);
/*
 * Decompress in[0..in_len) into out[0..cluster_size). 0, or -EUCLEAN when the input is not a stream
 * that yields at least one full cluster (short stream, garbage, window larger than allowed, skippable
 * frames only). Bytes after the end of the stream are ignored (the entry counts whole sectors), output
 * beyond one cluster is an error. -ENOMEM: the decoder could not allocate; says nothing about the input.
 */
int decompress(struct decompressor *d, void *out, const void *in, uint32_t in_len);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* check_kinds.h - recipes for images of all kinds that qemu-img can make and our check can judge. */
#ifndef TESTS_CHECK_KINDS_H
#define TESTS_CHECK_KINDS_H

#include "check_judge.h"

#define WRITTEN                                                                                               \
	IO "-c 'write 0 70k' -c 'write 1M 4k' -c 'write 3M 130k' -c 'write -z 64k 64k' -c 'discard 0 4k' $I"
#define SNAPS                                                                                                \
	IO "-c 'write 0 256k' $I; qemu-img snapshot -c one $I; " IO "-c 'write 64k 100k' $I; "               \
	   "qemu-img snapshot -c two $I; qemu-img snapshot -c three $I; qemu-img snapshot -d two $I; " IO    \
	   "-c 'write 2M 200k' -c 'write 0 1k' $I"
#define COMPRESS                                                                                             \
	"head -c 300000 /dev/urandom >r; seq 1 200000 >>r; truncate -s 4M r; "                               \
	"qemu-img convert -c -f raw -O qcow2 -o $O r $I; "

static const struct recipe recipes[] = {
	{ "empty", "cluster_size=64k", "1G", "" },
	{ "empty-512", "cluster_size=512", "64M", "" },
	{ "empty-2M", "cluster_size=2M", "1T", "" },
	{ "zero-size", "cluster_size=64k", "0", "" },
	{ "odd-size", "cluster_size=64k", "1000000", IO "-c 'write 0 70k' -c 'write 950k 20k' $I" },
	{ "written-512", "cluster_size=512", "4M", WRITTEN },
	{ "written-4k", "cluster_size=4k", "4M", WRITTEN },
	{ "written-64k", "cluster_size=64k", "4M", WRITTEN },
	{ "written-2M", "cluster_size=2M", "100M", WRITTEN },
	{ "refcount-1", "cluster_size=4k,refcount_bits=1", "8M", WRITTEN },
	{ "refcount-2", "cluster_size=4k,refcount_bits=2", "8M", WRITTEN },
	{ "refcount-4", "cluster_size=4k,refcount_bits=4", "8M", WRITTEN },
	{ "refcount-8", "cluster_size=512,refcount_bits=8", "8M", WRITTEN },
	{ "refcount-32", "cluster_size=4k,refcount_bits=32", "8M", WRITTEN },
	{ "refcount-64", "cluster_size=512,refcount_bits=64", "8M", WRITTEN },
	{ "v2", "compat=0.10,cluster_size=4k", "8M",
	  IO "-c 'write 0 70k' -c 'write 3M 130k' -c 'discard 0 4k' $I" },
	{ "v2-snapshots", "compat=0.10,cluster_size=4k", "8M", SNAPS },
	{ "lazy", "lazy_refcounts=on", "8M", WRITTEN },
	{ "lazy-dirty", "lazy_refcounts=on", "8M", IO "-c 'write 0 70k' -c abort $I 2>/dev/null || true" },
	{ "metadata", "preallocation=metadata", "64M", "" },
	{ "metadata-512", "preallocation=metadata,cluster_size=512", "8M", WRITTEN },
	{ "falloc", "preallocation=falloc", "16M", "" },
	{ "full", "preallocation=full,cluster_size=4k", "4M", "" },
	{ "snapshots", "cluster_size=4k", "8M", SNAPS },
	{ "snapshots-512", "cluster_size=512,refcount_bits=64", "8M", SNAPS },
	{ "snapshots-refcount-2", "cluster_size=4k,refcount_bits=2", "8M",
	  IO "-c 'write 0 256k' $I; qemu-img snapshot -c one $I; qemu-img snapshot -c two $I; " IO
	     "-c 'write 4k 8k' $I" },
	{ "snapshots-64k", "cluster_size=64k", "1G", SNAPS },
	{ "internal-vm-sized", "cluster_size=4k", "8M",
	  SNAPS "; qemu-img resize -q $I 16M; " IO "-c 'write 15M 9k' $I" },
	{ "zlib", "cluster_size=64k", "4M", COMPRESS },
	{ "zlib-4k", "cluster_size=4k", "4M", COMPRESS },
	{ "zlib-512", "cluster_size=512", "4M", COMPRESS },
	{ "zlib-2M", "cluster_size=2M", "4M", COMPRESS },
	{ "zstd", "cluster_size=64k,compression_type=zstd", "4M", COMPRESS },
	{ "zstd-8k", "cluster_size=8k,compression_type=zstd,refcount_bits=8", "4M", COMPRESS },
	{ "zlib-snapshots", "cluster_size=8k", "4M",
	  COMPRESS "qemu-img snapshot -c s $I; " IO "-c 'write 0 100k' -c 'write 2M 4k' $I" },
	{ "backing", "cluster_size=64k", "4M",
	  "qemu-img create -q -f qcow2 b 4M; qemu-img create -q -f qcow2 -b b -F qcow2 $I 4M; " IO
	  "-c 'write 4k 4k' -c 'discard 1M 64k' -c 'write -z 2M 64k' $I" },
	{ "bitmaps", "cluster_size=4k", "16M",
	  "qemu-img bitmap --add -g 512 $I b1; qemu-img bitmap --add -g 64k $I b2; " WRITTEN
	  "; qemu-img bitmap --disable $I b2; qemu-img bitmap --add -g 4k $I b3" },
	{ "bitmaps-snapshots", "cluster_size=512", "8M", "qemu-img bitmap --add -g 512 $I b1; " SNAPS },
	{ "bitmaps-odd", "cluster_size=512", "77777k",
	  "qemu-img bitmap --add -g 512 $I b1; qemu-img bitmap --add -g 1M $I b2; qemu-img resize -q $I "
	  "99999k" },
	{ "aes", "encrypt.format=aes,encrypt.key-secret=s", "4M", "" },
	{ "luks", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "4M", "" },
	{ "luks-4k", "cluster_size=4k,encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "4M",
	  "" },
};

#endif

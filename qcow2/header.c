// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * header.c - bytes of the first cluster -> struct qcow2_header, the feature gate, and the few fields
 * that are patched in place.
 *
 * Owns: every limit of the header. Whoever holds a struct qcow2_header that header_parse() accepted
 * may shift by its cluster_bits and refcount_order and allocate its tables without further checks.
 * Invariants: the input is hostile; a value is compared with its limit before it is used, and sums are
 * written as differences of checked values. Nothing outside buf[0..len) is read and nothing past the
 * first cluster is looked at. Patching changes the named fields only: unknown header bytes, extensions
 * and names survive as they are. No I/O here, so a crash leaves nothing.
 */
#include "header.h"
#include "entry.h"
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Bitmaps extension: u32 count, u32 reserved, u64 directory size, u64 directory offset. */
#define BITMAPS_EXT_BYTES 24u
#define MAX_BITMAP_DIR_BYTES (QCOW2_MAX_BITMAPS * 1024ull)

struct parse {
	struct qcow2_header *h;
	const unsigned char *buf; /* one full cluster */
	uint64_t file_size;
	const char *name;
	struct qcow2_error *err;
};

/* "NAME: header: what" */
static int vfail(struct qcow2_error *err, int code, const char *name, const char *fmt, va_list ap)
{
	char what[300];

	vsnprintf(what, sizeof(what), fmt, ap);
	return qcow2_fail(err, code, "%s: header: %s", name, what);
}

static int fail(struct qcow2_error *err, int code, const char *name, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
static int fail(struct qcow2_error *err, int code, const char *name, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vfail(err, code, name, fmt, ap);
	va_end(ap);
	return code;
}

static int __attribute__((format(printf, 2, 3))) bad(const struct parse *p, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vfail(p->err, -EINVAL, p->name, fmt, ap);
	va_end(ap);
	return -EINVAL;
}

const char *table_problem(const struct geometry *g, uint64_t off, uint64_t bytes, uint64_t max,
			  uint64_t file_size)
{
	uint64_t end = cluster_up(g, min_u64(file_size, QCOW2_MAX_HOST_OFFSET));

	if (bytes > max)
		return "is larger than allowed";
	if (!cluster_aligned(g, off))
		return "is not cluster aligned";
	if (bytes && !off)
		return "is inside the header cluster";
	if (off > end || bytes > end - off)
		return "is beyond the end of the file";
	return NULL;
}

size_t header_peek(const void *buf, size_t len, const char *name, struct qcow2_error *err)
{
	struct qcow2_disk_header d = { 0 };
	uint32_t version, bits;

	memcpy(&d, buf, len < QCOW2_V2_HEADER ? len : QCOW2_V2_HEADER);
	if (len < sizeof(d.magic) || be32toh(d.magic) != QCOW2_MAGIC) {
		char file[200];

		escape_name(file, sizeof(file), name, strlen(name));
		qcow2_fail(err, -EINVAL, "%s: not a qcow2 image (no QFI magic)", file);
		return 0;
	}
	if (len < QCOW2_V2_HEADER) {
		fail(err, -EINVAL, name, "cut off after %zu bytes, must be at least %u", len,
		     QCOW2_V2_HEADER);
		return 0;
	}
	version = be32toh(d.version);
	if (version < 2 || version > 3) {
		fail(err, -EINVAL, name, "version is %" PRIu32 ", must be 2 or 3%s", version,
		     version == 1 ? " (this is a qcow image: use `qemu-img convert -f qcow -O qcow2`)" : "");
		return 0;
	}
	bits = be32toh(d.cluster_bits);
	if (bits < QCOW2_MIN_CLUSTER_BITS || bits > QCOW2_MAX_CLUSTER_BITS) {
		fail(err, -EINVAL, name, "cluster_bits is %" PRIu32 ", must be %u to %u", bits,
		     QCOW2_MIN_CLUSTER_BITS, QCOW2_MAX_CLUSTER_BITS);
		return 0;
	}
	return (size_t)1 << bits;
}

/* The words that only version 3 has; the first cluster (>= 512 bytes) is there. */
static int parse_v3(const struct parse *p, const struct qcow2_disk_header *d)
{
	struct qcow2_header *h = p->h;
	bool bit, type;

	h->incompatible = be64toh(d->incompatible_features);
	h->compatible = be64toh(d->compatible_features);
	h->autoclear = be64toh(d->autoclear_features);
	if (h->incompatible & ~QCOW2_INCOMPAT_KNOWN)
		h->unknown_incompat_bit = __builtin_ctzll(h->incompatible & ~QCOW2_INCOMPAT_KNOWN);

	h->header_length = be32toh(d->header_length);
	if (h->header_length < QCOW2_V3_HEADER || h->header_length > h->geo.cluster_size ||
	    h->header_length % 8)
		return bad(p, "header_length is %" PRIu32 ", must be a multiple of 8 from %u to %" PRIu32,
			   h->header_length, QCOW2_V3_HEADER, h->geo.cluster_size);
	if (h->header_length > QCOW2_V3_HEADER)
		h->compression = d->compression_type;
	if (h->compression > QCOW2_COMPRESSION_ZSTD)
		return bad(p, "compression_type is %u, must be 0 (zlib) or 1 (zstd)", h->compression);
	bit = h->incompatible & QCOW2_INCOMPAT_COMPRESSION;
	type = h->compression != QCOW2_COMPRESSION_ZLIB;
	if (bit != type)
		return bad(p, "compression_type is %u but incompatible feature bit 3 is %s", h->compression,
			   bit ? "set" : "not set");

	h->geo.refcount_order = be32toh(d->refcount_order);
	if (h->geo.refcount_order > QCOW2_MAX_REFCOUNT_ORDER)
		return bad(p, "refcount_order is %u, must be 0 to %u", h->geo.refcount_order,
			   QCOW2_MAX_REFCOUNT_ORDER);
	if (h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2 && h->geo.cluster_bits < 14)
		return bad(p, "cluster_bits is %u, must be at least 14 with extended L2 entries",
			   h->geo.cluster_bits);
	return 0;
}

static int parse_fields(const struct parse *p, const struct qcow2_disk_header *d)
{
	struct qcow2_header *h = p->h;
	int ret = 0;

	h->unknown_incompat_bit = -1;
	h->disk_size = be64toh(d->size);
	h->crypt_method = be32toh(d->crypt_method);
	h->l1_entries = be32toh(d->l1_size);
	h->l1_offset = be64toh(d->l1_table_offset);
	h->rt_offset = be64toh(d->refcount_table_offset);
	h->rt_clusters = be32toh(d->refcount_table_clusters);
	h->nb_snapshots = be32toh(d->nb_snapshots);
	h->snapshots_offset = be64toh(d->snapshots_offset);
	h->header_length = QCOW2_V2_HEADER;
	h->compression = QCOW2_COMPRESSION_ZLIB;
	h->geo.size = h->disk_size & ~511ull;
	h->geo.version = be32toh(d->version);
	h->geo.cluster_bits = be32toh(d->cluster_bits);
	h->geo.refcount_order = 4;
	geometry_init(&h->geo); /* parse_v3() needs the cluster size */
	if (h->geo.version >= 3)
		ret = parse_v3(p, d);
	if (!ret)
		geometry_init(&h->geo);
	return ret;
}

static int check_refcount_table(const struct parse *p)
{
	const struct qcow2_header *h = p->h;
	uint32_t max = QCOW2_MAX_REFTABLE_BYTES >> h->geo.cluster_bits;
	const char *why;

	if (!h->rt_clusters || h->rt_clusters > max)
		return bad(p, "refcount_table_clusters is %" PRIu32 ", must be 1 to %" PRIu32, h->rt_clusters,
			   max);
	why = table_problem(&h->geo, h->rt_offset, (uint64_t)h->rt_clusters << h->geo.cluster_bits,
			    QCOW2_MAX_REFTABLE_BYTES, p->file_size);
	if (why)
		return bad(p, "refcount table at %" PRIu64 " (%" PRIu32 " clusters) %s", h->rt_offset,
			   h->rt_clusters, why);
	return 0;
}

static int check_l1(const struct parse *p)
{
	const struct qcow2_header *h = p->h;
	uint64_t need = size_to_l1(&h->geo, h->disk_size);
	const char *why;

	if (h->l1_entries > QCOW2_MAX_L1_BYTES / 8)
		return bad(p, "l1_size is %" PRIu32 ", must be at most %u", h->l1_entries,
			   QCOW2_MAX_L1_BYTES / 8);
	if (need > h->l1_entries)
		return bad(p,
			   "l1_size is %" PRIu32 ", must be at least %" PRIu64 " for a disk of %" PRIu64
			   " bytes",
			   h->l1_entries, need, h->disk_size);
	why = table_problem(&h->geo, h->l1_offset, h->l1_entries * 8ull, QCOW2_MAX_L1_BYTES, p->file_size);
	if (why)
		return bad(p, "L1 table at %" PRIu64 " (%" PRIu32 " entries) %s", h->l1_offset, h->l1_entries,
			   why);
	return 0;
}

static int check_snapshot_table(const struct parse *p)
{
	const struct qcow2_header *h = p->h;
	uint64_t bytes = h->nb_snapshots * (uint64_t)sizeof(struct qcow2_disk_snapshot); /* at least */
	const char *why;

	if (h->nb_snapshots > QCOW2_MAX_SNAPSHOTS)
		return bad(p, "nb_snapshots is %" PRIu32 ", must be at most %u", h->nb_snapshots,
			   QCOW2_MAX_SNAPSHOTS);
	why = table_problem(&h->geo, h->snapshots_offset, bytes, QCOW2_MAX_SNAPSHOT_BYTES, p->file_size);
	if (why)
		return bad(p, "snapshot table at %" PRIu64 " (%" PRIu32 " snapshots) %s", h->snapshots_offset,
			   h->nb_snapshots, why);
	return 0;
}

/* *ext_end: where the extensions end, at the name or with the cluster. */
static int parse_backing(const struct parse *p, const struct qcow2_disk_header *d, size_t *ext_end)
{
	struct qcow2_header *h = p->h;
	uint64_t off = be64toh(d->backing_file_offset);
	uint32_t len = be32toh(d->backing_file_size);

	*ext_end = h->geo.cluster_size;
	if (!off) /* the specification leaves the size undefined then */
		return 0;
	if (off < h->header_length || off > h->geo.cluster_size)
		return bad(p, "backing_file_offset is %" PRIu64 ", must be %" PRIu32 " to %" PRIu32, off,
			   h->header_length, h->geo.cluster_size);
	if (len > QCOW2_MAX_BACKING_NAME)
		return bad(p, "backing_file_size is %" PRIu32 ", must be at most %u", len,
			   QCOW2_MAX_BACKING_NAME);
	if (len > h->geo.cluster_size - off)
		return bad(p,
			   "backing_file_size is %" PRIu32 ", the name at %" PRIu64
			   " leaves the first cluster",
			   len, off);
	if (memchr(p->buf + off, 0, len))
		return bad(p, "the backing file name contains a NUL byte");
	memcpy(h->backing_name, p->buf + off, len); /* terminated: *h was cleared */
	*ext_end = off;
	return 0;
}

/* Only the name of the bit that keeps us from opening the image is wanted. */
static void parse_feature_names(struct qcow2_header *h, const unsigned char *data, uint32_t len)
{
	struct qcow2_disk_feature_name f;

	for (; len >= sizeof(f); data += sizeof(f), len -= sizeof(f)) {
		memcpy(&f, data, sizeof(f));
		if (f.type == 0 && f.bit == h->unknown_incompat_bit)
			escape_name(h->unknown_incompat_name, sizeof(h->unknown_incompat_name), f.name,
				    strnlen(f.name, sizeof(f.name)));
	}
}

static int parse_bitmaps(const struct parse *p, const unsigned char *data, uint32_t len)
{
	struct qcow2_header *h = p->h;
	const char *why;

	if (!(h->autoclear & QCOW2_AUTOCLEAR_BITMAPS)) /* written by someone who let it rot: ignored */
		return 0;
	if (len != BITMAPS_EXT_BYTES)
		return bad(p, "bitmaps extension is %" PRIu32 " bytes, must be %u", len, BITMAPS_EXT_BYTES);
	h->nb_bitmaps = load_be32(data);
	h->bitmap_dir_size = load_be64(data + 8);
	h->bitmap_dir_offset = load_be64(data + 16);
	if (!h->nb_bitmaps || h->nb_bitmaps > QCOW2_MAX_BITMAPS)
		return bad(p, "nb_bitmaps is %" PRIu32 ", must be 1 to %u", h->nb_bitmaps, QCOW2_MAX_BITMAPS);
	why = table_problem(&h->geo, h->bitmap_dir_offset, h->bitmap_dir_size, MAX_BITMAP_DIR_BYTES,
			    p->file_size);
	if (why)
		return bad(p, "bitmap directory at %" PRIu64 " (%" PRIu64 " bytes) %s", h->bitmap_dir_offset,
			   h->bitmap_dir_size, why);
	return 0;
}

static int parse_crypto(const struct parse *p, const unsigned char *data, uint32_t len)
{
	struct qcow2_header *h = p->h;
	const char *why;

	if (len != sizeof(struct qcow2_disk_crypto))
		return bad(p, "LUKS extension is %" PRIu32 " bytes, must be %zu", len,
			   sizeof(struct qcow2_disk_crypto));
	h->crypto_offset = load_be64(data);
	h->crypto_length = load_be64(data + 8);
	why = table_problem(&h->geo, h->crypto_offset, h->crypto_length, UINT64_MAX, p->file_size);
	if (why)
		return bad(p, "LUKS header at %" PRIu64 " (%" PRIu64 " bytes) %s", h->crypto_offset,
			   h->crypto_length, why);
	return 0;
}

static int parse_extension(const struct parse *p, uint32_t type, const unsigned char *data, uint32_t len)
{
	struct qcow2_header *h = p->h;

	switch (type) {
	case QCOW2_EXT_BACKING_FORMAT:
		escape_name(h->backing_format, sizeof(h->backing_format), data, len);
		return 0;
	case QCOW2_EXT_FEATURE_NAMES:
		parse_feature_names(h, data, len);
		return 0;
	case QCOW2_EXT_BITMAPS:
		return parse_bitmaps(p, data, len);
	case QCOW2_EXT_CRYPTO:
		return h->crypt_method == QCOW2_CRYPT_LUKS ? parse_crypto(p, data, len) : 0;
	case QCOW2_EXT_DATA_FILE:
		h->has_data_file_name = true;
		return 0;
	default: /* unknown ones are kept on disk and ignored here */
		return 0;
	}
}

static int parse_extensions(const struct parse *p, size_t end)
{
	size_t pos = p->h->header_length;
	uint32_t type, len;
	int ret;

	while (pos < end) {
		if (end - pos < sizeof(struct qcow2_disk_ext))
			return bad(p, "extension at %zu is cut off, %zu bytes remain", pos, end - pos);
		type = load_be32(p->buf + pos);
		len = load_be32(p->buf + pos + 4);
		pos += sizeof(struct qcow2_disk_ext);
		if (len > end - pos)
			return bad(p, "extension 0x%08" PRIx32 " is %" PRIu32 " bytes, only %zu remain", type,
				   len, end - pos);
		if (type == QCOW2_EXT_END)
			return 0;
		ret = parse_extension(p, type, p->buf + pos, len);
		if (ret)
			return ret;
		pos += ((size_t)len + 7) & ~(size_t)7;
	}
	return 0;
}

int header_parse(struct qcow2_header *h, const void *buf, size_t len, uint64_t file_size, const char *name,
		 struct qcow2_error *err)
{
	const struct parse p = { .h = h, .buf = buf, .file_size = file_size, .name = name, .err = err };
	size_t need = header_peek(buf, len, name, err), ext_end;
	struct qcow2_disk_header d;
	int ret;

	memset(h, 0, sizeof(*h));
	if (!need)
		return -EINVAL;
	if (len < need) /* no valid image is that short: its tables follow the first cluster */
		return bad(&p, "cut off after %zu bytes, the first cluster has %zu", len, need);
	memcpy(&d, buf, sizeof(d));
	ret = parse_fields(&p, &d);
	if (!ret)
		ret = check_refcount_table(&p);
	if (!ret)
		ret = check_l1(&p);
	if (!ret)
		ret = check_snapshot_table(&p);
	if (!ret)
		ret = parse_backing(&p, &d, &ext_end);
	if (!ret)
		ret = parse_extensions(&p, ext_end);
	return ret;
}

/* What we can never serve, read-only or not. */
static int gate_supported(const struct qcow2_header *h, const char *name, struct qcow2_error *err)
{
	if (h->unknown_incompat_bit >= 0 && h->unknown_incompat_name[0])
		return fail(
			err, -ENOTSUP, name,
			"incompatible feature \"%s\" (bit %d) is not supported: convert the image with the "
			"program that wrote it",
			h->unknown_incompat_name, h->unknown_incompat_bit);
	if (h->unknown_incompat_bit >= 0)
		return fail(
			err, -ENOTSUP, name,
			"unknown incompatible feature bit %d is not supported: convert the image with the "
			"program that wrote it",
			h->unknown_incompat_bit);
	if (h->crypt_method != QCOW2_CRYPT_NONE)
		return fail(err, -ENOTSUP, name,
			    "encryption (%s, crypt_method %" PRIu32 ") is not supported: decrypt it with "
			    "`qemu-img convert -O qcow2`",
			    h->crypt_method == QCOW2_CRYPT_AES	  ? "AES"
			    : h->crypt_method == QCOW2_CRYPT_LUKS ? "LUKS"
								  : "unknown",
			    h->crypt_method);
	if (h->incompatible & QCOW2_INCOMPAT_DATA_FILE)
		return fail(err, -ENOTSUP, name,
			    "external data file (incompatible bit 2) is not supported: use "
			    "`qemu-img convert -O qcow2`");
	if (h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2)
		return fail(err, -ENOTSUP, name,
			    "extended L2 entries (incompatible bit 4) are not supported: use "
			    "`qemu-img convert -O qcow2 -o extended_l2=off`");
	if (h->autoclear & QCOW2_AUTOCLEAR_RAW_DATA)
		return fail(
			err, -ENOTSUP, name,
			"raw external data (autoclear bit 1) without an external data file is not supported: "
			"use `qemu-img convert -O qcow2`");
	return 0;
}

int header_gate(const struct qcow2_header *h, bool read_only, const char *name, struct qcow2_error *err)
{
	int ret = gate_supported(h, name, err);

	if (ret || read_only)
		return ret;
	if (h->incompatible & QCOW2_INCOMPAT_CORRUPT)
		return fail(err, -EUCLEAN, name,
			    "the image is marked corrupt (incompatible bit 1): use `attach --read-only`, or "
			    "repair it with `ublk-qcow2 check --repair=all`");
	if (h->incompatible & QCOW2_INCOMPAT_DIRTY)
		return fail(
			err, -EUCLEAN, name,
			"the image was not closed, its refcounts are stale (dirty, incompatible bit 0): use "
			"`attach --read-only`, or repair it with `ublk-qcow2 check --repair=all`");
	return 0;
}

static void store_be64(void *p, uint64_t v)
{
	v = htobe64(v);
	memcpy(p, &v, sizeof(v));
}

static void store_be32(void *p, uint32_t v)
{
	v = htobe32(v);
	memcpy(p, &v, sizeof(v));
}

void header_set_features(void *block, uint64_t incompatible, uint64_t autoclear)
{
	unsigned char *b = block;

	if (load_be32(b + offsetof(struct qcow2_disk_header, version)) < 3)
		return; /* version 2 has its extensions there */
	store_be64(b + offsetof(struct qcow2_disk_header, incompatible_features), incompatible);
	store_be64(b + offsetof(struct qcow2_disk_header, autoclear_features), autoclear);
}

void header_set_reftable(void *block, uint64_t offset, uint32_t clusters)
{
	unsigned char *b = block;

	store_be64(b + offsetof(struct qcow2_disk_header, refcount_table_offset), offset);
	store_be32(b + offsetof(struct qcow2_disk_header, refcount_table_clusters), clusters);
}

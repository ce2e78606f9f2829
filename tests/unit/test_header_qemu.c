// SPDX-License-Identifier: GPL-2.0-or-later
/* The header against QEMU: what qemu-img writes is read as meant, what it refuses we refuse. */
#include "header_fields.h"
#include "qcow2/header.h"
#include "qemu_img.h"
#include "unit.h"
#include <errno.h>
#include <inttypes.h>

static struct qcow2_header h;
static struct qcow2_error err;

struct qemu_case {
	const char *options, *size;
	uint64_t bytes;
	unsigned version, cluster_bits, refcount_order, compression;
	uint64_t incompatible, compatible;
	int gate;
};

static const struct qemu_case qemu_cases[] = {
	{ "compat=1.1", "64M", 64u << 20, 3, 16, 4, 0, 0, 0, 0 },
	{ "compat=0.10", "64M", 64u << 20, 2, 16, 4, 0, 0, 0, 0 },
	{ "compat=0.10,cluster_size=512", "1M", 1u << 20, 2, 9, 4, 0, 0, 0, 0 },
	{ "cluster_size=512", "10M", 10u << 20, 3, 9, 4, 0, 0, 0, 0 },
	{ "cluster_size=512", "128G", 128ull << 30, 3, 9, 4, 0, 0, 0, 0 }, /* L1 of 32 MiB: the limit */
	{ "cluster_size=4k", "1000000", 1000448, 3, 12, 4, 0, 0, 0, 0 },
	{ "cluster_size=2M", "64T", 64ull << 40, 3, 21, 4, 0, 0, 0, 0 },
	{ "refcount_bits=1", "1G", 1u << 30, 3, 16, 0, 0, 0, 0, 0 },
	{ "refcount_bits=2", "1G", 1u << 30, 3, 16, 1, 0, 0, 0, 0 },
	{ "refcount_bits=4", "1G", 1u << 30, 3, 16, 2, 0, 0, 0, 0 },
	{ "refcount_bits=8", "1G", 1u << 30, 3, 16, 3, 0, 0, 0, 0 },
	{ "refcount_bits=32", "1G", 1u << 30, 3, 16, 5, 0, 0, 0, 0 },
	{ "refcount_bits=64,cluster_size=8k", "1G", 1u << 30, 3, 13, 6, 0, 0, 0, 0 },
	{ "lazy_refcounts=on", "1G", 1u << 30, 3, 16, 4, 0, 0, 1, 0 },
	{ "compression_type=zstd", "1G", 1u << 30, 3, 16, 4, 1, 8, 0, 0 },
	{ "preallocation=metadata", "100M", 100u << 20, 3, 16, 4, 0, 0, 0, 0 },
	{ "preallocation=falloc", "2M", 2u << 20, 3, 16, 4, 0, 0, 0, 0 },
	{ "extended_l2=on,cluster_size=128k", "1G", 1u << 30, 3, 17, 4, 0, 16, 0, -ENOTSUP },
	{ "data_file=x.raw", "1G", 1u << 30, 3, 16, 4, 0, 4, 0, -ENOTSUP },
	{ "data_file=x.raw,data_file_raw=on", "1G", 1u << 30, 3, 16, 4, 0, 4, 0, -ENOTSUP },
	{ "cluster_size=64k", "0", 0, 3, 16, 4, 0, 0, 0, 0 },
};

static void parse_file(const char *name)
{
	uint64_t size;
	size_t len, need;
	unsigned char *head = slurp(name, 4096, &len, &size), *cluster;

	memset(&err, 0, sizeof(err));
	need = header_peek(head, len, name, &err);
	free(head);
	if (!need)
		fail_msg("%s", err.text);
	cluster = slurp(name, need, &len, &size);
	if (header_parse(&h, cluster, len, size, name, &err))
		fail_msg("%s", err.text);
	free(cluster);
}

static void qemu_images(void **state)
{
	const struct qemu_case *c;

	need_qemu_img();
	for (c = qemu_cases; c < qemu_cases + COUNT(qemu_cases); c++) {
		assert_int_equal(sh("rm -f x.raw && qemu-img create -q -f qcow2 -o %s x.qcow2 %s", c->options,
				    c->size),
				 0);
		parse_file("x.qcow2");
		if (h.geo.size != c->bytes)
			fail_msg("%s: size %" PRIu64 ", not %" PRIu64, c->options, h.geo.size, c->bytes);
		assert_int_equal(h.geo.version, c->version);
		assert_int_equal(h.geo.cluster_bits, c->cluster_bits);
		assert_int_equal(h.geo.refcount_order, c->refcount_order);
		assert_int_equal(h.compression, c->compression);
		assert_true(h.incompatible == c->incompatible);
		assert_true(h.compatible == c->compatible);
		assert_int_equal(h.has_data_file_name, !!strstr(c->options, "data_file="));
		assert_int_equal(h.autoclear, strstr(c->options, "data_file_raw") ? 2 : 0);
		assert_int_equal(header_gate(&h, false, "x.qcow2", &err), c->gate);
	}
}

static void qemu_backing_bitmap_encryption(void **state)
{
	need_qemu_img();
	assert_int_equal(sh("qemu-img create -q -f raw base.raw 1M && "
			    "qemu-img create -q -f qcow2 -b base.raw -F raw over.qcow2"),
			 0);
	parse_file("over.qcow2");
	assert_string_equal(h.backing_name, "base.raw");
	assert_string_equal(h.backing_format, "raw");
	assert_int_equal(h.geo.size, 1 << 20);
	assert_int_equal(sh("qemu-img create -q -f qcow2 -o compat=0.10 -b over.qcow2 -F qcow2 top.qcow2"),
			 0);
	parse_file("top.qcow2");
	assert_string_equal(h.backing_name, "over.qcow2");
	assert_string_equal(h.backing_format, "qcow2");

	assert_int_equal(sh("qemu-img bitmap --add over.qcow2 b0 && qemu-img bitmap --add over.qcow2 b1"), 0);
	parse_file("over.qcow2");
	assert_int_equal(h.nb_bitmaps, 2);
	assert_int_equal(h.autoclear, 1);
	assert_true(h.bitmap_dir_offset && h.bitmap_dir_size >= 2 * 24);
	assert_int_equal(header_gate(&h, false, "over.qcow2", &err), 0);

	assert_int_equal(sh("qemu-img create -q -f qcow2 --object secret,id=s,data=x "
			    "-o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 luks.qcow2 1M"),
			 0);
	parse_file("luks.qcow2");
	assert_int_equal(h.crypt_method, 2);
	assert_int_equal(header_gate(&h, true, "luks.qcow2", &err), -ENOTSUP);
}

static void qemu_refuses_the_same(void **state)
{
	static const struct {
		unsigned at, bytes;
		uint64_t value;
	} cases[] = {
		{ VERSION, 4, 4 },	  { CLUSTER_BITS, 4, 8 },	  { CLUSTER_BITS, 4, 22 },
		{ REFCOUNT_ORDER, 4, 7 }, { HEADER_LENGTH, 4, 96 },	  { L1_SIZE, 4, (4u << 20) + 1 },
		{ L1_SIZE, 4, 0 },	  { RT_CLUSTERS, 4, 0 },	  { RT_CLUSTERS, 4, 129 },
		{ RT_OFFSET, 8, 66048 },  { L1_OFFSET, 8, 196616 },	  { NB_SNAPSHOTS, 4, 65537 },
		{ COMPRESSION, 1, 1 },	  { BACKING_OFFSET, 8, 1 << 17 }, { SNAPSHOTS_OFFSET, 8, 512 },
	};
	unsigned char *cluster;
	uint64_t size;
	size_t len;
	char path[128];
	FILE *f;
	unsigned i;

	need_qemu_img();
	assert_int_equal(sh("qemu-img create -q -f qcow2 x.qcow2 64M"), 0);
	cluster = slurp("x.qcow2", 0, &len, &size);
	snprintf(path, sizeof(path), "%s/bad.qcow2", scratch_dir);
	for (i = 0; i < COUNT(cases); i++) {
		unsigned char keep[8];

		memcpy(keep, cluster + cases[i].at, 8);
		put_be(cluster + cases[i].at, cases[i].value, cases[i].bytes);
		f = fopen(path, "w");
		assert_non_null(f);
		assert_int_equal(fwrite(cluster, 1, len, f), len);
		assert_int_equal(fclose(f), 0);
		assert_int_equal(header_parse(&h, cluster, len, size, "bad.qcow2", NULL), -EINVAL);
		if (!sh("qemu-img map bad.qcow2 2>/dev/null"))
			fail_msg("qemu-img opens case %u", i);
		memcpy(cluster + cases[i].at, keep, 8);
	}
	assert_int_equal(header_parse(&h, cluster, len, size, "x.qcow2", NULL), 0);
	free(cluster);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(qemu_images),
		cmocka_unit_test(qemu_backing_bitmap_encryption),
		cmocka_unit_test(qemu_refuses_the_same),
	};

	return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}

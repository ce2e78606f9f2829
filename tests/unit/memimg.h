/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * memimg.h - qcow2 images on the disks of memfile.h: made by hand (no code shared with the library), opened,
 * driven by patterned requests, and judged by our check.
 */
#ifndef TESTS_MEMIMG_H
#define TESTS_MEMIMG_H

#include "memfile.h"
#include "qcow2/check.h"
#include "qcow2/format.h"
#include "qcow2/qcow2.h"

#define WRITES (1u << HOST_WRITE | 1u << HOST_ZERO)
#define OFFSET_BITS 0x00fffffffffffe00ull

/* ---- making ---- */

struct spec {
	unsigned version, bits, order; /* 0: 3, 12 and 4 (order 7 means 0: one bit) */
	uint64_t size; /* 0: 1 MiB */
	unsigned rt_clusters; /* 0: 1 */
	const char *backing, *format;
	uint64_t incompatible, autoclear;
};

static inline unsigned disk_bits(struct disk *d)
{
	return (unsigned)disk_be(d, 20, 4);
}

static inline uint64_t disk_cluster(struct disk *d)
{
	return 1ull << disk_bits(d);
}

static inline unsigned disk_order(struct disk *d)
{
	return disk_be(d, 4, 4) < 3 ? 4 : (unsigned)disk_be(d, 96, 4);
}

/* Offset of the refcount block of @cluster, 0 = none. */
static inline uint64_t disk_rb(struct disk *d, uint64_t cluster)
{
	uint64_t per = disk_cluster(d) * 8 >> disk_order(d),
		 entries = disk_be(d, 56, 4) * disk_cluster(d) / 8;

	return cluster / per < entries ? disk_be(d, disk_be(d, 48, 8) + cluster / per * 8, 8) : 0;
}

static inline uint64_t disk_refcount(struct disk *d, uint64_t cluster)
{
	unsigned bits = 1u << disk_order(d);
	uint64_t rb = disk_rb(d, cluster), in = cluster % (disk_cluster(d) * 8 / bits);

	if (!rb)
		return 0;
	if (bits >= 8)
		return disk_be(d, rb + in * bits / 8, bits / 8);
	return disk_be(d, rb + in * bits / 8, 1) >> in * bits % 8 & ((1u << bits) - 1);
}

static inline void disk_set_refcount(struct disk *d, uint64_t cluster, uint64_t value)
{
	unsigned bits = 1u << disk_order(d);
	uint64_t rb = disk_rb(d, cluster), in = cluster % (disk_cluster(d) * 8 / bits), byte;

	assert_true(rb != 0);
	if (bits >= 8) {
		disk_set_be(d, rb + in * bits / 8, value, bits / 8);
		return;
	}
	byte = disk_be(d, rb + in * bits / 8, 1) & ~(uint64_t)(((1u << bits) - 1) << in * bits % 8);
	disk_set_be(d, rb + in * bits / 8, byte | value << in * bits % 8, 1);
}

static inline void disk_header(struct disk *d, const struct spec *s, unsigned version, uint64_t size,
			       uint64_t l1_entries, uint64_t rt)
{
	uint64_t cs = 1ull << (s->bits ? s->bits : 12), at = version < 3 ? 72 : 104;

	disk_set_be(d, 0, 0x514649fb, 4);
	disk_set_be(d, 4, version, 4);
	disk_set_be(d, 20, s->bits ? s->bits : 12, 4);
	disk_set_be(d, 24, size, 8);
	disk_set_be(d, 36, l1_entries, 4);
	disk_set_be(d, 40, (2 + rt) * cs, 8);
	disk_set_be(d, 48, cs, 8);
	disk_set_be(d, 56, rt, 4);
	if (version >= 3) {
		disk_set_be(d, 72, s->incompatible, 8);
		disk_set_be(d, 88, s->autoclear, 8);
		disk_set_be(d, 96, s->order == 7 ? 0 : s->order ? s->order : 4, 4);
		disk_set_be(d, 100, 104, 4);
	}
	if (s->format) {
		disk_set_be(d, at, 0xe2792aca, 4);
		disk_set_be(d, at + 4, strlen(s->format), 4);
		disk_put(d, at + 8, s->format, strlen(s->format));
		at += 8 + (strlen(s->format) + 7) / 8 * 8;
	}
	if (s->backing) {
		disk_set_be(d, 8, at + 8, 8);
		disk_set_be(d, 16, strlen(s->backing), 4);
		disk_put(d, at + 8, s->backing, strlen(s->backing));
	}
}

/* Cluster 0: header; then the refcount table, one refcount block, the L1 table. */
static inline struct disk *disk_make(const struct spec *s)
{
	struct disk *d = disk_new();
	uint64_t bits = s->bits ? s->bits : 12, cs = 1ull << bits, size = s->size ? s->size : 1 << 20;
	uint64_t rt = s->rt_clusters ? s->rt_clusters : 1, span = cs * cs / 8, l1 = (size + span - 1) / span;
	uint64_t used = 2 + rt + (l1 * 8 + cs - 1) / cs, i;

	disk_header(d, s, s->version ? s->version : 3, size, l1, rt);
	disk_set_be(d, cs, (1 + rt) * cs, 8);
	disk_put(d, 0 + (1 + rt) * cs, NULL, cs);
	for (i = 0; i < used; i++)
		disk_set_refcount(d, i, 1);
	d->size = used * cs;
	return d;
}

/* File offset of the L1 and L2 entry of a guest offset (0 = no L2 table), and the L2 entry. */
static inline uint64_t disk_l1_at(struct disk *d, uint64_t guest)
{
	return disk_be(d, 40, 8) + (guest >> (2 * disk_bits(d) - 3)) * 8;
}

static inline uint64_t disk_l2_at(struct disk *d, uint64_t guest)
{
	uint64_t l2 = disk_be(d, disk_l1_at(d, guest), 8) & OFFSET_BITS, per = disk_cluster(d) / 8;

	return l2 ? l2 + (guest >> disk_bits(d)) % per * 8 : 0;
}

static inline uint64_t disk_entry(struct disk *d, uint64_t guest)
{
	uint64_t at = disk_l2_at(d, guest);

	return at ? disk_be(d, at, 8) : 0;
}

static inline uint64_t disk_host(struct disk *d, uint64_t guest)
{
	return disk_entry(d, guest) & OFFSET_BITS;
}

static inline uint64_t disk_append(struct disk *d)
{
	uint64_t cluster = (d->size + disk_cluster(d) - 1) / disk_cluster(d);

	disk_put(d, cluster * disk_cluster(d), NULL, disk_cluster(d));
	disk_set_refcount(d, cluster, 1);
	return cluster * disk_cluster(d);
}

/* Host clusters up to @upto are in use by nobody knows whom; refcount blocks lie on the first cluster they
 * cover. */
static inline uint64_t fill_host(struct disk *d, uint64_t upto)
{
	uint64_t cs = disk_cluster(d), per = cs * 8 >> disk_order(d), c, leaks = 0;

	for (c = d->size / cs; c < upto; c++) {
		leaks += disk_rb(d, c) != 0;
		if (!disk_rb(d, c))
			disk_set_be(d, disk_be(d, 48, 8) + c / per * 8, c * cs, 8);
		disk_set_refcount(d, c, 1);
	}
	disk_put(d, upto * cs - 512, NULL, 512);
	return leaks;
}

/* One more reference to what the entry at @at names, which is no longer the only one. */
static inline void disk_share(struct disk *d, uint64_t at)
{
	uint64_t word = disk_be(d, at, 8), host = word & OFFSET_BITS;

	if (!host)
		return;
	disk_set_be(d, at, word & ~QCOW2_COPIED, 8);
	disk_set_refcount(d, host >> disk_bits(d), disk_refcount(d, host >> disk_bits(d)) + 1);
}

/* An internal snapshot, as qemu-img snapshot -c makes it (no compressed clusters; fewer than one cluster of
 * L1). */
static inline void disk_snapshot(struct disk *d)
{
	uint64_t n = disk_be(d, 36, 4), l1 = disk_be(d, 40, 8), copy = disk_append(d), table = disk_append(d),
		 i, j;

	for (i = 0; i < n; i++) {
		uint64_t l2 = disk_be(d, l1 + 8 * i, 8) & OFFSET_BITS;

		for (j = 0; l2 && j < disk_cluster(d) / 8; j++)
			disk_share(d, l2 + 8 * j);
		disk_share(d, l1 + 8 * i);
		disk_set_be(d, copy + 8 * i, l2, 8);
	}
	disk_set_be(d, table, copy, 8);
	disk_set_be(d, table + 8, n, 4);
	disk_set_be(d, table + 12, 1, 2);
	disk_set_be(d, table + 14, 1, 2);
	disk_set_be(d, table + 36, 16, 4);
	disk_set_be(d, table + 48, disk_be(d, 24, 8), 8);
	disk_put(d, table + 56, "1s", 2);
	disk_set_be(d, 60, 1, 4);
	disk_set_be(d, 64, table, 8);
}

/* ---- judging ---- */

static inline void disk_finding(void *ctx, bool error, const char *text)
{
	unsigned *left = ctx;

	if (*left && (*left)--)
		print_message("    %s: %s\n", error ? "error" : "leak", text);
}

static inline struct check_result disk_check(struct disk *d, bool talk)
{
	unsigned left = 8;
	struct check_callbacks cb = { .finding = talk ? disk_finding : NULL, .ctx = &left };
	struct host_file *f = disk_open(d, true);
	struct check_result res;
	struct qcow2_error err = { "" };

	if (qcow2_check(f, &cb, &res, &err))
		fail_msg("check: %s", err.text);
	f->ops->close(f);
	return res;
}

static inline void assert_clean(struct disk *d)
{
	struct check_result res = disk_check(d, true);

	assert_int_equal(res.errors, 0);
	assert_int_equal(res.leaks, 0);
}

/* ---- driving ---- */

/* With TEST_JOURNAL in the environment every image opened by open_image() has a journal, a fresh one. */
static inline struct qcow2_journal journal_on(struct disk *d, uint64_t size)
{
	struct qcow2_journal j = { .size = size, .boot_id = "sixteen bytes..", .dev = 1, .ino = d->ino };

	free(d->journal);
	j.mem = d->journal = calloc(1, size);
	assert_non_null(j.mem);
	qcow2_journal_format(&j);
	return j;
}

static inline struct qcow2_image *open_image(struct disk *d, const struct qcow2_options *opt)
{
	struct qcow2_options o = opt ? *opt : (struct qcow2_options){ 0 };
	struct qcow2_error err = { "" };
	struct qcow2_image *img = NULL;
	struct qcow2_journal j;

	if (!o.read_only && !o.journal && getenv("TEST_JOURNAL")) {
		j = journal_on(d, qcow2_journal_size());
		o.journal = &j;
	}
	if (qcow2_open(&img, disk_open(d, o.read_only), &o, &err))
		fail_msg("open: %s", err.text);
	return img;
}

static inline void close_image(struct qcow2_image *img)
{
	struct qcow2_error err = { "" };

	if (qcow2_close(img, &err))
		fail_msg("close: %s", err.text);
}

struct job {
	struct qcow2_req req;
	void *buf;
	bool done;
	int res;
};

static inline void job_done(struct qcow2_req *req, int res)
{
	struct job *j = req->owner;

	assert_false(j->done);
	j->done = true;
	j->res = res;
}

/* Start a request; a WRITE writes the byte @fill. */
static inline void job_start(struct job *j, struct qcow2_image *img, enum qcow2_req_op op, uint64_t off,
			     uint64_t len, int fill)
{
	*j = (struct job){ .req = { .op = op, .off = off, .len = len, .done = job_done, .owner = j } };
	if (op == QCOW2_READ || op == QCOW2_WRITE) {
		j->buf = aligned_alloc(4096, (len + 4095) & ~4095ull);
		assert_non_null(j->buf);
		memset(j->buf, fill, len);
		j->req.buf = j->buf;
	}
	assert_int_equal(qcow2_submit(img, &j->req), 0);
}

static inline int job_end(struct job *j)
{
	assert_true(j->done);
	free(j->buf);
	j->buf = NULL;
	return j->res;
}

static inline int do_req(struct qcow2_image *img, enum qcow2_req_op op, uint64_t off, uint64_t len, int fill)
{
	struct job j;
	unsigned turns = 0;

	job_start(&j, img, op, off, len, fill);
	while (!j.done && turns++ < 100000)
		qcow2_run(img, true);
	if (!j.done)
		qcow2_dump(img, stderr);
	return job_end(&j);
}

static inline int do_write(struct qcow2_image *img, uint64_t off, uint64_t len, int fill)
{
	return do_req(img, QCOW2_WRITE, off, len, fill);
}

static inline int do_zero(struct qcow2_image *img, uint64_t off, uint64_t len, unsigned flags)
{
	struct qcow2_req req = {
		.op = QCOW2_WRITE_ZEROES, .off = off, .len = len, .flags = flags, .done = job_done
	};
	struct job j = { .req = req };

	j.req.owner = &j;
	assert_int_equal(qcow2_submit(img, &j.req), 0);
	while (!j.done)
		qcow2_run(img, true);
	return j.res;
}

static inline int do_flush(struct qcow2_image *img)
{
	return do_req(img, QCOW2_FLUSH, 0, 0, 0);
}

/* The range reads as @fill all over. */
static inline void reads(struct qcow2_image *img, uint64_t off, uint64_t len, int fill)
{
	unsigned char *buf = aligned_alloc(4096, (len + 4095) & ~4095ull);
	uint64_t i;
	int ret;

	assert_non_null(buf);
	memset(buf, ~fill, len);
	ret = qcow2_sync(img, QCOW2_READ, buf, len, off);
	if (ret)
		fail_msg("read %llu+%llu: %d", (unsigned long long)off, (unsigned long long)len, ret);
	for (i = 0; i < len; i++)
		if (buf[i] != (unsigned char)fill)
			fail_msg("byte %llu is %u, not %d", (unsigned long long)(off + i), buf[i], fill);
	free(buf);
}

/* Run until nothing moves: everything is done, or waits for I/O that is held. */
static inline void settle(struct qcow2_image *img, struct disk *d)
{
	unsigned before, still = 0;

	while (still < 4) {
		before = d->delivered;
		qcow2_run(img, false);
		still = before == d->delivered ? still + 1 : 0;
	}
}

/* Commit until nothing is left to commit or to free. */
static inline void quiesce(struct qcow2_image *img, struct disk *d)
{
	unsigned i;

	for (i = 0; i < 10 && qcow2_dirty(img); i++) {
		qcow2_commit_start(img);
		settle(img, d);
	}
	assert_false(qcow2_dirty(img));
}

#endif

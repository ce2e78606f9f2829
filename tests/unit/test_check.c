/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The checker against qemu-img check: images of all kinds, random damage; and images made to exhaust it. */
#include "check_kinds.h"
#include <errno.h>

/* ---- images of all kinds ---- */

/* qemu-img check wants the key, though it needs none. */
static struct verdict theirs_encrypted(const char *name, const char *format)
{
	assert_int_equal(sh("qemu-img check --output=json --object secret,id=s,data=x --image-opts "
			    "driver=qcow2,file.filename=%s,encrypt.format=%s,encrypt.key-secret=s >json",
			    name, format),
			 0);
	return (struct verdict){ 0 };
}

static void test_kinds(void **state)
{
	struct verdict a, b;
	size_t i;

	need_qemu_img();
	for (i = 0; i < COUNT(recipes); i++) {
		make(&recipes[i]);
		a = ours("i.qcow2");
		if (strstr(recipes[i].options, "key-secret")) {
			b = theirs_encrypted("i.qcow2", strstr(recipes[i].options, "luks") ? "luks" : "aes");
			b.clusters = a.clusters;
			b.end = a.end;
		} else {
			b = theirs("i.qcow2");
		}
		if (a.refused || a.errors != b.errors || a.leaks != b.leaks || a.allocated != b.allocated ||
		    a.compressed != b.compressed || a.clusters != b.clusters || a.end != b.end) {
			show(recipes[i].name, &a, &b);
			fail_msg("%s: clusters %" PRIu64 "/%" PRIu64 " allocated %" PRIu64 "/%" PRIu64
				 " compressed %" PRIu64 "/%" PRIu64 " end %" PRIu64 "/%" PRIu64,
				 recipes[i].name, a.clusters, b.clusters, a.allocated, b.allocated,
				 a.compressed, b.compressed, a.end, b.end);
		}
	}
}

/* ---- random damage ---- */

static uint64_t rng;

static uint64_t rnd(void) /* xorshift64* */
{
	rng ^= rng >> 12;
	rng ^= rng << 25;
	rng ^= rng >> 27;
	return rng * 0x2545f4914f6cdd1dull;
}

/* Where the tables were before any damage. */
struct places {
	uint64_t l1, l2, rt, rb, snapshots;
};

/* A word of some table. */
static uint64_t random_word(const struct img *m, const struct places *p)
{
	uint64_t at;

	switch (rnd() % 6) {
	case 0:
		at = p->l1 + rnd() % 4 * 8;
		break;
	case 1:
		at = p->rt + rnd() % 2 * 8;
		break;
	case 2:
		at = p->rb + rnd() % 16 * 8;
		break;
	case 3:
		at = p->snapshots ? p->snapshots + rnd() % 8 * 8 : 24 + rnd() % 10 * 8;
		break;
	default:
		at = p->l2 + rnd() % 20 * 8;
	}
	return at + 8 <= m->len ? at : 0;
}

static void mutate(struct img *m, const struct places *p)
{
	uint64_t at = random_word(m, p), word = get64(m, at);

	switch (rnd() % 6) {
	case 0:
		word ^= 1ull << rnd() % 64;
		break;
	case 1:
		word = 0;
		break;
	case 2:
		word = get64(m, random_word(m, p));
		break;
	case 3:
		word = rnd() % (m->len >> m->bits) << m->bits | (rnd() & QCOW2_COPIED);
		break;
	case 4:
		word += 1ull << m->bits;
		break;
	default:
		word = rnd() >> rnd() % 64;
	}
	set64(m, at, word);
}

static bool unclean(const struct verdict *v)
{
	return v->refused || v->errors || v->leaks;
}

/* Header fields about which we are stricter by intention (FORMAT.md, limits). */
static bool strict_header(const struct verdict *v)
{
	return v->refused && strstr(v->text, "(0 snapshots)");
}

static void random_damage(unsigned seed, unsigned *differ)
{
	static const char *const names[] = { "plain", "snap", "bitmap", "tiny" };
	struct img m = img_load(names[seed % 4]);
	struct verdict a, b;
	struct places p;
	unsigned n;

	p = (struct places){ l1(&m, 0), l2(&m, 0, 0), rt(&m, 0), get64(&m, rt(&m, 0)), snapshot(&m) };
	rng = seed * 0x9e3779b97f4a7c15ull + 1;
	for (n = 1 + rnd() % 3; n; n--)
		mutate(&m, &p);
	img_store(&m, "mutant");
	free(m.b);
	a = ours("mutant");
	b = theirs("mutant");
	if (b.killed) {
		print_message("seed %u: qemu-img crashed or hung; ours: %s\n", seed, a.text);
		return;
	}
	if (a.errors != b.errors || a.leaks != b.leaks || a.refused != b.refused) {
		++*differ;
		if (getenv("VERBOSE"))
			show(names[seed % 4], &a, &b);
	}
	if (unclean(&a) == unclean(&b) || (!unclean(&b) && a.errors && a.only_strict && !a.leaks) ||
	    strict_header(&a))
		return;
	show("random damage", &a, &b);
	fail_msg("seed %u: the verdicts differ", seed);
}

static void test_random(void **state)
{
	unsigned seed, differ = 0;

	need_qemu_img();
	make_victims();
	for (seed = 1; seed <= 400; seed++)
		random_damage(seed, &differ);
	print_message("%u of 400 counted differently\n", differ);
}

/* ---- hostile: work and memory are bounded by the file ---- */

static void put_header(struct img *m, unsigned bits, uint64_t size, uint32_t l1_size, uint64_t l1_at,
		       uint32_t order)
{
	m->bits = bits;
	put32(m->b, 0, QCOW2_MAGIC);
	put32(m->b, 4, 3);
	put32(m->b, 20, bits);
	put64(m->b, 24, size);
	put32(m->b, 36, l1_size);
	put64(m->b, 40, l1_at);
	put64(m->b, 48, 1ull << bits);
	put32(m->b, 56, 1);
	put32(m->b, 96, order);
	put32(m->b, 100, 104);
}

/* 4 million L1 entries, all naming one L2 table of 262144 entries, all naming one cluster. */
static void test_many_l1_one_l2(void **state)
{
	const unsigned bits = 21, entries = 4u << 20;
	const uint64_t cluster = 1ull << bits, l1_at = 2 * cluster, l2_at = l1_at + 8ull * entries;
	struct img m = { .len = l2_at + 2 * cluster };
	struct verdict v;
	uint64_t i;

	m.b = calloc(1, m.len);
	assert_non_null(m.b);
	put_header(&m, bits, 0, entries, l1_at, 6);
	for (i = 0; i < entries; i++)
		put64(m.b, l1_at + 8 * i, l2_at);
	for (i = 0; i < cluster / 8; i++)
		put64(m.b, l2_at + 8 * i, l2_at + cluster);
	img_store(&m, "bomb");
	free(m.b);
	v = ours("bomb");
	assert_false(v.refused);
	assert_int_equal(v.allocated, (uint64_t)entries * (cluster / 8));
	assert_true(v.errors > 0);
	assert_int_equal(v.leaks, 0);
}

/* Thousands of snapshots with overlapping L1 tables over the same bytes. */
static void test_overlapping_snapshots(void **state)
{
	const unsigned bits = 9, snaps = 60000, l1_entries = 1u << 20;
	const uint64_t table = (uint64_t)snaps * 40, l1_at = (1024 + table + 511) & ~511ull;
	struct img m = { .len = l1_at + 8ull * l1_entries + 512ull * snaps };
	struct verdict v;
	uint64_t i;

	m.b = calloc(1, m.len);
	assert_non_null(m.b);
	put_header(&m, bits, 0, 0, 0, 4);
	put32(m.b, 60, snaps);
	put64(m.b, 64, 1024);
	for (i = 0; i < snaps; i++) {
		put64(m.b, 1024 + 40 * i, l1_at + 512 * i);
		put32(m.b, 1024 + 40 * i + 8, l1_entries);
	}
	for (i = l1_at; i < m.len; i += 8)
		put64(m.b, i, l1_at);
	img_store(&m, "snapbomb");
	free(m.b);
	v = ours("snapbomb");
	assert_false(v.refused);
	assert_true(v.errors > 0);
}

/* A file that is nearly all hole, with entries that scatter over it. */
static void test_sparse_giant(void **state)
{
	const unsigned bits = 16;
	struct img m = { .len = 1u << 20 };
	struct verdict v;
	unsigned i;

	m.b = calloc(1, m.len);
	assert_non_null(m.b);
	put_header(&m, bits, 8192ull << bits, 1, 2ull << bits, 4);
	put64(m.b, 2ull << bits, 3ull << bits);
	for (i = 0; i < 8192; i++)
		put64(m.b, (3ull << bits) + 8 * i, (i * 100ull + 16) << bits);
	img_store(&m, "giant");
	free(m.b);
	assert_int_equal(sh("truncate -s 1T giant"), 0);
	v = ours("giant");
	assert_false(v.refused);
	assert_int_equal(v.allocated, 8192);
	assert_int_equal(v.errors, 8192 + 4); /* header, refcount table, L1, L2: no refcount anywhere */
	assert_int_equal(v.leaks, 0);
	/* more clusters than counters can be had for: refused, not tried */
	if (!sh("truncate -s 8000T giant 2>/dev/null"))
		assert_true(ours("giant").refused);
}

/* ---- errors of the host, callbacks ---- */

static unsigned reads_left;
static int (*real_pread)(struct host_file *file, void *buf, size_t len, uint64_t off);

static int failing_pread(struct host_file *file, void *buf, size_t len, uint64_t off)
{
	return reads_left-- ? real_pread(file, buf, len, off) : -EIO;
}

/* Whichever read fails: the check fails with a message, it does not call the image bad or good. */
static void test_read_errors(void **state)
{
	struct qcow2_error err = { "" };
	struct check_result res;
	struct host_ops ops;
	struct host_file *f;
	unsigned n;
	char path[256];
	int ret = -EIO;

	need_qemu_img();
	make_victims();
	snprintf(path, sizeof(path), "%s/snap", scratch_dir);
	assert_int_equal(host_open_sync(&f, path, true, &err), 0);
	ops = *f->ops;
	real_pread = ops.pread;
	ops.pread = failing_pread;
	f->ops = &ops;
	for (n = 0; ret; n++) {
		assert_true(n < 1000);
		reads_left = n;
		err.text[0] = 0;
		ret = qcow2_check(f, NULL, &res, &err);
		assert_true(ret == 0 || ret == -EIO);
		assert_true(!ret == !err.text[0]);
	}
	assert_true(n > 8);
	assert_int_equal(res.errors, 0);
	f->ops->close(f);
}

struct heard {
	unsigned errors, leaks;
	uint64_t last;
};

static void hear(void *ctx, bool error, const char *text)
{
	struct heard *h = ctx;

	assert_true(strlen(text) > 10 && !strchr(text, '\n'));
	*(error ? &h->errors : &h->leaks) += 1;
}

static void advance(void *ctx, uint64_t progress, uint64_t total)
{
	struct heard *h = ctx;

	assert_true(progress >= h->last && progress <= total);
	h->last = progress;
}

/* Every leak counts, but whoever listens is not flooded. */
static void test_flood(void **state)
{
	struct heard h = { 0 };
	const struct check_callbacks cb = { .finding = hear, .progress = advance, .ctx = &h };
	struct img m = { .len = 64 << 10 };
	struct qcow2_error err = { "" };
	struct check_result res;
	struct host_file *f;
	char path[256];
	unsigned i;

	m.b = calloc(1, m.len);
	assert_non_null(m.b);
	put_header(&m, 12, 0, 0, 0, 0);
	for (i = 0; i < 8; i++)
		put64(m.b, 4096 + 8 * i, 8192 + 4096 * i);
	memset(m.b + 8192, 0xff, 8 * 4096);
	img_store(&m, "flood");
	free(m.b);
	assert_int_equal(sh("truncate -s 1G flood"), 0);
	snprintf(path, sizeof(path), "%s/flood", scratch_dir);
	assert_int_equal(host_open_sync(&f, path, true, &err), 0);
	assert_int_equal(qcow2_check(f, &cb, &res, &err), 0);
	f->ops->close(f);
	assert_int_equal(res.errors, 0);
	assert_int_equal(res.leaks, 262144 - 10); /* header, refcount table, 8 refcount blocks */
	assert_int_equal(h.leaks, 10001);
	assert_true(h.last > 0);
}

static void test_unsupported(void **state)
{
	need_qemu_img();
	assert_int_equal(sh("qemu-img create -q -f qcow2 -o data_file=d,data_file_raw=on e 1M"), 0);
	assert_true(ours("e").refused);
	assert_int_equal(sh("qemu-img create -q -f qcow2 -o extended_l2=on e 1M"), 0);
	assert_true(ours("e").refused);
	assert_int_equal(sh(": >e"), 0);
	assert_true(ours("e").refused);
	assert_int_equal(sh("head -c 70 plain >e 2>/dev/null || printf 'QFI\\373' >e"), 0);
	assert_true(ours("e").refused);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_kinds),	       cmocka_unit_test(test_random),
		cmocka_unit_test(test_many_l1_one_l2), cmocka_unit_test(test_overlapping_snapshots),
		cmocka_unit_test(test_sparse_giant),   cmocka_unit_test(test_read_errors),
		cmocka_unit_test(test_flood),	       cmocka_unit_test(test_unsupported),
	};

	return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What has damaged images under another writer of qcow2 (Cloud Hypervisor; the numbers are its issues), each
 * as a case that this library must survive. How each of them went there is said above its test.
 *
 * Built with the rules of qcow2/broken.h (peer-mutants) main() runs each test once more with what protects
 * from it broken: it must fail.
 */
#include "memimg.h"
#include "qcow2/broken.h"
#include "qcow2/commit.h"
#include "qcow2/metamap.h"

#define CLUSTERS 256u

static struct disk *d, *base; /* base: raw, every byte 0x42 */
static struct qcow2_image *img;

static uint64_t cs(void)
{
	return disk_cluster(d);
}

static void start(const struct spec *s)
{
	d = disk_make(s);
	img = open_image(d, NULL);
}

static void finish(void)
{
	close_image(img);
	assert_clean(d);
	disk_free(d);
}

/* The process dies without closing: what it knew is gone, the file stays. */
static struct disk *what_is_left(void)
{
	struct disk *left = disk_clone(d);

	d->fail = d->hold = 0;
	settle(img, d);
	close_image(img);
	disk_free(d);
	return left;
}

static void assert_no_errors(struct disk *disk)
{
	if (disk_check(disk, false).errors) {
		disk_check(disk, true);
		fail_msg("check finds errors");
	}
}

static void snapshot_of(uint64_t bytes, int fill)
{
	assert_int_equal(do_write(img, 0, bytes, fill), 0);
	close_image(img);
	disk_snapshot(d);
	img = open_image(d, NULL);
}

/* ---- #8606: "allocator handed out clusters that were still live L2 tables" ---- */

/* No host cluster is named twice, by tables or by guest data; @seen: one byte for each. */
static void assert_named_once(void)
{
	static uint8_t seen[1 << 16];
	struct qcow2_map_extent e;
	uint64_t guest, i, host;

	memset(seen, 0, sizeof(seen));
	for (i = 0; i < sizeof(seen); i++)
		seen[i] = metamap_get(img->meta, i) != META_NONE;
	for (guest = 0; guest < img->geo.size; guest += e.len) {
		assert_int_equal(qcow2_map(img, guest, &e), 0);
		for (i = 0; e.has_host && i < e.len; i += cs()) {
			host = (e.host + i) / cs();
			assert_true(host < sizeof(seen));
			if (seen[host]++)
				fail_msg("guest byte %llu is in cluster %llu, which is taken",
					 (unsigned long long)(guest + i), (unsigned long long)host);
		}
	}
}

/* Tables of a snapshot are copied, clusters freed and taken, for long; then a table whose refcount was lost.
 */
static void live_l2_tables_are_not_allocated_8606(void **state)
{
	uint64_t l2, rnd = 1;
	unsigned i;

	start(&(struct spec){ .bits = 9, .size = 128 << 10 });
	snapshot_of(96 << 10, 1);
	for (i = 0; i < 1500; i++) {
		rnd = rnd * 6364136223846793005ull + 1442695040888963407ull;
		assert_int_equal(do_req(img, i % 3 ? QCOW2_WRITE : QCOW2_DISCARD,
					(rnd >> 33) % CLUSTERS * cs(), cs(), 2),
				 0);
		if (i % 5 == 0)
			assert_int_equal(do_flush(img), 0);
		if (i % 50 == 0)
			assert_named_once();
	}
	quiesce(img, d);
	l2 = disk_be(d, disk_l1_at(d, 0), 8) & OFFSET_BITS;
	close_image(img);
	assert_clean(d);
	disk_set_refcount(d, l2 / cs(), 0);
	img = open_image(d, NULL);
	for (i = 0; i < CLUSTERS && img->mode == MODE_RW; i++)
		(void)do_write(img, i * cs(), cs(), 3);
	settle(img, d);
	assert_named_once();
	close_image(img);
	disk_free(d);
}

/* ---- #8637: ENOSPC while an L2 table moved: "the live one" was free ---- */

/* Every write of the move fails in turn. Then others use the space, and the process dies. */
static bool moved(unsigned n)
{
	struct disk *left;
	bool hit;

	start(&(struct spec){ .bits = 9, .size = 128 << 10 });
	snapshot_of(64 << 10, 1);
	disk_fail(d, WRITES, -ENOSPC, n, false);
	(void)do_write(img, 0, cs(), 2);
	(void)do_flush(img);
	hit = d->failed;
	(void)do_write(img, 96 << 10, 32 << 10, 3);
	left = what_is_left();
	d = left;
	assert_no_errors(d);
	img = open_image(d, NULL);
	reads(img, cs(), (64 << 10) - cs(), 1);
	close_image(img);
	disk_free(d);
	return hit;
}

static void enospc_while_a_table_moves_8637(void **state)
{
	unsigned n;

	for (n = 1; moved(n); n++)
		;
	assert_true(n > 4); /* table, data, refcount block, L1 */
}

/* ---- #8624: "stale punch-hole": a delayed one erased the cluster's next owner ---- */

static void a_late_punch_hits_nobody_8624(void **state)
{
	unsigned i;

	start(&(struct spec){ .bits = 9, .size = 128 << 10 });
	assert_int_equal(do_write(img, 0, 16 * cs(), 1), 0);
	assert_int_equal(do_req(img, QCOW2_DISCARD, 0, cs(), 0), 0);
	quiesce(img, d); /* so that the next search for free clusters begins there */
	d->hold = 1u << HOST_PUNCH;
	assert_int_equal(do_req(img, QCOW2_DISCARD, cs(), 15 * cs(), 0), 0);
	for (i = 0; i < 3; i++) { /* the refcounts become durable and the punch is on its way */
		qcow2_commit_start(img);
		settle(img, d);
	}
	assert_false(STAILQ_EMPTY(&d->queue));
	for (i = 1; i < 4; i++) /* new data and new L2 tables */
		assert_int_equal(do_write(img, i * 32768, 16 * cs(), 2), 0);
	d->hold = 0;
	settle(img, d);
	for (i = 1; i < 4; i++)
		reads(img, i * 32768, 16 * cs(), 2);
	finish();
}

/* ---- #8721: L1 named the new L2 table before its refcount was there; a failure made that permanent ---- */

static bool published(unsigned n, bool copy)
{
	struct disk *left;
	bool hit;

	start(&(struct spec){ .bits = 9, .size = 128 << 10 });
	if (copy)
		snapshot_of(64 << 10, 1);
	disk_fail(d, WRITES, -ENOSPC, n, false);
	(void)do_write(img, 0, cs(), 2);
	(void)do_flush(img);
	hit = d->failed;
	left = what_is_left();
	assert_no_errors(left);
	disk_free(left);
	return hit;
}

static void refcount_before_l1_entry_8721(void **state)
{
	unsigned n, copy;

	for (copy = 0; copy < 2; copy++) {
		for (n = 1; published(n, copy); n++)
			;
		assert_true(n > 4);
	}
}

/* ---- #8621: several queues over a backing file ---- */

static struct {
	bool set;
	unsigned file;
	enum word_kind kind;
	uint64_t host;
} words[CLUSTERS];

static void on_publish(void *ctx, uint64_t guest, uint64_t len, enum word_kind kind, unsigned file,
		       uint64_t host, bool writable)
{
	uint64_t at;

	for (at = 0; at < len; at += cs()) {
		words[(guest + at) / cs()].set = true;
		words[(guest + at) / cs()].kind = kind;
		words[(guest + at) / cs()].file = file;
		words[(guest + at) / cs()].host = host + at;
	}
}

static int on_withdraw(void *ctx, uint64_t guest, uint64_t len, struct op *op)
{
	uint64_t at;

	for (at = 0; at < len; at += cs())
		words[(guest + at) / cs()].set = false;
	return 0;
}

static int open_base(void *ctx, const char *path, enum backing_format format, struct host_file **out,
		     struct qcow2_error *err)
{
	*out = disk_open(base, true);
	return 0;
}

/* A queue thread reads a sector through its word. */
static void hit_reads(uint64_t sector, uint8_t want)
{
	uint64_t c = sector * 512 / cs(), in = sector * 512 % cs();
	uint8_t buf[512] = { 0 };

	if (!words[c].set)
		return;
	if (words[c].kind == WORD_DATA)
		disk_get(words[c].file ? base : d, words[c].host + in, buf, 512);
	if (buf[0] != want || buf[511] != want)
		fail_msg("sector %llu: a hit reads %u, not %u", (unsigned long long)sector, buf[0], want);
}

static uint8_t want[256]; /* of each sector */

/* Let some of the host I/O through; what is done shows in hits, whoever still waits for the same cluster.
 * True: all are. */
static bool some_io(struct job *j, unsigned n, unsigned held)
{
	unsigned k, done = 0;

	d->hold = held & (1u << HOST_READ | 1u << HOST_WRITE);
	base->hold = held >> 4 & 1u << HOST_READ;
	qcow2_run(img, false);
	for (k = 0; k < n; k++)
		if (j[k].done) {
			hit_reads(j[k].req.off / 512, want[j[k].req.off / 512]);
			done++;
		}
	return done == n;
}

/* 24 writes at a time, each to its own sector of a few clusters; with blocks of 4096 each is a
 * read-modify-write of all of its cluster. */
static void queues(uint32_t dio_align)
{
	static const struct qcow2_table_ops table = { .publish = on_publish, .withdraw = on_withdraw };
	static const struct qcow2_opener opener = { .open = open_base };
	static uint8_t all[1 << 20];
	struct job j[24];
	unsigned round, i, sector, rnd = 1;

	base = disk_new();
	memset(all, 0x42, sizeof(all));
	disk_put(base, 0, all, sizeof(all));
	memset(want, 0x42, sizeof(want));
	memset(words, 0, sizeof(words));
	d = disk_make(&(struct spec){ .backing = "base", .format = "raw" });
	d->dio_align = dio_align;
	img = open_image(d, &(struct qcow2_options){ .table = &table, .opener = &opener });
	for (round = 0; round < 60; round++) {
		reads(img, 0, 512, want[0]); /* publishes what is around */
		for (i = 0; i < 24; i++) {
			sector = (round / 10 * 32 + i * 4 / 3 + round) % 256;
			hit_reads(sector, want[sector]);
			want[sector] = (uint8_t)(1 + round);
			job_start(&j[i], img, QCOW2_WRITE, sector * 512ull, 512, (int)want[sector]);
			rnd = rnd * 1103515245 + 12345;
			some_io(j, i + 1, rnd >> 16);
		}
		for (i = 0; !some_io(j, 24, i % 2 ? rnd >> i % 16 : 0); i++)
			assert_true(i < 1000);
		for (i = 0; i < 24; i++)
			assert_int_equal(job_end(&j[i]), 0);
		d->hold = base->hold = 0;
		for (sector = 0; sector < 256; sector++) {
			hit_reads(sector, want[sector]);
			reads(img, sector * 512ull, 512, want[sector]);
		}
	}
	finish();
	disk_free(base);
}

static void queues_over_a_backing_file_8621(void **state)
{
	queues(1);
	queues(4096);
}

/* ---- #8358: guest data over the first 64 KiB ---- */

static bool cluster_0_as(struct disk *was)
{
	uint8_t a[4096], b[4096];

	disk_get(was, 0, a, sizeof(a));
	disk_get(d, 0, b, sizeof(b));
	memset(b + 72, 0, 8); /* the corrupt bit */
	memset(a + 72, 0, 8);
	return !memcmp(a, b, sizeof(a));
}

/* The entry of guest cluster 1 is @word, the refcount of cluster 0 is 0 if @uncounted; the whole disk is
 * written to, then discarded. */
static void writes_with(unsigned version, uint64_t word, bool uncounted)
{
	struct disk *was;
	unsigned i;

	start(&(struct spec){ .version = version });
	assert_int_equal(do_write(img, 0, 4 * cs(), 1), 0);
	close_image(img);
	was = disk_clone(d);
	disk_set_be(d, disk_l2_at(d, cs()), word, 8);
	if (uncounted)
		disk_set_refcount(d, 0, 0);
	img = open_image(d, NULL);
	for (i = 0; i < CLUSTERS; i++)
		(void)do_write(img, i * cs(), cs() - 512 * (i % 2), 5);
	(void)do_flush(img);
	(void)do_req(img, QCOW2_DISCARD, 0, CLUSTERS * cs(), 0);
	for (i = 0; i < 3; i++) {
		qcow2_commit_start(img);
		settle(img, d);
	}
	close_image(img);
	assert_true(cluster_0_as(was));
	disk_free(was);
	disk_free(d);
}

static void cluster_0_is_not_for_guests_8358(void **state)
{
	unsigned version, uncounted;

	for (version = 2; version <= 3; version++)
		for (uncounted = 0; uncounted < 2; uncounted++) {
			writes_with(version, 0, uncounted);
			writes_with(version, QCOW2_COPIED, uncounted);
			writes_with(version, QCOW2_L2_ZERO, uncounted);
			writes_with(version, QCOW2_L2_ZERO | QCOW2_COPIED, uncounted);
			writes_with(version, QCOW2_COPIED | 512, uncounted);
			writes_with(version, QCOW2_L2_COMPRESSED | 512, uncounted);
		}
}

/* ---- #8597: the file doubled while check stayed clean ---- */

/* Rewritten, and synced each time, also where tables of a snapshot were copied first: as long as before.
 * (Millions, with discards: test_growth.) */
static void syncs_do_not_make_the_file_grow_8597(void **state)
{
	uint64_t size = 0;
	unsigned i;

	start(&(struct spec){ .bits = 9, .order = 6, .size = 128 << 10 });
	snapshot_of(64 << 10, 1);
	for (i = 0; i < 3000; i++) {
		if (i == 1500)
			size = d->size;
		assert_int_equal(do_write(img, i * 7 % CLUSTERS * cs(), cs(), 2), 0);
		assert_int_equal(do_flush(img), 0);
		assert_int_equal(do_req(img, QCOW2_DISCARD, i * 5 % CLUSTERS * cs(), cs(), 0), 0);
	}
	assert_int_equal(d->size, size);
	finish();
}

/* ---- #7526: L1 entries without COPIED ---- */

static void l1_entries_have_copied_7526(void **state)
{
	unsigned copy, i;

	for (copy = 0; copy < 2; copy++) {
		start(&(struct spec){ .bits = 9, .size = 128 << 10 });
		if (copy)
			snapshot_of(128 << 10, 1);
		for (i = 0; i < 4; i++)
			assert_int_equal(do_write(img, i * 32768, cs(), 2), 0);
		quiesce(img, d);
		for (i = 0; i < 4; i++)
			assert_true(disk_be(d, disk_l1_at(d, i * 32768), 8) & QCOW2_COPIED);
		finish();
	}
}

/* ---- #8008: "no overlap checks" before metadata are written ---- */

/* Something else is known to lie where the changed L2 table is. It is not written; the image is marked. */
static void overlaps_are_noticed_8008(void **state)
{
	uint64_t l2;
	struct disk *was;

	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 0, cs(), 1), 0);
	quiesce(img, d);
	l2 = disk_be(d, disk_l1_at(d, 0), 8) & OFFSET_BITS;
	was = disk_clone(d);
	assert_int_equal(do_write(img, cs(), cs(), 2), 0);
	metamap_set(img->meta, l2 / cs(), META_RB);
	assert_int_equal(do_flush(img), -EUCLEAN);
	settle(img, d);
	assert_int_equal(img->mode, MODE_RO);
	assert_int_equal(disk_be(d, l2 + 8, 8), disk_be(was, l2 + 8, 8));
	close_image(img);
	assert_int_equal(disk_be(d, 72, 8), QCOW2_INCOMPAT_CORRUPT);
	disk_free(was);
	disk_free(d);
}

#ifndef QCOW2_TEST_MUTATIONS
int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(live_l2_tables_are_not_allocated_8606),
		cmocka_unit_test(enospc_while_a_table_moves_8637),
		cmocka_unit_test(a_late_punch_hits_nobody_8624),
		cmocka_unit_test(refcount_before_l1_entry_8721),
		cmocka_unit_test(queues_over_a_backing_file_8621),
		cmocka_unit_test(cluster_0_is_not_for_guests_8358),
		cmocka_unit_test(syncs_do_not_make_the_file_grow_8597),
		cmocka_unit_test(l1_entries_have_copied_7526),
		cmocka_unit_test(overlaps_are_noticed_8008),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
#else
#include <sys/wait.h>
#include <unistd.h>

enum qcow2_rule qcow2_broken;

/* True if the test fails; in a process of its own, as it leaves things behind. */
static bool fails(const struct CMUnitTest *test, enum qcow2_rule rule)
{
	pid_t pid;
	int status;

	fflush(stdout);
	pid = fork();
	if (!pid) {
		const struct CMUnitTest tests[] = { *test };

		if (!freopen("/dev/null", "w", stdout) || !freopen("/dev/null", "w", stderr))
			_exit(0);
		alarm(60);
		qcow2_broken = rule;
		_exit(cmocka_run_group_tests(tests, NULL, NULL) != 0);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && status;
}

int main(void)
{
	const struct {
		struct CMUnitTest test;
		enum qcow2_rule rule;
	} mutants[] = {
		{ cmocka_unit_test(live_l2_tables_are_not_allocated_8606), RULE_REMOVAL_FIRST },
		{ cmocka_unit_test(live_l2_tables_are_not_allocated_8606), RULE_OVERLAP },
		{ cmocka_unit_test(enospc_while_a_table_moves_8637), RULE_REMOVAL_FIRST },
		{ cmocka_unit_test(a_late_punch_hits_nobody_8624), RULE_QUARANTINE },
		{ cmocka_unit_test(refcount_before_l1_entry_8721), RULE_REFCOUNTS_FIRST },
		{ cmocka_unit_test(queues_over_a_backing_file_8621), RULE_WITHDRAW_FIRST },
		{ cmocka_unit_test(cluster_0_is_not_for_guests_8358), RULE_OVERLAP },
		{ cmocka_unit_test(syncs_do_not_make_the_file_grow_8597), RULE_REUSE },
		{ cmocka_unit_test(overlaps_are_noticed_8008), RULE_OVERLAP },
	};
	unsigned i, missed = 0;
	bool found;

	for (i = 0; i < COUNT(mutants); i++) {
		found = !fails(&mutants[i].test, RULE_NONE) && fails(&mutants[i].test, mutants[i].rule);
		printf("%s %s, rule %d broken\n", found ? "ok  " : "FAIL", mutants[i].test.name,
		       mutants[i].rule);
		missed += !found;
	}
	return missed != 0;
}
#endif

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * An image that is rewritten and discarded for long stays as long as its live data need: random writes,
 * discards and zeroes, of which never more than a quarter of the disk is live, at places that wander, with
 * commits running beside them. At every flush the file may hold the metadata, the live clusters and those on
 * their way through the quarantine, no more. At the end nothing is leaked, what is free was punched, and all
 * discarded leaves only metadata. TEST_SCALE=long: millions of requests.
 */
#include "memimg.h"

#define MAX_SECTORS 16384u
#define MOST 16u /* sectors of a request, clusters of a discard */

struct config {
	struct spec spec;
	bool snapshot; /* of a quarter of it, kept */
	bool table_grows; /* that of the refcounts */
	uint64_t cache_bytes;
};

static struct disk *d;
static struct qcow2_image *img;
static uint64_t cs, clusters, live, live_most, freed, rng;
static uint64_t most_freed; /* then a flush */
static uint8_t fill[MAX_SECTORS]; /* of each sector */
static bool is_live[MAX_SECTORS]; /* guest cluster: has a host cluster, as far as the requests tell */

static uint64_t rnd(uint64_t n)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (rng >> 11) % n;
}

static void set_live(uint64_t c, bool to)
{
	live += (uint64_t)to - is_live[c];
	freed += is_live[c]; /* or replaced: shared with the snapshot */
	is_live[c] = to;
}

/* Clusters that the file may have. */
static uint64_t bound(const struct config *k)
{
	uint64_t per_l2 = cs / 8, per_rb = cs * 8 >> disk_order(d), l1 = disk_be(d, 36, 4),
		 rt = disk_be(d, 56, 4), all;

	all = 1 + (l1 * 8 + cs - 1) / cs + (clusters + per_l2 - 1) / per_l2 * (k->snapshot ? 2 : 1);
	all += 2 + 2 * rt + live_most +
	       (k->snapshot ? clusters / 4 : 0); /* snapshot table and L1; old table */
	all += 3 * (most_freed + MOST) + MOST; /* open, closing, lowered; being written */
	return all + all / per_rb + 1;
}

static void write_some(bool zero)
{
	uint64_t per = cs / 512, sectors = clusters * per, first = rnd(sectors), n = 1 + rnd(MOST), c;
	int byte = zero ? 0 : 1 + (int)rnd(255);

	if (rnd(3) == 0) {
		first = first / per * per;
		n = (n + per - 1) / per * per;
	}
	if (n > sectors - first)
		n = sectors - first;
	if (!zero)
		assert_int_equal(do_write(img, first * 512, n * 512, byte), 0);
	else
		assert_int_equal(do_zero(img, first * 512, n * 512, rnd(2) ? QCOW2_REQ_NO_UNMAP : 0), 0);
	memset(fill + first, byte, n);
	for (c = first / per; c <= (first + n - 1) / per; c++)
		if (!zero || first > c * per || first + n < (c + 1) * per)
			set_live(c, true);
}

static void discard_some(void)
{
	uint64_t c = rnd(clusters), n = 1 + rnd(MOST), per = cs / 512;

	if (n > clusters - c)
		n = clusters - c;
	assert_int_equal(do_req(img, QCOW2_DISCARD, c * cs, n * cs, 0), 0);
	memset(fill + c * per, 0, n * per);
	for (; n; n--)
		set_live(c++, false);
}

static void look(void)
{
	uint64_t s = rnd(clusters * cs / 512);

	reads(img, s * 512, 512, fill[s]);
}

static void flush(const struct config *k)
{
	assert_int_equal(do_flush(img), 0);
	freed = 0;
	if (d->size > bound(k) * cs)
		fail_msg("the file has %llu clusters, %llu are live, %llu were at most: it may have %llu",
			 (unsigned long long)(d->size / cs), (unsigned long long)live,
			 (unsigned long long)live_most, (unsigned long long)bound(k));
}

static void use(const struct config *k, unsigned requests)
{
	for (; requests; requests--) {
		uint64_t what = live + MOST > clusters / 4 ? 99 : rnd(100);

		if (what < 60)
			write_some(false);
		else if (what < 70)
			write_some(true);
		else if (what < 80)
			look();
		else
			discard_some();
		live_most = live > live_most ? live : live_most;
		if (freed > most_freed || !rnd(100))
			flush(k);
		else if (!rnd(20))
			qcow2_commit_start(img); /* it goes on beside the next requests */
	}
}

static void assert_free_is_punched(void)
{
	static const uint8_t zero[65536];
	uint8_t buf[65536];
	uint64_t c;

	for (c = 0; c < d->size / cs; c++) {
		disk_get(d, c * cs, buf, cs);
		if (!disk_refcount(d, c) && memcmp(buf, zero, cs))
			fail_msg("cluster %llu is free and holds data", (unsigned long long)c);
	}
}

static void reopen(const struct config *k)
{
	close_image(img);
	assert_clean(d);
	img = open_image(d, &(struct qcow2_options){ .cache_bytes = k->cache_bytes });
}

static void one(const struct config *k)
{
	bool is_long = getenv("TEST_SCALE") && !strcmp(getenv("TEST_SCALE"), "long");
	unsigned round, requests = is_long ? 1000000 : 40000;
	uint64_t s;

	d = disk_make(&k->spec);
	cs = disk_cluster(d);
	clusters = k->spec.size / cs;
	assert_true(k->spec.size / 512 <= MAX_SECTORS);
	memset(fill, 0, sizeof(fill));
	memset(is_live, 0, sizeof(is_live));
	live = live_most = freed = 0;
	most_freed = clusters / 32;
	rng = 88172645463325252ull;
	img = open_image(d, &(struct qcow2_options){ .cache_bytes = k->cache_bytes });
	if (k->snapshot) {
		assert_int_equal(do_write(img, 0, clusters / 4 * cs, 7), 0);
		memset(fill, 7, clusters / 4 * cs / 512);
		close_image(img);
		disk_snapshot(d);
		img = open_image(d, &(struct qcow2_options){ .cache_bytes = k->cache_bytes });
	}
	for (round = 0; round < 4; round++) {
		use(k, requests / 4);
		reopen(k);
	}
	for (s = 0; s < k->spec.size / 512; s++)
		reads(img, s * 512, 512, fill[s]);
	assert_free_is_punched();
	assert_int_equal(do_req(img, QCOW2_DISCARD, 0, clusters * cs, 0), 0);
	reopen(k);
	assert_int_equal(disk_be(d, 56, 4) > 1, k->table_grows);
	assert_int_equal(disk_check(d, false).allocated, 0);
	assert_free_is_punched();
	print_message("    %u-byte clusters%s: %llu live at most, the file has %llu\n", (unsigned)cs,
		      k->snapshot ? ", snapshot" : "", (unsigned long long)live_most,
		      (unsigned long long)(d->size / cs));
	close_image(img);
	disk_free(d);
}

static void does_not_grow(void **state)
{
	static const struct config configs[] = {
		{ .spec = { .bits = 9, .size = 1 << 20 }, .cache_bytes = 1 },
		{ .spec = { .bits = 9, .order = 6, .size = 8 << 20 }, .table_grows = true },
		{ .spec = { .bits = 10, .order = 5, .size = 1 << 20 }, .snapshot = true, .cache_bytes = 1 },
		{ .spec = { .bits = 12, .size = 4 << 20 } },
		{ .spec = { .bits = 12, .version = 2, .size = 2 << 20 } },
		{ .spec = { .bits = 16, .size = 8 << 20 } },
	};
	unsigned i;

	for (i = 0; i < COUNT(configs); i++)
		one(&configs[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(does_not_grow) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the image tells the mapping table, and when (DESIGN section 4): a table that records. Words are right,
 * writable only for what is ours alone and after the first-write transition; withdrawn and drained before a
 * mapping changes; never published where somebody is about to change it; withdrawn when the mode drops.
 */
#include "memimg.h"
#include "qcow2/op.h"

#define CS 4096ull
#define CLUSTERS 256

struct word {
	bool set, writable;
	enum word_kind kind;
	unsigned file;
	uint64_t host;
};

static struct word words[CLUSTERS];
static unsigned published, withdrawn;
static bool in_flight; /* withdraw must wait */
static struct op *waiter;
static struct disk *d, *base;
static struct qcow2_image *img;

static void on_publish(void *ctx, uint64_t guest, uint64_t len, enum word_kind kind, unsigned file,
		       uint64_t host, bool writable)
{
	uint64_t at;

	assert_int_equal((guest | len) % CS, 0);
	assert_true(len > 0 && guest + len <= CLUSTERS * CS);
	assert_true(kind == WORD_DATA || !writable);
	assert_true(!file || !writable);
	assert_null(waiter); /* nobody publishes what is being drained: there is one range in these tests */
	published++;
	for (at = 0; at < len; at += CS)
		words[(guest + at) / CS] = (struct word){ true, writable, kind, file, host + at };
}

static int on_withdraw(void *ctx, uint64_t guest, uint64_t len, struct op *op)
{
	uint64_t c;

	assert_int_equal((guest | len) % CS, 0);
	withdrawn++;
	for (c = guest / CS; c < (guest + len) / CS; c++)
		words[c].set = false;
	if (!in_flight)
		return 0;
	assert_null(waiter);
	waiter = op;
	op_get(op);
	return -EWOULDBLOCK;
}

static void drained(void)
{
	struct op *op = waiter;

	assert_non_null(op);
	waiter = NULL;
	in_flight = false;
	op_put(op, 0);
}

static const struct qcow2_table_ops table = { .publish = on_publish, .withdraw = on_withdraw };

static int open_base(void *ctx, const char *path, enum backing_format format, struct host_file **out,
		     struct qcow2_error *err)
{
	*out = disk_open(base, true);
	return 0;
}

static void open_it(bool read_only)
{
	static const struct qcow2_opener opener = { .open = open_base };
	struct qcow2_options opt = { .table = &table, .opener = &opener, .read_only = read_only };

	memset(words, 0, sizeof(words));
	published = withdrawn = 0;
	img = open_image(d, &opt);
}

static void start(const struct spec *s)
{
	d = disk_make(s);
	open_it(false);
}

static void finish(void)
{
	unsigned c;

	close_image(img);
	for (c = 0; c < CLUSTERS; c++)
		assert_false(words[c].set);
	assert_clean(d);
	disk_free(d);
	if (base)
		disk_free(base);
	base = NULL;
}

static void assert_word(unsigned c, enum word_kind kind, bool writable)
{
	if (!words[c].set)
		fail_msg("cluster %u is not published", c);
	assert_int_equal(words[c].kind, kind);
	assert_int_equal(words[c].writable, writable);
}

/* An allocating write publishes what it wrote; a miss that only the table caused publishes what is around, too. */
static void after_write(void **state)
{
	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 4 * CS + 512, CS, 1), 0);
	assert_word(4, WORD_DATA, true);
	assert_word(5, WORD_DATA, true);
	assert_false(words[6].set);
	reads(img, 20 * CS, CS, 0);
	assert_word(6, WORD_ZERO, false);
	assert_word(255, WORD_ZERO, false);
	words[6].set = words[7].set = false;
	assert_int_equal(do_write(img, 4 * CS, CS, 2), 0); /* in place */
	assert_word(7, WORD_ZERO, false);
	quiesce(img, d);
	assert_int_equal(words[4].host, disk_host(d, 4 * CS));
	assert_int_equal(words[5].host, disk_host(d, 5 * CS));
	assert_int_equal(words[4].file, 0);
	finish();
}

/* A read publishes too; in a read-only image nothing writable. */
static void after_read(void **state)
{
	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 0, CS, 1), 0);
	close_image(img);
	open_it(true);
	reads(img, 0, CS, 1);
	assert_word(0, WORD_DATA, false);
	close_image(img);
	open_it(false);
	reads(img, 0, CS, 1);
	assert_word(0, WORD_DATA, true); /* no autoclear bit: nothing has to happen before the first write */
	finish();
}

/* Not writable until the autoclear bits are durably cleared: the first write may be a hit nobody sees. */
static void first_write(void **state)
{
	struct job w;

	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 0, 2 * CS, 1), 0);
	close_image(img);
	disk_set_be(d, 88, 4, 8);
	open_it(false);
	reads(img, 0, 2 * CS, 1);
	assert_word(0, WORD_DATA, false);
	d->hold = 1u << HOST_FSYNC;
	d->let = 1; /* S1 has one of its own */
	job_start(&w, img, QCOW2_WRITE, 0, 512, 2);
	settle(img, d);
	reads(img, CS, CS, 1); /* the header is written but not durable */
	assert_int_equal(disk_be(d, 88, 8), 0);
	assert_word(1, WORD_DATA, false);
	d->hold = 0;
	settle(img, d);
	assert_int_equal(job_end(&w), 0);
	assert_word(0, WORD_DATA, true);
	finish();
}

/* Shared with a snapshot: read-only; after copy-on-write writable, elsewhere. */
static void shared(void **state)
{
	uint64_t host;

	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 0, 2 * CS, 1), 0);
	close_image(img);
	disk_snapshot(d);
	open_it(false);
	reads(img, 0, 2 * CS, 1);
	assert_word(0, WORD_DATA, false);
	host = words[0].host;
	assert_int_equal(host, disk_host(d, 0));
	assert_int_equal(do_write(img, 512, 512, 2), 0);
	assert_word(0, WORD_DATA, true);
	assert_true(words[0].host != host);
	assert_word(1, WORD_DATA, false);
	finish();
}

/* Data of another file: its number and place, never writable. Zeroes past its end. */
static void backing(void **state)
{
	uint8_t *buf = calloc(1, 11 * CS);

	assert_non_null(buf);
	base = disk_new();
	disk_put(base, 0, buf, 10 * CS + 512);
	free(buf);
	start(&(struct spec){ .backing = "base", .format = "raw" });
	assert_int_equal(do_write(img, CS, CS, 1), 0);
	reads(img, 3 * CS, CS, 0);
	assert_word(0, WORD_DATA, false);
	assert_int_equal(words[0].file, 1);
	assert_word(1, WORD_DATA, true);
	assert_int_equal(words[1].file, 0);
	assert_word(9, WORD_DATA, false);
	assert_int_equal(words[9].host, 9 * CS);
	assert_false(words[10].set); /* half of it is the file's */
	assert_word(11, WORD_ZERO, false);
	finish();
}

/* In place nothing is withdrawn; an allocation, a discard and zeroes withdraw exactly once, before anything
 * else. */
static void withdraw_before_change(void **state)
{
	struct job j;

	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 0, 4 * CS, 1), 0);
	quiesce(img, d);
	withdrawn = 0;
	assert_int_equal(do_write(img, CS, CS, 2), 0);
	assert_int_equal(withdrawn, 0);
	d->record = true;
	in_flight = true;
	job_start(&j, img, QCOW2_DISCARD, CS, CS, 0);
	settle(img, d);
	assert_int_equal(withdrawn, 1);
	assert_false(j.done);
	assert_false(words[1].set);
	assert_false(qcow2_dirty(img)); /* a hit is in flight: nothing has changed */
	drained();
	settle(img, d);
	assert_int_equal(job_end(&j), 0);
	assert_true(qcow2_dirty(img));
	assert_word(1, WORD_ZERO, false);
	in_flight = true;
	d->events = 0;
	job_start(&j, img, QCOW2_WRITE, CS, CS, 3);
	settle(img, d);
	assert_int_equal(withdrawn, 2);
	assert_false(words[1].set);
	assert_int_equal(d->events, 0); /* no host I/O at all before the drain */
	drained();
	settle(img, d);
	assert_int_equal(job_end(&j), 0);
	assert_word(1, WORD_DATA, true);
	finish();
}

/* The word of an allocating write appears when the data is there, not before. */
static void publish_after_data(void **state)
{
	struct job j;

	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 0, CS, 1), 0);
	d->hold = WRITES;
	job_start(&j, img, QCOW2_WRITE, 7 * CS, CS, 3);
	settle(img, d);
	assert_false(words[7].set);
	reads(img, 0, CS, 1); /* a reader in the same block publishes its own only */
	assert_false(words[7].set);
	assert_word(0, WORD_DATA, true);
	d->hold = 0;
	settle(img, d);
	assert_int_equal(job_end(&j), 0);
	assert_word(7, WORD_DATA, true);
	finish();
}

/* A reader that began before the change, and ends while somebody waits to make it, publishes nothing there.
 */
static void no_publish_for_waiting_change(void **state)
{
	struct job r, w;

	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 0, 2 * CS, 1), 0);
	withdrawn = 0;
	memset(words, 0, sizeof(words));
	d->hold = 1u << HOST_READ;
	job_start(&r, img, QCOW2_READ, 0, 2 * CS, 0);
	settle(img, d);
	job_start(&w, img, QCOW2_DISCARD, 0, CS, 0);
	settle(img, d);
	assert_int_equal(withdrawn, 0); /* waits for the range */
	in_flight = true;
	d->hold = 0;
	published = 0;
	settle(img, d);
	assert_int_equal(job_end(&r), 0);
	assert_int_equal(published, 0);
	assert_false(words[0].set);
	assert_int_equal(withdrawn, 1);
	drained();
	settle(img, d);
	assert_int_equal(job_end(&w), 0);
	assert_word(0, WORD_ZERO, false);
	finish();
}

/* A write that fails leaves no word behind that was withdrawn. */
static void failed_write(void **state)
{
	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 0, CS, 1), 0);
	reads(img, 8 * CS, CS, 0);
	assert_word(8, WORD_ZERO, false);
	disk_fail(d, 1u << HOST_WRITE, -EIO, 1, false);
	assert_int_equal(do_write(img, 8 * CS, CS, 1), -EIO);
	assert_false(words[8].set);
	finish();
}

/* A write below the direct I/O granularity is a read-modify-write: withdrawn, though the mapping stays. */
static void below_dio(void **state)
{
	d = disk_make(&(struct spec){ .bits = 12 });
	d->dio_align = 4096;
	open_it(false);
	assert_int_equal(do_write(img, 0, 2 * CS, 1), 0);
	withdrawn = 0;
	assert_int_equal(do_write(img, 0, 2 * CS, 2), 0);
	assert_int_equal(withdrawn, 0);
	assert_int_equal(do_write(img, 512, 512, 3), 0);
	assert_int_equal(withdrawn, 1);
	assert_word(0, WORD_DATA, true);
	finish();
}

/* A failed fsync: every word is withdrawn, later ones are not writable. */
static void mode_drops(void **state)
{
	struct qcow2_error err = { "" };
	unsigned c;

	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 0, 4 * CS, 1), 0);
	assert_word(0, WORD_DATA, true);
	disk_fail(d, 1u << HOST_FSYNC, -EIO, 1, false);
	assert_int_equal(do_flush(img), -EIO);
	for (c = 0; c < CLUSTERS; c++)
		assert_false(words[c].set);
	reads(img, 0, 4 * CS, 1);
	assert_word(0, WORD_DATA, false);
	assert_int_equal(qcow2_close(img, &err), -EIO);
	for (c = 0; c < CLUSTERS; c++)
		assert_false(words[c].set);
	disk_free(d);
}

/* Closing waits for the drain before it commits. */
static void close_drains(void **state)
{
	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 0, 4 * CS, 1), 0);
	withdrawn = 0;
	finish();
	assert_int_equal(withdrawn, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(after_write),
		cmocka_unit_test(after_read),
		cmocka_unit_test(first_write),
		cmocka_unit_test(shared),
		cmocka_unit_test(backing),
		cmocka_unit_test(withdraw_before_change),
		cmocka_unit_test(publish_after_data),
		cmocka_unit_test(no_publish_for_waiting_change),
		cmocka_unit_test(failed_write),
		cmocka_unit_test(below_dio),
		cmocka_unit_test(mode_drops),
		cmocka_unit_test(close_drains),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

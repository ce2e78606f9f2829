// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Every host I/O of a short workload fails once (and once: from then on, until the workload is over): the
 * error reaches a request, nothing hangs, what was flushed stays, requests that failed leave old or new
 * content; once the host is well again the image works, and closed it has no errors and no leaks. After a
 * failed fsync: no errors, everything flushed before it is there, and nothing claims to be durable any more.
 */
#include "memimg.h"

#define SIZE (256ull << 10)
#define SECTORS (SIZE / 512)

struct todo {
	enum qcow2_req_op op;
	unsigned off, len; /* sectors */
	unsigned fill;
	bool together; /* with the next one */
};

static const struct todo workload[] = {
	{ QCOW2_WRITE, 3, 9, 10, true }, /* allocates, partial clusters at both ends */
	{ QCOW2_WRITE, 300, 40, 11, true }, /* another L2 table */
	{ QCOW2_READ, 100, 60, 0, false },
	{ QCOW2_WRITE, 101, 1, 12, false }, /* copies table and cluster that are the snapshot's too */
	{ QCOW2_FLUSH, 0, 0, 0, false },
	{ QCOW2_WRITE, 4, 2, 13, true }, /* in place */
	{ QCOW2_DISCARD, 104, 24, 0, true },
	{ QCOW2_WRITE_ZEROES, 305, 11, 0, false },
	{ QCOW2_FLUSH, 0, 0, 0, false },
	{ QCOW2_WRITE, 200, 60, 14, false }, /* wants the space back, and another refcount block */
	{ QCOW2_FLUSH, 0, 0, 0, true },
	{ QCOW2_WRITE, 400, 24, 15, false },
	{ QCOW2_READ, 0, 512, 0, false },
	{ QCOW2_DISCARD, 0, 64, 0, false },
	{ QCOW2_FLUSH, 0, 0, 0, false },
	{ QCOW2_WRITE, 40, 40, 16, false },
};

static uint64_t may[SECTORS]; /* bit n: the sector may hold bytes n */
static uint64_t kept[SECTORS]; /* the same for what a crash leaves: may[] since the last flush */

static void narrow(const struct todo *t)
{
	unsigned i;

	for (i = t->off; i < t->off + t->len; i++)
		may[i] = 1ull << t->fill;
}

static void widen(uint64_t *set, const struct todo *t)
{
	unsigned i;

	for (i = t->off; i < t->off + t->len; i++)
		set[i] |= 1ull << t->fill;
}

static bool changes(const struct todo *t)
{
	return t->op != QCOW2_READ && t->op != QCOW2_FLUSH;
}

static void expect(const struct todo *t, const unsigned char *buf, const uint64_t *set)
{
	unsigned i;

	for (i = 0; i < t->len; i++)
		if (buf[512 * i] > 63 || buf[512 * i] != buf[512 * i + 511] ||
		    !(set[t->off + i] >> buf[512 * i] & 1))
			fail_msg("sector %u holds %u", t->off + i, buf[512 * i]);
}

static void finished(const struct todo *t, struct job *j, unsigned *errors)
{
	*errors += j->res != 0;
	if (changes(t)) {
		if (!j->res && t->op != QCOW2_DISCARD)
			narrow(t);
		else
			widen(may, t); /* before it was started already, but a discard may be undone below */
	} else if (t->op == QCOW2_READ && !j->res) {
		expect(t, j->buf, may);
	}
	job_end(j);
}

static unsigned run_all(struct qcow2_image *img)
{
	struct job j[COUNT(workload)];
	unsigned i = 0, first, k, turns, errors = 0;

	while (i < COUNT(workload)) {
		for (first = i;; i++) {
			if (changes(&workload[i])) {
				widen(may, &workload[i]);
				widen(kept, &workload[i]);
			}
			job_start(&j[i], img, workload[i].op, 512ull * workload[i].off,
				  512ull * workload[i].len, (int)workload[i].fill);
			if (!workload[i].together)
				break;
		}
		i++;
		for (turns = 0, k = first; k < i; k++) {
			while (!j[k].done && turns++ < 10000)
				qcow2_run(img, true);
			if (!j[k].done) {
				qcow2_dump(img, stderr);
				fail_msg("request %u hangs", k);
			}
			/* alone: what the flush found finished is durable now */
			if (workload[k].op == QCOW2_FLUSH && !j[k].res && i - first == 1)
				memcpy(kept, may, sizeof(may));
			finished(&workload[k], &j[k], &errors);
		}
	}
	return errors;
}

static void read_all(struct qcow2_image *img, unsigned char *buf, const uint64_t *set)
{
	const struct todo whole = { QCOW2_READ, 0, SECTORS, 0, false };

	assert_int_equal(qcow2_sync(img, QCOW2_READ, buf, SIZE, 0), 0);
	expect(&whole, buf, set);
}

static struct disk *base;
static unsigned char *content, *again;

static int setup(void **state)
{
	struct qcow2_image *img;

	base = disk_make(&(struct spec){ .bits = 9, .order = 5, .size = SIZE });
	img = open_image(base, NULL);
	assert_int_equal(do_write(img, 100 * 512, 64 * 512, 1), 0);
	close_image(img);
	disk_snapshot(base);
	assert_clean(base);
	content = aligned_alloc(4096, SIZE);
	again = aligned_alloc(4096, SIZE);
	return content && again ? 0 : -1;
}

static int teardown(void **state)
{
	disk_free(base);
	free(content);
	free(again);
	return 0;
}

static void begin(void)
{
	unsigned i;

	for (i = 0; i < SECTORS; i++)
		kept[i] = may[i] = i >= 100 && i < 164 ? 1u << 1 : 1u << 0;
}

/* The host is well again. */
static void recovered(struct qcow2_image *img, struct disk *d)
{
	const struct todo more = { QCOW2_WRITE, 90, 20, 30, false };
	struct check_result res;

	assert_int_equal(do_flush(img), 0);
	read_all(img, content, may);
	assert_int_equal(do_write(img, 512ull * more.off, 512ull * more.len, (int)more.fill), 0);
	narrow(&more);
	memset(content + 512 * more.off, (int)more.fill, 512ull * more.len);
	close_image(img);
	res = disk_check(d, true);
	assert_int_equal(res.errors, 0);
	assert_int_equal(res.leaks, 0);
	img = open_image(d, NULL);
	read_all(img, again, may);
	assert_memory_equal(content, again, SIZE);
	close_image(img);
}

/* Fail the nth; false: the workload does not have so many. */
static bool one(unsigned ops, int err, unsigned n, bool always)
{
	struct disk *d = disk_clone(base);
	struct qcow2_image *img = open_image(d, NULL);
	unsigned errors;
	bool hit;

	begin();
	disk_fail(d, ops, err, n, always);
	errors = run_all(img);
	hit = d->failed != 0;
	d->fail = 0;
	if (hit && !errors && ops & WRITES && always)
		fail_msg("every write fails from the %uth on, and nobody was told", n);
	if (!hit)
		assert_int_equal(errors, 0);
	recovered(img, d);
	disk_free(d);
	return hit;
}

static void every(unsigned ops, int err, bool always, unsigned at_least)
{
	unsigned n = 1;

	while (one(ops, err, n, always))
		n++;
	print_message("    %u points\n", n - 1);
	assert_true(n > at_least);
}

static void writes_once_eio(void **state)
{
	every(WRITES, -EIO, false, 30);
}

static void writes_once_enospc(void **state)
{
	every(WRITES, -ENOSPC, false, 30);
}

static void writes_enospc_for_a_while(void **state)
{
	every(WRITES, -ENOSPC, true, 30);
}

static void reads_once(void **state)
{
	every(1u << HOST_READ, -EIO, false, 8);
}

static void reads_for_a_while(void **state)
{
	every(1u << HOST_READ, -EIO, true, 8);
}

static void punches_do_not_matter(void **state)
{
	struct disk *d = disk_clone(base);
	struct qcow2_image *img = open_image(d, NULL);

	begin();
	disk_fail(d, 1u << HOST_PUNCH, -EOPNOTSUPP, 1, true);
	assert_int_equal(run_all(img), 0);
	assert_true(d->failed);
	recovered(img, d);
	disk_free(d);
}

static bool fsync_fails(int err, unsigned n)
{
	struct disk *d = disk_clone(base);
	struct qcow2_image *img = open_image(d, NULL);
	struct qcow2_error text = { "" };
	bool hit;
	int ret;

	begin();
	disk_fail(d, 1u << HOST_FSYNC, err, n, false);
	run_all(img);
	hit = d->failed != 0;
	if (hit) {
		assert_int_equal(do_flush(img), -EIO);
		assert_int_equal(do_write(img, 0, 512, 1), -EIO);
		assert_int_equal(do_req(img, QCOW2_DISCARD, 0, SIZE, 0), -EIO);
		read_all(img, content, may);
	}
	ret = qcow2_close(img, &text);
	assert_int_equal(ret, hit ? -EIO : d->failed ? err : 0); /* or it was one of the close's own */
	hit = d->failed != 0;
	assert_int_equal(disk_check(d, false).errors, 0);
	d->fail = 0;
	img = open_image(d, NULL);
	read_all(img, again, hit ? kept : may);
	close_image(img);
	assert_int_equal(disk_check(d, false).errors, 0);
	disk_free(d);
	return hit;
}

static void fsyncs(void **state)
{
	unsigned n;

	for (n = 1; fsync_fails(n % 2 ? -EIO : -ENOSPC, n); n++)
		;
	print_message("    %u points\n", n - 1);
	assert_true(n > 8);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(writes_once_eio),
		cmocka_unit_test(writes_once_enospc),
		cmocka_unit_test(writes_enospc_for_a_while),
		cmocka_unit_test(reads_once),
		cmocka_unit_test(reads_for_a_while),
		cmocka_unit_test(punches_do_not_matter),
		cmocka_unit_test(fsyncs),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}

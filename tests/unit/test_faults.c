// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Every host I/O of opening, a short workload and closing fails once (and: from then on for a while), on
 * images of all kinds. The error reaches the request that it belongs to and no other one, nothing hangs, what
 * was flushed stays, requests that failed leave old or new content; once the host is well again the image
 * works, and closed it has no errors and no leaks. After a failed fsync: no errors, everything flushed before
 * it is there, and nothing claims to be durable any more. (Transfers that end early are the backends' own
 * business: test_io_sync, test_daemon_ring.)
 */
#include <stdlib.h>

/* The library's allocations go through the linker's --wrap; those of this file do not. */
void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
int __real_posix_memalign(void **p, size_t align, size_t size);
#define malloc(size) __real_malloc(size)
#define calloc(n, size) __real_calloc(n, size)
#define realloc(p, size) __real_realloc(p, size)
#define posix_memalign(p, align, size) __real_posix_memalign(p, align, size)

#include "compressed.h"

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
	{ QCOW2_WRITE, 101, 1, 12, false }, /* copies what is a snapshot's, a backing file's, compressed */
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

static unsigned refused; /* requests that there was no memory for */
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

/* ---- whose error is it? ---- */

static struct {
	unsigned first, end; /* requests in flight now */
	unsigned failed_first, failed_end; /* when the fault struck */
	int owner; /* the request whose bytes were being written; -1: nobody knows */
	unsigned owned; /* faults with an owner, of this kind of image */
	int res[COUNT(workload)];
} blame;

static bool holds_sector_of(const struct host_io *io, unsigned fill)
{
	const uint8_t *p = io->buf;
	uint64_t i, k;

	for (i = 0; i < io->len; i += 512) {
		for (k = 0; k < 512 && p[i + k] == fill; k++)
			;
		if (k == 512)
			return true;
	}
	return false;
}

static void on_fail(const struct host_io *io)
{
	unsigned i;

	blame.failed_first = blame.first;
	blame.failed_end = blame.end;
	for (i = blame.first; io->op == HOST_WRITE && i < blame.end; i++)
		if (workload[i].op == QCOW2_WRITE && holds_sector_of(io, workload[i].fill))
			blame.owner = (int)i;
	blame.owned += blame.owner >= 0;
}

/* One fault: nobody else is told than who was there, and if it was in somebody's own data just that one, with
 * what the host said. */
static void assert_blamed(int err)
{
	int i;

	for (i = 0; i < (int)COUNT(workload); i++) {
		bool there = i >= (int)blame.failed_first && i < (int)blame.failed_end;
		bool may_fail = blame.owner < 0 ? there : i == blame.owner;

		if (blame.res[i] && (!may_fail || blame.res[i] != err))
			fail_msg("request %d ends with %d", i, blame.res[i]);
		if (i == blame.owner && !blame.res[i])
			fail_msg("the data of request %d could not be written, and it was not told", i);
	}
}

static void start(struct qcow2_image *img, struct job *j, const struct todo *t)
{
	*j = (struct job){ .req = { .op = t->op, .done = job_done, .owner = j } };
	j->req.off = 512ull * t->off;
	j->req.len = 512ull * t->len;
	if (t->len)
		j->req.buf = j->buf = aligned_alloc(4096, (j->req.len + 4095) & ~4095ull);
	if (t->len)
		memset(j->buf, (int)t->fill, j->req.len);
	j->res = qcow2_submit(img, &j->req);
	j->done = j->res;
}

/* A request there was no memory for is started again, as the daemon does; the host never says so here. */
static bool once_more(struct qcow2_image *img, struct job *j)
{
	if (j->res != -ENOMEM)
		return false;
	refused++;
	j->done = false;
	j->res = qcow2_submit(img, &j->req);
	return true;
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
			start(img, &j[i], &workload[i]);
			if (!workload[i].together)
				break;
		}
		i++;
		blame.first = first;
		blame.end = i;
		for (turns = 0, k = first; k < i; k++) {
			while ((!j[k].done || once_more(img, &j[k])) && turns++ < 10000)
				qcow2_run(img, true);
			if (!j[k].done) {
				qcow2_dump(img, stderr);
				fail_msg("request %u hangs", k);
			}
			/* alone: what the flush found finished is durable now */
			if (workload[k].op == QCOW2_FLUSH && !j[k].res && i - first == 1)
				memcpy(kept, may, sizeof(may));
			blame.res[k] = j[k].res;
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

/* ---- the images ---- */

static struct disk *base, *below; /* below: the raw backing file */
static uint64_t initial[SECTORS]; /* as may[] */
static uint64_t leaks; /* that the image begins with */
static bool discards; /* it does not ignore them */
static unsigned char *content, *again;

static int open_below(void *ctx, const char *path, enum backing_format format, struct host_file **out,
		      struct qcow2_error *err)
{
	*out = disk_open(below, true);
	return 0;
}

static const struct qcow2_opener opener = { .open = open_below };

static struct qcow2_image *open_it(struct disk *d)
{
	return open_image(d, &(struct qcow2_options){ .opener = &opener });
}

static void holds(unsigned first, unsigned n, unsigned fill)
{
	for (; n; n--)
		initial[first++] = 1ull << fill;
}

static void with_data(const struct spec *s)
{
	struct qcow2_image *img;

	base = disk_make(s);
	img = open_image(base, NULL);
	assert_int_equal(do_write(img, 100 * 512, 64 * 512, 1), 0);
	close_image(img);
	holds(100, 64, 1);
}

static void make_snapshot(void)
{
	with_data(&(struct spec){ .bits = 9, .order = 5, .size = SIZE });
	disk_snapshot(base);
}

static void make_snapshot_4096(void)
{
	with_data(&(struct spec){ .bits = 12, .size = SIZE });
	disk_snapshot(base);
}

/* Shorter than the image. */
static void make_over(unsigned version)
{
	unsigned char *twos = malloc(300 * 512);

	assert_non_null(twos);
	memset(twos, 2, 300 * 512);
	below = disk_new();
	disk_put(below, 0, twos, 300 * 512);
	free(twos);
	base = disk_make(&(struct spec){
		.version = version, .bits = 11, .size = SIZE, .backing = "below", .format = "raw" });
	holds(0, 300, 2);
}

static void make_backing(void)
{
	make_over(3);
}

static void make_v2_backing(void)
{
	make_over(2);
	discards = false;
}

static void make_compressed(void)
{
	unsigned c;

	with_data(&(struct spec){ .bits = 12, .size = SIZE });
	for (c = 8; c < 12; c++)
		disk_compressed(base, c * 4096, 3);
	holds(64, 32, 3);
}

/* The refcount table is full a few clusters from here. */
static void make_growth(void)
{
	base = disk_make(&(struct spec){ .bits = 9, .order = 6, .size = SIZE });
	fill_host(base, 4096 - 40);
}

static void make_dio(void)
{
	with_data(&(struct spec){ .bits = 13, .size = SIZE });
	base->dio_align = 4096;
}

static void make_autoclear(void)
{
	with_data(&(struct spec){ .bits = 12, .size = SIZE, .autoclear = 4 });
	disk_set_be(base, 88, 4, 8);
}

static const struct kind {
	const char *name;
	void (*make)(void);
} kinds[] = {
	{ "snapshot", make_snapshot },	   { "snapshot, 4096", make_snapshot_4096 },
	{ "backing file", make_backing },  { "version 2 over a backing file", make_v2_backing },
	{ "compressed", make_compressed }, { "refcount table grows", make_growth },
	{ "blocks of 4096", make_dio },	   { "autoclear", make_autoclear },
};

static void begin_kind(const struct kind *k)
{
	discards = true;
	blame.owned = 0;
	holds(0, SECTORS, 0);
	k->make();
	assert_int_equal(disk_check(base, false).errors, 0);
	leaks = disk_check(base, false).leaks;
}

static void end_kind(const struct kind *k, unsigned points)
{
	print_message("    %s: %u points\n", k->name, points);
	disk_free(base);
	if (below)
		disk_free(below);
	below = NULL;
}

static struct disk *fresh(void)
{
	struct disk *d = disk_clone(base);

	d->dio_align = base->dio_align;
	memcpy(may, initial, sizeof(may));
	memcpy(kept, initial, sizeof(kept));
	blame.owner = -1;
	blame.failed_first = blame.failed_end = 0;
	d->on_fail = on_fail;
	if (below)
		below->on_fail = on_fail;
	return d;
}

/* The nth of @ops on the image, or on the backing file. */
static struct disk *arm(struct disk *d, bool on_below, unsigned ops, int err, unsigned n, bool always)
{
	disk_fail(on_below ? below : d, ops, err, n, always);
	return on_below ? below : d;
}

/* ---- during the workload ---- */

/* The host is well again. @may_leak: more than there was. */
static void recovered(struct qcow2_image *img, struct disk *d, bool may_leak)
{
	const struct todo more = { QCOW2_WRITE, 90, 20, 30, false };
	struct check_result res;

	assert_int_equal(do_flush(img), 0);
	read_all(img, content, may);
	assert_int_equal(do_write(img, 512ull * more.off, 512ull * more.len, (int)more.fill), 0);
	narrow(&more);
	memset(content + 512 * more.off, (int)more.fill, 512ull * more.len);
	close_image(img);
	res = disk_check(d, false);
	if (res.errors || (!may_leak && res.leaks != leaks))
		disk_check(d, true);
	assert_int_equal(res.errors, 0);
	assert_true(may_leak || res.leaks == leaks);
	img = open_it(d);
	read_all(img, again, may);
	assert_memory_equal(content, again, SIZE);
	close_image(img);
}

/* Fail the nth; false: the workload does not have so many. */
static bool one(bool on_below, unsigned ops, int err, unsigned n, bool always)
{
	bool hint = ops & 1u << HOST_PUNCH;
	struct disk *d = fresh(), *sick;
	struct qcow2_image *img = open_it(d);
	unsigned errors;
	bool hit;

	sick = arm(d, on_below, ops, err, n, always);
	errors = run_all(img);
	hit = sick->failed != 0;
	sick->fail = hint ? ops : 0; /* a hint may fail for ever */
	if (hit && !errors && ops & WRITES && always)
		fail_msg("every write fails from the %uth on, and nobody was told", n);
	if (!hit)
		assert_int_equal(errors, 0);
	if (hint)
		assert_int_equal(errors, 0);
	else if (!always)
		assert_blamed(err);
	recovered(img, d, false);
	hit |= sick->failed != 0;
	disk_free(d);
	return hit;
}

/* On every kind of image, and on its backing file. */
static void every(unsigned ops, int err, bool always, unsigned at_least)
{
	unsigned i, n, points;

	for (i = 0; i < COUNT(kinds); i++) {
		begin_kind(&kinds[i]);
		for (n = 1; one(false, ops, err, n, always); n++)
			;
		points = n - 1;
		assert_true(points > at_least && (blame.owned >= 5 || !(ops & 1u << HOST_WRITE)));
		for (n = 1; below && ops & 1u << HOST_READ && one(true, ops, err, n, always); n++)
			points++;
		end_kind(&kinds[i], points);
	}
}

static void writes_once_eio(void **state)
{
	every(WRITES, -EIO, false, 15);
}

static void writes_once_enospc(void **state)
{
	every(WRITES, -ENOSPC, false, 15);
}

static void writes_enospc_for_a_while(void **state)
{
	every(WRITES, -ENOSPC, true, 15);
}

static void reads_once(void **state)
{
	every(1u << HOST_READ, -EIO, false, 4);
}

static void reads_for_a_while(void **state)
{
	every(1u << HOST_READ, -EIO, true, 4);
}

/* ---- no memory ---- */

static unsigned alloc_fail, alloc_failed; /* the nth from now on fails, 0: none; those that did */

static bool no_memory(void)
{
	if (!alloc_fail || --alloc_fail)
		return false;
	alloc_failed++;
	return true;
}

void *__wrap_malloc(size_t size);
void *__wrap_malloc(size_t size)
{
	return no_memory() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
	return no_memory() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size)
{
	return no_memory() ? NULL : __real_realloc(p, size);
}

int __wrap_posix_memalign(void **p, size_t align, size_t size);
int __wrap_posix_memalign(void **p, size_t align, size_t size)
{
	return no_memory() ? ENOMEM : __real_posix_memalign(p, align, size);
}

/*
 * Every allocation fails once: no request gets another error than ENOMEM, and who starts it again then, whole,
 * has it done. The device does so: memory that is short is no reason to lose a write.
 */
static void no_memory_once(void **state)
{
	unsigned k, n, errors;

	for (k = 0; k < COUNT(kinds); k++) {
		begin_kind(&kinds[k]);
		refused = n = 0;
		do {
			struct disk *d = fresh();
			struct qcow2_image *img = open_it(d);

			alloc_failed = 0;
			alloc_fail = ++n;
			errors = run_all(img);
			alloc_fail = 0;
			assert_int_equal(errors, 0);
			recovered(img, d, true); /* what a list of clusters to be freed had no room for */
			disk_free(d);
		} while (alloc_failed);
		assert_true(refused > 20);
		end_kind(&kinds[k], n - 1);
	}
}

static void punches_do_not_matter(void **state)
{
	every(1u << HOST_PUNCH, -EIO, false, 0);
	every(1u << HOST_PUNCH, -EOPNOTSUPP, true, 0);
}

/* ---- fsync, that of close included ---- */

static bool fsync_fails(int err, unsigned n)
{
	struct disk *d = fresh();
	struct qcow2_image *img = open_it(d);
	struct qcow2_error text = { "" };
	bool hit;
	int ret;

	disk_fail(d, 1u << HOST_FSYNC, err, n, false);
	run_all(img);
	hit = d->failed != 0;
	if (hit) {
		assert_int_equal(do_flush(img), -EIO);
		assert_int_equal(do_write(img, 0, 512, 1), -EIO);
		assert_int_equal(do_req(img, QCOW2_DISCARD, 0, SIZE, 0), discards ? -EIO : 0);
		read_all(img, content, may);
	}
	ret = qcow2_close(img, &text);
	assert_int_equal(ret, hit ? -EIO : d->failed ? err : 0); /* or it was one of the close's own */
	hit = d->failed != 0;
	assert_int_equal(disk_check(d, false).errors, 0);
	d->fail = 0;
	img = open_it(d);
	read_all(img, again, hit ? kept : may);
	close_image(img);
	assert_int_equal(disk_check(d, false).errors, 0);
	disk_free(d);
	return hit;
}

static void fsyncs(void **state)
{
	unsigned i, n;

	for (i = 0; i < COUNT(kinds); i++) {
		begin_kind(&kinds[i]);
		for (n = 1; fsync_fails(n % 2 ? -EIO : -ENOSPC, n); n++)
			;
		assert_true(n > 8);
		end_kind(&kinds[i], n - 1);
	}
}

/* ---- open and close ---- */

static struct qcow2_journal journal_of(struct disk *d)
{
	return (struct qcow2_journal){ .mem = d->journal,
				       .size = qcow2_journal_size(),
				       .boot_id = "sixteen bytes..",
				       .dev = 1,
				       .ino = d->ino };
}

/* The nth I/O of the close fails: it says so, and the image is as after a crash; with a journal the next one
 * has all of it, and no leaks. */
static bool close_fails(unsigned ops, int err, unsigned n, bool always)
{
	struct disk *d = fresh();
	struct qcow2_image *img = open_it(d);
	struct qcow2_error text = { "" };
	struct qcow2_journal j;
	bool hit, live;
	int ret;

	assert_int_equal(run_all(img), 0);
	disk_fail(d, ops, err, n, always);
	ret = qcow2_close(img, &text);
	hit = d->failed != 0;
	d->fail = 0;
	assert_true(!ret || (hit && ret == err && strstr(text.text, "may be lost")));
	assert_int_equal(disk_check(d, false).errors, 0);
	j = journal_of(d);
	live = d->journal && qcow2_journal_live(&j);
	assert_true(live || !ret || !d->journal);
	img = open_image(d, &(struct qcow2_options){ .opener = &opener, .journal = live ? &j : NULL });
	read_all(img, again, live || !ret ? may : kept);
	close_image(img);
	assert_int_equal(disk_check(d, false).errors, 0);
	if (live || !ret)
		assert_int_equal(disk_check(d, false).leaks, leaks);
	disk_free(d);
	return hit;
}

static void closes(void **state)
{
	unsigned i, n, k, points;

	for (i = 0; i < COUNT(kinds); i++) {
		begin_kind(&kinds[i]);
		for (k = 0, points = 0; k < 6; k++, points += n - 1) {
			static const unsigned ops[] = { WRITES, WRITES, 1u << HOST_READ };
			static const int errs[] = { -EIO, -ENOSPC, -EIO };

			for (n = 1; close_fails(ops[k % 3], errs[k % 3], n, k / 3); n++)
				;
			assert_true(k % 3 == 2 || n > 2);
		}
		end_kind(&kinds[i], points);
	}
}

/* The nth I/O of the open fails, that of a journal that a process left when it was killed included: it says
 * so, and the next open finds everything. */
static bool open_fails(struct disk *left, unsigned ops, int err, unsigned n, unsigned *opened)
{
	struct disk *d = disk_clone(left);
	struct qcow2_journal j = journal_of(left);
	struct qcow2_options opt = { .opener = &opener, .journal = &j };
	struct qcow2_error text = { "" };
	struct qcow2_image *img = NULL;
	int ret;
	bool hit;

	d->dio_align = left->dio_align;
	d->ino = left->ino;
	d->journal = malloc(qcow2_journal_size());
	assert_non_null(d->journal);
	memcpy(d->journal, left->journal, qcow2_journal_size());
	j.mem = d->journal;
	disk_fail(d, ops, err, n, false);
	ret = qcow2_open(&img, disk_open(d, false), &opt, &text);
	hit = d->failed;
	d->fail = 0;
	if (ret) {
		assert_true(hit && ret == err && strstr(text.text, d->path));
		text.text[0] = 0;
		assert_int_equal(qcow2_open(&img, disk_open(d, false), &opt, &text), 0);
	} else {
		*opened += hit;
	}
	read_all(img, again, may);
	close_image(img);
	assert_int_equal(disk_check(d, false).errors, 0);
	assert_int_equal(disk_check(d, false).leaks, leaks);
	disk_free(d);
	return hit;
}

/* The state that a kill leaves after the workload: nothing of the last generation is in the file. */
static struct disk *killed(void)
{
	struct disk *d = fresh(), *left;
	struct qcow2_journal j = journal_on(d, qcow2_journal_size());
	struct qcow2_image *img = open_image(d, &(struct qcow2_options){ .opener = &opener, .journal = &j });

	assert_int_equal(run_all(img), 0);
	settle(img, d);
	assert_true(qcow2_journal_live(&j));
	left = disk_clone(d);
	left->dio_align = d->dio_align;
	left->ino = d->ino;
	left->journal = malloc(qcow2_journal_size());
	assert_non_null(left->journal);
	memcpy(left->journal, d->journal, qcow2_journal_size());
	close_image(img);
	disk_free(d);
	return left;
}

static void opens(void **state)
{
	unsigned i, n, k, points, opened;

	for (i = 0; i < COUNT(kinds); i++) {
		static const unsigned ops[] = { 1u << HOST_READ, WRITES, WRITES, 1u << HOST_FSYNC };
		static const int errs[] = { -EIO, -EIO, -ENOSPC, -EIO };
		struct disk *left;

		begin_kind(&kinds[i]);
		left = killed();
		for (k = 0, points = 0; k < COUNT(ops); k++, points += n - 1) {
			for (n = 1, opened = 0; open_fails(left, ops[k], errs[k], n, &opened); n++)
				;
			assert_true(n > 1 && !opened);
		}
		disk_free(left);
		end_kind(&kinds[i], points);
	}
}

/* ---- freeing clusters whose refcount block cannot be read ---- */

/* It is tried again; if it never can be, close ends all the same. */
static void unreadable_refcounts(void **state)
{
	struct qcow2_journal j;
	struct qcow2_image *img;
	unsigned for_ever;
	struct disk *d;

	for (for_ever = 0; for_ever < 2; for_ever++) {
		d = disk_make(&(struct spec){ .bits = 12, .size = SIZE });
		img = open_image(d, NULL);
		assert_int_equal(do_write(img, 0, SIZE, 1), 0);
		close_image(img);
		j = journal_on(d, qcow2_journal_size());
		img = open_image(d, &(struct qcow2_options){ .journal = &j });
		assert_int_equal(do_req(img, QCOW2_DISCARD, 0, SIZE / 2, 0), 0);
		disk_fail(d, 1u << HOST_READ, -EIO, 1, true);
		assert_int_equal(do_flush(img), 0);
		settle(img, d);
		assert_true(d->failed);
		assert_false(qcow2_dirty(img)); /* nothing that another commit would be sure to help */
		if (!for_ever)
			d->fail = 0;
		close_image(img);
		d->fail = 0;
		assert_int_equal(disk_check(d, false).errors, 0);
		assert_int_equal(disk_check(d, false).leaks, for_ever ? SIZE / 2 / 4096 : 0);
		assert_false(qcow2_journal_live(&j));
		disk_free(d);
	}
}

static int setup(void **state)
{
	content = aligned_alloc(4096, SIZE);
	again = aligned_alloc(4096, SIZE);
	return content && again ? 0 : -1;
}

static int teardown(void **state)
{
	free(content);
	free(again);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(writes_once_eio),
		cmocka_unit_test(writes_once_enospc),
		cmocka_unit_test(writes_enospc_for_a_while),
		cmocka_unit_test(reads_once),
		cmocka_unit_test(reads_for_a_while),
		cmocka_unit_test(no_memory_once),
		cmocka_unit_test(punches_do_not_matter),
		cmocka_unit_test(fsyncs),
		cmocka_unit_test(closes),
		cmocka_unit_test(opens),
		cmocka_unit_test(unreadable_refcounts),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}

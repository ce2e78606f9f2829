// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The journal: what is recorded when, how it goes round and starts over, that a full one makes requests wait
 * and never overflows, what replay does with each kind of record, in which order and again after a death at
 * any host I/O, and what it refuses without touching anything. A kill is an image that is abandoned: nothing
 * of it runs any more.
 */
#include "memimg.h"
#include "qcow2/journal.h"

#define CS 4096ull
#define SMALL_CS 512ull
#define SMALL_SIZE                                                                                           \
	(sizeof(struct journal_header) + 24ull * 6 * (2 * 64 + 64 + 16)) /* the least for 512-byte clusters  \
									  */

/* An abandoned commit leaves its frozen blocks behind. */
const char *__lsan_default_options(void);
const char *__lsan_default_options(void)
{
	return "detect_leaks=0";
}

static struct journal_header *header(const struct qcow2_journal *j)
{
	return j->mem;
}

static uint64_t used(const struct qcow2_journal *j)
{
	return header(j)->head - header(j)->tail;
}

static uint64_t count(const struct qcow2_journal *j, enum record_type type)
{
	const struct journal_record *rec = journal_records(j->mem);
	uint64_t p, n = 0;

	for (p = header(j)->tail; p < header(j)->head; p++)
		n += rec[p % journal_capacity(j->size)].what >> 60 == type;
	return n;
}

static void put(const struct qcow2_journal *j, uint64_t what, uint64_t a, uint64_t b)
{
	struct journal_record *rec = journal_records(j->mem);

	rec[header(j)->head++ % journal_capacity(j->size)] = (struct journal_record){ what, a, b };
}

static uint64_t set_record(enum record_type type)
{
	return (uint64_t)type << 60;
}

static uint64_t word_record(enum block_type type, uint64_t off)
{
	return (uint64_t)REC_WORD << 60 | (uint64_t)type << 56 | off / 8;
}

static uint64_t raw(struct disk *d, uint64_t off)
{
	uint64_t v;

	disk_get(d, off, &v, 8);
	return v;
}

static struct qcow2_image *open_with(struct disk *d, const struct qcow2_journal *j)
{
	return open_image(d, &(struct qcow2_options){ .journal = j });
}

/*
 * The process is gone: its files are closed, its memory is given back, and no step ever runs again. I/O that
 * was submitted has happened (@land) or never will.
 */
static void abandon(struct qcow2_image *img, struct disk *d, bool land)
{
	struct host_io *io;

	while ((io = STAILQ_FIRST(&d->queue))) {
		STAILQ_REMOVE_HEAD(&d->queue, link);
		if (land)
			disk_carry_out(d, io);
		io->done(io, 0); /* gives its memory back; steps that become ready never run */
	}
	assert_true(TAILQ_EMPTY(&img->requests));
	chain_close(img);
	image_free_one(img);
}

static void assert_reopens(struct disk *d, const struct qcow2_journal *j)
{
	struct qcow2_image *img = open_with(d, j);

	close_image(img);
	assert_false(qcow2_journal_live(j));
	assert_clean(d);
}

/* ---- what is recorded ---- */

static void records_of_a_write(void **state)
{
	struct disk *d = disk_make(&(struct spec){ 0 });
	struct qcow2_journal j = journal_on(d, qcow2_journal_size());
	struct qcow2_image *img = open_with(d, &j);

	assert_false(qcow2_journal_live(&j));
	assert_int_equal(do_write(img, 0, 3 * CS, 1), 0);
	assert_true(qcow2_journal_live(&j));
	/* table: ALLOC, L1, USED; data: ALLOC, three L2 words, USED; the refcounts share a word, recorded
	 * once */
	assert_int_equal(count(&j, REC_ALLOC), 2);
	assert_int_equal(count(&j, REC_USED), 2);
	assert_int_equal(count(&j, REC_WORD), 5);
	assert_int_equal(count(&j, REC_LOWER), 0);
	assert_int_equal(do_write(img, 512, CS, 2), 0); /* in place: nothing */
	reads(img, 512, CS, 2);
	assert_int_equal(used(&j), 9);
	assert_int_equal(do_req(img, QCOW2_DISCARD, 0, CS, 0), 0);
	assert_int_equal(count(&j, REC_LOWER), 1);
	assert_int_equal(do_flush(img), 0);
	quiesce(img, d);
	assert_false(qcow2_journal_live(&j));
	assert_int_equal(header(&j)->head % journal_capacity(j.size), 0); /* starts over */
	close_image(img);
	assert_clean(d);
	disk_free(d);
}

/* Everything completed is there after a kill, flushed or not; closed, nothing leaks. */
static void survives_a_kill(void **state)
{
	struct disk *d = disk_make(&(struct spec){ 0 });
	struct qcow2_journal j = journal_on(d, qcow2_journal_size());
	struct qcow2_image *img = open_with(d, &j);

	assert_int_equal(do_write(img, 0, 8 * CS, 1), 0);
	quiesce(img, d);
	assert_int_equal(do_write(img, 20 * CS + 512, 512, 2), 0);
	assert_int_equal(do_req(img, QCOW2_DISCARD, CS, 2 * CS, 0), 0);
	assert_int_equal(do_zero(img, 5 * CS, CS, 0), 0);
	abandon(img, d, false);
	assert_int_equal(disk_entry(d, 20 * CS), 0);
	img = open_with(d, &j);
	reads(img, 0, CS, 1);
	reads(img, CS, 2 * CS, 0);
	reads(img, 5 * CS, CS, 0);
	reads(img, 6 * CS, 2 * CS, 1);
	reads(img, 20 * CS, 512, 0);
	reads(img, 20 * CS + 512, 512, 2);
	close_image(img);
	assert_false(qcow2_journal_live(&j));
	assert_clean(d);
	disk_free(d);
}

/* Killed between the stages of a commit: the records stay until it is durable, the open generation's longer.
 */
static void survives_a_kill_in_a_commit(void **state)
{
	unsigned n;
	bool land;

	for (n = 0; n < 12; n++)
		for (land = false;; land = true) {
			struct disk *d = disk_make(&(struct spec){ 0 });
			struct qcow2_journal j = journal_on(d, qcow2_journal_size());
			struct qcow2_image *img = open_with(d, &j);

			assert_int_equal(do_write(img, 0, 4 * CS, 1), 0);
			quiesce(img, d);
			assert_int_equal(do_write(img, 0, CS, 2), 0);
			assert_int_equal(do_req(img, QCOW2_DISCARD, 2 * CS, CS, 0), 0);
			assert_int_equal(do_write(img, 600 * 512, CS, 3), 0);
			d->hold = 1u << HOST_WRITE | 1u << HOST_FSYNC | 1u << HOST_PUNCH;
			d->let = n;
			qcow2_commit_start(img);
			settle(img, d);
			abandon(img, d, land);
			d->hold = 0;
			img = open_with(d, &j);
			reads(img, 0, CS, 2);
			reads(img, 2 * CS, CS, 0);
			reads(img, 3 * CS, CS, 1);
			reads(img, 600 * 512, CS, 3);
			close_image(img);
			assert_false(qcow2_journal_live(&j));
			assert_clean(d);
			disk_free(d);
			if (land)
				break;
		}
}

/* ---- the ring ---- */

/* The least journal: requests wait for commits, it goes round many times, nothing is lost, and no end of the
 * image. */
static void full(void **state)
{
	struct disk *d = disk_make(&(struct spec){ .bits = 9, .order = 6 });
	struct qcow2_journal j = journal_on(d, SMALL_SIZE);
	struct qcow2_image *img = open_with(d, &j);
	struct qcow2_stats st;
	uint64_t most = 0, i, k;

	for (i = 0; i < 40; i++) {
		for (k = 0; k < 8; k++) {
			assert_int_equal(
				do_write(img, (i * 8 + k) * 2048 % (1 << 20), 2048, (int)(1 + i % 50)), 0);
			if (used(&j) > most)
				most = used(&j);
		}
		assert_int_equal(do_req(img, QCOW2_DISCARD, i * 16384, 8192, 0), 0);
		reads(img, i * 16384, 8192, 0);
		reads(img, i * 16384 + 8192, 8192, (int)(1 + i % 50));
	}
	qcow2_get_stats(img, &st);
	assert_true(st.commits > 20); /* nobody flushed */
	assert_true(most <= journal_capacity(j.size));
	assert_true(header(&j)->head > 3 * journal_capacity(j.size));
	assert_int_equal(img->mode, MODE_RW);
	abandon(img, d, true);
	assert_reopens(d, &j);
	disk_free(d);
}

/* More refcounts to lower than the journal has room for: some per commit, until all are. */
static void lowering_in_parts(void **state)
{
	struct disk *d = disk_make(&(struct spec){ .bits = 9, .order = 6 });
	struct qcow2_journal j = journal_on(d, SMALL_SIZE);
	uint64_t c, block, capacity = journal_capacity(j.size), most = 0;
	struct qcow2_image *img;
	struct qcow2_stats st;

	/* 30 refcount blocks, each on the first cluster it covers; the 63 others each are counted and named
	 * by nobody */
	for (block = 1; block <= 30; block++) {
		disk_set_be(d, disk_be(d, 48, 8) + 8 * block, 64 * block * SMALL_CS, 8);
		for (c = 64 * block; c < 64 * (block + 1); c++)
			disk_set_refcount(d, c, 1);
		put(&j, set_record(REC_LOWER), 64 * block + 1, 63);
	}
	disk_put(d, 64 * 31 * SMALL_CS - 512, NULL, 512);
	assert_int_equal(disk_check(d, false).leaks, 30 * 63);
	img = open_with(d, &j);
	for (c = 0; c < 200 && qcow2_dirty(img); c++) {
		qcow2_commit_start(img);
		settle(img, d);
		if (used(&j) > most)
			most = used(&j);
	}
	assert_in_range(most, 0, capacity);
	assert_int_equal(img->mode, MODE_RW);
	qcow2_get_stats(img, &st);
	assert_int_equal(st.freed, 30 * 63);
	assert_true(st.commits >= 5);
	close_image(img);
	assert_false(qcow2_journal_live(&j));
	assert_clean(d);
	disk_free(d);
}

/* Should it overflow all the same: what is not recorded is not reported as done, the image fails, and what
 * was done before is there after a recovery. */
static void overflow_fails_the_image(void **state)
{
	struct disk *d = disk_make(&(struct spec){ 0 });
	struct qcow2_journal j = journal_on(d, qcow2_journal_size());
	struct qcow2_image *img = open_with(d, &j);
	uint64_t i, n = journal_capacity(j.size);

	assert_int_equal(do_write(img, 0, CS, 1), 0);
	assert_int_equal(do_flush(img), 0);
	assert_int_equal(do_write(img, CS, CS, 2), 0);
	/* as nothing of ours can fill it: words that do not change anything */
	for (i = used(&j); i < n - 2; i++)
		journal_word(img, BLK_L1, disk_be(d, 40, 8) + 8 * (i % 2 + 400), 0, 0);
	journal_word(img, BLK_L1, disk_be(d, 40, 8) + 8 * 402, 0, 0);
	while (img->mode == MODE_RW)
		for (i = 0; i < 6; i++)
			journal_word(img, BLK_L1, disk_be(d, 40, 8) + 8 * (403 + i), 0, 0);
	assert_int_equal(img->mode, MODE_FAILED);
	assert_int_not_equal(do_write(img, 5 * CS, CS, 3), 0);
	assert_int_not_equal(do_flush(img), 0);
	abandon(img, d, true);
	img = open_with(d, &j);
	reads(img, 0, CS, 1);
	reads(img, CS, CS, 2);
	reads(img, 5 * CS, CS, 0);
	close_image(img);
	assert_clean(d);
	disk_free(d);
}

static void too_small(void **state)
{
	struct disk *d = disk_make(&(struct spec){ .bits = 9 });
	struct qcow2_journal j = journal_on(d, SMALL_SIZE - 24);
	struct qcow2_error err = { "" };
	struct qcow2_image *img;

	assert_int_equal(
		qcow2_open(&img, disk_open(d, false), &(struct qcow2_options){ .journal = &j }, &err),
		-EINVAL);
	assert_non_null(strstr(err.text, "too small"));
	err.text[0] = 0;
	assert_int_equal(qcow2_open(&img, disk_open(d, true),
				    &(struct qcow2_options){ .journal = &j, .read_only = true }, &err),
			 -EINVAL);
	assert_non_null(strstr(err.text, "read-only"));
	disk_free(d);
}

/* Killed between the two stores of starting over: empty. */
static void killed_while_starting_over(void **state)
{
	struct disk *d = disk_make(&(struct spec){ 0 });
	struct qcow2_journal j = journal_on(d, qcow2_journal_size());

	header(&j)->head = 7;
	header(&j)->tail = journal_capacity(j.size);
	assert_false(qcow2_journal_live(&j));
	assert_reopens(d, &j);
	disk_free(d);
}

/* ---- replay ---- */

/* An image with data at 0..4 CS, closed; its first data cluster in *cluster. */
static struct disk *closed_image(uint64_t *cluster)
{
	struct disk *d = disk_make(&(struct spec){ 0 });
	struct qcow2_image *img = open_image(d, NULL);

	assert_int_equal(do_write(img, 0, 4 * CS, 1), 0);
	close_image(img);
	*cluster = disk_host(d, 0) / CS;
	return d;
}

/* RESET: what the sets were before does not count. LOWER and ALLOC cost a reference, USED and LOWERED take
 * them out. */
static void sets(void **state)
{
	uint64_t c, free_cluster;
	struct disk *d = closed_image(&c);
	struct qcow2_journal j = journal_on(d, qcow2_journal_size());
	struct qcow2_image *img;

	free_cluster = disk_append(d) / CS;
	assert_int_equal(disk_check(d, false).leaks, 1);
	put(&j, set_record(REC_ALLOC), c, 4);
	put(&j, set_record(REC_LOWER), c, 4);
	put(&j, set_record(REC_RESET), 0, 0);
	put(&j, set_record(REC_ALLOC), c, 3);
	put(&j, set_record(REC_USED), c + 1, 1); /* out of the middle */
	put(&j, set_record(REC_USED), c + 2, 1);
	put(&j, set_record(REC_USED), c, 1);
	put(&j, set_record(REC_LOWER), c + 2, 2);
	put(&j, set_record(REC_LOWERED), c + 3, 1);
	put(&j, set_record(REC_LOWERED), c + 2, 1);
	put(&j, set_record(REC_ALLOC), free_cluster, 1);
	img = open_with(d, &j);
	assert_int_equal(count(&j, REC_RESET), 1);
	assert_int_equal(count(&j, REC_LOWER), 1);
	assert_int_equal(used(&j), 2);
	reads(img, 0, 4 * CS, 1);
	close_image(img);
	assert_clean(d);
	disk_free(d);
}

/* A journal with one word of each kind, none of which changes anything that matters to a reader. */
static void words_of_all_kinds(struct disk *d, const struct qcow2_journal *j, uint64_t spare)
{
	uint64_t l1 = disk_be(d, 40, 8) + 8 * 100, l2 = disk_l2_at(d, 300 * CS / 2),
		 rt = disk_be(d, 48, 8) + 8 * 200, rb = disk_rb(d, 0) + 2 * (spare & ~3ull);

	put(j, word_record(BLK_L1, l1), raw(d, l1), 0x1111);
	put(j, word_record(BLK_L2, l2), raw(d, l2), 0x2222);
	put(j, word_record(BLK_L2, l2), 0x2222, 0x3333);
	put(j, word_record(BLK_HEADER, 112), raw(d, 112), 0x4444);
	put(j, word_record(BLK_RT, rt), raw(d, rt), 0x5555);
	put(j, word_record(BLK_RB, rb), raw(d, rb), 0x6666);
}

static int replay(struct disk *d, const struct qcow2_journal *j, struct qcow2_error *err)
{
	struct cluster_set lower;
	struct overlay *over;
	struct host_file *f = disk_open(d, false);
	int ret;

	err->text[0] = 0;
	ret = journal_replay(f, j, &lower, &over, err);
	cluster_set_clear(&lower);
	f->ops->close(f);
	return ret;
}

/* Refcount blocks, refcount table, header, L2, L1, each durable before the next; the last value of a word
 * counts. */
static void order(void **state)
{
	uint64_t c;
	struct disk *d = closed_image(&c);
	struct qcow2_journal j = journal_on(d, qcow2_journal_size());
	struct qcow2_error err;
	static const uint64_t want[] = { 0x6666, 0x5555, 0x4444, 0x3333, 0x1111 };
	unsigned i, k;

	words_of_all_kinds(d, &j, 1000);
	d->record = true;
	assert_int_equal(replay(d, &j, &err), 0);
	assert_int_equal(d->events, 10);
	for (i = 0; i < 10; i += 2) {
		bool found = false;

		assert_int_equal(d->event[i].op, HOST_WRITE);
		assert_int_equal(d->event[i + 1].op, HOST_FSYNC);
		for (k = 0; k + 8 <= d->event[i].len; k += 8)
			found |= !memcmp(d->event[i].data + k, &want[i / 2], 8);
		assert_true(found);
	}
	assert_false(qcow2_journal_live(&j));
	disk_free(d);
}

/* Data may not be durable: the first fsync is done even if no refcount changes. */
static void first_fsync(void **state)
{
	uint64_t c, at;
	struct disk *d = closed_image(&c);
	struct qcow2_journal j = journal_on(d, qcow2_journal_size());
	struct qcow2_error err;

	at = disk_l2_at(d, 150 * CS);
	put(&j, word_record(BLK_L2, at), raw(d, at), 0x2222);
	d->record = true;
	assert_int_equal(replay(d, &j, &err), 0);
	assert_int_equal(d->events, 3);
	assert_int_equal(d->event[0].op, HOST_FSYNC);
	assert_int_equal(d->event[1].op, HOST_WRITE);
	assert_int_equal(d->event[2].op, HOST_FSYNC);
	disk_free(d);
}

/* Killed (or failed) at any host I/O of it, and again and again: the end is the same. */
static void replay_again(void **state)
{
	uint64_t c;
	struct disk *start = closed_image(&c), *end = NULL;
	unsigned n, ops = 1u << HOST_WRITE | 1u << HOST_FSYNC;

	for (n = 0; n <= 10; n++) {
		struct disk *d = disk_clone(start);
		struct qcow2_journal j = journal_on(d, qcow2_journal_size());
		void *before = malloc(j.size);
		struct qcow2_error err;
		unsigned k;

		words_of_all_kinds(d, &j, 1000);
		put(&j, set_record(REC_LOWER), c, 1);
		memcpy(before, j.mem, j.size);
		for (k = n; k; k--) { /* later and later */
			disk_fail(d, ops, -EIO, n - k + 1, true);
			assert_int_equal(replay(d, &j, &err), -EIO);
			assert_memory_equal(before, j.mem, j.size);
		}
		d->fail = 0;
		assert_int_equal(replay(d, &j, &err), 0);
		assert_int_equal(used(&j), 2); /* RESET, LOWER */
		assert_int_equal(replay(d, &j, &err), 0);
		assert_int_equal(used(&j), 2);
		/* killed before the tail moved */
		header(&j)->tail = 0;
		assert_int_equal(replay(d, &j, &err), 0);
		assert_int_equal(used(&j), 2);
		if (end)
			assert_true(disk_equal(d, end));
		else
			end = disk_clone(d);
		free(before);
		disk_free(d);
	}
	disk_free(start);
	disk_free(end);
}

/* ---- what is refused ---- */

static uint64_t victim; /* host cluster of the first data */

static void bad_magic(struct disk *d, struct qcow2_journal *j)
{
	header(j)->magic ^= 1;
}
static void bad_version(struct disk *d, struct qcow2_journal *j)
{
	header(j)->version++;
}
static void bad_size(struct disk *d, struct qcow2_journal *j)
{
	j->size -= 24;
}
static void no_size(struct disk *d, struct qcow2_journal *j)
{
	j->size = 100;
}
static void bad_boot(struct disk *d, struct qcow2_journal *j)
{
	j->boot_id[0] ^= 1;
}
static void bad_dev(struct disk *d, struct qcow2_journal *j)
{
	j->dev++;
}
static void bad_ino(struct disk *d, struct qcow2_journal *j)
{
	j->ino++;
}
static void bad_head(struct disk *d, struct qcow2_journal *j)
{
	header(j)->head += journal_capacity(j->size);
}
static void bad_tail(struct disk *d, struct qcow2_journal *j)
{
	header(j)->tail = header(j)->head + 1;
}
static void huge_ends(struct disk *d, struct qcow2_journal *j)
{
	header(j)->tail = header(j)->head = 1ull << 63;
}
static void no_type(struct disk *d, struct qcow2_journal *j)
{
	put(j, 0, 0, 0);
}
static void bad_type(struct disk *d, struct qcow2_journal *j)
{
	put(j, 9ull << 60, 1, 1);
}
static void bad_block(struct disk *d, struct qcow2_journal *j)
{
	put(j, word_record(BLK_RB + 1, 4096), 0, 1);
}
static void bad_offset(struct disk *d, struct qcow2_journal *j)
{
	put(j, word_record(BLK_L2, 1ull << 57), 0, 1);
}
static void bad_header_word(struct disk *d, struct qcow2_journal *j)
{
	put(j, word_record(BLK_HEADER, 128), 0, 1);
}
static void beyond_the_file(struct disk *d, struct qcow2_journal *j)
{
	put(j, word_record(BLK_L2, 1ull << 40), 0, 1);
}
static void bad_run(struct disk *d, struct qcow2_journal *j)
{
	put(j, set_record(REC_LOWER), 1ull << 60, 1);
}
static void empty_run(struct disk *d, struct qcow2_journal *j)
{
	put(j, set_record(REC_ALLOC), 5, 0);
}
static void long_run(struct disk *d, struct qcow2_journal *j)
{
	put(j, set_record(REC_ALLOC), 5, UINT64_MAX);
}
static void bad_reset(struct disk *d, struct qcow2_journal *j)
{
	put(j, set_record(REC_RESET), 1, 0);
}
static void too_many(struct disk *d, struct qcow2_journal *j)
{
	put(j, set_record(REC_LOWER), 5, 1 << 24);
	put(j, set_record(REC_LOWER), 5, 1 << 24);
}
static void changed_word(struct disk *d, struct qcow2_journal *j)
{
	uint64_t at = disk_be(d, 48, 8) +
		      8 * 200; /* the last word that words_of_all_kinds() leaves to be checked but one */

	disk_set_be(d, at, 0x777, 8);
}
static void truncated_image(struct disk *d, struct qcow2_journal *j)
{
	put(j, word_record(BLK_L2, 3ull << 20), 0, 1); /* a table that was behind the file's present end */
}

static void refused(void **state)
{
	static const struct {
		void (*spoil)(struct disk *d, struct qcow2_journal *j);
		int err;
		const char *text;
	} cases[] = {
		{ bad_magic, -EINVAL, "not a journal" },
		{ bad_version, -EINVAL, "version" },
		{ bad_size, -EINVAL, "size" },
		{ no_size, -EINVAL, "not a journal" },
		{ bad_boot, -ESTALE, "boot" },
		{ bad_dev, -ESTALE, "another file" },
		{ bad_ino, -ESTALE, "another file" },
		{ bad_head, -EUCLEAN, "ends" },
		{ bad_tail, -EUCLEAN, "ends" },
		{ huge_ends, -EUCLEAN, "ends" },
		{ no_type, -EUCLEAN, "record" },
		{ bad_type, -EUCLEAN, "record" },
		{ bad_block, -EUCLEAN, "record" },
		{ bad_offset, -EUCLEAN, "record" },
		{ bad_header_word, -EUCLEAN, "record" },
		{ bad_run, -EUCLEAN, "record" },
		{ empty_run, -EUCLEAN, "record" },
		{ long_run, -EUCLEAN, "record" },
		{ bad_reset, -EUCLEAN, "record" },
		{ too_many, -EUCLEAN, "more clusters" },
		{ beyond_the_file, -ESTALE, "shorter" },
		{ truncated_image, -ESTALE, "shorter" },
		{ changed_word, -ESTALE, "changed by somebody" },
	};
	unsigned i;

	for (i = 0; i < COUNT(cases); i++) {
		struct disk *d = closed_image(&victim), *before;
		struct qcow2_journal j = journal_on(d, qcow2_journal_size());
		struct qcow2_image *img;
		struct qcow2_error err = { "" };
		void *was = malloc(j.size);
		uint64_t size = j.size;
		int ret;

		words_of_all_kinds(d, &j, 1000);
		cases[i].spoil(d, &j);
		before = disk_clone(d);
		memcpy(was, j.mem, size);
		ret = qcow2_open(&img, disk_open(d, false), &(struct qcow2_options){ .journal = &j }, &err);
		if (ret != cases[i].err || !strstr(err.text, cases[i].text) ||
		    strncmp(err.text, "disk.qcow2: ", 12))
			fail_msg("case %u: %d, %s", i, ret, err.text);
		assert_true(disk_equal(d, before));
		assert_memory_equal(was, j.mem, size);
		free(was);
		disk_free(before);
		disk_free(d);
	}
}

/* Any bytes: no crash (sanitizers watch), and what is refused is not touched. */
static void noise(void **state)
{
	uint64_t c, rnd = 88172645463325252ull, i, k, refusals = 0;
	struct disk *start = closed_image(&c);

	for (i = 0; i < 3000; i++) {
		struct disk *d = disk_clone(start);
		struct qcow2_journal j = journal_on(d, SMALL_SIZE);
		void *was = malloc(j.size);
		struct qcow2_error err;

		words_of_all_kinds(d, &j, 1000);
		put(&j, set_record(REC_ALLOC), c, 4);
		put(&j, set_record(REC_RESET), 0, 0);
		put(&j, set_record(REC_LOWER), c, 2);
		put(&j, set_record(REC_LOWERED), c, 1);
		for (k = 0; k < 1 + i % 3; k++) {
			rnd ^= rnd << 13;
			rnd ^= rnd >> 7;
			rnd ^= rnd << 17;
			((uint8_t *)j.mem)[rnd % (sizeof(struct journal_header) + 24 * 10)] ^=
				(uint8_t)(1u << (rnd >> 40) % 8);
		}
		memcpy(was, j.mem, j.size);
		if (replay(d, &j, &err)) {
			refusals++;
			assert_true(disk_equal(d, start));
			assert_memory_equal(was, j.mem, j.size);
		}
		free(was);
		disk_free(d);
	}
	assert_in_range(refusals, 1000, 2999);
	disk_free(start);
}

/* ---- after a failed fsync ---- */

/* The next process must not call anything durable either. */
/* After a failed fsync: what was completed stays readable for every process that follows, none of them writes: no
 * fsync of theirs covers what the host dropped, so no entry may name it. */
static void lost_stays_lost(void **state)
{
	struct disk *d = disk_make(&(struct spec){ 0 }), *same;
	struct qcow2_journal j = journal_on(d, qcow2_journal_size());
	struct qcow2_image *img = open_with(d, &j);
	struct qcow2_error err = { "" };
	unsigned kills;

	assert_int_equal(do_write(img, 0, CS, 3), 0);
	quiesce(img, d);
	assert_int_equal(do_write(img, CS, CS, 1), 0);
	disk_fail(d, 1u << HOST_FSYNC, -EIO, 1, false);
	assert_int_equal(do_flush(img), -EIO);
	same = disk_clone(d);
	for (kills = 0; kills < 2; kills++) {
		abandon(img, d, false);
		img = open_with(d, &j);
		reads(img, 0, CS, 3);
		reads(img, CS, CS, 1);
		reads(img, 2 * CS, CS, 0);
		assert_int_equal(do_flush(img), -EIO);
		assert_int_equal(do_write(img, 0, CS, 2), -EIO);
		assert_int_equal(do_write(img, 9 * CS, CS, 2), -EIO);
		assert_int_equal(do_req(img, QCOW2_DISCARD, 0, CS, 0), -EIO);
		assert_true(disk_equal(d, same));
	}
	assert_int_equal(qcow2_close(img, &err), -EIO);
	assert_true(disk_equal(d, same));
	assert_true(qcow2_journal_live(&j));
	disk_free(same);
	disk_free(d);
}

/* Who finds it later can tell whose it is, and that it is not to be applied. */
static void says_whose_and_whether_lost(void **state)
{
	struct disk *d = disk_make(&(struct spec){ 0 });
	struct qcow2_journal j = journal_on(d, qcow2_journal_size());
	struct qcow2_image *img = open_with(d, &j);

	assert_false(qcow2_journal_of(&j));
	assert_int_equal(do_write(img, 0, CS, 1), 0);
	assert_true(qcow2_journal_of(&j));
	assert_false(qcow2_journal_lost(&j));
	j.ino++;
	assert_false(qcow2_journal_of(&j));
	j.ino--;
	disk_fail(d, 1u << HOST_FSYNC, -EIO, 1, false);
	assert_int_equal(do_flush(img), -EIO);
	assert_int_equal(qcow2_close(img, NULL), -EIO);
	assert_true(qcow2_journal_of(&j));
	assert_true(qcow2_journal_lost(&j));
	disk_free(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(records_of_a_write),
		cmocka_unit_test(survives_a_kill),
		cmocka_unit_test(survives_a_kill_in_a_commit),
		cmocka_unit_test(full),
		cmocka_unit_test(lowering_in_parts),
		cmocka_unit_test(overflow_fails_the_image),
		cmocka_unit_test(too_small),
		cmocka_unit_test(killed_while_starting_over),
		cmocka_unit_test(sets),
		cmocka_unit_test(order),
		cmocka_unit_test(first_fsync),
		cmocka_unit_test(replay_again),
		cmocka_unit_test(refused),
		cmocka_unit_test(noise),
		cmocka_unit_test(lost_stays_lost),
		cmocka_unit_test(says_whose_and_whether_lost),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

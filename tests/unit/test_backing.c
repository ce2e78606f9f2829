// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The backing chain: which names are opened and where they are looked for, which are refused, loops and
 * length, and what a guest reads through files that are shorter, longer or of odd size.
 */
#include "memimg.h"

#define CS 4096ull

/* What exists: paths and disks. */
static struct {
	const char *path;
	struct disk *d;
	unsigned opened;
	enum backing_format format;
} files[8];

static unsigned nfiles, opens;

static int find(void *ctx, const char *path, enum backing_format format, struct host_file **out,
		struct qcow2_error *err)
{
	unsigned i;

	opens++;
	for (i = 0; i < nfiles; i++)
		if (!strcmp(files[i].path, path)) {
			files[i].opened++;
			files[i].format = format;
			*out = disk_open(files[i].d, true);
			return 0;
		}
	return qcow2_fail(err, -ENOENT, "%s: cannot open: %s", path, strerror(ENOENT));
}

static const struct qcow2_opener opener = { .open = find };

static struct disk *add(const char *path, struct disk *d)
{
	d->path = path;
	files[nfiles].path = path;
	files[nfiles].opened = 0;
	files[nfiles++].d = d;
	return d;
}

static struct disk *raw(uint64_t bytes, int fill)
{
	struct disk *d = disk_new();
	uint8_t *buf = malloc(bytes);

	assert_non_null(buf);
	memset(buf, fill, bytes);
	disk_put(d, 0, buf, bytes);
	free(buf);
	return d;
}

static int setup(void **state)
{
	nfiles = opens = 0;
	return 0;
}

static int teardown(void **state)
{
	while (nfiles)
		disk_free(files[--nfiles].d);
	return 0;
}

static struct qcow2_image *open_top(struct disk *d)
{
	return open_image(d, &(struct qcow2_options){ .opener = &opener });
}

static void refused_with(struct disk *d, enum backing_format format, int ret, const char *words)
{
	struct qcow2_options opt = { .opener = &opener, .backing_format = format };
	struct qcow2_error err = { "" };
	struct qcow2_image *img;
	unsigned i;

	assert_int_equal(qcow2_open(&img, disk_open(d, false), &opt, &err), ret);
	if (!strstr(err.text, words))
		fail_msg("\"%s\" does not say \"%s\"", err.text, words);
	for (i = 0; i < nfiles; i++)
		assert_int_equal(files[i].d->opened, 0); /* no file stays open */
}

static void refused(struct disk *d, int ret, const char *words)
{
	refused_with(d, BACKING_UNKNOWN, ret, words);
}

static struct disk *top(const char *path, const char *backing, const char *format)
{
	return add(path, disk_make(&(struct spec){ .backing = backing, .format = format }));
}

/* ---- names ---- */

static void relative_to_the_image(void **state)
{
	static const char *const cases[][3] = {
		{ "/images/top.qcow2", "base.img", "/images/base.img" },
		{ "/images/top.qcow2", "sub/base.img", "/images/sub/base.img" },
		{ "/images/top.qcow2", "../base.img", "/images/../base.img" },
		{ "/images/top.qcow2", "/other/base.img", "/other/base.img" },
		{ "top.qcow2", "base.img", "base.img" },
		{ "dir/top.qcow2", "base.img", "dir/base.img" },
		{ "dir/top.qcow2", "file:base.img", "dir/base.img" },
		{ "dir/top.qcow2", "./a:b", "dir/./a:b" }, /* a slash before the colon: a name */
	};
	unsigned i;

	for (i = 0; i < COUNT(cases); i++) {
		struct disk *d = top(cases[i][0], cases[i][1], "raw");
		struct qcow2_image *img;

		add(cases[i][2], raw(1 << 20, 0x31));
		img = open_top(d);
		assert_int_equal(files[1].opened, 1);
		assert_int_equal(files[1].format, BACKING_RAW);
		reads(img, 0, CS, 0x31);
		close_image(img);
		teardown(NULL);
	}
}

/* The second backing file is relative to the first, not to the image. */
static void relative_to_each(void **state)
{
	struct disk *d = top("/a/top", "../b/mid", "qcow2");
	struct qcow2_image *img;

	top("/a/../b/mid", "base", "raw");
	add("/a/../b/base", raw(1 << 20, 0x32));
	img = open_top(d);
	assert_ptr_equal(disk_of(qcow2_chain_file(img, 2)), files[2].d);
	assert_int_equal(qcow2_chain_file(img, 2)->index, 2);
	assert_null(qcow2_chain_file(img, 3));
	assert_int_equal(qcow2_chain_block_size(img, 1), CS < 4096 ? CS : 4096);
	assert_int_equal(qcow2_chain_block_size(img, 2), 0);
	reads(img, 0, CS, 0x32);
	close_image(img);
}

static void missing(void **state)
{
	refused(top("/a/top", "gone", "raw"), -ENOENT, "/a/gone");
	teardown(NULL);
	top("/a/mid", "gone", "qcow2");
	refused(top("/a/top", "mid", "qcow2"), -ENOENT, "/a/gone");
}

static void pseudo_protocols(void **state)
{
	static const char *const names[] = { "json:{\"driver\":\"null-co\"}",
					     "nbd:localhost:10809",
					     "nbd://host/x",
					     "http://host/x",
					     "fat:rw:dir",
					     "JSON:{}",
					     "a+b-c.d:x",
					     "file:json:{}" };
	unsigned i;

	for (i = 0; i < COUNT(names) - 1; i++) {
		refused(top("/a/top", names[i], "raw"), -EINVAL, "only plain file names");
		teardown(NULL);
		assert_int_equal(opens, 0);
	}
	refused(top("/a/top", names[i], "raw"), -ENOENT,
		"/a/json:{}"); /* a file of that name, nothing else */
	assert_int_equal(opens, 1);
}

static void formats(void **state)
{
	struct disk *d = top("/a/top", "base", NULL);
	struct qcow2_image *img;

	add("/a/base", disk_make(&(struct spec){ 0 }));
	refused(d, -EINVAL, "never guessed");
	assert_int_equal(opens, 0);
	img = open_image(d, &(struct qcow2_options){ .opener = &opener, .backing_format = BACKING_QCOW2 });
	reads(img, 0, CS, 0);
	close_image(img);
	/* given as raw it is raw, whatever its first bytes say */
	img = open_image(d, &(struct qcow2_options){ .opener = &opener, .backing_format = BACKING_RAW });
	assert_int_equal(files[1].format, BACKING_RAW);
	assert_int_equal(do_write(img, 512, 512, 1), 0);
	reads(img, 512, 512, 1);
	close_image(img);
	teardown(NULL);
	/* what is recorded counts more than what is given */
	d = top("/a/top", "base", "raw");
	add("/a/base", raw(1 << 20, 0x33));
	img = open_image(d, &(struct qcow2_options){ .opener = &opener, .backing_format = BACKING_QCOW2 });
	reads(img, 0, CS, 0x33);
	close_image(img);
	teardown(NULL);
	refused(top("/a/top", "base", "vmdk"), -ENOTSUP, "vmdk");
	teardown(NULL);
	refused_with(top("/a/top", "base", "vmdk"), BACKING_RAW, -ENOTSUP, "vmdk");
}

static void wrong_format(void **state)
{
	struct disk *d = top("/a/top", "base", "qcow2");

	add("/a/base", raw(1 << 20, 0x33));
	refused(d, -EINVAL, "/a/base: not a qcow2 image");
}

/* An image whose backing file cannot be opened at all: no opener. */
static void no_opener(void **state)
{
	struct qcow2_error err = { "" };
	struct qcow2_image *img;
	struct disk *d = top("/a/top", "base", "raw");

	assert_int_equal(
		qcow2_open(&img, disk_open(d, true), &(struct qcow2_options){ .read_only = true }, &err),
		-ENOTSUP);
}

/* ---- loops and length ---- */

static void loops(void **state)
{
	struct disk *d = top("/a/top", "top", "qcow2");

	refused(d, -ELOOP, "loop");
	teardown(NULL);
	d = top("/a/top", "mid", "qcow2");
	top("/a/mid", "top", "qcow2");
	refused(d, -ELOOP, "loop");
	teardown(NULL);
	d = top("/a/top", "top", "raw"); /* itself as raw: a loop all the same */
	refused(d, -ELOOP, "loop");
	teardown(NULL);
	d = top("/a/top", "mid", "qcow2"); /* a loop further down */
	top("/a/mid", "low", "qcow2");
	top("/a/low", "mid", "qcow2");
	refused(d, -ELOOP, "loop");
}

static struct disk *endless[300];
static unsigned reached;

static int next_of(void *ctx, const char *path, enum backing_format format, struct host_file **out,
		   struct qcow2_error *err)
{
	*out = disk_open(endless[++reached], true);
	return 0;
}

static void length(void **state)
{
	struct qcow2_opener deep = { .open = next_of };
	struct qcow2_options opt = { .opener = &deep, .read_only = true };
	struct qcow2_error err = { "" };
	struct qcow2_image *img;
	struct qcow2_info info;
	unsigned i;

	for (i = 0; i < 300; i++)
		endless[i] = disk_make(
			&(struct spec){ .bits = 9, .size = 512, .backing = "next", .format = "qcow2" });
	reached = 0;
	assert_int_equal(qcow2_open(&img, disk_open(endless[0], true), &opt, &err), -ELOOP);
	assert_non_null(strstr(err.text, "longer than 256"));
	assert_int_equal(reached, 256);
	disk_set_be(endless[255], 8, 0, 8); /* 256 files are allowed */
	reached = 0;
	img = open_image(endless[0], &opt);
	qcow2_get_info(img, &info);
	assert_int_equal(info.chain_length, 256);
	reads(img, 0, 512, 0);
	close_image(img);
	for (i = 0; i < 300; i++)
		disk_free(endless[i]);
}

/* ---- content ---- */

/* Shorter, by whole clusters and by odd bytes: zeroes behind it; copy-on-write across its end. */
static void shorter(void **state)
{
	static const uint64_t sizes[] = { 0, 1, 511, 512, 513, CS - 1, CS, CS + 1, 5 * CS + 700, 9 * CS };
	struct qcow2_image *img;
	struct disk *d;
	unsigned i;

	for (i = 0; i < COUNT(sizes); i++) {
		uint64_t n = sizes[i], sector = n & ~511ull;
		unsigned char buf[512], want[512] = { 0 };

		d = top("/a/top", "base", "raw");
		add("/a/base", raw(n ? n : 1, 0x34));
		files[1].d->size = n;
		memset(want, 0x34, n - sector);
		img = open_top(d);
		if (sector)
			reads(img, 0, sector, 0x34);
		assert_int_equal(qcow2_sync(img, QCOW2_READ, buf, 512, sector), 0);
		assert_memory_equal(buf, want, 512);
		reads(img, sector + 512, 4 * CS, 0);
		assert_int_equal(do_write(img, (n / CS * CS + 2048 + 511) & ~511ull, 512, 9), 0);
		if (sector != n / CS * CS + 2048) {
			assert_int_equal(qcow2_sync(img, QCOW2_READ, buf, 512, sector), 0);
			assert_memory_equal(buf, want, 512);
		}
		close_image(img);
		assert_clean(d);
		teardown(NULL);
	}
}

/* Longer than the image: what is past the image's end stays out of it. */
static void longer(void **state)
{
	struct disk *d = add(
		"/a/top", disk_make(&(struct spec){ .size = 3 * CS + 512, .backing = "b", .format = "raw" }));
	struct qcow2_image *img;

	add("/a/b", raw(1 << 20, 0x35));
	img = open_top(d);
	reads(img, 0, 3 * CS + 512, 0x35);
	assert_int_equal(do_write(img, 3 * CS, 512, 1), 0);
	reads(img, 3 * CS, 512, 1);
	assert_int_equal(do_req(img, QCOW2_READ, 3 * CS + 512, 512, 0), -EINVAL);
	close_image(img);
	assert_int_equal(disk_be(d, disk_host(d, 3 * CS) + 1024, 8), 0); /* zeroes, not the file's */
	assert_clean(d);
}

/* A shorter file in the middle hides what lies below it, as in QEMU. */
static void short_middle_hides(void **state)
{
	struct disk *d = top("/a/top", "mid", "qcow2");
	struct qcow2_image *img;
	struct qcow2_map_extent e;

	add("/a/mid",
	    disk_make(&(struct spec){ .bits = 9, .size = 2 * CS + 512, .backing = "base", .format = "raw" }));
	add("/a/base", raw(1 << 20, 0x36));
	img = open_image(files[1].d, &(struct qcow2_options){ .opener = &opener });
	assert_int_equal(do_write(img, 1024, 512, 0x37), 0);
	close_image(img);
	img = open_top(d);
	reads(img, 0, 1024, 0x36);
	reads(img, 1024, 512, 0x37);
	reads(img, 1536, 2 * CS - 1024, 0x36);
	reads(img, 2 * CS + 512, 8 * CS, 0);
	assert_int_equal(qcow2_map(img, 0, &e), 0);
	assert_int_equal(e.depth, 2);
	assert_int_equal(e.len, 1024);
	assert_int_equal(qcow2_map(img, 1024, &e), 0);
	assert_int_equal(e.depth, 1);
	assert_true(e.has_host);
	assert_int_equal(do_write(img, 512, 512, 0x38), 0); /* around it: three files' bytes in one cluster */
	reads(img, 0, 512, 0x36);
	reads(img, 512, 512, 0x38);
	reads(img, 1024, 512, 0x37);
	reads(img, 1536, CS, 0x36);
	close_image(img);
	assert_clean(d);
	assert_clean(files[1].d);
}

/* Backing files are read only: nothing is ever written there (memfile.h asserts it), errors of theirs reach
 * us. */
static void backing_errors(void **state)
{
	struct disk *d = top("/a/top", "base", "raw");
	struct qcow2_image *img;

	add("/a/base", raw(1 << 20, 0x35));
	img = open_top(d);
	disk_fail(files[1].d, 1u << HOST_READ, -EIO, 1, true);
	assert_int_equal(do_req(img, QCOW2_READ, 0, CS, 0), -EIO);
	assert_int_equal(do_write(img, 512, 512, 1), -EIO); /* copy-on-write */
	assert_int_equal(do_write(img, 4 * CS, CS, 1), 0); /* nothing to copy */
	files[1].d->fail = 0;
	reads(img, 0, CS, 0x35);
	close_image(img);
	assert_clean(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(relative_to_the_image, setup, teardown),
		cmocka_unit_test_setup_teardown(relative_to_each, setup, teardown),
		cmocka_unit_test_setup_teardown(missing, setup, teardown),
		cmocka_unit_test_setup_teardown(pseudo_protocols, setup, teardown),
		cmocka_unit_test_setup_teardown(formats, setup, teardown),
		cmocka_unit_test_setup_teardown(wrong_format, setup, teardown),
		cmocka_unit_test_setup_teardown(no_opener, setup, teardown),
		cmocka_unit_test_setup_teardown(loops, setup, teardown),
		cmocka_unit_test_setup_teardown(length, setup, teardown),
		cmocka_unit_test_setup_teardown(shorter, setup, teardown),
		cmocka_unit_test_setup_teardown(longer, setup, teardown),
		cmocka_unit_test_setup_teardown(short_middle_hides, setup, teardown),
		cmocka_unit_test_setup_teardown(backing_errors, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

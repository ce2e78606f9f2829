// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Writes that really end early: the file may not grow past a limit, which moves through all that a workload
 * wants to write, on both backends. The transfer is short at the limit, what is left of it fails; that is the
 * error of exactly the requests that needed the space. When the limit is gone everything works, nothing is
 * leaked.
 */
#include "daemon/ring.h"
#include "memimg.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIZE (256ull << 10)
#define PIECE (20ull << 10) /* bytes of a request: no multiple of the clusters */
#define PIECES (SIZE / PIECE)

enum backend { SYNC, RING_BUFFERED, RING_DIRECT };

static int held; /* the file, which has no name */
static char path[40]; /* leads to it */
static struct ring *ring;

static struct host_file *open_file(enum backend b)
{
	struct qcow2_error err = { "" };
	struct host_file *f;
	int fd = open(path, O_RDWR | O_CLOEXEC | (b == RING_DIRECT ? O_DIRECT : 0));

	assert_true(fd >= 0);
	if (b == SYNC) {
		assert_int_equal(host_fdopen_sync(&f, fd, path, false, &err), 0);
		return f;
	}
	assert_int_equal(ring_new(&ring, 8, &err), 0);
	assert_int_equal(ring_file(ring, fd, path, false, b == RING_DIRECT, &f, &err), 0);
	return f;
}

/* An empty image of 8 KiB clusters; false: this file system has no direct I/O. */
static bool make_file(enum backend b)
{
	struct disk *d = disk_make(&(struct spec){ .bits = 13, .size = SIZE });
	uint8_t *bytes = malloc(d->size);
	char name[40];
	int fd;

	assert_non_null(bytes);
	strcpy(name, b == RING_DIRECT ? "short-test-XXXXXX" : "/dev/shm/short-test-XXXXXX");
	held = mkstemp(name);
	assert_true(held >= 0);
	assert_int_equal(unlink(name), 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", held);
	disk_get(d, 0, bytes, d->size);
	assert_int_equal(write(held, bytes, d->size), d->size);
	free(bytes);
	disk_free(d);
	fd = open(path, O_RDONLY | O_CLOEXEC | (b == RING_DIRECT ? O_DIRECT : 0));
	if (fd < 0)
		return false;
	close(fd);
	return true;
}

static uint64_t file_size(void)
{
	struct stat st;

	assert_int_equal(stat(path, &st), 0);
	return (uint64_t)st.st_size;
}

static void limit(uint64_t bytes)
{
	struct rlimit l;

	assert_int_equal(getrlimit(RLIMIT_FSIZE, &l), 0);
	l.rlim_cur = bytes < l.rlim_max ? bytes : l.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &l), 0);
}

static void close_and_check(struct qcow2_image *img)
{
	struct qcow2_error err = { "" };
	struct check_result res;
	struct host_file *f;

	close_image(img);
	if (ring)
		ring_free(ring);
	ring = NULL;
	assert_int_equal(host_open_sync(&f, path, true, &err), 0);
	assert_int_equal(qcow2_check(f, NULL, &res, &err), 0);
	f->ops->close(f);
	assert_int_equal(res.errors, 0);
	assert_int_equal(res.leaks, 0);
}

/* Each sector of a write that failed is as it was or as it should be. */
static void old_or_new(struct qcow2_image *img, uint64_t off, int fill)
{
	static _Alignas(4096) uint8_t buf[PIECE];
	unsigned i;

	assert_int_equal(qcow2_sync(img, QCOW2_READ, buf, PIECE, off), 0);
	for (i = 0; i < PIECE; i++)
		assert_true(buf[i] == buf[i / 512 * 512] && (buf[i] == fill || !buf[i]));
}

/* True if the limit was in the way. */
static bool one(enum backend b, uint64_t room)
{
	struct qcow2_image *img = NULL;
	struct qcow2_error err = { "" };
	unsigned i, failed = 0;
	struct job j[PIECES];

	limit(file_size() + room);
	assert_int_equal(qcow2_open(&img, open_file(b), &(struct qcow2_options){ 0 }, &err), 0);
	for (i = 0; i < PIECES; i++)
		job_start(&j[i], img, QCOW2_WRITE, i * PIECE, PIECE, 1 + (int)i);
	for (i = 0; i < PIECES; i++) {
		while (!j[i].done)
			qcow2_run(img, true);
		assert_true(!j[i].res || j[i].res == -EFBIG);
		failed += j[i].res != 0;
	}
	assert_int_equal(do_flush(img), 0); /* what got its space is not affected */
	limit(RLIM_INFINITY);
	for (i = 0; i < PIECES; i++) {
		if (!job_end(&j[i]))
			continue;
		old_or_new(img, i * PIECE, 1 + (int)i);
		assert_int_equal(do_write(img, i * PIECE, PIECE, 1 + (int)i), 0);
	}
	for (i = 0; i < PIECES; i++)
		reads(img, i * PIECE, PIECE, 1 + (int)i);
	close_and_check(img);
	close(held);
	return failed;
}

static void at_every_limit(enum backend b, uint64_t step)
{
	uint64_t room = 0;
	unsigned n = 0;

	signal(SIGXFSZ, SIG_IGN);
	if (!make_file(b)) {
		print_message("no direct I/O here\n");
		skip();
	}
	for (; one(b, room); n++, room += step)
		assert_true(make_file(b));
	print_message("    %u limits\n", n);
	assert_true(n * step > SIZE / 2);
}

static void on_the_synchronous_backend(void **state)
{
	at_every_limit(SYNC, 1536);
}

static void on_the_ring(void **state)
{
	at_every_limit(RING_BUFFERED, 1536);
}

static void on_the_ring_direct(void **state)
{
	at_every_limit(RING_DIRECT, 5 * 4096);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(on_the_synchronous_backend),
		cmocka_unit_test(on_the_ring),
		cmocka_unit_test(on_the_ring_direct),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

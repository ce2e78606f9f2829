/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The synchronous backend: order, chains, short transfers, zeroing on hosts that can and cannot do
 * it, and what it refuses to open. pread, pwrite and fallocate are replaced by versions that
 * misbehave on demand.
 */
#include "qcow2/error.h"
#include "qcow2/io.h"
#include "unit.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

static size_t longest = SIZE_MAX; /* bytes per transfer */
static unsigned interrupt; /* every so many calls: EINTR; 0 = never */
static int write_errno; /* writes fail with it */
static int denied_modes; /* fallocate modes that are not supported */
static unsigned calls, fallocates;

static ssize_t misbehave(size_t *len)
{
	if (interrupt && ++calls % interrupt == 0) {
		errno = EINTR;
		return -1;
	}
	if (*len > longest)
		*len = longest;
	return 0;
}

ssize_t pread(int fd, void *buf, size_t len, off_t off)
{
	return misbehave(&len) ? -1 : syscall(SYS_pread64, fd, buf, len, off);
}

ssize_t pwrite(int fd, const void *buf, size_t len, off_t off)
{
	if (write_errno) {
		errno = write_errno;
		return -1;
	}
	return misbehave(&len) ? -1 : syscall(SYS_pwrite64, fd, buf, len, off);
}

int fallocate(int fd, int mode, off_t off, off_t len)
{
	fallocates++;
	if (mode & denied_modes) {
		errno = EOPNOTSUPP;
		return -1;
	}
	return (int)syscall(SYS_fallocate, fd, mode, off, len);
}

static char dir[64];

static int setup(void **state)
{
	longest = SIZE_MAX;
	interrupt = 0;
	write_errno = denied_modes = 0;
	strcpy(dir, "/tmp/ublk-qcow2-unit-XXXXXX");
	return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
	char cmd[128];

	snprintf(cmd, sizeof(cmd), "rm -rf '%s'", dir);
	return system(cmd);
}

static const char *in_dir(const char *name)
{
	static char path[100];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return path;
}

/* A file of @size bytes of 0x55, opened. */
static struct host_file *open_file(uint64_t size)
{
	struct qcow2_error err = { "" };
	const char *path = in_dir("file");
	struct host_file *f;
	int fd = open(path, O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);
	char *fill = malloc(size + 1);

	assert_true(fd >= 0);
	assert_non_null(fill);
	memset(fill, 0x55, size);
	assert_int_equal(write(fd, fill, size), size);
	free(fill);
	close(fd);
	assert_int_equal(host_open_sync(&f, path, false, &err), 0);
	assert_string_equal(f->path, path);
	assert_int_equal(f->dio_align, 1);
	return f;
}

static uint64_t size_of(struct host_file *f)
{
	uint64_t size;

	assert_int_equal(f->ops->size(f, &size), 0);
	return size;
}

/* Completions, in order. */
static char order[16];
static int results[16];
static unsigned completed;
static bool in_submit;

static void done(struct host_io *io, int res)
{
	assert_false(in_submit);
	order[completed] = *(const char *)io->owner;
	results[completed++] = res;
}

static void submit(struct host_io *io)
{
	in_submit = true;
	io->file->ops->submit(io);
	in_submit = false;
}

static int run1(struct host_file *f, enum host_op op, void *buf, uint64_t len, uint64_t off)
{
	struct host_io io = {
		.op = op, .file = f, .off = off, .len = len, .buf = buf, .done = done, .owner = "x"
	};

	completed = 0;
	submit(&io);
	assert_int_equal(completed, 0);
	assert_int_equal(f->ops->poll(f, true), 1);
	assert_int_equal(completed, 1);
	assert_int_equal(f->ops->poll(f, true), 0);
	return results[0];
}

static bool all(const unsigned char *p, size_t n, unsigned char want)
{
	while (n && *p == want) {
		p++;
		n--;
	}
	return !n;
}

static void test_read_write(void **state)
{
	static unsigned char buf[20000];
	struct host_file *f = open_file(10000);

	longest = 777;
	interrupt = 3;
	memset(buf, 1, sizeof(buf));
	assert_int_equal(run1(f, HOST_READ, buf, 20000, 0), 0); /* zeroes past the end */
	assert_true(all(buf, 10000, 0x55));
	assert_true(all(buf + 10000, 10000, 0));
	memset(buf, 1, sizeof(buf));
	assert_int_equal(run1(f, HOST_READ, buf, 100, 1ull << 50), 0);
	assert_true(all(buf, 100, 0));
	memset(buf, 0xaa, sizeof(buf));
	assert_int_equal(run1(f, HOST_WRITE, buf, 5000, 9000), 0); /* extends */
	assert_int_equal(size_of(f), 14000);
	assert_int_equal(f->ops->pread(f, buf, 14001, 1), 0);
	assert_true(all(buf, 8999, 0x55));
	assert_true(all(buf + 8999, 5000, 0xaa));
	assert_true(all(buf + 13999, 2, 0));
	assert_int_equal(run1(f, HOST_FSYNC, NULL, 0, 0), 0);
	assert_int_equal(run1(f, HOST_READ, buf, 10, UINT64_MAX - 5), -EINVAL);
	assert_int_equal(f->ops->pread(f, buf, 10, UINT64_MAX - 5), -EINVAL);
	write_errno = ENOSPC;
	assert_int_equal(run1(f, HOST_WRITE, buf, 10, 0), -ENOSPC);
	f->ops->close(f);
}

/* In the middle, over the end, wholly beyond it; with and without help from the file system. */
static void test_zero(void **state)
{
	static const int deny[] = { 0, FALLOC_FL_ZERO_RANGE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_PUNCH_HOLE };
	static unsigned char buf[400000];
	struct host_file *f;
	size_t i;

	for (i = 0; i < COUNT(deny); i++) {
		f = open_file(100352);
		denied_modes = deny[i];
		longest = 5000;
		fallocates = 0;
		assert_int_equal(run1(f, HOST_ZERO, NULL, 1024, 512), 0);
		assert_int_equal(size_of(f), 100352);
		assert_int_equal(run1(f, HOST_ZERO, NULL, 150016, 99840), 0);
		assert_int_equal(size_of(f), 249856);
		assert_int_equal(run1(f, HOST_ZERO, NULL, 512, 300032), 0);
		assert_int_equal(size_of(f), 300544);
		assert_int_equal(run1(f, HOST_ZERO, NULL, 0, 0), 0);
		assert_true(fallocates >= (deny[i] ? 6 : 3));
		assert_int_equal(f->ops->pread(f, buf, 300544, 0), 0);
		assert_true(all(buf, 512, 0x55) && all(buf + 512, 1024, 0) && all(buf + 1536, 98304, 0x55));
		assert_true(all(buf + 99840, 300544 - 99840, 0));
		f->ops->close(f);
		denied_modes = 0;
	}
}

static void test_punch(void **state)
{
	static unsigned char buf[131072];
	struct host_file *f = open_file(131072);

	assert_int_equal(run1(f, HOST_PUNCH, NULL, 65536, 0), 0);
	assert_int_equal(f->ops->pread(f, buf, sizeof(buf), 0), 0);
	assert_true(all(buf, 65536, 0) && all(buf + 65536, 65536, 0x55));
	assert_int_equal(run1(f, HOST_PUNCH, NULL, 65536, 131072), 0);
	assert_int_equal(size_of(f), 131072);
	denied_modes = FALLOC_FL_PUNCH_HOLE;
	assert_int_equal(run1(f, HOST_PUNCH, NULL, 65536, 65536), 0); /* a hint */
	assert_int_equal(f->ops->pread(f, buf, 65536, 65536), 0);
	assert_true(all(buf, 65536, 0x55));
	f->ops->close(f);
}

static struct host_io late;

static void done_submits(struct host_io *io, int res)
{
	done(io, res);
	submit(&late);
}

static void test_order(void **state)
{
	struct host_file *f = open_file(4096);
	unsigned char buf[16];
	struct host_io a, b, c, d;

	a = (struct host_io){
		.op = HOST_READ, .file = f, .len = 16, .buf = buf, .done = done_submits, .owner = "a"
	};
	b = a;
	b.done = done;
	b.owner = "b";
	c = b;
	c.owner = "c";
	d = b;
	d.owner = "d";
	late = b;
	late.owner = "l";
	a.then = &c;
	c.then = &d;
	completed = 0;
	submit(&a);
	submit(&b);
	assert_int_equal(f->ops->poll(f, true), 4);
	assert_memory_equal(order, "acdb", 4);
	assert_int_equal(f->ops->poll(f, false), 1);
	assert_int_equal(order[4], 'l');
	assert_int_equal(f->ops->poll(f, false), 0);
	f->ops->close(f);
}

static void test_failed_chain(void **state)
{
	struct host_file *f = open_file(4096);
	unsigned char buf[16] = { 0 };
	struct host_io a, b, c;

	a = (struct host_io){ .op = HOST_FSYNC, .file = f, .done = done, .owner = "a" };
	b = (struct host_io){
		.op = HOST_WRITE, .file = f, .len = 16, .buf = buf, .done = done, .owner = "b"
	};
	c = a;
	c.owner = "c";
	a.then = &b;
	b.then = &c;
	completed = 0;
	write_errno = EIO;
	submit(&a);
	assert_int_equal(f->ops->poll(f, true), 3);
	assert_memory_equal(order, "abc", 3);
	assert_int_equal(results[0], 0);
	assert_int_equal(results[1], -EIO);
	assert_int_equal(results[2], -ECANCELED);
	f->ops->close(f);
}

/* One poll serves all files of a chain. */
static void test_two_files(void **state)
{
	struct host_file *f = open_file(4096), *g;
	struct qcow2_error err = { "" };
	unsigned char buf[16];
	struct host_io io = { .op = HOST_READ, .len = 16, .buf = buf, .done = done, .owner = "g" };

	assert_int_equal(host_open_sync(&g, in_dir("file"), true, &err), 0);
	assert_int_equal(f->dev, g->dev);
	assert_int_equal(f->ino, g->ino);
	assert_true(g->read_only && !f->read_only && !f->fixed_size);
	io.file = g;
	completed = 0;
	submit(&io);
	assert_int_equal(f->ops->poll(f, true), 1);
	assert_int_equal(run1(g, HOST_WRITE, buf, 16, 0), -EBADF);
	f->ops->close(f);
	g->ops->close(g);
}

static void refused(const char *path, const char *why)
{
	struct qcow2_error err = { "" };
	struct host_file *f;
	int ret = host_open_sync(&f, path, true, &err);

	assert_true(ret < 0);
	assert_non_null(strstr(err.text, why));
	err.text[0] = 0;
	assert_int_equal(host_open_sync(&f, path, false, &err), ret);
	assert_non_null(strstr(err.text, why));
}

static void test_refused(void **state)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	struct qcow2_error err = { "" };
	struct host_file *f;
	int fd, pipes[2];

	refused(dir, "is a directory, not an image");
	refused("/dev/null", "is a character device, not an image");
	assert_int_equal(mkfifo(in_dir("fifo"), 0600), 0);
	refused(in_dir("fifo"), "is a fifo, not an image");
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	snprintf(sun.sun_path, sizeof(sun.sun_path), "%s", in_dir("socket"));
	assert_int_equal(bind(fd, (struct sockaddr *)&sun, sizeof(sun)), 0);
	close(fd);
	refused(in_dir("socket"), "is a socket, not an image");
	refused(in_dir("absent"), "No such file");
	refused(in_dir("absent\n"), "absent\\x0a");
	/* the descriptor is closed on failure */
	assert_int_equal(pipe(pipes), 0);
	assert_int_equal(host_fdopen_sync(&f, pipes[0], "pipe", true, &err), -EINVAL);
	assert_string_equal(err.text, "pipe: is a fifo, not an image");
	assert_int_equal(fcntl(pipes[0], F_GETFD), -1);
	close(pipes[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_read_write, setup, teardown),
		cmocka_unit_test_setup_teardown(test_zero, setup, teardown),
		cmocka_unit_test_setup_teardown(test_punch, setup, teardown),
		cmocka_unit_test_setup_teardown(test_order, setup, teardown),
		cmocka_unit_test_setup_teardown(test_failed_chain, setup, teardown),
		cmocka_unit_test_setup_teardown(test_two_files, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

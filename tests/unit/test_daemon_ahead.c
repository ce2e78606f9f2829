// SPDX-License-Identifier: GPL-2.0-or-later
/* Space reserved behind a growing file: how much and when, as numbers; then on a real file, which ends as it
 * should. */
#include "daemon/ahead.h"
#include "daemon/ring.h"
#include "unit.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define MIB (1ull << 20)
#define CLUSTER 65536ull

/* A file without a name in the current directory, which has room; 77 if its file system is not ext4. */
static int make_file(void)
{
	char path[] = "ahead-test-XXXXXX";
	int fd = mkstemp(path);
	struct statfs st;

	assert_true(fd >= 0);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(fstatfs(fd, &st), 0);
	if (st.f_type != EXT4_SUPER_MAGIC || fallocate(fd, 0, 0, 1) || ftruncate(fd, 0))
		exit(77);
	return fd;
}

static uint64_t size_of(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return (uint64_t)st.st_size;
}

/* Use cluster by cluster up to @end, all reserving granted at once; the number of them. */
static unsigned grow(struct ahead *a, uint64_t from, uint64_t end)
{
	uint64_t off, len;
	unsigned n = 0;

	for (uint64_t used = from + CLUSTER; used <= end; used += CLUSTER) {
		if (!ahead_next(a, used, &off, &len))
			continue;
		n++;
		assert_true(off >= used && len > 0);
		assert_true(off + len - used <= AHEAD_MAX);
		ahead_done(a, 0);
		assert_int_equal(a->end, off + len);
	}
	return n;
}

static void grows_with_the_file(void **state)
{
	uint64_t off, len, at = 100 * MIB;
	struct ahead a;
	int fd = make_file();

	ahead_init(&a, fd);
	assert_true(ahead_next(&a, at, &off, &len));
	assert_true(off == at && len == AHEAD_MIN);
	assert_false(ahead_next(&a, at + CLUSTER, &off, &len)); /* it runs */
	ahead_done(&a, 0);
	assert_false(ahead_next(&a, at + AHEAD_MIN / 4, &off, &len)); /* enough is left */
	assert_true(ahead_next(&a, at + AHEAD_MIN / 2, &off, &len));
	assert_true(off == at + AHEAD_MIN && off + len == at + AHEAD_MIN / 2 + AHEAD_MIN);
	ahead_done(&a, 0);
	/* a file that got far is served in few large steps, never more than AHEAD_MAX beyond what is used */
	assert_in_range(grow(&a, at + AHEAD_MIN / 2, at + 512 * MIB), 40, 80);
	assert_true(a.end > a.used && a.end - a.used >= AHEAD_MAX / 2 - CLUSTER);
	close(fd);
}

/* It ran late: more is used by now than was reserved. */
static void overtaken(void **state)
{
	uint64_t off, len;
	struct ahead a;
	int fd = make_file();

	ahead_init(&a, fd);
	assert_true(ahead_next(&a, MIB, &off, &len));
	assert_false(ahead_next(&a, 5 * MIB, &off, &len));
	ahead_done(&a, 0);
	assert_true(ahead_next(&a, 5 * MIB + CLUSTER, &off, &len));
	assert_int_equal(off, 5 * MIB + CLUSTER);
	ahead_done(&a, 0);
	close(fd);
}

static void a_failure_is_not_repeated_at_once(void **state)
{
	uint64_t off, len;
	struct ahead a;
	int fd = make_file();

	ahead_init(&a, fd);
	assert_true(ahead_next(&a, MIB, &off, &len));
	ahead_done(&a, -ENOSPC);
	assert_false(ahead_next(&a, MIB + CLUSTER, &off, &len));
	assert_false(ahead_next(&a, 2 * MIB - CLUSTER, &off, &len));
	assert_true(ahead_next(&a, 2 * MIB, &off, &len));
	assert_int_equal(off, 2 * MIB);
	ahead_done(&a, -ENOSPC);
	assert_int_equal(ftruncate(fd, 3 * MIB), 0);
	ahead_cut(&a); /* nothing was reserved, so nothing is cut */
	assert_int_equal(size_of(fd), 3 * MIB);
	close(fd);
}

static void only_where_it_is_known_to_help(void **state)
{
	char path[] = "/dev/shm/ahead-test-XXXXXX";
	uint64_t off, len;
	struct ahead a;
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	unlink(path);
	ahead_init(&a, fd);
	assert_false(ahead_next(&a, MIB, &off, &len));
	assert_false(ahead_next(&a, 1ull << 55, &off, &len));
	ahead_cut(&a);
	close(fd);
}

static void done(struct host_io *io, int res)
{
	*(int *)io->owner = res;
}

static void write_at(struct host_file *f, void *buf, uint64_t off)
{
	int res = 1;
	struct host_io io = {
		.op = HOST_WRITE, .file = f, .off = off, .len = 4096, .buf = buf, .done = done, .owner = &res
	};

	f->ops->submit(&io);
	while (res == 1)
		f->ops->poll(f, true);
	assert_int_equal(res, 0);
}

/* By way of the ring: longer while it is open, zeroes there, cut at what is used by close(), which waits. */
static void a_file_on_a_ring(void **state)
{
	int fd = make_file(), look = dup(fd);
	struct qcow2_error err = { "" };
	struct host_file *f;
	struct ring *r;
	char *buf = NULL;

	assert_int_equal(posix_memalign((void **)&buf, 4096, 4096), 0);
	memset(buf, 'a', 4096);
	assert_int_equal(ring_new(&r, 8, &err), 0);
	assert_int_equal(ring_file(r, fd, "test", false, false, &f, &err), 0);
	f->ops->grown(f, MIB);
	write_at(f, buf, MIB - 4096);
	while (size_of(look) != MIB + AHEAD_MIN) /* it is not waited for */
		f->ops->poll(f, false);
	assert_int_equal(f->ops->pread(f, buf, 4096, MIB), 0);
	for (unsigned i = 0; i < 4096; i++)
		assert_int_equal(buf[i], 0);
	memset(buf, 'b', 4096);
	f->ops->grown(f, MIB + AHEAD_MIN);
	write_at(f, buf, MIB + AHEAD_MIN - 4096);
	f->ops->close(f); /* the second one may still be running */
	assert_int_equal(size_of(look), MIB + AHEAD_MIN);
	assert_int_equal(pread(look, buf, 1, MIB + AHEAD_MIN - 1), 1);
	assert_int_equal(buf[0], 'b');
	ring_free(r);
	close(look);
	free(buf);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(grows_with_the_file),
		cmocka_unit_test(overtaken),
		cmocka_unit_test(a_failure_is_not_repeated_at_once),
		cmocka_unit_test(only_where_it_is_known_to_help),
		cmocka_unit_test(a_file_on_a_ring),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

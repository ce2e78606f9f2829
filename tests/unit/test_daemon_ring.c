// SPDX-License-Identifier: GPL-2.0-or-later
/* The io_uring backend: every operation, chains, short reads, more I/Os than the ring holds, wake-ups. */
#include "daemon/ring.h"
#include "unit.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096u

struct fixture {
	struct ring *ring;
	struct host_file *file;
	int fd; /* the file's, for looking at it */
};

/* A file without a name: direct I/O on the current directory's file system, or buffered on tmpfs. */
static struct fixture make(unsigned depth, bool direct)
{
	char path[] = "ring-test-XXXXXX", shm[] = "/dev/shm/ring-test-XXXXXX";
	char *name = direct ? path : shm;
	struct fixture x = { 0 };
	struct qcow2_error err = { "" };
	int fd = mkstemp(name);

	assert_true(fd >= 0);
	if (direct && fcntl(fd, F_SETFL, O_DIRECT))
		direct = false;
	assert_int_equal(unlink(name), 0);
	assert_int_equal(ring_new(&x.ring, depth, &err), 0);
	assert_int_equal(ring_file(x.ring, fd, "test", false, direct, &x.file, &err), 0);
	x.fd = ring_file_fd(x.file);
	return x;
}

static void drop(struct fixture *x)
{
	x->file->ops->close(x->file);
	ring_free(x->ring);
}

struct result {
	struct host_io io;
	unsigned calls;
	int res;
	unsigned *order, nth;
};

static void done(struct host_io *io, int res)
{
	struct result *r = io->owner;

	r->calls++;
	r->res = res;
	if (r->order)
		r->nth = ++*r->order;
}

static void set(struct result *r, struct fixture *x, enum host_op op, void *buf, uint64_t len, uint64_t off)
{
	*r = (struct result){
		.io = { .op = op,
			.file = x->file,
			.buf = buf,
			.len = len,
			.off = off,
			.done = done,
			.owner = r },
		.res = 1,
	};
}

static int run(struct fixture *x, enum host_op op, void *buf, uint64_t len, uint64_t off)
{
	struct result r;

	set(&r, x, op, buf, len, off);
	x->file->ops->submit(&r.io);
	assert_int_equal(r.calls, 0); /* never from inside submit */
	while (!r.calls)
		x->file->ops->poll(x->file, true);
	assert_int_equal(r.calls, 1);
	return r.res;
}

static char *aligned_buf(size_t len, char fill)
{
	void *buf = NULL;

	assert_int_equal(posix_memalign(&buf, BLOCK, len), 0);
	memset(buf, fill, len);
	return buf;
}

static void expect_fill(struct fixture *x, uint64_t off, uint64_t len, char fill)
{
	char *buf = malloc(len);

	assert_int_equal(x->file->ops->pread(x->file, buf, len, off), 0);
	for (uint64_t i = 0; i < len; i++)
		assert_int_equal(buf[i], fill);
	free(buf);
}

static uint64_t size_of(struct fixture *x)
{
	uint64_t size;

	assert_int_equal(x->file->ops->size(x->file, &size), 0);
	return size;
}

static void operations(bool direct, uint32_t align)
{
	struct fixture x = make(8, direct);
	char *buf = aligned_buf(16 * BLOCK, 'a');

	if (align)
		x.file->dio_align = align;
	assert_int_equal(run(&x, HOST_WRITE, buf, 16 * BLOCK, 0), 0);
	assert_int_equal(size_of(&x), 16 * BLOCK);
	memset(buf, 0, BLOCK);
	assert_int_equal(run(&x, HOST_READ, buf, BLOCK, 3 * BLOCK), 0);
	assert_int_equal(buf[0], 'a');
	assert_int_equal(buf[BLOCK - 1], 'a');
	assert_int_equal(run(&x, HOST_FSYNC, NULL, 0, 0), 0);
	/* half blocks at both ends, and behind the end */
	assert_int_equal(run(&x, HOST_ZERO, NULL, 3 * BLOCK, BLOCK + 512), 0);
	expect_fill(&x, BLOCK, 512, 'a');
	expect_fill(&x, BLOCK + 512, 3 * BLOCK, 0);
	expect_fill(&x, 4 * BLOCK + 512, BLOCK - 512, 'a');
	assert_int_equal(run(&x, HOST_ZERO, NULL, 512, 8 * BLOCK + 1024), 0);
	expect_fill(&x, 8 * BLOCK + 512, 512, 'a');
	expect_fill(&x, 8 * BLOCK + 1024, 512, 0);
	expect_fill(&x, 8 * BLOCK + 1536, 512, 'a');
	assert_int_equal(run(&x, HOST_ZERO, NULL, 600 * BLOCK, 15 * BLOCK), 0);
	assert_true(size_of(&x) >= 615 * BLOCK);
	expect_fill(&x, 14 * BLOCK, BLOCK, 'a');
	expect_fill(&x, 15 * BLOCK, 600 * BLOCK, 0);
	assert_int_equal(run(&x, HOST_PUNCH, NULL, 2 * BLOCK, 10 * BLOCK), 0);
	expect_fill(&x, 10 * BLOCK, 2 * BLOCK, 0);
	expect_fill(&x, 12 * BLOCK, BLOCK, 'a');
	assert_true(size_of(&x) >= 615 * BLOCK);
	free(buf);
	drop(&x);
}

static void operations_direct(void **state)
{
	operations(true, 0);
}

static void operations_buffered(void **state)
{
	operations(false, 0); /* tmpfs has no FALLOC_FL_ZERO_RANGE: zeroes are written */
}

static void zeroes_by_writes_at_an_alignment(void **state)
{
	operations(false, BLOCK);
}

static void behind_the_end_reads_as_zeroes(void **state)
{
	for (unsigned direct = 0; direct < 2; direct++) {
		struct fixture x = make(8, direct);
		char *buf = aligned_buf(4 * BLOCK, 'x');

		assert_int_equal(ftruncate(x.fd, BLOCK + 1000), 0);
		assert_int_equal(run(&x, HOST_READ, buf, 4 * BLOCK, 0), 0);
		for (unsigned i = 0; i < 4 * BLOCK; i++)
			assert_int_equal(buf[i], 0);
		memset(buf, 'x', 4 * BLOCK);
		assert_int_equal(run(&x, HOST_READ, buf, BLOCK, 100 * BLOCK), 0);
		assert_int_equal(buf[0] | buf[BLOCK - 1], 0);
		memset(buf, 'x', 4 * BLOCK);
		assert_int_equal(x.file->ops->pread(x.file, buf, 100, BLOCK + 950), 0);
		assert_int_equal(buf[0] | buf[99], 0);
		assert_int_equal(buf[100], 'x');
		free(buf);
		drop(&x);
	}
}

/* What somebody cut off the file is not zeroes; what nobody ever wrote is. */
static void cut_off(bool direct)
{
	struct fixture x = make(8, direct);
	char *buf = aligned_buf(2 * BLOCK, 'a');

	assert_int_equal(run(&x, HOST_WRITE, buf, BLOCK, 0), 0);
	assert_int_equal(run(&x, HOST_WRITE, buf, BLOCK, BLOCK), 0);
	assert_int_equal(run(&x, HOST_ZERO, NULL, BLOCK, 2ull * BLOCK), 0);
	assert_int_equal(run(&x, HOST_READ, buf, BLOCK, 3ull * BLOCK), 0);
	assert_int_equal(ftruncate(x.fd, 2ll * BLOCK), 0);
	assert_int_equal(run(&x, HOST_READ, buf, BLOCK, 2ull * BLOCK), -EIO);
	assert_int_equal(run(&x, HOST_READ, buf, BLOCK, 3ull * BLOCK), 0);
	assert_int_equal(ftruncate(x.fd, BLOCK), 0);
	assert_int_equal(run(&x, HOST_READ, buf, BLOCK, 0), 0);
	assert_int_equal(run(&x, HOST_READ, buf, 2ull * BLOCK, 0), -EIO);
	assert_int_equal(x.file->ops->pread(x.file, buf, 100, 100), 0);
	assert_int_equal(x.file->ops->pread(x.file, buf, 100, BLOCK), -EIO);
	assert_int_equal(x.file->ops->pread(x.file, buf, BLOCK, BLOCK / 2), -EIO);
	assert_int_equal(x.file->ops->pread(x.file, buf, BLOCK, 3ull * BLOCK), 0);
	assert_int_equal(run(&x, HOST_WRITE, buf, BLOCK, 2ull * BLOCK), 0);
	assert_int_equal(run(&x, HOST_READ, buf, 2ull * BLOCK, BLOCK), 0);
	drop(&x);
	free(buf);
}

static void what_was_cut_off_is_an_error(void **state)
{
	cut_off(true);
	cut_off(false);
}

static void chains_go_on_after_success(void **state)
{
	struct fixture x = make(4, true);
	char *buf = aligned_buf(BLOCK, 'c');
	struct result r[3];
	unsigned order = 0;

	set(&r[0], &x, HOST_WRITE, buf, BLOCK, 0);
	set(&r[1], &x, HOST_FSYNC, NULL, 0, 0);
	set(&r[2], &x, HOST_WRITE, buf, BLOCK, BLOCK);
	for (unsigned i = 0; i < 3; i++)
		r[i].order = &order;
	r[0].io.then = &r[1].io;
	r[1].io.then = &r[2].io;
	x.file->ops->submit(&r[0].io);
	while (!r[2].calls)
		x.file->ops->poll(x.file, true);
	for (unsigned i = 0; i < 3; i++)
		assert_true(r[i].calls == 1 && r[i].res == 0 && r[i].nth == i + 1);
	expect_fill(&x, 0, 2 * BLOCK, 'c');
	free(buf);
	drop(&x);
}

static void chains_end_at_a_failure(void **state)
{
	struct fixture x = make(4, true);
	char *buf = aligned_buf(BLOCK, 'c');
	struct result r[4];

	set(&r[0], &x, HOST_WRITE, buf, BLOCK, 0);
	set(&r[1], &x, HOST_WRITE, (void *)1, BLOCK, BLOCK); /* EFAULT or EINVAL */
	set(&r[2], &x, HOST_FSYNC, NULL, 0, 0);
	set(&r[3], &x, HOST_WRITE, buf, BLOCK, 2 * BLOCK);
	for (unsigned i = 0; i < 3; i++)
		r[i].io.then = &r[i + 1].io;
	x.file->ops->submit(&r[0].io);
	while (!r[3].calls)
		x.file->ops->poll(x.file, true);
	assert_int_equal(r[0].res, 0);
	assert_true(r[1].res < 0 && r[1].res != -ECANCELED);
	assert_int_equal(r[2].res, -ECANCELED);
	assert_int_equal(r[3].res, -ECANCELED);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(r[i].calls, 1);
	assert_int_equal(size_of(&x), BLOCK);
	free(buf);
	drop(&x);
}

/* A write with an fsync behind it is one linked submission: many of them, in order, more than fit at once. */
static void writes_with_linked_fsyncs(void **state)
{
	enum { PAIRS = 100 };
	struct fixture x = make(4, true);
	struct result *r = calloc(2 * PAIRS, sizeof(*r));
	char *buf = aligned_buf(BLOCK, 'l');
	unsigned delivered = 0;

	for (unsigned i = 0; i < 2 * PAIRS; i += 2) {
		set(&r[i], &x, HOST_WRITE, buf, BLOCK, i / 2 * BLOCK);
		set(&r[i + 1], &x, HOST_FSYNC, NULL, 0, 0);
		r[i].io.then = &r[i + 1].io;
		x.file->ops->submit(&r[i].io);
	}
	while (delivered < 2 * PAIRS)
		delivered += x.file->ops->poll(x.file, true);
	for (unsigned i = 0; i < 2 * PAIRS; i++)
		assert_true(r[i].calls == 1 && !r[i].res);
	expect_fill(&x, 0, PAIRS * BLOCK, 'l');
	free(r);
	free(buf);
	drop(&x);
}

/* The file may not grow past one block: the write is short, which cancels the fsync; then the rest fails. */
static void a_short_write_does_not_pass_for_synced(void **state)
{
	struct rlimit old, one = { .rlim_cur = BLOCK };
	struct fixture x = make(4, true);
	char *buf = aligned_buf(2 * BLOCK, 's');
	struct result r[2];

	set(&r[0], &x, HOST_WRITE, buf, 2 * BLOCK, 0);
	set(&r[1], &x, HOST_FSYNC, NULL, 0, 0);
	r[0].io.then = &r[1].io;
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	one.rlim_max = old.rlim_max;
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &one), 0);
	x.file->ops->submit(&r[0].io);
	while (!r[1].calls)
		x.file->ops->poll(x.file, true);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	assert_true(r[0].calls == 1 && r[0].res == -EFBIG);
	assert_true(r[1].calls == 1 && r[1].res == -ECANCELED);
	assert_int_equal(size_of(&x), BLOCK);
	free(buf);
	drop(&x);
}

static void more_than_the_ring_holds(void **state)
{
	enum { N = 500 };
	struct fixture x = make(4, true);
	struct result *r = calloc(N, sizeof(*r));
	char *buf = aligned_buf(N * BLOCK, 0);
	unsigned delivered = 0;

	for (unsigned i = 0; i < N; i++) {
		memset(buf + i * BLOCK, (char)i, BLOCK);
		set(&r[i], &x, HOST_WRITE, buf + i * BLOCK, BLOCK, i * BLOCK);
		x.file->ops->submit(&r[i].io);
	}
	while (delivered < N)
		delivered += x.file->ops->poll(x.file, true);
	assert_int_equal(delivered, N);
	for (unsigned i = 0; i < N; i++)
		assert_true(r[i].calls == 1 && !r[i].res);
	assert_int_equal(x.file->ops->poll(x.file, false), 0);
	for (unsigned i = 0; i < N; i++)
		expect_fill(&x, i * BLOCK, BLOCK, (char)i);
	free(r);
	free(buf);
	drop(&x);
}

static void *wake_later(void *arg)
{
	static const struct timespec pause = { .tv_nsec = 30000000 };

	nanosleep(&pause, NULL);
	ring_wake(arg);
	return NULL;
}

static void wake_ups(void **state)
{
	struct fixture x = make(4, true);
	pthread_t thread;

	for (unsigned i = 0; i < 20; i++) {
		/* one that came before, and is not lost to a poll that does not wait */
		ring_wake(x.ring);
		x.file->ops->poll(x.file, false);
		assert_int_equal(x.file->ops->poll(x.file, true), 0);
	}
	/* one that comes during the wait */
	assert_int_equal(pthread_create(&thread, NULL, wake_later, x.ring), 0);
	assert_int_equal(x.file->ops->poll(x.file, true), 0);
	pthread_join(thread, NULL);
	ring_no_wait(x.ring, true);
	assert_int_equal(x.file->ops->poll(x.file, true), 0);
	drop(&x);
}

static void timers(void **state)
{
	struct fixture x = make(4, true);

	for (unsigned i = 0; i < 3; i++) {
		assert_false(ring_timer_expired(x.ring));
		ring_timer(x.ring, 20);
		ring_timer(x.ring, 1); /* ignored: one is running */
		assert_int_equal(x.file->ops->poll(x.file, true), 0);
		assert_true(ring_timer_expired(x.ring));
	}
	drop(&x);
}

static void alignment_and_going_buffered(void **state)
{
	struct fixture x = make(4, true);
	char *buf = aligned_buf(BLOCK, 'b');

	if (x.file->dio_align == 1)
		skip();
	assert_true(x.file->dio_align >= 512 && x.file->mem_align >= 1);
	assert_true(fcntl(x.fd, F_GETFL) & O_DIRECT);
	assert_int_equal(ring_file_buffered(x.file), 0);
	assert_true(x.file->dio_align == 1 && x.file->mem_align == 1);
	assert_false(fcntl(x.fd, F_GETFL) & O_DIRECT);
	assert_int_equal(run(&x, HOST_WRITE, buf + 1, 100, 3), 0);
	assert_int_equal(size_of(&x), 103);
	free(buf);
	drop(&x);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(operations_direct),
		cmocka_unit_test(operations_buffered),
		cmocka_unit_test(zeroes_by_writes_at_an_alignment),
		cmocka_unit_test(behind_the_end_reads_as_zeroes),
		cmocka_unit_test(what_was_cut_off_is_an_error),
		cmocka_unit_test(chains_go_on_after_success),
		cmocka_unit_test(chains_end_at_a_failure),
		cmocka_unit_test(writes_with_linked_fsyncs),
		cmocka_unit_test(a_short_write_does_not_pass_for_synced),
		cmocka_unit_test(more_than_the_ring_holds),
		cmocka_unit_test(wake_ups),
		cmocka_unit_test(timers),
		cmocka_unit_test(alignment_and_going_buffered),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

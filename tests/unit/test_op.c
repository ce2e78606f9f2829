// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The step machine: steps run when nothing is pending, the first error wins, wait queues; and host I/O on
 * behalf of an op: alignment, read-modify-write, errors, the linked fsync.
 */
#include "memfile.h"
#include "qcow2/op.h"

static struct runq rq;
static struct disk *d;
static struct host_file *f;

struct counted {
	struct op op;
	unsigned steps;
	int err;
	bool finished;
};

static enum step last_step(struct op *op)
{
	struct counted *c = (struct counted *)op;

	c->steps++;
	c->err = op->err;
	c->finished = true;
	return STEP_DONE;
}

static enum step first_step(struct op *op)
{
	((struct counted *)op)->steps++;
	op_then(op, last_step);
	return STEP_NEXT;
}

static void begin(struct counted *c, step_fn fn)
{
	*c = (struct counted){ 0 };
	op_init(&c->op, &rq);
	c->op.next = fn;
}

static int setup(void **state)
{
	runq_init(&rq);
	d = disk_new();
	f = disk_open(d, false);
	return 0;
}

static int teardown(void **state)
{
	f->ops->close(f);
	disk_free(d);
	return 0;
}

static void run_io(void)
{
	do
		runq_run(&rq);
	while (f->ops->poll(f, true));
}

static void steps(void **state)
{
	struct counted c;

	begin(&c, first_step);
	op_start(&c.op);
	assert_int_equal(c.steps, 0); /* never from inside op_start() */
	runq_run(&rq);
	assert_int_equal(c.steps, 2);
	assert_true(c.finished);
	assert_string_equal(c.op.where, "last_step");
}

static void pending(void **state)
{
	struct counted c;

	begin(&c, first_step);
	op_get(&c.op);
	op_get(&c.op);
	op_put(&c.op, -EIO);
	runq_run(&rq);
	assert_int_equal(c.steps, 0);
	op_put(&c.op, -ENOSPC);
	runq_run(&rq);
	assert_int_equal(c.steps, 2);
	assert_int_equal(c.err, -EIO); /* the first one */
}

static enum step put_early(struct op *op)
{
	((struct counted *)op)->steps++;
	op_get(op);
	op_put(op, -EAGAIN); /* completes while the step still runs: not the next step under it */
	assert_int_equal(((struct counted *)op)->steps, 1);
	op_then(op, last_step);
	return STEP_NEXT;
}

static void completion_inside_a_step(void **state)
{
	struct counted c;

	begin(&c, put_early);
	op_start(&c.op);
	runq_run(&rq);
	assert_int_equal(c.steps, 2);
	assert_int_equal(c.err, -EAGAIN);
}

static void wait_queue(void **state)
{
	struct counted c[3];
	struct waitq wq;
	unsigned i;

	waitq_init(&wq);
	for (i = 0; i < 3; i++) {
		begin(&c[i], last_step);
		op_wait(&wq, &c[i].op);
	}
	op_get(&c[2].op); /* waits for something else, too */
	runq_run(&rq);
	assert_false(c[0].finished);
	waitq_wake(&wq, -EIO);
	waitq_wake(&wq, 0); /* nobody there any more */
	runq_run(&rq);
	assert_true(c[0].finished && c[1].finished && !c[2].finished);
	assert_int_equal(c[1].err, -EIO);
	op_put(&c[2].op, 0);
	runq_run(&rq);
	assert_int_equal(c[2].err, -EIO);
}

/* ---- host I/O ---- */

static void fill(char *buf, size_t n, char c)
{
	memset(buf, c, n);
}

/* Any range at any granularity of the host: the bytes are right, neighbours untouched. */
static void unaligned(void **state)
{
	static const uint32_t aligns[] = { 1, 512, 4096 };
	static const uint64_t ranges[][2] = { { 0, 4096 },  { 1, 1 },	   { 511, 2 },	   { 4095, 2 },
					      { 512, 512 }, { 100, 9000 }, { 4096, 8192 }, { 8191, 4097 } };
	char old[20000], buf[20000], got[20000];
	struct counted c;
	unsigned a, i;

	for (a = 0; a < COUNT(aligns); a++) {
		for (i = 0; i < COUNT(ranges); i++) {
			uint64_t off = ranges[i][0], len = ranges[i][1];

			f->dio_align = d->dio_align = aligns[a];
			f->mem_align = aligns[a] > 1 ? 512 : 1;
			fill(old, sizeof(old), 'o');
			disk_put(d, 0, old, sizeof(old));
			fill(buf, sizeof(buf), 'n');
			begin(&c, last_step);
			op_get(&c.op);
			op_write(&c.op, f, buf + 1, len, off); /* the buffer is unaligned, too */
			op_put(&c.op, 0);
			run_io();
			assert_true(c.finished);
			assert_int_equal(c.err, 0);
			memcpy(old + off, buf, len);
			disk_get(d, 0, got, sizeof(got));
			assert_memory_equal(got, old, sizeof(old));
			fill(got, sizeof(got), 'x');
			begin(&c, last_step);
			op_get(&c.op);
			op_read(&c.op, f, got + 1, len, off);
			op_put(&c.op, 0);
			run_io();
			assert_int_equal(c.err, 0);
			assert_memory_equal(got + 1, old + off, len);
			assert_int_equal(got[0], 'x');
			assert_int_equal(got[len + 1], 'x');
		}
	}
}

/* The read half of a read-modify-write fails: nothing is written. */
static void rmw_fails(void **state)
{
	struct counted c;

	f->dio_align = d->dio_align = 512;
	disk_fail(d, 1u << HOST_READ, -EIO, 1, false);
	begin(&c, last_step);
	op_get(&c.op);
	op_write(&c.op, f, "abc", 3, 100);
	op_put(&c.op, 0);
	run_io();
	assert_int_equal(c.err, -EIO);
	assert_int_equal(d->seen[HOST_WRITE], 0);
}

static void empty(void **state)
{
	struct counted c;

	begin(&c, last_step);
	op_get(&c.op);
	op_write(&c.op, f, NULL, 0, 0);
	op_zero(&c.op, f, 0, 0);
	op_read(&c.op, f, NULL, 0, 0);
	op_punch(&c.op, f, 0, 0);
	op_put(&c.op, 0);
	run_io();
	assert_true(c.finished);
	assert_int_equal(c.err, 0);
	assert_int_equal(d->delivered, 0);
}

/* A punch is a hint, a zero is not. */
static void hints(void **state)
{
	struct counted c;

	disk_fail(d, 1u << HOST_PUNCH | 1u << HOST_ZERO, -EOPNOTSUPP, 1, true);
	begin(&c, last_step);
	op_get(&c.op);
	op_punch(&c.op, f, 512, 0);
	op_put(&c.op, 0);
	run_io();
	assert_int_equal(c.err, 0);
	begin(&c, last_step);
	op_get(&c.op);
	op_zero(&c.op, f, 512, 0);
	op_put(&c.op, 0);
	run_io();
	assert_int_equal(c.err, -EOPNOTSUPP);
}

/* The fsync comes after its write; cancelled behind a failed write it does not count as a failed fsync. */
static void write_fsync(void **state)
{
	static char buf[512];
	struct counted c;

	d->record = true;
	begin(&c, last_step);
	op_get(&c.op);
	op_write_fsync(&c.op, f, buf, 512, 0);
	op_put(&c.op, 0);
	run_io();
	assert_int_equal(c.err, 0);
	assert_int_equal(d->events, 2);
	assert_int_equal(d->event[0].op, HOST_WRITE);
	assert_int_equal(d->event[1].op, HOST_FSYNC);
	assert_true(d->event[1].submitted > d->event[0].completed);

	disk_fail(d, 1u << HOST_WRITE, -ENOSPC, 1, false);
	begin(&c, last_step);
	op_get(&c.op);
	op_write_fsync(&c.op, f, buf, 512, 0);
	op_put(&c.op, 0);
	run_io();
	assert_int_equal(c.err, -ENOSPC);
	assert_false(c.op.sync_failed);
	assert_int_equal(d->seen[HOST_FSYNC], 1);

	disk_fail(d, 1u << HOST_FSYNC, -EIO, 1, false);
	begin(&c, last_step);
	op_get(&c.op);
	op_write_fsync(&c.op, f, buf, 512, 0);
	op_put(&c.op, 0);
	run_io();
	assert_int_equal(c.err, -EIO);
	assert_true(c.op.sync_failed);
}

static void buffers(void **state)
{
	void *p = buf_alloc(1);

	assert_non_null(p);
	assert_int_equal((uintptr_t)p % 4096, 0);
	buf_free(p);
	p = buf_alloc(0);
	assert_non_null(p);
	buf_free(p);
	buf_free(NULL);
	assert_null(buf_alloc(UINT64_MAX));
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(steps),	  TEST(pending),   TEST(completion_inside_a_step),
		TEST(wait_queue), TEST(unaligned), TEST(rmw_fails),
		TEST(empty),	  TEST(hints),	   TEST(write_fsync),
		TEST(buffers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

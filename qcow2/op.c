/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * op.c - the run queue, wait queues, and host I/O on behalf of an op.
 *
 * Invariants: an op is in the ready queue iff pending == 0 and it was started; it is in at most one
 * wait queue; while its step runs, pending holds one count of the runner, so completions that arrive
 * early cannot run the next step under it.
 * Unaligned host I/O is handled here and nowhere else.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>
#include "op.h"

void runq_init(struct runq *rq)
{
	TAILQ_INIT(&rq->ready);
}

void runq_run(struct runq *rq)
{
	struct op *op;

	while ((op = TAILQ_FIRST(&rq->ready))) {
		TAILQ_REMOVE(&rq->ready, op, link);
		op->pending = 1;
		if (op->next(op) == STEP_NEXT)
			op_put(op, 0);
	}
}

void op_init(struct op *op, struct runq *rq)
{
	*op = (struct op){ .rq = rq };
}

void op_start(struct op *op)
{
	assert(op->next && !op->pending);
	TAILQ_INSERT_TAIL(&op->rq->ready, op, link);
}

void op_get(struct op *op)
{
	op->pending++;
}

void op_put(struct op *op, int err)
{
	assert(op->pending);
	if (err && !op->err)
		op->err = err;
	if (!--op->pending)
		TAILQ_INSERT_TAIL(&op->rq->ready, op, link);
}

void waitq_init(struct waitq *wq)
{
	TAILQ_INIT(wq);
}

void op_wait(struct waitq *wq, struct op *op)
{
	op_get(op);
	TAILQ_INSERT_TAIL(wq, op, link);
}

void waitq_wake(struct waitq *wq, int err)
{
	struct op *op;

	while ((op = TAILQ_FIRST(wq))) {
		TAILQ_REMOVE(wq, op, link);
		op_put(op, err);
	}
}

/* ---- host I/O ---- */

struct op_io {
	struct host_io io;
	struct op *op;
	/* unaligned I/O: the caller's bytes are at bounce + skip */
	void *bounce;
	void *user;
	uint64_t user_len;
	uint32_t skip;
	bool rmw; /* the read half of a read-modify-write */
};

static void op_io_free(struct op_io *o)
{
	buf_free(o->bounce);
	mem_put(o);
}

static void op_io_done(struct host_io *io, int res)
{
	struct op_io *o = io->owner;
	struct op *op = o->op;

	if (io->op == HOST_PUNCH)
		res = 0; /* a hint */
	if (io->op == HOST_FSYNC && res && res != -ECANCELED)
		op->sync_failed = true;
	if (!res && o->rmw) {
		o->rmw = false;
		memcpy((char *)o->bounce + o->skip, o->user, o->user_len);
		io->op = HOST_WRITE;
		io->progress = 0;
		io->file->ops->submit(io);
		return;
	}
	if (!res && o->bounce && io->op == HOST_READ)
		memcpy(o->user, (char *)o->bounce + o->skip, o->user_len);
	op_io_free(o);
	op_put(op, res);
}

static struct op_io *op_io_new(struct op *op, enum host_op what, struct host_file *file, void *buf, uint64_t len,
			       uint64_t off)
{
	struct op_io *o = mem_get_zeroed(sizeof(*o));

	op_get(op);
	if (!o) {
		op_put(op, -ENOMEM);
		return NULL;
	}
	o->op = op;
	o->io = (struct host_io){ .op = what, .file = file, .off = off, .len = len, .buf = buf,
				  .done = op_io_done, .owner = o };
	return o;
}

static bool aligned(const struct host_file *f, const void *buf, uint64_t len, uint64_t off)
{
	uint64_t a = f->dio_align ? f->dio_align : 1, m = f->mem_align ? f->mem_align : 1;

	return !(off % a) && !(len % a) && !((uintptr_t)buf % m);
}

/* Turn the I/O into one on the surrounding aligned blocks. */
static bool bounce(struct op_io *o)
{
	struct host_io *io = &o->io;
	uint64_t a = io->file->dio_align ? io->file->dio_align : 1;
	uint64_t start = io->off - io->off % a, end = io->off + io->len;

	end += (a - end % a) % a;
	o->user = io->buf;
	o->user_len = io->len;
	o->skip = (uint32_t)(io->off - start);
	o->bounce = buf_alloc(end - start);
	io->buf = o->bounce;
	io->off = start;
	io->len = end - start;
	return o->bounce;
}

static void op_io_submit(struct op_io *o)
{
	struct host_io *io = &o->io;

	if ((io->op == HOST_READ || io->op == HOST_WRITE) && !aligned(io->file, io->buf, io->len, io->off)) {
		if (!bounce(o)) {
			op_io_done(io, -ENOMEM);
			return;
		}
		if (io->op == HOST_WRITE && (o->skip || o->user_len != io->len)) {
			o->rmw = true;
			io->op = HOST_READ;
		} else if (io->op == HOST_WRITE) {
			memcpy(o->bounce, o->user, o->user_len);
		}
	}
	io->file->ops->submit(io);
}

static void op_io(struct op *op, enum host_op what, struct host_file *file, void *buf, uint64_t len, uint64_t off)
{
	struct op_io *o;

	if (!len && what != HOST_FSYNC)
		return;
	o = op_io_new(op, what, file, buf, len, off);
	if (o)
		op_io_submit(o);
}

void op_read(struct op *op, struct host_file *file, void *buf, uint64_t len, uint64_t off)
{
	op_io(op, HOST_READ, file, buf, len, off);
}

void op_write(struct op *op, struct host_file *file, const void *buf, uint64_t len, uint64_t off)
{
	op_io(op, HOST_WRITE, file, (void *)(uintptr_t)buf, len, off);
}

void op_zero(struct op *op, struct host_file *file, uint64_t len, uint64_t off)
{
	op_io(op, HOST_ZERO, file, NULL, len, off);
}

void op_punch(struct op *op, struct host_file *file, uint64_t len, uint64_t off)
{
	op_io(op, HOST_PUNCH, file, NULL, len, off);
}

void op_fsync(struct op *op, struct host_file *file)
{
	op_io(op, HOST_FSYNC, file, NULL, 0, 0);
}

void op_write_fsync(struct op *op, struct host_file *file, const void *buf, uint64_t len, uint64_t off)
{
	void *p = (void *)(uintptr_t)buf;
	struct op_io *w, *s;

	assert(aligned(file, buf, len, off));
	w = op_io_new(op, HOST_WRITE, file, p, len, off);
	if (!w)
		return;
	s = op_io_new(op, HOST_FSYNC, file, NULL, 0, 0);
	if (!s) {
		op_io_done(&w->io, -ENOMEM);
		return;
	}
	w->io.then = &s->io;
	file->ops->submit(&w->io);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * request.c - guest requests: what was asked for is checked here, once, then handed to the reader, writer, clearer
 * or committer; done() is called here, once.
 */
#include <errno.h>
#include "commit.h"
#include "journal.h"
#include "publish.h"
#include "request.h"

static struct request *of(struct op *op)
{
	return (struct request *)((char *)op - offsetof(struct request, op));
}

static enum step request_start(struct op *op);
static enum step request_read(struct op *op);
static enum step request_flush(struct op *op);
static enum step request_end(struct op *op);

int qcow2_submit(struct qcow2_image *img, struct qcow2_req *req)
{
	struct request *r = mem_get_zeroed(sizeof(*r));

	if (!r) {
		image_make_room(img);
		return -ENOMEM;
	}
	r->img = img;
	r->user = req;
	op_init(&r->op, img->run);
	op_then(&r->op, request_start);
	TAILQ_INSERT_TAIL(&img->requests, r, link);
	op_start(&r->op);
	return 0;
}

static int validate(const struct qcow2_image *img, const struct qcow2_req *q)
{
	if (q->op == QCOW2_FLUSH)
		return 0;
	if ((q->off | q->len) & 511 || q->off > img->geo.size || q->len > img->geo.size - q->off)
		return -EINVAL;
	return 0;
}

static enum step fail(struct request *r, int err)
{
	r->op.err = err;
	op_then(&r->op, request_end);
	return STEP_NEXT;
}

static enum step start_read(struct request *r)
{
	const struct geometry *g = &r->img->geo;
	struct qcow2_req *q = r->user;

	if (r->img->mode == MODE_FAILED)
		return fail(r, -EIO);
	range_lock(r->img, &r->range, &r->op, cluster_down(g, q->off), cluster_up(g, q->off + q->len), false);
	op_then(&r->op, request_read);
	return STEP_NEXT;
}

static enum step request_start(struct op *op)
{
	struct request *r = of(op);
	struct qcow2_req *q = r->user;
	int ret = validate(r->img, q);

	op_then(op, request_end);
	if (ret)
		return fail(r, ret);
	if (q->op == QCOW2_FLUSH) {
		op_then(op, request_flush);
		return STEP_NEXT;
	}
	if (!q->len)
		return STEP_NEXT;
	switch (q->op) {
	case QCOW2_READ:
		return start_read(r);
	case QCOW2_WRITE:
		write_start(&r->writer, r->img, q->off, q->len, q->buf, op);
		return STEP_NEXT;
	case QCOW2_WRITE_ZEROES:
		clear_start(&r->clearer, r->img, q->off, q->len, true, q->flags & QCOW2_REQ_NO_UNMAP, op);
		return STEP_NEXT;
	default:
		if (r->img->discard != QCOW2_DISCARD_IGNORE)
			clear_start(&r->clearer, r->img, q->off, q->len, false, false, op);
		return STEP_NEXT;
	}
}

static enum step request_read(struct op *op)
{
	struct request *r = of(op);

	read_start(&r->reader, r->img, r->user->off, r->user->len, r->user->buf, op);
	op_then(op, request_end);
	return STEP_NEXT;
}

/* Never elided: what was written in place is known to the host only. */
static enum step request_flush(struct op *op)
{
	struct request *r = of(op);

	r->img->stats.flushes++;
	op_then(op, request_end);
	if (r->img->lost)
		return fail(r, -EIO);
	if (r->img->commit)
		commit_wait(r->img, op);
	return STEP_NEXT;
}

static enum step request_end(struct op *op)
{
	struct request *r = of(op);
	struct qcow2_req *q = r->user;
	int res = op->err;

	if (q->op == QCOW2_READ && !res)
		publish_around(r->img, q->off, q->off + q->len, &r->range);
	journal_publish(r->img);
	if (!res && q->op != QCOW2_READ && r->img->mode == MODE_FAILED)
		res = -EIO; /* maybe nobody recorded it */
	if (res == -ENOMEM)
		image_make_room(r->img);
	range_unlock(r->img, &r->range);
	TAILQ_REMOVE(&r->img->requests, r, link);
	mem_put(r);
	q->done(q, res);
	return STEP_DONE;
}

void qcow2_dump(const struct qcow2_image *img, FILE *out)
{
	const struct request *r;

	TAILQ_FOREACH(r, &img->requests, link)
		fprintf(out, "op %d off %llu len %llu: %s, waits for %u%s\n", r->user->op,
			(unsigned long long)r->user->off, (unsigned long long)r->user->len, r->op.where, r->op.pending,
			r->range.listed && !r->range.granted ? " (range)" : "");
	if (img->commit && commit_running(img))
		fprintf(out, "commit running\n");
}

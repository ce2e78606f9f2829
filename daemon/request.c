/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * request.c - one request of a ublk queue, from its FETCH to its COMMIT.
 *
 * Owns a tag's state. Its life:
 *   idle -> (command completes) -> mapped: hold the range, look up, data I/Os, release, commit
 *                               -> missed: to the metadata thread and back, commit
 *   A mapped request whose I/O failed or was short releases its hold and becomes a missed one, whole: whoever
 * reports an error to the guest has looked at the image's metadata. No lookup happens on that way.
 *
 * Invariants:
 * - The hold of a mapped request is taken before the lookup and given back exactly once, when its last data
 * I/O has completed, and never kept while the tag is idle: a drain would wait for the next request.
 * - So every data I/O has a completion of its own, and then COMMIT_AND_FETCH is queued. COMMIT linked behind
 * the data I/O (IOSQE_IO_LINK) with CQE_SKIP_SUCCESS would show nothing when the data I/O ends. Linked
 * without the skip it costs the same two io_uring_enter() per request at depth 1, and it is unsafe: a
 * submission that stops between the two SQEs (no memory for the second) leaves a COMMIT that runs without
 * waiting for its data. Measured on 7.2, thousands of instructions per 4 KiB (read depth 1, 16, write depth
 * 1, 16): this way 43.7 36.7 45.0 36.2, linked 44.0 38.2 44.0 38.2, linked with the skip 43.0 36.8 44.3 36.3.
 * - A COMMIT always finds an SQE: data I/Os leave room for one per tag.
 * - Nothing here waits. A mapped request allocates and locks nothing; a missed one whose data the driver
 * leaves to us to copy takes a buffer from the pool, whose memory is there, or waits for one in q->starved.
 * With user copy that is so for every request: it has its buffer before it is looked up.
 * (Where the driver copies, each tag has address space of its own, and pages appear when it is used.)
 */
#include "arena.h"
#include "guard.h"
#include "kernel/ublk_bpf.h"
#include "queue.h"
#include "test_switch.h"
#include "uring.h"
#include <errno.h>
#include <stddef.h>
#include <string.h>

#define request_of(ptr, member) ((struct request *)((char *)(ptr) - offsetof(struct request, member)))

/* ---- commands ---- */

/* FETCH, or COMMIT_AND_FETCH with the result of the request that the tag carries. */
static void queue_command(struct request *r, uint32_t op, int res)
{
	struct queue *q = r->q;
	struct io_uring_sqe *sqe = uring_sqe(&q->ring);
	struct ublksrv_io_cmd *cmd;

	if (!sqe) { /* cannot happen, see above; the kernel ends the request when the ring goes */
		q->quit = true;
		return;
	}
	io_uring_prep_rw(IORING_OP_URING_CMD, sqe, (int)q->char_file, NULL, 0, 0);
	sqe->flags = IOSQE_FIXED_FILE;
	sqe->cmd_op = op;
	cmd = (struct ublksrv_io_cmd *)sqe->cmd;
	*cmd = (struct ublksrv_io_cmd){ .q_id = (uint16_t)q->opt.id, .tag = r->tag, .result = res };
	q->opt.copy->prep_command(sqe, cmd, r);
	io_uring_sqe_set_data(sqe, &r->command);
}

static void commit(struct request *r, int res)
{
	queue_command(r, r->q->opt.commit_cmd, res);
}

void request_fetch(struct request *r)
{
	queue_command(r, r->q->opt.fetch_cmd, -1);
}

/*
 * Not from the disk over a hidden device. For everybody else there is nothing on it: reads find zeroes, and
 * but for a flush all else is an error.
 */
static bool is_foreign(const struct queue *q, const struct ublksrv_io_desc *iod)
{
	return __atomic_load_n(q->opt.hidden, __ATOMIC_RELAXED) &&
	       (iod->op_flags & UBLK_BPF_MARK) != UBLK_BPF_MARK;
}

/* ---- missed requests ---- */

void request_touch(struct request *r, uint32_t len)
{
	if (len <= r->touched)
		return;
	r->q->touched += len - r->touched;
	r->touched = len;
}

static int library_op(const struct ublksrv_io_desc *iod)
{
	switch (ublksrv_get_op(iod)) {
	case UBLK_IO_OP_READ:
		return QCOW2_READ;
	case UBLK_IO_OP_WRITE:
		return QCOW2_WRITE;
	case UBLK_IO_OP_FLUSH:
		return QCOW2_FLUSH;
	case UBLK_IO_OP_DISCARD:
		return QCOW2_DISCARD;
	case UBLK_IO_OP_WRITE_ZEROES:
		return QCOW2_WRITE_ZEROES;
	default:
		return -EOPNOTSUPP;
	}
}

static bool has_data(enum qcow2_req_op op)
{
	return op == QCOW2_READ || op == QCOW2_WRITE;
}

static bool take_buffer(struct request *r, uint64_t len)
{
	r->buf = arena_get(r->q->opt.pool, len);
	r->miss.req.buf = r->buf;
	r->filled = false;
	return r->buf;
}

/* A buffer for its data; false: not now, it waits. First come, first served, for the sake of large ones. */
static bool get_buffer(struct request *r)
{
	struct queue *q = r->q;

	if (!q->opt.pool) {
		request_touch(r, (uint32_t)r->miss.req.len);
		return true;
	}
	if (r->buf || (STAILQ_EMPTY(&q->starved) && take_buffer(r, r->miss.req.len)))
		return true;
	STAILQ_INSERT_TAIL(&q->starved, r, starved);
	return false;
}

static void put_buffer(struct request *r)
{
	if (!r->q->opt.pool || !r->buf)
		return;
	arena_put(r->q->opt.pool, r->buf);
	r->buf = NULL;
}

/* The data of a WRITE. */
static int fill_buffer(struct request *r, uint32_t len)
{
	int ret = r->filled ? 0 : r->q->opt.copy->take(r, len);

	r->filled = !ret;
	return ret;
}

/* To the metadata thread. */
static void send_missed(struct request *r)
{
	struct qcow2_req *req = &r->miss.req;
	struct queue *q = r->q;
	int ret = req->op == QCOW2_WRITE ? fill_buffer(r, (uint32_t)req->len) : 0;

	if (ret) {
		put_buffer(r);
		commit(r, ret);
		return;
	}
	stat_add(&q->stats.misses, has_data(req->op));
	stat_add(&q->stats.flushes, req->op == QCOW2_FLUSH);
	stat_add(&q->stats.discards, req->op == QCOW2_DISCARD);
	q->missed++;
	q->wake_meta |= meta_send(q->opt.meta, &r->miss);
}

static void serve_missed(struct request *r, const struct ublksrv_io_desc *iod)
{
	struct qcow2_req *req = &r->miss.req;
	int op = library_op(iod);

	if (op >= 0 && op != QCOW2_FLUSH && is_foreign(r->q, iod))
		op = -EIO;
	if (op < 0) {
		put_buffer(r);
		commit(r, op);
		return;
	}
	req->op = (enum qcow2_req_op)op;
	req->flags = iod->op_flags & UBLK_IO_F_NOUNMAP ? QCOW2_REQ_NO_UNMAP : 0;
	req->off = op == QCOW2_FLUSH ? 0 : iod->start_sector << 9;
	req->len = op == QCOW2_FLUSH ? 0 : (uint64_t)iod->nr_sectors << 9;
	if (!has_data(req->op) || get_buffer(r))
		send_missed(r);
}

void request_starved(struct queue *q)
{
	struct request *r;

	while ((r = STAILQ_FIRST(&q->starved)) && take_buffer(r, r->miss.req.len)) {
		STAILQ_REMOVE_HEAD(&q->starved, starved);
		send_missed(r);
	}
}

/* It is done: the data of a READ leave the buffer, and that is not needed any more. */
static void give_data(struct request *r, bool read, uint32_t len)
{
	int ret = read ? r->q->opt.copy->give(r, len) : 0;

	put_buffer(r);
	commit(r, ret ? ret : (int)len);
}

void request_answered(struct request *r)
{
	const struct qcow2_req *req = &r->miss.req;

	r->q->missed--;
	if (!r->miss.res && has_data(req->op)) {
		give_data(r, req->op == QCOW2_READ, (uint32_t)req->len);
	} else {
		put_buffer(r);
		commit(r, r->miss.res);
	}
}

/* ---- mapped requests ---- */

/* One data I/O, or the last of the queueing, is over. */
static void put_data(struct request *r)
{
	struct queue *q = r->q;
	const struct ublksrv_io_desc *iod = &q->iod[r->tag];

	if (--r->pending)
		return;
	fastmap_leave(q->opt.map, q->opt.id, r->hold);
	q->mapped--;
	if (r->error || r->moved != iod->nr_sectors << 9) {
		queue_guard_leave();
		serve_missed(r, iod);
		queue_guard_enter();
		return;
	}
	stat_add(&q->stats.hits, 1);
	if (q->opt.copy->buffered) {
		queue_guard_leave();
		give_data(r, ublksrv_get_op(iod) == UBLK_IO_OP_READ, r->moved);
		queue_guard_enter();
	} else {
		commit(r, (int)r->moved);
	}
}

static void data_done(struct completion *c, int res, unsigned flags)
{
	struct request *r = request_of(c, data);

	queue_guard_enter();
	if (res >= 0)
		r->moved += (uint32_t)res;
	else
		r->error = res;
	put_data(r);
	queue_guard_leave();
}

/* Room for the data I/Os of a request beside a command for every tag. */
static bool reserve(struct queue *q, unsigned n)
{
	if (io_uring_sq_space_left(&q->ring) >= n + q->opt.depth)
		return true;
	io_uring_submit(&q->ring);
	return io_uring_sq_space_left(&q->ring) >= n + q->opt.depth;
}

/* Whether direct I/O can transfer these extents. */
static bool aligned(const struct queue *q, const struct fastmap_extent *ext, unsigned n)
{
	const struct meta_files *files = q->opt.files;

	for (unsigned i = 0; i < n; i++) {
		if (ext[i].zero)
			continue;
		if (ext[i].file >= files->count ||
		    (ext[i].host | ext[i].len) & (files->align[ext[i].file] - 1))
			return false;
	}
	return true;
}

static void queue_data(struct request *r, bool write, const struct fastmap_extent *ext, unsigned n)
{
	struct queue *q = r->q;
	uint32_t at = 0;

	r->error = 0;
	r->moved = 0;
	r->pending = 1;
	for (unsigned i = 0; i < n; at += ext[i++].len) {
		unsigned file = ext[i].zero ? q->zero_file : ext[i].file;
		struct io_uring_sqe *sqe;

		if (ext[i].zero && q->opt.copy->zero(r, at, ext[i].len)) {
			r->moved += ext[i].len;
			continue;
		}
		sqe = io_uring_get_sqe(&q->ring); /* reserved */
		q->opt.copy->prep_data(sqe, r, write, at, ext[i].len, file, ext[i].zero ? 0 : ext[i].host);
		sqe->flags |= IOSQE_FIXED_FILE;
		io_uring_sqe_set_data(sqe, &r->data);
		r->pending++;
	}
	put_data(r);
}

/* Serve a READ or WRITE whose mapping the table has; false: it has not. */
static bool serve_mapped(struct request *r, const struct ublksrv_io_desc *iod)
{
	struct queue *q = r->q;
	struct fastmap_extent ext[MAX_EXTENTS];
	bool write = ublksrv_get_op(iod) == UBLK_IO_OP_WRITE;
	uint64_t guest = iod->start_sector << 9;
	unsigned n;

	if (!q->opt.copy->can_map(iod) || !reserve(q, MAX_EXTENTS))
		return false;
	r->hold = fastmap_enter(q->opt.map, q->opt.id, guest);
	if (is_foreign(q, iod)) {
		ext[0] = (struct fastmap_extent){ .len = iod->nr_sectors << 9, .zero = true };
		n = !write;
	} else {
		n = fastmap_lookup(q->opt.map, guest, iod->nr_sectors << 9, write, ext, MAX_EXTENTS);
	}
	if (!n || !aligned(q, ext, n) ||
	    (q->opt.copy->buffered && write && fill_buffer(r, iod->nr_sectors << 9))) {
		fastmap_leave(q->opt.map, q->opt.id, r->hold);
		return false;
	}
	q->mapped++;
	test_switch_hit(q->opt.id);
	queue_data(r, write, ext, n);
	return true;
}

/* ---- the next request of a tag ---- */

static bool try_mapped(struct request *r, const struct ublksrv_io_desc *iod)
{
	struct queue_stats *st = &r->q->stats;
	bool mapped;

	switch (ublksrv_get_op(iod)) {
	case UBLK_IO_OP_READ:
		stat_add(&st->reads, 1);
		stat_add(&st->read_bytes, (uint64_t)iod->nr_sectors << 9);
		break;
	case UBLK_IO_OP_WRITE:
		stat_add(&st->writes, 1);
		stat_add(&st->write_bytes, (uint64_t)iod->nr_sectors << 9);
		break;
	default:
		return false; /* a FLUSH above all: nobody else knows what it has to make durable */
	}
	if (r->q->opt.copy->buffered &&
	    !(STAILQ_EMPTY(&r->q->starved) && take_buffer(r, (uint64_t)iod->nr_sectors << 9)))
		return false;
	queue_guard_enter();
	mapped = serve_mapped(r, iod);
	queue_guard_leave();
	return mapped;
}

static void command_done(struct completion *c, int res, unsigned flags)
{
	struct request *r = request_of(c, command);
	struct queue *q = r->q;
	const struct ublksrv_io_desc *iod = &q->iod[r->tag];

	if (q->quit)
		return; /* left to the driver, as is everything that comes now */
	if (res == UBLK_IO_RES_OK) {
		if (!try_mapped(r, iod))
			serve_missed(r, iod);
		return;
	}
	__atomic_store_n(&q->live, q->live - 1, __ATOMIC_RELAXED); /* for queue_is_whole() */
	if (res != UBLK_IO_RES_ABORT)
		q->quit = true; /* the driver fails what is in flight when the ring goes */
}

void request_init(struct request *r, struct queue *q, uint16_t tag, char *buf)
{
	*r = (struct request){
		.command.fn = command_done,
		.data.fn = data_done,
		.q = q,
		.tag = tag,
		.buf = buf,
		.miss = { .req.buf = buf, .home = &q->home },
	};
}

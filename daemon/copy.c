/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * copy.c - how a request's data move, as three tables of functions.
 *
 * Owns nothing. Zero copy: the driver registers the request's pages as buffer number `tag` of the queue's
 * ring, data I/Os name that buffer, and what the metadata thread must see goes through pread and pwrite of
 * /dev/ublkcN. When the driver could not register the pages (out of memory) the request is a miss, which
 * needs no registration. User copy: all data go that way, through a buffer of the pool. Classic: the driver
 * copies between the request and r->buf, before it hands a WRITE over and after a READ is committed; it takes
 * pages for that when it gets there, on our queue's thread, so where memory is short it may wait there for
 * what only this thread can write.
 */
#include "copy.h"
#include "queue.h"
#include <errno.h>
#include <string.h>
#include <unistd.h>

/* ---- zero copy ---- */

static int zc_setup(struct io_uring *ring, unsigned depth)
{
	return io_uring_register_buffers_sparse(ring, depth);
}

static void zc_prep_command(struct io_uring_sqe *sqe, struct ublksrv_io_cmd *cmd, const struct request *r)
{
	struct ublk_auto_buf_reg reg = { .index = r->tag, .flags = UBLK_AUTO_BUF_REG_FALLBACK };

	sqe->addr = ublk_auto_buf_reg_to_sqe_addr(&reg);
}

static void zc_prep_data(struct io_uring_sqe *sqe, struct request *r, bool write, uint32_t at, uint32_t len,
			 unsigned file, uint64_t off)
{
	void *addr = (void *)(uintptr_t)at; /* within the registered buffer */

	if (write)
		io_uring_prep_write_fixed(sqe, (int)file, addr, len, off, r->tag);
	else
		io_uring_prep_read_fixed(sqe, (int)file, addr, len, off, r->tag);
}

static bool zc_zero(struct request *r, uint32_t at, uint32_t len)
{
	return false;
}

static bool zc_can_map(const struct ublksrv_io_desc *iod)
{
	return !(iod->op_flags & UBLK_IO_F_NEED_REG_BUF);
}

/* ---- zero copy and user copy: /dev/ublkcN shows the data of each request ---- */

static off_t user_copy_pos(const struct request *r)
{
	return (off_t)(UBLKSRV_IO_BUF_OFFSET + ((uint64_t)r->q->opt.id << UBLK_QID_OFF) +
		       ((uint64_t)r->tag << UBLK_TAG_OFF));
}

static int user_take(struct request *r, uint32_t len)
{
	ssize_t n = pread(r->q->opt.char_fd, r->buf, len, user_copy_pos(r));

	return n < 0 ? -errno : n == (ssize_t)len ? 0 : -EIO;
}

static int user_give(struct request *r, uint32_t len)
{
	ssize_t n = pwrite(r->q->opt.char_fd, r->buf, len, user_copy_pos(r));

	return n < 0 ? -errno : n == (ssize_t)len ? 0 : -EIO;
}

const struct copy_ops copy_zero = {
	.flags = UBLK_F_SUPPORT_ZERO_COPY | UBLK_F_AUTO_BUF_REG | UBLK_F_USER_COPY,
	.setup = zc_setup,
	.prep_command = zc_prep_command,
	.prep_data = zc_prep_data,
	.zero = zc_zero,
	.can_map = zc_can_map,
	.take = user_take,
	.give = user_give,
};

/* ---- user copy ---- */

static int no_setup(struct io_uring *ring, unsigned depth)
{
	return 0;
}

static void user_prep_command(struct io_uring_sqe *sqe, struct ublksrv_io_cmd *cmd, const struct request *r)
{
	/* no address: the driver insists on it */
}

static void user_prep_data(struct io_uring_sqe *sqe, struct request *r, bool write, uint32_t at, uint32_t len,
			   unsigned file, uint64_t off)
{
	if (write)
		io_uring_prep_write(sqe, (int)file, r->buf + at, len, off);
	else
		io_uring_prep_read(sqe, (int)file, r->buf + at, len, off);
}

static bool user_zero(struct request *r, uint32_t at, uint32_t len)
{
	memset(r->buf + at, 0, len);
	return true;
}

static bool can_map_any(const struct ublksrv_io_desc *iod)
{
	return true;
}

const struct copy_ops copy_user = {
	.flags = UBLK_F_USER_COPY,
	.buffered = true,
	.setup = no_setup,
	.prep_command = user_prep_command,
	.prep_data = user_prep_data,
	.zero = user_zero,
	.can_map = can_map_any,
	.take = user_take,
	.give = user_give,
};

/* ---- classic ---- */

static void classic_prep_command(struct io_uring_sqe *sqe, struct ublksrv_io_cmd *cmd,
				 const struct request *r)
{
	cmd->addr = (uint64_t)(uintptr_t)r->buf;
}

static void classic_prep_data(struct io_uring_sqe *sqe, struct request *r, bool write, uint32_t at,
			      uint32_t len, unsigned file, uint64_t off)
{
	request_touch(r, at + len);
	user_prep_data(sqe, r, write, at, len, file, off);
}

static bool classic_zero(struct request *r, uint32_t at, uint32_t len)
{
	request_touch(r, at + len);
	return user_zero(r, at, len);
}

static int classic_take_give(struct request *r, uint32_t len)
{
	return 0;
}

const struct copy_ops copy_classic = {
	.flags = 0,
	.setup = no_setup,
	.prep_command = classic_prep_command,
	.prep_data = classic_prep_data,
	.zero = classic_zero,
	.can_map = can_map_any,
	.take = classic_take_give,
	.give = classic_take_give,
};

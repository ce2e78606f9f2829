/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * copy.c - how a request's data move, as two tables of functions.
 *
 * Owns nothing. Zero copy: the driver registers the request's pages as buffer number `tag` of the queue's
 * ring, data I/Os name that buffer, and what the metadata thread must see goes through pread and pwrite of
 * /dev/ublkcN. When the driver could not register the pages (out of memory) the request is a miss, which
 * needs no registration. Classic: the driver copies between the request and r->buf, before it hands a WRITE
 * over and after a READ is committed.
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

/* Where /dev/ublkcN shows the data of a request. */
static off_t user_copy_pos(const struct request *r)
{
	return (off_t)(UBLKSRV_IO_BUF_OFFSET + ((uint64_t)r->q->opt.id << UBLK_QID_OFF) +
		       ((uint64_t)r->tag << UBLK_TAG_OFF));
}

static int zc_take(struct request *r, uint32_t len)
{
	ssize_t n = pread(r->q->opt.char_fd, r->buf, len, user_copy_pos(r));

	return n < 0 ? -errno : n == (ssize_t)len ? 0 : -EIO;
}

static int zc_give(struct request *r, uint32_t len)
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
	.take = zc_take,
	.give = zc_give,
};

/* ---- classic ---- */

static int classic_setup(struct io_uring *ring, unsigned depth)
{
	return 0;
}

static void classic_prep_command(struct io_uring_sqe *sqe, struct ublksrv_io_cmd *cmd,
				 const struct request *r)
{
	cmd->addr = (uint64_t)(uintptr_t)r->buf;
}

static void classic_prep_data(struct io_uring_sqe *sqe, struct request *r, bool write, uint32_t at,
			      uint32_t len, unsigned file, uint64_t off)
{
	request_touch(r, at + len);
	if (write)
		io_uring_prep_write(sqe, (int)file, r->buf + at, len, off);
	else
		io_uring_prep_read(sqe, (int)file, r->buf + at, len, off);
}

static bool classic_zero(struct request *r, uint32_t at, uint32_t len)
{
	request_touch(r, at + len);
	memset(r->buf + at, 0, len);
	return true;
}

static bool classic_can_map(const struct ublksrv_io_desc *iod)
{
	return true;
}

static int classic_take_give(struct request *r, uint32_t len)
{
	return 0;
}

const struct copy_ops copy_classic = {
	.flags = 0,
	.setup = classic_setup,
	.prep_command = classic_prep_command,
	.prep_data = classic_prep_data,
	.zero = classic_zero,
	.can_map = classic_can_map,
	.take = classic_take_give,
	.give = classic_take_give,
};

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* copy.h - the ways a request's data reach us, chosen once per device. */
#ifndef DAEMON_COPY_H
#define DAEMON_COPY_H

#include <liburing.h>
#include <linux/ublk_cmd.h>
#include <stdbool.h>
#include <stdint.h>

struct request;

struct copy_ops {
	uint64_t flags; /* UBLK_F_* asked for; the kernel must have all of them */
	bool buffered; /* the data I/Os of a mapped request, too, use r->buf, filled by take(), emptied by
			  give() */
	/* Make a queue's ring ready. 0 or -errno. */
	int (*setup)(struct io_uring *ring, unsigned depth);
	/* The part of FETCH and COMMIT_AND_FETCH that says where data go. */
	void (*prep_command)(struct io_uring_sqe *sqe, struct ublksrv_io_cmd *cmd, const struct request *r);
	/* Transfer @len bytes at @at of the request from or to a fixed file. */
	void (*prep_data)(struct io_uring_sqe *sqe, struct request *r, bool write, uint32_t at, uint32_t len,
			  unsigned file, uint64_t off);
	/* Zero a part of a READ right here; false: it has to be read from the file of zeroes. */
	bool (*zero)(struct request *r, uint32_t at, uint32_t len);
	/* Whether io_uring can transfer this request's data at all. */
	bool (*can_map)(const struct ublksrv_io_desc *iod);
	/* Move the data between the request and its own buffer r->buf. 0 or -errno. */
	int (*take)(struct request *r, uint32_t len); /* of a WRITE, before anybody uses them */
	int (*give)(struct request *r, uint32_t len); /* of a READ, when they are all there */
};

extern const struct copy_ops copy_classic; /* every kernel: ublk copies to and from r->buf */
extern const struct copy_ops copy_user; /* USER_COPY: Linux 6.5 */
extern const struct copy_ops copy_zero; /* AUTO_BUF_REG, SUPPORT_ZERO_COPY and USER_COPY */

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * uring.c - what every ring of the daemon has in common.
 *
 * Owns nothing. Invariant: each ring is set up and used by one thread (SINGLE_ISSUER). SUBMIT_ALL is in every
 * set of flags, so one bad SQE does not hold up those behind it.
 */
#include "uring.h"
#include <errno.h>
#include <poll.h>

int uring_setup(struct io_uring *u, unsigned sqes, unsigned cqes, bool *deferred)
{
	static const unsigned ladder[] = {
		/* 6.6: no indirection array; 6.1: deferred task work; before that only what everyone has */
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
			IORING_SETUP_NO_SQARRAY,
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		0,
	};
	int ret = -EINVAL;

	for (unsigned i = 0; i < sizeof(ladder) / sizeof(*ladder) && ret == -EINVAL; i++) {
		struct io_uring_params p = {
			.flags = ladder[i] | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CLAMP |
				 IORING_SETUP_CQSIZE,
			.cq_entries = cqes,
		};

		ret = io_uring_queue_init_params(sqes, u, &p);
		*deferred = p.flags & IORING_SETUP_DEFER_TASKRUN;
	}
	if (!ret)
		io_uring_ring_dontfork(u);
	return ret;
}

struct io_uring_sqe *uring_sqe(struct io_uring *u)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(u);

	if (!sqe) {
		io_uring_submit(u); /* the result shows in whether there is room now */
		sqe = io_uring_get_sqe(u);
	}
	return sqe;
}

int uring_enter(struct io_uring *u)
{
	unsigned flags = __atomic_load_n(u->sq.kflags, __ATOMIC_RELAXED);

	if (!io_uring_sq_ready(u) && !(flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)))
		return 0;
	return io_uring_submit_and_get_events(u);
}

bool uring_again(int ret)
{
	return ret == -EINTR || ret == -EAGAIN || ret == -EBUSY || ret == -ENOMEM || ret == -ETIME;
}

void uring_prep_wake(struct io_uring_sqe *sqe, int event_fd, void *user_data)
{
	io_uring_prep_poll_multishot(sqe, event_fd, POLLIN);
	io_uring_sqe_set_data(sqe, user_data);
}

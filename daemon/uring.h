/* SPDX-License-Identifier: GPL-2.0-or-later */
/* uring.h - io_uring set-up with fallbacks, and submission errors that mean "try again". */
#ifndef DAEMON_URING_H
#define DAEMON_URING_H

#include <liburing.h>
#include <stdbool.h>

/*
 * A ring that only the calling thread will use, with the best flags the kernel has. *deferred: task
 * work (completions, ublk's copy of write data) runs only inside this thread's io_uring_enter().
 * 0 or -errno (-ENOSYS or -EPERM where io_uring is switched off).
 */
int uring_setup(struct io_uring *u, unsigned sqes, unsigned cqes, bool *deferred);

/* An SQE, submitting what is queued if there is no room; NULL only when the kernel takes none now. */
struct io_uring_sqe *uring_sqe(struct io_uring *u);

/* Submit what is queued and make completions visible, without waiting; no system call if there is neither. */
int uring_enter(struct io_uring *u);

/* Whether an error of io_uring_submit*() goes away by reaping completions and calling again. */
bool uring_again(int ret);

/* A multishot poll on an eventfd: one completion per wake-up, and the counter never has to be read. */
void uring_prep_wake(struct io_uring_sqe *sqe, int event_fd, void *user_data);

#endif

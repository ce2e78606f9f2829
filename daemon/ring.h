/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * ring.h - the io_uring backend of qcow2/io.h: one ring, used by the metadata thread, for all host
 * files of an image's chain.
 */
#ifndef DAEMON_RING_H
#define DAEMON_RING_H

#include "qcow2/error.h"
#include "qcow2/io.h"
#include <stdbool.h>
#include <stdint.h>

struct ring;

/* depth: SQEs; more I/Os than that wait inside the backend. Only the calling thread may use the ring and its
 * files (ring_wake() excepted). 0 or -errno. */
int ring_new(struct ring **out, unsigned depth, struct qcow2_error *err);
/* Keep @count descriptors open until the last I/O of this ring has ended, even if the process dies. Once,
 * before any I/O; 0 or -errno. */
int ring_hold(struct ring *r, const int *fds, unsigned count);
/* Note the time at @at (NULL: nowhere) before each submission, see stamp.h. */
void ring_stamp(struct ring *r, uint64_t *at);
/* All files must be closed. */
void ring_free(struct ring *r);
/* Wrap an open descriptor (owned from now on, also on failure) as a host file on this ring; finds out the
 * direct I/O alignment (STATX_DIOALIGN) and the size. @direct: the descriptor has O_DIRECT. */
int ring_file(struct ring *r, int fd, const char *path, bool read_only, bool direct, struct host_file **out,
	      struct qcow2_error *err);
int ring_file_fd(const struct host_file *f);
/* Turn O_DIRECT off and drop the alignment (a cluster is smaller than it); before any write, nothing in
 * flight. */
int ring_file_buffered(struct host_file *f);
/* Wake the thread that blocks in poll(); callable from any thread, async-signal-safe. A wake-up is kept until
 * a poll() with wait has returned for it. */
void ring_wake(struct ring *r);
/* While on, poll() with wait does not block: the ring's own thread has something to do first. */
void ring_no_wait(struct ring *r, bool on);
/* Wake the ring's own thread once, @ms from now; ignored while a timer runs. */
void ring_timer(struct ring *r, unsigned ms);
/* Whether the timer ran out since the last call. */
bool ring_timer_expired(struct ring *r);

#endif

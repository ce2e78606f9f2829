/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * kernel_drain.h - waits for hits in the kernel, so that the metadata thread need not.
 */
#ifndef DAEMON_KERNEL_DRAIN_H
#define DAEMON_KERNEL_DRAIN_H

#include <stdint.h>

struct kernel_drain;

/* What is called with a ticket when it and all before it are drained; from the thread. */
typedef void kernel_drained_fn(void *ctx, uint64_t ticket);

/* Start the thread for disk @id. 0 or -errno. */
int kernel_drain_start(struct kernel_drain **out, int control, int id, unsigned range_shift,
		       kernel_drained_fn *fn, void *ctx);
/*
 * One thread. Drain ranges [first, end) of the disk. 0: drained. -EWOULDBLOCK: the function is called later,
 * with this ticket or a higher one. Tickets grow.
 */
int kernel_drain(struct kernel_drain *d, uint64_t first, uint64_t end, uint64_t ticket);
/* Nobody waits for a drain any more. */
void kernel_drain_stop(struct kernel_drain *d);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* swap.h - what a process needs whose device is the swap space of its host. */
#ifndef DAEMON_SWAP_H
#define DAEMON_SWAP_H

#include <stdbool.h>

/* What swap space there is on a device. */
enum swap_use { SWAP_NOT, SWAP_MAYBE, SWAP_OURS };

struct swap_watch {
	int fd; /* /proc/swaps; has POLLPRI when that has changed. -1: there is none */
	bool looked;
	enum swap_use use;
};

void swap_watch_open(struct swap_watch *w);
void swap_watch_close(struct swap_watch *w);
/*
 * After POLLPRI, and once at the start: while swap space is, or may be, on the block device @device (its
 * path), all threads of this process, but for those of thread_batch(), have the policy SCHED_RR, else
 * SCHED_OTHER. What comes of them inherits it. One thread at a time.
 */
void swap_watch_look(struct swap_watch *w, const char *device);
/* Whether the calling thread has that policy, from who started it if nobody looked. */
bool swap_is_urgent(void);

#endif

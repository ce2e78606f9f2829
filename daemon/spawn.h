/* SPDX-License-Identifier: GPL-2.0-or-later */
/* spawn.h - starting a worker process. */
#ifndef DAEMON_SPAWN_H
#define DAEMON_SPAWN_H

#include "rundir.h"
#include "store.h"
#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

/* This program: where it is installed (another version may be there by now), and the very file that runs. */
struct program {
	char path[PATH_MAX]; /* "": unknown */
	int self;
};

int program_find(struct program *p); /* 0 or -errno */

/* One worker, as its supervisor sees it. */
struct process {
	pid_t pid; /* 0: none */
	int pidfd;
	int sock; /* to its link.h; -1: none */
	int pipe; /* hangs up when its last I/O has ended; -1: none */
};

/* What a worker starts with. */
struct start_info {
	const struct run_state *state; /* id, image, restarts, identity, settings */
	const struct store *files;
	int journal; /* -1: none */
	int lock; /* the directory's; -1: there is none yet */
	bool recover, foreground;
	bool replay; /* a new device, but the journal has records for its image */
};

/* Start a worker, @self: of the running binary whatever is installed, and tell it what it needs. 0 or -errno:
 * then nothing runs. */
int process_start(struct process *w, const struct program *p, bool self, const struct start_info *info);

#endif

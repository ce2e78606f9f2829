/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * custody.h - what of a device outlives the process that serves it (its supervisor has it), as the server
 * sees it: descriptors with the locks on them, the journal, and what its rings hold open to the last.
 */
#ifndef DAEMON_CUSTODY_H
#define DAEMON_CUSTODY_H

#include "qcow2/error.h"
#include "stamp.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CUSTODY_HOLDS 2u

struct custody {
	/* A descriptor (the caller's) for what @path was opened as @role before, or -1. */
	int (*find)(void *ctx, const char *path, const char *role);
	/* @fd was opened and locked: keep the open file description. 0 or -errno with err. */
	int (*keep)(void *ctx, const char *path, const char *role, int fd, struct qcow2_error *err);
	/* The device has number @id and is not started yet: make all that a later recovery needs. 0 or -errno
	 * with err. */
	int (*added)(void *ctx, int id, struct qcow2_error *err);
	void *ctx;
	/* Every ring that does image I/O has these in its file table: they are released when the last I/O of
	 * a dead process has ended. */
	int hold[CUSTODY_HOLDS];
	unsigned holds;
	/* The journal's memory, shared with the kernel's file; NULL: none. */
	void *journal;
	size_t journal_size;
	struct stamps *stamps; /* NULL: no journal; thread 0 is the metadata thread's, 1 + N queue N's */
	bool recover; /* bring device @id back instead of adding one */
	bool replay; /* the journal counts: with @recover always, or it is of a device that is gone */
	int id;
	uint64_t node; /* run_node() of that device; 0: unknown */
};

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * rundir.h - /run/ublk-qcow2/ID/: what others can know about a device, and whether its process lives.
 * ID is the ublk device number. Files: `lock` (held by the process for as long as it lives), `state`
 * (JSON, struct run_state), `control` (the Varlink socket), `dump` (the answer to a SIGUSR1).
 * UBLK_QCOW2_RUNDIR replaces /run/ublk-qcow2.
 */
#ifndef DAEMON_RUNDIR_H
#define DAEMON_RUNDIR_H

#include "qcow2/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct run_state {
	int id;
	char *device; /* "/dev/ublkb0" */
	char *image; /* absolute path */
	char *engine;
	pid_t pid; /* of the device process */
	uint64_t size;
	bool read_only, zero_copy;
	unsigned queues, depth;
	uint64_t image_dev, image_ino; /* 0: unknown */
	uint64_t node; /* run_node() when it was added: tells a reused ID apart; 0: unknown */
};

/* Frees the strings. */
void run_state_clear(struct run_state *st);

/* "ROOT/ID/NAME"; with name NULL "ROOT/ID". Returns buf. */
const char *run_path(char *buf, size_t size, int id, const char *name);
/* Identity of the ublk device @id as it is now: no later device with the same number has it. 0: no such
 * device. */
uint64_t run_node(int id);

/* ---- the owner ---- */

struct rundir;

/*
 * Make (or take over) the directory of @id and hold its lock. What a dead process left there is removed.
 * -EBUSY: the process of that ID lives, for more than 5 s.
 */
int rundir_create(struct rundir **out, int id, struct qcow2_error *err);
/* Take the directory of a dead process, to remove it. -EBUSY: it lives; -ENOENT: there is none. */
int rundir_take(struct rundir **out, int id, struct qcow2_error *err);
/* Replace `state`: a reader sees the old or the new one. */
int rundir_write(struct rundir *d, const struct run_state *st, struct qcow2_error *err);
/* Open `dump`, empty; a descriptor for writing or -errno. */
int rundir_open_dump(struct rundir *d);
/* Remove the directory and let go of the lock, free. NULL is allowed. */
void rundir_remove(struct rundir *d);
/* Only let go of the lock, free. */
void rundir_release(struct rundir *d);

/* ---- everybody else ---- */

/* All IDs, sorted; *ids is malloc'ed (NULL if none). */
int rundir_list(int **ids, size_t *count, struct qcow2_error *err);
/* Read `state`. -ENOENT: no such device (no message). *live: the process exists. Fields are as the file has
 * them, NULL strings never. */
int rundir_read(int id, struct run_state *st, bool *live, struct qcow2_error *err);

#endif

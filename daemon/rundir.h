/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * rundir.h - /run/ublk-qcow2/ID/: what others can know about a device, whether its processes live, and what a
 * recovery needs. ID is the ublk device number. Files: `lock` (held by supervisor and worker for as long as
 * one of them lives), `state` (JSON, struct run_state), `control` (the worker's Varlink socket), `supervisor`
 * (the supervisor's socket), `journal` (locked until the last I/O of a dead worker has ended), `dump` (the
 * answer to a SIGUSR1), `lower` (tells udev that there is a disk over the ublk device). UBLK_QCOW2_RUNDIR replaces /run/ublk-qcow2.
 */
#ifndef DAEMON_RUNDIR_H
#define DAEMON_RUNDIR_H

#include "qcow2/error.h"
#include "server.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum run_phase { RUN_LIVE, RUN_RECOVERING, RUN_FAILED };

struct run_state {
	int id;
	char *device; /* "/dev/ublkb0" */
	char *image; /* absolute path */
	char *engine;
	pid_t pid; /* of the worker; 0: none */
	pid_t supervisor; /* 0: none */
	enum run_phase phase;
	unsigned restarts; /* workers after the first */
	struct server_options opt; /* as attached; .image and .custody are not used */
	uint64_t size;
	bool read_only, zero_copy, direct_io;
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
/* The same, but a journal with records is kept: @remark says so, and what the user can do. True: it was. */
bool rundir_retire(struct rundir *d, struct qcow2_error *remark);
/* Only let go of the lock, free. */
void rundir_release(struct rundir *d);
/* The lock's descriptor, still the directory's, and a second owner of the directory of @id made from it (it
 * owns
 * @lock from now on, also on failure): for supervisor and worker. */
int rundir_lock_fd(const struct rundir *d);
int rundir_share(struct rundir **out, int id, int lock, struct qcow2_error *err);

/* ---- the journal ---- */

/* A new file of @size bytes (the journal, and behind it struct stamps), zeroes, without a name, locked, all of
 * its room taken. A descriptor or -errno; -ENOSPC: /run is too full. */
int rundir_new_journal(size_t size, struct qcow2_error *err);
/* Give it its name in the directory. */
int rundir_name_journal(struct rundir *d, int fd, struct qcow2_error *err);
/* Open and lock the journal of a device whose processes died, once the last I/O of theirs has ended (-EBUSY:
 * not within 30 s). A descriptor; -ENOENT: there is none (no message); -errno. */
int rundir_open_journal(struct rundir *d, struct qcow2_error *err);
/* Whether the journal has changes that its image lacks and that would be applied (not so after a failed fsync). */
bool rundir_has_records(struct rundir *d);
/* The journal of what the image file @dev, @ino lacks, from a device that is gone (*id is -1) or has lost its
 * processes (its number): its @path. False: there is none. */
bool rundir_find_kept(uint64_t dev, uint64_t ino, char *path, size_t size, int *id);
/* Open and lock one of a device that is gone, as rundir_open_journal() does. -ESTALE: somebody else was
 * faster. */
int rundir_open_kept(const char *path, struct qcow2_error *err);

/* ---- everybody else ---- */

/* All IDs, sorted; *ids is malloc'ed (NULL if none). */
int rundir_list(int **ids, size_t *count, struct qcow2_error *err);
/* "live", "recovering" or "failed". */
const char *run_phase_name(enum run_phase phase);
/* Read `state`. -ENOENT: no such device (no message). *live: one of its processes exists, and st->phase says
 * what the device does. Fields are as the file has them, NULL strings never. */
int rundir_read(int id, struct run_state *st, bool *live, struct qcow2_error *err);

#endif

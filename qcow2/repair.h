/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * repair.h - makes an image consistent again that nobody has open. Works on what check.c finds; shares
 * nothing with the writer's code. Blocking, bounded memory.
 */
#ifndef QCOW2_REPAIR_H
#define QCOW2_REPAIR_H

#include "check.h"

enum qcow2_repair {
	QCOW2_REPAIR_LEAKS, /* lower refcounts nobody needs; nothing at all if the image has errors */
	QCOW2_REPAIR_ALL, /* errors, too; frees nothing while what is broken may hide references */
};

struct qcow2_repair_result {
	struct check_result before, after; /* after: what a check of the repaired image says */
	/* what was done */
	uint64_t lowered, raised; /* refcounts */
	uint64_t copied; /* COPIED flags set or cleared */
	uint64_t zeroed; /* entries that read as zeroes and named an unaligned cluster: now plain zeroes */
	uint64_t moved; /* data clusters that shared their place with metadata: copied elsewhere */
	bool rebuilt; /* refcount table and blocks */
	bool dirty_cleared, corrupt_cleared; /* header bits, once there was no error left */
	char left[256]; /* "" or why something was left as it is; one line */
};

/*
 * Repair the image behind @file, which is writable, buffered (dio_align 1) and locked by the caller, and not
 * closed here. What is broken is reported to @cb (may be NULL) once, as it was found first.
 *
 * A crash at any moment leaves an image that is no worse: refcounts go up before, and down after what relies
 * on them, with an fsync between; new refcount structures are durable before the header names them. Guest
 * content never changes. An entry that cannot be right is left as it is: it is evidence, and nobody knows
 * what it should say.
 *
 * 0: done what can be done, *res says with what result (errors may be left).
 * -errno: could not be checked (as qcow2_check()), or reading, writing or syncing failed; err says why.
 */
int qcow2_repair(struct host_file *file, enum qcow2_repair what, const struct check_callbacks *cb,
		 struct qcow2_repair_result *res, struct qcow2_error *err);

/*
 * What has to be done before an image is opened read-write: a full repair if it is dirty (its refcounts are
 * stale), else that of leaks if @leaks. Nothing is written to an image that qcow2_open() would refuse.
 * 0: open it; *res is zero if nothing was done. -EUCLEAN: errors are left. Else as qcow2_repair().
 */
int qcow2_repair_before_open(struct host_file *file, bool leaks, struct qcow2_repair_result *res,
			     struct qcow2_error *err);

#endif

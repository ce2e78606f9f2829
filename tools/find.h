/* SPDX-License-Identifier: GPL-2.0-or-later */
/* find.h - from what the user typed (a device or an image) to the run directory of a device. */
#ifndef TOOLS_FIND_H
#define TOOLS_FIND_H

#include "daemon/rundir.h"
#include "qcow2/error.h"
#include <stdbool.h>

struct found {
	struct run_state state; /* run_state_clear() it */
	bool live;
};

/*
 * The device that @arg names: its node (relative, a link and one that is gone already are fine) or, with
 * @images, the image it serves. -ENOENT: nothing attached goes by that name; -EEXIST: an image attached more
 * than once; err says so.
 */
int find_device(const char *arg, bool images, struct found *out, struct qcow2_error *err);

/*
 * @fn, which reports its errors, for the device or image @arg, or, if that is NULL, for every device: the
 * failure of one does not keep it from the next. The exit code.
 */
int for_devices(const char *arg, int (*fn)(const struct found *f));

/* What the image behind @dev, @ino is attached as: "/dev/ublkb0", or NULL. The caller frees it. */
char *find_image(uint64_t dev, uint64_t ino);

/* Absolute, its folder without links; the last component stays as it is, so that names relative to the
 * image mean what they mean to QEMU. malloc'ed; NULL: errno. */
char *absolute_path(const char *path);

#endif

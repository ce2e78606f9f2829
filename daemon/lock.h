/* SPDX-License-Identifier: GPL-2.0-or-later */
/* lock.h - QEMU's image locks: OFD shared locks on bytes 100.. and 200.. (FORMAT.md "Image locks"). */
#ifndef DAEMON_LOCK_H
#define DAEMON_LOCK_H

#include "qcow2/error.h"
#include <stdbool.h>
#include <stddef.h>

enum lock_role { LOCK_IMAGE_RW, LOCK_IMAGE_RO, LOCK_BACKING_RAW, LOCK_BACKING_QCOW2, LOCK_INSPECT };

/* "image", "image-ro", "backing-raw", "backing-qcow2", "inspect". */
const char *lock_role_name(enum lock_role role);

/*
 * Take the bytes of @role on @fd, then test for conflicts; on conflict release what was taken.
 * LOCK_INSPECT (info, map, check of an image that others may use): as qemu-img's read-only opener.
 * 0; -EBUSY: err names @path, what is locked and, where /proc/PID/fdinfo tells, the holder
 * ("in use for writing by qemu-nbd (pid 812)"); -errno of fcntl.
 * The locks live as long as the open file description.
 */
int image_lock(int fd, enum lock_role role, const char *path, struct qcow2_error *err);

/* Who else has image locks on the file: "qemu-nbd (pid 812) for writing, ...". False and "": nobody. */
bool image_lock_users(int fd, char *text, size_t size);

/*
 * Open an image file for any use: O_PATH first, then fstat: only regular files and block devices (a
 * directory, fifo, socket or character device is refused with -EINVAL, naming it), then for real: O_CLOEXEC,
 * blocking. @direct: try O_DIRECT, *direct tells whether it is on; NULL: buffered. Returns the descriptor or
 * -errno with err.
 */
int image_open_fd(const char *path, bool read_only, bool *direct, struct qcow2_error *err);

#endif

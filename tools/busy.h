/* SPDX-License-Identifier: GPL-2.0-or-later */
/* busy.h - who uses a block device: mounts, swap, stacked devices, processes. */
#ifndef TOOLS_BUSY_H
#define TOOLS_BUSY_H

#include <stdbool.h>
#include <stddef.h>

enum busy {
	BUSY_NO,
	BUSY_PASSING, /* only udev looks at it */
	BUSY_YES,
};

/* Is @device ("/dev/ublkb0", or a partition of it) in use? text: "mounted on /mnt; opened by fio (pid 12)".
 */
enum busy device_busy(const char *device, char *text, size_t size);
/* The same, after udev had some seconds to finish. */
enum busy device_busy_wait(const char *device, char *text, size_t size);

/* Does @path name the node of @disk ("/dev/ublkb0") or of a partition of it, gone or not? Pure. */
bool names_device(const char *path, const char *disk);

#endif

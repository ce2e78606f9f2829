/* SPDX-License-Identifier: GPL-2.0-or-later */
/* params.h - the block device's limits, from the image and its files. Pure. */
#ifndef DAEMON_PARAMS_H
#define DAEMON_PARAMS_H

#include "server.h"
#include <linux/ublk_cmd.h>

struct device_shape {
	uint64_t size; /* guest bytes */
	uint32_t cluster_size;
	uint32_t block_size; /* logical: 512 or 4096 */
	uint32_t io_align; /* of direct I/O on the image file; 1 = buffered */
	uint32_t mem_align; /* of direct I/O buffers, the largest of the chain */
	uint32_t max_io; /* bytes */
	bool read_only, unmap;
};

void device_params(const struct device_shape *shape, struct ublk_params *p);

#endif

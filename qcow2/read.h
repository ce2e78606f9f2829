/* SPDX-License-Identifier: GPL-2.0-or-later */
/* read.h - read a guest range through the whole chain; also what copy-on-write reads with. */
#ifndef QCOW2_READ_H
#define QCOW2_READ_H

#include "image.h"

struct reader {
	struct op op;
	struct qcow2_image *img;
	struct op *parent;
	uint64_t pos, end;
	char *buf; /* for the byte at pos */
	struct chain_extent e; /* the compressed cluster being read */
	void *packed;
};

/* Read [guest, guest + len) into buf: one pending thing of @parent. The caller keeps the mapping from changing
 * (a range) until then. */
void read_start(struct reader *r, struct qcow2_image *img, uint64_t guest, uint64_t len, void *buf,
		struct op *parent);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* discard.h - DISCARD and WRITE_ZEROES of a guest range. */
#ifndef QCOW2_DISCARD_H
#define QCOW2_DISCARD_H

#include "write.h"

struct clearer {
	struct op op;
	struct qcow2_image *img;
	struct op *parent;
	uint64_t guest, end; /* what was asked for */
	uint64_t pos, stop; /* the whole clusters being changed */
	bool zero; /* WRITE_ZEROES; else DISCARD */
	bool keep; /* WRITE_ZEROES: keep the space allocated */
	struct range range;
	struct writer writer; /* partial clusters, and version 2 over a backing file */
	void *zeroes;
};

/* One pending thing of @parent. Takes its own ranges. */
void clear_start(struct clearer *c, struct qcow2_image *img, uint64_t guest, uint64_t len, bool zero, bool keep,
		 struct op *parent);

#endif

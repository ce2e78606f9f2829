/* SPDX-License-Identifier: GPL-2.0-or-later */
/* write.h - write a guest range: in place, or to new clusters with copy-on-write. */
#ifndef QCOW2_WRITE_H
#define QCOW2_WRITE_H

#include "alloc.h"
#include "range.h"
#include "read.h"

struct writer {
	struct op op;
	struct qcow2_image *img;
	struct op *parent;
	const char *buf; /* for the byte at guest */
	uint64_t guest, end; /* the whole write */
	uint64_t pos; /* everything before it is written */
	struct range range;
	/* the run of clusters being allocated */
	uint64_t run_guest; /* guest offset of its first cluster */
	uint64_t run_end; /* guest offset where the new data in it ends */
	struct cluster_run run;
	bool reused; /* preallocated clusters: not ours to give back */
	bool over_zeroes; /* the run's clusters read as zeroes up to now */
	char *fill; /* the run's whole content, if it has to be put together */
	struct reader head, tail;
};

/* Write buf to [guest, guest + len): one pending thing of @parent. Takes its own range. */
void write_start(struct writer *w, struct qcow2_image *img, uint64_t guest, uint64_t len, const void *buf,
		 struct op *parent);

/*
 * What everything that changes the image waits for before it takes a range: mode rw, autoclear bits cleared,
 * not too many dirty blocks. 0, -EWOULDBLOCK (call again), -EROFS, -EIO (an fsync failed), or an error of the
 * commit it waited for (op->err).
 */
int change_ready(struct qcow2_image *img, struct op *op);

#endif

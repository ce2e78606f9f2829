/* SPDX-License-Identifier: GPL-2.0-or-later */
/* publish.h - the image's side of the mapping table: what may be published when. */
#ifndef QCOW2_PUBLISH_H
#define QCOW2_PUBLISH_H

#include "range.h"

/* Publish the clusters of [start, end). @self: the caller's own range. Only what is cached; never waits. */
void publish(struct qcow2_image *img, uint64_t start, uint64_t end, const struct range *self);
/* The same and, if nobody is changing mappings there, of everything else that the L2 cache block of @start describes:
 * for requests that missed only because the table did not know the slice. */
void publish_around(struct qcow2_image *img, uint64_t start, uint64_t end, const struct range *self);
/* Remove the words of [start, end) and wait until no I/O uses them: 0, or -EWOULDBLOCK (@op waits). */
int withdraw(struct qcow2_image *img, uint64_t start, uint64_t end, struct op *op);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* cow.h - what surrounds new data in a freshly allocated cluster. */
#ifndef QCOW2_COW_H
#define QCOW2_COW_H

#include "read.h"

enum cow { COW_ZERO, COW_COPY };

/*
 * What the bytes around new data must become: [start, start + head) before it and [after, after + tail) behind
 * it, in guest bytes; tail may pass the end of the image. COW_ZERO: all zeroes; COW_COPY: read them;
 * -EWOULDBLOCK or an error of the lookup.
 */
int cow_plan(struct qcow2_image *img, uint64_t start, uint64_t head, uint64_t after, uint64_t tail, struct op *op);
/* Read the old content of [guest, guest + len) into buf, which holds zeroes for what lies past the image's end. */
void cow_read(struct reader *r, struct qcow2_image *img, uint64_t guest, uint64_t len, void *buf, struct op *op);

#endif

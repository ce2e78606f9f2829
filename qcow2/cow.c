/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * cow.c - copy-on-write: the old content around new data, read through the whole chain (the image's own shared,
 * compressed or zero cluster, or a backing file). It changes nothing; the writer owns range and cluster.
 */
#include "cow.h"

/* COW_ZERO if [guest, guest + len) reads as zeroes without looking at data. */
static int plan_part(struct qcow2_image *img, uint64_t guest, uint64_t len, struct op *op)
{
	uint64_t end = min_u64(guest + len, img->geo.size);
	struct chain_extent e;
	int ret;

	for (; guest < end; guest += e.len) {
		ret = chain_lookup(img, guest, end - guest, &e, op);
		if (ret)
			return ret;
		if (e.kind != EXT_ZERO)
			return COW_COPY;
	}
	return COW_ZERO;
}

int cow_plan(struct qcow2_image *img, uint64_t start, uint64_t head, uint64_t after, uint64_t tail, struct op *op)
{
	int ret = plan_part(img, start, head, op);

	return ret == COW_ZERO ? plan_part(img, after, tail, op) : ret;
}

void cow_read(struct reader *r, struct qcow2_image *img, uint64_t guest, uint64_t len, void *buf, struct op *op)
{
	uint64_t end = min_u64(guest + len, img->geo.size);

	if (guest < end)
		read_start(r, img, guest, end - guest, buf, op);
}

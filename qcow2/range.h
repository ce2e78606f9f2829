/* SPDX-License-Identifier: GPL-2.0-or-later */
/* range.h - guest ranges in flight: shared for use of a mapping, exclusive for its change. */
#ifndef QCOW2_RANGE_H
#define QCOW2_RANGE_H

#include "image.h"

struct range {
	uint64_t start, end; /* guest bytes */
	bool exclusive, granted, listed;
	struct op *op;
	TAILQ_ENTRY(range) link;
};

int ranges_new(struct qcow2_image *img);
void ranges_free(struct qcow2_image *img);
/* Wait for the range, first come first served; @op counts it as pending until granted. */
void range_lock(struct qcow2_image *img, struct range *r, struct op *op, uint64_t start, uint64_t end,
		bool exclusive);
/* No-op if not locked. */
void range_unlock(struct qcow2_image *img, struct range *r);
/* True if somebody holds or waits for a part of the range exclusively (except @self, may be NULL). */
bool range_changing(const struct qcow2_image *img, uint64_t start, uint64_t end, const struct range *self);

#endif

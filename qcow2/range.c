/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * range.c - first-come-first-served locks on guest ranges.
 *
 * Invariant: a range is granted iff no earlier one in the list conflicts with it (overlap, and one of
 * the two exclusive). So nobody starves, and two requests never change or use a mapping against each other.
 */
#include <errno.h>
#include <stdlib.h>
#include "range.h"

struct ranges {
	TAILQ_HEAD(, range) list;
	unsigned exclusive; /* listed exclusive ranges: none = no lookup needed */
};

int ranges_new(struct qcow2_image *img)
{
	img->ranges = calloc(1, sizeof(*img->ranges));
	if (!img->ranges)
		return -ENOMEM;
	TAILQ_INIT(&img->ranges->list);
	return 0;
}

void ranges_free(struct qcow2_image *img)
{
	free(img->ranges);
	img->ranges = NULL;
}

static bool overlap(const struct range *r, uint64_t start, uint64_t end)
{
	return r->start < end && start < r->end;
}

static bool may_grant(const struct ranges *rs, const struct range *r)
{
	const struct range *e;

	if (!rs->exclusive)
		return true;
	TAILQ_FOREACH(e, &rs->list, link) {
		if (e == r)
			return true;
		if ((e->exclusive || r->exclusive) && overlap(e, r->start, r->end))
			return false;
	}
	return true;
}

void range_lock(struct qcow2_image *img, struct range *r, struct op *op, uint64_t start, uint64_t end,
		bool exclusive)
{
	struct ranges *rs = img->ranges;

	*r = (struct range){ .start = start, .end = end, .exclusive = exclusive, .op = op, .listed = true };
	TAILQ_INSERT_TAIL(&rs->list, r, link);
	rs->exclusive += exclusive;
	r->granted = may_grant(rs, r);
	if (!r->granted)
		op_get(op);
}

void range_unlock(struct qcow2_image *img, struct range *r)
{
	struct ranges *rs = img->ranges;
	struct range *e;

	if (!r->listed)
		return;
	TAILQ_REMOVE(&rs->list, r, link);
	rs->exclusive -= r->exclusive;
	r->listed = false;
	TAILQ_FOREACH(e, &rs->list, link) {
		if (e->granted || !overlap(e, r->start, r->end) || !may_grant(rs, e))
			continue;
		e->granted = true;
		op_put(e->op, 0);
	}
}

bool range_changing(const struct qcow2_image *img, uint64_t start, uint64_t end, const struct range *self)
{
	const struct ranges *rs = img->ranges;
	const struct range *e;

	if (!rs->exclusive)
		return false;
	TAILQ_FOREACH(e, &rs->list, link)
		if (e != self && e->exclusive && overlap(e, start, end))
			return true;
	return false;
}

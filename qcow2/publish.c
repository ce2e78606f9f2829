/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * publish.c - which mappings are safe to serve without asking (DESIGN section 4).
 *
 * Invariants: a word is published only for whole clusters whose mapping nobody else is changing or
 * waiting to change; writable only for data of the image itself that is ours alone, in mode rw, after the first-write
 * transition is durable. Publishing is a hint, so everything that is not cached is skipped.
 */
#include "broken.h"
#include "commit.h"
#include "journal.h"
#include "publish.h"

static uint64_t last_cluster_end(const struct qcow2_image *img)
{
	return cluster_up(&img->geo, img->geo.size);
}

static void publish_run(struct qcow2_image *img, uint64_t guest, uint64_t end)
{
	const struct geometry *g = &img->geo;
	struct chain_extent e;

	journal_publish(img);
	while (guest < end && !chain_lookup(img, guest, min_u64(end, g->size) - guest, &e, NULL)) {
		uint64_t len = guest + e.len == g->size ? cluster_up(g, e.len) : cluster_down(g, e.len);
		bool writable = !e.depth && e.copied && img->mode == MODE_RW && commit_first_write_done(img);

		if (!len) { /* the mapping changes inside the cluster */
			guest += g->cluster_size;
			continue;
		}
		if (e.kind == EXT_DATA)
			img->table.publish(img->table.ctx, guest, len, WORD_DATA, e.depth, e.host, writable);
		else if (e.kind == EXT_ZERO)
			img->table.publish(img->table.ctx, guest, len, WORD_ZERO, 0, 0, false);
		guest += len;
	}
}

void publish(struct qcow2_image *img, uint64_t start, uint64_t end, const struct range *self)
{
	const struct geometry *g = &img->geo;

	start = cluster_down(g, start);
	end = cluster_up(g, end);
	if (img->table.publish && img->mode != MODE_FAILED && !range_changing(img, start, end, self))
		publish_run(img, start, end);
}

void publish_around(struct qcow2_image *img, uint64_t start, uint64_t end, const struct range *self)
{
	const struct geometry *g = &img->geo;
	uint64_t span = 1ull << (g->cluster_bits + g->block_bits - 3), around = start & ~(span - 1);

	if (!img->table.publish || img->mode == MODE_FAILED)
		return;
	if (!range_changing(img, around, around + span, self)) {
		publish_run(img, around, min_u64(around + span, last_cluster_end(img)));
		start = around + span;
	}
	if (start < end)
		publish(img, start, end, self);
}

int withdraw(struct qcow2_image *img, uint64_t start, uint64_t end, struct op *op)
{
	const struct geometry *g = &img->geo;
	int ret;

	if (!img->table.withdraw || BROKEN(WITHDRAW_FIRST))
		return 0;
	img->stats.withdrawals++;
	start = cluster_down(g, start);
	ret = img->table.withdraw(img->table.ctx, start, cluster_up(g, end) - start, op);
	img->stats.drains += ret != 0;
	return ret;
}

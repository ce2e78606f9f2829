/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * alloc.c - first fit from a hint over the cached refcounts.
 *
 * Invariants: a cluster is handed out only if its cached refcount is 0 and the metamap knows nothing of it
 * (neither live metadata, whatever a damaged refcount says, nor a freed cluster in quarantine, commit.c
 * invariant 4). No cluster below the hint is free, except those that are still in quarantine.
 */
#include <errno.h>
#include <stdlib.h>
#include "alloc.h"
#include "broken.h"
#include "journal.h"
#include "metamap.h"
#include "refcount.h"

struct alloc {
	uint64_t hint; /* host cluster */
	uint64_t end; /* host cluster: past everything the file ever held */
};

int alloc_new(struct qcow2_image *img, uint64_t file_size)
{
	img->alloc = calloc(1, sizeof(*img->alloc));
	if (!img->alloc)
		return -ENOMEM;
	img->alloc->end = clusters_for(&img->geo, file_size);
	return 0;
}

void alloc_free(struct qcow2_image *img)
{
	free(img->alloc);
	img->alloc = NULL;
}

void alloc_freed(struct qcow2_image *img, uint64_t cluster)
{
	if (cluster < img->alloc->hint)
		img->alloc->hint = cluster;
}

uint64_t alloc_end(const struct qcow2_image *img)
{
	return img->alloc->end << img->geo.cluster_bits;
}

void alloc_claim(struct qcow2_image *img, uint64_t first, uint64_t n)
{
	if (first + n > img->alloc->end)
		img->alloc->end = first + n;
}

/* Whether a cluster with refcount 0 is free. 1: yes, 0: in quarantine, -EUCLEAN: metadata. */
static int is_free(struct qcow2_image *img, uint64_t cluster)
{
	enum meta_type meta = BROKEN(OVERLAP) ? META_NONE : metamap_get(img->meta, cluster);

	if (meta == META_QUARANTINE)
		return 0;
	return meta == META_NONE ? 1 : image_corrupt(img);
}

/* The same for a cluster whose refcount block is cached; anything else: no. */
static bool is_counted_free(struct qcow2_image *img, uint64_t cluster)
{
	uint64_t count;

	return !refcount_peek(img, cluster, &count) && !count && metamap_get(img->meta, cluster) == META_NONE;
}

/* The first free cluster; the hint moves up to it (alloc_freed() moves it back). */
static int find_free(struct qcow2_image *img, uint64_t *found, struct op *waiter)
{
	uint64_t *c = &img->alloc->hint, limit = QCOW2_MAX_HOST_OFFSET >> img->geo.cluster_bits;
	int ret;

	for (;; ++*c) {
		ret = refcount_next_zero(img, *c, c, waiter);
		if (ret)
			return ret;
		if (*c >= limit)
			return -EFBIG;
		/* First a refcount block: while one is being made its place is claimed but not counted yet.
		 * 0: there was one all along, so the zero was found in it. */
		ret = refcount_ensure(img, *c, waiter);
		if (!ret)
			ret = is_free(img, *c);
		if (ret < 0)
			return ret;
		if (ret)
			break;
	}
	*found = *c;
	return 0;
}

int alloc_clusters(struct qcow2_image *img, uint64_t want, struct cluster_run *run, struct op *waiter)
{
	struct alloc *a = img->alloc;
	uint64_t first = 0, n;
	int ret = find_free(img, &first, waiter);

	if (ret)
		return ret;
	for (n = 0; n < want && (!n || is_counted_free(img, first + n)); n++) {
		ret = refcount_set(img, first + n, 1);
		if (ret)
			break;
	}
	if (!n)
		return ret;
	journal_alloc(img, first, n);
	run->first = first;
	run->n = n;
	run->fresh = !img->file->fixed_size && first >= a->end;
	alloc_claim(img, first, n);
	if (first == a->hint)
		a->hint = first + n;
	img->stats.allocated += n;
	return 0;
}

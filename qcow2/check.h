/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * check.h - the independent second opinion: walks an image and compares what is referenced with the
 * refcounts. Shares format.h, entry.h, geometry.h and header.h with the rest, but not map.c,
 * refcount.c or cache.c, so that it can contradict them. Blocking, reads only, bounded memory.
 */
#ifndef QCOW2_CHECK_H
#define QCOW2_CHECK_H

#include "error.h"
#include "io.h"
#include <stdbool.h>
#include <stdint.h>

struct check_result {
	uint64_t errors; /* corruptions: refcount < references, overlap, bad entries, wrong COPIED, ... */
	uint64_t leaks; /* clusters whose refcount is higher than their references */
	uint64_t clusters; /* guest clusters */
	uint64_t allocated; /* guest clusters with a host cluster (data, compressed) in the active table */
	uint64_t compressed;
	uint64_t image_end; /* end of the last referenced cluster, bytes */
};

struct check_callbacks {
	/* One finding, one line without newline; error = corruption, else leak. May be NULL. */
	void (*finding)(void *ctx, bool error, const char *text);
	/* Called now and then, done of total (clusters). May be NULL. */
	void (*progress)(void *ctx, uint64_t done, uint64_t total);
	void *ctx;
};

/*
 * Check the image behind @file (not closed). Opens no backing and no data file. The counts agree with
 * `qemu-img check`: errors = its "corruptions", leaks = its "leaks".
 * 0: checked, *res says with what result (errors in the image are no failure of the function).
 * -errno: could not check (not qcow2, unsupported feature, read error, no memory); err says why.
 */
int qcow2_check(struct host_file *file, const struct check_callbacks *cb, struct check_result *res,
		struct qcow2_error *err);

#endif

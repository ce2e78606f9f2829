/* SPDX-License-Identifier: GPL-2.0-or-later */
/* chain.h - an image on a recorded device, opened by the library together with its backing files. */
#ifndef TESTS_CRASH_CHAIN_H
#define TESTS_CRASH_CHAIN_H

#include "device.h"
#include "family.h"
#include "qcow2/qcow2.h"

struct chain {
	const struct template *t;
	struct device *image, *backing[2];
	struct qcow2_image *img; /* NULL: not open */
};

/* @bytes: the image's; the backing files are the template's. */
void chain_init(struct chain *c, const struct template *t, const void *bytes, uint64_t size, uint64_t seed);
/* Open it read-write; a failure is a finding. @journal: NULL = none. */
void chain_begin(struct chain *c, const struct qcow2_table_ops *table, uint64_t cache_bytes,
		 const struct qcow2_journal *journal);
/* The process that has it open is killed: its memory is lost (and leaked), the devices stay. */
void chain_kill(struct chain *c);
/* Forget the devices; the image is closed. */
void chain_fini(struct chain *c);

#endif

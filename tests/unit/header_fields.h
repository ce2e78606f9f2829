/* SPDX-License-Identifier: GPL-2.0-or-later */
/* header_fields.h - where the header's fields are, written down from the specification, not from format.h. */
#ifndef TESTS_HEADER_FIELDS_H
#define TESTS_HEADER_FIELDS_H

enum {
	VERSION = 4,
	BACKING_OFFSET = 8,
	BACKING_SIZE = 16,
	CLUSTER_BITS = 20,
	SIZE = 24,
	CRYPT = 32,
	L1_SIZE = 36,
	L1_OFFSET = 40,
	RT_OFFSET = 48,
	RT_CLUSTERS = 56,
	NB_SNAPSHOTS = 60,
	SNAPSHOTS_OFFSET = 64,
	INCOMPATIBLE = 72,
	COMPATIBLE = 80,
	AUTOCLEAR = 88,
	REFCOUNT_ORDER = 96,
	HEADER_LENGTH = 100,
	COMPRESSION = 104,
};

#endif

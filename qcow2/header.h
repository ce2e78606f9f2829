/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * header.h - the header, its extensions and the snapshot table as plain host-endian values.
 * Pure functions over bytes: nothing here does I/O.
 */
#ifndef QCOW2_HEADER_H
#define QCOW2_HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "error.h"
#include "format.h"
#include "geometry.h"

struct qcow2_header {
	struct geometry geo; /* size rounded down to 512; geometry_init() done */
	uint64_t disk_size; /* the size field as it stands */
	uint32_t crypt_method;
	uint32_t l1_entries;
	uint64_t l1_offset;
	uint64_t rt_offset;
	uint32_t rt_clusters;
	uint32_t nb_snapshots;
	uint64_t snapshots_offset;
	uint64_t incompatible, compatible, autoclear;
	uint32_t header_length; /* 72 for version 2 */
	unsigned compression; /* QCOW2_COMPRESSION_* */
	char backing_name[QCOW2_MAX_BACKING_NAME + 1]; /* "" = none */
	char backing_format[32]; /* "" = not recorded; longer or odd ones are kept escaped, cut */
	bool has_data_file_name;
	/* from the bitmaps extension; 0 without, or if the autoclear bit says it is stale (as in QEMU) */
	uint32_t nb_bitmaps;
	uint64_t bitmap_dir_offset, bitmap_dir_size;
	uint64_t crypto_offset, crypto_length; /* of the LUKS header; 0 without */
	/* names from the feature table, for messages; "" = unnamed */
	char unknown_incompat_name[47];
	int unknown_incompat_bit; /* -1 = none */
};

/*
 * Parse and check the header from the first @len bytes of the file @name (for messages).
 * @len >= min(file size, cluster size) is wanted: the caller first calls header_peek() to learn how
 * many bytes are needed. @file_size: tables must lie inside it.
 *  -EINVAL a field is out of its limits (FORMAT.md "Limits"); the message names field and value
 * Feature bits are only recorded here, header_gate() judges them.
 */
int header_parse(struct qcow2_header *h, const void *buf, size_t len, uint64_t file_size, const char *name,
		 struct qcow2_error *err);
/* Bytes header_parse() needs (the first cluster), from the first 72..4096 bytes; 0 and err if it is not
 * a qcow2 header at all. */
size_t header_peek(const void *buf, size_t len, const char *name, struct qcow2_error *err);

/*
 * The feature gate (FORMAT.md "Open"): -ENOTSUP for what we do not support (unknown incompatible
 * bits, by name; encryption; external data file; extended L2), -EUCLEAN for a corrupt or dirty image
 * that is to be written. Each message says what to do instead.
 */
int header_gate(const struct qcow2_header *h, bool read_only, const char *name, struct qcow2_error *err);

/* Patch the raw first block (at least 112 bytes) in place: only these fields, everything else stays. */
void header_set_features(void *block, uint64_t incompatible, uint64_t autoclear);
void header_set_reftable(void *block, uint64_t offset, uint32_t clusters);

struct snapshot_info {
	uint64_t l1_offset;
	uint32_t l1_entries;
	char id[64], name[256]; /* escaped and cut for display */
	uint64_t disk_size; /* from extra data; the active size if absent */
	uint64_t vm_state_size;
	uint64_t date_sec;
	bool incomplete; /* extra data without vm_state_size or disk_size, which version 3 wants */
};

/*
 * Parse the snapshot table from its bytes. *out: malloc'ed array of h->nb_snapshots (NULL if 0), the
 * caller frees it. *used: bytes of the table. @len: bytes available (at most 64 MiB).
 *  -EINVAL out of limits; -EAGAIN the table goes on after @len (caller reads more); -ENOMEM
 */
int snapshots_parse(const struct qcow2_header *h, const void *buf, size_t len, uint64_t file_size,
		    struct snapshot_info **out, size_t *used, const char *name, struct qcow2_error *err);

/*
 * Judge a table of @bytes bytes at @off, @max bytes at most: NULL if it is cluster aligned, outside the
 * header cluster (an empty one may have offset 0) and inside the file, its last cluster counting in
 * full; else what is wrong, in words that follow the table's name ("is ...").
 */
const char *table_problem(const struct geometry *g, uint64_t off, uint64_t bytes, uint64_t max,
			  uint64_t file_size);

#endif

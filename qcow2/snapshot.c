// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * snapshot.c - the snapshot table, from bytes to struct snapshot_info.
 *
 * Owns: the limits of the table (count, bytes, extra data) and of each snapshot's L1 table.
 * Invariants: the input is hostile; an entry is looked at only after its full length is known to be
 * inside buf[0..len), the 64 MiB limit and the file. Memory is in proportion to bytes that are really
 * there: the array is allocated only when len holds at least the fixed part of every entry.
 * Nothing is written, so a crash leaves nothing.
 */
#include "entry.h"
#include "header.h"
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Extra data: u64 size of the VM state, u64 virtual disk size; later fields do not concern us. */
#define EXTRA_VM_STATE 8u
#define EXTRA_DISK_SIZE 16u

struct table {
	const struct qcow2_header *h;
	const unsigned char *buf;
	size_t len;
	uint64_t file_size;
	const char *name;
	struct qcow2_error *err;
};

static int __attribute__((format(printf, 2, 3))) bad(const struct table *t, const char *fmt, ...)
{
	char file[200], what[200];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	escape_name(file, sizeof(file), t->name, strlen(t->name));
	return qcow2_fail(t->err, -EINVAL, "%s: snapshot table: %s", file, what);
}

/* May the table reach byte @end? -EAGAIN: yes, but those bytes are not here yet. */
static int need(const struct table *t, uint64_t end, uint32_t index)
{
	const struct qcow2_header *h = t->h;

	if (end > QCOW2_MAX_SNAPSHOT_BYTES)
		return bad(t, "entry %" PRIu32 " ends at %" PRIu64 ", must be at most %u", index, end,
			   QCOW2_MAX_SNAPSHOT_BYTES);
	if (table_problem(&h->geo, h->snapshots_offset, end, QCOW2_MAX_SNAPSHOT_BYTES, t->file_size))
		return bad(t, "entry %" PRIu32 " is beyond the end of the file", index);
	return end > t->len ? -EAGAIN : 0;
}

/* Decode the entry at *pos and move *pos to its end. */
static int parse_entry(const struct table *t, uint32_t index, uint64_t *pos, struct snapshot_info *s)
{
	const struct qcow2_header *h = t->h;
	uint32_t id_len, name_len, extra_len;
	struct qcow2_disk_snapshot d;
	const unsigned char *extra;
	const char *why;
	int ret;

	ret = need(t, *pos + sizeof(d), index);
	if (ret)
		return ret;
	memcpy(&d, t->buf + *pos, sizeof(d));
	*pos += sizeof(d);
	id_len = load_be16(&d.id_len);
	name_len = load_be16(&d.name_len);
	extra_len = load_be32(&d.extra_len);
	if (extra_len > QCOW2_MAX_SNAPSHOT_EXTRA)
		return bad(t, "entry %" PRIu32 " has %" PRIu32 " bytes of extra data, must be at most %u",
			   index, extra_len, QCOW2_MAX_SNAPSHOT_EXTRA);
	ret = need(t, *pos + extra_len + id_len + name_len, index);
	if (ret)
		return ret;
	extra = t->buf + *pos;
	*pos += extra_len + id_len + name_len;

	s->l1_offset = load_be64(&d.l1_table_offset);
	s->l1_entries = load_be32(&d.l1_size);
	why = table_problem(&h->geo, s->l1_offset, s->l1_entries * 8ull, QCOW2_MAX_L1_BYTES, t->file_size);
	if (why)
		return bad(t, "entry %" PRIu32 ": L1 table at %" PRIu64 " (%" PRIu32 " entries) %s", index,
			   s->l1_offset, s->l1_entries, why);
	s->date_sec = load_be32(&d.date_sec);
	s->incomplete = extra_len < EXTRA_DISK_SIZE;
	s->vm_state_size = extra_len >= EXTRA_VM_STATE ? load_be64(extra) : load_be32(&d.vm_state_size);
	s->disk_size = extra_len >= EXTRA_DISK_SIZE ? load_be64(extra + EXTRA_VM_STATE) : h->geo.size;
	escape_name(s->id, sizeof(s->id), extra + extra_len, id_len);
	escape_name(s->name, sizeof(s->name), extra + extra_len + id_len, name_len);
	return 0;
}

int snapshots_parse(const struct qcow2_header *h, const void *buf, size_t len, uint64_t file_size,
		    struct snapshot_info **out, size_t *used, const char *name, struct qcow2_error *err)
{
	const struct table t = {
		.h = h, .buf = buf, .len = len, .file_size = file_size, .name = name, .err = err
	};
	struct snapshot_info *all;
	uint64_t pos = 0;
	uint32_t i;
	int ret;

	*out = NULL;
	*used = 0;
	if (!h->nb_snapshots)
		return 0;
	if (h->nb_snapshots > QCOW2_MAX_SNAPSHOTS)
		return bad(&t, "%" PRIu32 " entries, must be at most %u", h->nb_snapshots,
			   QCOW2_MAX_SNAPSHOTS);
	ret = need(&t, h->nb_snapshots * (uint64_t)sizeof(struct qcow2_disk_snapshot), h->nb_snapshots - 1);
	if (ret)
		return ret;
	all = calloc(h->nb_snapshots, sizeof(*all));
	if (!all)
		return qcow2_fail(err, -ENOMEM, "%s: snapshot table: out of memory", name);
	for (i = 0; i < h->nb_snapshots; i++) {
		pos = (pos + 7) & ~7ull;
		ret = parse_entry(&t, i, &pos, &all[i]);
		if (ret)
			goto free_all;
	}
	*out = all;
	*used = (size_t)pos;
	return 0;

free_all:
	free(all);
	return ret;
}

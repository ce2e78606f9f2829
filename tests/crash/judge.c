// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * judge.c - FORMAT.md's crash contract, applied to one file: our check finds no error; every guest sector and
 * every sector of the internal snapshot holds what it may; autoclear bits are gone wherever anything else
 * changed.
 *
 * The content is found by a walk that shares no code with the library, except the decompressor.
 */
#include "judge.h"
#include "qcow2/compress.h"
#include "qcow2/format.h"
#include <inttypes.h>
#include <stdlib.h>

#define OFFSET_MASK 0x00fffffffffffe00ull

/* ---- bytes ---- */

static uint64_t be(struct span s, uint64_t off, unsigned bytes)
{
	uint64_t v = 0;

	for (; bytes; bytes--, off++)
		v = v << 8 | (off < s.size ? s.bytes[off] : 0);
	return v;
}

static uint64_t be64(struct span s, uint64_t off)
{
	uint64_t v;

	if (off + 8 > s.size)
		return be(s, off, 8);
	memcpy(&v, s.bytes + off, 8);
	return __builtin_bswap64(v);
}

static uint64_t value_at(struct span s, uint64_t off)
{
	uint8_t part[SECTOR] = { 0 };

	if (off + SECTOR <= s.size)
		return sector_value(s.bytes + off);
	if (off < s.size)
		memcpy(part, s.bytes + off, s.size - off);
	return sector_value(part);
}

uint64_t judge_autoclear(struct span s)
{
	return be(s, 4, 4) >= 3 ? be64(s, 88) : 0;
}

void judge_clear_autoclear(uint8_t *header)
{
	memset(header + 88, 0, 8);
}

/* ---- our check ---- */

struct memory_file {
	struct host_file file; /* first */
	struct span s;
};

static int memory_pread(struct host_file *f, void *buf, size_t len, uint64_t off)
{
	struct span s = ((struct memory_file *)f)->s;
	size_t have = off < s.size ? (size_t)(s.size - off) : 0;

	if (have > len)
		have = len;
	memcpy(buf, s.bytes + off, have);
	memset((char *)buf + have, 0, len - have);
	return 0;
}

static int memory_size(struct host_file *f, uint64_t *size)
{
	*size = ((struct memory_file *)f)->s.size;
	return 0;
}

static void print_finding(void *ctx, bool error, const char *text)
{
	fprintf(ctx, "  %s: %s\n", error ? "error" : "leak", text);
}

struct check_result judge_check(struct span s, FILE *out)
{
	static const struct host_ops ops = { .pread = memory_pread, .size = memory_size };
	struct memory_file m = { .file = { .ops = &ops, .path = "crash.qcow2", .read_only = true }, .s = s };
	struct check_callbacks cb = { .finding = print_finding, .ctx = out };
	struct qcow2_error err = { "" };
	struct check_result res;

	if (qcow2_check(&m.file, out ? &cb : NULL, &res, &err))
		finding("check: %s", err.text);
	return res;
}

/* ---- compressed clusters: unpacked once per content ---- */

#define MEMO 4096u

struct unpacked {
	uint64_t key;
	uint64_t *value; /* of its sectors */
};

static struct unpacked memo[MEMO];
static struct decompressor *decomp;
static unsigned decomp_cluster;

static uint64_t hash_bytes(const uint8_t *p, uint64_t n)
{
	uint64_t h = n, w;

	for (; n >= 8; n -= 8, p += 8) {
		memcpy(&w, p, 8);
		h = mix(h, w);
	}
	for (; n; n--)
		h = mix(h, *p++);
	return h | 1;
}

static const uint64_t *unpack(struct span s, uint64_t off, uint64_t len, unsigned cluster)
{
	uint64_t key, i;
	struct unpacked *u;
	uint8_t *packed = malloc(len), *plain = aligned_alloc(SECTOR, cluster);

	if (!packed || !plain)
		die("out of memory");
	memset(packed, 0, len);
	if (off < s.size)
		memcpy(packed, s.bytes + off, s.size - off < len ? s.size - off : len);
	key = mix(hash_bytes(packed, len), cluster) | 1;
	u = &memo[key / 2 % MEMO];
	if (u->key != key) {
		if (decomp_cluster != cluster) {
			decompressor_free(decomp);
			decomp = decompressor_new(QCOW2_COMPRESSION_ZLIB, cluster);
			decomp_cluster = cluster;
		}
		if (!decomp)
			die("out of memory");
		if (decompress(decomp, plain, packed, (uint32_t)len))
			finding("a compressed cluster at 0x%" PRIx64 " cannot be unpacked", off);
		u->value = realloc(u->value, cluster / SECTOR * sizeof(*u->value));
		if (!u->value)
			die("out of memory");
		for (i = 0; i < cluster / SECTOR; i++)
			u->value[i] = sector_value(plain + i * SECTOR);
		u->key = key;
	}
	free(packed);
	free(plain);
	return u->value;
}

void judge_cleanup(void)
{
	unsigned i;

	for (i = 0; i < MEMO; i++)
		free(memo[i].value);
	decompressor_free(decomp);
}

/* ---- the content ---- */

static void cluster_content(const struct template *t, struct span s, uint64_t entry, uint64_t first,
			    uint64_t n, uint64_t *values)
{
	unsigned bits = (unsigned)__builtin_ctz(t->cluster_size), x = 62 - (bits - 8);
	uint64_t off = entry & OFFSET_MASK, i, len;

	if (entry >> 62 & 1) {
		off = entry & ((1ull << x) - 1);
		len = ((entry >> x & ((1ull << (62 - x)) - 1)) + 1) * SECTOR - off % SECTOR;
		memcpy(values + first, unpack(s, off, len, t->cluster_size), n * sizeof(*values));
		return;
	}
	if (entry & 1 && t->version >= 3) {
		memset(values + first, 0, n * sizeof(*values));
		return;
	}
	if (!off) {
		memcpy(values + first, t->below + first, n * sizeof(*values));
		return;
	}
	for (i = 0; i < n; i++)
		values[first + i] = value_at(s, off + i * SECTOR);
}

/* Through the L1 table of @entries words at @l1. */
static void walk(const struct template *t, struct span s, uint64_t l1, uint64_t entries, uint64_t *values)
{
	uint64_t per = t->cluster_size / SECTOR, per_l2 = t->cluster_size / 8, c, l2, n;

	for (c = 0; c * per < t->sectors; c++) {
		n = t->sectors - c * per < per ? t->sectors - c * per : per;
		if (c / per_l2 >= entries)
			finding("the L1 table has only %" PRIu64 " entries", entries);
		l2 = be64(s, l1 + c / per_l2 * 8) & OFFSET_MASK;
		cluster_content(t, s, l2 ? be64(s, l2 + c % per_l2 * 8) : 0, c * per, n, values);
	}
}

void judge_content(const struct template *t, struct span s, uint64_t *values)
{
	walk(t, s, be64(s, 40), be(s, 36, 4), values);
}

/* ---- the judgement ---- */

static void judge_snapshot(struct judge *j, struct span s)
{
	uint64_t table = be64(s, 64), i;

	if (be(s, 60, 4) != 1)
		finding("the header has %" PRIu64 " snapshots", be(s, 60, 4));
	walk(j->t, s, be64(s, table), be(s, table + 8, 4), j->values);
	for (i = 0; i < j->t->sectors; i++)
		if (j->values[i] != j->t->content[i])
			finding("sector %" PRIu64 " of the snapshot holds %s, not %s", i,
				model_word(j->values[i]), model_word(j->t->content[i]));
}

void judge_state(struct judge *j, struct span s, uint64_t body)
{
	struct check_result res = judge_check(s, NULL);
	uint64_t i;

	if (res.errors)
		finding("check: %" PRIu64 " errors", res.errors);
	if (be(s, 4, 4) >= 3 && be64(s, 72))
		finding("the header has incompatible features 0x%" PRIx64, be64(s, 72));
	if (judge_autoclear(s) && body != j->body)
		finding("the image was changed and still has autoclear bits 0x%" PRIx64, judge_autoclear(s));
	if (j->t->snapshot)
		judge_snapshot(j, s);
	if (!j->model)
		return;
	judge_content(j->t, s, j->values);
	for (i = 0; i < j->t->sectors; i++)
		if (!model_allows(j->model, i, j->values[i]))
			finding("guest sector %" PRIu64 " holds %s; it may hold %s", i,
				model_word(j->values[i]), model_says(j->model, i));
}

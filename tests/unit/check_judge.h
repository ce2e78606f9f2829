/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * check_judge.h - what the tests of the checker share: our opinion and qemu-img's about an image,
 * images made from recipes, and an image in memory whose words can be changed.
 */
#ifndef TESTS_CHECK_JUDGE_H
#define TESTS_CHECK_JUDGE_H

#include "qcow2/check.h"
#include "qcow2/format.h"
#include "qemu_img.h"
#include <inttypes.h>

struct verdict {
	bool refused; /* the check could not be carried out */
	bool killed; /* QEMU crashed or hung: no opinion */
	uint64_t errors, leaks, clusters, allocated, compressed, end;
	bool only_strict; /* ours: every error is one that QEMU does not look for */
	char text[512];
};

/* ---- the two opinions ---- */

static inline void note(void *ctx, bool error, const char *text)
{
	struct verdict *v = ctx;

	if (error && !strstr(text, "holds metadata and is referenced") &&
	    !strstr(text, "zero flag in a version 2"))
		v->only_strict = false;
	if (!v->text[0])
		snprintf(v->text, sizeof(v->text), "%s", text);
}

static inline struct verdict ours(const char *name)
{
	struct verdict v = { .only_strict = true };
	struct check_callbacks cb = { .finding = note, .ctx = &v };
	struct qcow2_error err = { "" };
	struct check_result res;
	struct host_file *f;
	char path[256];
	int ret;

	snprintf(path, sizeof(path), "%s/%s", scratch_dir, name);
	assert_int_equal(host_open_sync(&f, path, true, &err), 0);
	ret = qcow2_check(f, &cb, &res, &err);
	f->ops->close(f);
	v.refused = ret != 0;
	if (ret) {
		assert_true(err.text[0]);
		assert_non_null(strstr(err.text, name));
		snprintf(v.text, sizeof(v.text), "%s", err.text);
	}
	v.errors = res.errors;
	v.leaks = res.leaks;
	v.clusters = res.clusters;
	v.allocated = res.allocated;
	v.compressed = res.compressed;
	v.end = res.image_end;
	return v;
}

static inline uint64_t json_number(const char *json, const char *key)
{
	char quoted[64];
	const char *at;

	snprintf(quoted, sizeof(quoted), "\"%s\": ", key);
	at = strstr(json, quoted);
	return at ? strtoull(at + strlen(quoted), NULL, 10) : 0;
}

static inline struct verdict theirs(const char *name)
{
	struct verdict v = { 0 };
	unsigned char *json;
	uint64_t size;
	size_t len;
	int status;

	status = sh("timeout -s KILL 20 qemu-img check -f qcow2 --output=json '%s' >json 2>messages", name);
	v.killed = status >= 124;
	json = slurp("json", 0, &len, &size);
	json = realloc(json, len + 1);
	assert_non_null(json);
	json[len] = 0;
	v.refused = !strstr((char *)json, "\"filename\"") ||
		    (status == 1 && !json_number((char *)json, "check-errors"));
	v.errors = json_number((char *)json, "corruptions");
	v.leaks = json_number((char *)json, "leaks");
	v.clusters = json_number((char *)json, "total-clusters");
	v.allocated = json_number((char *)json, "allocated-clusters");
	v.compressed = json_number((char *)json, "compressed-clusters");
	v.end = json_number((char *)json, "image-end-offset");
	if (json_number((char *)json, "check-errors")) /* e.g. refcounts it could not read */
		v.errors += !v.errors;
	free(json);
	return v;
}

static inline void show(const char *what, const struct verdict *a, const struct verdict *b)
{
	print_message("%s: ours%s errors %" PRIu64 " leaks %" PRIu64 " (%s), qemu-img%s %" PRIu64 " %" PRIu64
		      "\n",
		      what, a->refused ? " refused," : "", a->errors, a->leaks, a->text,
		      b->refused ? " refused," : "", b->errors, b->leaks);
}

/* ---- images ---- */

struct recipe {
	const char *name;
	const char *options, *size;
	const char *script; /* shell, $I is the image */
};

#define IO "qemu-io -f qcow2 "

static inline void make(const struct recipe *r)
{
	bool secret = strstr(r->options, "key-secret");

	assert_int_equal(sh("rm -f i.qcow2; qemu-img create -q -f qcow2 %s -o %s i.qcow2 %s",
			    secret ? "--object secret,id=s,data=x" : "", r->options, r->size),
			 0);
	if (sh("I=i.qcow2 O=%s; set -e; %s", r->options, r->script[0] ? r->script : "true"))
		fail_msg("%s: cannot make the image", r->name);
}

/* ---- an image to damage ---- */

struct img {
	unsigned char *b;
	size_t len;
	unsigned bits; /* of a cluster */
};

static inline uint64_t get(const struct img *m, uint64_t at, unsigned bytes)
{
	uint64_t v = 0;

	assert_true(at + bytes <= m->len);
	while (bytes--)
		v = v << 8 | m->b[at++];
	return v;
}

static inline uint64_t get64(const struct img *m, uint64_t at)
{
	return get(m, at, 8);
}

static inline void set64(struct img *m, uint64_t at, uint64_t value)
{
	assert_true(at + 8 <= m->len);
	put64(m->b, at, value);
}

static inline struct img img_load(const char *name)
{
	struct img m;
	uint64_t size, whole;
	size_t len;

	m.b = slurp(name, 0, &len, &size);
	m.bits = (unsigned)get(&(struct img){ m.b, len, 0 }, 20, 4);
	whole = ((len - 1) >> m.bits) + 1; /* whole clusters, so that damage reaches all of the last */
	m.len = whole << m.bits;
	m.b = realloc(m.b, m.len);
	assert_non_null(m.b);
	memset(m.b + len, 0, m.len - len);
	return m;
}

static inline void img_store(const struct img *m, const char *name)
{
	char path[256];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", scratch_dir, name);
	f = fopen(path, "w");
	assert_non_null(f);
	assert_int_equal(fwrite(m->b, 1, m->len, f), m->len);
	assert_int_equal(fclose(f), 0);
}

#define OFFSET 0x00fffffffffffe00ull

/* File offsets of words. */
static inline uint64_t l1(const struct img *m, unsigned i)
{
	return get64(m, offsetof(struct qcow2_disk_header, l1_table_offset)) + 8 * i;
}

static inline uint64_t l2(const struct img *m, unsigned i, unsigned j)
{
	return (get64(m, l1(m, i)) & OFFSET) + 8 * j;
}

static inline uint64_t rt(const struct img *m, unsigned i)
{
	return get64(m, offsetof(struct qcow2_disk_header, refcount_table_offset)) + 8 * i;
}

static inline uint64_t snapshot(const struct img *m)
{
	return get64(m, offsetof(struct qcow2_disk_header, snapshots_offset));
}

static inline void set_refcount(struct img *m, uint64_t host, unsigned value) /* 16 bits, block 0 */
{
	put16(m->b, get64(m, rt(m, 0)) + 2 * (host >> m->bits), value);
}

static inline void or64(struct img *m, uint64_t at, uint64_t bits)
{
	set64(m, at, get64(m, at) | bits);
}

static inline void clear64(struct img *m, uint64_t at, uint64_t bits)
{
	set64(m, at, get64(m, at) & ~bits);
}

/* Point an entry elsewhere, its flags stay. */
static inline void point(struct img *m, uint64_t at, uint64_t host)
{
	set64(m, at, (get64(m, at) & ~OFFSET) | host);
}

static inline uint64_t data(const struct img *m, unsigned j)
{
	return get64(m, l2(m, 0, j)) & OFFSET;
}

static const struct recipe victims[] = {
	{ "plain", "cluster_size=4k", "8M",
	  IO "-c 'write 0 64k' -c 'write 128k 8k' -c 'write -z 128k 8k' -c 'write 2M 20k' $I; " IO
	     "-c 'write -c -P 1 256k 4k' -c 'write -c -P 2 260k 4k' -c 'write -c -P 3 264k 4k' $I" },
	{ "snap", "cluster_size=4k", "8M",
	  IO "-c 'write 0 64k' -c 'write 2M 20k' $I; qemu-img snapshot -c one $I; " IO
	     "-c 'write 16k 4k' -c 'write -c -P 1 256k 4k' $I; qemu-img snapshot -c two $I" },
	{ "bitmap", "cluster_size=4k", "8M",
	  "qemu-img bitmap --add -g 512 $I b1; qemu-img bitmap --add -g 64k $I b2; " IO
	  "-c 'write 0 64k' -c 'write 2M 20k' $I" },
	{ "tiny", "cluster_size=512,refcount_bits=8", "512k",
	  IO "-c 'write 0 8k' -c 'write -z 1k 1k' $I; qemu-img snapshot -c one $I; " IO
	     "-c 'write 2k 5k' -c 'write 300k 1k' -c 'write -c -P 1 100k 512' $I" },
};

static inline void make_victims(void)
{
	size_t i;

	for (i = 0; i < COUNT(victims); i++) {
		make(&victims[i]);
		assert_int_equal(sh("mv i.qcow2 %s", victims[i].name), 0);
	}
}

#endif

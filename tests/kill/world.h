/* SPDX-License-Identifier: GPL-2.0-or-later */
/* world.h - what the parent and its children share: shadow, requests in flight, the next life's orders; and
 * the images. */
#ifndef TESTS_WORLD_H
#define TESTS_WORLD_H

#include "shared_host.h"
#include "../shell.h"
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

#define DEPTH 24
#define MAX_REQ (64u << 10)
#define MAX_SIZE (3u << 20)
#define SECTORS (MAX_SIZE / 512)
#define BASE UINT32_MAX /* the sector is as qemu-img made it */

struct job {
	struct qcow2_req req;
	bool busy; /* in flight, as the guest sees it */
	bool learn; /* a discard that is done: read what it left */
	uint32_t id;
	uint8_t *buf;
};

/* Shared with the children. */
static struct world {
	uint64_t seed, size;
	uint32_t next_id;
	unsigned cluster;
	uint64_t cache_bytes;
	uint32_t shadow[SECTORS];
	uint8_t base[MAX_SIZE];
	struct job job[DEPTH + 1]; /* pointers in it are the child's; the last: a hit of another thread */
	bool table;
	struct qcow2_journal journal;
	/* the next life */
	uint64_t kill_at; /* hook; 0: never */
	uint64_t kill_hit; /* the same, counting hits of other threads */
	bool step; /* stop there instead, to be single-stepped */
	unsigned ops; /* then close */
	/* counted */
	uint64_t lives, closes, hooks, hits, recoveries;
} *w;

/* ---- made with qemu-img, loaded into shared memory ---- */

static uint64_t load(const char *name, uint8_t *buf, uint64_t max)
{
	char path[PATH_MAX];
	uint64_t n = 0;
	ssize_t got = 0;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_RDONLY);
	while (fd >= 0 && n < max && (got = read(fd, buf + n, max - n)) > 0)
		n += (uint64_t)got;
	if (fd < 0 || got < 0)
		die("%s: %s", name, strerror(errno));
	close(fd);
	return n;
}

static void load_file(unsigned i, const char *name)
{
	disk_forget(i);
	snprintf(disk->file[i].name, sizeof(disk->file[i].name), "%s", name);
	disk->file[i].size = load(name, disk->file[i].data, FILE_BYTES);
}

static bool is(const char *family, const char *name)
{
	return !strcmp(family, name);
}

static void make_backed(const char *family)
{
	uint64_t base = (1 + rnd(w->size / 512)) * 512;

	SH("head -c %llu /dev/urandom > base.raw", (unsigned long long)base);
	if (is(family, "v2")) {
		SH("qemu-img create -q -f qcow2 -b base.raw -F raw -o cluster_size=%u,compat=0.10 t.qcow2 "
		   "%llu",
		   w->cluster, (unsigned long long)w->size);
		load_file(1, "base.raw");
		return;
	}
	SH("qemu-img convert -f raw -O qcow2 -o cluster_size=%u %s base.raw base.qcow2", 512u << rnd(8),
	   rnd(2) ? "-c" : "");
	SH("qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 -o cluster_size=%u t.qcow2 %llu", w->cluster,
	   (unsigned long long)w->size);
	load_file(1, "base.qcow2");
}

static void make_compressed(void)
{
	unsigned long long half = w->size / 2 & ~511ull;

	SH("head -c %llu /dev/urandom > src.raw", half);
	SH("yes 'compressible text' | head -c %llu >> src.raw", (unsigned long long)w->size - half);
	SH("qemu-img convert -c -f raw -O qcow2 -o cluster_size=%u,compression_type=%s src.raw t.qcow2",
	   w->cluster, rnd(2) ? "zlib" : "zstd");
}

static void make_image(const char *family)
{
	unsigned bits = 9 + (unsigned)rnd(8),
		 order = is(family, "refcount") || is(family, "growth") ? (unsigned)rnd(7) : 4;

	disk->dio_align = 1;
	if (is(family, "growth")) { /* 512-byte clusters, the refcount table covers 2 MiB */
		bits = 9;
		order = 6;
	} else if (is(family, "dio")) {
		disk->dio_align = rnd(2) ? 4096 : 512;
		bits = 12 + (unsigned)rnd(5);
	} else if (is(family, "small")) {
		bits = 9 + (unsigned)rnd(2);
	}
	if (is(family, "snapshot") && rnd(2))
		bits = 9;
	w->cluster = 1u << bits;
	w->size = is(family, "growth") ? MAX_SIZE - rnd(1000) * 512
				       : (64 + rnd(is(family, "small") ? 1000 : 3000)) * 512;
	w->cache_bytes = rnd(2) ? 1 : 0;
	w->table = rnd(3);
	disk_forget(1);
	sh("rm -f t.qcow2 base.* out.raw src.raw");
	if (is(family, "backing") || (is(family, "v2") && rnd(2)))
		make_backed(family);
	else if (is(family, "compressed"))
		make_compressed();
	else
		SH("qemu-img create -q -f qcow2 -o "
		   "cluster_size=%u,refcount_bits=%u,compat=%s,preallocation=%s t.qcow2 %llu",
		   w->cluster, 1u << order, is(family, "v2") ? "0.10" : "1.1", rnd(4) ? "off" : "metadata",
		   (unsigned long long)w->size);
	if (is(family, "snapshot")) {
		SH("qemu-io -f qcow2 -c 'write -q -P 17 0 %llu' t.qcow2",
		   (unsigned long long)(w->size / 3 & ~511ull) + 512);
		SH("qemu-img snapshot -c one t.qcow2 && qemu-img convert -f qcow2 -O raw -l one t.qcow2 "
		   "before.raw");
	}
	SH("qemu-img convert -f qcow2 -O raw t.qcow2 out.raw");
	load("out.raw", w->base, sizeof(w->base));
	load_file(0, "t.qcow2");
	memset(w->shadow, 0xff, sizeof(w->shadow));
	memset(w->job, 0, sizeof(w->job));
}

#endif

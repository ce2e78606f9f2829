// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * family.c - what the families of workloads are, and making their images: with qemu-img where it can, by hand
 * where it cannot (refcount tables about to be full).
 *
 * Images are small and their tables smaller, so that a few requests make tables grow. Sectors that hold data
 * say which sector they are and who wrote them: 0 for the image and its snapshot, 1 for the backing file.
 */
#include "family.h"
#include "../unit/memimg.h"
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

/* What every script may use; it runs in an empty folder. tags.raw, base-tags.raw: 2 MiB that say where they
 * are; holes.raw: the same with every third 8 KiB zeroes. */
static const char prelude[] =
	"set -eu\n"
	"n=0\n"
	"image() {\n"
	"  mkdir $n; mv t.qcow2 $n\n"
	"  for b in base.raw base.qcow2; do if [ -e $b ]; then mv $b $n; fi; done\n"
	"  (cd $n; qemu-img convert -f qcow2 -O raw t.qcow2 content.raw\n"
	"   if [ -e base.qcow2 ]; then qemu-img convert -f qcow2 -O raw base.qcow2 below.raw\n"
	"   elif [ -e base.raw ]; then cp base.raw below.raw; fi)\n"
	"  n=$((n + 1))\n"
	"}\n"
	"create() { qemu-img create -q -f qcow2 \"$@\"; }\n"
	"# fill SIZE FROM [OPTION...]: an image that holds the first SIZE bytes of FROM\n"
	"fill() { s=$1 f=$2; shift 2; head -c $s $f >src.raw; qemu-img convert -m 1 -f raw -O qcow2 \"$@\" "
	"src.raw t.qcow2; }\n";

/* ---- images made by hand ---- */

static void flatten(struct template *t, struct disk *d)
{
	t->image.size = d->size;
	t->image.bytes = malloc(d->size);
	if (!t->image.bytes)
		die("out of memory");
	disk_get(d, 0, t->image.bytes, d->size);
	disk_free(d);
}

/* The refcount table, or the refcount blocks that there are, are full a few clusters from here. */
static void build_refcount(struct template *t, unsigned variant)
{
	static const struct {
		unsigned order; /* as in struct spec */
		uint64_t used;
	} v[] = { { 6, 4096 - 70 }, { 6, 4096 - 64 }, { 7, 4096 - 40 }, { 4, 256 - 20 } };
	struct disk *d = disk_make(&(struct spec){ .bits = 9, .order = v[variant].order, .size = 128 << 10 });

	fill_host(d, v[variant].used);
	flatten(t, d);
}

/* ---- the families ---- */

struct family families[] = {
	{ .name = "allocate",
	  .about = "writes into empty images",
	  .mix = { .write = 12, .zero = 1, .discard = 1, .read = 2, .flush = 4 },
	  .make = "create -o cluster_size=512 t.qcow2 163840; image\n"
		  "create -o cluster_size=1024 t.qcow2 300032; image\n"
		  "create -o cluster_size=4096 t.qcow2 262144; image\n"
		  "create -o cluster_size=16384 t.qcow2 524288; image\n" },
	{ .name = "overwrite",
	  .about = "writes in place",
	  .mix = { .write = 12, .read = 4, .flush = 4, .hit = 4 },
	  .make = "fill 100352 tags.raw -o cluster_size=512; image\n"
		  "fill 262144 tags.raw -o cluster_size=4096; image\n"
		  "fill 524288 tags.raw -o cluster_size=65536; image\n" },
	{ .name = "cow-raw",
	  .about = "parts of clusters over raw backing files, short ones too",
	  .mix = { .write = 14, .zero = 1, .discard = 1, .read = 3, .flush = 3, .hit = 4 },
	  .make = "for cs in 1024 4096 16384; do\n"
		  "head -c 70100 base-tags.raw >base.raw; create -b base.raw -F raw -o cluster_size=$cs "
		  "t.qcow2 199680; image\n"
		  "head -c 300032 base-tags.raw >base.raw; create -b base.raw -F raw -o cluster_size=$cs "
		  "t.qcow2 150016; image\n"
		  "done\n" },
	{ .name = "cow-qcow2",
	  .about = "the same over qcow2 files over raw ones",
	  .mix = { .write = 14, .zero = 2, .discard = 2, .read = 3, .flush = 3, .hit = 4 },
	  .make = "for cs in 1024 4096 16384; do\n"
		  "fill 120320 holes.raw -o cluster_size=2048; mv t.qcow2 base.qcow2\n"
		  "create -b base.qcow2 -F qcow2 -o cluster_size=$cs t.qcow2 199680; image\n"
		  "head -c 60416 base-tags.raw >base.raw; create -b base.raw -F raw -o cluster_size=512 "
		  "base.qcow2 140288\n"
		  "create -b base.qcow2 -F qcow2 -o cluster_size=$cs t.qcow2 160256; image\n"
		  "done\n" },
	{ .name = "discard",
	  .about = "clusters freed and allocated again",
	  .mix = { .write = 8, .discard = 8, .zero = 1, .read = 1, .flush = 5, .hit = 3 },
	  .make = "fill 65536 tags.raw -o cluster_size=512; image\n"
		  "fill 131072 holes.raw -o cluster_size=1024; image\n"
		  "fill 262144 tags.raw -o cluster_size=4096; image\n" },
	{ .name = "zero",
	  .about = "write zeroes, clusters kept and not",
	  .keep = true,
	  .mix = { .write = 8, .zero = 10, .discard = 1, .read = 2, .flush = 4, .hit = 2 },
	  .make = "fill 100352 tags.raw -o cluster_size=512; image\n"
		  "fill 131072 holes.raw -o cluster_size=4096; image\n"
		  "head -c 100352 base-tags.raw >base.raw; create -b base.raw -F raw -o cluster_size=2048 "
		  "t.qcow2 150016; image\n"
		  "create -o cluster_size=4096,preallocation=metadata t.qcow2 131072; image\n" },
	{ .name = "v2",
	  .about = "version 2, with a backing file and without",
	  .mix = { .write = 8, .zero = 4, .discard = 4, .read = 2, .flush = 4 },
	  .make = "create -o cluster_size=512,compat=0.10 t.qcow2 100352; image\n"
		  "fill 131072 tags.raw -o cluster_size=4096,compat=0.10; image\n"
		  "head -c 70144 base-tags.raw >base.raw; create -b base.raw -F raw -o "
		  "cluster_size=1024,compat=0.10 t.qcow2 100352; image\n" },
	{ .name = "tables",
	  .about = "many L2 tables and two clusters of L1",
	  .mix = { .write = 14, .zero = 3, .discard = 3, .read = 2, .flush = 4 },
	  .make = "create -o cluster_size=512 t.qcow2 2621440; image\n"
		  "create -o cluster_size=512,refcount_bits=64 t.qcow2 1048576; image\n"
		  "fill 524288 holes.raw -o cluster_size=512; image\n" },
	{ .name = "refcount",
	  .about = "refcount blocks and tables that grow",
	  .mix = { .write = 14, .zero = 1, .discard = 3, .read = 1, .flush = 4 },
	  .build = build_refcount,
	  .variants = 4,
	  .make = "create -o cluster_size=512,refcount_bits=64 t.qcow2 131072; image\n"
		  "create -o cluster_size=512,refcount_bits=1 t.qcow2 131072; image\n"
		  "fill 65536 holes.raw -o cluster_size=512,refcount_bits=64; image\n" },
	{ .name = "lazy",
	  .about = "lazy refcounts are allowed: exact ones all the same, never the dirty bit",
	  .mix = { .write = 12, .zero = 2, .discard = 5, .read = 1, .flush = 4 },
	  .make = "create -o cluster_size=512,lazy_refcounts=on,refcount_bits=64 t.qcow2 131072; image\n"
		  "fill 131072 holes.raw -o cluster_size=4096,lazy_refcounts=on; image\n"
		  "fill 65536 tags.raw -o cluster_size=512,lazy_refcounts=on; qemu-img snapshot -c one "
		  "t.qcow2; image\n" },
	{ .name = "compressed",
	  .about = "compressed clusters that share host sectors are overwritten",
	  .mix = { .write = 10, .zero = 2, .discard = 3, .read = 3, .flush = 4 },
	  .make = "fill 100352 tags.raw -c -o cluster_size=1024; image\n"
		  "fill 262144 tags.raw -c -o cluster_size=4096; image\n"
		  "fill 524288 holes.raw -c -o cluster_size=16384; image\n" },
	{ .name = "snapshot",
	  .about = "an internal snapshot keeps its content",
	  .mix = { .write = 12, .zero = 2, .discard = 4, .read = 2, .flush = 4, .hit = 3 },
	  .make = "fill 65536 tags.raw -o cluster_size=512; qemu-img snapshot -c one t.qcow2; image\n"
		  "fill 131072 holes.raw -o cluster_size=4096; qemu-img snapshot -c one t.qcow2; image\n"
		  "fill 131072 tags.raw -c -o cluster_size=4096; qemu-img snapshot -c one t.qcow2; image\n" },
	{ .name = "autoclear",
	  .about = "autoclear bits go before the first write",
	  .mix = { .write = 6, .zero = 2, .discard = 2, .read = 3, .flush = 3, .hit = 3 },
	  .make = "bits() { printf '\\200' | dd of=t.qcow2 bs=1 seek=88 conv=notrunc status=none; }\n"
		  "fill 65536 tags.raw -o cluster_size=512; bits; image\n"
		  "create -o cluster_size=1024 t.qcow2 65536; bits; image\n"
		  "fill 131072 holes.raw -o cluster_size=4096; qemu-img bitmap --add t.qcow2 b; image\n" },
	{ .name = "dio",
	  .about = "host I/O in blocks of 4096: read-modify-write",
	  .dio_align = 4096,
	  .mix = { .write = 12, .zero = 2, .discard = 2, .read = 3, .flush = 4 },
	  .make = "create -o cluster_size=4096 t.qcow2 262144; image\n"
		  "fill 262144 holes.raw -o cluster_size=8192; image\n"
		  "head -c 98304 base-tags.raw >base.raw; create -b base.raw -F raw -o cluster_size=16384 "
		  "t.qcow2 196608; image\n" },
	{ .name = "hits",
	  .about = "I/O through published words, in flight while their mapping changes",
	  .mix = { .write = 6, .discard = 5, .zero = 1, .read = 4, .flush = 8, .hit = 10 },
	  .make = "fill 32768 tags.raw -o cluster_size=512; image\n"
		  "fill 131072 tags.raw -o cluster_size=4096; image\n"
		  "fill 65536 holes.raw -o cluster_size=1024; qemu-img snapshot -c one t.qcow2; image\n" },
	{ .name = "blockdev",
	  .about = "on a block device whose free space holds old data",
	  .blockdev = true,
	  .mix = { .write = 12, .zero = 2, .discard = 4, .read = 2, .flush = 4 },
	  .make = "create -o cluster_size=512 t.qcow2 65536; image\n"
		  "fill 131072 holes.raw -o cluster_size=4096; image\n"
		  "head -c 65536 base-tags.raw >base.raw; create -b base.raw -F raw -o cluster_size=2048 "
		  "t.qcow2 100352; image\n" },
	{ .name = "killed",
	  .about = "the process is killed and its journal applied before the power goes",
	  .killed = true,
	  .mix = { .write = 12, .zero = 3, .discard = 4, .read = 3, .flush = 3 },
	  .build = build_refcount,
	  .variants = 4,
	  .make = "create -o cluster_size=512 t.qcow2 131072; image\n"
		  "fill 131072 holes.raw -o cluster_size=4096; image\n"
		  "fill 65536 tags.raw -o cluster_size=512; qemu-img snapshot -c one t.qcow2; image\n"
		  "fill 100352 tags.raw -c -o cluster_size=1024; image\n"
		  "head -c 60416 base-tags.raw >base.raw; create -b base.raw -F raw -o cluster_size=4096 "
		  "t.qcow2 "
		  "131072; image\n" },
	{ .name = "killed-faults",
	  .about = "the same, and host I/O fails now and then",
	  .killed = true,
	  .faults = true,
	  .mix = { .write = 12, .zero = 3, .discard = 4, .read = 3, .flush = 3 },
	  .build = build_refcount,
	  .variants = 4,
	  .make = "create -o cluster_size=512 t.qcow2 131072; image\n"
		  "fill 65536 tags.raw -o cluster_size=512; qemu-img snapshot -c one t.qcow2; image\n"
		  "fill 100352 tags.raw -c -o cluster_size=1024; image\n"
		  "head -c 60416 base-tags.raw >base.raw; create -b base.raw -F raw -o cluster_size=4096 "
		  "t.qcow2 131072; image\n" },
	{ .name = "close",
	  .about = "nothing but close makes it durable",
	  .mix = { .write = 10, .zero = 3, .discard = 6, .read = 1 },
	  .make = "create -o cluster_size=512 t.qcow2 65536; image\n"
		  "fill 131072 holes.raw -o cluster_size=1024; image\n"
		  "fill 65536 tags.raw -o cluster_size=512; qemu-img snapshot -c one t.qcow2; image\n" },
	{ .name = "faults",
	  .about = "host I/O that fails now and then",
	  .faults = true,
	  .mix = { .write = 10, .zero = 2, .discard = 3, .read = 1, .flush = 6, .hit = 2 },
	  .build = build_refcount,
	  .variants = 4,
	  .make = "create -o cluster_size=512 t.qcow2 131072; image\n"
		  "fill 131072 holes.raw -o cluster_size=4096; image\n"
		  "fill 65536 tags.raw -o cluster_size=512; qemu-img snapshot -c one t.qcow2; image\n"
		  "fill 100352 tags.raw -c -o cluster_size=1024; image\n"
		  "create -o cluster_size=1024 t.qcow2 65536; printf '\\200' | dd of=t.qcow2 bs=1 seek=88 "
		  "conv=notrunc; image\n"
		  "head -c 60416 base-tags.raw >base.raw; create -b base.raw -F raw -o cluster_size=4096 "
		  "t.qcow2 131072; image\n" },
};
const unsigned nfamilies = sizeof(families) / sizeof(families[0]);

struct family *family_find(const char *name)
{
	unsigned i;

	for (i = 0; i < nfamilies; i++)
		if (!strcmp(families[i].name, name))
			return &families[i];
	return NULL;
}

/* ---- loading ---- */

static bool load(struct file *f, const char *dir, const char *name)
{
	struct stat st;
	int fd;

	snprintf(f->path, sizeof(f->path), "%s/%s", dir, name);
	fd = open(f->path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	if (fstat(fd, &st))
		die("%s: %s", f->path, strerror(errno));
	f->size = (uint64_t)st.st_size;
	f->bytes = malloc(f->size + SECTOR);
	if (!f->bytes || read(fd, f->bytes, f->size) != st.st_size)
		die("%s: cannot read it", f->path);
	close(fd);
	return true;
}

/* Sector by sector what a raw file says, zeroes past its end. */
static uint64_t *words_of(const char *dir, const char *name, uint64_t sectors, uint64_t *have)
{
	uint64_t *v = calloc(sectors, sizeof(*v)), i;
	struct file f = { .size = 0 };

	if (!v)
		die("out of memory");
	if (load(&f, dir, name))
		memset(f.bytes + f.size, 0, SECTOR);
	for (i = 0; i < sectors && i * SECTOR < f.size; i++)
		v[i] = sector_value(f.bytes + i * SECTOR);
	*have = (f.size + SECTOR - 1) / SECTOR;
	free(f.bytes);
	return v;
}

static void describe(struct template *t)
{
	const uint8_t *h = t->image.bytes;
	uint64_t size = 0, have;
	unsigned i;

	for (i = 0; i < 8; i++)
		size = size << 8 | h[24 + i];
	t->sectors = size / SECTOR;
	t->version = h[7];
	t->cluster_size = 1u << h[23];
	t->snapshot = h[63] != 0;
	t->content = words_of(t->dir, "content.raw", t->sectors, &have);
	t->below = words_of(t->dir, "below.raw", t->sectors, &t->below_sectors);
	t->backings += load(&t->backing[t->backings], t->dir, "base.raw");
	t->backings += load(&t->backing[t->backings], t->dir, "base.qcow2");
}

static struct template *template_new(struct family *f, const char *dir, unsigned number)
{
	struct template *t = calloc(1, sizeof(*t)), **end = &f->templates;

	if (!t)
		die("out of memory");
	snprintf(t->dir, sizeof(t->dir), "%s/%u", dir, number);
	while (*end)
		end = &(*end)->next;
	*end = t;
	f->ntemplates++;
	return t;
}

static void tags(const char *dir, const char *name, uint64_t serial, bool holes)
{
	uint64_t i, words[SECTOR / 8], w;
	char path[256];
	FILE *f;
	unsigned k;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "w");
	if (!f)
		die("%s: %s", path, strerror(errno));
	for (i = 0; i < 2 << 20 >> 9; i++) {
		w = holes && i / 16 % 3 == 2 ? 0 : word_for(i, serial);
		for (k = 0; k < SECTOR / 8; k++)
			words[k] = w;
		if (fwrite(words, SECTOR, 1, f) != 1)
			die("%s: cannot write it", path);
	}
	if (fclose(f))
		die("%s: cannot write it", path);
}

static void run_script(struct family *f, const char *dir)
{
	char path[256], cmd[600];
	FILE *s;

	snprintf(path, sizeof(path), "%s/make", dir);
	s = fopen(path, "w");
	if (!s)
		die("%s: %s", path, strerror(errno));
	fprintf(s, "%s%s", prelude, f->make);
	fclose(s);
	snprintf(cmd, sizeof(cmd), "cd '%s' && sh make >log 2>&1 || { cat log >&2; exit 1; }", dir);
	if (system(cmd))
		die("%s: the images cannot be made", f->name);
}

static bool made(const char *dir, unsigned number)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%u", dir, number);
	return !access(path, F_OK);
}

void family_prepare(struct family *f, const char *dir)
{
	struct template *t;
	char sub[180];
	unsigned i;

	if (f->templates)
		return;
	snprintf(sub, sizeof(sub), "%s/%s", dir, f->name);
	if (mkdir(sub, 0700))
		die("%s: %s", sub, strerror(errno));
	tags(sub, "tags.raw", 0, false);
	tags(sub, "holes.raw", 0, true);
	tags(sub, "base-tags.raw", 1, false);
	run_script(f, sub);
	for (i = 0; made(sub, i); i++) {
		t = template_new(f, sub, i);
		if (!load(&t->image, t->dir, "t.qcow2"))
			die("%s: there is no image", t->dir);
		describe(t);
	}
	for (i = 0; i < f->variants; i++) {
		t = template_new(f, sub, 1000 + i);
		if (mkdir(t->dir, 0700))
			die("%s: %s", t->dir, strerror(errno));
		f->build(t, i);
		describe(t);
	}
}

static void template_free(struct template *t)
{
	free(t->image.bytes);
	while (t->backings)
		free(t->backing[--t->backings].bytes);
	free(t->content);
	free(t->below);
	free(t);
}

void family_free(struct family *f)
{
	struct template *t;

	while ((t = f->templates)) {
		f->templates = t->next;
		template_free(t);
	}
	f->ntemplates = 0;
}

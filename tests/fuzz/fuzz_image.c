/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuzz_image.c - any bytes as an image: check it, open it read-only and read, open it read-write and
 * use it, check it again; repair it (fuzz_repair.h).
 *
 * Whatever the bytes are: no crash, no hang, bounded memory. If the image was clean at first, then
 * in addition: what was written is read back, also after a reopen, and the second check finds no
 * error and no new leak. The requests follow from a hash of the bytes, so a crash file reproduces.
 * With FUZZ_TRACE in the environment the requests are listed.
 * HAVE_IMAGE: the library has qcow2_open(); without it only the checker is tested.
 */
#include "qcow2/check_impl.h"
#include "qcow2/format.h"
#include "qcow2/qcow2.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE (64ull << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);

static uint64_t rng;

static uint64_t rnd(void) /* xorshift64* */
{
	rng ^= rng >> 12;
	rng ^= rng << 25;
	rng ^= rng >> 27;
	return rng * 0x2545f4914f6cdd1dull;
}

static void require(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "fuzz_image: %s\n", what);
	abort();
}

static uint64_t get_be(const uint8_t *p, unsigned bytes)
{
	uint64_t v = 0;

	while (bytes--)
		v = v << 8 | *p++;
	return v;
}

/* ---- an image in memory ---- */

struct memory {
	uint8_t *bytes;
	uint64_t size;
};

struct mem_file {
	struct host_file host; /* first */
	struct memory *mem; /* outlives the file, so that it can be opened again */
};

STAILQ_HEAD(, host_io) queue = STAILQ_HEAD_INITIALIZER(queue);

static struct memory memory_of(const uint8_t *data, size_t size)
{
	struct memory m = { malloc(size + 1), size };

	require(m.bytes, "out of memory");
	memcpy(m.bytes, data, size);
	return m;
}

static int mem_grow(struct memory *m, uint64_t end)
{
	uint8_t *bytes;

	if (end <= m->size)
		return 0;
	if (end > MAX_FILE)
		return -ENOSPC;
	bytes = realloc(m->bytes, end);
	require(bytes, "out of memory");
	memset(bytes + m->size, 0, end - m->size);
	m->bytes = bytes;
	m->size = end;
	return 0;
}

static void mem_read(const struct memory *m, void *buf, uint64_t len, uint64_t off)
{
	uint64_t n = off >= m->size ? 0 : m->size - off < len ? m->size - off : len;

	if (n)
		memcpy(buf, m->bytes + off, n);
	memset((char *)buf + n, 0, len - n);
}

static int mem_carry_out(struct host_io *io)
{
	struct memory *m = ((struct mem_file *)io->file)->mem;
	uint64_t align = io->file->dio_align, n;

	require(io->off <= INT64_MAX && io->len <= INT64_MAX - io->off, "I/O range overflows");
	if (io->op == HOST_READ || io->op == HOST_WRITE)
		require(!(io->off % align) && !(io->len % align) &&
				!((uintptr_t)io->buf % io->file->mem_align),
			"unaligned I/O");
	require(!io->file->read_only || io->op == HOST_READ || io->op == HOST_FSYNC,
		"write to a read-only file");
	switch (io->op) {
	case HOST_READ:
		mem_read(m, io->buf, io->len, io->off);
		return 0;
	case HOST_WRITE:
	case HOST_ZERO:
		if (!io->len)
			return 0;
		if (mem_grow(m, io->off + io->len))
			return -ENOSPC;
		if (io->op == HOST_WRITE)
			memcpy(m->bytes + io->off, io->buf, io->len);
		else
			memset(m->bytes + io->off, 0, io->len);
		return 0;
	case HOST_PUNCH:
		n = io->off >= m->size ? 0 : m->size - io->off;
		memset(m->bytes + (n ? io->off : 0), 0, n < io->len ? n : io->len);
		return 0;
	default:
		return 0;
	}
}

static void mem_submit(struct host_io *io)
{
	STAILQ_INSERT_TAIL(&queue, io, link);
}

static unsigned mem_poll(struct host_file *file, bool wait)
{
	struct host_io *io = STAILQ_FIRST(&queue), *next;
	unsigned n = 0;
	int res = 0;

	if (!io)
		return 0;
	STAILQ_REMOVE_HEAD(&queue, link);
	for (; io; io = next, n++) {
		next = io->then;
		res = res ? -ECANCELED : mem_carry_out(io);
		io->done(io, res);
	}
	return n;
}

static int mem_pread(struct host_file *file, void *buf, size_t len, uint64_t off)
{
	mem_read(((struct mem_file *)file)->mem, buf, len, off);
	return 0;
}

static int mem_size(struct host_file *file, uint64_t *size)
{
	*size = ((struct mem_file *)file)->mem->size;
	return 0;
}

static void mem_close(struct host_file *file)
{
	require(STAILQ_EMPTY(&queue), "closed with I/O in flight");
	free(file);
}

static const struct host_ops mem_ops = {
	.submit = mem_submit,
	.poll = mem_poll,
	.pread = mem_pread,
	.size = mem_size,
	.close = mem_close,
};

static struct host_file *mem_open(struct memory *m, bool read_only, uint32_t align)
{
	struct mem_file *f = calloc(1, sizeof(*f));

	require(f, "out of memory");
	f->mem = m;
	f->host = (struct host_file){ .ops = &mem_ops,
				      .ino = 1,
				      .dio_align = align,
				      .mem_align = align,
				      .read_only = read_only,
				      .path = "fuzz" };
	return &f->host;
}

/* ---- checking ---- */

static char last_error[600];

static void note(void *ctx, bool error, const char *text)
{
	require(strlen(text) < 512, "a finding is too long");
	if (error || !last_error[0])
		snprintf(last_error, sizeof(last_error), "%s after use: %s", error ? "error" : "leak", text);
}

static int check(struct memory *m, struct check_result *res)
{
	const struct check_callbacks cb = { .finding = note };
	struct host_file *f = mem_open(m, true, 1);
	struct qcow2_error err = { "" };
	int ret;

	last_error[0] = 0;
	ret = qcow2_check(f, &cb, res, &err);
	require(!ret == !err.text[0], "failed without a message, or the other way");
	mem_close(f);
	return ret;
}

/* The same with what the counts do not tell. */
struct judged {
	struct check_result res;
	uint64_t copied_missing; /* of the errors: a needless copy is all that comes of it */
	bool unreadable; /* what errors there are with some refcounts cannot be known */
	uint64_t saturated; /* with refcounts of one bit: references to clusters that have several */
};

static int judge(struct memory *m, struct judged *j)
{
	const struct check_callbacks cb = { .finding = note };
	struct host_file *f = mem_open(m, true, 1);
	struct qcow2_error err = { "" };
	struct check c = { .file = f, .cb = &cb, .res = &j->res, .err = &err };
	uint64_t cl, off;
	uint32_t index;
	void *piece;
	int ret;

	last_error[0] = 0;
	ret = check_run(&c);
	if (ret)
		goto end;
	j->copied_missing = c.copied_missing;
	j->unreadable = false;
	j->saturated = 0;
	for (cl = 0; c.hdr.geo.refcount_max == 1 && counters_next(&c.over, &cl, c.nb_clusters); cl++)
		j->saturated += 1 + counters_get(&c.over, cl);
	for (cl = 0; cl < c.nb_clusters; cl += check_per_piece(&c))
		j->unreadable |= !check_piece(&c, cl, &piece, &off, &index);
end:
	check_end(&c);
	mem_close(f);
	return ret;
}

#ifdef HAVE_IMAGE

/* ---- using ---- */

#define WINDOW (1u << 20) /* bytes at the start of the disk whose content is followed */
#define MAX_REQ 65536u

static uint8_t model[WINDOW];
static _Alignas(4096) uint8_t buf[MAX_REQ];

/* Every backing file is the same raw one; qcow2 ones are absent. */
static int open_backing(void *ctx, const char *path, enum backing_format format, struct host_file **out,
			struct qcow2_error *err)
{
	static uint8_t bytes[70000];
	static struct memory backing = { bytes, sizeof(bytes) };

	if (format != BACKING_RAW)
		return qcow2_fail(err, -ENOENT, "no such backing file");
	memset(bytes, 0xb7, sizeof(bytes));
	*out = mem_open(&backing, true, 1);
	(*out)->ino = 2;
	return 0;
}

static struct qcow2_image *open_image(struct memory *m, bool read_only, uint32_t align)
{
	const struct qcow2_opener opener = { .open = open_backing };
	struct qcow2_options opt = { .read_only = read_only, .cache_bytes = 1 << 18, .opener = &opener };
	struct qcow2_error err = { "" };
	struct qcow2_image *img;
	int ret = qcow2_open(&img, mem_open(m, read_only, align), &opt, &err);

	require(!ret == !err.text[0], "open failed without a message, or the other way");
	return ret ? NULL : img;
}

static uint64_t disk_size(struct qcow2_image *img)
{
	struct qcow2_info info;

	qcow2_get_info(img, &info);
	return info.size;
}

/* Read @len bytes from @off on; false if any of it cannot be read. */
static bool read_range(struct qcow2_image *img, uint64_t off, uint64_t len, uint8_t *into)
{
	bool ok = true;
	uint64_t n;

	for (; len; off += n, len -= n) {
		n = len < MAX_REQ ? len : MAX_REQ;
		memset(buf, 0xee, n);
		if (qcow2_sync(img, QCOW2_READ, buf, n, off))
			ok = false;
		else if (into)
			memcpy(into, buf, n);
		if (into)
			into += n;
	}
	return ok;
}

static void use_read_only(const uint8_t *data, size_t size)
{
	struct memory m = memory_of(data, size);
	struct qcow2_image *img = open_image(&m, true, 1);
	struct qcow2_map_extent e;
	uint64_t disk, at, n;
	unsigned i;

	if (!img)
		goto out;
	disk = disk_size(img);
	n = disk < 8 << 20 ? disk : 8 << 20;
	read_range(img, 0, n, NULL);
	read_range(img, disk - (n < MAX_REQ ? n : MAX_REQ), n < MAX_REQ ? n : MAX_REQ, NULL);
	for (at = 0, i = 0; at < disk && i < 1000; at += e.len, i++)
		if (qcow2_map(img, at, &e))
			break;
		else
			require(e.len && e.guest == at && e.len <= disk - at, "map returned a bad extent");
	require(qcow2_sync(img, QCOW2_WRITE, buf, 512, 0) < 0 || disk < 512, "a read-only image was written");
	qcow2_close(img, NULL);
	require(m.size == size && !memcmp(m.bytes, data, size), "a read-only image was changed");
out:
	free(m.bytes);
}

/* One request; the model follows it. Returns its result. */
static int one_request(struct qcow2_image *img, uint64_t disk, uint64_t window)
{
	static const enum qcow2_req_op ops[] = { QCOW2_WRITE, QCOW2_WRITE, QCOW2_WRITE_ZEROES, QCOW2_DISCARD,
						 QCOW2_FLUSH };
	static const char *const names[] = { "read", "write", "zeroes", "discard", "flush" };
	enum qcow2_req_op op = ops[rnd() % 5];
	uint64_t len, off, inside;
	int fill = (int)(rnd() & 0xff), ret;

	len = op == QCOW2_FLUSH ? 0 : (1 + (rnd() % 4 ? rnd() % 8 : rnd() % 128)) * 512;
	off = rnd() % 4 ? rnd() % (window / 512) * 512 : rnd() % (disk / 512) * 512;
	if (op == QCOW2_FLUSH)
		off = 0;
	if (len > disk - off)
		len = disk - off;
	memset(buf, fill, sizeof(buf));
	ret = qcow2_sync(img, op, op == QCOW2_WRITE ? buf : NULL, len, off);
	if (getenv("FUZZ_TRACE"))
		fprintf(stderr, "%s off %" PRIu64 " len %" PRIu64 ": %d\n", names[op], off, len, ret);
	inside = off >= window ? 0 : window - off < len ? window - off : len;
	if (!inside)
		return ret;
	if (!ret && op == QCOW2_WRITE)
		memset(model + off, fill, inside);
	else if (!ret && op == QCOW2_WRITE_ZEROES)
		memset(model + off, 0, inside);
	else if (op == QCOW2_DISCARD) /* what a discarded range reads is the image's choice */
		read_range(img, off, inside, model + off);
	return ret;
}

static void compare_model(struct qcow2_image *img, uint64_t window, const char *when)
{
	static uint8_t now[WINDOW];

	if (read_range(img, 0, window, now))
		require(!memcmp(now, model, window), when);
}

/*
 * Leaks that may be there after use: those of the original, seen in a file of the new size, for a
 * check does not look at refcounts beyond the end of the file. Writing to an image drops its bitmaps,
 * and with them the references to their clusters.
 */
static uint64_t leaks_allowed(const uint8_t *data, size_t size, uint64_t new_size)
{
	struct memory m = memory_of(data, size);
	struct check_result res;

	require(!mem_grow(&m, new_size) && !check(&m, &res), "cannot be checked when grown");
	free(m.bytes);
	return size > 95 && data[95] & QCOW2_AUTOCLEAR_BITMAPS ? UINT64_MAX : res.leaks;
}

static bool seen(uint8_t *map, uint64_t cluster)
{
	bool before = map[cluster / 8] >> cluster % 8 & 1;

	map[cluster / 8] |= (uint8_t)(1 << cluster % 8);
	return before;
}

/*
 * Do the tables of a clean image, without those of snapshots, name a cluster twice? Then COPIED is missing
 * at the one that is left when the other is written: nobody looks for it, nor does QEMU.
 */
static bool named_twice(const struct memory *m)
{
	static uint8_t map[MAX_FILE / 512 / 8];
	const uint64_t offset = 0x00fffffffffffe00ull, bits = get_be(m->bytes + 20, 4);
	uint64_t l1 = get_be(m->bytes + 40, 8), end = l1 + get_be(m->bytes + 36, 4) * 8, l2, at, word;

	memset(map, 0, sizeof(map));
	for (; l1 < end && l1 + 8 <= m->size; l1 += 8) {
		l2 = get_be(m->bytes + l1, 8) & offset;
		if (l2 && seen(map, l2 >> bits))
			return true;
		for (at = l2; at && at < l2 + (1ull << bits) && at + 8 <= m->size; at += 8) {
			word = get_be(m->bytes + at, 8);
			if (!(word & QCOW2_L2_COMPRESSED) && word & offset &&
			    seen(map, (word & offset) >> bits))
				return true;
		}
	}
	return false;
}

static void use_read_write(const uint8_t *data, size_t size, bool clean)
{
	struct memory m = memory_of(data, size);
	struct qcow2_image *img = open_image(&m, false, rnd() % 2 ? 512 : 1);
	bool failed = false, twice = clean && named_twice(&m);
	struct judged after;
	uint64_t disk, window, allowed;
	unsigned i;

	if (!img)
		goto out;
	disk = disk_size(img);
	window = disk < WINDOW ? disk : WINDOW;
	if (clean && !read_range(img, 0, window, model)) /* e.g. garbage instead of a compressed cluster */
		window = 0;
	for (i = 0; window && i < 24; i++)
		failed |= one_request(img, disk, window) != 0;
	if (clean && !failed)
		compare_model(img, window, "read back something else");
	failed |= qcow2_close(img, NULL) != 0;
	if (!clean)
		goto out;
	allowed = leaks_allowed(data, size, m.size);
	require(!judge(&m, &after), "cannot be checked after use");
	require(after.res.errors == (twice ? after.copied_missing : 0), last_error);
	require(failed || after.res.leaks <= allowed, last_error);
	img = failed ? NULL : open_image(&m, true, 1);
	if (img) {
		compare_model(img, window, "reads something else after a reopen");
		qcow2_close(img, NULL);
	}
out:
	free(m.bytes);
}

#include "fuzz_repair.h"
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct memory m = memory_of(data, size);
	struct check_result res;
	bool checked, clean;
	size_t i;

	for (rng = 0xcbf29ce484222325ull, i = 0; i < size; i++)
		rng = (rng ^ data[i]) * 0x100000001b3ull;
	rng |= 1;
	checked = !check(&m, &res);
	clean = checked && !res.errors;
	require(m.size == size && !memcmp(m.bytes, data, size), "the check changed the image");
	free(m.bytes);
#ifdef HAVE_IMAGE
	use_read_only(data, size);
	use_read_write(data, size, clean);
	if (checked && (res.errors || res.leaks || rnd() % 8 == 0))
		use_repair(data, size, &res);
#else
	(void)clean;
#endif
	return 0;
}

/* ---- mutating ---- */

/* A word of the header or of a table that it leads to. */
static size_t interesting(const uint8_t *data, size_t size)
{
	static const uint8_t tables[] = { 40, 48, 64 }; /* L1, refcount table, snapshots */
	uint64_t at = get_be(data + tables[rnd() % 3], 8);

	if (rnd() % 4 == 0)
		return rnd() % 14 * 8;
	at += rnd() % 8 * 8;
	if (rnd() % 2 && at <= size - 8) /* one level down */
		at = (get_be(data + at, 8) & 0x00fffffffffffe00ull) + rnd() % 32 * 8;
	return at <= size - 8 ? at : rnd() % 14 * 8;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
	uint64_t word;
	unsigned bits, i;
	size_t at;

	rng = seed * 0x9e3779b97f4a7c15ull | 1;
	if (size < 512 || rnd() % 4 == 0)
		return LLVMFuzzerMutate(data, size, max);
	bits = (unsigned)get_be(data + 20, 4) & 31;
	at = interesting(data, size);
	word = get_be(data + at, 8);
	switch (rnd() % 6) {
	case 0:
		word ^= 1ull << rnd() % 64;
		break;
	case 1:
		word = 0;
		break;
	case 2:
		word = get_be(data + interesting(data, size), 8);
		break;
	case 3:
		word = (rnd() % ((size >> bits) + 1) << bits) | (rnd() & (3ull << 62 | 1));
		break;
	case 4:
		word += 1ull << bits;
		break;
	default:
		word = rnd() >> rnd() % 64;
	}
	for (i = 8; i--; word >>= 8)
		data[at + i] = (uint8_t)word;
	return size;
}

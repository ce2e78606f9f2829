/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * differential.c - random workloads through the library, judged by qemu-img and by our own check.
 *
 *   differential FAMILY ROUNDS [SEED]
 *
 * Each round makes an image with qemu-img (options random within the family), opens it with the library on a
 * backend that completes host I/O in random order, keeps many random requests in flight (reads, writes, zeroes,
 * discards, flushes; overlapping ones never at the same time, as a guest's), compares every read with a shadow
 * copy, closes, and then wants: qemu-img check clean (no errors, no leaks), our check clean, and what qemu-img
 * convert reads equal to the shadow. Family "snapshot" also wants the snapshot's content unchanged. In family
 * "turns" QEMU writes between the library's turns: what it leaves (kinds of zero clusters, compressed ones,
 * snapshots taken, deleted, reverted to) is what an image that is not ours alone may hold.
 * Every other opening is with a journal, of random size, which must be empty after the close.
 * A mapping table is attached that serves nothing but checks what is published against the shadow's state.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "../shell.h"
#include "qcow2/check.h"
#include "qcow2/op.h"
#include "qcow2/qcow2.h"

#define DEPTH 24
#define MAX_REQ (96u << 10)
#define OPS 1200

static uint64_t seed;

static void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fprintf(stderr, "differential: ");
	vfprintf(stderr, fmt, ap);
	fprintf(stderr, "\n");
	va_end(ap);
	exit(1);
}

static uint64_t rnd(uint64_t n)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (seed >> 11) % n;
}

/* ---- a backend that completes in random order ---- */

struct shuffled {
	struct host_file file;
	struct host_file *inner;
	STAILQ_HEAD(, host_io) queue;
	unsigned n;
};

static void shuffled_submit(struct host_io *io)
{
	struct shuffled *s = (struct shuffled *)io->file;

	STAILQ_INSERT_TAIL(&s->queue, io, link);
	s->n++;
}

static int carry_out(struct shuffled *s, struct host_io *io);

struct sync_result {
	int res;
	bool done;
};

static void inner_done(struct host_io *io, int res)
{
	struct sync_result *r = io->owner;

	r->res = res;
	r->done = true;
}

static int carry_out(struct shuffled *s, struct host_io *io)
{
	struct sync_result r = { 0 };
	struct host_io copy = *io;
	uint32_t a = s->file.dio_align;

	if (a > 1 && (io->op == HOST_READ || io->op == HOST_WRITE) && ((io->off | io->len) % a))
		die("unaligned host I/O: off %llu len %llu", (unsigned long long)io->off, (unsigned long long)io->len);
	copy.file = s->inner;
	copy.done = inner_done;
	copy.owner = &r;
	copy.then = NULL;
	copy.progress = 0;
	s->inner->ops->submit(&copy);
	while (!r.done)
		s->inner->ops->poll(s->inner, true);
	return r.res;
}

static unsigned shuffled_poll(struct host_file *f, bool wait)
{
	struct shuffled *s = (struct shuffled *)f;
	struct host_io *io, *then;
	unsigned k, delivered = 0, budget = 1 + (unsigned)rnd(4);
	int res;

	while (s->n && delivered < budget) {
		io = STAILQ_FIRST(&s->queue);
		for (k = (unsigned)rnd(s->n); k; k--)
			io = STAILQ_NEXT(io, link);
		STAILQ_REMOVE(&s->queue, io, host_io, link);
		s->n--;
		then = io->then;
		res = carry_out(s, io);
		io->done(io, res);
		if (then && res)
			then->done(then, -ECANCELED);
		else if (then)
			then->done(then, carry_out(s, then));
		delivered++;
	}
	return delivered;
}

static int shuffled_pread(struct host_file *f, void *buf, size_t len, uint64_t off)
{
	struct shuffled *s = (struct shuffled *)f;

	return s->inner->ops->pread(s->inner, buf, len, off);
}

static int shuffled_size(struct host_file *f, uint64_t *size)
{
	struct shuffled *s = (struct shuffled *)f;

	return s->inner->ops->size(s->inner, size);
}

static void shuffled_close(struct host_file *f)
{
	struct shuffled *s = (struct shuffled *)f;

	s->inner->ops->close(s->inner);
	free(s);
}

static const struct host_ops shuffled_ops = { shuffled_submit, shuffled_poll, shuffled_pread, shuffled_size,
					      shuffled_close };
static uint32_t dio_align = 1;

static struct host_file *open_shuffled(const char *path, bool ro)
{
	struct shuffled *s = calloc(1, sizeof(*s));
	struct qcow2_error err = { "" };

	if (!s || host_open_sync(&s->inner, path, ro, &err))
		die("%s", err.text);
	s->file = *s->inner;
	s->file.ops = &shuffled_ops;
	s->file.dio_align = dio_align;
	s->file.mem_align = dio_align > 1 ? 512 : 1;
	STAILQ_INIT(&s->queue);
	return &s->file;
}

static int opener(void *ctx, const char *path, enum backing_format format, struct host_file **out,
		  struct qcow2_error *err)
{
	*out = open_shuffled(path, true);
	return 0;
}

/* ---- the image of a round ---- */

struct round {
	const char *family;
	char image[PATH_MAX];
	uint64_t size;
	uint8_t *shadow;
	uint8_t *pattern; /* per 512 bytes: busy with a write or a read */
	struct qcow2_image *img;
	unsigned cluster;
	unsigned snapshots; /* s1, s2, ... of family "turns" */
};

static void read_raw(const char *name, uint8_t *buf, uint64_t size)
{
	char path[PATH_MAX + 64];
	ssize_t n;
	uint64_t done = 0;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_RDONLY);
	memset(buf, 0, size);
	while (fd >= 0 && done < size && (n = read(fd, buf + done, size - done)) > 0)
		done += (uint64_t)n;
	if (fd < 0 || done < size)
		die("%s: short: %llu of %llu", name, (unsigned long long)done, (unsigned long long)size);
	close(fd);
}

static void random_file(const char *name, uint64_t size)
{
	SH("head -c %llu /dev/urandom > %s", (unsigned long long)size, name);
}

static bool is(const struct round *r, const char *family)
{
	return !strcmp(r->family, family);
}

/* ---- QEMU's turns ---- */

#define SNAPSHOTS 3u

static void make_for_turns(struct round *r, unsigned order)
{
	char backing[100] = "";

	r->snapshots = 0;
	if (rnd(3)) {
		random_file("base.raw", (1 + rnd(r->size / 512 * 2)) * 512);
		if (rnd(2))
			snprintf(backing, sizeof(backing), "-b base.raw -F raw");
		else
			snprintf(backing, sizeof(backing), "-b base.qcow2 -F qcow2");
		SH("qemu-img convert -f raw -O qcow2 -c -o cluster_size=%u base.raw base.qcow2",
		   512u << rnd(8));
	}
	SH("qemu-img create -q -f qcow2 %s -o "
	   "cluster_size=%u,refcount_bits=%u,lazy_refcounts=%s,compression_type=%s "
	   "t.qcow2 %llu",
	   backing, r->cluster, 1u << order, rnd(2) ? "on" : "off", rnd(2) ? "zlib" : "zstd",
	   (unsigned long long)r->size);
}

static void qemu_io_script(struct round *r)
{
	static const char *const how[] = { "write -P",	"write -P", "write -z",
					   "write -zu", "discard",  "write -c -P" };
	char path[1100];
	unsigned i, what;
	uint64_t off, len, unit;
	FILE *f;

	snprintf(path, sizeof(path), "%s/turn", dir);
	f = fopen(path, "w");
	if (!f)
		die("%s: %s", path, strerror(errno));
	for (i = 0; i < 40; i++) {
		what = (unsigned)rnd(6);
		unit = what == 5 ? r->cluster : 512;
		if (r->size < unit)
			continue;
		off = rnd(r->size / unit) * unit;
		len = what == 5 ? unit : (1 + rnd(rnd(4) ? 2 * r->cluster / 512 : 256)) * unit;
		if (len > r->size - off)
			len = r->size - off;
		if (strchr(how[what], 'P'))
			fprintf(f, "%s %u", how[what], 1 + (unsigned)rnd(255));
		else
			fprintf(f, "%s", how[what]);
		fprintf(f, " %llu %llu\n", (unsigned long long)off, (unsigned long long)len);
	}
	fclose(f);
}

/* Snapshots are a stack: the newest one may go or be reverted to, which makes room for another. False: QEMU 10.0
 * spoilt its own image, which was clean before (seed 29, its first turn, clusters of 512 bytes). */
static bool qemus_turn(struct round *r)
{
	if (r->snapshots && !rnd(3))
		SH("qemu-img snapshot -a s%u t.qcow2", r->snapshots);
	if (r->snapshots && !rnd(3)) {
		SH("qemu-img snapshot -d s%u t.qcow2", r->snapshots);
		r->snapshots--;
	}
	qemu_io_script(r);
	(void)sh("qemu-io -f qcow2 -d unmap t.qcow2 <turn >turn.out 2>&1");
	if (!sh("grep -q 'Marking image as corrupt' turn.out"))
		return false;
	/* QEMU does not write a compressed cluster over another one: EIO */
	if (!sh("grep -v 'write failed: Input/output error' turn.out | grep -q -i -E 'fail|error|invalid|must'"))
		die("qemu-io did not do all of %s/turn", dir);
	if (r->snapshots < SNAPSHOTS && rnd(3)) {
		r->snapshots++;
		SH("qemu-img snapshot -c s%u t.qcow2", r->snapshots);
		SH("qemu-img convert -f qcow2 -O raw -l s%u t.qcow2 snap.%u", r->snapshots, r->snapshots);
	}
	SH("qemu-img convert -f qcow2 -O raw t.qcow2 out.raw");
	read_raw("out.raw", r->shadow, r->size);
	return true;
}

static void make_image(struct round *r)
{
	unsigned bits = 9 + (unsigned)rnd(8), order = 4;
	uint64_t base;

	dio_align = 1;
	if (is(r, "small"))
		bits = 9 + (unsigned)rnd(2);
	if (is(r, "refcount"))
		order = (unsigned)rnd(7);
	if (is(r, "dio")) {
		dio_align = rnd(2) ? 4096 : 512;
		bits = 12 + (unsigned)rnd(6);
	}
	r->cluster = 1u << bits;
	r->size = (1 + rnd(is(r, "small") ? 6000 : 16000)) * 512;
	if (is(r, "snapshot") && !order)
		order = 1;
	if (is(r, "turns"))
		order = 4 + (unsigned)rnd(3); /* snapshots of many compressed clusters in one */
	snprintf(r->image, sizeof(r->image), "%s/t.qcow2", dir);
	sh("rm -f t.qcow2 base.* out.raw src.raw");
	if (is(r, "backing-raw") || is(r, "backing-qcow2") || (is(r, "dio") && rnd(2)) || (is(r, "v2") && rnd(2))) {
		base = (1 + rnd(r->size / 512 * 2)) * 512 - (is(r, "backing-raw") ? rnd(512) : 0);
		random_file("base.raw", base);
		if (is(r, "backing-qcow2")) {
			SH("qemu-img convert -f raw -O qcow2 -o cluster_size=%u %s base.raw base.qcow2", 512u << rnd(8),
			   rnd(2) ? "-c" : "");
			SH("qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 -o cluster_size=512 mid.qcow2");
			SH("qemu-io -f qcow2 -c 'write -P 7 0 512' mid.qcow2 >/dev/null");
			SH("qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 -o cluster_size=%u t.qcow2 %llu", r->cluster,
			   (unsigned long long)r->size);
		} else {
			SH("qemu-img create -q -f qcow2 -b base.raw -F raw -o cluster_size=%u,compat=%s t.qcow2 %llu",
			   r->cluster, is(r, "v2") ? "0.10" : "1.1", (unsigned long long)r->size);
		}
	} else if (is(r, "turns")) {
		make_for_turns(r, order);
	} else if (is(r, "compressed")) {
		random_file("src.raw", r->size / 2 & ~511ull);
		SH("yes 'compressible text' | head -c %llu >> src.raw", (unsigned long long)(r->size - (r->size / 2 & ~511ull)));
		SH("qemu-img convert -c -f raw -O qcow2 -o cluster_size=%u,compression_type=%s src.raw t.qcow2", r->cluster,
		   rnd(2) ? "zlib" : "zstd");
	} else {
		static const char *const pre[] = { "off", "metadata", "falloc", "full" };

		SH("qemu-img create -q -f qcow2 -o cluster_size=%u,refcount_bits=%u,compat=%s,preallocation=%s t.qcow2 %llu",
		   r->cluster, is(r, "v2") ? 16 : 1u << order, is(r, "v2") ? "0.10" : "1.1",
		   is(r, "preallocated") ? pre[1 + rnd(3)] : "off", (unsigned long long)r->size);
	}
	if (is(r, "snapshot")) {
		SH("qemu-io -f qcow2 -c 'write -P 17 0 %llu' t.qcow2 >/dev/null", (unsigned long long)(r->size / 3 & ~511ull) + 512);
		SH("qemu-img snapshot -c one t.qcow2");
		SH("qemu-img convert -f qcow2 -O raw -l one t.qcow2 snap-before.raw");
	}
	SH("qemu-img convert -f qcow2 -O raw t.qcow2 out.raw");
	r->shadow = malloc(r->size);
	r->pattern = calloc(r->size / 512, 1);
	read_raw("out.raw", r->shadow, r->size);
}

/* ---- the workload ---- */

struct job {
	struct qcow2_req req;
	struct round *round;
	bool busy, learn;
	uint8_t *buf;
};

static void mark(struct round *r, uint64_t off, uint64_t len, int v)
{
	memset(r->pattern + off / 512, v, len / 512);
}

static bool idle(struct round *r, uint64_t off, uint64_t len)
{
	return !memchr(r->pattern + off / 512, 1, len / 512);
}

static void job_done(struct qcow2_req *req, int res)
{
	struct job *j = req->owner;
	struct round *r = j->round;

	if (res)
		die("op %d off %llu len %llu: %s", req->op, (unsigned long long)req->off, (unsigned long long)req->len,
		    strerror(-res));
	if (req->op == QCOW2_READ && memcmp(j->buf, r->shadow + req->off, req->len))
		die("read of %llu+%llu differs from what was written", (unsigned long long)req->off,
		    (unsigned long long)req->len);
	if (req->op != QCOW2_FLUSH)
		mark(r, req->off, req->len, 0);
	j->busy = false;
}

static void fill(uint8_t *buf, uint64_t len)
{
	uint64_t i, v = rnd(1ull << 50);

	for (i = 0; i < len; i += 8)
		memcpy(buf + i, &(uint64_t){ v + i * 0x9e37 }, 8);
}

/* After a discard the old content or zeroes may be there: learn which once it is done. */
static void discard_done(struct qcow2_req *req, int res)
{
	struct job *j = req->owner;

	if (res)
		die("discard: %s", strerror(-res));
	req->op = QCOW2_READ;
	req->buf = j->buf;
	req->done = job_done;
	j->learn = true; /* its range stays taken until then */
	j->busy = false;
}

static bool start_job(struct round *r, struct job *j)
{
	uint64_t max = r->size / 512, off = rnd(max) * 512, len = (1 + rnd(rnd(4) ? 16 : MAX_REQ / 512)) * 512;
	unsigned what = (unsigned)rnd(20);

	if (len > r->size - off)
		len = r->size - off;
	if (!idle(r, off, len))
		return false;
	j->req = (struct qcow2_req){ .off = off, .len = len, .buf = j->buf, .owner = j, .done = job_done };
	if (what < 9) {
		j->req.op = QCOW2_WRITE;
		fill(j->buf, len);
		memcpy(r->shadow + off, j->buf, len);
	} else if (what < 15) {
		j->req.op = QCOW2_READ;
	} else if (what < 18) {
		j->req.op = QCOW2_WRITE_ZEROES;
		j->req.flags = rnd(2) ? QCOW2_REQ_NO_UNMAP : 0;
		memset(r->shadow + off, 0, len);
	} else if (what < 19) {
		j->req.op = QCOW2_FLUSH;
	} else {
		j->req.op = QCOW2_DISCARD;
		j->req.done = discard_done;
	}
	if (j->req.op != QCOW2_FLUSH)
		mark(r, off, len, 1);
	j->busy = true;
	if (qcow2_submit(r->img, &j->req))
		die("submit");
	return true;
}

/* A discard changed content in a way only a read can tell: put it into the shadow. */
static void learn_discard(struct round *r, struct job *j)
{
	uint64_t i;

	j->learn = false;
	if (qcow2_sync(r->img, QCOW2_READ, j->buf, j->req.len, j->req.off))
		die("read after discard");
	for (i = 0; i < j->req.len; i += 512) {
		static const uint8_t zero[512];

		if (memcmp(j->buf + i, r->shadow + j->req.off + i, 512) && memcmp(j->buf + i, zero, 512))
			die("discard left foreign data at %llu", (unsigned long long)(j->req.off + i));
	}
	memcpy(r->shadow + j->req.off, j->buf, j->req.len);
	mark(r, j->req.off, j->req.len, 0);
}

static void workload(struct round *r)
{
	struct job jobs[DEPTH] = { 0 };
	unsigned i, started = 0, active;

	for (i = 0; i < DEPTH; i++) {
		jobs[i].buf = buf_alloc(MAX_REQ);
		jobs[i].round = r;
	}
	do {
		for (i = 0, active = 0; i < DEPTH; i++) {
			if (!jobs[i].busy && jobs[i].learn)
				learn_discard(r, &jobs[i]);
			if (!jobs[i].busy && started < OPS && start_job(r, &jobs[i]))
				started++;
			active += jobs[i].busy || jobs[i].learn;
		}
		qcow2_run(r->img, true);
		if (!rnd(40))
			qcow2_commit_start(r->img);
	} while (active || started < OPS); /* a job that ended as a discard is active until learnt */
	for (i = 0; i < DEPTH; i++)
		buf_free(jobs[i].buf);
}

/* ---- the judges ---- */

static void report(void *ctx, bool error, const char *text)
{
	fprintf(stderr, "  %s: %s\n", error ? "error" : "leak", text);
}

static void judge(struct round *r)
{
	struct check_callbacks cb = { .finding = report };
	struct qcow2_error err = { "" };
	struct check_result res;
	struct host_file *f;
	uint8_t *got = malloc(r->size);
	uint64_t i;

	if (host_open_sync(&f, r->image, true, &err) || qcow2_check(f, &cb, &res, &err))
		die("check: %s", err.text);
	f->ops->close(f);
	if (res.errors || res.leaks)
		die("our check: %llu errors, %llu leaks", (unsigned long long)res.errors, (unsigned long long)res.leaks);
	SH("qemu-img check -q t.qcow2");
	SH("qemu-img convert -f qcow2 -O raw t.qcow2 out.raw");
	read_raw("out.raw", got, r->size);
	for (i = 0; i < r->size; i += 512)
		if (memcmp(got + i, r->shadow + i, 512))
			die("qemu-img reads something else at %llu", (unsigned long long)i);
	if (is(r, "snapshot")) {
		SH("qemu-img convert -f qcow2 -O raw -l one t.qcow2 snap-after.raw");
		SH("cmp snap-before.raw snap-after.raw");
	}
	for (i = 1; i <= r->snapshots; i++) {
		SH("qemu-img convert -f qcow2 -O raw -l s%u t.qcow2 snap-after.raw", (unsigned)i);
		SH("cmp snap.%u snap-after.raw", (unsigned)i);
	}
	free(got);
}

static void one_round(struct round *r)
{
	struct qcow2_opener o = { .open = opener };
	struct qcow2_options opt = { .opener = &o, .cache_bytes = rnd(2) ? 1 : 0 };
	struct qcow2_error err = { "" };
	struct qcow2_journal journal = { .boot_id = "any", .dev = 5, .ino = 6 };
	unsigned again, turns = is(r, "turns") ? 3 : 2;

	make_image(r);
	journal.size = rnd(2) ? qcow2_journal_size() : 6 * 24 * (r->cluster / 4 + 70 + rnd(2000)) + 120;
	if (r->cluster > 4096 && journal.size < 6 * 24 * 1200)
		journal.size = 6 * 24 * 1200;
	journal.mem = malloc(journal.size);
	for (again = 0; again < turns; again++) {
		err.text[0] = 0;
		if (is(r, "turns") && !qemus_turn(r))
			break;
		opt.journal = rnd(2) ? &journal : NULL;
		qcow2_journal_format(&journal);
		if (qcow2_open(&r->img, open_shuffled(r->image, false), &opt, &err))
			die("open: %s", err.text);
		workload(r);
		if (qcow2_close(r->img, &err))
			die("close: %s", err.text);
		if (qcow2_journal_live(&journal))
			die("the journal is not empty after the close");
		judge(r);
	}
	free(journal.mem);
	free(r->shadow);
	free(r->pattern);
}

int main(int argc, char **argv)
{
	struct round r = { 0 };
	uint64_t first = argc > 3 ? strtoull(argv[3], NULL, 0) : 1;
	int i, rounds = argc > 2 ? atoi(argv[2]) : 1;
	const char *tmp = getenv("TMPDIR");

	if (argc < 2)
		die("usage: differential FAMILY ROUNDS [SEED]");
	if (system("qemu-img --version >/dev/null 2>&1"))
		return 77;
	snprintf(dir, sizeof(dir), "%s/differential.XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(dir))
		die("%s: %s", dir, strerror(errno));
	for (i = 0; i < rounds; i++) {
		seed = 0x9e3779b97f4a7c15ull * (first + (uint64_t)i) + (uint64_t)argv[1][0];
		r.family = argv[1];
		fprintf(stderr, "%s seed %llu\n", argv[1], (unsigned long long)(first + (uint64_t)i));
		one_round(&r);
	}
	sh("rm -rf %s", dir);
	return 0;
}

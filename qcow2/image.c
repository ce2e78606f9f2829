/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * image.c - opening and closing an image, and its mode.
 *
 * The mode is a ladder that is only climbed down: rw -> ro (the image contradicts itself, or an fsync failed)
 * -> failed. It changes in image_set_mode() only. Opening writes nothing; a writable image is taken only if
 * nothing in it has to be repaired first, and with every cluster of its own tables known to the metamap.
 * Closing commits until nothing is left to commit or to free.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "alloc.h"
#include "cache.h"
#include "commit.h"
#include "compress.h"
#include "journal.h"
#include "map.h"
#include "metamap.h"
#include "publish.h"
#include "refcount.h"
#include "request.h"

#define HEADER_PROBE 4096u
#define SCAN_CHUNK (256u << 10)
#define CLOSE_TRIES 10000u
#define CLOSE_PAUSE_US 1000

static enum step mode_noop(struct op *op)
{
	return STEP_DONE;
}

/* Withdraw everything without waiting: what is in flight may still end. */
static void withdraw_all(struct qcow2_image *img)
{
	struct op *op = &img->mode_op;

	if (!img->table.withdraw || op->rq) /* once is enough: nothing writable is published after it */
		return;
	op_init(op, img->run);
	op_then(op, mode_noop);
	op_get(op);
	(void)withdraw(img, 0, img->geo.size, op);
	op_put(op, 0);
}

void image_set_mode(struct qcow2_image *img, enum image_mode mode)
{
	if (mode <= img->mode)
		return;
	withdraw_all(img);
	img->mode = mode;
}

void image_make_room(struct qcow2_image *img)
{
	for (unsigned i = 0; i < img->chain_len; i++)
		if (img->chain[i].img)
			cache_give(img->chain[i].img);
}

int image_corrupt(struct qcow2_image *img)
{
	if (img->mode == MODE_RW) {
		commit_mark_corrupt(img);
		image_set_mode(img, MODE_RO);
	}
	return -EUCLEAN;
}

/* ---- opening one file ---- */

static int read_header(struct qcow2_image *img, uint64_t file_size, void **first, struct qcow2_error *err)
{
	struct host_file *f = img->file;
	size_t want = HEADER_PROBE;
	int ret;

	*first = buf_alloc(1u << QCOW2_MAX_CLUSTER_BITS);
	if (!*first)
		return qcow2_fail(err, -ENOMEM, "%s: out of memory", f->path);
	if (want > file_size)
		want = file_size;
	ret = f->ops->pread(f, *first, want, 0);
	if (!ret) {
		want = header_peek(*first, want, f->path, err);
		if (!want)
			return -EINVAL;
		if (want > file_size)
			want = file_size;
		ret = f->ops->pread(f, *first, want, 0);
	}
	if (ret)
		return qcow2_fail(err, ret, "%s: cannot read its header: %s", f->path, strerror(-ret));
	return header_parse(&img->hdr, *first, want, file_size, f->path, err);
}

/* Walk a table of 8-byte words on disk; fn gets every non-zero word. */
static int scan_table(struct qcow2_image *img, uint64_t off, uint64_t words,
		      int (*fn)(struct qcow2_image *img, uint64_t word), struct qcow2_error *err)
{
	struct host_file *f = img->file;
	void *buf = buf_alloc(SCAN_CHUNK);
	uint64_t i, n;
	int ret = buf ? 0 : -ENOMEM;

	for (; words && !ret; words -= n, off += n * 8) {
		n = min_u64(words, SCAN_CHUNK / 8);
		ret = f->ops->pread(f, buf, n * 8, off);
		if (ret)
			qcow2_fail(err, ret, "%s: cannot read its tables: %s", f->path, strerror(-ret));
		for (i = 0; i < n && !ret; i++)
			if (table_get(buf, (uint32_t)i))
				ret = fn(img, table_get(buf, (uint32_t)i));
	}
	buf_free(buf);
	return ret;
}

static int note_meta(struct qcow2_image *img, uint64_t off, uint64_t bytes, enum meta_type type)
{
	return metamap_add(img->meta, cluster_of(&img->geo, off), clusters_for(&img->geo, bytes), type);
}

static int note_l2(struct qcow2_image *img, uint64_t word)
{
	uint64_t l2;
	bool copied;

	if (!l1_decode(&img->geo, word, &l2, &copied) || l2 >= img->file_end)
		return -EUCLEAN;
	return l2 ? note_meta(img, l2, img->geo.cluster_size, META_L2) : 0;
}

static int note_rb(struct qcow2_image *img, uint64_t word)
{
	uint64_t rb;

	if (!rt_decode(&img->geo, word, &rb) || !rb || rb >= img->file_end)
		return -EUCLEAN;
	return note_meta(img, rb, img->geo.cluster_size, META_RB);
}

/* The snapshot table and the L1 tables of the snapshots. */
static int note_snapshots(struct qcow2_image *img, struct qcow2_error *err)
{
	const struct qcow2_header *h = &img->hdr;
	struct snapshot_info *snap = NULL;
	uint64_t size = 0;
	size_t len = 64u << 10, used = 0;
	void *buf = NULL;
	uint32_t i;
	int ret;

	if (!h->nb_snapshots)
		return 0;
	ret = img->file->ops->size(img->file, &size);
	do {
		buf_free(buf);
		buf = buf_alloc(len);
		if (!ret)
			ret = buf ? img->file->ops->pread(img->file, buf, len, h->snapshots_offset) : -ENOMEM;
		if (!ret)
			ret = snapshots_parse(h, buf, len, size, &snap, &used, img->file->path, err);
		len *= 4;
	} while (ret == -EAGAIN && len <= 4ull * QCOW2_MAX_SNAPSHOT_BYTES && !(ret = 0));
	if (!ret)
		ret = note_meta(img, h->snapshots_offset, used, META_SNAPSHOT);
	for (i = 0; !ret && i < h->nb_snapshots; i++)
		if (snap[i].l1_entries)
			ret = note_meta(img, snap[i].l1_offset, (uint64_t)snap[i].l1_entries * 8, META_SNAPSHOT);
	free(snap);
	buf_free(buf);
	return ret;
}

/* Learn where all metadata of the active image lies. */
static int note_all(struct qcow2_image *img, struct qcow2_error *err)
{
	const struct qcow2_header *h = &img->hdr;
	uint64_t rt_bytes = (uint64_t)h->rt_clusters << img->geo.cluster_bits;
	int ret = note_meta(img, 0, img->geo.cluster_size, META_HEADER);

	if (!ret && h->l1_entries)
		ret = note_meta(img, h->l1_offset, (uint64_t)h->l1_entries * 8, META_L1);
	if (!ret)
		ret = note_meta(img, h->rt_offset, rt_bytes, META_RT);
	if (!ret)
		ret = scan_table(img, h->rt_offset, rt_bytes / 8, note_rb, err);
	if (!ret)
		ret = scan_table(img, h->l1_offset, h->l1_entries, note_l2, err);
	if (!ret)
		ret = note_snapshots(img, err);
	if (ret == -EEXIST || ret == -EUCLEAN)
		ret = qcow2_fail(err, -EUCLEAN,
				 "%s: corrupt: its metadata tables overlap or lie outside the file; "
				 "try `ublk-qcow2 check --repair=all`, or attach it with --read-only",
				 img->file->path);
	else if (ret)
		qcow2_fail(err, ret, "%s: cannot load its metadata: %s", img->file->path, strerror(-ret));
	return ret;
}

static int open_writable(struct qcow2_image *img, const void *first, uint64_t file_size, struct qcow2_error *err)
{
	int ret;

	img->meta = metamap_new();
	ret = img->meta ? note_all(img, err) : -ENOMEM;
	if (!ret)
		ret = alloc_new(img, file_size);
	if (!ret)
		ret = refcount_new(img);
	if (!ret)
		ret = map_new(img);
	if (!ret)
		ret = commit_new(img, first);
	return ret;
}

int image_open_one(struct qcow2_image **out, struct host_file *file, const struct qcow2_options *opt,
		   struct runq *run, struct qcow2_error *err)
{
	struct qcow2_image *img = calloc(1, sizeof(*img));
	uint64_t file_size = 0;
	void *first = NULL;
	int ret;

	if (!img) {
		qcow2_fail(err, -ENOMEM, "%s: out of memory", file->path);
		file->ops->close(file);
		return -ENOMEM;
	}
	img->file = file;
	img->mode = opt->read_only ? MODE_RO : MODE_RW;
	img->discard = opt->discard;
	runq_init(&img->rq);
	img->run = run ? run : &img->rq;
	TAILQ_INIT(&img->requests);
	ret = file->ops->size(file, &file_size);
	if (ret)
		qcow2_fail(err, ret, "%s: cannot tell its size: %s", file->path, strerror(-ret));
	if (!ret)
		ret = read_header(img, file_size, &first, err);
	if (!ret)
		ret = header_gate(&img->hdr, opt->read_only, file->path, err);
	if (!ret) {
		img->geo = img->hdr.geo;
		img->file_end = cluster_up(&img->geo, file_size);
		ret = cache_new(img, opt->cache_bytes);
	}
	if (!ret)
		ret = ranges_new(img);
	if (!ret && !opt->read_only)
		ret = open_writable(img, first, file_size, err);
	buf_free(first);
	if (ret) {
		qcow2_fail(err, ret, "%s: cannot open: %s", file->path, strerror(-ret));
		image_free_one(img);
		return ret;
	}
	*out = img;
	return 0;
}

void image_free_one(struct qcow2_image *img)
{
	commit_free(img);
	journal_free(img);
	overlay_free(img->overlay);
	map_free(img);
	refcount_free(img);
	alloc_free(img);
	metamap_free(img->meta);
	ranges_free(img);
	cache_free(img);
	decompressor_free(img->decomp);
	img->file->ops->close(img->file);
	free(img);
}

/* ---- the public face ---- */

/* Go on where a killed process was, after its journal was applied. */
static int resume(struct qcow2_image *img, const struct qcow2_journal *mem, const struct cluster_set *lower,
		  struct qcow2_error *err)
{
	int ret = journal_attach(img, mem, err);
	size_t i;

	if (ret)
		return ret;
	for (i = lower->start; i < lower->n; i++)
		if (lower->v[i].n)
			commit_restore_lower(img, lower->v[i].first, lower->v[i].n);
	if (commit_lower_pending(img))
		commit_start(img);
	return 0;
}

/* Open the chain, after its journal was applied or, if an fsync had failed, with *over. */
static int open_chain(struct qcow2_image **out, struct host_file *file, const struct qcow2_options *opt,
		      const struct cluster_set *lower, struct overlay **over, struct qcow2_error *err)
{
	struct qcow2_options o = *opt;
	struct qcow2_image *img;
	int ret;

	if (*over) { /* never written again */
		o.read_only = true;
		o.journal = NULL;
	}
	ret = image_open_one(&img, file, &o, NULL, err);
	if (ret)
		return ret;
	img->lost = *over;
	img->overlay = *over;
	*over = NULL;
	ret = chain_open(img, &o, err);
	if (!ret && o.journal)
		ret = resume(img, o.journal, lower, err);
	if (ret) {
		chain_close(img);
		image_free_one(img);
		return ret;
	}
	if (o.table)
		img->table = *o.table;
	*out = img;
	return 0;
}

int qcow2_open(struct qcow2_image **out, struct host_file *file, const struct qcow2_options *opt,
	       struct qcow2_error *err)
{
	struct cluster_set lower = { 0 };
	struct overlay *over = NULL;
	int ret = 0;

	if (opt->journal)
		ret = opt->read_only ?
			      qcow2_fail(err, -EINVAL, "%s: read-only, but with a journal", file->path) :
			      journal_replay(file, opt->journal, &lower, &over, err);
	if (ret) {
		file->ops->close(file);
		return ret;
	}
	ret = open_chain(out, file, opt, &lower, &over, err);
	overlay_free(over);
	cluster_set_clear(&lower);
	return ret;
}

void qcow2_get_info(const struct qcow2_image *img, struct qcow2_info *info)
{
	static const char *const mode[] = { "rw", "ro", "failed" };

	*info = (struct qcow2_info){
		.size = img->geo.size,
		.cluster_size = img->geo.cluster_size,
		.version = img->geo.version,
		.refcount_bits = 1u << img->geo.refcount_order,
		.chain_length = img->chain_len,
		.read_only = img->mode != MODE_RW,
		.mode = mode[img->mode],
		.compression = img->hdr.compression == QCOW2_COMPRESSION_ZSTD ? "zstd" : "zlib",
	};
}

struct host_file *qcow2_chain_file(struct qcow2_image *img, unsigned index)
{
	return index < img->chain_len ? img->chain[index].file : NULL;
}

uint32_t qcow2_chain_block_size(const struct qcow2_image *img, unsigned index)
{
	const struct qcow2_image *link = img->chain[index].img;

	return link ? link->geo.block_size : 0;
}

static bool busy(const struct qcow2_image *img)
{
	return !TAILQ_EMPTY(&img->requests) || commit_running(img) || !TAILQ_EMPTY(&img->run->ready);
}

bool qcow2_run(struct qcow2_image *img, bool wait)
{
	bool ready = !TAILQ_EMPTY(&img->run->ready); /* then the caller may have got what it waits for */
	unsigned i;

	runq_run(img->run);
	for (i = 0; i < img->chain_len; i++)
		img->chain[i].file->ops->poll(img->chain[i].file, wait && !ready && !i);
	runq_run(img->run);
	return busy(img);
}

void qcow2_commit_start(struct qcow2_image *img)
{
	commit_start(img);
}

bool qcow2_dirty(const struct qcow2_image *img)
{
	return commit_dirty(img);
}

static void sync_done(struct qcow2_req *req, int res)
{
	*(int *)req->owner = res;
}

int qcow2_sync(struct qcow2_image *img, enum qcow2_req_op op, void *buf, uint64_t len, uint64_t off)
{
	int res = 1, ret;
	struct qcow2_req req = { .op = op, .off = off, .len = len, .buf = buf, .done = sync_done, .owner = &res };

	ret = qcow2_submit(img, &req);
	while (!ret && res == 1)
		qcow2_run(img, true);
	return ret ? ret : res;
}

/* Something to wait for when nobody else is there. */
struct awaited {
	struct op op;
	bool done;
	int err;
};

static enum step awaited_done(struct op *op)
{
	struct awaited *a = (struct awaited *)((char *)op - offsetof(struct awaited, op));

	a->err = op->err;
	a->done = true;
	return STEP_DONE;
}

static void await_withdraw(struct qcow2_image *img)
{
	struct awaited a = { .done = false };

	op_init(&a.op, img->run);
	op_then(&a.op, awaited_done);
	op_get(&a.op);
	(void)withdraw(img, 0, img->geo.size, &a.op);
	op_put(&a.op, 0);
	while (!a.done)
		qcow2_run(img, true);
}

/* One commit, and what is lowered after it. */
static int await_commit(struct qcow2_image *img)
{
	struct awaited a = { .done = false };

	op_init(&a.op, img->run);
	op_then(&a.op, awaited_done);
	commit_wait(img, &a.op);
	while (!a.done || commit_running(img))
		qcow2_run(img, true);
	return a.err;
}

/* At least one commit, so that everything written is durable; a corrupt image (mode ro) too keeps what was
 * written before that was noticed. If memory is short, it is being made. */
static int commit_all(struct qcow2_image *img)
{
	unsigned tries = 0;
	int ret = 0;

	while (img->commit && !img->lost && img->mode != MODE_FAILED) {
		bool again;

		ret = await_commit(img);
		again = commit_scarce(img) && tries++ < CLOSE_TRIES;
		if (!again && (ret || (!commit_dirty(img) && !commit_lower_pending(img))))
			break;
		commit_closing(img, !again);
		if (again)
			usleep(CLOSE_PAUSE_US);
	}
	return ret ? ret : img->lost ? -EIO : 0;
}

int qcow2_close(struct qcow2_image *img, struct qcow2_error *err)
{
	int ret;

	await_withdraw(img);
	ret = commit_all(img);
	if (ret)
		qcow2_fail(err, ret, "%s: closing: %s: changes since the last flush may be lost", img->file->path,
			   strerror(-ret));
	chain_close(img);
	image_free_one(img);
	return ret;
}

/* ---- looking ---- */

struct looker {
	struct op op;
	struct qcow2_image *img;
	uint64_t guest;
	struct chain_extent e;
	int ret; /* 1 = not done */
};

static enum step look(struct op *op)
{
	struct looker *l = (struct looker *)((char *)op - offsetof(struct looker, op));
	int ret = op->err;

	if (!ret)
		ret = chain_lookup(l->img, l->guest, l->img->geo.size - l->guest, &l->e, op);
	if (ret == -EWOULDBLOCK)
		return STEP_NEXT;
	l->ret = ret;
	return STEP_DONE;
}

int qcow2_map(struct qcow2_image *img, uint64_t guest, struct qcow2_map_extent *out)
{
	struct looker l = { .img = img, .guest = guest, .ret = 1 };

	if (guest >= img->geo.size)
		return -EINVAL;
	op_init(&l.op, img->run);
	op_then(&l.op, look);
	op_start(&l.op);
	while (l.ret == 1)
		qcow2_run(img, true);
	*out = (struct qcow2_map_extent){
		.guest = guest,
		.len = l.e.len,
		.data = l.e.kind != EXT_ZERO,
		.zero = l.e.kind == EXT_ZERO,
		.present = !l.e.absent,
		.compressed = l.e.kind == EXT_COMPRESSED,
		.depth = l.e.depth,
		.has_host = l.e.kind == EXT_DATA || (l.e.kind == EXT_ZERO && l.e.host),
		.host = l.e.host,
	};
	return l.ret;
}

void qcow2_get_stats(const struct qcow2_image *img, struct qcow2_stats *st)
{
	*st = img->stats;
}

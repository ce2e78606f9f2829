// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * repair.c - rounds of check and repair, and the order of what is written.
 *
 * A round: check everything (check.c); change what can be changed, each step durable before the next:
 *   1. unknown autoclear bits cleared, before the first write at all
 *   2. COPIED cleared where the refcount will not be one: from then on nobody writes in place there
 *   3. refcounts raised, or all of them written anew
 *   4. refcounts lowered
 *   5. COPIED set where the refcount now is one
 * The next round checks again; a round without a change is the last. When no error is left, the dirty and
 * the corrupt bit are cleared, last of all.
 *
 * Refcounts go down only in a round that found nothing which may hide references: no entry that cannot be
 * right, no metadata that shares its place. So what could only be reached through the damage stays leaked.
 *
 * A crash between two steps leaves too high a refcount, or COPIED not set where it might be, beside what is
 * not repaired yet; the next repair goes on from there.
 */
#include "repair_impl.h"
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ROUNDS 8
#define HEADER_BYTES 512u /* all that is patched; never torn */

/* ---- writing ---- */

struct wait {
	bool done;
	int res;
};

static void io_done(struct host_io *io, int res)
{
	*(struct wait *)io->owner = (struct wait){ true, res };
}

static int submit(struct repair *r, enum host_op op, const void *buf, uint64_t len, uint64_t off)
{
	struct wait w = { 0 };
	struct host_io io = { .op = op,
			      .file = r->file,
			      .buf = (void *)(uintptr_t)buf,
			      .len = len,
			      .off = off,
			      .done = io_done,
			      .owner = &w };

	r->file->ops->submit(&io);
	while (!w.done)
		r->file->ops->poll(r->file, true);
	return w.res;
}

static int write_plain(struct repair *r, const void *buf, uint64_t len, uint64_t off, const char *what)
{
	int ret = submit(r, HOST_WRITE, buf, len, off);

	r->unsynced = true;
	return ret ? qcow2_fail(r->err, ret, "%s: writing %s at 0x%" PRIx64 ": %s", r->c->name, what, off,
				strerror(-ret))
		   : 0;
}

int repair_sync(struct repair *r)
{
	int ret = r->unsynced ? submit(r, HOST_FSYNC, NULL, 0, 0) : 0;

	r->unsynced = false;
	return ret ? qcow2_fail(r->err, ret, "%s: cannot be synced: %s", r->c->name, strerror(-ret)) : 0;
}

/* Change the header by one write, which the syncs before and after order. */
static int patch_header(struct repair *r, void (*patch)(struct repair *r, void *block, const void *arg),
			const void *arg)
{
	uint64_t block[HEADER_BYTES / 8];
	int ret = repair_sync(r);

	if (!ret)
		ret = check_read(r->c, block, sizeof(block), 0, "the header");
	if (ret)
		return ret;
	patch(r, block, arg);
	ret = write_plain(r, block, sizeof(block), 0, "the header");
	return ret ? ret : repair_sync(r);
}

struct features {
	uint64_t incompatible, autoclear;
};

static void patch_features(struct repair *r, void *block, const void *arg)
{
	const struct features *f = arg;

	header_set_features(block, f->incompatible, f->autoclear);
}

struct reftable {
	uint64_t off;
	uint32_t clusters;
};

static void patch_reftable(struct repair *r, void *block, const void *arg)
{
	const struct reftable *t = arg;

	header_set_reftable(block, t->off, t->clusters);
}

int repair_set_reftable(struct repair *r, uint64_t off, uint32_t clusters)
{
	const struct reftable t = { off, clusters };

	return patch_header(r, patch_reftable, &t);
}

/* Whoever set a bit we do not know wants to hear that somebody else wrote. Bitmaps stay true: no guest data
 * changes. */
static int clear_autoclear(struct repair *r)
{
	struct features f = { r->c->hdr.incompatible, r->c->hdr.autoclear & QCOW2_AUTOCLEAR_BITMAPS };

	r->autoclear_done = true;
	return f.autoclear == r->c->hdr.autoclear ? 0 : patch_header(r, patch_features, &f);
}

int repair_write(struct repair *r, const void *buf, uint64_t len, uint64_t off, const char *what)
{
	int ret = r->autoclear_done ? 0 : clear_autoclear(r);

	return ret ? ret : write_plain(r, buf, len, off, what);
}

int repair_leave(struct repair *r, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(r->res->left, sizeof(r->res->left), fmt, ap);
	va_end(ap);
	return 0;
}

/* ---- a round ---- */

static void start(struct repair *r, const struct check_callbacks *cb, struct check_result *res, bool spare)
{
	*r->c = (struct check){
		.file = r->file, .cb = cb, .res = res, .err = r->err, .spare_refcounts = spare
	};
}

/* Steps 4 and 5; 2 and 3, too, if anything has to go up. */
static int in_place(struct repair *r, bool raise)
{
	int ret = raise ? repair_copied(r, false) : 0;

	if (!ret)
		ret = repair_sync(r);
	if (!ret && raise)
		ret = repair_refcounts(r, true);
	if (!ret)
		ret = repair_sync(r);
	if (!ret)
		ret = repair_refcounts(r, false);
	if (!ret)
		ret = repair_sync(r);
	if (!ret)
		ret = repair_copied(r, true);
	return ret ? ret : repair_sync(r);
}

static bool may_hide_references(const struct check *c)
{
	return c->blind || c->overlaps;
}

static void forget_moves(struct repair *r)
{
	free(r->moves.list);
	r->moves = (struct moves){ 0 };
}

/* Count again without the old refcount table and blocks; then as in_place(), or else data moves. */
static int anew(struct repair *r, const struct check_callbacks *cb)
{
	struct check_result counted;
	bool done = false;
	int ret;

	check_end(r->c);
	start(r, cb, &counted, true);
	ret = check_run(r->c);
	if (ret)
		return ret;
	r->keep = may_hide_references(r->c);
	ret = repair_plan_moves(r);
	if (!ret)
		ret = repair_find_stuck(r);
	if (!ret)
		ret = repair_rebuild(r, &done);
	if (!ret && !done && r->moves.any) { /* perhaps without */
		r->no_moves = true;
		r->fixes++;
	}
	if (!ret && done)
		ret = r->moves.any ? repair_move_entries(r) : repair_copied(r, true);
	forget_moves(r);
	return ret ? ret : repair_sync(r);
}

static int fix_leaks(struct repair *r)
{
	const struct check *c = r->c;

	if (c->res->errors > c->copied_missing || may_hide_references(c))
		return repair_leave(r, "nothing was freed: the errors may hide what needs those clusters");
	return in_place(r, false);
}

static int fix_all(struct repair *r, const struct check_callbacks *cb)
{
	bool planned;
	int ret;

	r->keep = may_hide_references(r->c);
	ret = repair_zeroes(r);
	if (!ret)
		ret = repair_sync(r);
	if (ret || r->fixes) /* then other references count */
		return ret;
	ret = repair_plan_moves(r);
	planned = r->moves.any;
	forget_moves(r);
	if (ret)
		return ret;
	if (planned || r->c->refcounts_bad)
		return anew(r, cb);
	ret = repair_find_stuck(r);
	return ret ? ret : in_place(r, true);
}

/* One round. *more: something was changed, so check again. */
static int one_round(struct repair *r, enum qcow2_repair what, const struct check_callbacks *cb, bool last,
		     bool *more)
{
	struct check_callbacks quiet = { .progress = cb ? cb->progress : NULL, .ctx = cb ? cb->ctx : NULL };
	struct check_result now;
	int ret;

	*more = false;
	r->fixes = 0;
	start(r, cb && cb->finding ? cb : &quiet, &now, false);
	ret = check_run(r->c);
	if (ret)
		return ret;
	r->res->after = now;
	r->res->left[0] = '\0';
	r->keep = false;
	if (last || (!now.errors && !now.leaks))
		return 0;
	ret = what == QCOW2_REPAIR_LEAKS ? fix_leaks(r) : fix_all(r, &quiet);
	if (!ret && !r->res->left[0] && now.leaks && r->keep)
		repair_leave(r, "leaked clusters were not freed: the errors may hide what needs them");
	else if (!ret && !r->res->left[0] && now.errors)
		repair_leave(r, "what should be there instead is not known");
	*more = r->fixes > 0;
	return ret;
}

/* There is no error left. */
static int clear_bits(struct repair *r)
{
	const uint64_t wrong = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;
	const struct qcow2_header *h = &r->c->hdr;
	struct features f = { h->incompatible & ~wrong, h->autoclear & QCOW2_AUTOCLEAR_BITMAPS };
	int ret = 0;

	if (h->incompatible & wrong)
		ret = patch_header(r, patch_features, &f);
	if (ret)
		return ret;
	r->res->dirty_cleared = h->incompatible & QCOW2_INCOMPAT_DIRTY;
	r->res->corrupt_cleared = h->incompatible & QCOW2_INCOMPAT_CORRUPT;
	return 0;
}

int qcow2_repair(struct host_file *file, enum qcow2_repair what, const struct check_callbacks *cb,
		 struct qcow2_repair_result *res, struct qcow2_error *err)
{
	struct check_callbacks quiet = { .progress = cb ? cb->progress : NULL, .ctx = cb ? cb->ctx : NULL };
	struct check *c = calloc(1, sizeof(*c));
	struct repair r = { .file = file, .res = res, .err = err, .c = c };
	bool more = true;
	unsigned round;
	int ret = 0;

	memset(res, 0, sizeof(*res));
	if (!c)
		return qcow2_fail(err, -ENOMEM, "%s: out of memory", file->path);
	for (round = 0; more; round++) {
		check_end(c);
		ret = one_round(&r, what, round ? &quiet : cb, round == MAX_ROUNDS, &more);
		if (!round)
			res->before = res->after;
		if (ret)
			break;
	}
	if (!ret && !res->after.errors)
		ret = clear_bits(&r);
	check_end(c);
	free(c);
	return ret;
}

int qcow2_repair_before_open(struct host_file *file, bool leaks, struct qcow2_repair_result *res,
			     struct qcow2_error *err)
{
	struct check c = { .file = file };
	bool dirty;
	int ret;

	memset(res, 0, sizeof(*res));
	if (check_header(&c))
		return 0; /* the open says why */
	dirty = c.hdr.incompatible & QCOW2_INCOMPAT_DIRTY;
	c.hdr.incompatible &= ~QCOW2_INCOMPAT_DIRTY;
	if (header_gate(&c.hdr, false, file->path, NULL) || (!dirty && !leaks))
		return 0;
	ret = qcow2_repair(file, dirty ? QCOW2_REPAIR_ALL : QCOW2_REPAIR_LEAKS, NULL, res, err);
	if (ret || !res->after.errors)
		return ret;
	return qcow2_fail(err, -EUCLEAN,
			  "%s: %" PRIu64
			  " errors %s: attach it with --read-only and save what it holds, or try "
			  "`ublk-qcow2 check --repair=all`",
			  c.name, res->after.errors,
			  dirty ? "are left after the repair that its dirty bit asks for"
				: "keep leaked clusters from being freed");
}

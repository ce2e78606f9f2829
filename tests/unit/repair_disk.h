/* SPDX-License-Identifier: GPL-2.0-or-later */
/* repair_disk.h - repairing images on the disks of memfile.h, and every state that a crash could leave. */
#ifndef TESTS_REPAIR_DISK_H
#define TESTS_REPAIR_DISK_H

#include "memimg.h"
#include "repair_judge.h"

/* ---- between files and disks ---- */

static inline struct disk *disk_load(const char *name)
{
	struct disk *d = disk_new();
	unsigned char *bytes;
	uint64_t size;
	size_t len;

	bytes = slurp(name, 0, &len, &size);
	disk_put(d, 0, bytes, len);
	free(bytes);
	return d;
}

static inline void disk_store(struct disk *d, const char *name)
{
	unsigned char *bytes = malloc(d->size);
	struct img m = { bytes, d->size, 0 };

	assert_non_null(bytes);
	disk_get(d, 0, bytes, d->size);
	img_store(&m, name);
	free(bytes);
}

/* ---- what is wrong, by kind ---- */

#define MAX_KINDS 64

struct kinds {
	char text[MAX_KINDS][128];
	unsigned nr;
	uint64_t errors;
};

/* The finding without its numbers. Leaks, and COPIED missing, which only costs a copy, may always be there.
 */
static inline void note_kind(void *ctx, bool error, const char *text)
{
	struct kinds *k = ctx;
	char shape[128];
	unsigned n = 0, i;

	k->errors += error;
	if (!error || strstr(text, "COPIED is not set"))
		return;
	for (; *text && n < sizeof(shape) - 1; text++) {
		if (!strncmp(text, "0x", 2))
			text += 1 + strspn(text + 2, "0123456789abcdef");
		else if (*text < '0' || *text > '9')
			shape[n++] = *text;
	}
	shape[n] = 0;
	for (i = 0; i < k->nr; i++)
		if (!strcmp(k->text[i], shape))
			return;
	assert_true(k->nr < MAX_KINDS);
	strcpy(k->text[k->nr++], shape);
}

static inline struct kinds kinds_of(struct disk *d)
{
	struct kinds k = { .nr = 0 };
	struct check_callbacks cb = { .finding = note_kind, .ctx = &k };
	struct host_file *f = disk_open(d, true);
	struct qcow2_error err = { "" };
	struct check_result res;

	if (qcow2_check(f, &cb, &res, &err))
		fail_msg("check: %s", err.text);
	f->ops->close(f);
	return k;
}

static inline bool has_kind(const struct kinds *k, const char *text)
{
	unsigned i;

	for (i = 0; i < k->nr && strcmp(k->text[i], text); i++)
		;
	return i < k->nr;
}

#define OVERLAP "cluster  holds metadata and is referenced  times"
#define TOO_LOW "cluster : refcount , but  references"

#define UNKNOWN "clusters  to : the refcounts cannot be read"

/* An overlap goes by that name once its refcount is known and high enough. */
static inline const char *new_kind(const struct kinds *before, const struct kinds *now)
{
	unsigned i;

	for (i = 0; i < now->nr; i++)
		if (!has_kind(before, now->text[i]) &&
		    (strcmp(now->text[i], OVERLAP) ||
		     !(has_kind(before, TOO_LOW) || has_kind(before, UNKNOWN))))
			return now->text[i];
	return NULL;
}

/* ---- repairing ---- */

static inline int repair_disk(struct disk *d, enum qcow2_repair what, struct qcow2_repair_result *res)
{
	struct host_file *f = disk_open(d, false);
	struct qcow2_error err = { "" };
	int ret = qcow2_repair(f, what, NULL, res, &err);

	f->ops->close(f);
	assert_true(!ret == !err.text[0]);
	return ret;
}

static inline uint64_t disk_wrong_bits(struct disk *d)
{
	return disk_be(d, 4, 4) < 3 ? 0 : disk_be(d, 72, 8) & (QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
}

/* ---- crashes ---- */

struct crash {
	const char *name;
	struct disk *origin;
	struct kinds kinds;
	struct content content;
	struct qcow2_repair_result whole; /* of the repair that did not crash */
	enum qcow2_repair what;
	unsigned states;
};

/* A state that a crash leaves: no new kind of error, nothing lost, and a second repair finishes the job. */
static inline void judge_state(struct crash *c, struct disk *d, const char *which, size_t at)
{
	struct kinds now = kinds_of(d);
	const char *bad = new_kind(&c->kinds, &now);
	struct qcow2_repair_result res;
	struct content is;

	c->states++;
	if (bad)
		fail_msg("%s: crash %s %zu: \"%s\"", c->name, which, at, bad);
	if (now.errors && disk_wrong_bits(d) != disk_wrong_bits(c->origin))
		fail_msg("%s: crash %s %zu: marked clean too early", c->name, which, at);
	is = content_of(disk_open(d, true), 3 << 20);
	if (!content_kept(&c->content, &is))
		fail_msg("%s: crash %s %zu: guest data changed", c->name, which, at);
	content_free(&is);
	assert_int_equal(repair_disk(d, c->what, &res), 0);
	/* what the first one had written stays leaked if errors are left */
	if (res.after.errors != c->whole.after.errors ||
	    (!res.after.errors && res.after.leaks > c->whole.after.leaks))
		fail_msg("%s: crash %s %zu: the second repair leaves %" PRIu64 "/%" PRIu64 ", not %" PRIu64
			 "/%" PRIu64,
			 c->name, which, at, res.after.errors, res.after.leaks, c->whole.after.errors,
			 c->whole.after.leaks);
}

static inline void apply(struct disk *d, const struct event *e, bool half)
{
	uint64_t len = half ? e->len / 1024 * 512 : e->len;

	if (e->op == HOST_WRITE)
		disk_put(d, e->off, e->data, len);
}

/*
 * After each write: everything up to it is there; half of it; all since the last fsync but one; of these only
 * one. @skip: of those neither all, nor one, the event i is left out or is the only one.
 */
static inline struct disk *state(const struct crash *c, struct disk *rec, size_t synced, size_t end, size_t i,
				 bool only)
{
	struct disk *d = disk_clone(c->origin);
	size_t e;

	for (e = 0; e < end; e++)
		if (e < synced || (e == i) == only)
			apply(d, &rec->event[e], false);
	return d;
}

/* Repair, and look at what crashes on the way could leave. @res: of the repair. */
static inline unsigned crash_states(const char *name, struct disk *origin, enum qcow2_repair what,
				    struct qcow2_repair_result *res)
{
	struct crash c = { .name = name, .origin = origin, .what = what };
	struct disk *rec = disk_clone(origin), *d;
	size_t e, i, synced = 0;

	c.kinds = kinds_of(origin);
	c.content = content_of(disk_open(origin, true), 3 << 20);
	rec->record = true;
	assert_int_equal(repair_disk(rec, what, &c.whole), 0);
	for (e = 0; e < rec->events; e++) {
		if (rec->event[e].op == HOST_FSYNC)
			synced = e + 1;
		d = state(&c, rec, synced, e + 1, SIZE_MAX, false);
		judge_state(&c, d, "after", e);
		disk_free(d);
		d = state(&c, rec, synced, e, SIZE_MAX, false);
		apply(d, &rec->event[e], true);
		judge_state(&c, d, "within", e);
		disk_free(d);
		for (i = synced; i < e; i++) {
			d = state(&c, rec, synced, e + 1, i, false);
			judge_state(&c, d, "without", i);
			disk_free(d);
			d = state(&c, rec, synced, e + 1, i, true);
			judge_state(&c, d, "with only", i);
			disk_free(d);
		}
	}
	*res = c.whole;
	content_free(&c.content);
	disk_free(rec);
	return c.states;
}

#endif

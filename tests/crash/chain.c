// SPDX-License-Identifier: GPL-2.0-or-later
/* chain.c - see chain.h. Backing files are devices, too, so that reading them takes its time. */
#include "chain.h"
#include <errno.h>

void chain_init(struct chain *c, const struct template *t, const void *bytes, uint64_t size, uint64_t seed)
{
	unsigned i;

	*c = (struct chain){ .t = t };
	c->image = device_new(bytes, size, mix(seed, 1));
	for (i = 0; i < t->backings; i++)
		c->backing[i] = device_new(t->backing[i].bytes, t->backing[i].size, mix(seed, 2 + i));
}

static int open_backing(void *ctx, const char *path, enum backing_format format, struct host_file **out,
			struct qcow2_error *err)
{
	struct chain *c = ctx;
	unsigned i;

	for (i = 0; i < c->t->backings; i++) {
		if (strcmp(path, c->t->backing[i].path))
			continue;
		*out = device_open(c->backing[i], c->t->backing[i].path, true, 2 + i, 16);
		return 0;
	}
	return qcow2_fail(err, -ENOENT, "%s: not a backing file of this template", path);
}

void chain_begin(struct chain *c, const struct qcow2_table_ops *table, uint64_t cache_bytes,
		 const struct qcow2_journal *journal)
{
	struct qcow2_opener o = { .open = open_backing, .ctx = c };
	struct qcow2_options opt = {
		.opener = &o, .table = table, .cache_bytes = cache_bytes, .journal = journal
	};
	struct qcow2_error err = { "" };

	if (qcow2_open(&c->img, device_open(c->image, c->t->image.path, false, 1, 16), &opt, &err))
		finding("open: %s", err.text);
}

void chain_kill(struct chain *c)
{
	unsigned i;

	for (i = 0; i < c->t->backings; i++)
		device_kill(c->backing[i]);
	device_kill(c->image);
	c->img = NULL;
}

void chain_fini(struct chain *c)
{
	unsigned i;

	for (i = 0; i < c->t->backings; i++)
		device_free(c->backing[i]);
	device_free(c->image);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* repair_judge.h - what the tests of the repair share: repairing a file, and what the guest can read of it.
 */
#ifndef TESTS_REPAIR_JUDGE_H
#define TESTS_REPAIR_JUDGE_H

#include "check_judge.h"
#include "qcow2/qcow2.h"
#include "qcow2/repair.h"

static inline int repair_file(const char *name, enum qcow2_repair what, struct qcow2_repair_result *res)
{
	struct qcow2_error err = { "" };
	struct host_file *f;
	char path[256];
	int ret;

	snprintf(path, sizeof(path), "%s/%s", scratch_dir, name);
	assert_int_equal(host_open_sync(&f, path, false, &err), 0);
	ret = qcow2_repair(f, what, NULL, res, &err);
	f->ops->close(f);
	assert_true(!ret == !err.text[0]);
	return ret;
}

/* What the guest can read of an image, block by block; without the content of a backing file. */
struct content {
	uint64_t blocks;
	unsigned char *bytes; /* blocks * 4096 */
	bool *readable;
};

static inline struct content content_of(struct host_file *file, uint64_t most)
{
	const struct qcow2_options opt = { .read_only = true };
	struct qcow2_image *img = NULL;
	struct content c = { 0 };
	struct qcow2_info info;
	uint64_t i, len;

	if (qcow2_open(&img, file, &opt, NULL))
		return c;
	qcow2_get_info(img, &info);
	c.blocks = (info.size < most ? info.size : most) / 4096;
	c.bytes = aligned_alloc(4096, c.blocks * 4096 + 4096);
	c.readable = calloc(c.blocks + 1, 1);
	assert_true(c.bytes && c.readable);
	for (i = 0; i < c.blocks; i++) {
		len = 4096;
		c.readable[i] = !qcow2_sync(img, QCOW2_READ, c.bytes + i * 4096, len, i * 4096);
	}
	qcow2_close(img, NULL);
	return c;
}

static inline struct content content(const char *name)
{
	struct qcow2_error err = { "" };
	struct host_file *f;
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", scratch_dir, name);
	assert_int_equal(host_open_sync(&f, path, true, &err), 0);
	return content_of(f, 16 << 20);
}

static inline void content_free(struct content *c)
{
	free(c->bytes);
	free(c->readable);
}

/* Whatever could be read is still read, and is the same. */
static inline bool content_kept(const struct content *before, const struct content *after)
{
	uint64_t i;

	if (before->blocks > after->blocks)
		return false;
	for (i = 0; i < before->blocks; i++)
		if (before->readable[i] &&
		    (!after->readable[i] || memcmp(before->bytes + i * 4096, after->bytes + i * 4096, 4096)))
			return false;
	return true;
}

#endif

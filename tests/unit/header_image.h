/* SPDX-License-Identifier: GPL-2.0-or-later */
/* header_image.h - a header in memory, made by hand; parsed, it is accepted or refused. */
#ifndef TESTS_HEADER_IMAGE_H
#define TESTS_HEADER_IMAGE_H

#include "header_fields.h"
#include "qcow2/header.h"
#include "unit.h"
#include <errno.h>

/* Enough for the largest first cluster; the file is said to be this long, too. */
static unsigned char image[2u << 20];
static uint64_t file_size;
static struct qcow2_header h;
static struct qcow2_error err;

/* A valid header: refcount table in cluster 1, L1 table in cluster 3, a file of @clusters clusters. */
static inline void fresh(unsigned version, unsigned cluster_bits, uint64_t clusters)
{
	memset(image, 0, sizeof(image));
	memcpy(image, "QFI\xfb", 4);
	put32(image, VERSION, version);
	put32(image, CLUSTER_BITS, cluster_bits);
	put64(image, SIZE, 1 << 20);
	put32(image, L1_SIZE, cluster_bits == 9 ? 32 : cluster_bits == 10 ? 8 : cluster_bits == 11 ? 2 : 1);
	put64(image, L1_OFFSET, 3ull << cluster_bits);
	put64(image, RT_OFFSET, 1ull << cluster_bits);
	put32(image, RT_CLUSTERS, 1);
	if (version == 3) {
		put32(image, REFCOUNT_ORDER, 4);
		put32(image, HEADER_LENGTH, 112);
	}
	file_size = clusters << cluster_bits;
}

static inline int parse(void)
{
	memset(&err, 0, sizeof(err));
	return header_parse(&h, image, sizeof(image), file_size, "disk.qcow2", &err);
}

static inline void ok(void)
{
	int ret = parse();

	if (ret)
		fail_msg("refused: %s", err.text);
	assert_string_equal(err.text, "");
}

/* Refused, and the message names the image and says @what. */
static inline void refused(const char *what)
{
	assert_int_equal(parse(), -EINVAL);
	assert_ptr_equal(strstr(err.text, "disk.qcow2: "), err.text);
	if (!strstr(err.text, what))
		fail_msg("\"%s\" does not say \"%s\"", err.text, what);
}

static inline size_t ext(size_t pos, uint32_t type, const void *data, uint32_t len)
{
	put32(image, pos, type);
	put32(image, pos + 4, len);
	memcpy(image + pos + 8, data, len);
	return pos + 8 + ((len + 7) & ~7u);
}

#endif

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * read_image.c - `read_image IMAGE`: what the library reads, all of it, on standard output. Requests of very
 * unequal lengths, so that they begin and end anywhere in clusters and extents.
 */
#include <stdlib.h>
#include <string.h>
#include "qcow2/op.h"
#include "qcow2/qcow2.h"

#define MAX_REQ (256u << 10)

static int opener(void *ctx, const char *path, enum backing_format format, struct host_file **out,
		  struct qcow2_error *err)
{
	return host_open_sync(out, path, true, err);
}

static int copy_out(struct qcow2_image *img, uint64_t size, void *buf)
{
	static const uint32_t lengths[] = { 512, 65536, 1536, 4096, MAX_REQ, 7680 };
	uint64_t off = 0, len;
	unsigned i;
	int ret;

	for (i = 0; off < size; i++, off += len) {
		len = lengths[i % (sizeof(lengths) / sizeof(*lengths))];
		if (len > size - off)
			len = size - off;
		ret = qcow2_sync(img, QCOW2_READ, buf, len, off);
		if (ret) {
			fprintf(stderr, "read_image: [%llu, +%llu): %s\n", (unsigned long long)off,
				(unsigned long long)len, strerror(-ret));
			return ret;
		}
		if (fwrite(buf, 1, len, stdout) != len)
			return -1;
	}
	return fflush(stdout);
}

int main(int argc, char **argv)
{
	struct qcow2_opener o = { .open = opener };
	struct qcow2_options opt = { .read_only = true, .opener = &o };
	struct qcow2_error err = { "" };
	struct qcow2_image *img;
	struct qcow2_info info;
	struct host_file *file;
	void *buf = buf_alloc(MAX_REQ);
	int ret;

	if (argc != 2 || !buf) {
		fprintf(stderr, "usage: read_image IMAGE\n");
		return 1;
	}
	if (host_open_sync(&file, argv[1], true, &err) || qcow2_open(&img, file, &opt, &err)) {
		fprintf(stderr, "read_image: %s\n", err.text);
		return 1;
	}
	qcow2_get_info(img, &info);
	ret = copy_out(img, info.size, buf);
	if (qcow2_close(img, &err)) {
		fprintf(stderr, "read_image: close: %s\n", err.text);
		ret = -1;
	}
	buf_free(buf);
	return ret ? 1 : 0;
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * read.c - the reader: splits a guest range into extents of the chain and reads each from where it is.
 * Changes nothing. Compressed clusters are read and unpacked one after the other, into buffers of bounded size.
 */
#include <errno.h>
#include <string.h>
#include "compress.h"
#include "read.h"

static struct reader *of(struct op *op)
{
	return (struct reader *)((char *)op - offsetof(struct reader, op));
}

static enum step read_next(struct op *op);
static enum step read_unpack(struct op *op);
static enum step read_end(struct op *op);

void read_start(struct reader *r, struct qcow2_image *img, uint64_t guest, uint64_t len, void *buf,
		struct op *parent)
{
	*r = (struct reader){ .img = img, .parent = parent, .pos = guest, .end = guest + len, .buf = buf };
	op_get(parent);
	op_init(&r->op, img->run);
	op_then(&r->op, read_next);
	op_start(&r->op);
}

static void advance(struct reader *r, uint64_t len)
{
	r->pos += len;
	r->buf += len;
}

static enum step read_next(struct op *op)
{
	struct reader *r = of(op);
	struct chain_extent *e = &r->e;
	int ret;

	while (r->pos < r->end && !op->err) {
		ret = chain_lookup(r->img, r->pos, r->end - r->pos, e, op);
		if (ret == -EWOULDBLOCK)
			return STEP_NEXT;
		if (ret) {
			op->err = ret;
			break;
		}
		if (e->kind == EXT_COMPRESSED) {
			r->packed = buf_alloc(e->clen);
			if (r->packed)
				op_read(op, r->img->chain[e->depth].file, r->packed, e->clen, e->host);
			else
				op->err = -ENOMEM;
			op_then(op, read_unpack);
			return STEP_NEXT;
		}
		if (e->kind == EXT_DATA)
			op_read(op, r->img->chain[e->depth].file, r->buf, e->len, e->host);
		else
			memset(r->buf, 0, e->len);
		advance(r, e->len);
	}
	op_then(op, read_end);
	return STEP_NEXT;
}

/* Unpack r->packed, which r->e described, and copy the part that was asked for. */
static int unpack(struct reader *r)
{
	struct qcow2_image *img = r->img->chain[r->e.depth].img;
	uint32_t cs = img->geo.cluster_size;
	void *cluster;
	int ret;

	if (!img->decomp)
		img->decomp = decompressor_new(img->hdr.compression, cs);
	cluster = img->decomp ? buf_alloc(cs) : NULL;
	if (!cluster)
		return -ENOMEM;
	ret = decompress(img->decomp, cluster, r->packed, r->e.clen);
	if (!ret)
		memcpy(r->buf, (char *)cluster + in_cluster(&img->geo, r->pos), r->e.len);
	buf_free(cluster);
	return ret == -EUCLEAN ? -EIO : ret; /* bad data in one cluster, not bad metadata */
}

static enum step read_unpack(struct op *op)
{
	struct reader *r = of(op);

	if (!op->err)
		op->err = unpack(r);
	buf_free(r->packed);
	r->packed = NULL;
	if (!op->err)
		advance(r, r->e.len);
	op_then(op, op->err ? read_end : read_next);
	return STEP_NEXT;
}

static enum step read_end(struct op *op)
{
	struct reader *r = of(op);

	op_put(r->parent, op->err);
	return STEP_DONE;
}

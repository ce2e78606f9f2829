/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * backing.c - the chain of files below an image: opened once, looked up file by file.
 *
 * Names come from hostile images: they are resolved relative to the folder of the image that names them,
 * never treated as anything but a file name (no "json:", no "nbd:"), opened by the caller's opener (regular files
 * and block devices only), and their format is what the image recorded or the user said, never probed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "map.h"

/* "json:{...}", "nbd:host": a word of letters, digits, +-. and a colon before any slash. */
static bool has_protocol(const char *name)
{
	size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-.");

	return n && name[n] == ':';
}

/* The file that @name means in the image at @path; malloc'ed, NULL = no memory. */
static char *resolve(const char *path, const char *name)
{
	const char *slash = strrchr(path, '/');
	size_t dir = name[0] == '/' || !slash ? 0 : (size_t)(slash - path) + 1;
	char *out = malloc(dir + strlen(name) + 1);

	if (out) {
		memcpy(out, path, dir);
		strcpy(out + dir, name);
	}
	return out;
}

static enum backing_format parse_format(const char *s)
{
	if (!strcmp(s, "raw"))
		return BACKING_RAW;
	return strcmp(s, "qcow2") ? BACKING_UNKNOWN : BACKING_QCOW2;
}

static int chain_add(struct qcow2_image *img, struct chain_link l, struct qcow2_error *err)
{
	struct chain_link *v;
	unsigned i;

	for (i = 0; i < img->chain_len; i++)
		if (img->chain[i].file->dev == l.file->dev && img->chain[i].file->ino == l.file->ino)
			return qcow2_fail(err, -ELOOP, "%s: loop: it is in the chain already",
					  l.file->path);
	if (img->chain_len >= QCOW2_MAX_CHAIN)
		return qcow2_fail(err, -ELOOP, "%s: backing chain is longer than %u files", l.file->path,
				  QCOW2_MAX_CHAIN);
	v = realloc(img->chain, (img->chain_len + 1) * sizeof(*v));
	if (!v)
		return qcow2_fail(err, -ENOMEM, "%s: out of memory", l.file->path);
	l.file->index = img->chain_len;
	img->chain = v;
	img->chain[img->chain_len++] = l;
	return 0;
}

/* What @from says about its backing file: path (malloc'ed) and format. */
static int backing_of(const struct qcow2_image *from, const struct qcow2_options *opt, char **path,
		      enum backing_format *format, struct qcow2_error *err)
{
	const char *file = from->file->path, *name = from->hdr.backing_name;
	char shown[128];

	escape_name(shown, sizeof(shown), name, strlen(name));
	if (!strncmp(name, "file:", 5))
		name += 5;
	else if (has_protocol(name))
		return qcow2_fail(err, -EINVAL, "%s: backing file \"%s\": only plain file names are opened", file,
				  shown);
	*format = from->hdr.backing_format[0] ? parse_format(from->hdr.backing_format) : opt->backing_format;
	if (*format == BACKING_UNKNOWN && from->hdr.backing_format[0])
		return qcow2_fail(err, -ENOTSUP, "%s: backing file \"%s\": format \"%s\" is neither raw nor qcow2",
				  file, shown, from->hdr.backing_format);
	if (*format == BACKING_UNKNOWN)
		return qcow2_fail(err, -EINVAL,
				  "%s: backing file \"%s\": its format is not recorded and never guessed; "
				  "give it with --backing-format=raw|qcow2",
				  file, shown);
	*path = resolve(file, name);
	return *path ? 0 : qcow2_fail(err, -ENOMEM, "%s: out of memory", file);
}

static int open_raw(struct qcow2_image *img, struct host_file *file, struct qcow2_error *err)
{
	struct chain_link l = { .file = file };
	int ret = file->ops->size(file, &l.size);

	if (ret)
		qcow2_fail(err, ret, "%s: cannot tell its size: %s", file->path, strerror(-ret));
	l.size = (l.size + 511) & ~511ull;
	if (!ret)
		ret = chain_add(img, l, err);
	if (ret)
		file->ops->close(file);
	return ret;
}

static int open_qcow2(struct qcow2_image *img, struct host_file *file, const struct qcow2_options *opt,
		      struct qcow2_error *err)
{
	struct qcow2_options ro = { .read_only = true, .cache_bytes = opt->cache_bytes };
	struct chain_link l = { .file = file };
	unsigned i;
	int ret;

	for (i = 0; i < img->chain_len; i++) /* before parsing: the loop is what is wrong */
		if (img->chain[i].file->dev == file->dev && img->chain[i].file->ino == file->ino) {
			ret = chain_add(img, l, err);
			file->ops->close(file);
			return ret;
		}
	ret = image_open_one(&l.img, file, &ro, &img->rq, err);
	if (ret)
		return ret;
	l.size = l.img->geo.size;
	ret = chain_add(img, l, err);
	if (ret)
		image_free_one(l.img);
	return ret;
}

static int open_next(struct qcow2_image *img, struct qcow2_image **from, const struct qcow2_options *opt,
		     struct qcow2_error *err)
{
	const struct qcow2_opener *o = opt->opener;
	struct qcow2_error why = { "" }; /* begins with the backing file's name: the user gave another one */
	struct host_file *file = NULL;
	enum backing_format format = BACKING_UNKNOWN;
	char *path = NULL;
	int ret;

	if (!o)
		return qcow2_fail(err, -ENOTSUP, "%s: has a backing file, which is not opened here",
				  (*from)->file->path);
	ret = backing_of(*from, opt, &path, &format, err);
	if (ret)
		return ret;
	ret = o->open(o->ctx, path, format, &file, &why);
	free(path);
	if (!ret)
		ret = format == BACKING_RAW ? open_raw(img, file, &why) : open_qcow2(img, file, opt, &why);
	if (ret)
		return qcow2_fail(err, ret, "%s: backing file: %s", img->file->path, why.text);
	*from = img->chain[img->chain_len - 1].img;
	return 0;
}

int chain_open(struct qcow2_image *img, const struct qcow2_options *opt, struct qcow2_error *err)
{
	struct chain_link self = { .file = img->file, .img = img, .size = img->geo.size };
	struct qcow2_image *from = img;
	int ret = chain_add(img, self, err);

	while (!ret && from && from->hdr.backing_name[0])
		ret = open_next(img, &from, opt, err);
	return ret;
}

void chain_close(struct qcow2_image *img)
{
	while (img->chain_len > 1) {
		struct chain_link *l = &img->chain[--img->chain_len];

		if (l->img)
			image_free_one(l->img);
		else
			l->file->ops->close(l->file);
	}
	free(img->chain);
	img->chain = NULL;
	img->chain_len = 0;
}

bool chain_has_backing(const struct qcow2_image *img, uint64_t guest)
{
	unsigned i;

	for (i = 1; i < img->chain_len; i++)
		if (guest < img->chain[i].size)
			return true;
	return false;
}

/* One file's answer; EXT_UNALLOCATED: ask the next one about e->len bytes. @guest lies inside the file. */
static int link_lookup(const struct chain_link *l, uint64_t guest, uint64_t len, struct extent *e, struct op *waiter)
{
	len = min_u64(len, l->size - guest);
	if (l->img)
		return map_lookup(l->img, guest, len, e, waiter);
	*e = (struct extent){ .kind = EXT_DATA, .len = len, .host = guest };
	return 0;
}

int chain_lookup(struct qcow2_image *img, uint64_t guest, uint64_t len, struct chain_extent *out, struct op *waiter)
{
	struct extent e = { .kind = EXT_UNALLOCATED, .len = len };
	unsigned i;
	int ret;

	/* A file that ends before @guest ends the search: zeroes, and nothing below shows through. */
	for (i = 0; i < img->chain_len && e.kind == EXT_UNALLOCATED && guest < img->chain[i].size; i++) {
		ret = link_lookup(&img->chain[i], guest, e.len, &e, waiter);
		if (ret)
			return ret;
	}
	*out = (struct chain_extent){ .kind = e.kind, .depth = i - 1, .host = e.host, .len = e.len,
				      .clen = e.clen, .copied = e.copied, .absent = e.kind == EXT_UNALLOCATED };
	if (e.kind != EXT_DATA && e.kind != EXT_COMPRESSED)
		out->kind = EXT_ZERO;
	return 0;
}

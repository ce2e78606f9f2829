// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * inspect.c - read-only, buffered, with the locks of QEMU's read-only opener, so that nobody writes what
 * we read. --force-share goes without them: what it shows of an image in use may be torn. A repair alone
 * opens for writing, with a writer's locks.
 */
#include "inspect.h"
#include "daemon/lock.h"
#include "options.h"
#include "output.h"
#include "qcow2/repair.h"
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FIRST_READ 4096u

int inspect_parse(const struct command *cmd, int argc, char **argv, struct inspect_options *o)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "force-share", no_argument, NULL, 'U' },
		{ "repair", required_argument, NULL, 'r' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	static const struct choice repairs[] = {
		{ "leaks", QCOW2_REPAIR_LEAKS },
		{ "all", QCOW2_REPAIR_ALL },
		{ NULL, 0 },
	};
	int opt, ret;

	memset(o, 0, sizeof(*o));
	while ((opt = getopt_long(argc, argv, ":hU", options, NULL)) != -1) {
		if (opt == 'h')
			return show_help(cmd);
		if (opt == 'j')
			o->json = true;
		else if (opt == 'U')
			o->force_share = true;
		else if (opt == 'r' && cmd == &cmd_check && !parse_choice(optarg, repairs, &o->repair_what))
			return usage_error(cmd, "--repair=%s: must be leaks or all", optarg);
		else if (opt == 'r' && cmd == &cmd_check)
			o->repair = true;
		else if (opt == 'r')
			return usage_error(cmd, "--repair: unknown option");
		else
			return bad_option(cmd, argv, opt);
	}
	ret = want_arguments(cmd, argc, 1, "IMAGE");
	if (ret)
		return ret;
	if (o->repair && o->force_share)
		return usage_error(cmd, "--repair: nobody else may use the image: not with --force-share");
	o->image = argv[optind];
	return -1;
}

static int open_file(const char *path, bool force_share, enum lock_role role, struct host_file **out,
		     int *fd_out, struct qcow2_error *err)
{
	bool read_only = role != LOCK_IMAGE_RW;
	int fd = image_open_fd(path, read_only, NULL, err), ret;

	if (fd < 0)
		return fd;
	ret = force_share ? 0 : image_lock(fd, role, path, err);
	if (ret) {
		close(fd);
		return ret;
	}
	if (fd_out)
		*fd_out = fd;
	return host_fdopen_sync(out, fd, path, read_only, err);
}

int inspect_open(const struct inspect_options *o, struct host_file **out, int *fd, struct qcow2_error *err)
{
	return open_file(o->image, o->force_share, o->repair ? LOCK_IMAGE_RW : LOCK_INSPECT, out, fd, err);
}

int inspect_open_backing(void *ctx, const char *path, enum backing_format format, struct host_file **out,
			 struct qcow2_error *err)
{
	const struct inspect_options *o = ctx;

	return open_file(path, o->force_share,
			 format == BACKING_QCOW2 ? LOCK_BACKING_QCOW2 : LOCK_BACKING_RAW, out, NULL, err);
}

/* The bytes [off, off + len), cut at the end of the file; *len is updated. NULL with err on failure. */
static void *read_bytes(struct host_file *file, uint64_t off, size_t *len, struct qcow2_error *err)
{
	uint64_t size;
	void *buf;
	int ret;

	ret = file->ops->size(file, &size);
	if (!ret && off + *len > size)
		*len = off < size ? (size_t)(size - off) : 0;
	buf = ret ? NULL : malloc(*len ? *len : 1);
	if (!ret)
		ret = buf ? file->ops->pread(file, buf, *len, off) : -ENOMEM;
	if (!ret)
		return buf;
	free(buf);
	qcow2_fail(err, ret, "%s: cannot be read: %s", file->path, strerror(-ret));
	return NULL;
}

int inspect_header(struct host_file *file, struct qcow2_header *h, struct qcow2_error *err)
{
	size_t len = FIRST_READ;
	uint64_t size;
	void *buf;
	int ret;

	buf = read_bytes(file, 0, &len, err);
	if (!buf)
		return -EIO;
	len = header_peek(buf, len, file->path, err);
	free(buf);
	if (!len)
		return -EINVAL;
	buf = read_bytes(file, 0, &len, err);
	if (!buf)
		return -EIO;
	ret = file->ops->size(file, &size);
	if (!ret)
		ret = header_parse(h, buf, len, size, file->path, err);
	free(buf);
	return ret;
}

int inspect_snapshots(struct host_file *file, const struct qcow2_header *h, struct snapshot_info **out,
		      struct qcow2_error *err)
{
	size_t want, len, used;
	uint64_t size;
	void *buf;
	int ret;

	*out = NULL;
	if (!h->nb_snapshots)
		return 0;
	ret = file->ops->size(file, &size);
	for (want = 16 * FIRST_READ; !ret; want *= 4) {
		len = want > QCOW2_MAX_SNAPSHOT_BYTES ? QCOW2_MAX_SNAPSHOT_BYTES : want;
		buf = read_bytes(file, h->snapshots_offset, &len, err);
		if (!buf)
			return -EIO;
		ret = snapshots_parse(h, buf, len, size, out, &used, file->path, err);
		free(buf);
		if (ret != -EAGAIN)
			break;
		if (len < want) /* the end of the file, or the limit */
			return qcow2_fail(err, -EINVAL, "%s: the snapshot table does not end", file->path);
		ret = 0;
	}
	return ret;
}

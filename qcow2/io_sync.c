/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * io_sync.c - the host I/O backend on plain system calls, for tools and tests.
 *
 * submit() only queues; poll() carries the queued I/Os out, in order, and calls done(). One queue
 * per thread serves all its files, as one ring serves a whole chain: polling any file of a chain
 * delivers the completions of all. Invariants:
 *  - done() runs from poll() alone, once per I/O; what it submits is carried out by a later poll,
 *    so that an endless chain of requests cannot keep the caller inside one.
 *  - The memory of an I/O is the caller's again when done() is called: `then` is read before.
 *  - An I/O runs to its end inside one poll: nothing is ever half done between two calls.
 * A crash leaves what the kernel was given; only FSYNC makes it durable.
 */
#include "error.h"
#include "header.h"
#include "io.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ZERO_CHUNK 65536u

struct sync_file {
	struct host_file host; /* first */
	int fd;
	bool block; /* a block device */
	char path[];
};

STAILQ_HEAD(io_queue, host_io);

static _Thread_local struct io_queue queue;

static struct sync_file *sync_of(struct host_file *file)
{
	return (struct sync_file *)file;
}

/* ---- the operations: 0 or -errno ---- */

static int read_full(int fd, void *buf, uint64_t len, uint64_t off, uint64_t *progress)
{
	ssize_t n;

	for (; *progress < len; *progress += (uint64_t)n) {
		n = pread(fd, (char *)buf + *progress, len - *progress, (off_t)(off + *progress));
		if (n < 0 && errno == EINTR)
			n = 0;
		else if (n < 0)
			return -errno;
		else if (n == 0)
			break;
	}
	memset((char *)buf + *progress, 0, len - *progress);
	*progress = len;
	return 0;
}

static int write_full(int fd, const void *buf, uint64_t len, uint64_t off, uint64_t *progress)
{
	ssize_t n;

	for (; *progress < len; *progress += (uint64_t)n) {
		n = pwrite(fd, (const char *)buf + *progress, len - *progress, (off_t)(off + *progress));
		if (n < 0 && errno == EINTR)
			n = 0;
		else if (n < 0)
			return -errno;
		else if (n == 0)
			return -ENOSPC; /* the end of a block device */
	}
	return 0;
}

static int try_fallocate(int fd, int mode, uint64_t off, uint64_t len)
{
	int ret;

	do
		ret = fallocate(fd, mode, (off_t)off, (off_t)len);
	while (ret < 0 && errno == EINTR);
	return ret < 0 ? -errno : 0;
}

/* The host cannot do it this way; EINVAL is a block device's word for an unaligned range. */
static bool unsupported(const struct sync_file *f, int err)
{
	return err == -EOPNOTSUPP || err == -ENOSYS || (f->block && err == -EINVAL);
}

static int grow(struct sync_file *f, uint64_t end)
{
	struct stat st;

	if (fstat(f->fd, &st) < 0)
		return -errno;
	if (f->block || (uint64_t)st.st_size >= end)
		return 0;
	return ftruncate(f->fd, (off_t)end) < 0 ? -errno : 0;
}

static int write_zeroes(int fd, uint64_t off, uint64_t len, uint64_t *progress)
{
	static const char zeroes[ZERO_CHUNK];
	uint64_t n, done;
	int err;

	for (; *progress < len; *progress += n) {
		n = len - *progress < ZERO_CHUNK ? len - *progress : ZERO_CHUNK;
		done = 0;
		err = write_full(fd, zeroes, n, off + *progress, &done);
		if (err)
			return err;
	}
	return 0;
}

static int zero_range(struct sync_file *f, uint64_t off, uint64_t len, uint64_t *progress)
{
	int err;

	if (!len)
		return 0;
	err = try_fallocate(f->fd, FALLOC_FL_ZERO_RANGE, off, len);
	if (!unsupported(f, err))
		return err;
	err = try_fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len);
	if (!err)
		return grow(f, off + len);
	if (!unsupported(f, err))
		return err;
	return write_zeroes(f->fd, off, len, progress);
}

static int punch(struct sync_file *f, uint64_t off, uint64_t len)
{
	int err;

	if (!len)
		return 0;
	err = try_fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len);
	return unsupported(f, err) ? 0 : err;
}

static int sync_data(struct sync_file *f)
{
	int ret;

	do
		ret = fdatasync(f->fd);
	while (ret < 0 && errno == EINTR);
	return ret < 0 ? -errno : 0;
}

static int carry_out(struct host_io *io)
{
	struct sync_file *f = sync_of(io->file);

	if (io->len > INT64_MAX || io->off > INT64_MAX - io->len)
		return -EINVAL;
	switch (io->op) {
	case HOST_READ:
		return read_full(f->fd, io->buf, io->len, io->off, &io->progress);
	case HOST_WRITE:
		return write_full(f->fd, io->buf, io->len, io->off, &io->progress);
	case HOST_ZERO:
		return zero_range(f, io->off, io->len, &io->progress);
	case HOST_PUNCH:
		return punch(f, io->off, io->len);
	case HOST_FSYNC:
		return sync_data(f);
	}
	return -EINVAL;
}

/* ---- host_ops ---- */

static void sync_submit(struct host_io *io)
{
	if (!queue.stqh_last) /* the thread's first use */
		STAILQ_INIT(&queue);
	STAILQ_INSERT_TAIL(&queue, io, link);
}

/* Carry out @io and what is linked to it. Returns the number of completions. */
static unsigned run_chain(struct host_io *io)
{
	struct host_io *next;
	unsigned n = 0;
	int res = 0;

	for (; io; io = next, n++) {
		next = io->then;
		io->progress = 0;
		res = res ? -ECANCELED : carry_out(io);
		io->done(io, res);
	}
	return n;
}

static unsigned sync_poll(struct host_file *file, bool wait)
{
	struct io_queue now = STAILQ_HEAD_INITIALIZER(now);
	struct host_io *io;
	unsigned n = 0;

	if (!queue.stqh_last)
		return 0;
	STAILQ_CONCAT(&now, &queue);
	while ((io = STAILQ_FIRST(&now))) {
		STAILQ_REMOVE_HEAD(&now, link);
		n += run_chain(io);
	}
	return n;
}

static int sync_pread(struct host_file *file, void *buf, size_t len, uint64_t off)
{
	uint64_t progress = 0;

	if (len > INT64_MAX || off > INT64_MAX - len)
		return -EINVAL;
	return read_full(sync_of(file)->fd, buf, len, off, &progress);
}

static int sync_size(struct host_file *file, uint64_t *size)
{
	off_t end = lseek(sync_of(file)->fd, 0, SEEK_END); /* block devices have no st_size */

	if (end < 0)
		return -errno;
	*size = (uint64_t)end;
	return 0;
}

static void sync_close(struct host_file *file)
{
	struct sync_file *f = sync_of(file);
	struct host_io *io;

	if (queue.stqh_last)
		STAILQ_FOREACH (io, &queue, link)
			assert(io->file != file);
	close(f->fd);
	free(f);
}

static const struct host_ops sync_ops = {
	.submit = sync_submit,
	.poll = sync_poll,
	.pread = sync_pread,
	.size = sync_size,
	.close = sync_close,
};

/* ---- opening ---- */

static const char *kind_name(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFDIR:
		return "a directory";
	case S_IFCHR:
		return "a character device";
	case S_IFIFO:
		return "a fifo";
	case S_IFSOCK:
		return "a socket";
	default:
		return "neither a regular file nor a block device";
	}
}

static int refuse_kind(mode_t mode, const char *shown, struct qcow2_error *err)
{
	if (S_ISREG(mode) || S_ISBLK(mode))
		return 0;
	return qcow2_fail(err, -EINVAL, "%s: is %s, not an image", shown, kind_name(mode));
}

static int fdopen_shown(struct host_file **out, int fd, const char *path, const char *shown, bool read_only,
			struct qcow2_error *err)
{
	struct sync_file *f;
	struct stat st;
	int ret;

	if (fstat(fd, &st) < 0) {
		ret = qcow2_fail(err, -errno, "%s: cannot stat: %s", shown, strerror(errno));
		goto fail;
	}
	ret = refuse_kind(st.st_mode, shown, err);
	if (ret)
		goto fail;
	f = calloc(1, sizeof(*f) + strlen(path) + 1);
	if (!f) {
		ret = qcow2_fail(err, -ENOMEM, "%s: out of memory", shown);
		goto fail;
	}
	f->fd = fd;
	f->block = S_ISBLK(st.st_mode);
	strcpy(f->path, path);
	f->host = (struct host_file){
		.ops = &sync_ops,
		.dev = f->block ? st.st_rdev : st.st_dev,
		.ino = f->block ? 0 : st.st_ino, /* two nodes of one device are one file */
		.dio_align = 1,
		.mem_align = 1,
		.read_only = read_only,
		.fixed_size = f->block,
		.path = f->path,
	};
	*out = &f->host;
	return 0;

fail:
	close(fd);
	return ret;
}

int host_fdopen_sync(struct host_file **out, int fd, const char *path, bool read_only,
		     struct qcow2_error *err)
{
	char shown[256];

	escape_name(shown, sizeof(shown), path, strlen(path));
	return fdopen_shown(out, fd, path, shown, read_only, err);
}

int host_open_sync(struct host_file **out, const char *path, bool read_only, struct qcow2_error *err)
{
	char shown[256];
	struct stat st;
	int fd, ret;

	escape_name(shown, sizeof(shown), path, strlen(path));
	/* Looked at before it is opened: opening a character device can already do something. */
	if (stat(path, &st) < 0)
		return qcow2_fail(err, -errno, "%s: cannot open: %s", shown, strerror(errno));
	ret = refuse_kind(st.st_mode, shown, err);
	if (ret)
		return ret;
	fd = open(path, (read_only ? O_RDONLY : O_RDWR) | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
	if (fd < 0)
		return qcow2_fail(err, -errno, "%s: cannot open: %s", shown, strerror(errno));
	return fdopen_shown(out, fd, path, shown, read_only, err);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * ring.c - host I/O of the metadata thread on one io_uring.
 *
 * Owns the ring, its wake-up eventfd, and per file the descriptor (so the image's locks too).
 *
 * Invariants:
 * - At most `depth` I/Os are in the kernel; the others wait in r->waiting, first in first out. An I/O is in
 * exactly one of: a `then` chain, r->waiting, the kernel.
 * - done() is called from poll() only, once, with 0 after every byte was transferred: short transfers,
 * -EAGAIN and -EINTR are resubmitted from io->progress. A read that ends at the end of the file is filled
 * with zeroes; with -EIO if the file was once longer, as somebody cut it off.
 * - A write with an fsync behind it (each commit stage of one block) is one submission: two SQEs,
 * IOSQE_IO_LINK. The fsync's result counts only if the write was complete when it started: a short write
 * cancels it and both are started again; a submission that stopped between the two (out of memory) let it run
 * on its own, so it is done again (enum link). Every other chain goes on in user space when its predecessor
 * is complete.
 * - A file system without FALLOC_FL_ZERO_RANGE gets writes of zeroes instead; edges below the direct I/O
 * alignment are read, changed and written with plain system calls (two blocks at most; the caller holds the
 * range).
 *
 * A crash leaves whatever the kernel had been given; ordering is commit.c's business.
 */
#include "ring.h"
#include "stamp.h"
#include "test_switch.h"
#include "uring.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define ZERO_CHUNK (256u << 10) /* bytes per write of zeroes */
#define BOUNCE (256u << 10)
/* In host_io.progress: the zeroes of this I/O are written, as the file system could not do it. */
#define BY_WRITES (1ull << 63)

/* host_io.link_state of an fsync behind a write */
enum link {
	LINK_NONE, /* not linked: an I/O of its own */
	LINK_WAITS, /* in the kernel behind pred */
	LINK_SPLIT, /* in the kernel, but not behind pred: its result is void */
	LINK_VOID, /* its completion came, void; starts again when pred is complete */
	LINK_GOES, /* pred is complete: its result counts */
	LINK_REDO, /* pred is complete, the result void: start it again when it comes */
	LINK_REDO_BOTH, /* pred was short: start both again when its (cancelled) completion comes */
	LINK_FAILS, /* pred failed with pred_res: both end when its completion comes */
};

STAILQ_HEAD(io_list, host_io);

struct ring {
	struct io_uring uring;
	struct io_list waiting;
	unsigned depth, inflight;
	unsigned delivered; /* by the current poll() */
	int wake_fd;
	bool woken, wake_armed, no_wait;
	bool timer_armed, timer_expired;
	struct __kernel_timespec timeout;
	void *zeroes; /* ZERO_CHUNK bytes of the zero page */
	uint64_t *stamp;
};

struct ring_file {
	struct host_file base; /* first */
	struct ring *ring;
	int fd;
	bool direct;
	uint64_t size; /* at least, unless somebody else cut it off: as found, as this ring wrote since */
	char *path;
};

static struct ring_file *ring_file_of(struct host_file *f)
{
	return (struct ring_file *)f;
}

/* ---- the ring ---- */

/* After a submission: if it stopped behind the first half of a link, the second half is on its own. */
static void note_split(struct ring *r)
{
	struct io_uring_sq *sq = &r->uring.sq;
	unsigned head = *sq->khead;

	if (!io_uring_sq_ready(&r->uring) || !(sq->sqes[(head - 1) & sq->ring_mask].flags & IOSQE_IO_LINK))
		return;
	((struct host_io *)(uintptr_t)sq->sqes[head & sq->ring_mask].user_data)->link_state = LINK_SPLIT;
}

/* Like uring_sqe(). */
static struct io_uring_sqe *get_sqe(struct ring *r)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&r->uring);

	if (!sqe) {
		io_uring_submit(&r->uring);
		note_split(r);
		sqe = io_uring_get_sqe(&r->uring);
	}
	return sqe;
}

static void arm_wake(struct ring *r)
{
	struct io_uring_sqe *sqe;

	if (r->wake_armed)
		return;
	sqe = get_sqe(r);
	if (!sqe)
		return; /* poll() tries again */
	uring_prep_wake(sqe, r->wake_fd, &r->wake_fd);
	r->wake_armed = true;
}

int ring_new(struct ring **out, unsigned depth, struct qcow2_error *err)
{
	struct ring *r = calloc(1, sizeof(*r));
	bool deferred;
	int ret;

	if (!r)
		return qcow2_fail(err, -ENOMEM, "io_uring: out of memory");
	STAILQ_INIT(&r->waiting);
	r->depth = depth;
	r->zeroes = mmap(NULL, ZERO_CHUNK, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (r->zeroes == MAP_FAILED) {
		ret = qcow2_fail(err, -errno, "io_uring: mmap: %s", strerror(errno));
		goto free_ring;
	}
	r->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r->wake_fd < 0) {
		ret = qcow2_fail(err, -errno, "io_uring: eventfd: %s", strerror(errno));
		goto unmap;
	}
	ret = uring_setup(&r->uring, depth + 4, 2 * depth + 8, &deferred);
	if (ret) {
		qcow2_fail(err, ret, "io_uring: cannot set up a ring: %s%s", strerror(-ret),
			   ret == -EPERM ? " (see /proc/sys/kernel/io_uring_disabled)" : "");
		goto close_wake;
	}
	arm_wake(r);
	*out = r;
	return 0;

close_wake:
	close(r->wake_fd);
unmap:
	munmap(r->zeroes, ZERO_CHUNK);
free_ring:
	free(r);
	return ret;
}

int ring_hold(struct ring *r, const int *fds, unsigned count)
{
	return count ? io_uring_register_files(&r->uring, fds, count) : 0;
}

void ring_stamp(struct ring *r, uint64_t *at)
{
	r->stamp = at;
}

void ring_free(struct ring *r)
{
	io_uring_queue_exit(&r->uring);
	close(r->wake_fd);
	munmap(r->zeroes, ZERO_CHUNK);
	free(r);
}

void ring_wake(struct ring *r)
{
	uint64_t one = 1;

	/* Cannot block or fail: the counter would have to reach 2^64 - 1. */
	if (write(r->wake_fd, &one, sizeof(one)) != sizeof(one))
		return;
}

void ring_no_wait(struct ring *r, bool on)
{
	r->no_wait = on;
}

void ring_timer(struct ring *r, unsigned ms)
{
	struct io_uring_sqe *sqe;

	if (r->timer_armed || !(sqe = get_sqe(r)))
		return;
	r->timeout.tv_sec = ms / 1000;
	r->timeout.tv_nsec = ms % 1000 * 1000000ll;
	io_uring_prep_timeout(sqe, &r->timeout, 0, 0);
	io_uring_sqe_set_data(sqe, &r->timeout);
	r->timer_armed = true;
}

bool ring_timer_expired(struct ring *r)
{
	bool expired = r->timer_expired;

	r->timer_expired = false;
	return expired;
}

/* ---- starting and finishing one I/O ---- */

/* The part of a range that writes of zeroes can cover at the file's alignment. */
static void zero_middle(const struct host_io *io, uint64_t *first, uint64_t *last)
{
	uint64_t align = io->file->dio_align;

	*first = (io->off + align - 1) / align * align;
	*last = (io->off + io->len) / align * align;
}

static bool by_writes(const struct host_io *io)
{
	return io->progress & BY_WRITES;
}

/* Where the rest of an I/O starts and ends. */
static uint64_t io_pos(const struct host_io *io)
{
	return io->off + (io->progress & ~BY_WRITES);
}

static uint64_t io_end(const struct host_io *io)
{
	uint64_t first, last;

	if (!by_writes(io))
		return io->off + io->len;
	zero_middle(io, &first, &last);
	return last;
}

/* Bytes one transfer may have; io_uring takes a 32-bit length. */
static unsigned transfer_len(uint64_t left)
{
	return left < 1u << 30 ? (unsigned)left : 1u << 30;
}

static void prep(struct ring *r, struct host_io *io, struct io_uring_sqe *sqe)
{
	struct ring_file *f = ring_file_of(io->file);
	uint64_t pos = io_pos(io), left = io_end(io) - pos;
	char *buf = (char *)io->buf + (pos - io->off);

	switch (io->op) {
	case HOST_READ:
		io_uring_prep_read(sqe, f->fd, buf, transfer_len(left), pos);
		break;
	case HOST_WRITE:
		io_uring_prep_write(sqe, f->fd, buf, transfer_len(left), pos);
		break;
	case HOST_ZERO:
		if (by_writes(io))
			io_uring_prep_write(sqe, f->fd, r->zeroes, left < ZERO_CHUNK ? left : ZERO_CHUNK,
					    pos);
		else
			io_uring_prep_fallocate(sqe, f->fd, FALLOC_FL_ZERO_RANGE, pos, left);
		break;
	case HOST_PUNCH:
		io_uring_prep_fallocate(sqe, f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, pos, left);
		break;
	case HOST_FSYNC:
		if (test_switch_skip_fsync())
			io_uring_prep_nop(sqe);
		else
			io_uring_prep_fsync(sqe, f->fd, IORING_FSYNC_DATASYNC);
		break;
	}
	io_uring_sqe_set_data(sqe, io);
}

static bool linkable(const struct host_io *io)
{
	return io->op == HOST_WRITE && io->then && io->then->op == HOST_FSYNC && !io->then->then;
}

/* A write and the fsync behind it, never in two submissions; false: no room now. */
static bool start_linked(struct ring *r, struct host_io *io)
{
	struct io_uring_sqe *sqe;

	if (io_uring_sq_space_left(&r->uring) < 2) {
		io_uring_submit(&r->uring);
		note_split(r);
	}
	if (io_uring_sq_space_left(&r->uring) < 2)
		return false;
	sqe = io_uring_get_sqe(&r->uring);
	prep(r, io, sqe);
	sqe->flags |= IOSQE_IO_LINK;
	prep(r, io->then, io_uring_get_sqe(&r->uring));
	io->then->pred = io;
	io->then->link_state = LINK_WAITS;
	r->inflight += 2;
	return true;
}

static bool start_alone(struct ring *r, struct host_io *io)
{
	struct io_uring_sqe *sqe = get_sqe(r);

	if (!sqe)
		return false;
	r->inflight++;
	prep(r, io, sqe);
	return true;
}

/* Give waiting I/Os to the kernel as far as there is room. */
static void start_waiting(struct ring *r)
{
	struct host_io *io;

	while (r->inflight + 1 < r->depth && (io = STAILQ_FIRST(&r->waiting))) {
		STAILQ_REMOVE_HEAD(&r->waiting, link);
		if (!(linkable(io) ? start_linked(r, io) : start_alone(r, io))) {
			STAILQ_INSERT_HEAD(&r->waiting, io, link);
			return;
		}
	}
}

static void start(struct ring *r, struct host_io *io)
{
	STAILQ_INSERT_TAIL(&r->waiting, io, link);
	start_waiting(r);
}

static void ring_submit(struct host_io *io)
{
	for (struct host_io *i = io; i; i = i->then) {
		i->progress = 0;
		i->link_state = LINK_NONE;
	}
	start(ring_file_of(io->file)->ring, io);
}

static void finish(struct ring *r, struct host_io *io, int res)
{
	struct host_io *then = io->then;

	if (then && !res && then->link_state == LINK_NONE)
		start(r, then);
	r->delivered++;
	io->done(io, res);
	for (; then && res; then = io) {
		io = then->then;
		r->delivered++;
		then->done(then, -ECANCELED);
	}
}

/* Zero [off, off + len), which lies within one block of the file's alignment, by read-modify-write. */
static int zero_in_block(struct ring_file *f, uint64_t off, uint64_t len)
{
	uint64_t align = f->base.dio_align, start_off = off / align * align;
	char *block;
	int ret;

	if (!len)
		return 0;
	if (posix_memalign((void **)&block, 4096, align))
		return -ENOMEM;
	ret = f->base.ops->pread(&f->base, block, align, start_off);
	if (!ret) {
		memset(block + (off - start_off), 0, len);
		ssize_t n = pwrite(f->fd, block, align, (off_t)start_off);

		ret = n < 0 ? -errno : (uint64_t)n == align ? 0 : -EIO;
	}
	free(block);
	return ret;
}

/* ZERO_RANGE failed: do the edges here, leave the aligned middle to writes. 0 = complete, 1 = go on, or
 * -errno. */
static int zero_by_writes(struct host_io *io)
{
	struct ring_file *f = ring_file_of(io->file);
	uint64_t first, last, end = io->off + io->len;
	int ret;

	zero_middle(io, &first, &last);
	if (first > last) /* within one block */
		return zero_in_block(f, io->off, io->len);
	ret = zero_in_block(f, io->off, first - io->off);
	if (!ret)
		ret = zero_in_block(f, last, end - last);
	io->progress = (first - io->off) | BY_WRITES;
	return ret ? ret : first < last;
}

static bool no_such_fallocate(int res)
{
	return res == -EOPNOTSUPP || res == -EINVAL || res == -ENOSYS || res == -ENODEV;
}

static int end_at(const struct ring_file *f, uint64_t pos)
{
	return pos < f->size ? -EIO : 0;
}

/* A transfer of n bytes arrived: 0 = complete, 1 = go on, or -errno. */
static int advance(struct host_io *io, unsigned n)
{
	uint64_t pos = io_pos(io), left = io_end(io) - pos, align = io->file->dio_align;

	if (n >= left)
		return 0;
	if (io->op == HOST_READ && (!n || n % align)) { /* the end of the file */
		memset((char *)io->buf + (pos - io->off) + n, 0, left - n);
		return end_at(ring_file_of(io->file), pos + n);
	}
	n -= n % align;
	if (!n)
		return -EIO; /* a write that does not get on */
	io->progress += n;
	return 1;
}

static void note_size(struct host_io *io)
{
	struct ring_file *f = ring_file_of(io->file);

	if ((io->op == HOST_WRITE || io->op == HOST_ZERO) && f->size < io->off + io->len)
		f->size = io->off + io->len;
}

/* What a completion means for the I/O: 0 = complete, 1 = start the rest, or -errno. */
static int outcome(struct host_io *io, int res)
{
	bool transfer = io->op == HOST_READ || io->op == HOST_WRITE || by_writes(io);

	if (res == -EAGAIN || res == -EINTR)
		return 1;
	if (io->op == HOST_ZERO && !by_writes(io) && no_such_fallocate(res))
		return zero_by_writes(io);
	if (res >= 0)
		return transfer ? advance(io, (unsigned)res) : 0;
	return res;
}

/* The write of a linked pair completed: 0, 1 or -errno as above. */
static void pred_completed(struct ring *r, struct host_io *io, int res)
{
	struct host_io *then = io->then;
	bool kernel_has_it = then->link_state != LINK_VOID;

	if (!kernel_has_it)
		then->link_state = LINK_NONE; /* all the rest as if they had never been linked */
	else if (res < 0)
		then->link_state = LINK_FAILS;
	else if (res > 0)
		then->link_state = LINK_REDO_BOTH;
	else
		then->link_state = then->link_state == LINK_SPLIT ? LINK_REDO : LINK_GOES;
	then->pred_res = res;
	if (!res || (res < 0 && !kernel_has_it))
		finish(r, io, res);
	else if (!kernel_has_it)
		start(r, io);
}

/* The fsync of a linked pair completed; true if its result is to be looked at. */
static bool linked_completed(struct ring *r, struct host_io *io)
{
	enum link state = (enum link)io->link_state;

	io->link_state = LINK_NONE;
	switch (state) {
	case LINK_REDO:
		start(r, io);
		return false;
	case LINK_REDO_BOTH:
		start(r, io->pred);
		return false;
	case LINK_FAILS:
		finish(r, io->pred, io->pred_res); /* ends this one, too */
		return false;
	case LINK_WAITS: /* before its write: so it was not behind it */
	case LINK_SPLIT:
		io->link_state = LINK_VOID;
		return false;
	default:
		return true;
	}
}

static void complete(struct ring *r, struct host_io *io, int res)
{
	r->inflight--;
	if (io->link_state && !linked_completed(r, io))
		return;
	res = outcome(io, res);
	if (!res)
		note_size(io);
	if (io->then && io->then->link_state)
		pred_completed(r, io, res);
	else if (res > 0)
		start(r, io);
	else
		finish(r, io, res);
}

/* ---- struct host_ops ---- */

static void reap(struct ring *r)
{
	struct io_uring_cqe *cqe;

	while (!io_uring_peek_cqe(&r->uring, &cqe)) {
		void *data = io_uring_cqe_get_data(cqe);
		int res = cqe->res;
		bool more = cqe->flags & IORING_CQE_F_MORE;

		io_uring_cqe_seen(&r->uring, cqe);
		if (data == &r->wake_fd) {
			r->woken = true;
			r->wake_armed = more;
			arm_wake(r);
		} else if (data == &r->timeout) {
			r->woken = r->timer_expired = true;
			r->timer_armed = false;
		} else {
			complete(r, data, res);
		}
	}
	start_waiting(r);
}

static unsigned ring_poll(struct host_file *file, bool wait)
{
	struct ring *r = ring_file_of(file)->ring;
	bool block;
	int ret;

	r->delivered = 0;
	arm_wake(r);
	do {
		block = wait && !r->delivered && !r->woken && !r->no_wait;
		stamp(r->stamp);
		if (block)
			ret = io_uring_submit_and_wait(&r->uring, 1);
		else
			ret = uring_enter(&r->uring);
		note_split(r);
		if (ret < 0 && !uring_again(ret))
			abort(); /* the ring itself is unusable: no I/O of ours can be completed or given up
				    safely */
		reap(r);
	} while (block && !r->delivered && !r->woken);
	if (wait)
		r->woken = false;
	return r->delivered;
}

/* Read any range into any buffer; @aligned: the range and the buffer already fit the file. */
static int read_all(struct ring_file *f, char *buf, size_t len, uint64_t off)
{
	while (len) {
		ssize_t n = pread(f->fd, buf, len, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n || (size_t)n >= len || n % f->base.dio_align) { /* done, or the end of the file */
			memset(buf + n, 0, len - (size_t)n);
			return (size_t)n >= len ? 0 : end_at(f, off + (uint64_t)n);
		}
		buf += n;
		off += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

static int ring_pread(struct host_file *file, void *buf, size_t len, uint64_t off)
{
	struct ring_file *f = ring_file_of(file);
	uint64_t align = file->dio_align;
	char *to = buf, *bounce;
	int ret = 0;

	if (!((off | len) % align) && !((uintptr_t)buf % file->mem_align))
		return read_all(f, buf, len, off);
	if (posix_memalign((void **)&bounce, 4096, BOUNCE))
		return -ENOMEM;
	while (len && !ret) {
		uint64_t base = off / align * align, skip = off - base;
		size_t n = len < BOUNCE - skip ? len : BOUNCE - skip;

		ret = read_all(f, bounce, (skip + n + align - 1) / align * align, base);
		if (!ret)
			memcpy(to, bounce + skip, n);
		to += n;
		off += n;
		len -= n;
	}
	free(bounce);
	return ret;
}

static int fd_size(int fd, uint64_t *size)
{
	struct stat st;

	if (fstat(fd, &st))
		return -errno;
	*size = (uint64_t)st.st_size;
	if (S_ISBLK(st.st_mode) && ioctl(fd, BLKGETSIZE64, size))
		return -errno;
	return 0;
}

static int ring_size(struct host_file *file, uint64_t *size)
{
	return fd_size(ring_file_of(file)->fd, size);
}

static void ring_close(struct host_file *file)
{
	struct ring_file *f = ring_file_of(file);

	close(f->fd);
	free(f->path);
	free(f);
}

static const struct host_ops ring_ops = {
	.submit = ring_submit,
	.poll = ring_poll,
	.pread = ring_pread,
	.size = ring_size,
	.close = ring_close,
};

/* ---- files ---- */

/* Status flags of the open file description; O_NONBLOCK goes, as io_uring would answer -EAGAIN instead of
 * waiting. */
static int set_direct(int fd, bool direct)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0)
		return -errno;
	flags &= ~(O_NONBLOCK | O_DIRECT);
	return fcntl(fd, F_SETFL, flags | (direct ? O_DIRECT : 0)) ? -errno : 0;
}

/* Identity, size and alignment. A file whose file system does not say gets 4096, which every device takes. */
static int inspect(struct ring_file *f)
{
	struct statx st;
	int ret;

	if (statx(f->fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_DIOALIGN, &st))
		return -errno;
	f->base.fixed_size = S_ISBLK(st.stx_mode);
	f->base.dev = f->base.fixed_size ? makedev(st.stx_rdev_major, st.stx_rdev_minor)
					 : makedev(st.stx_dev_major, st.stx_dev_minor);
	f->base.ino = f->base.fixed_size ? 0 : st.stx_ino;
	f->base.dio_align = f->base.mem_align = 4096;
	if (st.stx_mask & STATX_DIOALIGN) {
		f->base.dio_align = st.stx_dio_offset_align;
		f->base.mem_align = st.stx_dio_mem_align;
	}
	/* 0: the file cannot do direct I/O after all */
	if (!f->base.dio_align || !f->base.mem_align || f->base.dio_align > BOUNCE / 2 ||
	    f->base.mem_align > 4096)
		f->direct = false;
	if (!f->direct)
		f->base.dio_align = f->base.mem_align = 1;
	ret = fd_size(f->fd, &f->size);
	return ret ? ret : set_direct(f->fd, f->direct);
}

int ring_file(struct ring *r, int fd, const char *path, bool read_only, bool direct, struct host_file **out,
	      struct qcow2_error *err)
{
	struct ring_file *f = calloc(1, sizeof(*f));
	int ret = -ENOMEM;

	if (!f)
		goto close_fd;
	f->base.ops = &ring_ops;
	f->base.read_only = read_only;
	f->ring = r;
	f->fd = fd;
	f->direct = direct;
	f->path = strdup(path);
	if (!f->path)
		goto free_file;
	f->base.path = f->path;
	ret = inspect(f);
	if (ret)
		goto free_path;
	*out = &f->base;
	return 0;

free_path:
	free(f->path);
free_file:
	free(f);
close_fd:
	close(fd);
	return qcow2_fail(err, ret, "%s: %s", path, strerror(-ret));
}

int ring_file_fd(const struct host_file *f)
{
	return ((const struct ring_file *)f)->fd;
}

int ring_file_buffered(struct host_file *file)
{
	struct ring_file *f = ring_file_of(file);
	int ret = set_direct(f->fd, false);

	if (ret)
		return ret;
	f->direct = false;
	file->dio_align = file->mem_align = 1;
	return 0;
}

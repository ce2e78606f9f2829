/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * io.h - host I/O as the library sees it: a vtable, so that the same library runs on io_uring
 * (daemon/), on plain system calls (tools, tests), on a recorded device (crash simulator) and on
 * one that injects faults.
 */
#ifndef QCOW2_IO_H
#define QCOW2_IO_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>

enum host_op {
	HOST_READ, /* bytes past the end of the file read as zeroes; not those that somebody cut off */
	HOST_WRITE, /* extends the file if need be */
	HOST_ZERO, /* the range reads as zeroes afterwards and is allocated if the host can do that cheaply;
		      extends the file */
	HOST_PUNCH, /* gives the range's space back, never changes the size; a hint: failure is harmless */
	HOST_FSYNC, /* every write completed before this one was submitted is durable; size included */
};

struct host_file;

/*
 * One host I/O. The caller owns the memory until done() is called, exactly once, from the
 * backend's loop and never from inside submit(). res is 0 (all len bytes transferred) or -errno:
 * the backend resubmits short transfers itself.
 * READ/WRITE: buf aligned to file->mem_align, off and len to file->dio_align.
 * ZERO/PUNCH: off and len are multiples of 512.
 */
struct host_io {
	enum host_op op;
	struct host_file *file;
	uint64_t off;
	uint64_t len;
	void *buf;
	void (*done)(struct host_io *io, int res);
	void *owner; /* the caller's */
	/* NULL, or an I/O to start once this one succeeded (a linked SQE where the backend has that).
	 * If this one fails, it completes with -ECANCELED. Only the first is passed to submit(). */
	struct host_io *then;
	/* the backend's: */
	uint64_t progress; /* bytes already transferred */
	struct host_io *pred; /* whose ->then this is, while linked behind it */
	int pred_res, link_state;
	STAILQ_ENTRY(host_io) link;
};

struct host_ops {
	/* Start one I/O. Cannot fail: errors arrive in done(). */
	void (*submit)(struct host_io *io);
	/* Deliver completions (call done()). With wait, block until at least one is delivered or the
	 * backend was woken. Returns the number delivered. Never called from inside done(). */
	unsigned (*poll)(struct host_file *file, bool wait);
	/* Blocking read for open and check; any alignment. 0 or -errno; zeroes past the end. */
	int (*pread)(struct host_file *file, void *buf, size_t len, uint64_t off);
	/* Current size in bytes of the file or block device. 0 or -errno. */
	int (*size)(struct host_file *file, uint64_t *size);
	/* Release the file and the memory of the host_file. */
	void (*close)(struct host_file *file);
};

/* Embedded at the start of the backend's own struct. */
struct host_file {
	const struct host_ops *ops;
	uint64_t dev, ino; /* identity, for loop detection */
	uint32_t dio_align; /* offset and length granularity of READ/WRITE: 1 (buffered), 512, 4096, ... */
	uint32_t mem_align; /* buffer alignment, at most 4096 */
	bool read_only;
	bool fixed_size; /* a block device: cannot grow, and space never used may hold stale bytes */
	unsigned index; /* position in the backing chain, 0 = the image itself; set by the library */
	const char *path; /* for messages; owned by the backend, valid until close() */
};

/* The backend on plain system calls (io_sync.c): each submit is carried out by the next poll. */
struct qcow2_error;
int host_open_sync(struct host_file **out, const char *path, bool read_only, struct qcow2_error *err);
/* The same over an open descriptor, which it then owns (also on failure). */
int host_fdopen_sync(struct host_file **out, int fd, const char *path, bool read_only, struct qcow2_error *err);

#endif

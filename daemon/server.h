/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * server.h - one ublk device served from one image, inside this process: the boundary between the
 * data path (ring, queue, request, fastmap, ctrl) and the control part (tools/cmd_attach.c,
 * control.c), which runs on the process's main thread.
 */
#ifndef DAEMON_SERVER_H
#define DAEMON_SERVER_H

#include "custody.h"
#include "qcow2/qcow2.h"
#include <stdbool.h>
#include <stdint.h>

enum server_engine { ENGINE_AUTO, ENGINE_KERNEL, ENGINE_SERVER };

struct server_options {
	const char *image; /* path */
	enum server_engine engine; /* of a new device; one that is brought back keeps its own */
	bool read_only;
	unsigned queues; /* 0 = min(CPUs, 4) */
	unsigned depth; /* per queue; 0 = 64; at most 1024 */
	uint64_t cache_size; /* mapping table bytes; 0 = 1 MiB */
	enum qcow2_discard discard;
	bool lock; /* take qemu-compatible image locks */
	bool repair_leaks; /* free leaked clusters first */
	unsigned block_size; /* logical: 512 or 4096 */
	enum backing_format backing_format;
	/* What outlives this process; NULL: nothing, the device dies with it. Its functions are called before
	 * server_create() returns, one at a time. */
	const struct custody *custody;
};

struct server_stats {
	uint64_t hits, misses, kernel_hits, reads, writes, read_bytes, write_bytes, flushes, discards;
	uint64_t commits, withdrawals, drains;
	uint64_t slices; /* mapping table slots in use */
};

struct server;

/*
 * Open and lock the image, add and start the device; when it returns 0 the device node can be
 * opened. On failure -errno, err says what and why, and nothing is left behind (no device, no lock).
 * With opt->custody->recover the device is there already and has lost its server: it serves again when this
 * returns 0, and is as it was on failure. -ESHUTDOWN: it had been stopped or deleted; then the image is up to
 * date and closed and the device is gone.
 */
int server_create(struct server **out, const struct server_options *opt, struct qcow2_error *err);
const char *server_device(const struct server *s); /* "/dev/ublkb0"; engine kernel: "/dev/ublkbpf0" */
int server_id(const struct server *s);
const char *server_engine(const struct server *s); /* "kernel" or "server" */
bool server_zero_copy(const struct server *s);
/* false: the image file goes through the page cache, as its clusters are smaller than the alignment of direct
 * I/O there, or as it cannot do direct I/O. */
bool server_direct_io(const struct server *s);
uint64_t server_size(const struct server *s); /* guest bytes */
bool server_read_only(const struct server *s); /* now */
/* An eventfd, readable once the image of a writable device became read-only (corruption found, an fsync
 * failed). */
int server_read_only_fd(const struct server *s);
unsigned server_queues(const struct server *s);
unsigned server_depth(const struct server *s);
/* Whether engine kernel shall serve hits; the daemon does else. Any thread. */
void server_allow_hits(struct server *s, bool allow);
/* Have the running and waiting steps of the image written to stderr; async-signal-safe (SIGUSR1). */
void server_dump(struct server *s);
void server_get_stats(struct server *s, struct server_stats *out);
/* Readable when the device went away without server_stop() (deleted by someone else) or the
 * data path died. */
int server_dead_fd(const struct server *s);
/* Whether the device is there and the driver would give it to another process, if this one ended now. */
bool server_can_be_followed(const struct server *s);
/*
 * Stop the device (no more requests), commit and close the image, delete the device, free. err gets
 * the first failure; everything is released in any case. The caller has checked that nobody uses it.
 */
int server_stop(struct server *s, struct qcow2_error *err);
/*
 * Stop serving but leave the device to the next process: it holds back what has not been answered. The image
 * is committed and closed, the journal empty if that succeeded; else err says why. Frees.
 */
int server_leave(struct server *s, struct qcow2_error *err);

#endif

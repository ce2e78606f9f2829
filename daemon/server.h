/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * server.h - one ublk device served from one image, inside this process: the boundary between the
 * data path (ring, queue, request, fastmap, ctrl) and the control part (tools/cmd_attach.c,
 * control.c), which runs on the process's main thread.
 */
#ifndef DAEMON_SERVER_H
#define DAEMON_SERVER_H

#include "qcow2/qcow2.h"
#include <stdbool.h>
#include <stdint.h>

struct server_options {
	const char *image; /* path */
	bool read_only;
	unsigned queues; /* 0 = min(CPUs, 4) */
	unsigned depth; /* per queue; 0 = 64; at most 1024 */
	uint64_t cache_size; /* mapping table bytes; 0 = 1 MiB */
	enum qcow2_discard discard;
	bool lock; /* take qemu-compatible image locks */
	unsigned block_size; /* logical: 512 or 4096 */
	enum backing_format backing_format;
	/* NULL, or told the number of the device as soon as ADD_DEV returned it, from server_create()'s
	 * thread: whoever watches this process can then delete the device should it die before it is ready.
	 */
	void (*added)(void *ctx, int id);
	void *added_ctx;
};

struct server_stats {
	uint64_t hits, misses, reads, writes, read_bytes, write_bytes, flushes, discards;
	uint64_t commits, withdrawals, drains;
	uint64_t slices; /* mapping table slots in use */
};

struct server;

/*
 * Open and lock the image, add and start the device; when it returns 0 the device node can be
 * opened. On failure -errno, err says what and why, and nothing is left behind (no device, no lock).
 */
int server_create(struct server **out, const struct server_options *opt, struct qcow2_error *err);
const char *server_device(const struct server *s); /* "/dev/ublkb0" */
int server_id(const struct server *s);
const char *server_engine(const struct server *s); /* "server" */
bool server_zero_copy(const struct server *s);
uint64_t server_size(const struct server *s); /* guest bytes */
bool server_read_only(const struct server *s);
unsigned server_queues(const struct server *s);
unsigned server_depth(const struct server *s);
/* Have the running and waiting steps of the image written to stderr; async-signal-safe (SIGUSR1). */
void server_dump(struct server *s);
void server_get_stats(struct server *s, struct server_stats *out);
/* Readable when the device went away without server_stop() (deleted by someone else) or the
 * data path died. */
int server_dead_fd(const struct server *s);
/*
 * Stop the device (no more requests), commit and close the image, delete the device, free. err gets
 * the first failure; everything is released in any case. The caller has checked that nobody uses it.
 */
int server_stop(struct server *s, struct qcow2_error *err);

#endif

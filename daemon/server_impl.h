/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * server_impl.h - what server.c (a device from birth to death) and server_recover.c (a device that has lost
 * its server) share. Functions return 0 or -errno with err.
 */
#ifndef DAEMON_SERVER_IMPL_H
#define DAEMON_SERVER_IMPL_H

#include "arena.h"
#include "ctrl.h"
#include "kernel_engine.h"
#include "meta.h"
#include "queue.h"
#include "server.h"
#include <time.h>

#define RECOVERY_FLAGS (UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE)

struct server {
	struct ctrl *ctrl;
	struct arena *library; /* the memory of requests with the metadata thread */
	struct arena *pool; /* buffers of what they read and write */
	struct kernel_engine *kernel; /* NULL: without it from the start */
	struct fastmap *map;
	struct meta *meta;
	const struct copy_ops *copy;
	struct ublksrv_ctrl_dev_info info;
	uint64_t size;
	int id, char_fd, zero_fd, dead_fd;
	unsigned queues; /* started */
	struct queue **queue;
	bool started;
	bool stays; /* the device is not ours to stop and delete */
	bool stacked; /* engine kernel: nobody but the upper device gets what is in it */
	char node[32], upper[32];
};

static inline void server_nap(void)
{
	static const struct timespec ms = { .tv_nsec = 1000000 };

	nanosleep(&ms, NULL);
}

/* The parts of bringing a device up, in this order. */
int server_prepare(struct server *s, const struct server_options *opt, struct qcow2_error *err);
/* The mapping table and the image over it. */
int server_open_image(struct server *s, const struct server_options *opt, unsigned queues,
		      struct qcow2_error *err);
/* What the driver is told, or was told when the device was added. */
void server_shape(struct server *s, const struct server_options *opt, struct ublk_params *params);
int server_open_char(struct server *s, const struct server_options *opt, struct qcow2_error *err);
struct queue_options server_queue_settings(const struct server *s, const struct custody *custody);
int server_start_queues(struct server *s, const struct custody *custody, struct qcow2_error *err);
int server_stack(struct server *s, struct qcow2_error *err);

const struct copy_ops *server_way_of(uint64_t flags);
uint64_t server_cache_size(const struct server_options *opt);
void server_use_kernel(struct server *s);

/* server_recover.c: the whole of it. -ESHUTDOWN as server_create(). */
int server_bring_back(struct server *s, const struct server_options *opt, struct qcow2_error *err);

#endif

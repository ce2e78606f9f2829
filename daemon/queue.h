/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * queue.h - one hardware queue of the ublk device, served by one thread on one io_uring.
 * Seen by queue.c (thread, ring, buffers), request.c (one request) and copy.c (its data).
 */
#ifndef DAEMON_QUEUE_H
#define DAEMON_QUEUE_H

#include "copy.h"
#include "meta.h"
#include <liburing.h>
#include <linux/ublk_cmd.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <sys/queue.h>

#define MAX_IO_BYTES (512u << 10)
#define MAX_EXTENTS 8u /* data I/Os of one mapped request */

struct queue_options {
	unsigned id; /* also its reader number in the mapping table */
	unsigned depth;
	const cpu_set_t *cpus; /* NULL: anywhere; used until queue_start() returns */
	int char_fd; /* /dev/ublkcN */
	int zero_fd; /* /dev/zero */
	int dead_fd; /* written when the thread ends; -1: none */
	const int *hold; /* held open by the ring, see custody.h */
	unsigned holds;
	uint64_t *stamp; /* NULL: none; see stamp.h */
	uint32_t fetch_cmd, commit_cmd; /* ctrl_io_cmd() */
	const struct copy_ops *copy;
	const struct meta_files *files;
	struct fastmap *map;
	struct meta *meta;
	struct arena *pool; /* buffers of requests, each of its size; NULL: every tag has its own */
	const bool *hidden; /* while true only the disk over the device gets what is in it */
	bool reissue; /* what is not answered when the ring goes is for the next server, not failed */
};

struct queue;

/* Start the thread; returns when it has asked for requests on every tag, or failed. 0 or -errno with err. */
int queue_start(struct queue **out, const struct queue_options *opt, struct qcow2_error *err);
enum queue_end {
	QUEUE_STOPPED, /* the device was stopped: nothing is left in the ring */
	QUEUE_GIVEN_UP, /* the device was not started: its commands end with the ring */
	QUEUE_LEFT, /* for the next server: the ring, with its commands, stays until this process ends */
};

/* Wait until the thread has ended, QUEUE_STOPPED: by itself. */
void queue_join(struct queue *q, enum queue_end end);
/* After meta_stop(): the metadata thread may use its buffers until then. */
void queue_free(struct queue *q);
/* Any thread, before the device is started: the driver has kept all of its FETCHes. */
bool queue_is_whole(const struct queue *q);
void queue_more(struct queue *q); /* any thread: the pool has buffers again */
void queue_add_stats(const struct queue *q, struct server_stats *st); /* any thread */

/* ---- for request.c and copy.c ---- */

/* What a CQE's user_data points to. */
struct completion {
	void (*fn)(struct completion *c, int res, unsigned flags);
};

struct request {
	struct completion command; /* FETCH or COMMIT_AND_FETCH came back: the next request is here */
	struct completion data; /* one of the data I/Os of a mapped request */
	struct queue *q;
	uint16_t tag;
	uint16_t pending; /* data I/Os to come, plus one while they are being queued */
	bool filled; /* buf has the data of the WRITE */
	int error; /* the first of a data I/O */
	uint32_t moved; /* bytes the data I/Os transferred */
	uint32_t touched; /* bytes of buf that may be backed by memory */
	struct fastmap_hold hold; /* while pending */
	char *buf; /* MAX_IO_BYTES of address space; from the pool: while the request needs one */
	struct miss miss;
	STAILQ_ENTRY(request) starved;
};

struct queue_stats {
	uint64_t hits, misses, reads, writes, read_bytes, write_bytes, flushes, discards;
};

struct queue {
	struct queue_options opt;
	struct io_uring ring;
	const struct ublksrv_io_desc *iod; /* mapped from char_fd, indexed by tag */
	struct request *request; /* by tag */
	char *buffers; /* without a pool */
	STAILQ_HEAD(, request) starved; /* missed, the pool had no buffer */
	struct completion answers; /* home.event_fd was written */
	struct home home;
	unsigned char_file, zero_file; /* indices in the ring's file table */
	unsigned live; /* tags that the kernel has not given up */
	unsigned mapped, missed; /* requests in flight: on this ring; at the metadata thread */
	uint64_t touched; /* bytes of buffers that may be backed by memory */
	bool deferred, quit, wake_meta, closed;
	struct queue_stats stats;
	/* start */
	pthread_t thread;
	sem_t started;
	int ret;
	struct qcow2_error *err;
};

static inline void stat_add(uint64_t *counter, uint64_t by)
{
	__atomic_store_n(counter, *counter + by, __ATOMIC_RELAXED); /* one writer */
}

/* request.c */
void request_init(struct request *r, struct queue *q, uint16_t tag, char *buf);
void request_fetch(struct request *r); /* the first command of a tag */
void request_answered(struct request *r); /* the metadata thread is done with it */
void request_starved(struct queue *q); /* the pool may have buffers for those that wait */
void request_touch(struct request *r, uint32_t len); /* the first len bytes of its buffer are used */

#endif

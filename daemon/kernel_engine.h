/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * kernel_engine.h - engine `kernel`: /dev/ublkbpfN over /dev/ublkbN, whose requests are served in the kernel
 * where the mapping table knows them. Used by server.c, on the main thread, in this order.
 */
#ifndef DAEMON_KERNEL_ENGINE_H
#define DAEMON_KERNEL_ENGINE_H

#include "fastmap.h"
#include "meta.h"

struct kernel_engine;

/* For tools: whether this machine can. 0 or -errno with err. */
int kernel_engine_probe(struct qcow2_error *err);

/* The table's memory. 0 or -errno with err: why the engine cannot be used on this machine; -ENOENT: no
 * module. */
int kernel_engine_new(struct kernel_engine **out, uint64_t cache_bytes, struct qcow2_error *err);
const struct fastmap_peer *kernel_engine_peer(const struct kernel_engine *k);
/* The disk over @id was there before this process: have it ask the daemon below for everything, until
 * start(). Nothing may be known of the image yet. 1: done; 0: there is no disk; -errno with err. */
int kernel_engine_adopt(struct kernel_engine *k, int id, struct qcow2_error *err);
/* The lower device got number @id; it need not be started. 0 or -errno with err: as for new(). */
int kernel_engine_load(struct kernel_engine *k, int id, unsigned cluster_bits, struct fastmap *map,
		       struct qcow2_error *err);
/* The lower device serves, as others than this thread see to. Make the disk, if it was not adopted, and have
 * it ask the program. 0 or -errno with err. */
int kernel_engine_start(struct kernel_engine *k, const char *lower, const struct meta_files *files,
			bool read_only, struct qcow2_error *err);
/* Take the disk down; the lower device still serves. False: somebody has it open and did not close it for a
 * while; it stays, but knows nothing of the image any more. */
bool kernel_engine_remove(struct kernel_engine *k);
/* Hits in the kernel are added to what the queues counted. */
void kernel_engine_stats(const struct kernel_engine *k, struct server_stats *st);
/* The image is closed. What was started and not removed goes on. */
void kernel_engine_free(struct kernel_engine *k);

#endif

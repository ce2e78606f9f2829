/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * device.h - a host file that remembers what a power cut could leave of it.
 *
 * It keeps the bytes that are durable, the bytes that a reader sees, and between them, in the order of issue,
 * every change that no completed fsync covers (one that completed before the fsync was issued). I/O completes
 * in random order, a few of them late. Before and after everything that changes what a crash could leave, the
 * observer is called.
 */
#ifndef TESTS_CRASH_DEVICE_H
#define TESTS_CRASH_DEVICE_H

#include "crash.h"
#include "qcow2/io.h"

#define DEVICE_MAX (6ull << 20) /* bytes; a file that wants more has grown for no reason */

/* A write, zeroing or punch that may be lost. */
struct change {
	enum host_op op;
	uint64_t off, len; /* len may be cut by a failure */
	uint8_t *data; /* NULL: zeroes */
	uint64_t *value; /* of each sector */
	uint64_t issued, completed; /* clock; 0 = in flight */
	bool dropped; /* an fsync of it failed: no later one covers it */
	TAILQ_ENTRY(change) link;
};

enum point {
	POINT_EVENT,
	POINT_SYNC /* an fsync is about to complete */,
	POINT_FLUSH /* a guest's completed */
};

struct flight;
struct device {
	uint64_t clock; /* the moment of the last event */
	struct rng rng;
	uint8_t *durable, *live;
	uint64_t *value; /* of each durable sector */
	uint64_t durable_size, live_size;
	uint64_t hash; /* of the durable bytes, see device_hash_of() */
	TAILQ_HEAD(changes, change) changes;
	unsigned nchanges;
	uint32_t dio_align;
	bool fixed_size; /* a block device: the bytes past the image's end are not zeroes */
	struct flight *flight;
	size_t nflights, cap;
	void (*observe)(void *ctx, enum point p);
	void *ctx;
	unsigned fail_one_in; /* reads and changes that fail; 0 = none */
	unsigned fail_sync_one_in;
	uint64_t writes, syncs;
	unsigned opened;
};

struct device *device_new(const void *bytes, uint64_t size, uint64_t seed);
void device_free(struct device *d);
/* The library's view; any number at a time. Of its I/O one in @slow_one_in is overtaken by much else. */
struct host_file *device_open(struct device *d, const char *path, bool read_only, uint64_t ino,
			      unsigned slow_one_in);
/* Let some I/O complete; returns how many did. */
unsigned device_poll(struct device *d, bool wait);

/* Whoever has the file open is killed: what is in flight may still arrive, torn or whole; nobody is told. The
 * open files are forgotten. */
void device_kill(struct device *d);

/* The share of one sector in the hash of a file. */
static inline uint64_t device_hash_of(uint64_t sector, uint64_t value)
{
	return value ? mix(sector, value) : 0;
}

#endif

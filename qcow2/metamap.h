/* SPDX-License-Identifier: GPL-2.0-or-later */
/* metamap.h - which host clusters hold metadata: the overlap check's memory. Pure data structure. */
#ifndef QCOW2_METAMAP_H
#define QCOW2_METAMAP_H

#include <stdbool.h>
#include <stdint.h>

enum meta_type {
	META_NONE,
	META_HEADER,
	META_L1,
	META_L2, /* referenced by the durable L1 table */
	META_L2_NEW, /* its L1 entry is not durable yet */
	META_RT,
	META_RB,
	META_SNAPSHOT, /* snapshot table, L1 tables of snapshots */
	META_QUARANTINE, /* freed, but not durably so: neither reused nor punched */
};

struct metamap;

struct metamap *metamap_new(void); /* NULL: out of memory */
void metamap_free(struct metamap *m);
/* Clusters [first, first + n) become @type. 0; -EEXIST: one of them is there already (nothing
 * changed); -ENOMEM. */
int metamap_add(struct metamap *m, uint64_t first, uint64_t n, enum meta_type type);
/* Change or (META_NONE) remove one cluster that is there; never fails. */
void metamap_set(struct metamap *m, uint64_t cluster, enum meta_type type);
enum meta_type metamap_get(const struct metamap *m, uint64_t cluster);
/* "L2 table", "refcount block", ... for messages. */
const char *meta_name(enum meta_type type);

#endif

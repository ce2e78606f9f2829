/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * slice_index.h - slice number -> slot number, for the threads of this process. (The kernel's program has a
 * BPF hash map for the same.) One thread changes it while others look.
 *
 * It is a hint: a look during a change may find nothing, or a slot that is just becoming another slice's.
 * Who uses the slot compares the slice in the slot's own header.
 */
#ifndef DAEMON_SLICE_INDEX_H
#define DAEMON_SLICE_INDEX_H

#include <stdint.h>

#define SLICE_INDEX_NONE UINT32_MAX

struct slice_index {
	struct slice_index_entry *entry;
	uint32_t mask; /* entries - 1 */
};

/* Room for that many slices. 0 or -ENOMEM. */
int slice_index_init(struct slice_index *x, uint32_t slices);
void slice_index_exit(struct slice_index *x); /* also of zeroes, and after a failed init */

/* Any thread. Of the thread that changes it the answer is exact. */
uint32_t slice_index_find(const struct slice_index *x, uint64_t slice);
/* One thread. The slice is not there; there is room. */
void slice_index_insert(struct slice_index *x, uint64_t slice, uint32_t slot);
/* One thread. The slice is there. */
void slice_index_remove(struct slice_index *x, uint64_t slice);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* workload.h - one run: an image, a guest at work on it, and every power cut on the way. */
#ifndef TESTS_CRASH_WORKLOAD_H
#define TESTS_CRASH_WORKLOAD_H

#include "family.h"

struct totals {
	uint64_t runs, lives, points;
	uint64_t states; /* built */
	uint64_t judged; /* of these: not the same file under the same rules as one before in this life */
	uint64_t distinct; /* different files, over all runs of the family */
	uint64_t writes, flushes, syncs, hits;
	uint64_t recovered, asked; /* samples: reopened and used; shown to qemu-img */
	double seconds, worst; /* worst: one run */
};

/* What is too slow for every state happens to one in so many; 0 = none. */
struct sampling {
	unsigned reuse; /* it is opened, used and closed */
	unsigned qemu; /* qemu-img is asked */
};

struct replay {
	uint64_t point;
	int64_t state; /* -1: run the whole, judge everything */
	const char *image; /* write that state here; may be NULL */
	bool *reached; /* set when the state is there */
};

/* Everything is a function of @f and @seed. @replay: look at that state alone; may be NULL. */
void workload_run(const struct family *f, uint64_t seed, struct sampling sampling,
		  const struct replay *replay, struct totals *sum);
/* Forget which files were seen: the next run is of another family. */
void workload_forget(void);

#endif

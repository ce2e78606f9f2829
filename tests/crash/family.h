/* SPDX-License-Identifier: GPL-2.0-or-later */
/* family.h - the images that workloads start from, and what a workload does to them. */
#ifndef TESTS_CRASH_FAMILY_H
#define TESTS_CRASH_FAMILY_H

#include "crash.h"

struct file {
	char path[256];
	uint8_t *bytes;
	uint64_t size;
};

/* An image to start from. Made once, used by many runs. */
struct template
{
	struct template *next;
	char dir[200]; /* of its files */
	struct file image, backing[2];
	unsigned backings;
	uint64_t sectors; /* of the guest's disk */
	uint64_t *content; /* what the guest reads, per sector; the internal snapshot, if there is one, has
			      the same */
	uint64_t *below; /* what it would read where nothing is allocated */
	uint64_t below_sectors; /* of the backing file */
	unsigned cluster_size, version;
	bool snapshot;
};

/* What the guest does, in parts of the sum. */
struct mixture {
	unsigned write, zero, discard, read, flush, hit;
};

struct family {
	const char *name, *about;
	struct mixture mix;
	uint32_t dio_align; /* 0 = any */
	bool faults; /* host writes and fsyncs fail now and then */
	bool blockdev; /* the image is on a device of fixed size that is full of old data */
	bool killed; /* there is a journal, and the process is killed now and then */
	bool keep; /* write zeroes often with QCOW2_REQ_NO_UNMAP */
	const char *make; /* shell; each image it leaves as t.qcow2 is a template: "image" ends one */
	void (*build)(struct template *t, unsigned variant); /* instead: by hand */
	unsigned variants;
	struct template *templates;
	unsigned ntemplates;
};

extern struct family families[];
extern const unsigned nfamilies;

struct family *family_find(const char *name);
/* Make the templates below @dir. */
void family_prepare(struct family *f, const char *dir);
void family_free(struct family *f);
#endif

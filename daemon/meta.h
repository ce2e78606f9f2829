/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * meta.h - the metadata thread: it owns the open image and its ring. Queue threads send it the
 * requests that the mapping table cannot answer and get them back in their home mailbox.
 */
#ifndef DAEMON_META_H
#define DAEMON_META_H

#include "fastmap.h"
#include "mailbox.h"
#include "server.h"

/* Where answers go: one per queue thread. event_fd is written once for a batch of them. */
struct home {
	struct mailbox box;
	int event_fd;
	struct home *next; /* the metadata thread's list of homes to wake */
	bool to_wake; /* on that list */
};

struct miss {
	struct letter letter; /* first */
	struct qcow2_req
		req; /* op, flags, off, len, buf: the sender's; done and owner: the metadata thread's */
	struct home *home;
	int res; /* the answer */
};

/* What queue threads need to know of the files a mapping can name. */
struct meta_files {
	unsigned count; /* the first FASTMAP_MAX_FILES of the chain */
	int fd[FASTMAP_MAX_FILES];
	uint32_t align[FASTMAP_MAX_FILES]; /* direct I/O: offset and length */
	uint32_t mem_align; /* the largest of all */
};

struct meta;

/*
 * Start the thread and have it open and lock the image (@opt must stay valid until this returns).
 * @map gets the cluster size and becomes the image's table. 0 or -errno with err.
 */
int meta_start(struct meta **out, const struct server_options *opt, struct fastmap *map,
	       struct qcow2_error *err);
/* Commit and close the image, end the thread, free. The queue threads have ended: what is left of requests
 * runs to its end, unanswered. The close's first error. */
int meta_stop(struct meta *m, struct qcow2_error *err);

const struct qcow2_info *meta_info(const struct meta *m); /* as it was opened */
bool meta_read_only(const struct meta *m); /* now; any thread */
int meta_read_only_fd(const struct meta *m); /* an eventfd: readable when a writable image became read-only */
const struct meta_files *meta_files(const struct meta *m);
void meta_commits(const struct meta *m,
		  struct server_stats *st); /* fills what the library counts; any thread */

/* Any thread. send() returns whether meta_wake() is needed: once, after the last of a batch. */
bool meta_send(struct meta *m, struct miss *miss);
void meta_wake(struct meta *m);
/* Any thread: whether engine kernel shall serve hits; at first unless the thread that calls meta_start() is
 * one of swap.h's. */
void meta_allow_hits(struct meta *m, bool allow);
/* Have the thread write its stuck or running steps to stderr; async-signal-safe. */
void meta_dump(struct meta *m);

#endif

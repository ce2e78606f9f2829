/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * op.h - explicit step functions with a pending count instead of coroutines.
 *
 * An op is one activity (a guest request, a commit, the creation of a table). Its step submits I/O
 * or queues itself on something (each adds to ->pending), names the next step and returns
 * STEP_NEXT; when ->pending drops to zero the run queue calls the next step. A step that finished
 * the op returns STEP_DONE and must not touch it afterwards. Errors of everything waited for are
 * collected in ->err (the first one wins); the next step looks at it first.
 * One run queue serves an image and its whole backing chain, on one thread.
 */
#ifndef QCOW2_OP_H
#define QCOW2_OP_H

#include <sys/queue.h>
#include "io.h"
#include "mem.h"

enum step { STEP_NEXT, STEP_DONE };

struct op;
typedef enum step (*step_fn)(struct op *op);

TAILQ_HEAD(waitq, op);

struct runq {
	struct waitq ready;
};

struct op {
	struct runq *rq;
	step_fn next;
	const char *where; /* the next step's name, for the dump of stuck requests */
	unsigned pending;
	int err; /* 0 or the first -errno of what was waited for */
	bool sync_failed; /* an fsync itself failed (not merely cancelled behind a failed write) */
	TAILQ_ENTRY(op) link; /* ready queue or exactly one wait queue */
};

void runq_init(struct runq *rq);
/* Run ready steps until none is left. Not re-entrant. */
void runq_run(struct runq *rq);

/* Prepare an op; op_start() makes it ready. */
void op_init(struct op *op, struct runq *rq);
#define op_then(op_, fn_) ((op_)->next = (fn_), (op_)->where = #fn_)
void op_start(struct op *op);

/* One more / one fewer thing to wait for. op_put() from the last one makes the op ready. */
void op_get(struct op *op);
void op_put(struct op *op, int err);

/* Wait queues: op_wait() counts as one pending thing until woken. */
void waitq_init(struct waitq *wq);
void op_wait(struct waitq *wq, struct op *op);
void waitq_wake(struct waitq *wq, int err);

/*
 * Host I/O on behalf of an op: one pending thing until it completed. The ranges may have any
 * alignment: an unaligned read goes through a bounce buffer, an unaligned write is a
 * read-modify-write of the surrounding blocks (the caller holds whatever guards them).
 */
void op_read(struct op *op, struct host_file *file, void *buf, uint64_t len, uint64_t off);
void op_write(struct op *op, struct host_file *file, const void *buf, uint64_t len, uint64_t off);
void op_zero(struct op *op, struct host_file *file, uint64_t len, uint64_t off);
void op_punch(struct op *op, struct host_file *file, uint64_t len, uint64_t off);
void op_fsync(struct op *op, struct host_file *file);
/* One aligned write with a linked fsync behind it (one submission); two pending things. */
void op_write_fsync(struct op *op, struct host_file *file, const void *buf, uint64_t len, uint64_t off);

#endif

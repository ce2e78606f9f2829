// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * kernel_drain.c - a thread that waits in UBLK_BPF_DRAIN.
 *
 * Owns a mailbox of drains, in the order in which they were asked for, and does one after the other: mostly a
 * later one finds that its hits ended while the earlier one waited. It is asked only if there is somebody to
 * wait for: the metadata thread looks first, without waiting.
 *
 * An error of the module does not count as drained: the hits might still be there. Only a disk that is gone
 * has none.
 */
#include "kernel_drain.h"
#include "log.h"
#include "mailbox.h"
#include "thread.h"
#include "upper.h"
#include <errno.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct job {
	struct letter letter; /* first */
	struct ublk_bpf_drain drain;
	uint64_t ticket;
};

struct kernel_drain {
	int control, id;
	unsigned range_shift;
	kernel_drained_fn *fn;
	void *ctx;
	struct mailbox box;
	sem_t work;
	bool stop;
	pthread_t thread;
};

static void wait_for_hits(struct kernel_drain *d, struct ublk_bpf_drain *drain)
{
	bool said = false;
	int ret;

	while ((ret = upper_call(d->control, UBLK_BPF_DRAIN, drain)) && ret != -ENODEV) {
		if (ret == -EINTR)
			continue;
		if (!said)
			log_line(LOG_ERR, "/dev/ublkbpf%d: drain: %s: writes wait", d->id, strerror(-ret));
		said = true;
		usleep(100000);
	}
}

static void work(struct kernel_drain *d)
{
	struct letter *l, *next;

	for (l = mailbox_take(&d->box); l; l = next) {
		struct job *job = (struct job *)l;

		next = l->next;
		wait_for_hits(d, &job->drain);
		d->fn(d->ctx, job->ticket);
		free(job);
	}
}

static void *drain_main(void *arg)
{
	struct kernel_drain *d = arg;
	bool stop;

	thread_io_path();
	do {
		stop = __atomic_load_n(&d->stop, __ATOMIC_ACQUIRE); /* then nothing new comes */
		work(d);
		while (!stop && sem_wait(&d->work))
			; /* a signal */
	} while (!stop);
	return NULL;
}

int kernel_drain(struct kernel_drain *d, uint64_t first, uint64_t end, uint64_t ticket)
{
	struct ublk_bpf_drain drain = {
		.id = (__u32)d->id,
		.flags = UBLK_BPF_DRAIN_NOWAIT,
		.offset = first << d->range_shift,
		.length = (end - first) << d->range_shift,
	};
	struct job *job;
	int ret = upper_call(d->control, UBLK_BPF_DRAIN, &drain);

	if (!ret || ret == -ENODEV)
		return 0;
	drain.flags = 0;
	job = malloc(sizeof(*job));
	if (!job) {
		wait_for_hits(d, &drain);
		return 0;
	}
	job->drain = drain;
	job->ticket = ticket;
	if (mailbox_put(&d->box, &job->letter))
		sem_post(&d->work);
	return -EWOULDBLOCK;
}

int kernel_drain_start(struct kernel_drain **out, int control, int id, unsigned range_shift,
		       kernel_drained_fn *fn, void *ctx)
{
	struct kernel_drain *d = calloc(1, sizeof(*d));
	int ret;

	if (!d)
		return -ENOMEM;
	d->control = control;
	d->id = id;
	d->range_shift = range_shift;
	d->fn = fn;
	d->ctx = ctx;
	sem_init(&d->work, 0, 0);
	ret = thread_start(&d->thread, "drain", drain_main, d);
	if (ret) {
		sem_destroy(&d->work);
		free(d);
		return ret;
	}
	*out = d;
	return 0;
}

void kernel_drain_stop(struct kernel_drain *d)
{
	__atomic_store_n(&d->stop, true, __ATOMIC_RELEASE);
	sem_post(&d->work);
	pthread_join(d->thread, NULL);
	sem_destroy(&d->work);
	free(d);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * queue.c - the thread of one ublk queue.
 *
 * Owns the queue's ring, its file table (the chain's files, then /dev/ublkcN, then /dev/zero, then what
 * custody.h wants held), the mapped request descriptors, and per tag a struct request with MAX_IO_BYTES of
 * buffer address space.
 *
 * Invariants:
 * - Only this thread touches the ring and the requests, except for a missed request between meta_send() and
 * its answer.
 * - The thread ends when the driver has given up every tag (the device was stopped: nothing is in flight
 * then), or, if it has to quit early, once its data I/Os completed: the holds on the mapping table must be
 * given back.
 * - Buffers of the tags (there is no pool) are given back to the system when the queue was idle for a while
 * and nothing of it is in flight. With deferred task work the driver copies write data only inside our
 * io_uring_enter(), so none can be lost; without, they are kept.
 *
 * When the ring goes, also by a crash, the driver fails what it had in flight, or, where it knows user
 * recovery, keeps it for the next server. In the second case a ring with commands in it is not closed while its
 * thread lives: 6.12 first takes back what this server has, and then hands requests that were on their way to
 * a thread that is still there. Nobody answers those, nobody takes them back, and the next server waits for
 * them for ever.
 */
#include "queue.h"
#include "thread.h"
#include "uring.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define KEEP_BYTES (256u << 10) /* an idle queue may keep this much buffer */
#define IDLE_NS 500000000

/* ---- set-up, on the queue's thread ---- */

static size_t iod_bytes(unsigned depth)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	return (depth * sizeof(struct ublksrv_io_desc) + page - 1) / page * page;
}

static int register_files(struct queue *q)
{
	const struct meta_files *files = q->opt.files;
	int fds[FASTMAP_MAX_FILES + 2 + CUSTODY_HOLDS];

	memcpy(fds, files->fd, files->count * sizeof(*fds));
	q->char_file = files->count;
	q->zero_file = files->count + 1;
	fds[q->char_file] = q->opt.char_fd;
	fds[q->zero_file] = q->opt.zero_fd;
	if (q->opt.holds)
		memcpy(fds + files->count + 2, q->opt.hold, q->opt.holds * sizeof(*fds));
	return io_uring_register_files(&q->ring, fds, files->count + 2 + q->opt.holds);
}

static void answers_come(struct completion *c, int res, unsigned flags);

static void arm_answers(struct queue *q)
{
	struct io_uring_sqe *sqe = uring_sqe(&q->ring);

	if (sqe)
		uring_prep_wake(sqe, q->home.event_fd, &q->answers);
	else
		q->quit = true; /* deaf: cannot happen, as for COMMIT in request.c */
}

static int setup_ring(struct queue *q)
{
	unsigned depth = q->opt.depth;
	int ret = uring_setup(&q->ring, 2 * depth + MAX_EXTENTS + 4, 4 * depth + 16, &q->deferred);

	if (ret)
		return ret;
	io_uring_register_ring_fd(&q->ring); /* spares each call a look at the file table; before 5.18: no */
	ret = register_files(q);
	if (!ret)
		ret = q->opt.copy->setup(&q->ring, depth);
	if (ret) {
		io_uring_queue_exit(&q->ring);
		return ret;
	}
	q->answers.fn = answers_come;
	arm_answers(q);
	return 0;
}

static void close_ring(struct queue *q)
{
	/* At once: deleting the device waits for the last user of ublkcN. With commands in flight 6.12 would
	 * wait for these here, which nothing ends but the end of the ring. */
	if (!q->live)
		io_uring_unregister_files(&q->ring);
	io_uring_queue_exit(&q->ring);
	q->closed = true;
}

static int map_descriptors(struct queue *q)
{
	off_t pos = UBLKSRV_CMD_BUF_OFFSET + (off_t)(q->opt.id * iod_bytes(UBLK_MAX_QUEUE_DEPTH));
	void *p = mmap(NULL, iod_bytes(q->opt.depth), PROT_READ, MAP_SHARED | MAP_POPULATE, q->opt.char_fd,
		       pos);

	if (p == MAP_FAILED)
		return -errno;
	q->iod = p;
	return 0;
}

/* What the driver has against a FETCH. One that it takes does not complete before the device is started. */
static int refusal(struct queue *q)
{
	struct io_uring_cqe *cqe;
	unsigned head;

	uring_enter(&q->ring);
	io_uring_for_each_cqe(&q->ring, head, cqe)
	{
		if (cqe->res < 0)
			return cqe->res;
	}
	return 0;
}

/* Ask for a request on every tag. Starting the device, or ending its recovery, would wait for a refused one
 * for ever. */
static int fetch_all(struct queue *q)
{
	int ret;

	for (unsigned tag = 0; tag < q->opt.depth; tag++)
		request_fetch(&q->request[tag]);
	q->live = q->opt.depth;
	do
		ret = io_uring_submit(&q->ring);
	while (uring_again(ret) || (ret > 0 && io_uring_sq_ready(&q->ring)));
	return ret < 0 ? ret : refusal(q);
}

static int setup(struct queue *q)
{
	int ret;

	if (q->opt.cpus)
		sched_setaffinity(0, sizeof(*q->opt.cpus), q->opt.cpus); /* a preference */
	thread_io_path();
	ret = setup_ring(q);
	if (ret)
		return qcow2_fail(q->err, ret, "ublk queue %u: io_uring: %s", q->opt.id, strerror(-ret));
	ret = fetch_all(q);
	if (ret) {
		qcow2_fail(q->err, ret, "ublk queue %u: FETCH: %s", q->opt.id, strerror(-ret));
		goto exit_ring;
	}
	ret = map_descriptors(q); /* not before: 6.12 lets nobody else map them until a queue was ready */
	if (ret) {
		qcow2_fail(q->err, ret, "ublk queue %u: request descriptors: %s", q->opt.id, strerror(-ret));
		goto exit_ring;
	}
	return 0;

exit_ring:
	close_ring(q);
	return ret;
}

/* ---- serving ---- */

static void answers_come(struct completion *c, int res, unsigned flags)
{
	struct queue *q = (struct queue *)((char *)c - offsetof(struct queue, answers));
	struct letter *l = mailbox_take(&q->home.box), *next;

	for (; l; l = next) {
		next = l->next;
		request_answered((struct request *)((char *)l - offsetof(struct request, miss.letter)));
	}
	request_starved(q);
	if (!(flags & IORING_CQE_F_MORE))
		arm_answers(q);
}

static void give_buffers_back(struct queue *q)
{
	if (q->mapped || q->missed || io_uring_cq_ready(&q->ring))
		return;
	madvise(q->buffers, (size_t)q->opt.depth * MAX_IO_BYTES, MADV_DONTNEED_LOCKED); /* 5.18 */
	for (unsigned tag = 0; tag < q->opt.depth; tag++)
		q->request[tag].touched = 0;
	q->touched = 0;
}

/* Submit what is queued and wait for a completion. */
static int submit_and_wait(struct queue *q)
{
	struct __kernel_timespec idle = { .tv_nsec = IDLE_NS };
	struct io_uring_cqe *cqe;
	int ret;

	stamp(q->opt.stamp);
	if (!q->deferred || q->touched <= KEEP_BYTES)
		return io_uring_submit_and_wait(&q->ring, 1);
	ret = io_uring_submit_and_wait_timeout(&q->ring, &cqe, 1, &idle, NULL);
	if (ret == -ETIME)
		give_buffers_back(q);
	return ret;
}

static void reap(struct queue *q)
{
	struct io_uring_cqe *cqe;
	unsigned head, n = 0;

	io_uring_for_each_cqe(&q->ring, head, cqe)
	{
		struct completion *c = io_uring_cqe_get_data(cqe);

		c->fn(c, cqe->res, cqe->flags);
		n++;
	}
	io_uring_cq_advance(&q->ring, n);
}

static void serve(struct queue *q)
{
	int ret;

	while (q->live && !(__atomic_load_n(&q->quit, __ATOMIC_RELAXED) && !q->mapped)) {
		ret = submit_and_wait(q);
		if (ret < 0 && !uring_again(ret))
			return; /* the ring is unusable; holds stay taken, so nothing that they guard can
				   change */
		reap(q);
		if (q->wake_meta) {
			q->wake_meta = false;
			meta_wake(q->opt.meta);
		}
	}
}

static void *queue_main(void *arg)
{
	struct queue *q = arg;
	uint64_t one = 1;

	q->ret = setup(q);
	sem_post(&q->started);
	if (q->ret)
		return NULL;
	serve(q);
	if (!q->live || !q->opt.reissue)
		close_ring(q);
	munmap((void *)q->iod, iod_bytes(q->opt.depth));
	if (write(q->opt.dead_fd, &one, sizeof(one)) != sizeof(one))
		return NULL; /* it is readable already */
	return NULL;
}

/* ---- for the main thread ---- */

static size_t buffer_bytes(const struct queue *q)
{
	return q->opt.pool ? 0 : (size_t)q->opt.depth * MAX_IO_BYTES;
}

static int map_buffers(struct queue *q)
{
	size_t bytes = buffer_bytes(q);

	if (!bytes)
		return 0;
	q->buffers =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (q->buffers == MAP_FAILED)
		return -ENOMEM;
	madvise(q->buffers, bytes, MADV_NOHUGEPAGE);
	return 0;
}

static int allocate(struct queue *q)
{
	char *buf;

	STAILQ_INIT(&q->starved);
	q->home.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (q->home.event_fd < 0)
		return -errno;
	q->request = calloc(q->opt.depth, sizeof(*q->request));
	if (!q->request)
		goto close_event;
	if (map_buffers(q))
		goto free_requests;
	for (unsigned tag = 0; tag < q->opt.depth; tag++) {
		buf = q->opt.pool ? NULL : q->buffers + (size_t)tag * MAX_IO_BYTES;
		request_init(&q->request[tag], q, (uint16_t)tag, buf);
	}
	return 0;

free_requests:
	free(q->request);
close_event:
	close(q->home.event_fd);
	return -ENOMEM;
}

static void unmap_buffers(struct queue *q)
{
	if (buffer_bytes(q))
		munmap(q->buffers, buffer_bytes(q));
}

int queue_start(struct queue **out, const struct queue_options *opt, struct qcow2_error *err)
{
	struct queue *q = calloc(1, sizeof(*q));
	char name[16];
	int ret;

	if (!q)
		return qcow2_fail(err, -ENOMEM, "ublk queue %u: out of memory", opt->id);
	q->opt = *opt;
	q->err = err;
	sem_init(&q->started, 0, 0);
	ret = allocate(q);
	if (ret) {
		qcow2_fail(err, ret, "ublk queue %u: %s", opt->id, strerror(-ret));
		goto free_queue;
	}
	snprintf(name, sizeof(name), "queue%u", opt->id);
	ret = thread_start(&q->thread, name, queue_main, q);
	if (ret) {
		qcow2_fail(err, ret, "ublk queue %u: cannot start a thread: %s", opt->id, strerror(-ret));
		goto free_buffers;
	}
	while (sem_wait(&q->started))
		; /* a signal */
	ret = q->ret;
	if (ret) {
		pthread_join(q->thread, NULL);
		goto free_buffers;
	}
	q->opt.cpus = NULL;
	*out = q;
	return 0;

free_buffers:
	unmap_buffers(q);
	free(q->request);
	close(q->home.event_fd);
free_queue:
	sem_destroy(&q->started);
	free(q);
	return ret;
}

bool queue_is_whole(const struct queue *q)
{
	return __atomic_load_n(&q->live, __ATOMIC_RELAXED) == q->opt.depth;
}

void queue_more(struct queue *q)
{
	uint64_t one = 1;

	if (write(q->home.event_fd, &one, sizeof(one)) != sizeof(one))
		abort(); /* an eventfd we own */
}

void queue_join(struct queue *q, enum queue_end end)
{
	if (end != QUEUE_STOPPED) {
		__atomic_store_n(&q->quit, true, __ATOMIC_RELAXED);
		queue_more(q);
	}
	pthread_join(q->thread, NULL);
	if (end != QUEUE_LEFT && !q->closed)
		close_ring(q);
}

void queue_free(struct queue *q)
{
	unmap_buffers(q);
	free(q->request);
	close(q->home.event_fd);
	sem_destroy(&q->started);
	free(q);
}

void queue_add_stats(const struct queue *q, struct server_stats *st)
{
	const struct queue_stats *from = &q->stats;

	st->hits += __atomic_load_n(&from->hits, __ATOMIC_RELAXED);
	st->misses += __atomic_load_n(&from->misses, __ATOMIC_RELAXED);
	st->reads += __atomic_load_n(&from->reads, __ATOMIC_RELAXED);
	st->writes += __atomic_load_n(&from->writes, __ATOMIC_RELAXED);
	st->read_bytes += __atomic_load_n(&from->read_bytes, __ATOMIC_RELAXED);
	st->write_bytes += __atomic_load_n(&from->write_bytes, __ATOMIC_RELAXED);
	st->flushes += __atomic_load_n(&from->flushes, __ATOMIC_RELAXED);
	st->discards += __atomic_load_n(&from->discards, __ATOMIC_RELAXED);
}

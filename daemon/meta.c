/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * meta.c - the metadata thread.
 *
 * Owns the image, its ring and every host file of the chain (with the locks on them): all are opened, used
 * and closed by this one thread, as the ring allows a single issuer. The main thread only starts and stops
 * it.
 *
 * One turn: take the requests that arrived, finish drains, run the image (which sleeps in the ring when
 * nothing is ready), wake the queues whose answers came in. A wake-up that comes while the thread is busy is
 * kept by the ring.
 *
 * A request the library has no memory for waits in the backlog, in order, until there is some: failing it
 * would lose a write of the page cache above.
 *
 * After a crash the image holds what was committed: at the latest 5 s after a change, and everything a FLUSH
 * answered.
 */
#include "meta.h"
#include "lock.h"
#include "ring.h"
#include "thread.h"
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RING_DEPTH 256
#define COMMIT_MS 5000

struct meta {
	pthread_t thread;
	struct mailbox box;
	bool stop, dump;
	/* start and stop */
	const struct server_options *opt; /* until the image is open */
	struct qcow2_error *err; /* of who started or stops us */
	int ret;
	sem_t opened;
	/* the image */
	struct ring *ring;
	struct qcow2_image *img;
	struct fastmap *map;
	struct qcow2_info info;
	struct meta_files files;
	/* this thread's */
	struct letter *backlog;
	struct home *to_wake;
	/* what it tells others of the image, before the answers of the same turn */
	uint64_t commits;
	bool read_only; /* at first as info has it; an image may become so */
};

/* ---- opening ---- */

static int open_file(struct meta *m, const char *path, bool read_only, enum lock_role role,
		     struct host_file **out, struct qcow2_error *err)
{
	bool direct = true;
	int fd = image_open_fd(path, read_only, &direct, err), ret;

	if (fd < 0)
		return fd;
	ret = m->opt->lock ? image_lock(fd, role, path, err) : 0;
	if (ret) {
		close(fd);
		return ret;
	}
	return ring_file(m->ring, fd, path, read_only, direct, out, err);
}

static int open_backing(void *ctx, const char *path, enum backing_format format, struct host_file **out,
			struct qcow2_error *err)
{
	return open_file(ctx, path, true, format == BACKING_QCOW2 ? LOCK_BACKING_QCOW2 : LOCK_BACKING_RAW,
			 out, err);
}

/*
 * A cluster below the direct I/O alignment of its file cannot be transferred alone: that file goes through
 * the page cache, for this thread and for hits alike (they share the open file description).
 */
static int survey_files(struct meta *m, struct qcow2_error *err)
{
	struct meta_files *files = &m->files;
	struct host_file *f;
	int ret;

	files->mem_align = 1;
	for (unsigned i = 0; (f = qcow2_chain_file(m->img, i)); i++) {
		if (f->dio_align > m->info.cluster_size) {
			ret = ring_file_buffered(f);
			if (ret)
				return qcow2_fail(err, ret, "%s: cannot turn direct I/O off: %s", f->path,
						  strerror(-ret));
		}
		if (f->mem_align > files->mem_align)
			files->mem_align = f->mem_align;
		if (i < FASTMAP_MAX_FILES) {
			files->fd[i] = ring_file_fd(f);
			files->align[i] = f->dio_align;
			files->count = i + 1;
		}
	}
	return 0;
}

static int open_image(struct meta *m, struct qcow2_error *err)
{
	const struct server_options *opt = m->opt;
	struct qcow2_table_ops table;
	struct qcow2_opener opener = { .open = open_backing, .ctx = m };
	struct qcow2_options options = {
		.read_only = opt->read_only,
		.discard = opt->discard,
		.backing_format = opt->backing_format,
		.table = &table,
		.opener = &opener,
	};
	struct host_file *file;
	int ret;

	fastmap_table_ops(m->map, &table);
	ret = open_file(m, opt->image, opt->read_only, opt->read_only ? LOCK_IMAGE_RO : LOCK_IMAGE_RW, &file,
			err);
	if (!ret)
		ret = qcow2_open(&m->img, file, &options, err);
	if (ret)
		return ret;
	qcow2_get_info(m->img, &m->info);
	m->read_only = m->info.read_only;
	ret = survey_files(m, err);
	if (ret) {
		qcow2_close(m->img, NULL);
		return ret;
	}
	fastmap_set_cluster_bits(m->map, (unsigned)__builtin_ctz(m->info.cluster_size));
	return 0;
}

/* ---- serving ---- */

static void answer(struct qcow2_req *req, int res)
{
	struct miss *miss = (struct miss *)((char *)req - offsetof(struct miss, req));
	struct home *home = miss->home;
	struct meta *m = req->owner;

	miss->res = res;
	if (!mailbox_put(&home->box, &miss->letter) || home->to_wake)
		return; /* this turn or an earlier one wakes that queue */
	home->to_wake = true;
	ring_no_wait(m->ring,
		     true); /* the image may finish a request and then wait: not before wake_homes() */
	home->next = m->to_wake;
	m->to_wake = home;
}

static void wake_homes(struct meta *m)
{
	uint64_t one = 1;
	struct home *h;

	ring_no_wait(m->ring, false);
	while ((h = m->to_wake)) {
		m->to_wake = h->next;
		h->to_wake = false;
		if (write(h->event_fd, &one, sizeof(one)) != sizeof(one))
			return; /* an eventfd takes 2^64 - 2 of them */
	}
}

static void append(struct letter **list, struct letter *more)
{
	while (*list)
		list = &(*list)->next;
	*list = more;
}

/* Hand requests to the library, in the order they came. */
static void start_requests(struct meta *m)
{
	struct letter *l;

	append(&m->backlog, mailbox_take(&m->box));
	while ((l = m->backlog)) {
		struct miss *miss = (struct miss *)l;
		struct letter *next = l->next;
		int ret;

		miss->req.done = answer;
		miss->req.owner = m;
		ret = qcow2_submit(m->img, &miss->req);
		if (ret == -ENOMEM) {
			usleep(1000);
			ring_wake(m->ring); /* try again after what can run has run */
			return;
		}
		m->backlog = next;
		if (ret)
			answer(&miss->req, ret);
	}
}

/* Uncommitted changes reach the image within COMMIT_MS. */
static void periodic_commit(struct meta *m)
{
	bool expired = ring_timer_expired(m->ring);

	if (!qcow2_dirty(m->img))
		return;
	if (expired)
		qcow2_commit_start(m->img);
	ring_timer(m->ring, COMMIT_MS);
}

static void publish_state(struct meta *m)
{
	struct qcow2_stats st;
	struct qcow2_info now;

	qcow2_get_stats(m->img, &st);
	qcow2_get_info(m->img, &now);
	__atomic_store_n(&m->commits, st.commits, __ATOMIC_RELAXED);
	__atomic_store_n(&m->read_only, now.read_only, __ATOMIC_RELAXED);
}

static void serve(struct meta *m)
{
	while (!__atomic_load_n(&m->stop, __ATOMIC_ACQUIRE)) {
		start_requests(m);
		fastmap_poll(m->map);
		qcow2_run(m->img, true);
		publish_state(m);
		wake_homes(m);
		periodic_commit(m);
		if (__atomic_exchange_n(&m->dump, false, __ATOMIC_RELAXED))
			qcow2_dump(m->img, stderr);
	}
}

static void wake_ring(void *ring)
{
	ring_wake(ring);
}

static void *meta_main(void *arg)
{
	struct meta *m = arg;

	thread_io_path();
	m->ret = ring_new(&m->ring, RING_DEPTH, m->err);
	if (m->ret)
		goto out;
	m->ret = open_image(m, m->err);
	if (m->ret)
		goto free_ring;
	fastmap_set_wake(m->map, wake_ring, m->ring);
	sem_post(&m->opened);
	serve(m);
	m->ret = qcow2_close(m->img, m->err);
	return NULL; /* meta_stop() may still be waking the ring: it frees it */

free_ring:
	ring_free(m->ring);
out:
	sem_post(&m->opened);
	return NULL;
}

/* ---- for other threads ---- */

int meta_start(struct meta **out, const struct server_options *opt, struct fastmap *map,
	       struct qcow2_error *err)
{
	struct meta *m = calloc(1, sizeof(*m));
	int ret;

	if (!m)
		return qcow2_fail(err, -ENOMEM, "%s: out of memory", opt->image);
	m->opt = opt;
	m->map = map;
	m->err = err;
	sem_init(&m->opened, 0, 0);
	ret = thread_start(&m->thread, "metadata", meta_main, m);
	if (ret) {
		qcow2_fail(err, ret, "%s: cannot start a thread: %s", opt->image, strerror(-ret));
		goto free_meta;
	}
	while (sem_wait(&m->opened))
		; /* a signal */
	ret = m->ret;
	if (ret) {
		pthread_join(m->thread, NULL);
		goto free_meta;
	}
	m->opt = NULL;
	*out = m;
	return 0;

free_meta:
	sem_destroy(&m->opened);
	free(m);
	return ret;
}

int meta_stop(struct meta *m, struct qcow2_error *err)
{
	int ret;

	m->err = err;
	__atomic_store_n(&m->stop, true, __ATOMIC_RELEASE);
	ring_wake(m->ring);
	pthread_join(m->thread, NULL);
	ret = m->ret;
	ring_free(m->ring);
	sem_destroy(&m->opened);
	free(m);
	return ret;
}

const struct qcow2_info *meta_info(const struct meta *m)
{
	return &m->info;
}

bool meta_read_only(const struct meta *m)
{
	return __atomic_load_n(&m->read_only, __ATOMIC_RELAXED);
}

const struct meta_files *meta_files(const struct meta *m)
{
	return &m->files;
}

void meta_commits(const struct meta *m, struct server_stats *st)
{
	st->commits = __atomic_load_n(&m->commits, __ATOMIC_RELAXED);
}

bool meta_send(struct meta *m, struct miss *miss)
{
	return mailbox_put(&m->box, &miss->letter);
}

void meta_wake(struct meta *m)
{
	ring_wake(m->ring);
}

void meta_dump(struct meta *m)
{
	__atomic_store_n(&m->dump, true, __ATOMIC_RELAXED);
	ring_wake(m->ring);
}

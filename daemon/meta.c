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
 * A request the library has no memory for, at its start or on its way, waits in the backlog and is started
 * again, whole, until it is done: failing it would lose a write of the page cache above. Until the backlog is
 * empty there is only one of them at a time, so that the memory there is suffices for one after the other.
 *
 * After a crash the image holds what was committed: at the latest 5 s after a change, and everything a FLUSH
 * answered.
 */
#include "meta.h"
#include "lock.h"
#include "log.h"
#include "qcow2/repair.h"
#include "ring.h"
#include "swap.h"
#include "test_switch.h"
#include "thread.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#define RING_DEPTH 256
#define COMMIT_MS 5000
#define LOCK_TRIES 50
#define LOCK_PAUSE_US 100000

struct meta {
	pthread_t thread;
	struct mailbox box;
	bool stop, dump, no_hits;
	/* start and stop */
	const struct server_options *opt; /* until the image is open */
	struct qcow2_error *err; /* of who started or stops us */
	int ret;
	bool unguarded; /* nobody had the image's locks since the last process died */
	sem_t opened;
	/* the image */
	struct ring *ring;
	struct qcow2_image *img;
	struct fastmap *map;
	struct qcow2_info info;
	struct meta_files files;
	/* this thread's */
	struct letter *backlog;
	unsigned inflight; /* requests that the library has */
	bool scarce; /* one had no memory, and the backlog was not empty since */
	bool pause; /* it had none just now */
	bool peer_off; /* as no_hits was */
	struct home *to_wake;
	/* what it tells others of the image, before the answers of the same turn */
	uint64_t commits;
	bool read_only; /* at first as info has it; an image may become so */
	int read_only_fd; /* an eventfd, counts that once */
};

/* ---- opening ---- */

static int hold(struct meta *m, struct qcow2_error *err)
{
	const struct custody *custody = m->opt->custody;
	int ret = custody ? ring_hold(m->ring, custody->hold, custody->holds) : 0;

	return ret ? qcow2_fail(err, ret, "%s: io_uring: %s", m->opt->image, strerror(-ret)) : 0;
}

/* The rings of a dead process hold its locks a little longer than it lived. */
static int lock_new(const struct custody *custody, int fd, enum lock_role role, const char *path,
		    struct qcow2_error *err)
{
	int ret = image_lock(fd, role, path, NULL);

	for (unsigned i = 0; ret == -EBUSY && custody && custody->replay && i < LOCK_TRIES; i++) {
		usleep(LOCK_PAUSE_US);
		ret = image_lock(fd, role, path, NULL);
	}
	return ret ? image_lock(fd, role, path, err) : 0;
}

/* Open and lock, and give the open file description into custody. The descriptor or -errno. */
static int open_new(struct meta *m, const char *path, bool read_only, enum lock_role role, bool *direct,
		    struct qcow2_error *err)
{
	const struct custody *custody = m->opt->custody;
	int fd = image_open_fd(path, read_only, direct, err), ret = 0;

	if (fd < 0)
		return fd;
	if (m->opt->lock)
		ret = lock_new(custody, fd, role, path, err);
	if (!ret && custody)
		ret = custody->keep(custody->ctx, path, lock_role_name(role), fd, err);
	if (ret) {
		close(fd);
		return ret;
	}
	m->unguarded = custody && custody->replay;
	return fd;
}

static int open_file(struct meta *m, const char *path, bool read_only, enum lock_role role,
		     struct host_file **out, struct qcow2_error *err)
{
	const struct custody *custody = m->opt->custody;
	int fd = custody ? custody->find(custody->ctx, path, lock_role_name(role)) : -1;
	bool direct = true;

	if (fd >= 0)
		direct = fcntl(fd, F_GETFL) & O_DIRECT;
	else
		fd = open_new(m, path, read_only, role, &direct, err);
	return fd < 0 ? fd : ring_file(m->ring, fd, path, read_only, direct, out, err);
}

static int open_backing(void *ctx, const char *path, enum backing_format format, struct host_file **out,
			struct qcow2_error *err)
{
	return open_file(ctx, path, true, format == BACKING_QCOW2 ? LOCK_BACKING_QCOW2 : LOCK_BACKING_RAW,
			 out, err);
}

/*
 * A cluster of the image or a metadata block of the file itself that is below the file's direct I/O alignment
 * cannot be transferred alone: that file goes through the page cache, for this thread and for hits alike
 * (they share the open file description).
 */
static int survey_files(struct meta *m, struct qcow2_error *err)
{
	struct meta_files *files = &m->files;
	struct host_file *f;
	uint32_t block;
	int ret;

	files->mem_align = 1;
	for (unsigned i = 0; (f = qcow2_chain_file(m->img, i)); i++) {
		block = qcow2_chain_block_size(m->img, i);
		if (f->dio_align > m->info.cluster_size || (block && f->dio_align > block)) {
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

static void say_repaired(const char *image, const struct qcow2_repair_result *r)
{
	if (r->dirty_cleared)
		log_line(LOG_NOTICE, "%s: was not closed by its last user: repaired, %" PRIu64 " errors fixed",
			 image, r->before.errors);
	if (r->before.leaks)
		log_line(LOG_NOTICE, "%s: %" PRIu64 " leaked clusters freed", image, r->before.leaks);
}

/*
 * Repair what has to be repaired first, through a description of its own: buffered, and closed before the
 * image is opened. The locks are @file's.
 */
static int repair_image(struct meta *m, struct host_file *file, struct qcow2_error *err)
{
	struct qcow2_repair_result res;
	struct host_file *buffered;
	char path[40];
	int fd, ret;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", ring_file_fd(file));
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return qcow2_fail(err, -errno, "%s: cannot be opened for repair: %s", file->path,
				  strerror(errno));
	ret = host_fdopen_sync(&buffered, fd, file->path, false, err);
	if (ret)
		return ret;
	ret = qcow2_repair_before_open(buffered, m->opt->repair_leaks, &res, err);
	/* a page that stays in the cache sends the end of each direct write to a worker: 3 thousand instructions */
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	buffered->ops->close(buffered);
	if (!ret)
		say_repaired(m->opt->image, &res);
	return ret;
}

/* Identity of this boot; zeroes if the kernel does not tell: then there is only one that we know of. */
static void get_boot_id(unsigned char id[16])
{
	char text[40] = "";
	unsigned n = 0, byte;
	FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");

	memset(id, 0, 16);
	if (!f)
		return;
	if (!fgets(text, sizeof(text), f))
		text[0] = '\0';
	fclose(f);
	for (const char *p = text; n < 16 && sscanf(p, "%2x", &byte) == 1; p += 2 + (p[2] == '-'))
		id[n++] = (unsigned char)byte;
}

/* Describe the journal of this image; a new device begins with an empty one. */
static void prepare_journal(const struct custody *custody, const struct host_file *file,
			    struct qcow2_journal *j)
{
	*j = (struct qcow2_journal){
		.mem = custody->journal,
		.size = custody->journal_size,
		.dev = file->dev,
		.ino = file->ino,
	};
	get_boot_id(j->boot_id);
	if (!custody->replay)
		qcow2_journal_format(j);
}

/* A file that was written since the process died does not fit its journal, even if the words that it knows
 * do. The times of a block device's node say nothing: udev sets them with every event. */
static int check_untouched(const struct custody *custody, struct host_file *file, struct qcow2_error *err)
{
	uint64_t last = stamps_latest(custody->stamps), modified;
	struct stat st;

	if (fstat(ring_file_fd(file), &st) < 0)
		return qcow2_fail(err, -errno, "%s: %s", file->path, strerror(errno));
	modified = (uint64_t)st.st_mtim.tv_sec * 1000000000 + (uint64_t)st.st_mtim.tv_nsec;
	if (!last || S_ISBLK(st.st_mode) || modified <= last + STAMP_SLACK_NS)
		return 0;
	return qcow2_fail(err, -ESTALE, "%s: was changed by somebody else after its process had died",
			  file->path);
}

static int open_journal(struct meta *m, struct host_file *file, struct qcow2_journal *journal,
			struct qcow2_error *err)
{
	const struct custody *custody = m->opt->custody;
	int ret = 0;

	prepare_journal(custody, file, journal);
	if (m->unguarded && qcow2_journal_live(journal))
		ret = check_untouched(custody, file, err);
	if (!ret)
		ring_stamp(m->ring, &custody->stamps->thread[0].ns);
	return ret;
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
	struct qcow2_journal journal;
	struct host_file *file;
	int ret;

	fastmap_table_ops(m->map, &table);
	ret = open_file(m, opt->image, opt->read_only, opt->read_only ? LOCK_IMAGE_RO : LOCK_IMAGE_RW, &file,
			err);
	if (ret)
		return ret;
	if (!opt->read_only && !(opt->custody && opt->custody->replay))
		ret = repair_image(m, file, err);
	if (!ret && opt->custody && opt->custody->journal) {
		ret = open_journal(m, file, &journal, err);
		options.journal = &journal;
	}
	if (ret) {
		file->ops->close(file);
		return ret;
	}
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

static void append(struct letter **list, struct letter *more)
{
	while (*list)
		list = &(*list)->next;
	*list = more;
}

/* Back to those that wait. */
static void no_memory(struct meta *m, struct miss *miss)
{
	miss->letter.next = NULL;
	append(&m->backlog, &miss->letter);
	m->scarce = m->pause = true;
	ring_wake(m->ring);
}

static void answer(struct qcow2_req *req, int res)
{
	struct miss *miss = (struct miss *)((char *)req - offsetof(struct miss, req));
	struct home *home = miss->home;
	struct meta *m = req->owner;

	m->inflight--;
	if (res == -ENOMEM) {
		no_memory(m, miss);
		return;
	}
	miss->res = res;
	if (!mailbox_put(&home->box, &miss->letter) || home->to_wake)
		return; /* this turn or an earlier one wakes that queue */
	home->to_wake = true;
	ring_no_wait(m->ring,
		     true); /* the image may finish a request and then wait: not before wake_homes() */
	home->next = m->to_wake;
	m->to_wake = home;
}

static void start_request(struct meta *m, struct miss *miss)
{
	int ret;

	miss->req.done = answer;
	miss->req.owner = m;
	m->inflight++;
	ret = qcow2_submit(m->img, &miss->req);
	if (ret)
		answer(&miss->req, ret);
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

/* Hand requests to the library, in the order they came. */
static void start_requests(struct meta *m)
{
	append(&m->backlog, mailbox_take(&m->box));
	if (m->pause)
		usleep(1000);
	m->pause = false;
	while (m->backlog && !(m->scarce && m->inflight)) {
		struct letter *l = m->backlog;

		m->backlog = l->next;
		start_request(m, (struct miss *)l);
		if (m->pause)
			return;
	}
	if (!m->backlog)
		m->scarce = false;
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
	if (now.read_only == m->read_only)
		return;
	__atomic_store_n(&m->read_only, now.read_only, __ATOMIC_RELAXED);
	(void)eventfd_write(m->read_only_fd, 1); /* the first one: it has room */
}

static void dump(const struct meta *m)
{
	unsigned n = 0;

	qcow2_dump(m->img, stderr);
	for (const struct letter *l = m->backlog; l; l = l->next)
		n++;
	if (n)
		fprintf(stderr, "%u wait for memory\n", n);
}

static void switch_hits(struct meta *m)
{
	bool off = __atomic_load_n(&m->no_hits, __ATOMIC_ACQUIRE);

	if (off != m->peer_off)
		fastmap_peer_off(m->map, off);
	m->peer_off = off;
}

static void serve(struct meta *m)
{
	while (!__atomic_load_n(&m->stop, __ATOMIC_ACQUIRE)) {
		switch_hits(m);
		start_requests(m);
		fastmap_poll(m->map);
		qcow2_run(m->img, true);
		publish_state(m);
		wake_homes(m);
		periodic_commit(m);
		if (__atomic_exchange_n(&m->dump, false, __ATOMIC_RELAXED))
			dump(m);
	}
}

/* Requests that a leaving queue has not waited for. The device holds all of them back and asks again. */
static void finish(struct meta *m)
{
	while (qcow2_run(m->img, false)) {
		wake_homes(m); /* nobody listens; but poll() may wait again */
		fastmap_poll(m->map);
		qcow2_run(m->img, true);
	}
	wake_homes(m);
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
	m->ret = hold(m, m->err);
	if (!m->ret)
		m->ret = open_image(m, m->err);
	if (m->ret)
		goto free_ring;
	fastmap_set_wake(m->map, wake_ring, m->ring);
	sem_post(&m->opened);
	test_switch_serve(true);
	serve(m);
	test_switch_serve(false);
	finish(m);
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
	m->no_hits = swap_is_urgent();
	m->read_only_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (m->read_only_fd < 0) {
		ret = qcow2_fail(err, -errno, "%s: eventfd: %s", opt->image, strerror(errno));
		goto free_meta;
	}
	sem_init(&m->opened, 0, 0);
	ret = thread_start(&m->thread, "metadata", meta_main, m);
	if (ret) {
		qcow2_fail(err, ret, "%s: cannot start a thread: %s", opt->image, strerror(-ret));
		goto close_fd;
	}
	while (sem_wait(&m->opened))
		; /* a signal */
	ret = m->ret;
	if (ret) {
		pthread_join(m->thread, NULL);
		goto close_fd;
	}
	m->opt = NULL;
	*out = m;
	return 0;

close_fd:
	sem_destroy(&m->opened);
	close(m->read_only_fd);
free_meta:
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
	fastmap_stop_peer(m->map); /* it may be waking the ring */
	ring_free(m->ring);
	sem_destroy(&m->opened);
	close(m->read_only_fd);
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

int meta_read_only_fd(const struct meta *m)
{
	return m->read_only_fd;
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

void meta_allow_hits(struct meta *m, bool allow)
{
	__atomic_store_n(&m->no_hits, !allow, __ATOMIC_RELEASE);
	ring_wake(m->ring);
}

void meta_dump(struct meta *m)
{
	__atomic_store_n(&m->dump, true, __ATOMIC_RELAXED);
	ring_wake(m->ring);
}

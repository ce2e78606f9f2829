/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * server.c - one device, from open image to block device and back.
 *
 * Owns, in the order they come to life: the control ring, the library's memory, the mapping table, the
 * metadata thread (with the open and locked image), the ublk device, /dev/ublkcN, the pool of buffers, the
 * queue threads, and with engine kernel the disk over the device. Everything is released in reverse, on
 * failure as at the end. Used by the process's main thread only, but for the calls that say otherwise.
 *
 * Order that matters: queue threads serve before START_DEV, which reads the partition table through them. At
 * the end the device is stopped first (what is in flight completes), then the queue threads end, then the
 * image is committed and closed, and only after /dev/ublkcN is closed everywhere can the device be deleted.
 * With engine kernel nobody is to find anything on the lower device: it is hidden, that is, it answers the
 * upper one only, which goes first.
 *
 * A crash leaves the device in the kernel without a server: a later server_create() brings it back (the
 * driver keeps what was not answered and gives it to the new server), or ublk_delete() removes it.
 */
#include "guard.h"
#include "log.h"
#include "params.h"
#include "rundir.h"
#include "server_impl.h"
#include "test_switch.h"
#include "upper.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_QUEUES 4u
#define DEFAULT_DEPTH 64u
#define MAX_DEPTH 1024u
#define DEFAULT_CACHE (1ull << 20)
#define LIBRARY_RESERVE ARENA_LARGEST
#define LIBRARY_LINKS 16u /* of a chain, for which that suffices: the cache of each keeps some blocks */
#define LIBRARY_MAX (64u << 20)
#define NODE_WAIT_MS 5000

/* ---- the device ---- */

/* Open a node that devtmpfs makes and udev may still be working on. The descriptor or -errno. */
static int open_node(const char *path, int flags)
{
	int fd = -1;

	for (unsigned ms = 0; ms < NODE_WAIT_MS; ms++) {
		fd = open(path, flags | O_CLOEXEC);
		if (fd >= 0 || (errno != ENOENT && errno != EBUSY && errno != EACCES && errno != ENXIO))
			break;
		server_nap();
	}
	return fd < 0 ? -errno : fd;
}

static unsigned choose_queues(const struct server_options *opt)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned n = cpus < 1 ? 1 : (unsigned)cpus;

	if (opt->queues)
		return opt->queues < n ? opt->queues : n; /* the driver would cap it, too */
	return n < DEFAULT_QUEUES ? n : DEFAULT_QUEUES;
}

static unsigned choose_depth(const struct server_options *opt)
{
	unsigned depth = opt->depth ? opt->depth : DEFAULT_DEPTH;

	return depth < MAX_DEPTH ? depth : MAX_DEPTH;
}

/* The ways a request's data may reach us, best first. */
static const struct copy_ops *const ways[] = { &copy_zero, &copy_user, &copy_classic };

#define WAYS (sizeof(ways) / sizeof(*ways))

/* The best of those that the flags of ADD_DEV allow. */
const struct copy_ops *server_way_of(uint64_t flags)
{
	unsigned w = 0;

	while ((flags & ways[w]->flags) != ways[w]->flags)
		w++;
	return ways[w];
}

/* ADD_DEV with a way of copying. */
static int try_add(struct server *s, const struct server_options *opt, const struct copy_ops *copy)
{
	s->info = (struct ublksrv_ctrl_dev_info){
		.nr_hw_queues = (uint16_t)choose_queues(opt),
		.queue_depth = (uint16_t)choose_depth(opt),
		.max_io_buf_bytes = MAX_IO_BYTES,
		.dev_id = UINT32_MAX,
		.ublksrv_pid = getpid(),
		.flags = copy->flags,
	};
	if (opt->custody && (ctrl_features(s->ctrl) & RECOVERY_FLAGS) == RECOVERY_FLAGS)
		s->info.flags |= RECOVERY_FLAGS;
	s->copy = copy;
	return ctrl_add(s->ctrl, &s->info);
}

/* For udev's rule (tools/udev): a link by the image's name, as the number is another one next time. */
static void name_for_udev(const struct server *s, const struct server_options *opt)
{
	static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+-";
	const char *slash = strrchr(opt->image, '/');
	char path[300], name[256];
	FILE *f = fopen(run_path(path, sizeof(path), s->id, "name"), "we");

	snprintf(name, sizeof(name), "%s", slash ? slash + 1 : opt->image);
	for (char *p = name + strspn(name, plain); *p; p += strspn(p, plain))
		*p = '_';
	if (!f)
		return; /* nobody's run directory */
	fprintf(f, "QCOW2_NAME=%s\n", name);
	fclose(f);
}

static int add_device(struct server *s, const struct server_options *opt, struct qcow2_error *err)
{
	int ret = -EINVAL;

	/* a kernel may have the parts of one but not together */
	for (unsigned w = test_switch_copy(); w < WAYS && ret == -EINVAL; w++)
		if ((ctrl_features(s->ctrl) & ways[w]->flags) == ways[w]->flags)
			ret = try_add(s, opt, ways[w]);
	if (ret < 0)
		return qcow2_fail(err, ret, "%s: cannot add a ublk device: %s", opt->image, strerror(-ret));
	s->id = (int)s->info.dev_id;
	snprintf(s->node, sizeof(s->node), "/dev/ublkb%d", s->id);
	ret = opt->custody ? opt->custody->added(opt->custody->ctx, s->id, err) : 0;
	if (!ret && opt->custody)
		name_for_udev(s, opt);
	return ret;
}

/* What the driver is told, or was told when the device was added. */
void server_shape(struct server *s, const struct server_options *opt, struct ublk_params *params)
{
	const struct qcow2_info *info = meta_info(s->meta);
	const struct meta_files *files = meta_files(s->meta);
	struct device_shape shape = {
		.size = info->size,
		.cluster_size = info->cluster_size,
		.block_size = opt->block_size ? opt->block_size : 512,
		.io_align = files->align[0],
		.mem_align = files->mem_align,
		.max_io = MAX_IO_BYTES,
		.read_only = info->read_only,
		.unmap = opt->discard == QCOW2_DISCARD_UNMAP,
	};

	device_params(&shape, params);
	s->size = params->basic.dev_sectors << 9;
}

static int set_params(struct server *s, const struct server_options *opt, struct qcow2_error *err)
{
	struct ublk_params params;
	int ret;

	server_shape(s, opt, &params);
	ret = ctrl_set_params(s->ctrl, s->id, &params);
	if (ret < 0)
		return qcow2_fail(err, ret, "%s: cannot set the parameters of %s: %s", opt->image, s->node,
				  strerror(-ret));
	return 0;
}

int server_open_char(struct server *s, const struct server_options *opt, struct qcow2_error *err)
{
	char path[32];

	snprintf(path, sizeof(path), "/dev/ublkc%d", s->id);
	s->char_fd = open_node(path, O_RDWR);
	if (s->char_fd < 0)
		return qcow2_fail(err, s->char_fd, "%s: %s: %s", opt->image, path, strerror(-s->char_fd));
	return 0;
}

/* Some request waits for a buffer, and there are some. */
static void more_buffers(void *ctx)
{
	struct server *s = ctx;

	for (unsigned i = 0; i < s->queues; i++)
		queue_more(s->queue[i]);
}

/* Where the driver copies it wants to know each tag's buffer beforehand. */
static int make_pool(struct server *s, struct qcow2_error *err)
{
	size_t most = (size_t)s->info.nr_hw_queues * s->info.queue_depth * MAX_IO_BYTES;
	int ret = 0;

	if (s->copy != &copy_classic)
		ret = arena_new(&s->pool, 4096, ARENA_LARGEST, most, more_buffers, s);
	return ret ? qcow2_fail(err, ret, "%s: %s", s->node, strerror(-ret)) : 0;
}

struct queue_options server_queue_settings(const struct server *s, const struct custody *custody)
{
	return (struct queue_options){
		.depth = s->info.queue_depth,
		.char_fd = s->char_fd,
		.zero_fd = s->zero_fd,
		.dead_fd = s->dead_fd,
		.fetch_cmd = ctrl_io_cmd(s->ctrl, UBLK_U_IO_FETCH_REQ),
		.commit_cmd = ctrl_io_cmd(s->ctrl, UBLK_U_IO_COMMIT_AND_FETCH_REQ),
		.copy = s->copy,
		.files = meta_files(s->meta),
		.map = s->map,
		.meta = s->meta,
		.hidden = &s->stacked,
		.reissue = s->info.flags & UBLK_F_USER_RECOVERY_REISSUE,
		.hold = custody ? custody->hold : NULL,
		.holds = custody ? custody->holds : 0,
	};
}

int server_start_queues(struct server *s, const struct custody *custody, struct qcow2_error *err)
{
	struct queue_options opt = server_queue_settings(s, custody);
	cpu_set_t cpus;
	int ret = make_pool(s, err);

	if (ret)
		return ret;
	opt.pool = s->pool;
	s->queue = calloc(s->info.nr_hw_queues, sizeof(*s->queue));
	if (!s->queue)
		return qcow2_fail(err, -ENOMEM, "%s: out of memory", s->node);
	for (; s->queues < s->info.nr_hw_queues; s->queues++) {
		opt.id = s->queues;
		opt.stamp = custody && custody->stamps && opt.id + 1 < STAMPS
				    ? &custody->stamps->thread[opt.id + 1].ns
				    : NULL;
		ret = ctrl_queue_affinity(s->ctrl, s->id, opt.id, &cpus);
		opt.cpus = ret < 0 || !CPU_COUNT(&cpus) ? NULL : &cpus;
		ret = queue_start(&s->queue[s->queues], &opt, err);
		if (ret)
			return ret;
	}
	return 0;
}

/* A preference of the disk's queue: the device works without. Changing it may take some ms, looking does not.
 */
static void prefer(const struct server *s, const char *name, const char *value, const char *now)
{
	char path[64], text[256] = "";
	int fd;

	snprintf(path, sizeof(path), "/sys/block/ublkb%d/queue/%s", s->id, name);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return;
	if (pread(fd, text, sizeof(text) - 1, 0) > 0 && !strstr(text, now))
		(void)!pwrite(fd, value, strlen(value), 0);
	close(fd);
}

/*
 * No scheduler: requests are sorted for a disk below the image file, if at all. With one queue the kernel
 * chooses mq-deadline, which sends every request through a worker: 5 thousand instructions of 41 at depth 1,
 * 15 of 37 at depth 16.
 *
 * A second until the driver looks at a request that is not answered, instead of 30: should this process die
 * while all tags of a queue are taken, 6.12 does not notice before that, and nobody serves the device until
 * then. While we live it only looks.
 */
static void tune_disk(const struct server *s)
{
	prefer(s, "scheduler", "none", "[none]");
	prefer(s, "io_timeout", "1000", "1000\n");
}

static int check_node(const char *node, struct qcow2_error *err)
{
	int fd = open_node(node, O_RDONLY);

	if (fd < 0)
		return qcow2_fail(err, fd, "%s: the device node did not appear: %s", node, strerror(-fd));
	close(fd);
	return 0;
}

int server_stack(struct server *s, struct qcow2_error *err)
{
	int ret = kernel_engine_start(s->kernel, s->node, meta_files(s->meta), meta_info(s->meta)->read_only,
				      err);

	if (!ret)
		ret = check_node(s->upper, err);
	return ret;
}

/* The engine cannot be had: an error, or for `auto` no more than a line, if it is not as `features` would
 * say. */
static int without_kernel(const struct server_options *opt, int ret, const struct qcow2_error *why,
			  struct qcow2_error *err)
{
	if (opt->engine == ENGINE_AUTO) {
		if (ret != -ENOENT && ret != -EOPNOTSUPP)
			log_line(LOG_WARNING, "%s: engine server, not kernel: %s", opt->image, why->text);
		return 0;
	}
	return qcow2_fail(err, ret, "%s: --engine=kernel: %s", opt->image, why->text);
}

/* The upper device cannot be had: the lower one shows what is in the image, to those who looked before, too.
 */
static int unstack(struct server *s, struct qcow2_error *err)
{
	char path[300];
	int fd;

	if (!kernel_engine_remove(s->kernel))
		return qcow2_fail(err, -EBUSY, "%s: is in use", s->upper);
	__atomic_store_n(&s->stacked, false, __ATOMIC_RELAXED);
	unlink(run_path(path, sizeof(path), s->id, "lower"));
	fd = open_node(s->node, O_RDONLY);
	if (fd < 0)
		return qcow2_fail(err, fd, "%s: %s", s->node, strerror(-fd));
	ioctl(fd, BLKFLSBUF, 0);
	ioctl(fd, BLKRRPART, 0); /* fails if there can be none */
	close(fd);
	snprintf(path, sizeof(path), "/sys/block/ublkb%d/uevent", s->id);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd >= 0) {
		(void)!write(fd, "change", 6);
		close(fd);
	}
	return 0;
}

static int start_device(struct server *s, const struct server_options *opt, struct qcow2_error *err)
{
	struct qcow2_error why = { "" };
	int ret = ctrl_start(s->ctrl, s->id);

	if (ret < 0)
		return qcow2_fail(err, ret, "%s: cannot start the device: %s", s->node, strerror(-ret));
	s->started = true;
	tune_disk(s);
	ret = check_node(s->node, err);
	if (ret || !s->stacked)
		return ret;
	ret = server_stack(s, &why);
	if (!ret)
		return 0;
	ret = without_kernel(opt, ret, &why, err);
	return ret ? ret : unstack(s, err);
}

/* ---- taking it down; each tolerates that its part never came up ---- */

static void stop_queues(struct server *s)
{
	if (s->id >= 0 && !s->stays)
		ctrl_stop(s->ctrl, s->id); /* fails if somebody deleted the device: then it is stopped */
	for (unsigned i = 0; i < s->queues; i++)
		queue_join(s->queue[i], s->stays    ? QUEUE_LEFT
					: s->started ? QUEUE_STOPPED
						     : QUEUE_GIVEN_UP);
}

static int close_image(struct server *s, struct qcow2_error *err)
{
	int ret = s->meta ? meta_stop(s->meta, err) : 0;

	arena_delete(s->pool); /* nobody has a buffer of it any more; its thread knows the queues */
	for (unsigned i = 0; i < s->queues; i++)
		queue_free(s->queue[i]);
	free(s->queue);
	return ret;
}

static int delete_device(struct server *s, struct qcow2_error *err)
{
	int ret;

	if (s->char_fd >= 0)
		close(s->char_fd);
	if (s->id < 0 || s->stays)
		return 0;
	while (s->stacked && !kernel_engine_remove(s->kernel))
		; /* nothing is lost any more, but the number is in use until they close it */
	ret = ctrl_delete(s->ctrl, s->id);
	if (ret >= 0 || ret == -ENODEV || ret == -EINVAL) /* somebody else's delete may have been first */
		return 0;
	return qcow2_fail(err, ret, "%s: cannot delete the device: %s", s->node, strerror(-ret));
}

int server_stop(struct server *s, struct qcow2_error *err)
{
	int ret, deleted;

	if (s->stacked && !s->stays)
		kernel_engine_remove(s->kernel);
	stop_queues(s);
	ret = close_image(s, err);
	deleted = delete_device(s, err);
	if (s->kernel)
		kernel_engine_free(s->kernel);
	if (s->map)
		fastmap_free(s->map);
	qcow2_use_memory(NULL);
	arena_delete(s->library);
	if (s->ctrl)
		ctrl_close(s->ctrl);
	if (s->zero_fd >= 0)
		close(s->zero_fd);
	if (s->dead_fd >= 0)
		close(s->dead_fd);
	free(s);
	return ret ? ret : deleted;
}

int server_leave(struct server *s, struct qcow2_error *err)
{
	s->stays = true;
	return server_stop(s, err);
}

/* ---- bringing it up ---- */

int server_prepare(struct server *s, const struct server_options *opt, struct qcow2_error *err)
{
	s->dead_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	s->zero_fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	if (s->dead_fd < 0 || s->zero_fd < 0)
		return qcow2_fail(err, -errno, "%s: /dev/zero, eventfd: %s", opt->image, strerror(errno));
	return ctrl_open(&s->ctrl, err);
}

/* What is larger (copies of several clusters) is malloc's, and may wait for memory. */
static void *library_get(void *ctx, size_t size)
{
	void *p;

	if (queue_guard_no_memory())
		return NULL;
	if (size <= ARENA_LARGEST)
		return arena_get(ctx, size);
	return posix_memalign(&p, 4096, size) ? NULL : p;
}

static void library_put(void *ctx, void *p)
{
	if (arena_owns(ctx, p))
		arena_put(ctx, p);
	else
		free(p);
}

static size_t library_ready(void *ctx, size_t want)
{
	size_t ready = arena_ready(ctx);

	if (ready < want)
		arena_want(ctx, want);
	return ready;
}

static int give_memory(struct server *s, const struct server_options *opt, struct qcow2_error *err)
{
	int ret = arena_new(&s->library, 64, LIBRARY_RESERVE, LIBRARY_MAX, NULL, NULL);
	struct qcow2_memory memory = {
		.get = library_get, .put = library_put, .ready = library_ready, .ctx = s->library
	};

	if (ret)
		return qcow2_fail(err, ret, "%s: %s", opt->image, strerror(-ret));
	qcow2_use_memory(&memory);
	return 0;
}

uint64_t server_cache_size(const struct server_options *opt)
{
	return opt->cache_size ? opt->cache_size : DEFAULT_CACHE;
}

/* The mapping table and the image over it. */
int server_open_image(struct server *s, const struct server_options *opt, unsigned queues,
		      struct qcow2_error *err)
{
	const struct fastmap_peer *peer = s->kernel ? kernel_engine_peer(s->kernel) : NULL;
	int ret = give_memory(s, opt, err);

	if (ret)
		return ret;
	ret = fastmap_new(&s->map, 0, server_cache_size(opt), queues, peer);
	if (ret)
		return qcow2_fail(err, ret, "%s: mapping table: %s", opt->image, strerror(-ret));
	ret = meta_start(&s->meta, opt, s->map, err);
	if (!ret)
		arena_reserve(s->library,
			      LIBRARY_RESERVE * (1 + meta_info(s->meta)->chain_length / LIBRARY_LINKS));
	return ret;
}

/* Before the image is open: the table's memory. */
static int prepare_kernel(struct server *s, const struct server_options *opt, struct qcow2_error *err)
{
	struct qcow2_error why = { "" };
	int ret;

	if (opt->engine == ENGINE_SERVER)
		return 0;
	ret = kernel_engine_new(&s->kernel, server_cache_size(opt), &why);
	return ret ? without_kernel(opt, ret, &why, err) : 0;
}

/* For udev's rule (tools/udev): everything that there is to see is on the upper device. */
static void mark_lower(const struct server *s)
{
	char path[300];
	int fd = open(run_path(path, sizeof(path), s->id, "lower"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	if (fd >= 0)
		close(fd);
}

void server_use_kernel(struct server *s)
{
	s->stacked = true;
	snprintf(s->upper, sizeof(s->upper), "/dev/ublkbpf%d", s->id);
}

/* The image is open and the device has a number: can and shall the kernel serve this image? */
static int decide_kernel(struct server *s, const struct server_options *opt, struct qcow2_error *err)
{
	struct qcow2_error why = { "" };
	int ret;

	if (!s->kernel)
		return 0;
	if (!server_direct_io(s))
		ret = qcow2_fail(&why, -EOPNOTSUPP,
				 "needs direct I/O, which the image's file system has not, or only in units "
				 "larger than a cluster");
	else
		ret = kernel_engine_load(s->kernel, s->id,
					 (unsigned)__builtin_ctz(meta_info(s->meta)->cluster_size), s->map,
					 &why);
	if (ret)
		return without_kernel(opt, ret, &why, err);
	server_use_kernel(s);
	mark_lower(s);
	return 0;
}

static int bring_up(struct server *s, const struct server_options *opt, struct qcow2_error *err)
{
	int ret = server_prepare(s, opt, err);

	if (!ret)
		ret = prepare_kernel(s, opt, err);
	if (!ret)
		ret = server_open_image(s, opt, choose_queues(opt), err);
	if (!ret)
		ret = add_device(s, opt, err);
	if (!ret)
		ret = decide_kernel(s, opt, err);
	if (!ret)
		ret = set_params(s, opt, err);
	if (!ret)
		ret = server_open_char(s, opt, err);
	if (!ret)
		ret = server_start_queues(s, opt->custody, err);
	if (!ret)
		ret = start_device(s, opt, err);
	return ret;
}

int server_create(struct server **out, const struct server_options *opt, struct qcow2_error *err)
{
	struct server *s = calloc(1, sizeof(*s));
	int ret, stopped;

	if (!s)
		return qcow2_fail(err, -ENOMEM, "%s: out of memory", opt->image);
	s->id = s->char_fd = s->zero_fd = s->dead_fd = -1;
	test_switch_init();
	if (opt->custody && opt->custody->recover)
		ret = server_bring_back(s, opt, err);
	else
		ret = bring_up(s, opt, err);
	if (ret) {
		stopped = server_stop(s, ret == -ESHUTDOWN ? err : NULL);
		return ret == -ESHUTDOWN && stopped ? stopped : ret;
	}
	*out = s;
	return 0;
}

/* ---- looking ---- */

const char *server_device(const struct server *s)
{
	return s->stacked ? s->upper : s->node;
}

int server_id(const struct server *s)
{
	return s->id;
}

const char *server_engine(const struct server *s)
{
	return s->stacked ? "kernel" : "server";
}

bool server_zero_copy(const struct server *s)
{
	return s->copy == &copy_zero;
}

bool server_direct_io(const struct server *s)
{
	return meta_files(s->meta)->align[0] > 1;
}

uint64_t server_size(const struct server *s)
{
	return s->size;
}

bool server_read_only(const struct server *s)
{
	return meta_read_only(s->meta);
}

int server_read_only_fd(const struct server *s)
{
	return meta_read_only_fd(s->meta);
}

unsigned server_queues(const struct server *s)
{
	return s->queues;
}

unsigned server_depth(const struct server *s)
{
	return s->info.queue_depth;
}

void server_allow_hits(struct server *s, bool allow)
{
	meta_allow_hits(s->meta, allow);
}

void server_dump(struct server *s)
{
	meta_dump(s->meta);
}

void server_get_stats(struct server *s, struct server_stats *out)
{
	*out = (struct server_stats){ 0 };
	for (unsigned i = 0; i < s->queues; i++)
		queue_add_stats(s->queue[i], out);
	meta_commits(s->meta, out);
	if (s->stacked)
		kernel_engine_stats(s->kernel, out);
	fastmap_counts(s->map, &out->slices, &out->withdrawals, &out->drains);
}

int server_dead_fd(const struct server *s)
{
	return s->dead_fd;
}

bool server_can_be_followed(const struct server *s)
{
	struct ublksrv_ctrl_dev_info info;

	return (s->info.flags & RECOVERY_FLAGS) == RECOVERY_FLAGS &&
	       ctrl_get_info(s->ctrl, s->id, &info) >= 0 && info.state != UBLK_S_DEV_DEAD;
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * ublk-loop-zc FILE: a ublk device over a raw file, with as little work per request as ublk and io_uring
 * allow: the yardstick for what the mapping of a qcow2 image may cost.
 *
 * One queue of 64 tags, one thread, one ring (SINGLE_ISSUER, DEFER_TASKRUN). The driver registers a request's
 * pages as buffer number `tag` (AUTO_BUF_REG); the data SQE reads or writes the O_DIRECT file from there and
 * is linked to COMMIT_AND_FETCH, with no CQE when it succeeds: the thread wakes once per request, or once for
 * several. When a data I/O fails or is short its link is broken: its CQE comes, the tag is still ours, and
 * the request ends with -EIO.
 *
 * Prints the device's path when it can be used, serves until SIGTERM or SIGINT, then deletes the device.
 * Exits with 77 where the kernel has no such zero copy. Not a product: no recovery, no discard, one size of
 * everything.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/ublk_cmd.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEPTH 64u
#define MAX_IO (512u << 10)
#define BLOCK_SHIFT 12 /* logical blocks of 4096 bytes: what the file below takes */
#define NO_ZERO_COPY 77 /* exit status: the kernel cannot */
#define FEATURES (UBLK_F_SUPPORT_ZERO_COPY | UBLK_F_AUTO_BUF_REG | UBLK_F_CMD_IOCTL_ENCODE)

enum { FILE_DATA, FILE_CHAR }; /* the ring's file table */
#define IS_DATA 0x10000ull /* in user_data, beside the tag */

struct queue {
	struct io_uring ring;
	const struct ublksrv_io_desc *iod;
	int fds[2];
	unsigned live; /* tags that the driver has not given up */
	pthread_barrier_t ready;
};

static void die(const char *what, int ret)
{
	fprintf(stderr, "ublk-loop-zc: %s: %s\n", what, strerror(ret < 0 ? -ret : ret));
	exit(1);
}

/* ---- the queue's thread ---- */

/* There is always room: two SQEs per tag. */
static struct io_uring_sqe *get_sqe(struct queue *q, unsigned op, unsigned file, uint64_t user_data)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&q->ring);

	if (!sqe)
		die("submission queue", EOVERFLOW);
	io_uring_prep_rw((int)op, sqe, (int)file, NULL, 0, 0);
	sqe->flags = IOSQE_FIXED_FILE;
	sqe->user_data = user_data;
	return sqe;
}

static void queue_command(struct queue *q, uint32_t op, unsigned tag, int res)
{
	struct io_uring_sqe *sqe = get_sqe(q, IORING_OP_URING_CMD, FILE_CHAR, tag);
	struct ublk_auto_buf_reg reg = { .index = (uint16_t)tag };

	sqe->cmd_op = op;
	sqe->addr = ublk_auto_buf_reg_to_sqe_addr(&reg);
	*(struct ublksrv_io_cmd *)sqe->cmd = (struct ublksrv_io_cmd){ .tag = (uint16_t)tag, .result = res };
}

static void commit(struct queue *q, unsigned tag, int res)
{
	queue_command(q, UBLK_U_IO_COMMIT_AND_FETCH_REQ, tag, res);
}

/* The data I/O of a request, and its end when that succeeds. */
static void serve(struct queue *q, unsigned tag)
{
	const struct ublksrv_io_desc *iod = &q->iod[tag];
	unsigned op = ublksrv_get_op(iod), len = iod->nr_sectors << 9;
	struct io_uring_sqe *sqe;

	switch (op) {
	case UBLK_IO_OP_READ:
	case UBLK_IO_OP_WRITE:
		op = op == UBLK_IO_OP_READ ? IORING_OP_READ_FIXED : IORING_OP_WRITE_FIXED;
		sqe = get_sqe(q, op, FILE_DATA, IS_DATA | tag);
		sqe->off = iod->start_sector << 9;
		sqe->len = len;
		sqe->buf_index = (uint16_t)tag;
		break;
	case UBLK_IO_OP_FLUSH:
		len = 0;
		sqe = get_sqe(q, IORING_OP_FSYNC, FILE_DATA, IS_DATA | tag);
		sqe->fsync_flags = IORING_FSYNC_DATASYNC;
		break;
	default:
		commit(q, tag, -EOPNOTSUPP);
		return;
	}
	sqe->flags |= IOSQE_IO_LINK | IOSQE_CQE_SKIP_SUCCESS;
	commit(q, tag, (int)len);
}

static void handle(struct queue *q, uint64_t user_data, int res)
{
	unsigned tag = user_data & (IS_DATA - 1);

	if (user_data & IS_DATA)
		commit(q, tag, -EIO);
	else if (res == UBLK_IO_RES_OK)
		serve(q, tag);
	else if (res == UBLK_IO_RES_ABORT)
		q->live--;
	else if (res != -ECANCELED) /* a COMMIT whose data I/O failed: handled with that one */
		die("COMMIT_AND_FETCH", res);
}

static void setup(struct queue *q)
{
	struct io_uring_params p = {
		.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_NO_SQARRAY |
			 IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE,
		.cq_entries = 4 * DEPTH,
	};
	size_t bytes = DEPTH * sizeof(struct ublksrv_io_desc); /* of the only queue: at offset 0 */
	int ret = io_uring_queue_init_params(2 * DEPTH, &q->ring, &p);

	if (ret)
		die("io_uring", ret);
	ret = io_uring_register_ring_fd(&q->ring);
	if (ret != 1)
		die("io_uring: ring descriptor", ret);
	ret = io_uring_register_files(&q->ring, q->fds, 2);
	if (ret)
		die("io_uring: files", ret);
	ret = io_uring_register_buffers_sparse(&q->ring, DEPTH);
	if (ret)
		die("io_uring: buffers", ret);
	q->iod = mmap(NULL, bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, q->fds[FILE_CHAR],
		      UBLKSRV_CMD_BUF_OFFSET);
	if (q->iod == MAP_FAILED)
		die("request descriptors", errno);
	for (unsigned tag = 0; tag < DEPTH; tag++)
		queue_command(q, UBLK_U_IO_FETCH_REQ, tag, -1);
	q->live = DEPTH;
	ret = io_uring_submit(&q->ring);
	if (ret != (int)DEPTH)
		die("FETCH", ret);
}

static void *queue_main(void *arg)
{
	struct queue *q = arg;

	setup(q);
	pthread_barrier_wait(&q->ready);
	while (q->live) {
		struct io_uring_cqe *cqe;
		unsigned head, n = 0;
		int ret = io_uring_submit_and_wait(&q->ring, 1);

		if (ret < 0 && ret != -EINTR)
			die("io_uring_enter", ret);
		io_uring_for_each_cqe(&q->ring, head, cqe)
		{
			handle(q, cqe->user_data, cqe->res);
			n++;
		}
		io_uring_cq_advance(&q->ring, n);
	}
	io_uring_queue_exit(&q->ring);
	return NULL;
}

/* ---- the device ---- */

struct control {
	struct io_uring ring;
	int fd;
	struct ublksrv_ctrl_dev_info info;
};

static int command(struct control *c, uint32_t op, void *buf, size_t len, uint64_t data)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&c->ring);
	struct io_uring_cqe *cqe;
	int ret;

	if (!sqe)
		return -EBUSY;
	memset(sqe, 0, 2 * sizeof(*sqe));
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = c->fd;
	sqe->cmd_op = op;
	*(struct ublksrv_ctrl_cmd *)sqe->cmd = (struct ublksrv_ctrl_cmd){
		.dev_id = c->info.dev_id,
		.queue_id = UINT16_MAX,
		.len = (uint16_t)len,
		.addr = (uint64_t)(uintptr_t)buf,
		.data = { data },
	};
	io_uring_submit(&c->ring);
	do
		ret = io_uring_wait_cqe(&c->ring, &cqe);
	while (ret == -EINTR);
	if (ret)
		return ret;
	ret = cqe->res;
	io_uring_cqe_seen(&c->ring, cqe);
	return ret;
}

static void add_device(struct control *c, uint64_t size)
{
	struct ublk_params params = {
		.len = sizeof(params),
		.types = UBLK_PARAM_TYPE_BASIC | UBLK_PARAM_TYPE_DMA_ALIGN,
		.basic = {
			.attrs = UBLK_ATTR_VOLATILE_CACHE,
			.logical_bs_shift = BLOCK_SHIFT,
			.physical_bs_shift = BLOCK_SHIFT,
			.io_min_shift = BLOCK_SHIFT,
			.io_opt_shift = 16,
			.max_sectors = MAX_IO >> 9,
			.dev_sectors = size >> BLOCK_SHIFT << (BLOCK_SHIFT - 9),
		},
		.dma = { .alignment = 511 },
	};
	struct io_uring_params p = { .flags = IORING_SETUP_SQE128 };
	int ret = io_uring_queue_init_params(4, &c->ring, &p);

	if (ret)
		die("io_uring", ret);
	c->fd = open("/dev/ublk-control", O_RDWR | O_CLOEXEC);
	if (c->fd < 0)
		die("/dev/ublk-control", errno);
	c->info = (struct ublksrv_ctrl_dev_info){
		.nr_hw_queues = 1,
		.queue_depth = DEPTH,
		.max_io_buf_bytes = MAX_IO,
		.dev_id = UINT32_MAX,
		.flags = FEATURES,
		.ublksrv_pid = getpid(),
	};
	ret = command(c, UBLK_U_CMD_ADD_DEV, &c->info, sizeof(c->info), 0);
	if (ret == -EINVAL || (!ret && (c->info.flags & FEATURES) != FEATURES)) {
		command(c, UBLK_U_CMD_DEL_DEV, NULL, 0, 0);
		exit(NO_ZERO_COPY);
	}
	if (ret)
		die("ADD_DEV", ret);
	ret = command(c, UBLK_U_CMD_SET_PARAMS, &params, sizeof(params), 0);
	if (ret)
		die("SET_PARAMS", ret);
}

/* udev makes the node writable and visible a moment after ADD_DEV. */
static int open_char(unsigned id)
{
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "/dev/ublkc%u", id);
	for (int i = 0; i < 500; i++) {
		fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
		if (fd >= 0)
			return fd;
		usleep(10000);
	}
	die(path, errno);
	return -1;
}

int main(int argc, char **argv)
{
	static struct control control;
	static struct queue queue;
	pthread_t thread;
	struct stat st;
	sigset_t end;
	int ret, sig;

	if (argc != 2) {
		fprintf(stderr, "usage: ublk-loop-zc FILE\n");
		return 2;
	}
	queue.fds[FILE_DATA] = open(argv[1], O_RDWR | O_DIRECT | O_CLOEXEC);
	if (queue.fds[FILE_DATA] < 0 || fstat(queue.fds[FILE_DATA], &st))
		die(argv[1], errno);
	sigemptyset(&end);
	sigaddset(&end, SIGTERM);
	sigaddset(&end, SIGINT);
	pthread_sigmask(SIG_BLOCK, &end, NULL);

	add_device(&control, (uint64_t)st.st_size);
	queue.fds[FILE_CHAR] = open_char(control.info.dev_id);
	pthread_barrier_init(&queue.ready, NULL, 2);
	ret = pthread_create(&thread, NULL, queue_main, &queue);
	if (ret)
		die("thread", ret);
	pthread_barrier_wait(&queue.ready);
	ret = command(&control, UBLK_U_CMD_START_DEV, NULL, 0, (uint64_t)getpid());
	if (ret)
		die("START_DEV", ret);
	printf("/dev/ublkb%u\n", control.info.dev_id);
	fflush(stdout);

	sigwait(&end, &sig);
	command(&control, UBLK_U_CMD_STOP_DEV, NULL, 0, 0);
	pthread_join(thread, NULL);
	munmap((void *)queue.iod, DEPTH * sizeof(struct ublksrv_io_desc));
	close(queue.fds[FILE_CHAR]);
	ret = command(&control, UBLK_U_CMD_DEL_DEV, NULL, 0, 0);
	if (ret)
		die("DEL_DEV", ret);
	return 0;
}

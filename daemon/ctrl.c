/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * ctrl.c - commands of /dev/ublk-control, one at a time, on a ring of their own.
 *
 * Owns the control descriptor and a ring of 128-byte SQEs. Used by one thread (the process's main thread);
 * several of the commands block, and START_DEV and STOP_DEV only end because other threads go on serving the
 * device.
 *
 * A crash leaves a device in the kernel: `ublk_delete()` removes it.
 */
#include "ctrl.h"
#include "upper.h"
#include "uring.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONTROL "/dev/ublk-control"

struct ctrl {
	struct io_uring ring;
	int fd;
	uint64_t features;
	bool plain; /* a kernel before 6.4: commands are numbers, not ioctl codes */
};

static int command(struct ctrl *c, uint32_t op, const struct ublksrv_ctrl_cmd *cmd)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&c->ring);
	struct io_uring_cqe *cqe;
	int ret;

	if (!sqe)
		return -ENOMEM;
	memset(sqe, 0, 2 * sizeof(*sqe));
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = c->fd;
	sqe->cmd_op = c->plain ? _IOC_NR(op) : op;
	memcpy(sqe->cmd, cmd, sizeof(*cmd));
	do
		ret = io_uring_submit_and_wait(&c->ring, 1);
	while (uring_again(ret));
	if (ret < 0)
		return ret;
	while ((ret = io_uring_wait_cqe(&c->ring, &cqe)) == -EINTR)
		;
	if (ret)
		return ret;
	ret = cqe->res;
	io_uring_cqe_seen(&c->ring, cqe);
	return ret;
}

/* A command on a device with a buffer. */
static int device_command(struct ctrl *c, uint32_t op, int id, void *buf, unsigned len, uint64_t data)
{
	struct ublksrv_ctrl_cmd cmd = {
		.dev_id = (uint32_t)id,
		.queue_id = UINT16_MAX,
		.len = (uint16_t)len,
		.addr = (uint64_t)(uintptr_t)buf,
		.data = { data },
	};

	return command(c, op, &cmd);
}

static int open_failed(int code, struct qcow2_error *err)
{
	switch (code) {
	case ENOENT:
	case ENODEV:
	case ENXIO:
		return qcow2_fail(err, -ENOENT,
				  CONTROL
				  ": cannot open: the kernel has no ublk_drv (modprobe ublk_drv; the kernel "
				  "needs CONFIG_BLK_DEV_UBLK, Linux 6.1 or newer)");
	case EACCES:
	case EPERM:
		return qcow2_fail(err, -EACCES, CONTROL ": cannot open: %s: this needs root", strerror(code));
	default:
		return qcow2_fail(err, -code, CONTROL ": cannot open: %s", strerror(code));
	}
}

int ctrl_open(struct ctrl **out, struct qcow2_error *err)
{
	struct io_uring_params p = { .flags = IORING_SETUP_SQE128 };
	struct ctrl *c = calloc(1, sizeof(*c));
	int ret;

	if (!c)
		return qcow2_fail(err, -ENOMEM, CONTROL ": out of memory");
	c->fd = open(CONTROL, O_RDWR | O_CLOEXEC);
	if (c->fd < 0) {
		ret = open_failed(errno, err);
		goto free_ctrl;
	}
	ret = io_uring_queue_init_params(4, &c->ring, &p);
	if (ret) {
		qcow2_fail(err, ret, CONTROL ": io_uring: %s%s", strerror(-ret),
			   ret == -EPERM ? " (see /proc/sys/kernel/io_uring_disabled)" : "");
		goto close_fd;
	}
	ret = device_command(c, UBLK_U_CMD_GET_FEATURES, -1, &c->features, sizeof(c->features), 0);
	if (ret == -EPERM || ret == -EACCES) {
		qcow2_fail(err, ret, CONTROL ": %s: this needs root", strerror(-ret));
		goto exit_ring;
	}
	if (ret < 0)
		c->features = 0;
	c->plain = !(c->features & UBLK_F_CMD_IOCTL_ENCODE);
	*out = c;
	return 0;

exit_ring:
	io_uring_queue_exit(&c->ring);
close_fd:
	close(c->fd);
free_ctrl:
	free(c);
	return ret;
}

void ctrl_close(struct ctrl *c)
{
	io_uring_queue_exit(&c->ring);
	close(c->fd);
	free(c);
}

uint64_t ctrl_features(const struct ctrl *c)
{
	return c->features;
}

uint32_t ctrl_io_cmd(const struct ctrl *c, uint32_t cmd)
{
	return c->plain ? _IOC_NR(cmd) : cmd;
}

int ctrl_add(struct ctrl *c, struct ublksrv_ctrl_dev_info *info)
{
	if (!c->plain)
		info->flags |= UBLK_F_CMD_IOCTL_ENCODE;
	return device_command(c, UBLK_U_CMD_ADD_DEV, (int)info->dev_id, info, sizeof(*info), 0);
}

int ctrl_set_params(struct ctrl *c, int id, const struct ublk_params *params)
{
	return device_command(c, UBLK_U_CMD_SET_PARAMS, id, (void *)params, params->len, 0);
}

int ctrl_queue_affinity(struct ctrl *c, int id, unsigned queue, cpu_set_t *cpus)
{
	CPU_ZERO(cpus);
	return device_command(c, UBLK_U_CMD_GET_QUEUE_AFFINITY, id, cpus, sizeof(*cpus), queue);
}

int ctrl_start(struct ctrl *c, int id)
{
	return device_command(c, UBLK_U_CMD_START_DEV, id, NULL, 0, (uint64_t)getpid());
}

int ctrl_stop(struct ctrl *c, int id)
{
	return device_command(c, UBLK_U_CMD_STOP_DEV, id, NULL, 0, 0);
}

int ctrl_delete(struct ctrl *c, int id)
{
	int ret;

	do
		ret = device_command(c, UBLK_U_CMD_DEL_DEV, id, NULL, 0, 0);
	while (ret == -EINTR);
	return ret;
}

int ctrl_get_info(struct ctrl *c, int id, struct ublksrv_ctrl_dev_info *info)
{
	memset(info, 0, sizeof(*info));
	return device_command(c, UBLK_U_CMD_GET_DEV_INFO, id, info, sizeof(*info), 0);
}

int ctrl_start_recovery(struct ctrl *c, int id)
{
	return device_command(c, UBLK_U_CMD_START_USER_RECOVERY, id, NULL, 0, 0);
}

int ctrl_end_recovery(struct ctrl *c, int id)
{
	return device_command(c, UBLK_U_CMD_END_USER_RECOVERY, id, NULL, 0, (uint64_t)getpid());
}

/* ---- for tools ---- */

int ublk_features(uint64_t *features, struct qcow2_error *err)
{
	struct ctrl *c;
	int ret = ctrl_open(&c, err);

	if (ret)
		return ret;
	*features = c->features;
	ctrl_close(c);
	return 0;
}

/* The driver says -EINVAL or -ENODEV for an id it does not know, depending on its version. */
static int no_device(int ret)
{
	return ret == -EINVAL ? -ENODEV : ret;
}

int ublk_get_info(int id, struct ublksrv_ctrl_dev_info *info, struct qcow2_error *err)
{
	struct ctrl *c;
	int ret = ctrl_open(&c, err);

	if (ret)
		return ret;
	ret = no_device(ctrl_get_info(c, id, info));
	ctrl_close(c);
	return ret < 0 ? qcow2_fail(err, ret, "/dev/ublkb%d: %s", id, strerror(-ret)) : 0;
}

int ublk_delete(int id, struct qcow2_error *err)
{
	struct ctrl *c;
	int ret = ctrl_open(&c, err);

	if (ret)
		return ret;
	ctrl_stop(c, id); /* a device that never started says no; deleting it is what counts */
	ret = upper_remove(id); /* what waited below it has failed by now */
	if (!ret)
		ret = no_device(ctrl_delete(c, id));
	ctrl_close(c);
	return ret < 0 ? qcow2_fail(err, ret, "/dev/ublkb%d: cannot delete: %s", id, strerror(-ret)) : 0;
}

int ublk_delete_within(int id, unsigned ms, struct qcow2_error *err)
{
	struct pollfd p = { .events = POLLIN };
	int status = 0, ended;
	pid_t pid = fork();

	if (pid < 0)
		return qcow2_fail(err, -errno, "fork: %s", strerror(errno));
	if (!pid) {
		close_range(3, ~0u, 0); /* it may outlive us: no lock and no pipe of ours may */
		_exit(-ublk_delete(id, NULL));
	}
	p.fd = pidfd_open(pid, 0);
	while ((ended = poll(&p, 1, (int)ms)) < 0 && errno == EINTR)
		;
	if (p.fd >= 0)
		close(p.fd);
	if (!ended)
		return qcow2_fail(err, -ETIMEDOUT, "/dev/ublkb%d: goes when I/O of its dead process has ended", id);
	waitpid(pid, &status, 0);
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return 0;
	status = WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
	return qcow2_fail(err, -status, "/dev/ublkb%d: cannot delete: %s", id, strerror(status));
}

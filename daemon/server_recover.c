/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * server_recover.c - a device that has lost its server gets another one.
 *
 * Owns nothing of its own; what it brings to life is released as what server.c does. The driver has kept what
 * was not answered and gives it to the new server once that has asked on every tag. The disk over the device
 * is told to forget what it knew before the image is opened. A failure leaves the device as it was.
 */
#include "rundir.h"
#include "server_impl.h"
#include "upper.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define RECOVERY_WAIT_MS 30000
#define CANCEL_WAITS 4
#define CANCEL_WAIT_MS 50

static int look_up(struct server *s, const struct server_options *opt, struct qcow2_error *err)
{
	int id = opt->custody->id, ret = ctrl_get_info(s->ctrl, id, &s->info);

	snprintf(s->node, sizeof(s->node), "/dev/ublkb%d", id);
	if (opt->custody->node && opt->custody->node != run_node(id))
		return -ESHUTDOWN; /* that number is somebody else's now, if anybody's */
	if (ret == -ENODEV || ret == -EINVAL || (ret >= 0 && s->info.state == UBLK_S_DEV_DEAD)) {
		s->id = ret < 0 ? -1 : id;
		return -ESHUTDOWN;
	}
	if (ret < 0)
		return qcow2_fail(err, ret, "%s: %s", s->node, strerror(-ret));
	s->id = id;
	s->stays = true;
	s->copy = server_way_of(s->info.flags);
	if ((s->info.flags & RECOVERY_FLAGS) == RECOVERY_FLAGS)
		return 0;
	return qcow2_fail(err, -EOPNOTSUPP, "%s: the kernel cannot give it another process", s->node);
}

/* The last server was stopping: finish that. */
static int finish_stop(struct server *s, const struct server_options *opt, struct qcow2_error *err)
{
	int id = opt->custody->id, ret = s->id < 0 ? upper_bury(id) : upper_remove(id);

	if (ret && ret != -EBUSY) /* then it is there, but silent */
		ret = qcow2_fail(err, ret, "/dev/ublkbpf%d: cannot be removed: %s", id, strerror(-ret));
	else
		ret = server_open_image(s, opt, 1, err);
	if (ret) {
		s->stays = true;
		return ret;
	}
	return -ESHUTDOWN;
}

/* Its recovery was written anew, as far as servers that die during it are concerned. */
static bool is_new_driver(const struct server *s)
{
	return ctrl_features(s->ctrl) & UBLK_F_QUIESCE;
}

/*
 * The driver of 6.12 goes through NULL in START_USER_RECOVERY if the last server had started the recovery and
 * died before each of its queues was ready (and refuses if none was). So each queue that is not ready becomes
 * it here, and loses its server again; the others refuse.
 */
static int settle_queues(struct server *s, const struct server_options *opt, struct qcow2_error *err)
{
	struct queue_options settings;
	struct queue *q;
	int ret;

	if (is_new_driver(s))
		return 0;
	ret = server_open_char(s, opt, err);
	if (ret)
		return ret;
	settings = server_queue_settings(s, opt->custody);
	settings.dead_fd = -1;
	for (; settings.id < s->info.nr_hw_queues && !ret; settings.id++) {
		struct qcow2_error why = { "" };

		ret = queue_start(&q, &settings, &why);
		if (!ret) {
			queue_join(q, QUEUE_GIVEN_UP);
			queue_free(q);
		} else if (ret == -EINVAL || ret == -EBUSY) {
			ret = 0;
		} else {
			qcow2_fail(err, ret, "%s: %s", s->node, why.text);
		}
	}
	close(s->char_fd);
	s->char_fd = -1;
	return ret;
}

/*
 * The kernel does work of its own on each CPU's system workqueue and waits for it (vmstat_refresh()): items
 * that were queued there before have begun when this returns, however busy the CPUs are.
 */
static void pass_queued_work(void)
{
	int fd = open("/proc/sys/vm/stat_refresh", O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	(void)!write(fd, "1", 1);
	close(fd);
}

/*
 * The dead server's rings let go of ublkcN some time after its end. Even then the driver of 6.12 may not be
 * done with them: a work item, queued for each queue that lost its server, cancels every command that it
 * finds. If it comes to that late it finds the FETCHes of the next server, and a request for such a tag is
 * lost for ever, and with it the device: the next recovery waits for it. Nothing says when that work has
 * ended; once begun it needs no more than a CPU, so it is given some turns.
 */
static void outlast_cancelling(void)
{
	for (unsigned i = 0; i < CANCEL_WAITS; i++) {
		pass_queued_work();
		for (unsigned ms = 0; ms < CANCEL_WAIT_MS; ms++)
			server_nap();
	}
}

static int start_recovery(struct server *s, struct qcow2_error *err)
{
	int ret = -EBUSY;

	for (unsigned ms = 0; ms < RECOVERY_WAIT_MS && ret == -EBUSY; ms++) {
		ret = ctrl_start_recovery(s->ctrl, s->id);
		if (ret == -EBUSY)
			server_nap();
	}
	if (ret < 0)
		return qcow2_fail(err, ret, "%s: cannot be recovered: %s", s->node, strerror(-ret));
	if (!is_new_driver(s))
		outlast_cancelling();
	return 0;
}

static int end_recovery(struct server *s, struct qcow2_error *err)
{
	int ret = 0;

	for (unsigned i = 0; i < s->queues; i++)
		if (!queue_is_whole(s->queue[i]))
			ret = -EAGAIN;
	if (!ret)
		ret = ctrl_end_recovery(s->ctrl, s->id);
	if (ret < 0)
		return qcow2_fail(err, ret, "%s: cannot be recovered: %s", s->node, strerror(-ret));
	s->started = true;
	s->stays = false;
	return 0;
}

/* The disk over the device, if there is one, is told to forget what it knew before the image is opened. */
static int adopt_kernel(struct server *s, const struct server_options *opt, struct qcow2_error *err)
{
	struct qcow2_error why = { "" };
	char path[64];
	int ret;

	snprintf(path, sizeof(path), "/sys/block/ublkbpf%d", s->id);
	if (access(path, F_OK) < 0)
		return 0;
	ret = kernel_engine_new(&s->kernel, server_cache_size(opt), &why);
	if (ret)
		return qcow2_fail(err, ret, "%s: %s", s->node, why.text);
	ret = kernel_engine_adopt(s->kernel, s->id, err);
	if (ret > 0)
		server_use_kernel(s);
	return ret < 0 ? ret : 0;
}

int server_bring_back(struct server *s, const struct server_options *opt, struct qcow2_error *err)
{
	struct ublk_params params;
	int ret = server_prepare(s, opt, err);

	if (!ret)
		ret = look_up(s, opt, err);
	if (ret == -ESHUTDOWN)
		return finish_stop(s, opt, err);
	if (!ret)
		ret = adopt_kernel(s, opt, err);
	if (!ret)
		ret = server_open_image(s, opt, s->info.nr_hw_queues, err);
	if (ret)
		return ret;
	server_shape(s, opt, &params);
	if (s->stacked)
		ret = kernel_engine_load(s->kernel, s->id,
					 (unsigned)__builtin_ctz(meta_info(s->meta)->cluster_size), s->map,
					 err);
	if (!ret)
		ret = settle_queues(s, opt, err);
	if (!ret)
		ret = start_recovery(s, err);
	if (!ret)
		ret = server_open_char(s, opt, err);
	if (!ret)
		ret = server_start_queues(s, opt->custody, err);
	if (!ret)
		ret = end_recovery(s, err);
	if (ret || !s->stacked)
		return ret;
	ret = server_stack(s, err);
	s->stays = ret; /* its users have not lost anything yet */
	return ret;
}

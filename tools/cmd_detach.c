// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cmd_detach.c - ublk-qcow2 detach: asks the worker to write everything back and go, and does not return
 * before all of the device is gone. A device that nobody serves is brought back first, so that nothing that
 * was written is lost; one that cannot be brought back stays, unless the user wants it gone whatever is lost
 * (--force).
 */
#include "busy.h"
#include "client.h"
#include "command.h"
#include "daemon/ctrl.h"
#include "device_process.h"
#include "find.h"
#include "options.h"
#include "output.h"
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <unistd.h>

static int run_detach(int argc, char **argv);

const struct command cmd_detach = {
	.name = "detach",
	.run = run_detach,
	.summary = "write everything back and remove the device",
	.help = "detach [--force] DEVICE|IMAGE\n"
		"       ublk-qcow2 detach [--force] --all\n"
		"Writes everything back, closes the image and removes the device. One that is in use "
		"stays.\n\n"
		"  --all    every attached image\n"
		"  --force  a device whose process died and that cannot be brought back, too\n",
};

#define DELETE_MS 20000u

static bool force;

/* ---- a device whose process died ---- */

/* What the kernel still has under that number, unless it is somebody else's by now. */
static int delete_orphan(const struct run_state *st, struct qcow2_error *err)
{
	uint64_t node = run_node(st->id);
	char disk[64];
	int ret;

	snprintf(disk, sizeof(disk), "/sys/block/ublkb%d", st->id);
	if (!node || (st->node ? node != st->node : access(disk, F_OK) == 0))
		return 0;
	ret = ublk_delete_within(st->id, DELETE_MS, err);
	return ret == -ENODEV ? 0 : ret;
}

/* Remove what is left, under the lock of the directory. @why: it could not be brought back. */
static int remove_dead(const struct run_state *st, const struct qcow2_error *why)
{
	struct qcow2_error err = { "" };
	struct rundir *dir;
	int ret;

	ret = rundir_take(&dir, st->id, &err);
	if (ret == -ENOENT)
		return EXIT_DONE; /* somebody else did it */
	if (ret)
		return report_error(&err, ret);
	if (rundir_has_records(dir) && !force) {
		rundir_release(dir);
		return report(
			"%s: its processes died and it cannot be brought back: %s (detach --force removes it "
			"all the same)",
			st->device, why->text);
	}
	ret = delete_orphan(st, &err);
	if (ret == -ETIMEDOUT) {
		report("%s", err.text);
		err.text[0] = '\0';
	} else if (ret) {
		rundir_release(dir);
		return report_error(&err, ret);
	}
	if (rundir_retire(dir, &err))
		report("%s: removed; %s", st->device, err.text);
	else
		report("%s: its processes had died: removed", st->device);
	return EXIT_DONE;
}

/* ---- a living one ---- */

static void wait_for_end(int pidfd)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	while (pidfd >= 0 && poll(&p, 1, -1) < 0 && errno == EINTR)
		;
}

/* The process that ends last. Its pid is the right one: the directory's lock was held a moment ago, and is
 * asked for again by whoever answers the call. */
static int last_process(const struct run_state *st)
{
	return pidfd_open(st->supervisor ? st->supervisor : st->pid, 0);
}

static int ask_supervisor(const struct run_state *st, int pidfd, struct qcow2_error *err)
{
	struct qcow2_error remark = { "" };
	int ret = supervisor_order(st, "detach", force, &remark, err);

	if (!ret)
		wait_for_end(pidfd);
	if (!ret && remark.text[0])
		report("%s: removed; %s", st->device, remark.text);
	return ret;
}

/* The worker, and if that is busy dying or coming back, the supervisor. */
static int ask(const struct run_state *st, struct qcow2_error *err)
{
	int pidfd = last_process(st), ret = -ECONNRESET;

	if (st->phase == RUN_LIVE && !(force && st->supervisor)) /* who can end it if it cannot end itself */
		ret = control_call(st, "Detach", NULL, err);
	if (!ret || ret == -EREMOTEIO) {
		wait_for_end(pidfd);
	} else {
		err->text[0] = '\0';
		ret = ask_supervisor(st, pidfd, err);
	}
	if (pidfd >= 0)
		close(pidfd);
	return ret;
}

static int detach_live(const struct run_state *st)
{
	struct qcow2_error err = { "" };
	struct run_state now;
	bool live;
	int ret = ask(st, &err);

	if (!ret)
		return EXIT_DONE;
	if (ret == -EREMOTEIO)
		return report("%s%s", err.text,
			      st->phase == RUN_LIVE || force ? "" : " (detach --force removes it all the same)");
	if (rundir_read(st->id, &now, &live, NULL) == -ENOENT)
		return EXIT_DONE; /* somebody else's detach won */
	run_state_clear(&now);
	return report("%s: its processes do not answer", st->device);
}

/* Nobody serves it: bring it back, then it is a living one. */
static int detach_dead(const struct run_state *st)
{
	struct qcow2_error err = { "" };
	struct run_state now;
	bool live;
	int ret = device_process_recover(st, &err);

	if (ret == -ESHUTDOWN)
		return EXIT_DONE;
	if (ret)
		return remove_dead(st, &err);
	ret = rundir_read(st->id, &now, &live, &err);
	if (ret)
		return ret == -ENOENT ? EXIT_DONE : report_error(&err, ret);
	ret = detach_live(&now);
	run_state_clear(&now);
	return ret;
}

static int detach(const struct found *f)
{
	char users[400];

	if (device_busy_wait(f->state.device, users, sizeof(users)) == BUSY_YES)
		return report("%s: is in use: %s", f->state.device, users);
	return f->live ? detach_live(&f->state) : detach_dead(&f->state);
}

static int run_detach(int argc, char **argv)
{
	static const struct option options[] = {
		{ "all", no_argument, NULL, 'a' },
		{ "force", no_argument, NULL, 'f' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	bool all = false;
	int opt, ret;

	while ((opt = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
		if (opt == 'h')
			return show_help(&cmd_detach);
		if (opt != 'a' && opt != 'f')
			return bad_option(&cmd_detach, argv, opt);
		all |= opt == 'a';
		force |= opt == 'f';
	}
	if (all && optind < argc)
		return usage_error(&cmd_detach, "--all and a device were given");
	ret = all ? 0 : want_arguments(&cmd_detach, argc, 1, "DEVICE, IMAGE or --all");
	return ret ? ret : for_devices(all ? NULL : argv[optind], detach);
}

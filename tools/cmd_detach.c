// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cmd_detach.c - ublk-qcow2 detach: asks the device process to write everything back and go, and does not
 * return before it is gone. What a dead process left behind is removed here, under the lock of its run
 * directory.
 */
#include "busy.h"
#include "client.h"
#include "command.h"
#include "daemon/ctrl.h"
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
	.help = "detach DEVICE|IMAGE\n"
		"       ublk-qcow2 detach --all\n"
		"Writes everything back, closes the image and removes the device. One that is in use "
		"stays.\n\n"
		"  --all    every attached image\n",
};

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
	ret = ublk_delete(st->id, err);
	return ret == -ENODEV ? 0 : ret;
}

static int remove_dead(const struct run_state *st)
{
	struct qcow2_error err = { "" };
	struct rundir *dir;
	char users[400];
	int ret;

	if (device_busy_wait(st->id, users, sizeof(users)) == BUSY_YES)
		return report("%s: is in use: %s", st->device, users);
	ret = rundir_take(&dir, st->id, &err);
	if (ret == -ENOENT)
		return EXIT_DONE; /* somebody else did it */
	if (ret)
		return report_error(&err, ret);
	ret = delete_orphan(st, &err);
	if (ret) {
		rundir_release(dir);
		return report_error(&err, ret);
	}
	rundir_remove(dir);
	report("%s: its process (pid %d) had died: removed", st->device, (int)st->pid);
	return EXIT_DONE;
}

/* ---- a living one ---- */

static void wait_for_end(int pidfd)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	while (pidfd >= 0 && poll(&p, 1, -1) < 0 && errno == EINTR)
		;
}

/* The connection ended without an answer: somebody else's detach won, or the process died. */
static int no_answer(const struct run_state *st)
{
	struct run_state now;
	bool live;

	if (rundir_read(st->id, &now, &live, NULL) == -ENOENT)
		return EXIT_DONE;
	run_state_clear(&now);
	if (!live)
		remove_dead(st);
	return report("%s: its process (pid %d) did not answer: what was not flushed may be lost", st->device,
		      (int)st->pid);
}

static int detach_live(const struct run_state *st)
{
	struct qcow2_error err = { "" };
	char users[400];
	int pidfd, ret;

	if (device_busy_wait(st->id, users, sizeof(users)) == BUSY_YES)
		return report("%s: is in use: %s", st->device, users);
	/* the pid is the right one: the directory's lock was held a moment ago, and is asked for again by
	 * whoever answers the call below */
	pidfd = pidfd_open(st->pid, 0);
	ret = control_call(st, "Detach", NULL, &err);
	if (!ret || ret == -EREMOTEIO || ret == -ECONNRESET)
		wait_for_end(pidfd);
	if (pidfd >= 0)
		close(pidfd);
	if (ret == -ECONNRESET)
		return no_answer(st);
	return ret ? report_error(&err, ret) : EXIT_DONE;
}

static int detach(const struct found *f)
{
	return f->live ? detach_live(&f->state) : remove_dead(&f->state);
}

static int detach_all(void)
{
	struct qcow2_error err = { "" };
	int *ids, ret, code = EXIT_DONE;
	struct found f;
	size_t count, i;

	ret = rundir_list(&ids, &count, &err);
	if (ret)
		return report_error(&err, ret);
	for (i = 0; i < count; i++) {
		err.text[0] = '\0';
		ret = rundir_read(ids[i], &f.state, &f.live, &err);
		if (ret == -ENOENT)
			continue;
		if (ret) {
			code = report_error(&err, ret);
			continue;
		}
		if (detach(&f) != EXIT_DONE)
			code = EXIT_FAILED;
		run_state_clear(&f.state);
	}
	free(ids);
	return code;
}

static int detach_one(const char *arg)
{
	struct qcow2_error err = { "" };
	struct found f;
	int ret = find_device(arg, true, &f, &err);

	if (ret)
		return report_error(&err, ret);
	ret = detach(&f);
	run_state_clear(&f.state);
	return ret;
}

static int run_detach(int argc, char **argv)
{
	static const struct option options[] = {
		{ "all", no_argument, NULL, 'a' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	bool all = false;
	int opt, ret;

	while ((opt = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
		if (opt == 'h')
			return show_help(&cmd_detach);
		if (opt != 'a')
			return bad_option(&cmd_detach, argv, opt);
		all = true;
	}
	if (all && optind < argc)
		return usage_error(&cmd_detach, "--all and a device were given");
	if (all)
		return detach_all();
	ret = want_arguments(&cmd_detach, argc, 1, "DEVICE, IMAGE or --all");
	return ret ? ret : detach_one(argv[optind]);
}

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cmd_recover.c - ublk-qcow2 recover and restart: the next process for a device, after a death and without
 * one.
 *
 * A supervisor that lives does it itself. If it died together with its worker, a new one is started from what
 * the run directory tells. If it died alone, the worker still serves and there is nothing to recover;
 * `restart` gives it both anew.
 */
#include "client.h"
#include "command.h"
#include "device_process.h"
#include "find.h"
#include "options.h"
#include "output.h"
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/pidfd.h>
#include <unistd.h>

static int run_recover(int argc, char **argv);
static int run_restart(int argc, char **argv);

const struct command cmd_recover = {
	.name = "recover",
	.run = run_recover,
	.summary = "bring a device back whose processes died",
	.help = "recover DEVICE\n"
		"       ublk-qcow2 recover --all\n"
		"Starts new processes for a device that has lost its own, with everything that was written "
		"to it;\n"
		"I/O that waits goes on. One that is served already is left alone.\n\n"
		"  --all    every device that needs it\n",
};

const struct command cmd_restart = {
	.name = "restart",
	.run = run_restart,
	.summary = "replace the process of a device by the installed version",
	.help = "restart DEVICE\n"
		"The device stays, I/O waits for a moment. Returns when the new process serves.\n",
};

static int order(const struct run_state *st, const char *what, struct qcow2_error *err)
{
	int ret = supervisor_order(st, what, false, NULL, err);

	if (ret && ret != -EREMOTEIO)
		return qcow2_fail(err, ret, "%s: its supervisor (pid %d) does not answer", st->device,
				  (int)st->supervisor);
	return ret;
}

static int recover_dead(const struct run_state *st, struct qcow2_error *err)
{
	int ret = device_process_recover(st, err);

	if (ret == -ESHUTDOWN)
		return qcow2_fail(err, ret, "%s: had been stopped or deleted: its image is up to date now",
				  st->device);
	return ret;
}

static int recover(const struct found *f)
{
	struct qcow2_error err = { "" };
	int ret = 0;

	if (!f->live)
		ret = recover_dead(&f->state, &err);
	else if (f->state.phase != RUN_LIVE)
		ret = order(&f->state, "recover", &err);
	return ret ? report_error(&err, ret) : EXIT_DONE;
}

static int run_recover(int argc, char **argv)
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
			return show_help(&cmd_recover);
		if (opt != 'a')
			return bad_option(&cmd_recover, argv, opt);
		all = true;
	}
	if (all && optind < argc)
		return usage_error(&cmd_recover, "--all and a device were given");
	ret = all ? 0 : want_arguments(&cmd_recover, argc, 1, "DEVICE or --all");
	return ret ? ret : for_devices(all ? NULL : argv[optind], recover);
}

/* ---- restart ---- */

/* Its supervisor died: nobody could start the next worker. A killed one loses nothing, and then it is a
 * device whose processes died. */
static int restart_orphan(const struct run_state *st, struct qcow2_error *err)
{
	struct pollfd p = { .fd = pidfd_open(st->pid, 0), .events = POLLIN };
	struct run_state now;
	bool live = false;
	int ret = rundir_read(st->id, &now, &live, err);

	if (!ret) {
		live = live && now.pid == st->pid; /* so the descriptor is of that process */
		run_state_clear(&now);
	}
	if (!ret && live && p.fd >= 0) {
		pidfd_send_signal(p.fd, SIGKILL, NULL, 0);
		while (poll(&p, 1, -1) < 0 && errno == EINTR)
			;
	}
	if (p.fd >= 0)
		close(p.fd);
	return ret ? ret : recover_dead(st, err);
}

static int restart(const struct found *f, struct qcow2_error *err)
{
	if (!f->live)
		return qcow2_fail(err, -ESRCH, "%s: its processes died: `ublk-qcow2 recover` brings it back",
				  f->state.device);
	if (!f->state.supervisor)
		return restart_orphan(&f->state, err);
	return order(&f->state, "restart", err);
}

static int run_restart(int argc, char **argv)
{
	static const struct option options[] = { { "help", no_argument, NULL, 'h' }, { NULL, 0, NULL, 0 } };
	struct qcow2_error err = { "" };
	struct found f;
	int opt, ret;

	while ((opt = getopt_long(argc, argv, ":h", options, NULL)) != -1)
		return opt == 'h' ? show_help(&cmd_restart) : bad_option(&cmd_restart, argv, opt);
	ret = want_arguments(&cmd_restart, argc, 1, "DEVICE");
	if (ret)
		return ret;
	ret = find_device(argv[optind], true, &f, &err);
	if (ret)
		return report_error(&err, ret);
	ret = restart(&f, &err);
	run_state_clear(&f.state);
	return ret ? report_error(&err, ret) : EXIT_DONE;
}

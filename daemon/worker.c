// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * worker.c - from the supervisor's `start` to a device that serves.
 *
 * Everything that a worker's death must not take with it is in the supervisor's hands before the device is
 * started: the descriptors (with the locks on them), the run directory, the journal. What this process has in
 * memory is either in the journal as well or was not answered yet.
 */
#include "worker.h"
#include "control.h"
#include "link.h"
#include "log.h"
#include "memory.h"
#include "server.h"
#include "thread.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

struct worker {
	struct link *link;
	struct link_start start;
	struct server *server;
	struct rundir *dir;
	struct control *control;
	struct qcow2_error err;
};

bool worker_wanted(void)
{
	struct stat st;

	return fstat(LINK_FD, &st) == 0 && S_ISSOCK(st.st_mode);
}

static int describe(struct worker *w)
{
	struct run_state *st = &w->start.state;

	free(st->device);
	free(st->engine);
	st->device = strdup(server_device(w->server));
	st->engine = strdup(server_engine(w->server));
	if (!st->device || !st->engine)
		return qcow2_fail(&w->err, -ENOMEM, "%s: %s", server_device(w->server), strerror(ENOMEM));
	st->id = server_id(w->server);
	st->node = run_node(st->id);
	st->size = server_size(w->server);
	st->read_only = server_read_only(w->server);
	st->zero_copy = server_zero_copy(w->server);
	st->direct_io = server_direct_io(w->server);
	st->queues = server_queues(w->server);
	st->depth = server_depth(w->server);
	return 0;
}

/* Take it back: a new device goes, one that was there before stays for the next worker. */
static void undo(struct worker *w)
{
	if (w->start.custody.recover)
		server_leave(w->server, NULL);
	else
		server_stop(w->server, NULL);
}

static int start(struct worker *w)
{
	int ret = server_create(&w->server, &w->start.opt, &w->err);

	if (ret)
		return ret;
	ret = link_take_dir(w->link, &w->dir, &w->err);
	if (!ret)
		ret = describe(w);
	if (!ret)
		ret = control_new(&w->control, w->server, w->dir, &w->start.state, w->link, &w->err);
	if (!ret)
		return 0;
	undo(w);
	rundir_release(w->dir);
	return ret;
}

/* Nothing of whoever attached the device stays open. */
static void detach_output(void)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	log_to_syslog();
	if (null >= 0) {
		dup2(null, STDERR_FILENO);
		close(null);
	}
}

static int serve(struct worker *w)
{
	int ret = start(w);

	if (ret == -ESHUTDOWN) { /* an earlier worker had died while it stopped */
		link_stopped(w->link, 0, &w->err, NULL);
		return 0;
	}
	if (ret) {
		link_failed(w->link, w->err.text[0] ? w->err.text : strerror(-ret));
		return ret;
	}
	if (!w->start.foreground)
		detach_output();
	if (!link_ready(w->link, &w->start.state) && !w->start.custody.recover)
		kill(getpid(), SIGTERM); /* nobody would ever know of the device */
	return control_run(w->control);
}

int worker_main(void)
{
	struct worker w = { NULL };
	sigset_t signals;
	int ret;

	prctl(PR_SET_NAME, "ublk-qcow2");
	fcntl(LINK_FD, F_SETFD, FD_CLOEXEC);
	thread_main_signals(&signals);
	ret = link_open(&w.link, LINK_FD, &w.start, &w.err);
	if (ret) {
		log_line(LOG_ERR, "%s", w.err.text);
		return EXIT_FAILURE;
	}
	memory_protect(w.start.opt.image);
	ret = serve(&w);
	link_close(w.link, &w.start);
	return ret ? EXIT_FAILURE : EXIT_SUCCESS;
}

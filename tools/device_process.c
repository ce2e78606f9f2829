// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * device_process.c - from the command to a process of its own, and what it tells its parent.
 *
 * The child writes lines to a pipe: "id N" as soon as the kernel has given it a device, then "ready DEVICE"
 * or "error TEXT". The end of file without either means that it died; the parent then deletes what "id"
 * named. There is one fork, before any thread exists. After "ready" the two have nothing to do with each
 * other.
 *
 * The run directory exists from "id" on: should the parent die, too, `detach` finds what is left.
 */
#include "device_process.h"
#include "daemon/control.h"
#include "daemon/ctrl.h"
#include "daemon/log.h"
#include "output.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PIPE_FD 3

struct process {
	struct server_options opt;
	struct server *server;
	struct rundir *dir;
	struct run_state state;
	struct control *control;
	FILE *tell; /* to the parent; NULL in the foreground */
	struct qcow2_error err;
};

static void tell(struct process *p, const char *word, const char *text)
{
	if (p->tell) {
		fprintf(p->tell, "%s %s\n", word, text);
		fflush(p->tell);
	}
}

/* ---- being the device process ---- */

/* The directory and as much of the state as is known. Failures are kept for later. */
static int claim(struct process *p, int id)
{
	struct stat st;
	char device[32];
	int ret;

	snprintf(device, sizeof(device), "/dev/ublkb%d", id);
	p->state.id = id;
	p->state.pid = getpid();
	p->state.node = run_node(id);
	p->state.device = strdup(device);
	p->state.image = strdup(p->opt.image);
	p->state.engine = strdup("");
	if (!p->state.device || !p->state.image || !p->state.engine)
		return qcow2_fail(&p->err, -ENOMEM, "%s: %s", p->opt.image, strerror(ENOMEM));
	if (stat(p->opt.image, &st) == 0) {
		p->state.image_dev = st.st_dev;
		p->state.image_ino = st.st_ino;
	}
	ret = rundir_create(&p->dir, id, &p->err);
	return ret ? ret : rundir_write(p->dir, &p->state, &p->err);
}

static void on_added(void *ctx, int id)
{
	struct process *p = ctx;
	char number[16];

	snprintf(number, sizeof(number), "%d", id);
	tell(p, "id", number);
	claim(p, id);
}

/* The device serves: say so in the directory. */
static int publish(struct process *p)
{
	struct run_state *st = &p->state;
	char *device = strdup(server_device(p->server)), *engine = strdup(server_engine(p->server));
	int ret = device && engine ? 0 : -ENOMEM;

	if (!ret && !st->device)
		ret = claim(p, server_id(p->server));
	if (ret || !p->dir) {
		free(device);
		free(engine);
		return qcow2_fail(&p->err, ret ? ret : -EIO, "%s: cannot be published", p->opt.image);
	}
	free(st->device);
	free(st->engine);
	st->device = device;
	st->engine = engine;
	st->size = server_size(p->server);
	st->read_only = server_read_only(p->server);
	st->zero_copy = server_zero_copy(p->server);
	st->queues = server_queues(p->server);
	st->depth = server_depth(p->server);
	return rundir_write(p->dir, st, &p->err);
}

static int start(struct process *p)
{
	int ret;

	control_block_signals();
	p->opt.added = on_added;
	p->opt.added_ctx = p;
	ret = server_create(&p->server, &p->opt, &p->err);
	if (!ret) {
		ret = publish(p);
		if (!ret)
			ret = control_new(&p->control, p->server, p->dir, &p->state, &p->err);
		if (ret)
			server_stop(p->server, NULL);
	}
	if (ret)
		rundir_remove(p->dir);
	return ret;
}

/* ---- the background ---- */

/* Nothing of the caller's stays open but standard error, which follows when all is well. */
static int leave_caller(int fd)
{
	int null = open("/dev/null", O_RDWR);

	if (setsid() < 0 || null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0)
		return -errno;
	if (fd != PIPE_FD && dup2(fd, PIPE_FD) < 0)
		return -errno;
	if (fcntl(PIPE_FD, F_SETFD, FD_CLOEXEC) < 0 || close_range(PIPE_FD + 1, ~0u, 0) < 0 || chdir("/") < 0)
		return -errno;
	return 0;
}

static bool announce(struct process *p)
{
	bool heard;

	log_to_syslog();
	dup2(0, 2);
	tell(p, "ready", p->state.device);
	heard = !ferror(p->tell);
	fclose(p->tell);
	p->tell = NULL;
	return heard;
}

static void __attribute__((noreturn)) child(const struct server_options *opt, int fd)
{
	struct process p = { .opt = *opt };
	int ret = leave_caller(fd);

	p.tell = ret ? NULL : fdopen(PIPE_FD, "w");
	if (!p.tell) {
		fprintf(stderr, "ublk-qcow2: device process: %s\n", strerror(ret ? -ret : errno));
		_exit(EXIT_FAILURE);
	}
	ret = start(&p);
	if (ret) {
		tell(&p, "error", p.err.text[0] ? p.err.text : strerror(-ret));
		_exit(EXIT_FAILURE);
	}
	if (!announce(&p)) /* nobody would ever know of the device */
		kill(getpid(), SIGTERM);
	ret = control_run(p.control);
	run_state_clear(&p.state);
	exit(ret ? EXIT_FAILURE : EXIT_SUCCESS);
}

/* ---- the parent ---- */

struct report_lines {
	int id;
	char ready[64];
	struct qcow2_error error;
};

static void read_lines(int fd, struct report_lines *r)
{
	FILE *f = fdopen(fd, "r");
	char line[sizeof(r->error.text) + 16];

	r->id = -1;
	if (!f) {
		close(fd);
		return;
	}
	while (!r->ready[0] && fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = '\0';
		if (strncmp(line, "id ", 3) == 0)
			r->id = atoi(line + 3);
		else if (strncmp(line, "ready ", 6) == 0)
			sscanf(line, "ready %63s", r->ready);
		else if (strncmp(line, "error ", 6) == 0)
			qcow2_fail(&r->error, -EIO, "%s", line + 6);
	}
	fclose(f);
}

/* The child died on its way: delete what it had made. */
static int clean_up(const struct server_options *opt, int id, int status, struct qcow2_error *err)
{
	struct qcow2_error why = { "" };
	struct rundir *dir = NULL;
	char how[64], left[600] = "";
	int ret;

	if (WIFSIGNALED(status))
		snprintf(how, sizeof(how), "was killed: %s", strsignal(WTERMSIG(status)));
	else
		snprintf(how, sizeof(how), "ended with status %d", WEXITSTATUS(status));
	if (id >= 0) {
		rundir_take(&dir, id, NULL);
		ret = ublk_delete(id, &why);
		if (ret && ret != -ENODEV)
			snprintf(left, sizeof(left), "; its device is left behind: %s", why.text);
		else
			snprintf(left, sizeof(left), "; /dev/ublkb%d is removed again", id);
		rundir_remove(dir);
	}
	return qcow2_fail(err, -ECHILD, "%s: the device process %s%s", opt->image, how, left);
}

int device_process_start(const struct server_options *opt, char *device, size_t size, struct qcow2_error *err)
{
	struct report_lines r = { 0 };
	int fd[2], status = 0;
	pid_t pid;

	if (pipe2(fd, O_CLOEXEC) < 0)
		return qcow2_fail(err, -errno, "pipe: %s", strerror(errno));
	pid = fork();
	if (pid < 0) {
		close(fd[0]);
		close(fd[1]);
		return qcow2_fail(err, -errno, "fork: %s", strerror(errno));
	}
	if (pid == 0)
		child(opt, fd[1]);
	close(fd[1]);
	read_lines(fd[0], &r);
	if (r.ready[0]) {
		snprintf(device, size, "%s", r.ready);
		return 0;
	}
	waitpid(pid, &status, 0);
	if (r.error.text[0])
		return qcow2_fail(err, -EIO, "%s", r.error.text);
	return clean_up(opt, r.id, status, err);
}

/* ---- the foreground ---- */

int device_process_foreground(const struct server_options *opt, struct qcow2_error *err)
{
	struct process p = { .opt = *opt };
	int ret = start(&p);

	if (ret) {
		*err = p.err;
		return ret;
	}
	if (chdir("/") < 0)
		log_line(LOG_WARNING, "/: %s", strerror(errno));
	printf("%s\n", p.state.device);
	fflush(stdout);
	ret = control_run(p.control);
	if (ret)
		qcow2_fail(err, ret, "%s: ended: %s", p.state.device, strerror(-ret));
	run_state_clear(&p.state);
	return ret;
}

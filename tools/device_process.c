// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * device_process.c - from the command to a supervisor of its own, and what that tells its parent.
 *
 * The child writes lines to a pipe: "id N" as soon as the kernel has given it a device, then "ready DEVICE"
 * or "error TEXT". The end of file without either means that it died; the parent then deletes what "id"
 * named. There is one fork here, before any thread exists. After "ready" the two have nothing to do with each
 * other.
 *
 * The run directory exists from "id" on: should the parent die, too, `detach` finds what is left.
 */
#include "device_process.h"
#include "daemon/ctrl.h"
#include "daemon/log.h"
#include "daemon/supervisor.h"
#include "output.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define PIPE_FD 3

/* ---- being the supervisor in the background ---- */

static void tell(FILE *to, const char *word, const char *text)
{
	fprintf(to, "%s %s\n", word, text);
	fflush(to);
}

static void on_added(void *ctx, int id)
{
	char number[16];

	snprintf(number, sizeof(number), "%d", id);
	tell(ctx, "id", number);
}

/* From here on there is nobody left to talk to. */
static bool on_ready(void *ctx, const char *device)
{
	FILE *to = ctx;
	bool heard;

	log_to_syslog();
	dup2(0, 2);
	tell(to, "ready", device);
	heard = !ferror(to);
	fclose(to);
	return heard;
}

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

static void __attribute__((noreturn)) child(struct supervisor_options *so, int fd)
{
	struct qcow2_error err = { "" };
	int ret = leave_caller(fd);
	FILE *to = ret ? NULL : fdopen(PIPE_FD, "w");

	if (!to) {
		fprintf(stderr, "ublk-qcow2: device process: %s\n", strerror(ret ? -ret : errno));
		_exit(EXIT_FAILURE);
	}
	so->added = on_added;
	so->ready = on_ready;
	so->ctx = to;
	ret = supervisor_run(so, &err);
	if (ret && err.text[0])
		tell(to, "error", err.text);
	_exit(ret ? EXIT_FAILURE : EXIT_SUCCESS);
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
static int clean_up(const struct supervisor_options *so, int id, int status, struct qcow2_error *err)
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
	return qcow2_fail(err, -ECHILD, "%s: the device process %s%s",
			  so->recover ? so->recover->device : so->opt->image, how, left);
}

static int start(struct supervisor_options *so, char *device, size_t size, struct qcow2_error *err)
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
		child(so, fd[1]);
	close(fd[1]);
	read_lines(fd[0], &r);
	if (r.ready[0]) {
		snprintf(device, size, "%s", r.ready);
		return 0;
	}
	waitpid(pid, &status, 0);
	if (r.error.text[0])
		return qcow2_fail(err, -EIO, "%s", r.error.text);
	if (so->recover && WIFEXITED(status) && !WEXITSTATUS(status))
		return -ESHUTDOWN;
	return clean_up(so, so->recover ? -1 : r.id, status, err);
}

int device_process_start(const struct server_options *opt, char *device, size_t size, struct qcow2_error *err)
{
	struct supervisor_options so = { .opt = opt };

	return start(&so, device, size, err);
}

int device_process_recover(const struct run_state *st, struct qcow2_error *err)
{
	struct supervisor_options so = { .recover = st };
	char device[64];

	return start(&so, device, sizeof(device), err);
}

/* ---- the foreground ---- */

static bool print_device(void *ctx, const char *device)
{
	printf("%s\n", device);
	fflush(stdout);
	return true;
}

int device_process_foreground(const struct server_options *opt, struct qcow2_error *err)
{
	struct supervisor_options so = { .opt = opt, .foreground = true, .ready = print_device };
	int ret;

	if (chdir("/") < 0)
		log_line(LOG_WARNING, "/: %s", strerror(errno));
	ret = supervisor_run(&so, err);
	if (ret && !err->text[0])
		qcow2_fail(err, ret, "%s: ended: %s", opt->image, strerror(-ret));
	return ret;
}

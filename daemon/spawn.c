// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * spawn.c - fork and exec of a worker, and the packets it begins with.
 *
 * Invariant: the write end of the pipe exists in the worker and its rings only. It is made here, travels in
 * the first packet, and is closed here; every descriptor of the supervisor is close-on-exec, so that no other
 * child (there is none) could have it.
 */
#include "spawn.h"
#include "link.h"
#include "message.h"
#include "settings.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int program_find(struct program *p)
{
	ssize_t n = readlink("/proc/self/exe", p->path, sizeof(p->path) - 1);
	int fd = open("/proc/self/exe", O_PATH | O_CLOEXEC);

	p->path[n < 0 ? 0 : n] = '\0';
	if (fd < 0)
		return -errno;
	p->self = fcntl(fd, F_DUPFD_CLOEXEC, LINK_FD + 1); /* not where the worker's socket will be */
	close(fd);
	return p->self < 0 ? -errno : 0;
}

static void __attribute__((noreturn)) become_worker(const struct program *p, bool self, int sock,
						    const char *image)
{
	char *const argv[] = { (char *)"ublk-qcow2", (char *)"worker", (char *)image, NULL };

	if (sock == LINK_FD ? fcntl(sock, F_SETFD, 0) < 0 : dup2(sock, LINK_FD) < 0)
		_exit(127);
	if (!self && p->path[0])
		execv(p->path, argv);
	syscall(SYS_execveat, p->self, "", argv, environ, AT_EMPTY_PATH);
	_exit(127);
}

static int send_files(int sock, const struct store *files)
{
	int ret = 0;

	for (unsigned i = 0; !ret && i < files->count; i++) {
		const struct stored *f = &files->file[i];
		sd_json_variant *v = NULL;

		ret = sd_json_buildo(&v, SD_JSON_BUILD_PAIR_STRING("type", "file"),
				     SD_JSON_BUILD_PAIR_STRING("role", f->role));
		if (ret >= 0)
			ret = json_put_name(&v, "path", f->path);
		ret = message_send(sock, ret, v, &f->fd, 1);
	}
	return ret;
}

static int send_start(int sock, int pipe_end, const struct start_info *info)
{
	const struct run_state *st = info->state;
	int fds[3] = { pipe_end }, ret;
	sd_json_variant *v = NULL, *options = NULL;
	unsigned count = 1;

	if (info->journal >= 0)
		fds[count++] = info->journal;
	if (info->lock >= 0)
		fds[count++] = info->lock;
	ret = sd_json_buildo(&v, SD_JSON_BUILD_PAIR_STRING("type", "start"),
			     SD_JSON_BUILD_PAIR_INTEGER("id", st->id),
			     SD_JSON_BUILD_PAIR_UNSIGNED("restarts", st->restarts),
			     SD_JSON_BUILD_PAIR_UNSIGNED("image_dev", st->image_dev),
			     SD_JSON_BUILD_PAIR_UNSIGNED("image_ino", st->image_ino),
			     SD_JSON_BUILD_PAIR_UNSIGNED("node", st->node),
			     SD_JSON_BUILD_PAIR_BOOLEAN("recover", info->recover),
			     SD_JSON_BUILD_PAIR_BOOLEAN("replay", info->replay),
			     SD_JSON_BUILD_PAIR_BOOLEAN("foreground", info->foreground),
			     SD_JSON_BUILD_PAIR_BOOLEAN("journal", info->journal >= 0),
			     SD_JSON_BUILD_PAIR_BOOLEAN("lock", info->lock >= 0),
			     SD_JSON_BUILD_PAIR_UNSIGNED("files", info->files->count));
	if (ret >= 0)
		ret = json_put_name(&v, "image", st->image);
	if (ret >= 0)
		ret = settings_to_json(&st->opt, &options);
	if (ret >= 0)
		ret = sd_json_variant_set_field(&v, "options", options);
	sd_json_variant_unref(options);
	ret = message_send(sock, ret, v, fds, count);
	return ret ? ret : send_files(sock, info->files);
}

/* @sock: ours and the worker's. */
static int fork_worker(struct process *w, const struct program *p, bool self, const int sock[2],
		       const char *image)
{
	w->pid = fork();
	if (w->pid < 0)
		return -errno;
	if (!w->pid)
		become_worker(p, self, sock[1], image);
	w->pidfd = pidfd_open(w->pid, 0);
	return w->pidfd < 0 ? -errno : 0;
}

int process_start(struct process *w, const struct program *p, bool self, const struct start_info *info)
{
	int pipe_fd[2], sock[2], ret;

	*w = (struct process){ .pidfd = -1, .sock = -1, .pipe = -1 };
	if (pipe2(pipe_fd, O_CLOEXEC) < 0)
		return -errno;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock) < 0) {
		ret = -errno;
		goto close_pipe;
	}
	ret = fork_worker(w, p, self, sock, info->state->image);
	close(sock[1]);
	if (ret)
		goto close_sock;
	ret = send_start(sock[0], pipe_fd[1], info);
	close(pipe_fd[1]);
	w->sock = sock[0];
	w->pipe = pipe_fd[0];
	if (ret)
		kill(w->pid,
		     SIGKILL); /* dead already (-EPIPE), or of no use: its end is noticed as any other */
	return 0;

close_sock:
	if (w->pid > 0) {
		kill(w->pid, SIGKILL);
		waitpid(w->pid, NULL, 0);
	}
	w->pid = 0;
	close(sock[0]);
close_pipe:
	close(pipe_fd[0]);
	if (w->sock < 0)
		close(pipe_fd[1]);
	return ret;
}

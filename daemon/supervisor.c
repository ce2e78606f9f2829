// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * supervisor.c - a state machine around one worker at a time.
 *
 * Owns what must outlive a worker: the descriptors of the image's chain (with the locks), the journal's file,
 * the run directory with its lock, and the knowledge of how the device was attached. It looks into none of
 * them: an image cannot bring it down. One thread, one poll().
 *
 *   STARTING -> SERVING -> (told to stop) STOPPED -> end
 *                  |
 *                  +-> (worker dead) DRAINING -> (its last I/O has ended) WAITING -> RECOVERING -> SERVING
 *                                                                            |  ^       |
 *                                                            five failures   |  +-------+ (dead before it
 * served)
 *                                                                            v
 *                                                                          FAILED -> (recover, detach)
 * WAITING
 *
 * Invariants:
 * - No worker starts while I/O of an earlier one can still land: every ring of a worker holds the write end
 * of a pipe, and DRAINING ends when that pipe hangs up. (The kernel frees a dead process's rings later than
 * the process, from a work queue.)
 * - A worker that ended without `stopped` died, whatever its exit status.
 * - The journal is removed only after a worker said that the image is closed; else it stays, or moves aside.
 *
 * When the supervisor dies, the worker goes on without one. When both die, the run directory has all that
 * `recover` needs; the journal's lock is held by the dead worker's rings until their last I/O has ended.
 */
#include "supervisor.h"
#include "ctrl.h"
#include "log.h"
#include "memory.h"
#include "message.h"
#include "orders.h"
#include "spawn.h"
#include "stamp.h"
#include "swap.h"
#include "thread.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_FAILURES 5u
#define MAX_PAUSE_MS 30000u
#define STABLE_MS 10000u /* a worker that crashed after that long was not a failure to start */
#define LEAVE_MS 10000u
#define RECOVER_MS 120000u /* for a worker that shall serve again; it takes less than a second */
#define FORCE_MS 60000u /* what `detach --force` leaves for an end in order */
#define DELETE_MS 20000u

enum phase { STARTING, SERVING, LEAVING, DRAINING, WAITING, RECOVERING, FAILED, STOPPED, ENDED };

struct supervisor {
	const struct supervisor_options *so;
	struct program program;
	struct store files;
	struct rundir *dir;
	struct run_state state;
	struct orders orders;
	struct process worker;
	struct swap_watch swap;
	int journal, signals;
	char kept[300]; /* the journal's name while it is that of a device that is gone; "" */
	enum phase phase;
	bool told; /* ready() was called: from now on a worker's death is not the end */
	bool stopping; /* as soon as it serves */
	bool force; /* the device has to go, whatever becomes of the image */
	bool killed; /* by us: this worker took too long */
	unsigned failures; /* in a row */
	uint64_t since; /* ms; when it began to serve */
	uint64_t deadline; /* ms; WAITING: start the next; LEAVING, RECOVERING: kill it; else 0 */
	uint64_t force_by; /* ms; then it is not waited for any longer; 0: not set */
	struct qcow2_error why; /* of the last worker */
	struct qcow2_error first_why; /* of the first of those failures */
	int result;
};

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* ---- the state file ---- */

static void publish(struct supervisor *s, enum run_phase phase)
{
	struct qcow2_error err = { "" };

	s->state.phase = phase;
	s->state.pid = s->worker.pid;
	if (s->dir && rundir_write(s->dir, &s->state, &err))
		log_line(LOG_WARNING, "%s", err.text);
}

/* ---- starting a worker ---- */

static void start_worker(struct supervisor *s)
{
	struct start_info info = {
		.state = &s->state,
		.files = &s->files,
		.journal = s->journal,
		.lock = s->dir ? rundir_lock_fd(s->dir) : -1,
		.recover = s->told || s->so->recover,
		.replay = s->kept[0],
		.foreground = s->so->foreground,
	};
	int ret;

	s->why.text[0] = '\0';
	s->deadline = info.recover ? now_ms() + RECOVER_MS : 0;
	s->killed = false;
	s->phase = info.recover ? RECOVERING : STARTING;
	s->state.restarts += info.recover;
	/* an installed program that does not work must not be the end of the device */
	ret = process_start(&s->worker, &s->program, s->failures > 0, &info);
	if (!ret)
		return;
	qcow2_fail(&s->why, ret, "%s: a process cannot be started: %s", s->state.image, strerror(-ret));
	s->deadline = 0;
	s->failures++;
	s->result = -EIO;
	s->phase = s->told ? DRAINING /* nothing to wait for */ : ENDED;
}

/* ---- what a worker says ---- */

static int claim(struct supervisor *s, int id, struct qcow2_error *err)
{
	char device[32];
	int ret;

	snprintf(device, sizeof(device), "/dev/ublkb%d", id);
	free(s->state.device);
	s->state.device = strdup(device);
	if (!s->state.device)
		return qcow2_fail(err, -ENOMEM, "%s: %s", device, strerror(ENOMEM));
	s->state.id = id;
	s->state.node = run_node(id);
	if (s->so->added)
		s->so->added(s->so->ctx, id);
	ret = rundir_create(&s->dir, id, err);
	if (!ret && s->journal >= 0)
		ret = rundir_name_journal(s->dir, s->journal, err);
	if (!ret)
		ret = orders_listen(&s->orders, id, err);
	s->state.pid = s->worker.pid;
	return ret ? ret : rundir_write(s->dir, &s->state, err);
}

static void on_added(struct supervisor *s, const struct message *m)
{
	struct qcow2_error err = { "" };
	sd_json_variant *v = NULL;
	int lock, ret = claim(s, (int)message_number(m, "id"), &err);

	if (ret) {
		message_text(s->worker.sock, "error", err.text);
		return;
	}
	lock = rundir_lock_fd(s->dir);
	ret = sd_json_buildo(&v, SD_JSON_BUILD_PAIR_STRING("type", "claimed"));
	message_send(s->worker.sock, ret, v, &lock, 1); /* if that fails, the worker is dead */
}

static void on_file(struct supervisor *s, struct message *m)
{
	const char *role = message_string(m, "role");
	char *path = json_get_name(m->body, "path");
	int fd = message_take_fd(m, 0);
	struct stat st;

	if (path && fd >= 0 && strncmp(role, "image", 5) == 0 && fstat(fd, &st) == 0) {
		s->state.image_dev = st.st_dev;
		s->state.image_ino = st.st_ino;
	}
	if (path && fd >= 0)
		store_add(&s->files, path, role, fd);
	free(path);
}

static void stop_worker(struct supervisor *s)
{
	s->stopping = true;
	if (s->phase == SERVING)
		message_word(s->worker.sock, "stop");
}

/* The device has its journal in the directory now, and the image has what that knew. */
static void forget_kept(struct supervisor *s)
{
	if (!s->kept[0])
		return;
	unlink(s->kept);
	log_line(LOG_NOTICE, "%s: the changes in %s were applied", s->state.image, s->kept);
	s->kept[0] = '\0';
}

static void on_ready(struct supervisor *s, const struct message *m)
{
	struct run_state *st = &s->state;
	char *engine = strdup(message_string(m, "engine"));
	char *device = strdup(message_string(m, "device"));

	if (device) {
		free(st->device);
		st->device = device;
	}
	if (engine) {
		free(st->engine);
		st->engine = engine;
	}
	st->size = message_number(m, "size");
	st->read_only = message_bool(m, "read_only");
	st->zero_copy = message_bool(m, "zero_copy");
	st->direct_io = message_bool(m, "direct_io");
	st->queues = (unsigned)message_number(m, "queues");
	st->depth = (unsigned)message_number(m, "depth");
	s->phase = SERVING;
	s->deadline = 0;
	s->since = now_ms();
	swap_watch_look(&s->swap, st->device);
	publish(s, RUN_LIVE);
	forget_kept(s);
	if (s->told)
		log_line(LOG_NOTICE, "%s: serves again (pid %d)", st->device, (int)s->worker.pid);
	else if (s->so->ready && !s->so->ready(s->so->ctx, st->device))
		s->stopping = true;
	s->told = true;
	orders_answer(&s->orders, WISH_BIT(WISH_RECOVER), true, "");
	orders_answer(&s->orders, WISH_BIT(WISH_RESTART), !s->failures, s->failures ? s->first_why.text : "");
	if (s->stopping)
		stop_worker(s);
}

static void on_read_only(struct supervisor *s)
{
	s->state.read_only = true;
	publish(s, RUN_LIVE);
}

/* The device is gone: nothing of it is needed any more but a journal with records, which @remark is about. */
static void let_go(struct supervisor *s, struct qcow2_error *remark)
{
	store_clear(&s->files);
	rundir_retire(s->dir, remark);
	s->dir = NULL;
	s->phase = STOPPED;
}

static void on_stopped(struct supervisor *s, const struct message *m)
{
	struct qcow2_error remark = { "" }, answer = { "" };
	char *text = json_get_name(m->body, "text");
	bool ok = text && !text[0];

	let_go(s, &remark);
	qcow2_fail(&answer, 0, "%s%s%s", text ? text : "?", remark.text[0] ? "; " : "", remark.text);
	s->result = ok ? 0 : -EIO;
	orders_answer(&s->orders, WISH_BIT(WISH_DETACH) | WISH_BIT(WISH_FORCE), ok, answer.text);
	orders_answer(&s->orders, ~0u, false, "it was detached");
	message_text(s->worker.sock, "removed", remark.text);
	free(text);
}

static void on_error(struct supervisor *s, const struct message *m)
{
	char *text = json_get_name(m->body, "text");

	s->why.text[0] = '\0';
	qcow2_fail(&s->why, -EIO, "%s", text && text[0] ? text : "?");
	free(text);
}

static void on_message(struct supervisor *s, struct message *m)
{
	const char *type = message_type(m);

	if (strcmp(type, "file") == 0)
		on_file(s, m);
	else if (strcmp(type, "added") == 0)
		on_added(s, m);
	else if (strcmp(type, "ready") == 0)
		on_ready(s, m);
	else if (strcmp(type, "read-only") == 0)
		on_read_only(s);
	else if (strcmp(type, "error") == 0)
		on_error(s, m);
	else if (strcmp(type, "stopped") == 0)
		on_stopped(s, m);
}

/* Everything that has come. False: the other end is closed. */
static bool hear_worker(struct supervisor *s)
{
	struct message m;
	int ret;

	while ((ret = message_receive(s->worker.sock, &m, MSG_DONTWAIT)) == 0) {
		on_message(s, &m);
		message_clear(&m);
	}
	return ret == -EAGAIN || ret == -EBADMSG;
}

/* ---- the end of a worker ---- */

/* What a device that never served leaves: nothing. */
static void remove_new(struct supervisor *s, char *left, size_t size)
{
	struct qcow2_error why = { "" };
	int ret;

	if (s->state.id < 0 || s->so->recover)
		return;
	ret = ublk_delete(s->state.id, &why);
	if (ret && ret != -ENODEV)
		snprintf(left, size, "; its device is left behind: %s", why.text);
	else
		snprintf(left, size, "; /dev/ublkb%d is removed again", s->state.id);
}

/* Whoever cannot attach the image for its kept journal has to know where that is. */
static void mention_kept(struct supervisor *s)
{
	struct qcow2_error why = s->why;

	if (!s->kept[0])
		return;
	s->why.text[0] = '\0';
	qcow2_fail(&s->why, -EIO,
		   "%s (changes that it lacks are kept in %s; without that file they are lost)", why.text,
		   s->kept);
}

/* The worker ended before the device was ready for the first time. */
static void never_ready(struct supervisor *s, const char *how)
{
	char left[600] = "";

	if (!s->why.text[0]) {
		remove_new(s, left, sizeof(left));
		qcow2_fail(&s->why, -ECHILD, "%s: the device process %s%s", s->state.image, how, left);
	}
	mention_kept(s);
	if (s->so->recover)
		rundir_release(s->dir);
	else
		rundir_remove(s->dir);
	s->dir = NULL;
	s->result = -EIO;
	s->phase = ENDED;
}

/* Whether a death was the device's or the image's doing, so that the next worker would likely die, too. */
static bool counts(const struct supervisor *s, int status)
{
	if (s->phase == RECOVERING)
		return true;
	return s->phase == SERVING && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) &&
	       now_ms() - s->since < STABLE_MS;
}

static void describe(int status, char *how, size_t size)
{
	if (WIFSIGNALED(status))
		snprintf(how, size, "was killed: %s", strsignal(WTERMSIG(status)));
	else
		snprintf(how, size, "ended with status %d", WEXITSTATUS(status));
}

static void worker_ended(struct supervisor *s)
{
	pid_t pid = s->worker.pid;
	int status = 0;
	char how[64];

	hear_worker(s);
	waitpid(pid, &status, 0);
	close(s->worker.pidfd);
	close(s->worker.sock);
	s->worker.pidfd = s->worker.sock = -1;
	s->worker.pid = 0;
	s->deadline = 0;
	describe(status, how, sizeof(how));
	if (s->phase == STOPPED) {
		s->phase = ENDED;
		return;
	}
	if (!s->told) {
		never_ready(s, how);
		return;
	}
	s->failures = counts(s, status) ? s->failures + 1 : 0;
	if (s->phase != LEAVING)
		log_line(LOG_WARNING, "%s: its process (pid %d) %s%s%s", s->state.device, (int)pid, how,
			 s->why.text[0] ? ": " : "", s->why.text);
	if (!s->why.text[0])
		qcow2_fail(&s->why, -ECHILD, "%s: the device process %s", s->state.device, how);
	if (s->failures == 1)
		s->first_why = s->why;
	s->phase = DRAINING;
	publish(s, RUN_RECOVERING);
}

/* ---- when it does not come back ---- */

static void fail(struct supervisor *s)
{
	s->phase = FAILED;
	s->stopping = s->force = false;
	s->deadline = 0;
	publish(s, RUN_FAILED);
	log_line(LOG_ERR, "%s: cannot be recovered: %s", s->state.device, s->why.text);
	orders_answer(&s->orders, ~0u, false, s->why.text);
}

/* Delete a device whose image cannot be brought up to date. A dead worker's I/O may still be on its way:
 * image and journal stay locked by its rings until it has landed. */
static void give_up(struct supervisor *s)
{
	struct qcow2_error err = { "" }, remark = { "" }, answer = { "" };
	int ret;

	if (s->worker.pid)
		kill(s->worker.pid, SIGKILL);
	ret = ublk_delete_within(s->state.id, DELETE_MS, &err);
	if (ret && ret != -ENODEV && ret != -ETIMEDOUT) {
		s->why = err;
		fail(s);
		return;
	}
	if (ret == -ETIMEDOUT)
		log_line(LOG_WARNING, "%s", err.text);
	let_go(s, &remark);
	s->phase = ENDED;
	if (remark.text[0])
		qcow2_fail(&answer, 0, "%s (%s)", remark.text, s->why.text);
	orders_answer(&s->orders, ~0u, true, answer.text);
}

/* Somebody waits for the device to be stopped, but it did not come back. */
static void conclude(struct supervisor *s)
{
	unsigned open = orders_open(&s->orders);

	if (s->force || (open & WISH_BIT(WISH_DETACH) && !rundir_has_records(s->dir))) {
		give_up(s);
		return;
	}
	fail(s);
	if (!open) { /* it was a signal: leave everything to `recover` */
		rundir_release(s->dir);
		s->dir = NULL;
		s->result = -EIO;
		s->phase = ENDED;
	}
}

/* The last I/O of the dead worker has ended. */
static void drained(struct supervisor *s)
{
	uint64_t pause = s->failures < 2 ? 0 : 1000ull << (s->failures - 2);

	if (s->worker.pipe >= 0)
		close(s->worker.pipe);
	s->worker.pipe = -1;
	if (s->stopping && (s->failures || s->killed)) {
		conclude(s);
	} else if (s->failures >= MAX_FAILURES) {
		fail(s);
	} else {
		s->phase = WAITING;
		s->deadline = now_ms() + (pause < MAX_PAUSE_MS ? pause : MAX_PAUSE_MS);
	}
}

/* ---- orders and signals ---- */

static void restart(struct supervisor *s)
{
	if (s->phase != SERVING || s->stopping)
		return; /* a new worker is on its way */
	s->phase = LEAVING;
	s->deadline = now_ms() + LEAVE_MS;
	message_word(s->worker.sock, "leave");
}

static void on_orders(struct supervisor *s, unsigned wishes)
{
	if (wishes & (WISH_BIT(WISH_DETACH) | WISH_BIT(WISH_FORCE)))
		stop_worker(s);
	if (wishes & WISH_BIT(WISH_FORCE) && !s->force) {
		s->force = true;
		s->force_by = now_ms() + FORCE_MS;
	}
	if (wishes & WISH_BIT(WISH_RECOVER) && s->phase == SERVING)
		orders_answer(&s->orders, WISH_BIT(WISH_RECOVER), true, "");
	if (wishes & WISH_BIT(WISH_RESTART))
		restart(s);
	if (!wishes || (s->phase != FAILED && s->phase != WAITING))
		return;
	if (s->phase == FAILED) { /* one attempt */
		s->failures = MAX_FAILURES - 1;
		publish(s, RUN_RECOVERING);
	}
	s->phase = WAITING;
	s->deadline = now_ms();
}

static void on_signal(struct supervisor *s)
{
	struct signalfd_siginfo si;

	if (read(s->signals, &si, sizeof(si)) != sizeof(si))
		return;
	if (si.ssi_signo == SIGUSR1) {
		if (s->worker.pid)
			kill(s->worker.pid, SIGUSR1);
		return;
	}
	stop_worker(s);
	if (s->phase == FAILED)
		conclude(s);
	else if (s->phase == WAITING)
		s->deadline = now_ms();
}

/* A worker hangs in its recovery. If not even killing it helps, `recover` at least has its answer. */
static void too_slow(struct supervisor *s)
{
	if (s->killed) {
		qcow2_fail(&s->why, -ETIMEDOUT, "%s: the device process (pid %d) hangs", s->state.device,
			   (int)s->worker.pid);
		never_ready(s, "hangs");
		return;
	}
	log_line(LOG_WARNING, "%s: its process (pid %d) does not serve in time", s->state.device,
		 (int)s->worker.pid);
	s->killed = true;
	kill(s->worker.pid, SIGKILL);
	if (!s->told)
		s->deadline = now_ms() + LEAVE_MS;
}

static void on_deadline(struct supervisor *s)
{
	s->deadline = 0;
	if (s->phase == WAITING)
		start_worker(s);
	else if (s->phase == LEAVING)
		kill(s->worker.pid, SIGKILL); /* as good: what it has not finished is in the journal */
	else if (s->phase == RECOVERING)
		too_slow(s);
}

static void on_force(struct supervisor *s)
{
	s->force_by = 0;
	if (s->phase == STOPPED || s->phase == ENDED)
		return;
	if (s->worker.pid && !s->killed) {
		log_line(LOG_WARNING, "%s: its process (pid %d) takes too long to end", s->state.device,
			 (int)s->worker.pid);
		s->killed = true;
		kill(s->worker.pid, SIGKILL);
		s->force_by = now_ms() + LEAVE_MS;
		return;
	}
	qcow2_fail(&s->why, -ETIMEDOUT, "%s: its process, or I/O of it, does not end", s->state.device);
	give_up(s);
}

/* ---- the loop ---- */

enum { POLL_SIGNALS, POLL_SOCK, POLL_PID, POLL_PIPE, POLL_SWAP, POLL_ORDERS, POLLS = POLL_ORDERS + ORDERS_POLLS };

/* Milliseconds to the next thing to do; -1: none. */
static int time_left(const struct supervisor *s)
{
	uint64_t now = now_ms(), next = s->deadline;

	if (!next || (s->force_by && s->force_by < next))
		next = s->force_by;
	return !next ? -1 : next > now ? (int)(next - now) : 0;
}

static void turn(struct supervisor *s)
{
	struct pollfd p[POLLS];

	p[POLL_SIGNALS] = (struct pollfd){ .fd = s->signals, .events = POLLIN };
	p[POLL_SOCK] = (struct pollfd){ .fd = s->worker.sock, .events = POLLIN };
	p[POLL_PID] = (struct pollfd){ .fd = s->worker.pidfd, .events = POLLIN };
	p[POLL_PIPE] = (struct pollfd){ .fd = s->phase == DRAINING ? s->worker.pipe : -1 };
	p[POLL_SWAP] = (struct pollfd){ .fd = s->swap.fd, .events = POLLPRI };
	orders_poll(&s->orders, p + POLL_ORDERS);
	if (poll(p, POLLS, time_left(s)) < 0)
		return; /* EINTR; ENOMEM: again */
	if (p[POLL_SOCK].revents && !hear_worker(s)) {
		close(s->worker.sock); /* its pidfd is next */
		s->worker.sock = -1;
	}
	if (p[POLL_PID].revents)
		worker_ended(s);
	else if (s->phase == DRAINING && (s->worker.pipe < 0 || p[POLL_PIPE].revents & (POLLHUP | POLLERR)))
		drained(s);
	if (p[POLL_SIGNALS].revents)
		on_signal(s);
	if (p[POLL_SWAP].revents)
		swap_watch_look(&s->swap, s->state.device);
	on_orders(s, orders_take(&s->orders, p + POLL_ORDERS));
	if (s->deadline && now_ms() >= s->deadline)
		on_deadline(s);
	if (s->force_by && now_ms() >= s->force_by)
		on_force(s);
}

/* ---- beginning and end ---- */

static int catch_signals(struct supervisor *s)
{
	sigset_t set;

	thread_main_signals(&set);
	s->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return s->signals < 0 ? -errno : 0;
}

static int copy_state(struct supervisor *s)
{
	const struct run_state *from = s->so->recover;
	struct run_state *st = &s->state;

	if (from)
		*st = *from;
	else
		*st = (struct run_state){ .id = -1, .opt = *s->so->opt };
	st->opt.image = NULL;
	st->opt.custody = NULL;
	st->supervisor = getpid();
	st->device = strdup(from ? from->device : "");
	st->engine = strdup(from ? from->engine : "");
	st->image = strdup(from ? from->image : s->so->opt->image);
	return st->device && st->engine && st->image ? 0 : -ENOMEM;
}

/* The directory and the journal of a device whose processes died. */
static int take_over(struct supervisor *s, struct qcow2_error *err)
{
	int id = s->state.id, ret = rundir_take(&s->dir, id, err);

	if (ret == -ENOENT)
		qcow2_fail(err, ret, "%s: is not attached", s->state.device);
	if (ret)
		return ret;
	if (!s->state.opt.read_only) {
		s->journal = rundir_open_journal(s->dir, err);
		if (s->journal == -ENOENT)
			qcow2_fail(err, -ENOENT, "%s: cannot be recovered: its journal is missing",
				   s->state.device);
		if (s->journal < 0)
			return s->journal;
	}
	publish(s, RUN_RECOVERING);
	return orders_listen(&s->orders, id, err);
}

/* A journal that a device which is gone left for this image, or a new one. */
static int find_journal(struct supervisor *s, struct qcow2_error *err)
{
	const struct server_options *opt = &s->state.opt;
	const char *image = s->state.image;
	struct stat st;
	bool disk;
	int id;

	if (stat(image, &st) < 0)
		st = (struct stat){ 0 }; /* opening it says why */
	disk = S_ISBLK(st.st_mode); /* struct host_file: dev, ino */
	if (rundir_find_kept(disk ? st.st_rdev : st.st_dev, disk ? 0 : st.st_ino, s->kept, sizeof(s->kept), &id)) {
		if (id >= 0)
			return qcow2_fail(
				err, -EBUSY,
				"%s: the processes of /dev/ublkb%d died with changes that it lacks: "
				"`ublk-qcow2 recover /dev/ublkb%d` or detach that first",
				image, id, id);
		if (opt->read_only || opt->repair_leaks)
			return qcow2_fail(err, -EBUSY,
					  "%s: lacks changes that are kept in %s: attach it without %s first",
					  image, s->kept, opt->read_only ? "--read-only" : "--repair");
		s->journal = rundir_open_kept(s->kept, err);
		return s->journal < 0 ? s->journal : 0;
	}
	s->kept[0] = '\0';
	if (opt->read_only)
		return 0;
	s->journal = rundir_new_journal(qcow2_journal_size() + sizeof(struct stamps), err);
	return s->journal < 0 ? s->journal : 0;
}

static int prepare(struct supervisor *s, struct qcow2_error *err)
{
	int ret = copy_state(s);

	if (!ret)
		ret = program_find(&s->program);
	if (!ret)
		ret = catch_signals(s);
	if (ret)
		return qcow2_fail(err, ret, "supervisor: %s", strerror(-ret));
	ret = s->so->recover ? take_over(s, err) : find_journal(s, err);
	if (!ret)
		memory_protect(s->state.image); /* now: who may not attach gets one line */
	if (!ret) {
		swap_watch_open(&s->swap);
		swap_watch_look(&s->swap, s->state.device); /* to be recovered: its worker needs it from the start */
	}
	return ret;
}

int supervisor_run(const struct supervisor_options *so, struct qcow2_error *err)
{
	struct supervisor s = {
		.so = so,
		.program.self = -1,
		.worker = { .pidfd = -1, .sock = -1, .pipe = -1 },
		.swap.fd = -1,
		.journal = -1,
		.signals = -1,
	};
	int ret;

	orders_init(&s.orders);
	ret = prepare(&s, err);
	if (!ret) {
		start_worker(&s);
		while (s.phase != ENDED)
			turn(&s);
		ret = s.result;
		if (ret && !s.told)
			qcow2_fail(err, ret, "%s", s.why.text);
	}
	orders_close(&s.orders);
	swap_watch_close(&s.swap);
	rundir_release(s.dir);
	store_clear(&s.files);
	run_state_clear(&s.state);
	if (s.journal >= 0)
		close(s.journal);
	if (s.signals >= 0)
		close(s.signals);
	return ret;
}

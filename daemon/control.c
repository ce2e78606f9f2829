// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * control.c - an event loop that mostly sleeps.
 *
 * Runs on the process's main thread and touches the data path through server.h only. A Detach is answered
 * after everything is over: the loop ends, the server is stopped, the directory removed, and only then the
 * reply goes out on the connection that was kept. Whoever got it (or saw the process end) can rely on it.
 * A second Detach, or a signal while one is being carried out, changes nothing: there is one way out.
 *
 * Only root can connect. After a crash the supervisor starts the next worker; without one the directory
 * stays, with a free lock, see rundir.c.
 */
#include "control.h"
#include "log.h"
#include "swap.h"
#include "varlink.h"
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <systemd/sd-event.h>
#include <systemd/sd-json.h>
#include <systemd/sd-varlink.h>
#include <unistd.h>

struct control {
	struct server *server;
	struct rundir *dir;
	struct run_state *state;
	struct link *link; /* NULL: no supervisor, or it died */
	sd_event *event;
	sd_varlink_server *varlink;
	struct swap_watch swap;
	sd_varlink *detacher; /* waits for its answer */
	bool stop; /* leave the loop */
	bool leave; /* the next worker takes over */
	bool died; /* the data path ended by itself */
};

/* ---- the interface ---- */

static int on_info(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
		   void *userdata)
{
	const struct control *c = userdata;
	const struct run_state *st = c->state;

	return sd_varlink_replybo(link, SD_JSON_BUILD_PAIR_STRING("device", st->device),
				  SD_JSON_BUILD_PAIR_STRING("engine", st->engine),
				  SD_JSON_BUILD_PAIR_UNSIGNED("size", st->size),
				  SD_JSON_BUILD_PAIR_BOOLEAN("read_only", st->read_only),
				  SD_JSON_BUILD_PAIR_BOOLEAN("zero_copy", st->zero_copy),
				  SD_JSON_BUILD_PAIR_BOOLEAN("direct_io", st->direct_io),
				  SD_JSON_BUILD_PAIR_UNSIGNED("queues", st->queues),
				  SD_JSON_BUILD_PAIR_UNSIGNED("depth", st->depth),
				  SD_JSON_BUILD_PAIR_INTEGER("pid", getpid()));
}

static int on_stats(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
		    void *userdata)
{
	struct control *c = userdata;
	struct server_stats st = { 0 };

	server_get_stats(c->server, &st);
	return sd_varlink_replybo(link, SD_JSON_BUILD_PAIR_STRING("device", c->state->device),
				  SD_JSON_BUILD_PAIR_STRING("engine", c->state->engine),
				  SD_JSON_BUILD_PAIR_UNSIGNED("hits", st.hits),
				  SD_JSON_BUILD_PAIR_UNSIGNED("kernel_hits", st.kernel_hits),
				  SD_JSON_BUILD_PAIR_UNSIGNED("misses", st.misses),
				  SD_JSON_BUILD_PAIR_UNSIGNED("reads", st.reads),
				  SD_JSON_BUILD_PAIR_UNSIGNED("writes", st.writes),
				  SD_JSON_BUILD_PAIR_UNSIGNED("read_bytes", st.read_bytes),
				  SD_JSON_BUILD_PAIR_UNSIGNED("write_bytes", st.write_bytes),
				  SD_JSON_BUILD_PAIR_UNSIGNED("flushes", st.flushes),
				  SD_JSON_BUILD_PAIR_UNSIGNED("discards", st.discards),
				  SD_JSON_BUILD_PAIR_UNSIGNED("commits", st.commits),
				  SD_JSON_BUILD_PAIR_UNSIGNED("withdrawals", st.withdrawals),
				  SD_JSON_BUILD_PAIR_UNSIGNED("drains", st.drains),
				  SD_JSON_BUILD_PAIR_UNSIGNED("slices", st.slices),
				  SD_JSON_BUILD_PAIR_UNSIGNED("daemon_restarts", c->state->restarts));
}

static int on_detach(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
		     void *userdata)
{
	struct control *c = userdata;

	if (!c->detacher)
		c->detacher = sd_varlink_ref(link);
	c->stop = true;
	return 0; /* no reply yet */
}

/* ---- the loop ---- */

static int on_signal(sd_event_source *source, const struct signalfd_siginfo *si, void *userdata)
{
	struct control *c = userdata;

	c->stop = true;
	return 0;
}

/* What the image is busy with: to standard error, which a device process in the background has in its
 * directory. */
static int on_dump(sd_event_source *source, const struct signalfd_siginfo *si, void *userdata)
{
	struct control *c = userdata;
	int fd;

	if (log_is_syslog()) {
		fd = rundir_open_dump(c->dir);
		if (fd < 0 || dup2(fd, STDERR_FILENO) < 0)
			log_line(LOG_WARNING, "%s: dump: %s", c->state->device,
				 strerror(fd < 0 ? -fd : errno));
		if (fd >= 0)
			close(fd);
	}
	server_dump(c->server);
	return 0;
}

static int on_death(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct control *c = userdata;

	if (server_can_be_followed(c->server)) {
		/* As if killed: holds that an I/O thread took with it may block an orderly end for ever, and
		 * the journal has all that counts. */
		log_line(LOG_ERR, "%s: its I/O threads ended: left to the next process", c->state->device);
		_exit(EXIT_FAILURE);
	}
	c->stop = c->died = true;
	log_line(LOG_ERR, "%s: the device went away: deleted by someone else, or its I/O threads ended",
		 c->state->device);
	return 0;
}

/* The image climbed down to read-only: whoever looks at the device is to see it. */
static int on_read_only(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct control *c = userdata;
	struct qcow2_error err = { "" };

	log_line(LOG_ERR, "%s: read-only from now on: an fsync of the image failed, or the image is corrupt",
		 c->state->image);
	c->state->read_only = server_read_only(c->server);
	if (c->link)
		link_read_only(c->link);
	else if (rundir_write(c->dir, c->state, &err))
		log_line(LOG_WARNING, "%s", err.text);
	return sd_event_source_set_enabled(source, SD_EVENT_OFF); /* for good */
}

/* Alone from now on: everything goes on but that nobody starts another worker. */
static void bereaved(struct control *c)
{
	log_line(LOG_WARNING,
		 "%s: its supervisor died: `ublk-qcow2 recover` brings the device back if this "
		 "process dies, too",
		 c->state->device);
	c->link = NULL;
	c->state->supervisor = 0;
	c->state->phase = RUN_LIVE;
	c->state->pid = getpid();
	rundir_write(c->dir, c->state, NULL);
}

static int on_order(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct control *c = userdata;

	switch (link_order(c->link)) {
	case ORDER_NONE:
		break;
	case ORDER_LEAVE:
		c->leave = !c->stop;
		c->stop = true;
		break;
	case ORDER_STOP:
		c->stop = true;
		break;
	case ORDER_GONE:
		bereaved(c);
		return sd_event_source_set_enabled(source, SD_EVENT_OFF);
	}
	return 0;
}

static void look_at_swaps(struct control *c)
{
	swap_watch_look(&c->swap, c->state->device);
	server_allow_hits(c->server, c->swap.use != SWAP_OURS);
}

static int on_swaps(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	look_at_swaps(userdata);
	return 0;
}

static int watch_swaps(struct control *c)
{
	swap_watch_open(&c->swap);
	look_at_swaps(c);
	return c->swap.fd < 0 ? 0 : sd_event_add_io(c->event, NULL, c->swap.fd, EPOLLPRI, on_swaps, c);
}

static int listen_varlink(struct control *c)
{
	char path[300];
	int ret;

	ret = sd_varlink_server_new(&c->varlink,
				    SD_VARLINK_SERVER_ROOT_ONLY | SD_VARLINK_SERVER_INHERIT_USERDATA);
	if (ret < 0)
		return ret;
	sd_varlink_server_set_userdata(c->varlink, c);
	ret = sd_varlink_server_set_info(c->varlink, "ublk-qcow2", "ublk-qcow2", "1", NULL);
	if (ret >= 0)
		ret = sd_varlink_server_add_interface(c->varlink, &vl_interface_io_ublkqcow2);
	if (ret >= 0)
		ret = sd_varlink_server_bind_method_many(c->varlink, "io.ublkqcow2.Info", on_info,
							 "io.ublkqcow2.Stats", on_stats,
							 "io.ublkqcow2.Detach", on_detach);
	if (ret >= 0)
		ret = sd_varlink_server_listen_address(
			c->varlink, run_path(path, sizeof(path), c->state->id, "control"), 0600);
	if (ret >= 0)
		ret = sd_varlink_server_attach_event(c->varlink, c->event, SD_EVENT_PRIORITY_NORMAL);
	return ret;
}

static void control_free(struct control *c)
{
	sd_varlink_unref(c->detacher);
	sd_varlink_server_unref(c->varlink);
	sd_event_unref(c->event);
	swap_watch_close(&c->swap);
	free(c);
}

int control_new(struct control **out, struct server *server, struct rundir *dir, struct run_state *state,
		struct link *link, struct qcow2_error *err)
{
	struct control *c = calloc(1, sizeof(*c));
	int ret;

	if (!c)
		return qcow2_fail(err, -ENOMEM, "%s: control: %s", state->device, strerror(ENOMEM));
	c->server = server;
	c->dir = dir;
	c->state = state;
	c->link = link;
	c->swap.fd = -1;
	ret = sd_event_new(&c->event);
	if (ret >= 0)
		ret = sd_event_add_signal(c->event, NULL, SIGTERM, on_signal, c);
	if (ret >= 0)
		ret = sd_event_add_signal(c->event, NULL, SIGINT, on_signal, c);
	if (ret >= 0)
		ret = sd_event_add_signal(c->event, NULL, SIGUSR1, on_dump, c);
	if (ret >= 0 && server_dead_fd(server) >= 0)
		ret = sd_event_add_io(c->event, NULL, server_dead_fd(server), EPOLLIN, on_death, c);
	if (ret >= 0 && link)
		ret = sd_event_add_io(c->event, NULL, link_fd(link), EPOLLIN, on_order, c);
	if (ret >= 0)
		ret = sd_event_add_io(c->event, NULL, server_read_only_fd(server), EPOLLIN, on_read_only, c);
	if (ret >= 0)
		ret = watch_swaps(c);
	if (ret >= 0)
		ret = listen_varlink(c);
	if (ret < 0) {
		control_free(c);
		return qcow2_fail(err, ret, "%s: control socket: %s", state->device, strerror(-ret));
	}
	*out = c;
	return 0;
}

/* The reply, and everything of it out of the door: the process ends next. */
static void answer(struct control *c, int ret, const struct qcow2_error *err)
{
	if (!c->detacher)
		return;
	if (ret)
		sd_varlink_errorbo(c->detacher, "io.ublkqcow2.DetachFailed",
				   SD_JSON_BUILD_PAIR_STRING("message", err->text));
	else
		sd_varlink_replybo(c->detacher, SD_JSON_BUILD_PAIR_STRING("device", c->state->device));
	sd_varlink_flush(c->detacher);
}

/* An error, and after it what the user can do. */
static void say_what_is_left(struct qcow2_error *err, const struct qcow2_error *remark)
{
	struct qcow2_error both = { "" };

	qcow2_fail(&both, 0, "%s%s%s", err->text, remark->text[0] ? "; " : "", remark->text);
	*err = both;
	log_line(LOG_ERR, "%s", err->text);
}

int control_run(struct control *c)
{
	struct qcow2_error err = { "" }, remark = { "" };
	int ret, loop = 0;

	/* not sd_event_loop(): leaving that one closes all connections, and one of them waits for us */
	while (!c->stop && loop >= 0)
		loop = sd_event_run(c->event, UINT64_MAX);
	if (loop < 0)
		log_line(LOG_ERR, "%s: event loop: %s", c->state->device, strerror(-loop));
	sd_varlink_server_shutdown(c->varlink); /* no new connections */
	ret = c->leave ? server_leave(c->server, &err) : server_stop(c->server, &err);
	if (ret)
		qcow2_fail(&err, ret, "%s: closing: %s", c->state->image, strerror(-ret));
	/* the supervisor may have died meanwhile */
	if (c->leave || (c->link && link_stopped(c->link, ret, &err, &remark)))
		rundir_release(c->dir);
	else
		rundir_retire(c->dir, &remark);
	if (ret)
		say_what_is_left(&err, &remark);
	answer(c, ret, &err);
	sd_event_exit(c->event, 0); /* now all connections may be closed */
	sd_event_loop(c->event);
	if (!ret && (c->died || loop < 0))
		ret = -EIO;
	control_free(c);
	return ret;
}

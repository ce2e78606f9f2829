// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * test_daemon_control.c - the control loop over a server that is a fake: every way it ends, and that Detach
 * is answered after everything is over.
 */
#include "daemon/control.h"
#include "daemon/thread.h"
#include "unit.h"
#include <errno.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <systemd/sd-varlink.h>
#include <unistd.h>

/* ---- the fake ---- */

struct server {
	int dead_fd;
	int read_only_fd;
	int stop_result;
	bool stays; /* its device is there whatever happens to the data path */
};

void server_get_stats(struct server *s, struct server_stats *out)
{
	*out = (struct server_stats){ .hits = 1ull << 62, .misses = 3, .writes = 4 };
}

int server_dead_fd(const struct server *s)
{
	return s->dead_fd;
}

bool server_can_be_followed(const struct server *s)
{
	return s->stays;
}

bool server_read_only(const struct server *s)
{
	return true; /* nobody asks before it became so */
}

int server_read_only_fd(const struct server *s)
{
	return s->read_only_fd;
}

void server_allow_hits(struct server *s, bool allow)
{
}

void server_dump(struct server *s)
{
	fprintf(stderr, "dumped\n");
}

int server_leave(struct server *s, struct qcow2_error *err)
{
	return 0;
}

int server_stop(struct server *s, struct qcow2_error *err)
{
	usleep(300000);
	return s->stop_result ? qcow2_fail(err, s->stop_result, "a.qcow2: close: the disk burnt") : 0;
}

/* ---- a device process ---- */

static char root[64];

static int setup(void **state)
{
	strcpy(root, "/tmp/ublk-qcow2-control-XXXXXX");
	return mkdtemp(root) ? setenv("UBLK_QCOW2_RUNDIR", root, 1) : -1;
}

static int teardown(void **state)
{
	char cmd[100];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", root);
	return system(cmd);
}

static void __attribute__((noreturn)) be_device(struct server *s, int ready)
{
	static char device[] = "/dev/ublkb0", image[] = "/a.qcow2", engine[] = "server";
	struct run_state st = {
		.device = device, .image = image, .engine = engine, .pid = getpid(), .size = 4096
	};
	struct control *c;
	struct rundir *d;
	sigset_t signals;

	thread_main_signals(&signals);
	if (rundir_create(&d, 0, NULL) || rundir_write(d, &st, NULL) ||
	    control_new(&c, s, d, &st, NULL, NULL))
		_exit(99);
	if (write(ready, "x", 1) != 1)
		_exit(98);
	_exit(control_run(c) ? 1 : 0);
}

/* The event descriptors of its data path, if they are wanted, are the caller's to close. */
static pid_t start_server(struct server s, int *dead_fd, int *read_only_fd)
{
	int p[2];
	pid_t pid;
	char c;

	s.dead_fd = eventfd(0, EFD_CLOEXEC);
	s.read_only_fd = eventfd(0, EFD_CLOEXEC);
	assert_int_equal(pipe(p), 0);
	pid = fork();
	if (!pid)
		be_device(&s, p[1]);
	close(p[1]);
	assert_int_equal(read(p[0], &c, 1), 1);
	close(p[0]);
	if (dead_fd)
		*dead_fd = s.dead_fd;
	else
		close(s.dead_fd);
	if (read_only_fd)
		*read_only_fd = s.read_only_fd;
	else
		close(s.read_only_fd);
	return pid;
}

static pid_t start(int stop_result, int *dead_fd)
{
	return start_server((struct server){ .stop_result = stop_result }, dead_fd, NULL);
}

static int end_of(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static sd_varlink *connect_to(int id)
{
	sd_varlink *link = NULL;
	char path[300];

	assert_true(sd_varlink_connect_address(&link, run_path(path, sizeof(path), id, "control")) >= 0);
	sd_varlink_set_relative_timeout(link, UINT64_MAX);
	return link;
}

static void assert_gone(void)
{
	char path[300];

	assert_int_equal(access(run_path(path, sizeof(path), 0, NULL), F_OK), -1);
}

/* ---- tests ---- */

static void stats_and_info(void **state)
{
	pid_t pid = start(0, NULL);
	sd_varlink *link = connect_to(0);
	sd_json_variant *v;
	const char *error;

	assert_true(sd_varlink_call(link, "io.ublkqcow2.Stats", NULL, &v, &error) >= 0);
	assert_null(error);
	assert_true(sd_json_variant_unsigned(sd_json_variant_by_key(v, "hits")) == 1ull << 62);
	assert_int_equal(sd_json_variant_unsigned(sd_json_variant_by_key(v, "misses")), 3);
	assert_int_equal(sd_json_variant_unsigned(sd_json_variant_by_key(v, "daemon_restarts")), 0);
	assert_true(sd_varlink_call(link, "io.ublkqcow2.Info", NULL, &v, &error) >= 0);
	assert_null(error);
	assert_int_equal(sd_json_variant_integer(sd_json_variant_by_key(v, "pid")), pid);
	assert_true(sd_varlink_call(link, "io.ublkqcow2.Nonsense", NULL, &v, &error) >= 0);
	assert_string_equal(error, "org.varlink.service.MethodNotFound");
	sd_varlink_close_unref(link);
	kill(pid, SIGTERM);
	assert_int_equal(end_of(pid), 0);
	assert_gone();
}

static void detach_answers_at_the_end(void **state)
{
	pid_t pid = start(0, NULL);
	sd_varlink *link = connect_to(0);
	sd_json_variant *v;
	const char *error;

	assert_true(sd_varlink_call(link, "io.ublkqcow2.Detach", NULL, &v, &error) >= 0);
	assert_null(error);
	assert_gone();
	assert_string_equal(sd_json_variant_string(sd_json_variant_by_key(v, "device")), "/dev/ublkb0");
	sd_varlink_close_unref(link);
	assert_int_equal(end_of(pid), 0);
}

static void detach_tells_what_failed(void **state)
{
	pid_t pid = start(-EIO, NULL);
	sd_varlink *link = connect_to(0);
	sd_json_variant *v;
	const char *error;

	assert_true(sd_varlink_call(link, "io.ublkqcow2.Detach", NULL, &v, &error) >= 0);
	assert_string_equal(error, "io.ublkqcow2.DetachFailed");
	assert_string_equal(sd_json_variant_string(sd_json_variant_by_key(v, "message")),
			    "a.qcow2: close: the disk burnt");
	assert_gone();
	sd_varlink_close_unref(link);
	assert_int_equal(end_of(pid), 1);
}

static void signals_end_it(void **state)
{
	static const int signals[] = { SIGTERM, SIGINT };
	pid_t pid;
	size_t i;

	for (i = 0; i < COUNT(signals); i++) {
		pid = start(0, NULL);
		kill(pid, SIGHUP); /* a closed terminal is no reason */
		kill(pid, SIGUSR1); /* a dump neither */
		usleep(100000);
		assert_int_equal(waitpid(pid, NULL, WNOHANG), 0);
		kill(pid, signals[i]);
		assert_int_equal(end_of(pid), 0);
		assert_gone();
	}
}

static bool listed_read_only(void)
{
	struct run_state st;
	bool live, ret;

	assert_int_equal(rundir_read(0, &st, &live, NULL), 0);
	assert_true(live);
	ret = st.read_only;
	run_state_clear(&st);
	return ret;
}

/* Whoever lists the devices sees that one stopped taking writes, and it goes on serving. */
static void becomes_read_only(void **state)
{
	sd_varlink *link;
	sd_json_variant *v;
	const char *error;
	unsigned ms;
	pid_t pid;
	int fd;

	pid = start_server((struct server){ .stop_result = 0 }, NULL, &fd);
	assert_false(listed_read_only());
	assert_int_equal(eventfd_write(fd, 1), 0);
	for (ms = 0; ms < 5000 && !listed_read_only(); ms++)
		usleep(1000);
	assert_true(ms < 5000);
	link = connect_to(0);
	assert_true(sd_varlink_call(link, "io.ublkqcow2.Info", NULL, &v, &error) >= 0);
	assert_null(error);
	assert_true(sd_json_variant_boolean(sd_json_variant_by_key(v, "read_only")));
	sd_varlink_close_unref(link);
	close(fd);
	kill(pid, SIGTERM);
	assert_int_equal(end_of(pid), 0);
	assert_gone();
}

static void death_of_the_data_path(void **state)
{
	int dead;
	pid_t pid = start(0, &dead);

	assert_int_equal(eventfd_write(dead, 1), 0);
	assert_int_equal(end_of(pid), 1);
	assert_gone();
	close(dead);
}

/* The device is there without it: nothing is stopped or removed, the next process finds all as after a kill.
 */
static void death_that_leaves_the_device(void **state)
{
	struct server s = { .stays = true };
	struct run_state st;
	struct rundir *dir;
	bool live;
	int dead;
	pid_t pid = start_server(s, &dead, NULL);

	assert_int_equal(eventfd_write(dead, 1), 0);
	assert_int_equal(end_of(pid), 1);
	close(dead);
	assert_int_equal(rundir_read(0, &st, &live, NULL), 0);
	assert_false(live);
	assert_int_equal(st.phase, RUN_FAILED);
	run_state_clear(&st);
	assert_int_equal(rundir_take(&dir, 0, NULL), 0);
	rundir_remove(dir);
}

/* A client that leaves in the middle changes nothing. */
static void detach_and_leave(void **state)
{
	pid_t pid = start(0, NULL);
	sd_varlink *link = connect_to(0);

	assert_true(sd_varlink_send(link, "io.ublkqcow2.Detach", NULL) >= 0);
	assert_true(sd_varlink_flush(link) >= 0);
	sd_varlink_close_unref(link);
	assert_int_equal(end_of(pid), 0);
	assert_gone();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(stats_and_info),
		cmocka_unit_test(detach_answers_at_the_end),
		cmocka_unit_test(detach_tells_what_failed),
		cmocka_unit_test(signals_end_it),
		cmocka_unit_test(becomes_read_only),
		cmocka_unit_test(death_of_the_data_path),
		cmocka_unit_test(death_that_leaves_the_device),
		cmocka_unit_test(detach_and_leave),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}

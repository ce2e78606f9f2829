// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * test_daemon_supervisor.c - the supervisor's state machine over workers that are fakes: this program again,
 * which dies, hangs or fails where its script says. One word of the script is one worker's life; the last one
 * goes on for all that follow. Time runs SPEED times as fast for the supervisor.
 */
#include "daemon/ctrl.h"
#include "daemon/link.h"
#include "daemon/message.h"
#include "daemon/supervisor.h"
#include "qcow2/journal.h"
#include "unit.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SPEED 40 /* a worker that works has 3 s to start */
#define ID 0

static char root[64], image[100];

/* ---- faster time, and a driver that only notes what it is asked ---- */

int clock_gettime(clockid_t clock, struct timespec *t)
{
	long ret = syscall(SYS_clock_gettime, clock, t);

	if (clock == CLOCK_MONOTONIC && getenv("FAST")) {
		__uint128_t ns = ((__uint128_t)t->tv_sec * 1000000000 + (unsigned)t->tv_nsec) * SPEED;

		t->tv_sec = (time_t)(ns / 1000000000);
		t->tv_nsec = (long)(ns % 1000000000);
	}
	return (int)ret;
}

int poll(struct pollfd *p, nfds_t n, int ms)
{
	return (int)syscall(SYS_poll, p, n, ms > 0 && getenv("FAST") ? ms / SPEED + 1 : ms);
}

static void note(const char *what)
{
	char path[100];
	int fd;

	snprintf(path, sizeof(path), "%s/notes", root);
	fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (write(fd, what, strlen(what)) < 0)
		abort();
	close(fd);
}

int ublk_delete(int id, struct qcow2_error *err)
{
	note("deleted ");
	return 0;
}

int ublk_delete_within(int id, unsigned ms, struct qcow2_error *err)
{
	note("deleted ");
	return getenv("STUCK") ? qcow2_fail(err, -ETIMEDOUT, "stuck") : 0;
}

/* ---- a worker ---- */

static bool is(const char *life, const char *what)
{
	return strcmp(life, what) == 0;
}

static void __attribute__((noreturn)) die(void)
{
	raise(SIGKILL);
	abort();
}

static void hang(void)
{
	for (;;)
		pause();
}

/* The life of worker number @n. */
static const char *life_of(unsigned n)
{
	static char word[20];
	const char *script = getenv("SCRIPT");
	int used;

	do {
		sscanf(script, "%19s%n", word, &used);
		script += used;
	} while (n-- && strchr(script, ' '));
	return word;
}

static void put_record(const struct link_start *s, bool some)
{
	struct journal_header *h = s->custody.journal;
	struct qcow2_journal j = { .mem = h, .size = s->custody.journal_size };
	struct stat st;

	if (stat(image, &st) < 0)
		abort();
	j.dev = st.st_dev;
	j.ino = st.st_ino;
	if (!s->custody.replay)
		qcow2_journal_format(&j);
	h->head = h->tail + some;
}

/* Orders until one that ends it. */
static void serve(struct link *l, struct link_start *s, const char *life)
{
	struct qcow2_error err = { "it burns" };
	enum link_order order;
	struct pollfd p = { .fd = link_fd(l), .events = POLLIN };
	bool bad = is(life, "unclosable");

	if (is(life, "crash"))
		_exit(7);
	for (;;) {
		poll(&p, 1, -1);
		order = link_order(l);
		if (order == ORDER_GONE)
			_exit(0);
		if (order == ORDER_NONE)
			continue;
		if (is(life, "hangs-at-stop"))
			hang();
		if (is(life, "dies-at-stop"))
			die();
		put_record(s, bad);
		if (order == ORDER_STOP)
			link_stopped(l, bad ? -EIO : 0, &err, &err);
		if (is(life, "dies-stopped"))
			die();
		_exit(0);
	}
}

static int worker(void)
{
	struct qcow2_error err = { "" };
	struct link_start start;
	struct rundir *dir;
	const char *life;
	struct link *l;

	unsetenv("FAST");
	if (link_open(&l, LINK_FD, &start, NULL))
		_exit(99);
	life = life_of(start.state.restarts);
	note(life);
	note(start.custody.recover ? "(recover) " : start.custody.replay ? "(replay) " : "(new) ");
	if (is(life, "dies"))
		die();
	if (is(life, "refuses")) {
		link_failed(l, "an image: cannot be: a reason");
		_exit(1);
	}
	if (start.custody.find(start.custody.ctx, image, "image") < 0)
		start.custody.keep(start.custody.ctx, image, "image", open(image, O_RDWR | O_CLOEXEC), NULL);
	if (is(life, "dies-kept"))
		die();
	if (!start.custody.recover && start.custody.added(start.custody.ctx, ID, &err))
		_exit(98);
	if (is(life, "dies-added"))
		die();
	if (is(life, "hangs"))
		hang();
	put_record(&start, true);
	if (link_take_dir(l, &dir, NULL))
		_exit(97);
	start.state.id = ID;
	if (!link_ready(l, &start.state))
		_exit(96);
	serve(l, &start, life);
	return 0;
}

/* ---- a supervisor, and what becomes of it ---- */

static int to_parent = -1;

static bool tell_ready(void *ctx, const char *device)
{
	return write(to_parent, "r", 1) == 1;
}

/* Start a supervisor of a new device, or of one to be recovered; wait until it is ready or has ended. */
static pid_t supervise(const char *script, bool recover, bool *ready)
{
	struct server_options opt = { .image = image, .lock = true, .block_size = 512 };
	struct supervisor_options so = { .opt = &opt, .foreground = true, .ready = tell_ready };
	struct qcow2_error err = { "" };
	struct run_state st;
	int p[2];
	pid_t pid;
	bool live;
	char c;

	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	pid = fork();
	if (!pid) {
		setenv("SCRIPT", script, 1);
		setenv("FAST", "1", 1);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		to_parent = p[1];
		if (recover && rundir_read(ID, &st, &live, NULL))
			_exit(99);
		so.recover = recover ? &st : NULL;
		if (supervisor_run(&so, &err)) {
			note(err.text);
			_exit(1);
		}
		_exit(0);
	}
	close(p[1]);
	*ready = read(p[0], &c, 1) == 1;
	close(p[0]);
	return pid;
}

static pid_t attached(const char *script)
{
	bool ready;
	pid_t pid = supervise(script, false, &ready);

	assert_true(ready);
	return pid;
}

static int end_of(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static struct run_state now(void)
{
	struct run_state st = { .id = -1 };
	bool live;

	if (rundir_read(ID, &st, &live, NULL))
		st.id = -1;
	return st;
}

/* Until the device is in that phase, after @restarts workers at least. */
static pid_t wait_for(enum run_phase phase, unsigned restarts)
{
	for (unsigned tries = 0; tries < 3000; tries++) {
		struct run_state st = now();
		pid_t pid = st.pid;
		bool there = st.id >= 0 && st.phase == phase && st.restarts >= restarts;

		run_state_clear(&st);
		if (there)
			return pid;
		usleep(10000);
	}
	fail_msg("phase %d with %u restarts was not reached", phase, restarts);
	return 0;
}

static int client(const char *word, bool force)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), ret;
	sd_json_variant *v = NULL;

	run_path(sun.sun_path, sizeof(sun.sun_path), ID, "supervisor");
	assert_int_equal(connect(sock, (struct sockaddr *)&sun, sizeof(sun)), 0);
	ret = sd_json_buildo(&v, SD_JSON_BUILD_PAIR_STRING("type", word),
			     SD_JSON_BUILD_PAIR_BOOLEAN("force", force));
	assert_int_equal(message_send(sock, ret, v, NULL, 0), 0);
	return sock;
}

/* An order, and what comes back begins and goes on with. */
static void order(const char *word, bool force, const char *type, const char *text)
{
	int sock = client(word, force);
	struct message m;

	assert_int_equal(message_receive(sock, &m, 0), 0);
	assert_string_equal(message_type(&m), type);
	if (!strstr(message_string(&m, "text"), text) || (!text[0] && message_string(&m, "text")[0]))
		fail_msg("\"%s\" instead of \"%s\"", message_string(&m, "text"), text);
	message_clear(&m);
	close(sock);
}

static void assert_notes(const char *want)
{
	char path[100], got[1000] = "";
	FILE *f;

	snprintf(path, sizeof(path), "%s/notes", root);
	f = fopen(path, "r");
	if (f) {
		got[fread(got, 1, sizeof(got) - 1, f)] = '\0';
		fclose(f);
	}
	assert_string_equal(got, want);
}

/* The run root's entries: what a device left. */
static void assert_left(bool directory, bool journal)
{
	char path[300];
	struct stat st;
	int id;

	assert_int_equal(access(run_path(path, sizeof(path), ID, NULL), F_OK), directory ? 0 : -1);
	assert_int_equal(stat(image, &st), 0);
	if (rundir_find_kept(st.st_dev, st.st_ino, path, sizeof(path), &id) != journal)
		fail_msg("a kept journal: %d", !journal);
}

static void run(const char *cmd)
{
	char line[200];

	snprintf(line, sizeof(line), "cd %s && %s", root, cmd);
	if (system(line))
		abort();
}

static int clear(void **state)
{
	run("rm -rf notes 0 journal.* && echo >image");
	unsetenv("STUCK");
	return 0;
}

/* ---- before it is ready ---- */

/* Wherever a first worker ends, nothing is left and nobody starts another. */
static void never_ready(void **state)
{
	static const char *const scripts[] = { "dies", "dies-kept", "dies-added", "refuses" };
	static const char *const notes[] = {
		"dies(new) %s: the device process was killed: Killed",
		"dies-kept(new) %s: the device process was killed: Killed",
		"dies-added(new) deleted %s: the device process was killed: Killed; /dev/ublkb0 is removed "
		"again",
		"refuses(new) an image: cannot be: a reason",
	};
	char want[400];
	bool ready;

	for (size_t i = 0; i < COUNT(scripts); i++) {
		clear(NULL);
		assert_int_equal(end_of(supervise(scripts[i], false, &ready)), 1);
		assert_false(ready);
		snprintf(want, sizeof(want), notes[i], image);
		assert_notes(want);
		assert_left(false, false);
	}
}

/* ---- deaths ---- */

/* The next worker comes, also for one that dies before it serves, and all of them are asked to end in order.
 */
static void replaced(void **state)
{
	pid_t pid = attached("serves dies dies-kept crash serves"), first = wait_for(RUN_LIVE, 0);
	struct run_state st;

	kill(first, SIGKILL);
	assert_int_not_equal(wait_for(RUN_LIVE, 4), first);
	order("recover", false, "done", ""); /* nothing to do */
	st = now();
	assert_int_equal(st.restarts, 4);
	assert_int_equal(st.supervisor, pid);
	run_state_clear(&st);
	order("detach", false, "done", "");
	assert_int_equal(end_of(pid), 0);
	assert_notes("serves(new) dies(recover) dies-kept(recover) crash(recover) serves(recover) ");
	assert_left(false, false);
}

/* Five in a row are enough; an order is one more attempt, and it says why that failed. */
static void gives_up(void **state)
{
	pid_t pid = attached("serves dies dies dies dies dies refuses serves");

	kill(wait_for(RUN_LIVE, 0), SIGKILL);
	wait_for(RUN_FAILED, 5);
	order("recover", false, "error", "an image: cannot be: a reason");
	wait_for(RUN_FAILED, 6);
	order("recover", false, "done", "");
	wait_for(RUN_LIVE, 7);
	kill(pid, SIGTERM);
	assert_int_equal(end_of(pid), 0);
	assert_left(false, false);
}

/* It dies after it has closed the image, or on its way there: then the next one does that. */
static void dies_at_the_end(void **state)
{
	pid_t pid = attached("dies-stopped");

	order("detach", false, "done", "");
	assert_int_equal(end_of(pid), 0);
	assert_notes("dies-stopped(new) ");
	assert_left(false, false);
	clear(NULL);
	pid = attached("dies-at-stop serves");
	order("detach", false, "done", "");
	assert_int_equal(end_of(pid), 0);
	assert_notes("dies-at-stop(new) serves(recover) ");
	assert_left(false, false);
}

/* It hangs in its recovery. */
static void hangs_in_recovery(void **state)
{
	pid_t pid = attached("serves hangs serves");

	kill(wait_for(RUN_LIVE, 0), SIGKILL);
	wait_for(RUN_LIVE, 2);
	order("detach", false, "done", "");
	assert_int_equal(end_of(pid), 0);
	assert_notes("serves(new) hangs(recover) serves(recover) ");
}

/* Told to leave, it does; or it is killed. Either way the next one serves. */
static void restarts(void **state)
{
	pid_t pid = attached("hangs-at-stop serves serves");

	order("restart", false, "done", "");
	order("restart", false, "done", "");
	wait_for(RUN_LIVE, 2);
	order("detach", false, "done", "");
	assert_int_equal(end_of(pid), 0);
	assert_notes("hangs-at-stop(new) serves(recover) serves(recover) ");
}

/* ---- the end ---- */

/* The image cannot be closed: its journal is kept, and the next device of the image begins with it. */
static void unclosable(void **state)
{
	pid_t pid = attached("unclosable");
	bool ready;

	order("detach", false, "error", "it burns; its image lacks the last changes: they are in ");
	assert_int_equal(end_of(pid), 1);
	assert_left(false, true);
	/* one that does not come up leaves it there, */
	assert_int_equal(end_of(supervise("dies-added", false, &ready)), 1);
	assert_left(false, true);
	/* one that does has it for its own */
	run("rm notes");
	pid = attached("serves");
	assert_notes("serves(replay) ");
	assert_left(true, false);
	order("detach", false, "done", "");
	assert_int_equal(end_of(pid), 0);
	assert_left(false, false);
}

/* Without --force a device that cannot be recovered stays, until it can. */
static void detach_of_a_failed_one(void **state)
{
	pid_t pid = attached("serves dies dies dies dies dies dies serves");

	kill(wait_for(RUN_LIVE, 0), SIGKILL);
	wait_for(RUN_FAILED, 5);
	order("detach", false, "error", "was killed");
	wait_for(RUN_FAILED, 6);
	order("detach", false, "done", "");
	assert_int_equal(end_of(pid), 0);
	assert_left(false, false);
}

/* With it it goes, wherever its worker hangs, and the journal is kept. */
static void force_always_ends(void **state)
{
	static const char *const scripts[] = { "serves hangs", "hangs-at-stop", "serves dies" };

	for (size_t i = 0; i < 2 * COUNT(scripts); i++) {
		pid_t pid;

		clear(NULL);
		if (i >= COUNT(scripts)) /* the driver does not let it go either */
			setenv("STUCK", "1", 1);
		pid = attached(scripts[i % COUNT(scripts)]);
		if (i % COUNT(scripts) != 1) {
			kill(wait_for(RUN_LIVE, 0), SIGKILL);
			wait_for(RUN_RECOVERING, 1);
		}
		order("detach", true, "done", "its image lacks the last changes: they are in ");
		assert_int_equal(end_of(pid), 0);
		assert_left(false, true);
	}
}

/* An end in order is what --force waits for first. */
static void force_in_order(void **state)
{
	pid_t pid = attached("serves");

	order("detach", true, "done", "");
	assert_int_equal(end_of(pid), 0);
	assert_notes("serves(new) ");
	assert_left(false, false);
}

/* ---- both dead ---- */

static void both_dead(void **state)
{
	pid_t pid = attached("serves"), first = wait_for(RUN_LIVE, 0);
	bool ready;

	kill(pid, SIGSTOP);
	kill(first, SIGKILL);
	kill(pid, SIGKILL);
	assert_int_equal(end_of(pid), 1000 + SIGKILL);
	wait_for(RUN_FAILED, 0);
	/* as it was, if it cannot be brought back: refused, dead or hanging */
	assert_int_equal(end_of(supervise("x refuses", true, &ready)), 1);
	assert_int_equal(end_of(supervise("x dies", true, &ready)), 1);
	assert_int_equal(end_of(supervise("x hangs", true, &ready)), 1);
	assert_false(ready);
	wait_for(RUN_FAILED, 0);
	assert_left(true, true);
	pid = supervise("x serves", true, &ready);
	assert_true(ready);
	wait_for(RUN_LIVE, 1);
	order("detach", false, "done", "");
	assert_int_equal(end_of(pid), 0);
	assert_left(false, false);
}

static int setup(void **state)
{
	strcpy(root, "/tmp/ublk-qcow2-sup-XXXXXX");
	if (!mkdtemp(root))
		return -1;
	snprintf(image, sizeof(image), "%s/image", root);
	setenv("TEST_ROOT", root, 1);
	return setenv("UBLK_QCOW2_RUNDIR", root, 1);
}

static int teardown(void **state)
{
	run("cd / && rm -rf \"$TEST_ROOT\"");
	return 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(never_ready, clear),
		cmocka_unit_test_setup(replaced, clear),
		cmocka_unit_test_setup(gives_up, clear),
		cmocka_unit_test_setup(dies_at_the_end, clear),
		cmocka_unit_test_setup(hangs_in_recovery, clear),
		cmocka_unit_test_setup(restarts, clear),
		cmocka_unit_test_setup(unclosable, clear),
		cmocka_unit_test_setup(detach_of_a_failed_one, clear),
		cmocka_unit_test_setup(force_always_ends, clear),
		cmocka_unit_test_setup(force_in_order, clear),
		cmocka_unit_test_setup(both_dead, clear),
	};

	if (argc > 1 && strcmp(argv[1], "worker") == 0) {
		snprintf(root, sizeof(root), "%s", getenv("TEST_ROOT"));
		snprintf(image, sizeof(image), "%s/image", root);
		return worker();
	}
	return cmocka_run_group_tests(tests, setup, teardown);
}

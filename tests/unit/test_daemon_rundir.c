// SPDX-License-Identifier: GPL-2.0-or-later
/* test_daemon_rundir.c - run directories: what others read, who lives, and who may remove what. */
#include "daemon/rundir.h"
#include "unit.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char root[64];

static int setup(void **state)
{
	strcpy(root, "/tmp/ublk-qcow2-run-XXXXXX");
	if (!mkdtemp(root))
		return -1;
	strcat(root, "/run");
	return setenv("UBLK_QCOW2_RUNDIR", root, 1);
}

static int teardown(void **state)
{
	char cmd[100];

	*strrchr(root, '/') = '\0';
	snprintf(cmd, sizeof(cmd), "rm -rf %s", root);
	return system(cmd);
}

static void sample(struct run_state *st, int id)
{
	char device[32];

	snprintf(device, sizeof(device), "/dev/ublkb%d", id);
	*st = (struct run_state){ .id = id,
				  .device = strdup(device),
				  .image = strdup("/img/a b\n\"c\".qcow2"),
				  .engine = strdup("server"),
				  .pid = getpid(),
				  .size = 1ull << 46,
				  .zero_copy = true,
				  .direct_io = true,
				  .queues = 4,
				  .depth = 64,
				  .image_dev = 0xfe01,
				  .image_ino = UINT64_MAX,
				  .node = 1ull << 40,
				  .supervisor = 4711,
				  .phase = RUN_RECOVERING,
				  .restarts = 7,
				  .opt = { .discard = QCOW2_DISCARD_IGNORE, .block_size = 4096 } };
}

static void write_and_read(void **state)
{
	struct qcow2_error err = { "" };
	struct run_state st, got;
	struct rundir *d;
	struct stat mode;
	char path[300];
	bool live;

	sample(&st, 3);
	assert_int_equal(rundir_create(&d, 3, &err), 0);
	assert_int_equal(stat(run_path(path, sizeof(path), 3, NULL), &mode), 0);
	assert_int_equal(mode.st_mode & 07777, 0700);
	assert_int_equal(rundir_write(d, &st, &err), 0);
	assert_int_equal(rundir_read(3, &got, &live, &err), 0);
	assert_true(live);
	assert_string_equal(got.device, st.device);
	assert_string_equal(got.image, st.image);
	assert_string_equal(got.engine, st.engine);
	assert_int_equal(got.pid, st.pid);
	assert_true(got.size == st.size && got.image_ino == st.image_ino && got.node == st.node);
	assert_true(got.zero_copy && got.direct_io && !got.read_only && got.queues == 4 && got.depth == 64);
	assert_true(got.supervisor == 4711 && got.phase == RUN_RECOVERING && got.restarts == 7);
	assert_true(got.opt.discard == QCOW2_DISCARD_IGNORE && got.opt.block_size == 4096 && !got.opt.lock);
	run_state_clear(&got);
	rundir_remove(d);
	assert_int_equal(rundir_read(3, &got, &live, &err), -ENOENT);
	assert_int_equal(access(path, F_OK), -1);
	run_state_clear(&st);
	assert_string_equal(err.text, "");
}

/* A process that takes the directory, says so and waits to be killed. */
static pid_t owner(int id)
{
	struct run_state st;
	struct rundir *d;
	int p[2];
	char c;
	pid_t pid;

	assert_int_equal(pipe(p), 0);
	pid = fork();
	if (!pid) {
		sample(&st, id);
		if (rundir_create(&d, id, NULL) || rundir_write(d, &st, NULL) || write(p[1], "x", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(p[1]);
	assert_int_equal(read(p[0], &c, 1), 1);
	close(p[0]);
	return pid;
}

static void lives_until_killed(void **state)
{
	struct qcow2_error err = { "" };
	struct run_state st;
	struct rundir *d;
	pid_t pid = owner(5);
	bool live;

	assert_int_equal(rundir_read(5, &st, &live, &err), 0);
	assert_true(live);
	run_state_clear(&st);
	assert_int_equal(rundir_take(&d, 5, &err), -EBUSY);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	assert_int_equal(rundir_read(5, &st, &live, &err), 0);
	assert_false(live);
	assert_int_equal(st.phase, RUN_FAILED); /* whatever the state file says */
	assert_string_equal(st.device, "/dev/ublkb5");
	run_state_clear(&st);
	assert_int_equal(rundir_take(&d, 5, NULL), 0);
	rundir_remove(d);
	assert_int_equal(rundir_take(&d, 5, NULL), -ENOENT);
}

/* The next device with that number finds the remains of a dead one. */
static void create_takes_over_the_dead(void **state)
{
	struct qcow2_error err = { "" };
	struct run_state st;
	struct rundir *d;
	pid_t pid = owner(6);
	bool live;

	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	assert_int_equal(rundir_create(&d, 6, &err), 0);
	assert_int_equal(rundir_read(6, &st, &live, &err), 0);
	assert_true(live);
	assert_string_equal(st.engine, ""); /* no state yet: only what the number tells */
	assert_string_equal(st.device, "/dev/ublkb6");
	run_state_clear(&st);
	rundir_remove(d);
}

/* create() while a remover holds the directory: waits, and does not end up in the removed one. */
static void create_waits_for_a_remover(void **state)
{
	struct rundir *old, *new;
	char path[300];
	int status;
	pid_t pid;

	assert_int_equal(rundir_create(&old, 7, NULL), 0);
	pid = fork();
	if (!pid)
		_exit(rundir_create(&new, 7, NULL)			      ? 1
		      : access(run_path(path, sizeof(path), 7, "lock"), F_OK) ? 2
									      : 0);
	usleep(200000);
	rundir_remove(old);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(rundir_take(&old, 7, NULL), 0);
	rundir_remove(old);
}

static void lists_sorted(void **state)
{
	struct rundir *d[3];
	static const int id[3] = { 10, 9, 100 };
	int *ids, i, fd;
	size_t count;
	char path[100];

	for (i = 0; i < 3; i++)
		assert_int_equal(rundir_create(&d[i], id[i], NULL), 0);
	snprintf(path, sizeof(path), "%s/12x", root);
	fd = open(path, O_CREAT | O_CLOEXEC | O_WRONLY, 0600);
	close(fd);
	assert_int_equal(rundir_list(&ids, &count, NULL), 0);
	assert_int_equal(count, 3);
	assert_true(ids[0] == 9 && ids[1] == 10 && ids[2] == 100);
	free(ids);
	for (i = 0; i < 3; i++)
		rundir_remove(d[i]);
	assert_int_equal(rundir_list(&ids, &count, NULL), 0);
	assert_int_equal(count, 0);
}

static void damaged_state(void **state)
{
	static const char *const junk[] = { "", "{", "[1]", "{\"device\": 7, \"size\": -1, \"pid\": \"x\"}" };
	struct qcow2_error err = { "" };
	struct run_state st;
	struct rundir *d;
	char path[300];
	bool live;
	size_t i;
	FILE *f;

	assert_int_equal(rundir_create(&d, 8, NULL), 0);
	for (i = 0; i < COUNT(junk); i++) {
		f = fopen(run_path(path, sizeof(path), 8, "state"), "we");
		fputs(junk[i], f);
		fclose(f);
		assert_int_equal(rundir_read(8, &st, &live, &err), 0);
		assert_non_null(st.device);
		assert_int_equal(st.size, 0);
		run_state_clear(&st);
	}
	rundir_remove(d);
}

static void not_utf8(void **state)
{
	struct run_state st, got;
	struct rundir *d;
	bool live;

	sample(&st, 11);
	free(st.image);
	st.image = strdup("/img/\xff.qcow2");
	assert_int_equal(rundir_create(&d, 11, NULL), 0);
	assert_int_equal(rundir_write(d, &st, NULL), 0);
	assert_int_equal(rundir_read(11, &got, &live, NULL), 0);
	assert_string_equal(got.image, "/img/\xff.qcow2");
	run_state_clear(&got);
	run_state_clear(&st);
	rundir_remove(d);
}

/* ---- the journal ---- */

#define JOURNAL_SIZE 65536u

static void *map(int fd)
{
	void *p = mmap(NULL, JOURNAL_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	assert_true(p != MAP_FAILED);
	return p;
}

/* A journal, empty or with one record by its header. */
static int make_journal(struct rundir *d, bool records)
{
	int fd = rundir_new_journal(JOURNAL_SIZE, NULL);
	struct qcow2_journal j = { .size = JOURNAL_SIZE };

	assert_true(fd >= 0);
	j.mem = map(fd);
	qcow2_journal_format(&j);
	if (records)
		((uint64_t *)j.mem)[8] = 1; /* head */
	assert_int_equal(qcow2_journal_live(&j), records);
	munmap(j.mem, JOURNAL_SIZE);
	assert_int_equal(rundir_name_journal(d, fd, NULL), 0);
	return fd;
}

/* Its memory is there from the start: a page that cannot be had later is a SIGBUS in the worker. */
static void journal_has_its_memory(void **state)
{
	int fd = rundir_new_journal(JOURNAL_SIZE, NULL);
	struct stat st;

	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, JOURNAL_SIZE);
	assert_true(st.st_blocks * 512 >= JOURNAL_SIZE);
	close(fd);
}

static void journal_is_found_again(void **state)
{
	struct rundir *d, *shared;
	char path[300];
	int fd, again;

	assert_int_equal(rundir_create(&d, 20, NULL), 0);
	assert_int_equal(rundir_open_journal(d, NULL), -ENOENT);
	assert_false(rundir_has_records(d));
	fd = make_journal(d, false);
	assert_false(rundir_has_records(d));
	/* whoever shares the lock owns the directory as well */
	assert_int_equal(rundir_share(&shared, 20, dup(rundir_lock_fd(d)), NULL), 0);
	rundir_release(d);
	assert_int_equal(rundir_take(&d, 20, NULL), -EBUSY);
	rundir_release(shared);
	assert_int_equal(rundir_take(&d, 20, NULL), 0);
	close(fd);
	again = rundir_open_journal(d, NULL);
	assert_true(again >= 0);
	close(again);
	rundir_remove(d);
	assert_int_equal(access(run_path(path, sizeof(path), 20, NULL), F_OK), -1);
}

/* As long as anybody has the dead process's description (its rings do), the journal cannot be had. */
static void journal_waits_for_the_last_io(void **state)
{
	struct rundir *d;
	int fd, again, status;
	pid_t pid;

	assert_int_equal(rundir_create(&d, 21, NULL), 0);
	fd = make_journal(d, false);
	pid = fork();
	if (!pid) {
		usleep(400000);
		_exit(0);
	}
	close(fd);
	again = rundir_open_journal(d, NULL);
	assert_true(again >= 0);
	assert_int_equal(waitpid(pid, &status, WNOHANG), pid); /* not before it was gone */
	close(again);
	rundir_remove(d);
}

/* A journal with records survives the next device of that number; an empty one does not. */
static void journal_is_not_overwritten(void **state)
{
	struct rundir *d;
	char kept[300], path[400];
	struct stat st;

	for (int records = 0; records < 2; records++) {
		assert_int_equal(rundir_create(&d, 22, NULL), 0);
		close(make_journal(d, records));
		assert_int_equal(rundir_has_records(d), records);
		assert_int_equal(stat(run_path(path, sizeof(path), 22, "journal"), &st), 0);
		snprintf(kept, sizeof(kept), "%s/journal.22.%llu", root, (unsigned long long)st.st_ino);
		rundir_release(d);
		assert_int_equal(rundir_create(&d, 22, NULL), 0);
		assert_int_equal(access(path, F_OK), -1);
		assert_int_equal(access(kept, F_OK), records ? 0 : -1);
		rundir_remove(d);
	}
	unlink(kept);
}

/* A journal of the image file 1, 77 in the directory of @id. */
static int make_journal_of_77(struct rundir *d, bool records)
{
	int fd = make_journal(d, records);
	struct qcow2_journal j = { .mem = map(fd), .size = JOURNAL_SIZE, .dev = 1, .ino = 77 };

	qcow2_journal_format(&j);
	((uint64_t *)j.mem)[8] = records;
	munmap(j.mem, JOURNAL_SIZE);
	return fd;
}

/* What a device leaves when it goes is found by its image, once; an empty journal is not left. */
static void journal_is_kept_for_its_image(void **state)
{
	struct qcow2_error err = { "" };
	char path[300], again[300];
	struct rundir *d;
	int id, fd;

	assert_int_equal(rundir_create(&d, 23, NULL), 0);
	close(make_journal_of_77(d, false));
	assert_false(rundir_retire(d, &err));
	assert_string_equal(err.text, "");
	assert_false(rundir_find_kept(1, 77, path, sizeof(path), &id));

	assert_int_equal(rundir_create(&d, 23, NULL), 0);
	fd = make_journal_of_77(d, true);
	assert_false(rundir_find_kept(1, 77, path, sizeof(path), &id)); /* the device lives */
	assert_true(rundir_retire(d, &err));
	assert_int_equal(access(run_path(path, sizeof(path), 23, NULL), F_OK), -1);
	assert_false(rundir_find_kept(1, 78, path, sizeof(path), &id));
	assert_false(rundir_find_kept(2, 77, path, sizeof(path), &id));
	assert_true(rundir_find_kept(1, 77, path, sizeof(path), &id));
	assert_int_equal(id, -1);
	assert_non_null(strstr(err.text, path));
	close(fd);
	fd = rundir_open_kept(path, NULL);
	assert_true(fd >= 0);

	/* it is named in the directory of the next device as well, until that works */
	assert_int_equal(rundir_create(&d, 24, NULL), 0);
	assert_int_equal(rundir_name_journal(d, fd, NULL), 0);
	assert_true(rundir_has_records(d));
	rundir_remove(d);
	assert_true(rundir_find_kept(1, 77, again, sizeof(again), &id));
	assert_string_equal(again, path);
	unlink(path);
	assert_int_equal(rundir_open_kept(path, NULL), -ESTALE);
	close(fd);
}

/* Who waited for a kept journal that somebody else used up has nothing. */
static void kept_journal_that_is_gone(void **state)
{
	struct rundir *d;
	char path[300];
	int id, fd;

	assert_int_equal(rundir_create(&d, 25, NULL), 0);
	fd = make_journal_of_77(d, true);
	rundir_retire(d, NULL);
	assert_true(rundir_find_kept(1, 77, path, sizeof(path), &id));
	if (!fork()) {
		usleep(300000);
		unlink(path);
		_exit(0);
	}
	close(fd);
	assert_int_equal(rundir_open_kept(path, NULL), -ESTALE);
	wait(NULL);
}

/* A device that lost its processes still has its journal. */
static void journal_of_a_dead_device(void **state)
{
	struct rundir *d;
	char path[300];
	int id;

	assert_int_equal(rundir_create(&d, 26, NULL), 0);
	close(make_journal_of_77(d, true));
	rundir_release(d);
	assert_true(rundir_find_kept(1, 77, path, sizeof(path), &id));
	assert_int_equal(id, 26);
	assert_int_equal(rundir_take(&d, 26, NULL), 0);
	rundir_remove(d);
	assert_false(rundir_find_kept(1, 77, path, sizeof(path), &id));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(write_and_read),
		cmocka_unit_test(lives_until_killed),
		cmocka_unit_test(create_takes_over_the_dead),
		cmocka_unit_test(create_waits_for_a_remover),
		cmocka_unit_test(lists_sorted),
		cmocka_unit_test(damaged_state),
		cmocka_unit_test(not_utf8),
		cmocka_unit_test(journal_has_its_memory),
		cmocka_unit_test(journal_is_found_again),
		cmocka_unit_test(journal_waits_for_the_last_io),
		cmocka_unit_test(journal_is_not_overwritten),
		cmocka_unit_test(journal_is_kept_for_its_image),
		cmocka_unit_test(kept_journal_that_is_gone),
		cmocka_unit_test(journal_of_a_dead_device),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}

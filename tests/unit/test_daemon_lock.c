// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * test_daemon_lock.c - our image locks against QEMU's own programs, in both directions: the same bytes, the
 * same conflicts, and a message that names the holder. And: what image_open_fd() refuses.
 */
#include "daemon/lock.h"
#include "qemu_img.h"
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>

static char image_path[2][96];

static const char *in_scratch(const char *name)
{
	static unsigned turn;
	char *path = image_path[turn++ % 2];

	snprintf(path, sizeof(image_path[0]), "%s/%s", scratch_dir, name);
	return path;
}

/* ---- which lock bytes does a descriptor hold: "100 101 103 201 203" ---- */

static void collect(const char *fdinfo, uint64_t ino, bool *bytes)
{
	unsigned long first, last, b;
	uint64_t lock_ino;
	char line[256];
	FILE *f = fopen(fdinfo, "re");

	if (!f)
		return;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "lock: %*d: OFDLCK ADVISORY READ %*d %*x:%*x:%" SCNu64 " %lu %lu", &lock_ino,
			   &first, &last) == 3 &&
		    lock_ino == ino)
			for (b = first; b <= last && b < 300; b++)
				bytes[b] = true;
	fclose(f);
}

static const char *held_by(pid_t pid, const char *name)
{
	static char text[200];
	bool bytes[300] = { false };
	struct stat st;
	struct dirent *de;
	char path[320];
	int b, n = 0;
	DIR *dir;

	assert_int_equal(stat(in_scratch(name), &st), 0);
	snprintf(path, sizeof(path), "/proc/%d/fdinfo", pid);
	dir = opendir(path);
	assert_non_null(dir);
	while ((de = readdir(dir))) {
		snprintf(path, sizeof(path), "/proc/%d/fdinfo/%s", pid, de->d_name);
		if (de->d_name[0] != '.')
			collect(path, st.st_ino, bytes);
	}
	closedir(dir);
	text[0] = '\0';
	for (b = 0; b < 300; b++)
		if (bytes[b])
			n += snprintf(text + n, sizeof(text) - (size_t)n, "%s%d", n ? " " : "", b);
	return text;
}

/* ---- QEMU programs that keep an image open ---- */

struct keeper {
	pid_t pid;
	int in; /* closing it ends qemu-io */
};

/* qemu-io that has the image open (its locks can be seen) and waits for a command. */
static struct keeper keep_open(const char *name, const char *arg)
{
	struct keeper k;
	int p[2], tries;

	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	k.pid = fork();
	assert_true(k.pid >= 0);
	if (!k.pid) {
		dup2(p[0], 0);
		dup2(open("/dev/null", O_WRONLY | O_CLOEXEC), 1);
		execlp("qemu-io", "qemu-io", arg, in_scratch(name), NULL);
		_exit(127);
	}
	close(p[0]);
	k.in = p[1];
	for (tries = 0; tries < 500 && !*held_by(k.pid, name); tries++)
		usleep(20000);
	usleep(50000); /* from "some" to "all" */
	return k;
}

static void let_go(struct keeper k)
{
	close(k.in);
	waitpid(k.pid, NULL, 0);
}

static int lock_as(const char *name, bool read_only, enum lock_role role, struct qcow2_error *err)
{
	int fd, ret;

	err->text[0] = '\0';
	fd = image_open_fd(in_scratch(name), read_only, NULL, err);
	assert_true(fd >= 0);
	ret = image_lock(fd, role, in_scratch(name), err);
	if (ret) {
		close(fd);
		return ret;
	}
	return fd;
}

static int setup(void **state)
{
	if (scratch_setup(state))
		return -1;
	return sh("command -v qemu-io") ||
	       sh("qemu-img create -f qcow2 a.qcow2 1M && qemu-img create -f raw base.raw 1M &&"
		  "qemu-img create -f qcow2 base.qcow2 1M &&"
		  "qemu-img create -f qcow2 -b base.raw -F raw over-raw.qcow2 &&"
		  "qemu-img create -f qcow2 -b base.qcow2 -F qcow2 over.qcow2");
}

/* ---- the same bytes ---- */

static void assert_same_bytes(const char *image, const char *arg, const char *file, bool read_only,
			      enum lock_role role, const char *more)
{
	struct qcow2_error err;
	struct keeper k = keep_open(image, arg);
	char theirs[200], want[200];
	int fd;

	snprintf(theirs, sizeof(theirs), "%s", held_by(k.pid, file));
	let_go(k);
	snprintf(want, sizeof(want), "%s%s", theirs, more);
	assert_true(strlen(theirs) >= 3);
	fd = lock_as(file, read_only, role, &err);
	assert_true(fd >= 0);
	assert_string_equal(held_by(getpid(), file), want);
	close(fd);
	assert_string_equal(held_by(getpid(), file), "");
}

static void same_bytes_as_qemu(void **state)
{
	assert_same_bytes("a.qcow2", "-tnone", "a.qcow2", false, LOCK_IMAGE_RW, "");
	assert_same_bytes("a.qcow2", "-r", "a.qcow2", true, LOCK_IMAGE_RO, "");
	assert_same_bytes("over.qcow2", "-tnone", "base.qcow2", true, LOCK_BACKING_QCOW2, "");
	/* here we are stricter than QEMU: see FORMAT.md */
	assert_same_bytes("over-raw.qcow2", "-tnone", "base.raw", true, LOCK_BACKING_RAW, " 201 203");
}

/* ---- we hold, QEMU asks ---- */

#define REFUSED "grep -q 'Failed to get'"

static void writer_keeps_qemu_out(void **state)
{
	struct qcow2_error err;
	int fd = lock_as("a.qcow2", false, LOCK_IMAGE_RW, &err);

	assert_true(fd >= 0);
	assert_int_not_equal(sh("qemu-img info a.qcow2 2>info.err"), 0);
	assert_int_equal(sh(REFUSED " info.err"), 0);
	assert_int_equal(sh("qemu-img info -U a.qcow2"), 0);
	assert_int_not_equal(sh("qemu-io -c quit a.qcow2 2>rw.err"), 0);
	assert_int_equal(sh(REFUSED " rw.err"), 0);
	assert_int_not_equal(sh("qemu-io -r -c quit a.qcow2 2>ro.err"), 0);
	assert_int_equal(sh(REFUSED " ro.err"), 0);
	close(fd);
	assert_int_equal(sh("qemu-io -c quit a.qcow2"), 0);
}

static void readers_coexist(void **state)
{
	struct qcow2_error err;
	int ours = lock_as("a.qcow2", true, LOCK_IMAGE_RO, &err), second;

	assert_true(ours >= 0);
	assert_int_equal(sh("qemu-img info a.qcow2"), 0);
	assert_int_equal(sh("qemu-io -r -c quit a.qcow2"), 0);
	assert_int_not_equal(sh("qemu-io -c quit a.qcow2 2>rw.err"), 0);
	assert_int_equal(sh(REFUSED " rw.err"), 0);
	second = lock_as("a.qcow2", true, LOCK_INSPECT, &err);
	assert_true(second >= 0);
	close(second);
	close(ours);
}

static void backing_is_protected(void **state)
{
	struct qcow2_error err;
	int raw = lock_as("base.raw", true, LOCK_BACKING_RAW, &err);
	int qcow2 = lock_as("base.qcow2", true, LOCK_BACKING_QCOW2, &err);

	assert_true(raw >= 0 && qcow2 >= 0);
	assert_int_not_equal(sh("qemu-io -f raw -c quit base.raw 2>raw.err"), 0);
	assert_int_equal(sh(REFUSED " raw.err"), 0);
	assert_int_not_equal(sh("qemu-io -c quit base.qcow2 2>qcow2.err"), 0);
	assert_int_equal(sh(REFUSED " qcow2.err"), 0);
	/* several overlays on one base: as in QEMU */
	assert_int_equal(sh("qemu-io -c quit over.qcow2 && qemu-io -c quit over-raw.qcow2"), 0);
	close(raw);
	close(qcow2);
}

/* ---- QEMU holds, we ask ---- */

static void assert_refused(const char *name, bool read_only, enum lock_role role, const char *how, pid_t pid)
{
	struct qcow2_error err;
	char want[128];

	assert_int_equal(lock_as(name, read_only, role, &err), -EBUSY);
	snprintf(want, sizeof(want), "/%s: is locked: in use for %s (pid %d)", name, how, pid);
	if (!strstr(err.text, want))
		print_error("got \"%s\", want \"%s\"\n", err.text, want);
	assert_non_null(strstr(err.text, want));
	assert_string_equal(held_by(getpid(), name), "");
}

static void qemu_writer_is_named(void **state)
{
	struct keeper k = keep_open("a.qcow2", "-tnone");

	assert_refused("a.qcow2", false, LOCK_IMAGE_RW, "writing by qemu-io", k.pid);
	assert_refused("a.qcow2", true, LOCK_IMAGE_RO, "writing by qemu-io", k.pid);
	assert_refused("a.qcow2", true, LOCK_INSPECT, "writing by qemu-io", k.pid);
	assert_refused("a.qcow2", true, LOCK_BACKING_QCOW2, "writing by qemu-io", k.pid);
	let_go(k);
}

static void qemu_reader_is_named(void **state)
{
	struct keeper k = keep_open("a.qcow2", "-r");
	struct qcow2_error err;
	int fd;

	assert_refused("a.qcow2", false, LOCK_IMAGE_RW, "reading by qemu-io", k.pid);
	fd = lock_as("a.qcow2", true, LOCK_IMAGE_RO, &err);
	assert_true(fd >= 0);
	close(fd);
	let_go(k);
}

static void qemu_nbd_is_named(void **state)
{
	int tries, pid = 0, fd;
	struct qcow2_error err;
	char users[200];
	FILE *f;

	assert_int_equal(sh("qemu-nbd --fork -t -f qcow2 -k \"$PWD\"/nbd.sock --pid-file=nbd.pid a.qcow2"),
			 0);
	f = fopen(in_scratch("nbd.pid"), "re");
	assert_non_null(f);
	assert_int_equal(fscanf(f, "%d", &pid), 1);
	fclose(f);
	assert_refused("a.qcow2", false, LOCK_IMAGE_RW, "writing by qemu-nbd", pid);
	fd = image_open_fd(in_scratch("a.qcow2"), true, NULL, &err);
	assert_true(image_lock_users(fd, users, sizeof(users)));
	assert_non_null(strstr(users, "qemu-nbd (pid "));
	assert_non_null(strstr(users, "for writing"));
	kill(pid, SIGTERM);
	for (tries = 0; tries < 500 && image_lock_users(fd, users, sizeof(users)); tries++)
		usleep(20000);
	assert_string_equal(users, "");
	close(fd);
}

static void two_descriptions_of_one_process(void **state)
{
	struct qcow2_error err;
	int fd = lock_as("a.qcow2", false, LOCK_IMAGE_RW, &err);

	assert_true(fd >= 0);
	assert_int_equal(lock_as("a.qcow2", true, LOCK_IMAGE_RO, &err), -EBUSY);
	assert_non_null(strstr(err.text, "test_daemon_loc (pid ")); /* 15 characters of the name */
	assert_string_equal(held_by(getpid(), "a.qcow2"), "100 101 103 201 203");
	close(fd);
}

/* ---- image_open_fd() ---- */

static void assert_open_fails(const char *path, int code, const char *why)
{
	struct qcow2_error err = { "" };

	assert_int_equal(image_open_fd(path, true, NULL, &err), code);
	if (!strstr(err.text, why))
		print_error("got \"%s\", want \"%s\"\n", err.text, why);
	assert_non_null(strstr(err.text, why));
}

static void only_files_and_block_devices(void **state)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", in_scratch("socket"));
	assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	close(fd);
	assert_int_equal(sh("mkfifo fifo && ln -s nowhere dangling && ln -s loop loop && mkdir 'a\tb'"), 0);
	assert_open_fails(scratch_dir, -EINVAL, "is a directory");
	assert_open_fails(in_scratch("fifo"), -EINVAL, "is a fifo"); /* and does not wait for a writer */
	assert_open_fails(in_scratch("socket"), -EINVAL, "is a socket");
	assert_open_fails("/dev/null", -EINVAL, "/dev/null: is a character device");
	assert_open_fails(in_scratch("missing"), -ENOENT, "missing: cannot be opened: No such file");
	assert_open_fails(in_scratch("dangling"), -ENOENT, "No such file");
	assert_open_fails(in_scratch("loop"), -ELOOP, "cannot be opened");
	assert_open_fails(in_scratch("a.qcow2/x"), -ENOTDIR, "cannot be opened");
	assert_open_fails(in_scratch("a\tb"), -EINVAL, "a\\x09b: is a directory");
}

static void open_flags(void **state)
{
	struct qcow2_error err = { "" };
	bool direct = false;
	int fd = image_open_fd(in_scratch("a.qcow2"), false, &direct, &err), flags;

	assert_true(fd >= 0);
	flags = fcntl(fd, F_GETFL);
	assert_int_equal(flags & O_ACCMODE, O_RDWR);
	assert_int_equal(flags & O_NONBLOCK, 0);
	assert_int_equal(!!(flags & O_DIRECT), direct);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	close(fd);
	fd = image_open_fd(in_scratch("a.qcow2"), true, NULL, &err);
	assert_true(fd >= 0);
	assert_int_equal(fcntl(fd, F_GETFL) & (O_ACCMODE | O_DIRECT | O_NONBLOCK), O_RDONLY);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(same_bytes_as_qemu),
		cmocka_unit_test(writer_keeps_qemu_out),
		cmocka_unit_test(readers_coexist),
		cmocka_unit_test(backing_is_protected),
		cmocka_unit_test(qemu_writer_is_named),
		cmocka_unit_test(qemu_reader_is_named),
		cmocka_unit_test(qemu_nbd_is_named),
		cmocka_unit_test(two_descriptions_of_one_process),
		cmocka_unit_test(only_files_and_block_devices),
		cmocka_unit_test(open_flags),
	};

	return cmocka_run_group_tests(tests, setup, scratch_teardown);
}

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * rundir.c - one directory per device under /run/ublk-qcow2.
 *
 * Invariants:
 *  - Whoever holds the lock on `lock` owns the directory; the kernel takes it away with the process, so
 *    "is it alive" needs no pid, and a reused pid cannot lie. Readers only ask (F_OFD_GETLK takes nothing).
 *  - A directory is removed by its owner only, `lock` last. A waiter may end up with a lock on a file that is
 *    gone by then: after taking it one looks whether the path still names that file, else starts over.
 *  - `state` appears complete or not at all (written beside, then renamed).
 *  - A journal with records is all that is left of somebody's writes: nobody overwrites or removes one that
 * is not theirs. It is moved out of the way of the next device with that number, and waits beside the
 * directories for the next device of its image.
 *
 * A crash leaves the directory with a free lock: `list` shows it as failed, `recover` brings its device back,
 * `detach` removes it. /run is gone after a reboot, and so are the devices.
 */
#include "rundir.h"
#include "log.h"
#include "message.h"
#include "settings.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <systemd/sd-json.h>
#include <unistd.h>

#define ROOT "/run/ublk-qcow2"
#define LOCK_TRIES 100
#define LOCK_PAUSE_US 50000
#define JOURNAL_TRIES 600
#define MAX_ID 0xfffff
#define KEPT "journal." /* ID.INODE: a journal whose device is gone */

struct rundir {
	int id;
	int dir; /* descriptor of the directory */
	int lock;
};

static const char *root(void)
{
	const char *dir = secure_getenv("UBLK_QCOW2_RUNDIR");

	return dir && dir[0] ? dir : ROOT;
}

const char *run_path(char *buf, size_t size, int id, const char *name)
{
	snprintf(buf, size, "%s/%d%s%s", root(), id, name ? "/" : "", name ? name : "");
	return buf;
}

uint64_t run_node(int id)
{
	struct stat st;
	char path[64];

	/* sysfs numbers its directories once and for all */
	snprintf(path, sizeof(path), "/sys/class/ublk-char/ublkc%d/", id);
	return stat(path, &st) == 0 ? st.st_ino : 0;
}

void run_state_clear(struct run_state *st)
{
	free(st->device);
	free(st->image);
	free(st->engine);
	memset(st, 0, sizeof(*st));
}

static int fail(struct qcow2_error *err, int code, int id, const char *what)
{
	char path[300];

	return qcow2_fail(err, code, "%s: %s: %s", run_path(path, sizeof(path), id, NULL), what,
			  strerror(-code));
}

/* ---- the lock ---- */

static int lock_op(int fd, int cmd, struct flock *fl)
{
	*fl = (struct flock){ .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 };
	return fcntl(fd, cmd, fl) < 0 ? -errno : 0;
}

/* Take the lock and make sure that the path still names the file it is on. -EAGAIN: try again. */
static int try_lock(const struct rundir *d)
{
	struct stat mine, now;
	struct flock fl;
	int ret = lock_op(d->lock, F_OFD_SETLK, &fl);
	char path[300];

	if (ret)
		return ret == -EACCES ? -EAGAIN : ret;
	if (fstat(d->lock, &mine) < 0)
		return -errno;
	if (stat(run_path(path, sizeof(path), d->id, "lock"), &now) < 0)
		return errno == ENOENT ? -EAGAIN : -errno;
	return mine.st_ino == now.st_ino && mine.st_dev == now.st_dev ? 0 : -EAGAIN;
}

static void close_fds(struct rundir *d)
{
	if (d->lock >= 0)
		close(d->lock);
	if (d->dir >= 0)
		close(d->dir);
	d->lock = d->dir = -1;
}

/* One attempt: open (@make: create) the directory and its lock file, lock. */
static int attempt(struct rundir *d, bool make)
{
	char path[300];
	int ret;

	run_path(path, sizeof(path), d->id, NULL);
	if (make &&
	    ((mkdir(root(), 0755) < 0 && errno != EEXIST) || (mkdir(path, 0700) < 0 && errno != EEXIST)))
		return -errno;
	d->dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (d->dir < 0)
		return errno == ENOENT && make ? -EAGAIN : -errno;
	d->lock = openat(d->dir, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	ret = d->lock < 0 ? -errno : try_lock(d);
	if (ret)
		close_fds(d);
	return ret == -ENOENT && make ? -EAGAIN : ret; /* removed under our hands */
}

static int acquire(struct rundir **out, int id, bool make, struct qcow2_error *err)
{
	struct rundir *d = malloc(sizeof(*d));
	int tries, ret = -EAGAIN;

	if (!d)
		return fail(err, -ENOMEM, id, "cannot be used");
	*d = (struct rundir){ .id = id, .dir = -1, .lock = -1 };
	/* whoever removes a dead directory holds it briefly; a process that ends lets go of it last */
	for (tries = 0; ret == -EAGAIN && tries < (make ? LOCK_TRIES : 1); tries++) {
		if (tries)
			usleep(LOCK_PAUSE_US);
		ret = attempt(d, make);
	}
	if (!ret) {
		*out = d;
		return 0;
	}
	free(d);
	if (ret == -EAGAIN)
		return fail(err, -EBUSY, id, "belongs to a running process");
	return ret == -ENOENT ? ret : fail(err, ret, id, "cannot be used");
}

static void empty(struct rundir *d)
{
	unlinkat(d->dir, "state", 0);
	unlinkat(d->dir, "state.new", 0);
	unlinkat(d->dir, "control", 0);
	unlinkat(d->dir, "supervisor", 0);
	unlinkat(d->dir, "dump", 0);
	unlinkat(d->dir, "lower", 0);
	unlinkat(d->dir, "name", 0);
}

/* Move the journal out of the directory, to @path. False: there was none. */
static bool keep_journal(struct rundir *d, char *path, size_t size)
{
	struct stat st;

	if (fstatat(d->dir, "journal", &st, AT_SYMLINK_NOFOLLOW) < 0)
		return false;
	snprintf(path, size, "%s/" KEPT "%d.%llu", root(), d->id, (unsigned long long)st.st_ino);
	return renameat(d->dir, "journal", AT_FDCWD, path) == 0;
}

int rundir_create(struct rundir **out, int id, struct qcow2_error *err)
{
	int ret = acquire(out, id, true, err);
	char kept[300];

	if (ret)
		return ret;
	empty(*out);
	if (!rundir_has_records(*out))
		unlinkat((*out)->dir, "journal", 0);
	else if (keep_journal(*out, kept, sizeof(kept)))
		log_line(LOG_WARNING, "the journal of an earlier /dev/ublkb%d is now %s", id, kept);
	return 0;
}

int rundir_take(struct rundir **out, int id, struct qcow2_error *err)
{
	return acquire(out, id, false, err);
}

void rundir_release(struct rundir *d)
{
	if (!d)
		return;
	close_fds(d);
	free(d);
}

void rundir_remove(struct rundir *d)
{
	char path[300];

	if (!d)
		return;
	empty(d);
	unlinkat(d->dir, "journal", 0);
	unlinkat(d->dir, "lock", 0);
	rmdir(run_path(path, sizeof(path), d->id, NULL));
	rundir_release(d);
}

bool rundir_retire(struct rundir *d, struct qcow2_error *remark)
{
	bool lacks = d && rundir_has_records(d);
	char kept[300];

	if (lacks && !keep_journal(d, kept, sizeof(kept))) {
		rundir_release(d); /* better a directory without a device than its journal lost */
		return true;
	}
	if (lacks)
		qcow2_fail(remark, 0,
			   "its image lacks the last changes: they are in %s, and the next attach applies "
			   "them, if nothing else changes the image before",
			   kept);
	rundir_remove(d);
	return lacks;
}

int rundir_lock_fd(const struct rundir *d)
{
	return d->lock;
}

int rundir_share(struct rundir **out, int id, int lock, struct qcow2_error *err)
{
	struct rundir *d = malloc(sizeof(*d));
	char path[300];
	int ret;

	if (!d) {
		close(lock);
		return fail(err, -ENOMEM, id, "cannot be used");
	}
	*d = (struct rundir){ .id = id, .lock = lock };
	d->dir =
		open(run_path(path, sizeof(path), id, NULL), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (d->dir < 0) {
		ret = fail(err, -errno, id, "cannot be used");
		rundir_release(d);
		return ret;
	}
	*out = d;
	return 0;
}

int rundir_open_dump(struct rundir *d)
{
	int fd = openat(d->dir, "dump", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);

	return fd < 0 ? -errno : fd;
}

/* ---- the journal ---- */

int rundir_new_journal(size_t size, struct qcow2_error *err)
{
	struct flock fl;
	int fd, ret;

	if (mkdir(root(), 0755) < 0 && errno != EEXIST)
		return qcow2_fail(err, -errno, "%s: %s", root(), strerror(errno));
	fd = open(root(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0)
		return qcow2_fail(err, -errno, "%s: journal: %s", root(), strerror(errno));
	ret = -posix_fallocate(fd, 0, (off_t)size); /* a hole that cannot be filled later would be SIGBUS */
	if (!ret)
		ret = lock_op(fd, F_OFD_SETLK, &fl);
	if (!ret)
		return fd;
	close(fd);
	return qcow2_fail(err, ret, "%s: journal: %s", root(), strerror(-ret));
}

int rundir_name_journal(struct rundir *d, int fd, struct qcow2_error *err)
{
	char path[40];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (linkat(AT_FDCWD, path, d->dir, "journal", AT_SYMLINK_FOLLOW) < 0)
		return fail(err, -errno, d->id, "journal");
	return 0;
}

/* Take the lock of a journal once whoever has it lets go, or -EBUSY. */
static int lock_journal(int fd)
{
	struct flock fl;
	int ret = -EAGAIN;

	for (int tries = 0; ret == -EAGAIN && tries < JOURNAL_TRIES; tries++) {
		if (tries)
			usleep(LOCK_PAUSE_US);
		ret = lock_op(fd, F_OFD_SETLK, &fl);
		if (ret == -EACCES)
			ret = -EAGAIN;
	}
	return ret == -EAGAIN ? -EBUSY : ret;
}

int rundir_open_journal(struct rundir *d, struct qcow2_error *err)
{
	int fd = openat(d->dir, "journal", O_RDWR | O_CLOEXEC | O_NOFOLLOW), ret;

	if (fd < 0)
		return errno == ENOENT ? -ENOENT : fail(err, -errno, d->id, "journal");
	ret = lock_journal(fd);
	if (!ret)
		return fd;
	close(fd);
	if (ret == -EBUSY)
		return qcow2_fail(err, ret, "/dev/ublkb%d: I/O of its dead process has not ended yet", d->id);
	return fail(err, ret, d->id, "journal");
}

/* Whether the journal @name below @dir has records that would be applied, to the image @of if that is not NULL. */
static bool has_records(int dir, const char *name, const struct qcow2_journal *of)
{
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	struct qcow2_journal j = { .mem = MAP_FAILED };
	bool live = !of; /* what cannot be looked at is kept */
	struct stat st;

	if (fd < 0)
		return !of && errno != ENOENT;
	if (of)
		j = *of;
	j.mem = MAP_FAILED;
	if (fstat(fd, &st) == 0) {
		j.size = (uint64_t)st.st_size;
		j.mem = mmap(NULL, j.size, PROT_READ, MAP_SHARED, fd, 0);
	}
	close(fd);
	if (j.mem == MAP_FAILED)
		return live;
	live = (of ? qcow2_journal_of(&j) : qcow2_journal_live(&j)) && !qcow2_journal_lost(&j);
	munmap(j.mem, j.size);
	return live;
}

bool rundir_has_records(struct rundir *d)
{
	return has_records(d->dir, "journal", NULL);
}

/* ---- state ---- */

static const char *const phases[] = {
	[RUN_LIVE] = "live", [RUN_RECOVERING] = "recovering", [RUN_FAILED] = "failed"
};

const char *run_phase_name(enum run_phase phase)
{
	return phases[phase];
}

static int state_to_json(const struct run_state *st, sd_json_variant **v)
{
	int ret = sd_json_buildo(v, SD_JSON_BUILD_PAIR_INTEGER("id", st->id),
				 SD_JSON_BUILD_PAIR_INTEGER("pid", st->pid),
				 SD_JSON_BUILD_PAIR_UNSIGNED("size", st->size),
				 SD_JSON_BUILD_PAIR_BOOLEAN("read_only", st->read_only),
				 SD_JSON_BUILD_PAIR_BOOLEAN("zero_copy", st->zero_copy),
				 SD_JSON_BUILD_PAIR_BOOLEAN("direct_io", st->direct_io),
				 SD_JSON_BUILD_PAIR_UNSIGNED("queues", st->queues),
				 SD_JSON_BUILD_PAIR_UNSIGNED("depth", st->depth),
				 SD_JSON_BUILD_PAIR_UNSIGNED("image_dev", st->image_dev),
				 SD_JSON_BUILD_PAIR_UNSIGNED("image_ino", st->image_ino),
				 SD_JSON_BUILD_PAIR_UNSIGNED("node", st->node),
				 SD_JSON_BUILD_PAIR_INTEGER("supervisor", st->supervisor),
				 SD_JSON_BUILD_PAIR_STRING("phase", phases[st->phase]),
				 SD_JSON_BUILD_PAIR_UNSIGNED("restarts", st->restarts));
	sd_json_variant *options = NULL;

	if (ret >= 0)
		ret = json_put_name(v, "device", st->device ? st->device : "");
	if (ret >= 0)
		ret = json_put_name(v, "image", st->image ? st->image : "");
	if (ret >= 0)
		ret = json_put_name(v, "engine", st->engine ? st->engine : "");
	if (ret >= 0)
		ret = settings_to_json(&st->opt, &options);
	if (ret >= 0)
		ret = sd_json_variant_set_field(v, "options", options);
	sd_json_variant_unref(options);
	return ret < 0 ? ret : 0;
}

/* Write all of @v to @fd, which it closes. */
static int dump(sd_json_variant *v, int fd)
{
	FILE *f = fdopen(fd, "w");
	int ret;

	if (!f) {
		ret = -errno;
		close(fd);
		return ret;
	}
	ret = sd_json_variant_dump(v, SD_JSON_FORMAT_NEWLINE, f, NULL);
	if (ferror(f))
		ret = -EIO;
	if (fclose(f) && ret >= 0)
		ret = -errno;
	return ret < 0 ? ret : 0;
}

int rundir_write(struct rundir *d, const struct run_state *st, struct qcow2_error *err)
{
	sd_json_variant *v = NULL;
	int ret, fd;

	ret = state_to_json(st, &v);
	if (!ret) {
		fd = openat(d->dir, "state.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		ret = fd < 0 ? -errno : dump(v, fd);
	}
	sd_json_variant_unref(v);
	if (!ret && renameat(d->dir, "state.new", d->dir, "state") < 0)
		ret = -errno;
	return ret ? fail(err, ret, d->id, "state cannot be written") : 0;
}

/* ---- readers ---- */

static enum run_phase get_phase(sd_json_variant *v)
{
	sd_json_variant *f = sd_json_variant_by_key(v, "phase");
	enum run_phase phase = RUN_LIVE;

	for (unsigned i = 0; f && sd_json_variant_is_string(f) && i < sizeof(phases) / sizeof(*phases); i++)
		if (strcmp(phases[i], sd_json_variant_string(f)) == 0)
			phase = (enum run_phase)i;
	return phase;
}

static int state_from_json(sd_json_variant *v, int id, struct run_state *st)
{
	*st = (struct run_state){
		.id = id,
		.device = json_get_name(v, "device"),
		.image = json_get_name(v, "image"),
		.engine = json_get_name(v, "engine"),
		.pid = (pid_t)json_get_number(v, "pid"),
		.size = json_get_number(v, "size"),
		.read_only = json_get_bool(v, "read_only"),
		.zero_copy = json_get_bool(v, "zero_copy"),
		.direct_io = json_get_bool(v, "direct_io"),
		.queues = (unsigned)json_get_number(v, "queues"),
		.depth = (unsigned)json_get_number(v, "depth"),
		.image_dev = json_get_number(v, "image_dev"),
		.image_ino = json_get_number(v, "image_ino"),
		.node = json_get_number(v, "node"),
		.supervisor = (pid_t)json_get_number(v, "supervisor"),
		.phase = get_phase(v),
		.restarts = (unsigned)json_get_number(v, "restarts"),
	};
	settings_from_json(sd_json_variant_by_key(v, "options"), &st->opt);
	if (!st->device || !st->image || !st->engine) {
		run_state_clear(st);
		return -ENOMEM;
	}
	return 0;
}

/* A process that died between mkdir and its first state: what the number alone tells. */
static int state_unknown(int id, struct run_state *st)
{
	char device[32];

	snprintf(device, sizeof(device), "/dev/ublkb%d", id);
	*st = (struct run_state){
		.id = id, .device = strdup(device), .image = strdup(""), .engine = strdup("")
	};
	if (!st->device || !st->image || !st->engine) {
		run_state_clear(st);
		return -ENOMEM;
	}
	return 0;
}

static int is_live(int id, bool *live)
{
	struct flock fl;
	char path[300];
	int fd = open(run_path(path, sizeof(path), id, "lock"), O_RDONLY | O_CLOEXEC | O_NOFOLLOW), ret;

	*live = false;
	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	ret = lock_op(fd, F_OFD_GETLK, &fl);
	close(fd);
	*live = !ret && fl.l_type != F_UNLCK;
	return ret;
}

int rundir_read(int id, struct run_state *st, bool *live, struct qcow2_error *err)
{
	sd_json_variant *v = NULL;
	char path[300];
	int ret;

	if (access(run_path(path, sizeof(path), id, NULL), F_OK) < 0)
		return errno == ENOENT ? -ENOENT : fail(err, -errno, id, "cannot be read");
	ret = is_live(id, live);
	if (ret)
		return fail(err, ret, id, "cannot be read");
	ret = sd_json_parse_file(NULL, run_path(path, sizeof(path), id, "state"), 0, &v, NULL, NULL);
	if (ret == -EACCES)
		return fail(err, ret, id, "cannot be read");
	ret = ret >= 0 && sd_json_variant_is_object(v) ? state_from_json(v, id, st) : state_unknown(id, st);
	sd_json_variant_unref(v);
	if (ret)
		return fail(err, ret, id, "cannot be read");
	if (!*live)
		st->phase = RUN_FAILED;
	return 0;
}

static int by_number(const void *a, const void *b)
{
	int x = *(const int *)a, y = *(const int *)b;

	return (x > y) - (x < y);
}

int rundir_list(int **ids, size_t *count, struct qcow2_error *err)
{
	DIR *dir = opendir(root());
	struct dirent *de;
	char *end;
	long id;
	int *more;

	*ids = NULL;
	*count = 0;
	if (!dir)
		return errno == ENOENT ? 0 : qcow2_fail(err, -errno, "%s: %s", root(), strerror(errno));
	while ((de = readdir(dir))) {
		id = strtol(de->d_name, &end, 10);
		if (de->d_name[0] < '0' || de->d_name[0] > '9' || *end || id > MAX_ID)
			continue;
		more = realloc(*ids, (*count + 1) * sizeof(**ids));
		if (!more) {
			closedir(dir);
			free(*ids);
			*ids = NULL;
			return qcow2_fail(err, -ENOMEM, "%s: %s", root(), strerror(ENOMEM));
		}
		*ids = more;
		more[(*count)++] = (int)id;
	}
	closedir(dir);
	if (*count)
		qsort(*ids, *count, sizeof(**ids), by_number);
	return 0;
}

/* ---- kept journals ---- */

/* The device whose directory has that name, if it is one and its processes are dead; else -1. */
static int dead_device(const char *name)
{
	char *end;
	long id = strtol(name, &end, 10);
	bool live;

	if (name[0] < '0' || name[0] > '9' || *end || id > MAX_ID || is_live((int)id, &live) || live)
		return -1;
	return (int)id;
}

bool rundir_find_kept(uint64_t dev, uint64_t ino, char *path, size_t size, int *id)
{
	const struct qcow2_journal of = { .dev = dev, .ino = ino };
	DIR *dir = opendir(root());
	struct dirent *de;
	bool found = false;
	char name[280];

	while (dir && !found && (de = readdir(dir))) {
		*id = dead_device(de->d_name);
		if (*id < 0 && strncmp(de->d_name, KEPT, strlen(KEPT)) != 0)
			continue;
		snprintf(name, sizeof(name), "%s%s", de->d_name, *id < 0 ? "" : "/journal");
		found = has_records(dirfd(dir), name, &of);
		snprintf(path, size, "%s/%s", root(), name);
	}
	if (dir)
		closedir(dir);
	return found;
}

int rundir_open_kept(const char *path, struct qcow2_error *err)
{
	int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW), ret;
	struct stat st = { .st_nlink = 0 };

	if (fd < 0)
		return qcow2_fail(err, errno == ENOENT ? -ESTALE : -errno, "%s: %s", path, strerror(errno));
	ret = lock_journal(fd);
	if (!ret && fstat(fd, &st) == 0 && st.st_nlink)
		return fd;
	close(fd);
	if (ret == -EBUSY)
		return qcow2_fail(err, ret, "%s: I/O of the process that wrote it has not ended yet", path);
	return qcow2_fail(err, ret ? ret : -ESTALE, "%s: %s", path, strerror(ret ? -ret : ESTALE));
}

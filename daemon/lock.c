// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * lock.c - QEMU's image locks, and opening image files without touching anything else.
 *
 * Owns: the table role -> lock bytes. Byte 100 + p says "I use permission p", byte 200 + p "nobody else
 * may use p". All locks are shared OFD locks, so that several holders of one byte coexist; a conflict is
 * found by asking (F_OFD_GETLK, which never looks at the asker's own description) whether an exclusive lock
 * on the *opposite* byte would be refused. Own bytes are taken before the others are tested: of two openers
 * that race at least one sees the other.
 *
 * OFD locks have no owner that the kernel would tell (their pid reads -1): the holder is whoever has a
 * descriptor with that lock line in /proc/PID/fdinfo. That search is for a message only, it decides nothing.
 * Locks vanish with the last descriptor of the description: a crash leaves none.
 */
#include "lock.h"
#include "qcow2/header.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum permission { PERM_READ, PERM_WRITE, PERM_WRITE_UNCHANGED, PERM_RESIZE, PERMISSIONS };
#define BIT(p) (1u << (p))
#define HELD_BYTE 100 /* + permission: somebody uses it */
#define UNSHARED_BYTE 200 /* + permission: nobody else may */

/* FORMAT.md "Image locks". A raw backing file is protected from writers, too, unlike in QEMU. */
static const struct role_bytes {
	const char *name;
	unsigned held, unshared;
} roles[] = {
	[LOCK_IMAGE_RW] = { "image", BIT(PERM_READ) | BIT(PERM_WRITE) | BIT(PERM_RESIZE),
			    BIT(PERM_WRITE) | BIT(PERM_RESIZE) },
	[LOCK_IMAGE_RO] = { "image-ro", BIT(PERM_READ), BIT(PERM_WRITE) | BIT(PERM_RESIZE) },
	[LOCK_BACKING_RAW] = { "backing-raw", BIT(PERM_READ), BIT(PERM_WRITE) | BIT(PERM_RESIZE) },
	[LOCK_BACKING_QCOW2] = { "backing-qcow2", BIT(PERM_READ), BIT(PERM_WRITE) | BIT(PERM_RESIZE) },
	[LOCK_INSPECT] = { "inspect", BIT(PERM_READ), BIT(PERM_WRITE) | BIT(PERM_RESIZE) },
};

const char *lock_role_name(enum lock_role role)
{
	return roles[role].name;
}

/* ---- who holds a lock ---- */

struct holder {
	pid_t pid;
	bool wanted; /* holds the byte asked for, or any image lock byte if none was asked for */
	bool writes; /* holds byte 101 */
};

static bool is_image_lock_byte(unsigned long byte)
{
	return (byte >= HELD_BYTE && byte < HELD_BYTE + PERMISSIONS) ||
	       (byte >= UNSHARED_BYTE && byte < UNSHARED_BYTE + PERMISSIONS);
}

/* One "lock:" line of an fdinfo file: "lock:\t1: OFDLCK ADVISORY  READ -1 fe:01:4711 100 101". */
static bool parse_lock_line(const char *line, uint64_t *ino, unsigned long *first, unsigned long *last)
{
	char type[16], end[24];

	if (sscanf(line, "lock:%*d: %15s %*s %*s %*d %*x:%*x:%" SCNu64 " %lu %23s", type, ino, first, end) !=
	    4)
		return false;
	if (strcmp(type, "OFDLCK") != 0 && strcmp(type, "POSIX") != 0)
		return false;
	*last = strcmp(end, "EOF") == 0 ? ~0ul : strtoul(end, NULL, 10);
	return true;
}

/* @byte 0: any byte of the protocol. */
static void judge_locks(FILE *fdinfo, uint64_t wanted_ino, unsigned byte, struct holder *h)
{
	unsigned long first, last;
	char line[256];
	uint64_t ino;

	h->wanted = h->writes = false;
	while (fgets(line, sizeof(line), fdinfo)) {
		if (!parse_lock_line(line, &ino, &first, &last) || ino != wanted_ino)
			continue;
		if (byte ? first <= byte && byte <= last : is_image_lock_byte(first))
			h->wanted = true;
		if (first <= HELD_BYTE + PERM_WRITE && HELD_BYTE + PERM_WRITE <= last)
			h->writes = true;
	}
}

/* The device in a lock line is the file system's, not always what stat() says (btrfs): ask the descriptor. */
static bool same_file(const char *pid, const char *fd, const struct stat *st)
{
	struct stat other;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%.16s/fd/%.16s", pid, fd);
	return stat(path, &other) == 0 && other.st_dev == st->st_dev && other.st_ino == st->st_ino;
}

static bool process_holds(const char *pid, const struct stat *st, unsigned byte, struct holder *h)
{
	char path[64];
	struct dirent *de;
	bool found = false;
	FILE *fdinfo;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%.16s/fdinfo", pid);
	dir = opendir(path);
	if (!dir)
		return false;
	while (!found && (de = readdir(dir))) {
		if (de->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%.16s/fdinfo/%.16s", pid, de->d_name);
		fdinfo = fopen(path, "re");
		if (!fdinfo)
			continue;
		judge_locks(fdinfo, st->st_ino, byte, h);
		fclose(fdinfo);
		found = h->wanted && same_file(pid, de->d_name, st);
	}
	closedir(dir);
	h->pid = (pid_t)atoi(pid);
	return found;
}

/* "qemu-nbd (pid 812)" */
static void name_process(pid_t pid, char *text, size_t size)
{
	char path[64], raw[64] = "", comm[128];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
	f = fopen(path, "re");
	if (f) {
		if (!fgets(raw, sizeof(raw), f))
			raw[0] = '\0';
		fclose(f);
	}
	raw[strcspn(raw, "\n")] = '\0';
	escape_name(comm, sizeof(comm), raw[0] ? raw : "?", raw[0] ? strlen(raw) : 1);
	snprintf(text, size, "%s (pid %d)", comm, (int)pid);
}

/* Call @each for every process that holds @byte of the file, until it returns false. */
static void for_each_holder(const struct stat *st, unsigned byte,
			    bool (*each)(void *ctx, const struct holder *h), void *ctx)
{
	struct holder h;
	struct dirent *de;
	bool more = true;
	DIR *proc = opendir("/proc");

	if (!proc)
		return;
	while (more && (de = readdir(proc)))
		if (de->d_name[0] >= '1' && de->d_name[0] <= '9' && process_holds(de->d_name, st, byte, &h))
			more = each(ctx, &h);
	closedir(proc);
}

static bool take_first(void *ctx, const struct holder *h)
{
	*(struct holder *)ctx = *h;
	return false;
}

struct user_list {
	char *text;
	size_t size;
};

static bool append_user(void *ctx, const struct holder *h)
{
	struct user_list *list = ctx;
	size_t used = strlen(list->text);
	char who[160];

	if (h->pid == getpid())
		return true;
	name_process(h->pid, who, sizeof(who));
	snprintf(list->text + used, list->size - used, "%s%s for %s", used ? ", " : "", who,
		 h->writes ? "writing" : "reading");
	return used + sizeof(who) < list->size;
}

bool image_lock_users(int fd, char *text, size_t size)
{
	struct user_list list = { text, size };
	struct stat st;

	text[0] = '\0';
	if (fstat(fd, &st) == 0)
		for_each_holder(&st, 0, append_user, &list);
	return text[0];
}

/* ---- taking ---- */

/* F_OFD_SETLK with F_RDLCK or F_UNLCK on one byte: 0 or -errno. */
static int set_byte(int fd, int type, int byte)
{
	struct flock fl = { .l_type = (short)type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };
	int ret;

	do
		ret = fcntl(fd, F_OFD_SETLK, &fl);
	while (ret < 0 && errno == EINTR);
	return ret < 0 ? -errno : 0;
}

static int set_bytes(int fd, int type, const struct role_bytes *r, int *byte)
{
	int p, ret = 0;

	for (p = 0; !ret && p < PERMISSIONS; p++) {
		if (r->held & BIT(p))
			ret = set_byte(fd, type, *byte = HELD_BYTE + p);
		if (!ret && r->unshared & BIT(p))
			ret = set_byte(fd, type, *byte = UNSHARED_BYTE + p);
	}
	return ret;
}

/* 0, -EAGAIN if another description has a lock on the byte, -errno. */
static int test_byte(int fd, int byte)
{
	struct flock fl = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };

	if (fcntl(fd, F_OFD_GETLK, &fl) < 0)
		return -errno;
	return fl.l_type == F_UNLCK ? 0 : -EAGAIN;
}

static int test_bytes(int fd, const struct role_bytes *r, int *byte)
{
	int p, ret = 0;

	/* first who uses what we do not share: that one is the more telling answer */
	for (p = 0; !ret && p < PERMISSIONS; p++)
		if (r->unshared & BIT(p))
			ret = test_byte(fd, *byte = HELD_BYTE + p);
	for (p = 0; !ret && p < PERMISSIONS; p++)
		if (r->held & BIT(p))
			ret = test_byte(fd, *byte = UNSHARED_BYTE + p);
	return ret;
}

static int busy(int fd, const char *file, int byte, struct qcow2_error *err)
{
	struct holder h = { 0 };
	struct stat st;
	char who[160];

	if (fstat(fd, &st) == 0)
		for_each_holder(&st, (unsigned)byte, take_first, &h);
	if (!h.pid)
		return qcow2_fail(err, -EBUSY, "%s: is locked: in use by another process", file);
	name_process(h.pid, who, sizeof(who));
	return qcow2_fail(err, -EBUSY, "%s: is locked: in use for %s by %s", file,
			  h.writes ? "writing" : "reading", who);
}

int image_lock(int fd, enum lock_role role, const char *path, struct qcow2_error *err)
{
	const struct role_bytes *r = &roles[role];
	int byte = 0, ignored, ret;
	char file[300];

	escape_name(file, sizeof(file), path, strlen(path));
	ret = set_bytes(fd, F_RDLCK, r, &byte);
	if (!ret)
		ret = test_bytes(fd, r, &byte);
	if (!ret)
		return 0;
	set_bytes(fd, F_UNLCK, r, &ignored);
	if (ret == -EAGAIN || ret == -EACCES)
		return busy(fd, file, byte, err);
	return qcow2_fail(err, ret, "%s: cannot be locked: %s", file, strerror(-ret));
}

/* ---- opening ---- */

static const char *type_name(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFDIR:
		return "a directory";
	case S_IFIFO:
		return "a fifo";
	case S_IFSOCK:
		return "a socket";
	case S_IFCHR:
		return "a character device";
	default:
		return "a special file";
	}
}

/* From here on O_NONBLOCK would only make io_uring give up where it should wait. */
static int make_blocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0 ? -errno : 0;
}

/* Open the file that the O_PATH descriptor @at already pins: no second path walk, no race. */
static int reopen(int at, int flags, bool *direct)
{
	char path[40];
	int fd, ret;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", at);
	fd = open(path, flags | (direct ? O_DIRECT : 0));
	if (direct)
		*direct = fd >= 0;
	if (fd < 0 && direct && errno == EINVAL)
		fd = open(path, flags);
	if (fd < 0)
		return -errno;
	ret = make_blocking(fd);
	if (ret) {
		close(fd);
		return ret;
	}
	return fd;
}

int image_open_fd(const char *path, bool read_only, bool *direct, struct qcow2_error *err)
{
	int flags = (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
	struct stat st;
	char file[300];
	int at, ret;

	escape_name(file, sizeof(file), path, strlen(path));
	/* O_PATH: looking at a character device or a fifo must not open it, that alone can have effects. */
	at = open(path, O_PATH | O_CLOEXEC);
	if (at < 0)
		return qcow2_fail(err, -errno, "%s: cannot be opened: %s", file, strerror(errno));
	if (fstat(at, &st) < 0) {
		ret = qcow2_fail(err, -errno, "%s: cannot be opened: %s", file, strerror(errno));
	} else if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
		ret = qcow2_fail(err, -EINVAL, "%s: is %s: only regular files and block devices are opened",
				 file, type_name(st.st_mode));
	} else {
		ret = reopen(at, flags, direct);
		if (ret < 0)
			qcow2_fail(err, ret, "%s: cannot be opened%s: %s", file,
				   read_only ? "" : " for writing", strerror(-ret));
	}
	close(at);
	return ret;
}

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * swap.c - finds out whether our device is swap space, and tells the kernel that such a process comes first.
 *
 * Who swaps on us waits for us, and takes what memory there is below the kernel's marks. What the kernel
 * allocates on our way to the image (a direct I/O's descriptor, a block of the file system) it then looks for
 * as for anybody, without waiting for I/O (memory.c), so in vain: every page that could be freed has to be
 * written by us. For a thread with a real-time policy it goes on to half of its reserve and does not keep
 * back what it holds against fragmentation (mm/page_alloc.c, ALLOC_MIN_RESERVE), and that is enough. Only
 * then: at a queue depth of some requests a thread that preempts whoever submits them costs a switch for
 * each.
 *
 * Hits of engine kernel are served in whatever process or kernel thread comes by, with the image's inode
 * locked, and no such thread has this policy. One that waits for memory there waits for pages on their way to
 * us, and we for the inode, to allocate a cluster for them. So meanwhile the daemon serves all (control.c).
 *
 * Devices are followed down through partitions, /sys/.../slaves, the files of loop devices and the devices of
 * btrfs. What cannot be followed (nbd, a ublk device of somebody else, a file system from nowhere) may be
 * ours: such threads then come first all the same, but hits are not given up for it.
 */
#include "swap.h"
#include "log.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define PRIORITY 1 /* the least */
#define MAX_LAYERS 16u
#define MAX_PASSES 8u /* over threads that come meanwhile */

/* ---- where it is ---- */

/* The device that the file @path of sysfs names; 0: none. */
static dev_t dev_in(const char *path)
{
	unsigned maj, min;
	FILE *f = fopen(path, "re");
	int n = f ? fscanf(f, "%u:%u", &maj, &min) : 0;

	if (f)
		fclose(f);
	return n == 2 ? makedev(maj, min) : 0;
}

static enum swap_use is_on(dev_t dev, dev_t ours, unsigned layers);
static enum swap_use file_is_on(const char *path, dev_t ours, unsigned layers);

/* Of the devices that the links in the folder @dir lead to. */
static enum swap_use any_is_on(const char *dir, dev_t ours, unsigned layers)
{
	enum swap_use most = SWAP_NOT, use;
	char path[PATH_MAX];
	struct dirent *e;
	DIR *d = opendir(dir);

	while (d && most != SWAP_OURS && (e = readdir(d))) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s/dev", dir, e->d_name);
		use = is_on(dev_in(path), ours, layers);
		if (use > most)
			most = use;
	}
	if (d)
		closedir(d);
	return most;
}

/* @name: the file of sysfs with a loop device's. */
static enum swap_use loop_is_on(const char *name, dev_t ours, unsigned layers)
{
	char file[PATH_MAX];
	FILE *f = fopen(name, "re");
	bool got = f && fgets(file, sizeof(file), f);

	if (f)
		fclose(f);
	if (!got)
		return SWAP_MAYBE;
	file[strcspn(file, "\n")] = '\0';
	return file_is_on(file, ours, layers);
}

/* By the name that the link @sys leads to: a device whose data somebody keeps in a place that only he knows.
 */
static bool is_opaque(const char *sys)
{
	char target[PATH_MAX];
	ssize_t n = readlink(sys, target, sizeof(target) - 1);
	const char *name;

	if (n < 0)
		return true;
	target[n] = '\0';
	name = strrchr(target, '/');
	name = name ? name + 1 : target;
	return !strncmp(name, "ublk", 4) || !strncmp(name, "nbd", 3);
}

static enum swap_use is_on(dev_t dev, dev_t ours, unsigned layers)
{
	char sys[64], path[80];

	if (dev == ours)
		return SWAP_OURS;
	if (!layers)
		return SWAP_MAYBE;
	snprintf(sys, sizeof(sys), "/sys/dev/block/%u:%u", major(dev), minor(dev));
	snprintf(path, sizeof(path), "%s/partition", sys);
	if (access(path, F_OK) == 0) {
		snprintf(path, sizeof(path), "%s/../dev", sys);
		return is_on(dev_in(path), ours, layers - 1);
	}
	if (is_opaque(sys))
		return SWAP_MAYBE;
	snprintf(path, sizeof(path), "%s/loop/backing_file", sys);
	if (access(path, F_OK) == 0)
		return loop_is_on(path, ours, layers - 1);
	snprintf(path, sizeof(path), "%s/slaves", sys);
	return any_is_on(path, ours, layers - 1);
}

/* seq_file writes blanks and backslashes of a name in octal. */
static void unescape(char *s)
{
	char *to = s;

	for (; *s; s++, to++) {
		if (s[0] == '\\' && s[1] && s[2] && s[3]) {
			*to = (char)((s[1] - '0') * 64 + (s[2] - '0') * 8 + (s[3] - '0'));
			s += 3;
		} else {
			*to = *s;
		}
	}
	*to = '\0';
}

/* The device that the file system of @path was mounted from, for one whose files have another number; 0:
 * none. */
static dev_t mounted_from(const char *path)
{
	char line[2 * PATH_MAX], *source = NULL;
	struct statx x;
	struct stat st;
	FILE *f;

	if (statx(AT_FDCWD, path, 0, STATX_MNT_ID, &x) < 0 || !(x.stx_mask & STATX_MNT_ID))
		return 0;
	f = fopen("/proc/self/mountinfo", "re");
	while (f && !source && fgets(line, sizeof(line), f))
		if (strtoull(line, NULL, 10) == x.stx_mnt_id)
			source = strstr(line, " - ");
	if (f)
		fclose(f);
	source = source ? strchr(source + 3, ' ') : NULL; /* after the type */
	if (!source)
		return 0;
	source++;
	source[strcspn(source, " \n")] = '\0';
	unescape(source);
	return stat(source, &st) == 0 && S_ISBLK(st.st_mode) ? st.st_rdev : 0;
}

/* btrfs may be on several devices, whatever it was mounted from. */
static enum swap_use file_system_is_on(dev_t from, dev_t ours, unsigned layers)
{
	DIR *d = opendir("/sys/fs/btrfs");
	enum swap_use use = SWAP_NOT;
	char devices[PATH_MAX];
	struct dirent *e;

	while (d && use == SWAP_NOT && (e = readdir(d))) {
		snprintf(devices, sizeof(devices), "/sys/fs/btrfs/%s/devices", e->d_name);
		if (any_is_on(devices, from, 0) == SWAP_OURS) /* @from is one of them */
			use = any_is_on(devices, ours, layers);
	}
	if (d)
		closedir(d);
	return use == SWAP_NOT ? is_on(from, ours, layers) : use;
}

static enum swap_use file_is_on(const char *path, dev_t ours, unsigned layers)
{
	struct stat st;
	char sys[64];
	dev_t from;

	if (!layers || stat(path, &st) < 0)
		return SWAP_MAYBE;
	if (S_ISBLK(st.st_mode))
		return is_on(st.st_rdev, ours, layers);
	snprintf(sys, sizeof(sys), "/sys/dev/block/%u:%u", major(st.st_dev), minor(st.st_dev));
	if (access(sys, F_OK) == 0)
		return is_on(st.st_dev, ours, layers);
	from = mounted_from(path);
	return from ? file_system_is_on(from, ours, layers) : SWAP_MAYBE;
}

/* Of all swap space. */
static enum swap_use find_use(int fd, const char *device)
{
	char text[8192], *rest = text, *line;
	enum swap_use most = SWAP_NOT, use;
	struct stat st;
	ssize_t n;

	if (fd < 0 || stat(device, &st) < 0 || !S_ISBLK(st.st_mode))
		return SWAP_NOT;
	n = pread(fd, text, sizeof(text) - 1, 0);
	if (n < 0 || n == sizeof(text) - 1)
		return n > 0 ? SWAP_MAYBE : SWAP_NOT;
	text[n] = '\0';
	strsep(&rest, "\n"); /* the headline */
	while (most != SWAP_OURS && (line = strsep(&rest, "\n"))) {
		if (!*line)
			continue;
		line[strcspn(line, " \t")] = '\0';
		unescape(line);
		use = file_is_on(line, st.st_rdev, MAX_LAYERS);
		if (use > most)
			most = use;
	}
	return most;
}

/* ---- what follows from it ---- */

static bool wants(int tid, int from)
{
	struct sched_param p;

	return sched_getscheduler(tid) == from &&
	       (from != SCHED_RR || (sched_getparam(tid, &p) == 0 && p.sched_priority == PRIORITY));
}

/* Threads that have the policy @from get @to. How many they were, or -errno. */
static int set_all(int from, int to)
{
	struct sched_param p = { .sched_priority = to == SCHED_RR ? PRIORITY : 0 };
	DIR *d = opendir("/proc/self/task");
	struct dirent *e;
	int n = 0;

	if (!d)
		return -errno;
	while (n >= 0 && (e = readdir(d))) {
		int tid = atoi(e->d_name);

		if (tid <= 0 || !wants(tid, from))
			continue;
		if (sched_setscheduler(tid, to, &p) == 0)
			n++;
		else if (errno != ESRCH)
			n = -errno;
	}
	closedir(d);
	return n;
}

void swap_watch_open(struct swap_watch *w)
{
	*w = (struct swap_watch){ .fd = open("/proc/swaps", O_RDONLY | O_CLOEXEC) };
}

void swap_watch_close(struct swap_watch *w)
{
	if (w->fd >= 0)
		close(w->fd);
	w->fd = -1;
}

bool swap_is_urgent(void)
{
	return wants(0, SCHED_RR);
}

void swap_watch_look(struct swap_watch *w, const char *device)
{
	enum swap_use use = find_use(w->fd, device), before = w->use;
	bool urgent = use != SWAP_NOT;
	int n = 1;

	w->use = use;
	if (w->looked && urgent == (before != SWAP_NOT))
		return;
	w->looked = true;
	for (unsigned pass = 0; pass < MAX_PASSES && n > 0; pass++)
		n = urgent ? set_all(SCHED_OTHER, SCHED_RR) : set_all(SCHED_RR, SCHED_OTHER);
	if (n < 0 && urgent)
		log_line(LOG_WARNING,
			 "%s: is swap space, but SCHED_RR is refused: %s: it may hang when memory is short",
			 device, strerror(-n));
}

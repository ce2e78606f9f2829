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
 * Devices are followed down through partitions and /sys/.../slaves. What cannot be followed (a file system
 * without a block device of its own, a loop device, a ublk device of somebody else) counts as ours.
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

static bool is_on(dev_t dev, dev_t ours, unsigned layers);

static bool slave_is_on(const char *sys, dev_t ours, unsigned layers)
{
	char path[PATH_MAX];
	struct dirent *e;
	bool found = false;
	DIR *d;

	snprintf(path, sizeof(path), "%s/slaves", sys);
	d = opendir(path);
	while (d && !found && (e = readdir(d))) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/slaves/%s/dev", sys, e->d_name);
		found = is_on(dev_in(path), ours, layers);
	}
	if (d)
		closedir(d);
	return found;
}

/* A device whose data somebody keeps in a place that sysfs does not name. */
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
	return !strncmp(name, "loop", 4) || !strncmp(name, "ublk", 4) || !strncmp(name, "nbd", 3);
}

static bool is_on(dev_t dev, dev_t ours, unsigned layers)
{
	char sys[64], path[80];

	if (dev == ours || !layers)
		return true;
	snprintf(sys, sizeof(sys), "/sys/dev/block/%u:%u", major(dev), minor(dev));
	snprintf(path, sizeof(path), "%s/partition", sys);
	if (access(path, F_OK) == 0) {
		snprintf(path, sizeof(path), "%s/../dev", sys);
		return is_on(dev_in(path), ours, layers - 1);
	}
	return is_opaque(sys) || slave_is_on(sys, ours, layers - 1);
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

static bool area_is_on(char *line, dev_t ours)
{
	struct stat st;

	line[strcspn(line, " \t")] = '\0';
	unescape(line);
	if (stat(line, &st) < 0)
		return true;
	return is_on(S_ISBLK(st.st_mode) ? st.st_rdev : st.st_dev, ours, MAX_LAYERS);
}

static bool is_swap_space(int fd, const char *device)
{
	char text[8192], *rest = text, *line;
	struct stat st;
	ssize_t n;

	if (fd < 0 || stat(device, &st) < 0 || !S_ISBLK(st.st_mode))
		return false;
	n = pread(fd, text, sizeof(text) - 1, 0);
	if (n < 0 || n == sizeof(text) - 1)
		return n > 0;
	text[n] = '\0';
	strsep(&rest, "\n"); /* the headline */
	while ((line = strsep(&rest, "\n"))) {
		if (*line && area_is_on(line, st.st_rdev))
			return true;
	}
	return false;
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
	bool urgent = is_swap_space(w->fd, device);
	int n = 1;

	if (w->looked && urgent == w->urgent)
		return;
	w->looked = true;
	w->urgent = urgent;
	for (unsigned pass = 0; pass < MAX_PASSES && n > 0; pass++)
		n = urgent ? set_all(SCHED_OTHER, SCHED_RR) : set_all(SCHED_RR, SCHED_OTHER);
	if (n < 0 && urgent)
		log_line(LOG_WARNING,
			 "%s: is swap space, but SCHED_RR is refused: %s: it may hang when memory is short",
			 device, strerror(-n));
}

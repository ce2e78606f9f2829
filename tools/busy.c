// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * busy.c - the answer to "why can it not be detached?", before the kernel would make us wait for it: a
 * device that somebody has open cannot be deleted, and what is mounted would lose its disk.
 *
 * Looks at: mounts of every mount namespace, swap areas, holders (device-mapper, md, ...), loop devices, open
 * descriptors of all processes. Compared by device number, or by name for a device whose disk is gone
 * already while others still hold on to it. At last the kernel itself is asked for exclusive use. All this is
 * a snapshot: it protects from mistakes, not from races.
 */
#include "busy.h"
#include "output.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define MAX_NODES 260u /* the disk and its partitions */
#define MAX_NAMESPACES 512u
#define UDEV_PATIENCE 100 /* times 50 ms */

struct scan {
	char disk[32]; /* "/dev/ublkb0" */
	dev_t node[MAX_NODES];
	unsigned nodes;
	char *text;
	size_t size;
	bool found, lasting;
};

static void __attribute__((format(printf, 3, 4))) add(struct scan *s, bool lasting, const char *fmt, ...)
{
	size_t used = strlen(s->text);
	va_list ap;

	s->found = true;
	s->lasting |= lasting;
	if (used + 3 >= s->size)
		return;
	if (used)
		used += (size_t)snprintf(s->text + used, s->size - used, "; ");
	va_start(ap, fmt);
	vsnprintf(s->text + used, s->size - used, fmt, ap);
	va_end(ap);
}

bool names_device(const char *path, const char *disk)
{
	size_t n = strlen(disk);

	if (strncmp(path, disk, n) != 0)
		return false;
	path += n;
	if (path[0] == 'p' && path[1] >= '0' && path[1] <= '9')
		path += 1 + strspn(path + 1, "0123456789");
	return !*path || strcmp(path, " (deleted)") == 0 || strcmp(path, "\\040(deleted)") == 0;
}

static bool is_node(const struct scan *s, dev_t dev)
{
	unsigned i;

	for (i = 0; i < s->nodes; i++)
		if (s->node[i] == dev)
			return true;
	return false;
}

/* A path from /proc: by name, and by what is there now. */
static bool is_ours(const struct scan *s, const char *path)
{
	struct stat st;

	if (names_device(path, s->disk))
		return true;
	return strncmp(path, "/dev/", 5) == 0 && stat(path, &st) == 0 && S_ISBLK(st.st_mode) &&
	       is_node(s, st.st_rdev);
}

/* ---- the device's parts, and what is stacked on them ---- */

static void add_node(struct scan *s, const char *sysfs)
{
	unsigned major_nr, minor_nr;
	char path[300];
	FILE *f;

	snprintf(path, sizeof(path), "%s/dev", sysfs);
	f = fopen(path, "re");
	if (!f)
		return;
	if (fscanf(f, "%u:%u", &major_nr, &minor_nr) == 2 && s->nodes < MAX_NODES)
		s->node[s->nodes++] = makedev(major_nr, minor_nr);
	fclose(f);
}

static bool read_word(const char *path, char *word, size_t size)
{
	FILE *f = fopen(path, "re");

	if (!f)
		return false;
	if (!fgets(word, (int)size, f))
		word[0] = '\0';
	fclose(f);
	word[strcspn(word, "\n")] = '\0';
	return word[0];
}

static void add_holders(struct scan *s, const char *sysfs)
{
	char path[600], raw[128], name[300];
	struct dirent *de;
	DIR *dir;

	snprintf(path, sizeof(path), "%s/holders", sysfs);
	dir = opendir(path);
	while (dir && (de = readdir(dir))) {
		if (de->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/sys/block/%s/dm/name", de->d_name);
		if (read_word(path, raw, sizeof(raw)))
			add(s, true, "used by /dev/mapper/%s", shown(name, sizeof(name), raw));
		else
			add(s, true, "used by /dev/%s", de->d_name);
	}
	if (dir)
		closedir(dir);
}

static void scan_sysfs(struct scan *s)
{
	const char *name = strrchr(s->disk, '/') + 1;
	char disk[64], path[400], prefix[32];
	struct dirent *de;
	DIR *dir;

	snprintf(disk, sizeof(disk), "/sys/block/%s", name);
	snprintf(prefix, sizeof(prefix), "%sp", name);
	add_node(s, disk);
	add_holders(s, disk);
	dir = opendir(disk);
	while (dir && (de = readdir(dir))) {
		if (strncmp(de->d_name, prefix, strlen(prefix)) != 0)
			continue;
		snprintf(path, sizeof(path), "%s/%s", disk, de->d_name);
		add_node(s, path);
		add_holders(s, path);
	}
	if (dir)
		closedir(dir);
}

static void scan_loops(struct scan *s)
{
	char path[300], file[512];
	struct dirent *de;
	DIR *dir = opendir("/sys/block");

	while (dir && (de = readdir(dir))) {
		if (strncmp(de->d_name, "loop", 4) != 0)
			continue;
		snprintf(path, sizeof(path), "/sys/block/%.200s/loop/backing_file", de->d_name);
		if (read_word(path, file, sizeof(file)) && is_ours(s, file))
			add(s, true, "used by /dev/%.32s", de->d_name);
	}
	if (dir)
		closedir(dir);
}

static void scan_swaps(struct scan *s)
{
	FILE *f = fopen("/proc/swaps", "re");
	char line[600];

	while (f && fgets(line, sizeof(line), f)) {
		line[strcspn(line, " \t")] = '\0';
		if (is_ours(s, line))
			add(s, true, "swap area %s", line);
	}
	if (f)
		fclose(f);
}

/* ---- mounts ---- */

static void comm_of(const char *pid, char *name, size_t size)
{
	char path[64], raw[64];

	snprintf(path, sizeof(path), "/proc/%.16s/comm", pid);
	shown(name, size, read_word(path, raw, sizeof(raw)) ? raw : "?");
}

/* One line of mountinfo: "36 35 98:0 /root /mnt rw shared:1 - ext4 /dev/x rw"; names are octal-escaped. */
static bool parse_mount(char *line, dev_t *dev, char **where, char **source)
{
	unsigned major_nr, minor_nr;
	char *dash = strstr(line, " - "), *save;
	int at = 0;

	if (!dash || sscanf(line, "%*s %*s %u:%u %*s %n", &major_nr, &minor_nr, &at) != 2 || !at)
		return false;
	*dev = makedev(major_nr, minor_nr);
	strtok_r(dash + 3, " ", &save);
	*source = strtok_r(NULL, " ", &save);
	*where = strtok_r(line + at, " ", &save);
	return *source && *where;
}

/* @whose: "" or " in the mount namespace of NAME (pid 1)". */
static bool scan_mountinfo(struct scan *s, const char *path, const char *whose)
{
	char *line = NULL, *where, *source;
	size_t room = 0;
	bool any = false;
	dev_t dev;
	FILE *f = fopen(path, "re");

	while (f && getline(&line, &room, f) > 0) {
		if (!parse_mount(line, &dev, &where, &source) || (!is_node(s, dev) && !is_ours(s, source)))
			continue;
		add(s, true, "mounted on %s%s", where, whose);
		any = true;
	}
	free(line);
	if (f)
		fclose(f);
	return any;
}

/* Each namespace once; its first process stands for it. */
static bool is_new_namespace(const char *pid, ino_t *seen, unsigned *count)
{
	char path[64];
	struct stat st;
	unsigned i;

	snprintf(path, sizeof(path), "/proc/%.16s/ns/mnt", pid);
	if (stat(path, &st) < 0)
		return false;
	for (i = 0; i < *count; i++)
		if (seen[i] == st.st_ino)
			return false;
	if (*count < MAX_NAMESPACES)
		seen[(*count)++] = st.st_ino;
	return true;
}

static void scan_mounts(struct scan *s)
{
	ino_t seen[MAX_NAMESPACES];
	char path[64], name[256], whose[400];
	unsigned count = 0;
	struct dirent *de;
	DIR *proc;

	is_new_namespace("self", seen, &count);
	if (scan_mountinfo(s, "/proc/self/mountinfo", ""))
		return; /* others are mostly copies of ours */
	proc = opendir("/proc");
	while (proc && (de = readdir(proc))) {
		if (de->d_name[0] < '1' || de->d_name[0] > '9' || !is_new_namespace(de->d_name, seen, &count))
			continue;
		comm_of(de->d_name, name, sizeof(name));
		snprintf(whose, sizeof(whose), " in the mount namespace of %s (pid %.16s)", name, de->d_name);
		snprintf(path, sizeof(path), "/proc/%.16s/mountinfo", de->d_name);
		if (scan_mountinfo(s, path, whose))
			break;
	}
	if (proc)
		closedir(proc);
}

/* ---- processes ---- */

/* A dead network file system must not stop us: DONT_SYNC. */
static bool is_open_node(const struct scan *s, const char *path)
{
	char target[64];
	struct statx st;
	ssize_t n;

	if (statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, STATX_TYPE, &st) < 0 || !S_ISBLK(st.stx_mode))
		return false;
	if (is_node(s, makedev(st.stx_rdev_major, st.stx_rdev_minor)))
		return true;
	n = readlink(path, target, sizeof(target) - 1);
	target[n < 0 ? 0 : n] = '\0';
	return !s->nodes && names_device(target, s->disk);
}

static bool process_has_it_open(const struct scan *s, const char *pid)
{
	char path[300];
	struct dirent *de;
	bool found = false;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%.16s/fd", pid);
	dir = opendir(path);
	while (dir && !found && (de = readdir(dir))) {
		if (de->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%.16s/fd/%.16s", pid, de->d_name);
		found = is_open_node(s, path);
	}
	if (dir)
		closedir(dir);
	return found;
}

static void scan_processes(struct scan *s)
{
	struct dirent *de;
	char name[256];
	bool udev;
	DIR *proc = opendir("/proc");

	while (proc && (de = readdir(proc))) {
		if (de->d_name[0] < '1' || de->d_name[0] > '9' || atoi(de->d_name) == getpid() ||
		    !process_has_it_open(s, de->d_name))
			continue;
		comm_of(de->d_name, name, sizeof(name));
		udev = strstr(name, "udev") != NULL;
		add(s, !udev, "opened by %s (pid %.16s)", name, de->d_name);
	}
	if (proc)
		closedir(proc);
}

/* The kernel's own opinion. Reading only: closing after that tells udev nothing. */
static void ask_kernel(struct scan *s)
{
	int fd = open(s->disk, O_RDONLY | O_EXCL | O_NONBLOCK | O_CLOEXEC);

	if (fd >= 0)
		close(fd);
	else if (errno == EBUSY)
		add(s, true, "claimed by the kernel for somebody who cannot be seen from here");
}

enum busy device_busy(const char *device, char *text, size_t size)
{
	struct scan s = { .text = text, .size = size };

	text[0] = '\0';
	snprintf(s.disk, sizeof(s.disk), "%s", device);
	scan_sysfs(&s);
	scan_mounts(&s);
	scan_swaps(&s);
	scan_loops(&s);
	scan_processes(&s);
	if (!s.found && s.nodes)
		ask_kernel(&s);
	return s.lasting ? BUSY_YES : s.found ? BUSY_PASSING : BUSY_NO;
}

enum busy device_busy_wait(const char *device, char *text, size_t size)
{
	enum busy busy = device_busy(device, text, size);
	int tries;

	for (tries = 0; busy == BUSY_PASSING && tries < UDEV_PATIENCE; tries++) {
		usleep(50000);
		busy = device_busy(device, text, size);
	}
	return busy;
}

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * find.c - which device does the user mean?
 *
 * A device wins over an image: an image may itself lie on a device of ours. Devices are compared by name and
 * by number, images by identity and, for those that are gone, by path.
 */
#include "find.h"
#include "output.h"
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

char *absolute_path(const char *path)
{
	char folder[PATH_MAX], *slash, *real, *full;
	const char *name;
	int n;

	if (strlen(path) >= sizeof(folder)) {
		errno = ENAMETOOLONG;
		return NULL;
	}
	strcpy(folder, path);
	slash = strrchr(folder, '/');
	name = slash ? slash + 1 : path;
	/* "dir/", "." and "..": no last component to keep */
	if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
		return realpath(path, NULL);
	if (slash)
		slash[slash == folder] = '\0'; /* keep the root's slash */
	real = realpath(slash ? folder : ".", NULL);
	if (!real)
		return NULL;
	name = path + (slash ? slash + 1 - folder : 0);
	n = asprintf(&full, "%s/%s", strcmp(real, "/") == 0 ? "" : real, name);
	free(real);
	return n < 0 ? NULL : full;
}

/* ---- what the argument can be ---- */

struct wanted {
	char *path; /* absolute, links of the last component followed if it exists */
	char *given; /* absolute_path() */
	bool exists;
	struct stat st;
};

static void wanted_init(struct wanted *w, const char *arg)
{
	w->exists = stat(arg, &w->st) == 0;
	w->given = absolute_path(arg);
	w->path = realpath(arg, NULL);
	if (!w->path && w->given)
		w->path = strdup(w->given);
}

static void wanted_clear(struct wanted *w)
{
	free(w->path);
	free(w->given);
}

static bool is_device(const struct wanted *w, const struct run_state *st)
{
	char lower[32];
	struct stat node;

	snprintf(lower, sizeof(lower), "/dev/ublkb%d", st->id);
	if (w->path && (strcmp(w->path, st->device) == 0 || strcmp(w->path, lower) == 0))
		return true;
	return w->exists && S_ISBLK(w->st.st_mode) && stat(st->device, &node) == 0 && S_ISBLK(node.st_mode) &&
	       node.st_rdev == w->st.st_rdev;
}

static bool is_image(const struct wanted *w, const struct run_state *st)
{
	if (w->exists && st->image_ino)
		return w->st.st_dev == st->image_dev && w->st.st_ino == st->image_ino;
	return w->given && strcmp(w->given, st->image) == 0;
}

/* ---- the search ---- */

struct search {
	const struct wanted *wanted;
	bool (*match)(const struct wanted *w, const struct run_state *st);
	unsigned hits;
	char names[200]; /* of all hits */
};

static int search(struct search *s, const int *ids, size_t count, struct found *out, struct qcow2_error *err)
{
	struct found f;
	size_t i, used;
	int ret;

	for (i = 0; i < count; i++) {
		ret = rundir_read(ids[i], &f.state, &f.live, err);
		if (ret == -ENOENT)
			continue;
		if (ret)
			return ret;
		if (!s->match(s->wanted, &f.state)) {
			run_state_clear(&f.state);
			continue;
		}
		used = strlen(s->names);
		snprintf(s->names + used, sizeof(s->names) - used, "%s%s", used ? ", " : "", f.state.device);
		if (s->hits++)
			run_state_clear(&f.state);
		else
			*out = f;
	}
	return 0;
}

static int not_found(const char *arg, const struct wanted *w, struct qcow2_error *err)
{
	char path[64], name[512];

	shown(name, sizeof(name), arg);
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/partition", major(w->st.st_rdev),
		 minor(w->st.st_rdev));
	if (w->exists && S_ISBLK(w->st.st_mode) && access(path, F_OK) == 0)
		return qcow2_fail(err, -ENOENT, "%s: is a partition: name the whole device", name);
	return qcow2_fail(err, -ENOENT, "%s: is not attached%s", name,
			  w->exists ? "" : " and does not exist");
}

static int search_all(const char *arg, const struct wanted *w, bool images, struct found *out,
		      struct qcow2_error *err)
{
	struct search device = { .wanted = w, .match = is_device };
	struct search image = { .wanted = w, .match = is_image };
	char name[512];
	size_t count;
	int *ids, ret;

	ret = rundir_list(&ids, &count, err);
	if (ret)
		return ret;
	ret = search(&device, ids, count, out, err);
	if (!ret && !device.hits && images)
		ret = search(&image, ids, count, out, err);
	free(ids);
	if (!ret && image.hits > 1) {
		run_state_clear(&out->state);
		return qcow2_fail(err, -EEXIST, "%s: is attached %u times: name the device: %s",
				  shown(name, sizeof(name), arg), image.hits, image.names);
	}
	if (ret || device.hits || image.hits)
		return ret;
	return not_found(arg, w, err);
}

int find_device(const char *arg, bool images, struct found *out, struct qcow2_error *err)
{
	struct wanted w = { 0 };
	int ret;

	memset(out, 0, sizeof(*out));
	wanted_init(&w, arg);
	ret = search_all(arg, &w, images, out, err);
	wanted_clear(&w);
	return ret;
}

static int for_device(const char *arg, int (*fn)(const struct found *f))
{
	struct qcow2_error err = { "" };
	struct found f;
	int ret = find_device(arg, true, &f, &err);

	if (ret)
		return report_error(&err, ret);
	ret = fn(&f);
	run_state_clear(&f.state);
	return ret;
}

static int for_number(int id, int (*fn)(const struct found *f))
{
	struct qcow2_error err = { "" };
	struct found f;
	int ret = rundir_read(id, &f.state, &f.live, &err);

	if (ret)
		return ret == -ENOENT ? EXIT_DONE : report_error(&err, ret);
	ret = fn(&f);
	run_state_clear(&f.state);
	return ret;
}

int for_devices(const char *arg, int (*fn)(const struct found *f))
{
	struct qcow2_error err = { "" };
	int *ids, ret, code = EXIT_DONE;
	size_t count, i;

	if (arg)
		return for_device(arg, fn);
	ret = rundir_list(&ids, &count, &err);
	if (ret)
		return report_error(&err, ret);
	for (i = 0; i < count; i++)
		if (for_number(ids[i], fn) != EXIT_DONE)
			code = EXIT_FAILED;
	free(ids);
	return code;
}

char *find_image(uint64_t dev, uint64_t ino)
{
	char *device = NULL;
	struct run_state st;
	size_t count, i;
	bool live;
	int *ids;

	if (rundir_list(&ids, &count, NULL))
		return NULL;
	for (i = 0; i < count && !device; i++) {
		if (rundir_read(ids[i], &st, &live, NULL))
			continue;
		if (live && st.image_ino == ino && st.image_dev == dev)
			device = strdup(st.device);
		run_state_clear(&st);
	}
	free(ids);
	return device;
}

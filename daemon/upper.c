// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * upper.c - calls to the module ublk_bpf.
 *
 * Owns nothing: disk, program link and its pin outlive every process, and any process may have to take them
 * down. A program is gone only when the disk itself says so, however its link went.
 */
#include "upper.h"
#include <bpf/bpf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#define PIN_DIR "/sys/fs/bpf/ublk-qcow2"
#define SILENCE_MS 10000u
#define CLOSE_MS 10000u /* patience with udev's looks at a new or leaving disk */

static void nap(void)
{
	static const struct timespec ms = { .tv_nsec = 1000000 };

	nanosleep(&ms, NULL);
}

int upper_call(int control, unsigned long call, void *arg)
{
	return ioctl(control, call, arg) < 0 ? -errno : 0;
}

int upper_open(struct qcow2_error *err)
{
	int fd = open(UBLK_BPF_CONTROL, O_RDWR | O_CLOEXEC), version;

	if (fd < 0 && (errno == ENOENT || errno == ENODEV || errno == ENXIO))
		return qcow2_fail(err, -ENOENT, "the kernel has no module ublk_bpf (modprobe ublk_bpf)");
	if (fd < 0)
		return qcow2_fail(err, errno == EPERM ? -EACCES : -errno, UBLK_BPF_CONTROL ": %s",
				  strerror(errno));
	version = ioctl(fd, UBLK_BPF_GET_VERSION);
	if (version == UBLK_BPF_VERSION)
		return fd;
	close(fd);
	return qcow2_fail(err, -EPROTO, "the module ublk_bpf has version %d, this program needs %d", version,
			  UBLK_BPF_VERSION);
}

int upper_look(int control, int id, struct ublk_bpf_info *info)
{
	char path[64];
	struct stat st;
	int ret;

	*info = (struct ublk_bpf_info){ .id = (__u32)id };
	ret = upper_call(control, UBLK_BPF_INFO, info);
	if (ret)
		return ret == -ENODEV ? 0 : ret;
	snprintf(path, sizeof(path), "/dev/ublkb%d", id);
	return !(info->flags & UBLK_BPF_LOWER_DEAD) && stat(path, &st) == 0 &&
	       st.st_rdev == makedev(info->lower_major, info->lower_minor);
}

const char *upper_pin(char *buf, size_t size, int id)
{
	snprintf(buf, size, PIN_DIR "/%d", id);
	return buf;
}

static int drain_all(int control, int id)
{
	struct ublk_bpf_drain drain = { .id = (__u32)id, .length = ~0ull };
	int ret;

	do
		ret = upper_call(control, UBLK_BPF_DRAIN, &drain);
	while (ret == -EINTR);
	return ret;
}

int upper_silence(int control, int id)
{
	struct ublk_bpf_info info = { .id = (__u32)id };
	char path[64];
	int link, ret = 0;

	upper_pin(path, sizeof(path), id);
	link = bpf_obj_get(path);
	if (link >= 0) {
		bpf_link_detach(link);
		unlink(path);
		close(link);
	}
	/* the last reference may be dropped by the kernel a little later */
	for (unsigned ms = 0; ms < SILENCE_MS; ms++) {
		ret = upper_call(control, UBLK_BPF_INFO, &info);
		if (ret || !(info.flags & UBLK_BPF_ATTACHED))
			break;
		nap();
	}
	if (!ret)
		ret = info.flags & UBLK_BPF_ATTACHED ? -EBUSY : drain_all(control, id);
	return ret == -ENODEV ? 0 : ret;
}

static void clear_files(int control, int id)
{
	for (unsigned i = 0; i < UBLK_BPF_FILES; i++) {
		struct ublk_bpf_file f = { .id = (__u32)id, .slot = i, .fd = -1 };

		upper_call(control, UBLK_BPF_SET_FILE, &f);
	}
}

int upper_destroy(int control, int id)
{
	struct ublk_bpf_destroy destroy = { .id = (__u32)id };
	int ret = upper_silence(control, id);

	if (ret)
		return ret;
	for (unsigned ms = 0;
	     (ret = upper_call(control, UBLK_BPF_DESTROY, &destroy)) == -EBUSY && ms < CLOSE_MS; ms++)
		nap();
	if (ret == -EBUSY)
		clear_files(control, id);
	return ret == -ENODEV ? 0 : ret;
}

static int remove_disk(int id, bool alive)
{
	struct ublk_bpf_info info;
	int control = upper_open(NULL), ret;

	if (control < 0)
		return control == -ENOENT ? 0 : control;
	ret = upper_look(control, id, &info);
	if (ret > 0)
		ret = alive ? upper_destroy(control, id) : 0;
	else if (!ret && info.flags & UBLK_BPF_LOWER_DEAD)
		ret = upper_destroy(control, id);
	close(control);
	return ret;
}

int upper_remove(int id)
{
	return remove_disk(id, true);
}

int upper_bury(int id)
{
	return remove_disk(id, false);
}

int upper_image(int id)
{
	struct ublk_bpf_file file = { .id = (__u32)id, .slot = 0, .fd = -1 };
	struct ublk_bpf_info info;
	int control = upper_open(NULL), ret;

	if (control < 0)
		return control;
	ret = upper_look(control, id, &info);
	ret = ret > 0 ? upper_call(control, UBLK_BPF_GET_FILE, &file) : ret ? ret : -ENOENT;
	close(control);
	return ret ? ret : file.fd;
}

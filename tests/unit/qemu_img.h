/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qemu_img.h - a scratch folder and images made by qemu-img. Tests that need qemu-img call
 * need_qemu_img() first: it skips, loudly, only if the program is missing.
 */
#ifndef TESTS_QEMU_IMG_H
#define TESTS_QEMU_IMG_H

#include "unit.h"
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char scratch_dir[64];

static inline int scratch_setup(void **state)
{
	strcpy(scratch_dir, "/tmp/ublk-qcow2-unit-XXXXXX");
	return mkdtemp(scratch_dir) ? 0 : -1;
}

static inline int scratch_teardown(void **state)
{
	char cmd[128];

	snprintf(cmd, sizeof(cmd), "rm -rf '%s'", scratch_dir);
	return system(cmd);
}

/* Run a shell command in the scratch folder; returns its exit status. */
static inline int __attribute__((format(printf, 1, 2))) sh(const char *fmt, ...)
{
	char cmd[4096];
	va_list ap;
	int n = snprintf(cmd, sizeof(cmd), "cd '%s' && exec >/dev/null && ", scratch_dir), status;

	va_start(ap, fmt);
	vsnprintf(cmd + n, sizeof(cmd) - (size_t)n, fmt, ap);
	va_end(ap);
	status = system(cmd);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static inline void need_qemu_img(void)
{
	if (sh("command -v qemu-img") != 0) {
		print_message("SKIP: qemu-img is not installed\n");
		skip();
	}
}

/* The first @want bytes of a file of the scratch folder (all with 0); the caller frees them. */
static inline unsigned char *slurp(const char *name, size_t want, size_t *len, uint64_t *file_size)
{
	unsigned char *buf;
	char path[256];
	struct stat st;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", scratch_dir, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &st), 0);
	*file_size = (uint64_t)st.st_size;
	if (!want || want > *file_size)
		want = (size_t)*file_size;
	buf = malloc(want);
	assert_non_null(buf);
	n = pread(fd, buf, want, 0);
	assert_int_equal(n, want);
	*len = want;
	close(fd);
	return buf;
}

#endif

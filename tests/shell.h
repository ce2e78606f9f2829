/* SPDX-License-Identifier: GPL-2.0-or-later */
/* shell.h - shell commands in a folder of images, for programs that have die() and no cmocka. */
#ifndef TESTS_SHELL_H
#define TESTS_SHELL_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

static char dir[1024]; /* where they run */

/* The exit status, 255 if it did not exit. */
static int __attribute__((format(printf, 1, 2))) sh(const char *fmt, ...)
{
	char cmd[4096];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = snprintf(cmd, sizeof(cmd), "cd %s && ", dir);
	vsnprintf(cmd + n, sizeof(cmd) - n, fmt, ap);
	va_end(ap);
	n = system(cmd);
	return WIFEXITED(n) ? WEXITSTATUS(n) : 255;
}

#define SH(...)                                                                                              \
	do {                                                                                                 \
		if (sh(__VA_ARGS__))                                                                         \
			die("failed: " __VA_ARGS__);                                                         \
	} while (0)

#endif

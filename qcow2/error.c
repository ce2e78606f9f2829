/* SPDX-License-Identifier: GPL-2.0-or-later */
/* error.c - keep the first message; the caller prints it. Names in it come from images, so it is escaped here. */
#include "error.h"
#include "header.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int qcow2_fail(struct qcow2_error *err, int code, const char *fmt, ...)
{
	char raw[sizeof(err->text) * 2];
	va_list ap;

	if (err && !err->text[0]) {
		va_start(ap, fmt);
		vsnprintf(raw, sizeof(raw), fmt, ap);
		va_end(ap);
		escape_name(err->text, sizeof(err->text), raw, strlen(raw));
	}
	return code;
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* error.c - keep the first message; the caller prints it. */
#include <stdarg.h>
#include <stdio.h>
#include "error.h"

int qcow2_fail(struct qcow2_error *err, int code, const char *fmt, ...)
{
	va_list ap;

	if (err && !err->text[0]) {
		va_start(ap, fmt);
		vsnprintf(err->text, sizeof(err->text), fmt, ap);
		va_end(ap);
	}
	return code;
}

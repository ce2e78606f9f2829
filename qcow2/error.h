/* SPDX-License-Identifier: GPL-2.0-or-later */
/* error.h - one line that says what is wrong and why, for whoever called; the library never prints. */
#ifndef QCOW2_ERROR_H
#define QCOW2_ERROR_H

#include <stddef.h>

struct qcow2_error {
	char text[512]; /* "" = nothing said; "FILE: what: why", control characters escaped */
};

/* Format into err (may be NULL) unless something was said before; returns code (a -errno). */
int qcow2_fail(struct qcow2_error *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Copy at most size-1 bytes of src[0..len) to dst with control characters and bytes that are not
 * UTF-8 as \xNN; never cuts inside a character or an escape; always terminated (size > 0). */
void escape_name(char *dst, size_t size, const void *src, size_t len);

#endif

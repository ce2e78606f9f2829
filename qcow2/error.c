/* SPDX-License-Identifier: GPL-2.0-or-later */
/* error.c - keep the first message; the caller prints it. Names in it come from images, so it is escaped here. */
#include "error.h"
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* Bytes of the printable character at @s (1..4, UTF-8), 0 if it must be escaped. C1 controls count as
 * control characters: terminals obey them in their two-byte form, too. */
static size_t printable(const unsigned char *s, size_t len)
{
	static const uint32_t smallest[] = { 0, 0, 0xa0, 0x800, 0x10000 };
	size_t n, i;
	uint32_t c;

	if (s[0] < 0x80)
		return s[0] >= 0x20 && s[0] != 0x7f;
	n = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
	if (s[0] < 0xc2 || s[0] > 0xf4 || n > len)
		return 0;
	c = s[0] & (0x7fu >> n);
	for (i = 1; i < n; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (s[i] & 0x3f);
	}
	if (c < smallest[n] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
		return 0;
	return n;
}

void escape_name(char *dst, size_t size, const void *src, size_t len)
{
	static const char hex[] = "0123456789abcdef";
	const unsigned char *s = src;
	size_t at = 0, i = 0, n;

	while (i < len) {
		n = printable(s + i, len - i);
		if (size - at <= (n ? n : 4))
			break;
		if (n) {
			memcpy(dst + at, s + i, n);
			at += n;
			i += n;
		} else {
			dst[at++] = '\\';
			dst[at++] = 'x';
			dst[at++] = hex[s[i] >> 4];
			dst[at++] = hex[s[i] & 15];
			i++;
		}
	}
	dst[at] = '\0';
}

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

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* unit.h - cmocka with the headers it wants first, and big-endian stores that share no code with entry.h. */
#ifndef TESTS_UNIT_H
#define TESTS_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static inline void put_be(void *at, uint64_t value, unsigned bytes)
{
	unsigned char *p = at;

	while (bytes--) {
		p[bytes] = (unsigned char)value;
		value >>= 8;
	}
}

static inline void put16(void *buf, size_t at, uint64_t value)
{
	put_be((char *)buf + at, value, 2);
}

static inline void put32(void *buf, size_t at, uint64_t value)
{
	put_be((char *)buf + at, value, 4);
}

static inline void put64(void *buf, size_t at, uint64_t value)
{
	put_be((char *)buf + at, value, 8);
}

/* The heap copy that ends exactly at @len: AddressSanitizer sees the first byte read past it. */
static inline void *exact_copy(const void *src, size_t len)
{
	void *copy = malloc(len ? len : 1);

	assert_non_null(copy);
	memcpy(copy, src, len);
	return copy;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* mem.c - malloc, unless the program has something better. Owns who that is. */
#include "mem.h"
#include <stdlib.h>
#include <string.h>
#include "qcow2.h"

#define BUF_ALIGN 4096u

static struct qcow2_memory from;

void qcow2_use_memory(const struct qcow2_memory *m)
{
	from = m ? *m : (struct qcow2_memory){ NULL };
}

void *mem_get(size_t size)
{
	return from.get ? from.get(from.ctx, size) : malloc(size);
}

void *mem_get_zeroed(size_t size)
{
	void *p = mem_get(size);

	return p ? memset(p, 0, size) : NULL;
}

void mem_put(void *p)
{
	if (!p || !from.put)
		free(p);
	else
		from.put(from.ctx, p);
}

size_t mem_ready(size_t want)
{
	return from.ready ? from.ready(from.ctx, want) : SIZE_MAX;
}

uint64_t buf_takes(uint64_t len)
{
	return len < BUF_ALIGN ? BUF_ALIGN : len;
}

void *buf_alloc(uint64_t len)
{
	size_t size = (size_t)buf_takes(len);
	void *buf;

	if (len > SIZE_MAX - BUF_ALIGN)
		return NULL;
	if (from.get)
		return from.get(from.ctx, size);
	return posix_memalign(&buf, BUF_ALIGN, size) ? NULL : buf;
}

void buf_free(void *buf)
{
	mem_put(buf);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mem.h - where the memory of requests comes from: the requests, their buffers, cached blocks and host I/Os.
 * What only changes with the image (tables of clusters, open files) is malloc's.
 */
#ifndef QCOW2_MEM_H
#define QCOW2_MEM_H

#include <stddef.h>
#include <stdint.h>

/* size > 0. NULL: there is none now; the request that wants it ends with -ENOMEM and can be started again. */
void *mem_get(size_t size);
void *mem_get_zeroed(size_t size);
void mem_put(void *p); /* NULL is allowed */
size_t mem_ready(size_t want); /* bytes there are for all (SIZE_MAX: nobody knows), wanted are @want */
/* The same as mem_get(), aligned for direct I/O (4096): at least that much is taken. */
void *buf_alloc(uint64_t len);
uint64_t buf_takes(uint64_t len);
void buf_free(void *buf);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * arena.h - memory that is there already: who allocates from it never waits for the kernel to find some.
 */
#ifndef DAEMON_ARENA_H
#define DAEMON_ARENA_H

#include <stdbool.h>
#include <stddef.h>

#define ARENA_LARGEST (512u << 10) /* bytes of one allocation; the arena grows and shrinks by as many */

struct arena;

/*
 * @smallest: bytes, a power of two; what an allocation is rounded up to at least. @reserve: bytes that are
 * there at all times, @max: at most so many, both multiples of ARENA_LARGEST. @more (NULL: nobody) is called
 * by any thread that uses the arena, or its own, when there is memory again after some arena_get() had none.
 * 0 or -errno.
 */
int arena_new(struct arena **out, size_t smallest, size_t reserve, size_t max, void (*more)(void *ctx),
	      void *ctx);
void arena_delete(struct arena *a); /* with all that was got from it; NULL is allowed */

/* Any thread; takes a mutex for a moment. Uninitialised, aligned to @size rounded up to a power of two, at
 * most to a page. NULL: none now, or @size > ARENA_LARGEST. */
void *arena_get(struct arena *a, size_t size);
void arena_put(struct arena *a, void *p);
bool arena_owns(const struct arena *a, const void *p);
/* Any thread: have so many bytes ready soon, until there is nothing to do for a while. */
void arena_want(struct arena *a, size_t bytes);
/* @bytes instead of arena_new()'s @reserve: as soon as the system has them, and then at all times. */
void arena_reserve(struct arena *a, size_t bytes);
size_t arena_ready(const struct arena *a); /* any thread: bytes that are there */

#endif

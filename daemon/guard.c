/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * guard.c - the debug build's proof that a mapped request costs no allocation and no lock.
 *
 * Owns the interposed allocator entry points; built with QUEUE_GUARD only. They call the C library's own
 * functions, and abort when the calling thread is between queue_guard_enter() and queue_guard_leave(). Those
 * of a thread that asked for it (queue_guard_every) have no memory now and then.
 */
#include "guard.h"
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t size);
extern void *__libc_memalign(size_t align, size_t size);
extern void __libc_free(void *p);

extern int queue_guard_linked;
int queue_guard_linked = 1; /* the linker is told to want this, so that this file is taken */
__thread int queue_guard_depth;
__thread unsigned long queue_guard_every;

static void check(const char *what, size_t len)
{
	if (!queue_guard_depth)
		return;
	queue_guard_depth = 0;
	if (write(2, what, len) < 0)
		_exit(134);
	abort();
}

bool queue_guard_no_memory(void)
{
	static __thread unsigned long count;

	return queue_guard_every && !(++count % queue_guard_every);
}

#define CHECK(name)                                                                                          \
	check("queue guard: " name " during a mapped request\n",                                             \
	      sizeof("queue guard: " name " during a mapped request\n") - 1)

void *malloc(size_t size)
{
	CHECK("malloc");
	return queue_guard_no_memory() ? NULL : __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
	CHECK("calloc");
	return queue_guard_no_memory() ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t size)
{
	CHECK("realloc");
	return queue_guard_no_memory() ? NULL : __libc_realloc(p, size);
}

int posix_memalign(void **p, size_t align, size_t size)
{
	void *got;

	CHECK("posix_memalign");
	got = queue_guard_no_memory() ? NULL : __libc_memalign(align, size);
	if (!got)
		return ENOMEM;
	*p = got;
	return 0;
}

void free(void *p)
{
	CHECK("free");
	__libc_free(p);
}

int pthread_mutex_lock(pthread_mutex_t *mutex)
{
	static int (*real)(pthread_mutex_t *mutex);
	int (*lock)(pthread_mutex_t *mutex) = __atomic_load_n(&real, __ATOMIC_RELAXED);

	CHECK("pthread_mutex_lock");
	if (!lock) {
		lock = (int (*)(pthread_mutex_t *))dlsym(RTLD_NEXT, "pthread_mutex_lock");
		__atomic_store_n(&real, lock, __ATOMIC_RELAXED);
	}
	return lock(mutex);
}

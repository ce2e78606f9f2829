/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * arena.c - memory that is there already.
 *
 * Owns a range of addresses and a thread. The first `ready` bytes of the range are in memory (and locked, as
 * all of the process is): a buddy allocator on them. When little of them is free the thread fills one more
 * piece of ARENA_LARGEST bytes; only this thread waits if memory is short, maybe for writes that are still
 * with us. So whoever is told that there is none can count on two things: the reserve, once others are done
 * with it, and arena_new()'s more(). What is left over after a burst goes back to the system.
 *
 * Invariants, under the lock: a free block of order k is in list[k], its buddy is not free in one piece;
 * tag[] of a block's first unit holds its order + 1, with FREE if it is; every other tag is stale. Blocks of
 * the largest order have no buddy: pieces come and go alone.
 */
#include "arena.h"
#include "thread.h"
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/queue.h>
#include <time.h>

#define ORDERS 16u
#define FREE 0x80u
#define LITTLE (ARENA_LARGEST / 2) /* free bytes: fewer call for another piece */
#define IDLE_S 1

LIST_HEAD(blocks, block);

struct block { /* in its own memory */
	LIST_ENTRY(block) link;
};

struct arena {
	pthread_mutex_t lock;
	pthread_cond_t wanted; /* of the thread */
	pthread_t thread;
	char *base;
	unsigned char *tag; /* one per unit of the smallest size */
	size_t smallest, reserve, max;
	unsigned top; /* the largest order */
	size_t ready, free, target; /* bytes */
	struct blocks list[ORDERS];
	bool starved, stop;
	unsigned long gets;
	void (*more)(void *ctx);
	void *ctx;
};

/* ---- the buddies; all under the lock ---- */

static unsigned char *tag_of(struct arena *a, const void *p)
{
	return &a->tag[(size_t)((const char *)p - a->base) / a->smallest];
}

static struct block *buddy_of(struct arena *a, struct block *b, unsigned order)
{
	return (struct block *)(a->base + (((size_t)((char *)b - a->base)) ^ (a->smallest << order)));
}

static void add_free(struct arena *a, struct block *b, unsigned order)
{
	*tag_of(a, b) = (unsigned char)(FREE | (order + 1));
	LIST_INSERT_HEAD(&a->list[order], b, link);
}

static void give(struct arena *a, struct block *b, unsigned order)
{
	a->free += a->smallest << order;
	for (; order < a->top; order++) {
		struct block *buddy = buddy_of(a, b, order);

		if (*tag_of(a, buddy) != (FREE | (order + 1)))
			break;
		LIST_REMOVE(buddy, link);
		*tag_of(a, b > buddy ? b : buddy) = 0;
		if (buddy < b)
			b = buddy;
	}
	add_free(a, b, order);
}

static struct block *take(struct arena *a, unsigned order)
{
	unsigned from = order;
	struct block *b;

	while (from <= a->top && LIST_EMPTY(&a->list[from]))
		from++;
	if (from > a->top)
		return NULL;
	b = LIST_FIRST(&a->list[from]);
	LIST_REMOVE(b, link);
	while (from > order) {
		from--;
		add_free(a, buddy_of(a, b, from), from);
	}
	*tag_of(a, b) = (unsigned char)(order + 1);
	a->free -= a->smallest << order;
	return b;
}

/* ---- pieces ---- */

/* Page by page, without a change: such a fault holds only the lock of its mapping (since 6.4). madvise()
 * would have the address space's, and whoever frees a large copy meanwhile would wait for it, and so for
 * memory. */
static void touch(void *p, size_t len)
{
	for (char *at = p, old; at < (char *)p + len; at += 4096) {
		old = __atomic_load_n(at, __ATOMIC_RELAXED);
		__atomic_compare_exchange_n(at, &old, old, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
	}
}

static void fill_piece(struct arena *a, size_t at)
{
	touch(a->base + at, ARENA_LARGEST);
	touch(a->tag + at / a->smallest, ARENA_LARGEST / a->smallest);
}

static void add_piece(struct arena *a)
{
	give(a, (struct block *)(a->base + a->ready), a->top);
	__atomic_store_n(&a->ready, a->ready + ARENA_LARGEST, __ATOMIC_RELAXED); /* for arena_ready() */
}

static bool is_wanted(const struct arena *a)
{
	return (a->free < LITTLE || a->ready < a->target || a->ready < a->reserve) && a->ready < a->max;
}

/* Nobody got anything for a while: all free pieces at the end go. */
static void shrink(struct arena *a)
{
	size_t was = a->ready;

	a->target = 0;
	while (a->ready > a->reserve && a->free >= ARENA_LARGEST + LITTLE) {
		struct block *b = (struct block *)(a->base + a->ready - ARENA_LARGEST);

		if (*tag_of(a, b) != (FREE | (a->top + 1)))
			break;
		LIST_REMOVE(b, link);
		a->free -= ARENA_LARGEST;
		__atomic_store_n(&a->ready, a->ready - ARENA_LARGEST, __ATOMIC_RELAXED);
	}
	if (was == a->ready)
		return;
	pthread_mutex_unlock(&a->lock); /* only this thread moves `ready` */
	madvise(a->base + a->ready, was - a->ready, MADV_DONTNEED_LOCKED); /* 5.18 */
	pthread_mutex_lock(&a->lock);
}

static void tell(struct arena *a, bool starved)
{
	if (starved && a->more)
		a->more(a->ctx);
}

static void grow(struct arena *a)
{
	bool starved;

	pthread_mutex_unlock(&a->lock);
	fill_piece(a, a->ready);
	pthread_mutex_lock(&a->lock);
	add_piece(a);
	starved = a->starved;
	a->starved = false;
	pthread_mutex_unlock(&a->lock);
	tell(a, starved);
	pthread_mutex_lock(&a->lock);
}

static void wait_for_work(struct arena *a)
{
	unsigned long gets = a->gets;
	struct timespec t;

	if (a->ready == a->reserve) {
		pthread_cond_wait(&a->wanted, &a->lock);
		return;
	}
	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_sec += IDLE_S;
	if (pthread_cond_clockwait(&a->wanted, &a->lock, CLOCK_MONOTONIC, &t) == ETIMEDOUT && gets == a->gets)
		shrink(a);
}

static void *arena_main(void *arg)
{
	struct arena *a = arg;

	thread_batch(); /* what it fills is not for the kernel's last pages to pay */
	pthread_mutex_lock(&a->lock);
	while (!a->stop) {
		if (is_wanted(a))
			grow(a);
		else
			wait_for_work(a);
	}
	pthread_mutex_unlock(&a->lock);
	return NULL;
}

/* ---- for others ---- */

static void unmap(struct arena *a)
{
	if (a->base != MAP_FAILED)
		munmap(a->base, a->max);
	if ((void *)a->tag != MAP_FAILED)
		munmap(a->tag, a->max / a->smallest);
}

static void *map(size_t size)
{
	void *p =
		mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p != MAP_FAILED)
		madvise(p, size, MADV_NOHUGEPAGE); /* it would take more than was asked for */
	return p;
}

int arena_new(struct arena **out, size_t smallest, size_t reserve, size_t max, void (*more)(void *ctx),
	      void *ctx)
{
	struct arena *a = calloc(1, sizeof(*a));
	int ret = -ENOMEM;

	if (!a)
		return -ENOMEM;
	a->smallest = smallest;
	a->reserve = reserve;
	a->max = max;
	a->more = more;
	a->ctx = ctx;
	while (smallest << a->top < ARENA_LARGEST)
		a->top++;
	a->base = map(max);
	a->tag = map(max / smallest);
	if (a->base == MAP_FAILED || (void *)a->tag == MAP_FAILED)
		goto free_arena;
	pthread_mutex_init(&a->lock, NULL);
	pthread_cond_init(&a->wanted, NULL);
	while (a->ready < reserve) {
		fill_piece(a, a->ready);
		add_piece(a);
	}
	ret = thread_start(&a->thread, "memory", arena_main, a);
	if (!ret) {
		*out = a;
		return 0;
	}
	pthread_cond_destroy(&a->wanted);
	pthread_mutex_destroy(&a->lock);
free_arena:
	unmap(a);
	free(a);
	return ret;
}

void arena_delete(struct arena *a)
{
	if (!a)
		return;
	pthread_mutex_lock(&a->lock);
	a->stop = true;
	pthread_cond_signal(&a->wanted);
	pthread_mutex_unlock(&a->lock);
	pthread_join(a->thread, NULL);
	pthread_cond_destroy(&a->wanted);
	pthread_mutex_destroy(&a->lock);
	unmap(a);
	free(a);
}

void *arena_get(struct arena *a, size_t size)
{
	unsigned order = 0;
	struct block *b;

	while (a->smallest << order < size)
		order++;
	if (order > a->top)
		return NULL;
	pthread_mutex_lock(&a->lock);
	b = take(a, order);
	a->gets++;
	if (!b) {
		a->starved = true;
		if (a->target <= a->ready)
			a->target = a->ready + ARENA_LARGEST; /* enough may be free, but not in one piece */
	}
	if (is_wanted(a))
		pthread_cond_signal(&a->wanted);
	pthread_mutex_unlock(&a->lock);
	return b;
}

void arena_want(struct arena *a, size_t bytes)
{
	pthread_mutex_lock(&a->lock);
	if (a->target < bytes)
		a->target = bytes;
	a->gets++;
	if (is_wanted(a))
		pthread_cond_signal(&a->wanted);
	pthread_mutex_unlock(&a->lock);
}

void arena_reserve(struct arena *a, size_t bytes)
{
	pthread_mutex_lock(&a->lock);
	a->reserve = bytes < a->max ? bytes : a->max;
	pthread_cond_signal(&a->wanted);
	pthread_mutex_unlock(&a->lock);
}

void arena_put(struct arena *a, void *p)
{
	bool starved;

	pthread_mutex_lock(&a->lock);
	give(a, p, *tag_of(a, p) - 1u);
	starved = a->starved;
	a->starved = false;
	pthread_mutex_unlock(&a->lock);
	tell(a, starved);
}

bool arena_owns(const struct arena *a, const void *p)
{
	return (const char *)p >= a->base && (const char *)p < a->base + a->max;
}

size_t arena_ready(const struct arena *a)
{
	return __atomic_load_n(&a->ready, __ATOMIC_RELAXED);
}

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * test_daemon_arena.c - memory that is there already: nobody gets what another has, it grows and shrinks, who
 * got nothing is told; and what is always there is enough for the library to get on.
 */
#include "daemon/arena.h"
#include "memimg.h"
#include <semaphore.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MAX (8 * (size_t)ARENA_LARGEST)
#define HELD 300

static void told(void *ctx)
{
	sem_post(ctx);
}

static size_t rounded(size_t size)
{
	size_t n = 64;

	while (n < size)
		n *= 2;
	return n;
}

/* Everything is filled with its owner's number; neighbours that overlap would find another. */
static void nobody_shares(void **state)
{
	static struct {
		unsigned char *p;
		size_t len;
	} held[HELD];
	struct arena *a;

	srand(1);
	assert_int_equal(arena_new(&a, 64, MAX, MAX, NULL, NULL), 0);
	for (unsigned turn = 0; turn < 100000; turn++) {
		unsigned i = (unsigned)rand() % HELD;

		if (held[i].p) {
			for (size_t k = 0; k < held[i].len; k += 61)
				assert_int_equal(held[i].p[k], (unsigned char)i);
			arena_put(a, held[i].p);
			held[i].p = NULL;
			continue;
		}
		held[i].len = 1 + (size_t)rand() % (1u << (rand() % 17));
		held[i].p = arena_get(a, held[i].len);
		if (!held[i].p)
			continue;
		assert_true(arena_owns(a, held[i].p) && arena_owns(a, held[i].p + held[i].len - 1));
		assert_int_equal((uintptr_t)held[i].p %
					 (rounded(held[i].len) < 4096 ? rounded(held[i].len) : 4096),
				 0);
		memset(held[i].p, (int)i, held[i].len);
	}
	for (unsigned i = 0; i < HELD; i++)
		if (held[i].p)
			arena_put(a, held[i].p);
	for (unsigned i = 0; i < 8; i++) /* all in whole pieces again */
		assert_non_null(held[i].p = arena_get(a, ARENA_LARGEST));
	assert_null(arena_get(a, 1));
	assert_null(arena_get(a, ARENA_LARGEST + 1));
	arena_delete(a);
}

static void *get_soon(struct arena *a, sem_t *more)
{
	struct timespec t;
	void *p;

	clock_gettime(CLOCK_REALTIME, &t);
	t.tv_sec += 60;
	while (!(p = arena_get(a, ARENA_LARGEST)))
		assert_int_equal(sem_timedwait(more, &t), 0);
	return p;
}

static void grows_and_shrinks(void **state)
{
	unsigned char there[MAX / 4096];
	struct arena *a;
	void *p[8];
	sem_t more;

	sem_init(&more, 0, 0);
	assert_int_equal(arena_new(&a, 4096, ARENA_LARGEST, MAX, told, &more), 0);
	assert_int_equal(arena_ready(a), ARENA_LARGEST);
	for (unsigned i = 0; i < 8; i++)
		p[i] = get_soon(a, &more);
	assert_int_equal(arena_ready(a), MAX);
	while (!sem_trywait(&more))
		;
	assert_null(arena_get(a, 4096));
	assert_int_equal(sem_trywait(&more), -1);
	arena_put(a, p[0]);
	assert_int_equal(sem_trywait(&more), 0); /* by whoever gave it back */
	assert_non_null(p[0] = arena_get(a, 4096));
	for (unsigned i = 1; i < 8; i++)
		arena_put(a, p[i]);
	for (unsigned i = 0; i < 600 && arena_ready(a) > ARENA_LARGEST; i++)
		usleep(100000);
	assert_int_equal(arena_ready(a), ARENA_LARGEST);
	arena_want(a, 3 * (size_t)ARENA_LARGEST);
	for (unsigned i = 0; i < 600 && arena_ready(a) < 3 * (size_t)ARENA_LARGEST; i++)
		usleep(100000);
	assert_int_equal(arena_ready(a), 3 * (size_t)ARENA_LARGEST);
	assert_int_equal(mincore((char *)p[0] - (uintptr_t)p[0] % 4096, 4096, there), 0);
	assert_true(there[0] & 1);
	arena_delete(a);
	sem_destroy(&more);
}

/* Half is free, but in small pieces, and whoever has the others keeps them: it grows for a large one. */
static void grows_for_a_large_one(void **state)
{
	struct arena *a;
	void *p[8];
	sem_t more;

	sem_init(&more, 0, 0);
	assert_int_equal(arena_new(&a, 4096, ARENA_LARGEST, MAX, told, &more), 0);
	for (unsigned i = 0; i < 8; i++)
		assert_non_null(p[i] = arena_get(a, ARENA_LARGEST / 8));
	for (unsigned i = 0; i < 8; i += 2)
		arena_put(a, p[i]);
	usleep(1500000); /* what it grew by while all was in use is gone */
	assert_non_null(get_soon(a, &more));
	arena_delete(a);
	sem_destroy(&more);
}

/* ---- the library on what is always there ---- */

#define CLUSTERS 512u
#define AT_ONCE 32u

static unsigned long refusals, refuse;

static void *get(void *ctx, size_t size)
{
	void *p;

	if (size > ARENA_LARGEST) /* opening */
		return aligned_alloc(4096, size);
	p = refuse ? NULL : arena_get(ctx, size);
	refuse -= !!refuse;
	refusals += !p;
	return p;
}

static void put(void *ctx, void *p)
{
	if (arena_owns(ctx, p))
		arena_put(ctx, p);
	else
		free(p);
}

static size_t ready(void *ctx, size_t want)
{
	return arena_ready(ctx);
}

/* As the metadata thread does it: after a refusal one at a time, again and again. */
static void finish(struct qcow2_image *img, struct job *j, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		for (unsigned tries = 0; !j[i].done; tries++) {
			assert_true(tries < 100000);
			qcow2_run(img, true);
		}
	for (unsigned i = 0; i < n; i++) {
		for (unsigned tries = 0; j[i].res == -ENOMEM; tries++) {
			assert_true(tries < 1000);
			j[i].done = false;
			j[i].res = qcow2_submit(img, &j[i].req);
			for (unsigned turns = 0; !j[i].res && !j[i].done; turns++) {
				assert_true(turns < 100000);
				qcow2_run(img, true);
			}
		}
		assert_int_equal(j[i].res, 0);
	}
}

/* Writes all over an image whose clusters are a snapshot's too: each copies 64 KiB. */
static void reserve_is_enough(void **state)
{
	static unsigned char fill[CLUSTERS];
	struct disk *d = disk_make(&(struct spec){ .bits = 16, .size = CLUSTERS << 16 });
	struct qcow2_memory memory = { .get = get, .put = put, .ready = ready };
	struct qcow2_image *img = open_image(d, NULL);
	struct job j[AT_ONCE];
	struct arena *a;

	srand(2);
	for (unsigned c = 0; c < CLUSTERS; c++)
		assert_int_equal(do_write(img, (uint64_t)c << 16, 65536, 1), 0);
	close_image(img);
	disk_snapshot(d);
	assert_int_equal(arena_new(&a, 64, ARENA_LARGEST, ARENA_LARGEST, NULL, NULL), 0);
	memory.ctx = a;
	qcow2_use_memory(&memory);
	img = open_image(d, NULL);
	memset(fill, 1, sizeof(fill));
	for (unsigned turn = 0; turn < 100; turn++) {
		for (unsigned i = 0; i < AT_ONCE; i++) {
			unsigned c = (turn * AT_ONCE + i) * 37 % CLUSTERS;

			fill[c] = (unsigned char)(2 + turn);
			j[i] = (struct job){ .req = { .op = QCOW2_WRITE,
						      .off = ((uint64_t)c << 16) + 4096,
						      .len = 8192,
						      .done = job_done,
						      .owner = &j[i] } };
			j[i].req.buf = j[i].buf = aligned_alloc(4096, 8192);
			memset(j[i].buf, fill[c], 8192);
			j[i].res = qcow2_submit(img, &j[i].req);
			j[i].done = j[i].res;
		}
		finish(img, j, AT_ONCE);
		for (unsigned i = 0; i < AT_ONCE; i++)
			free(j[i].buf);
		if (turn % 10 == 0)
			assert_int_equal(do_flush(img), 0);
	}
	for (unsigned c = 0; c < CLUSTERS; c++) {
		reads(img, (uint64_t)c << 16, 4096, 1);
		reads(img, ((uint64_t)c << 16) + 4096, 8192, fill[c]);
	}
	print_message("    %lu refusals\n", refusals);
	assert_true(refusals > 10);
	close_image(img);
	qcow2_use_memory(NULL);
	arena_delete(a);
	assert_int_equal(disk_check(d, true).errors, 0);
	disk_free(d);
}

static void start_with(struct arena **a, struct qcow2_memory *memory, size_t bytes)
{
	assert_int_equal(arena_new(a, 64, ARENA_LARGEST, bytes, NULL, NULL), 0);
	arena_reserve(*a, bytes);
	for (unsigned i = 0; i < 600 && arena_ready(*a) < bytes; i++)
		usleep(100000);
	assert_int_equal(arena_ready(*a), bytes);
	*memory = (struct qcow2_memory){ .get = get, .put = put, .ready = ready, .ctx = *a };
	qcow2_use_memory(memory);
	refusals = 0;
}

static void end_with(struct arena *a, struct disk *d)
{
	qcow2_use_memory(NULL);
	arena_delete(a);
	assert_clean(d);
	disk_free(d);
}

static unsigned char buf[65536] __attribute__((aligned(4096)));

static void do_again(struct qcow2_image *img, enum qcow2_req_op op, uint64_t off, uint64_t len, int fill)
{
	struct job j = {
		.req = { .op = op, .off = off, .len = len, .buf = buf, .done = job_done, .owner = &j }
	};

	memset(buf, fill, sizeof(buf));
	j.done = j.res = qcow2_submit(img, &j.req);
	finish(img, &j, 1);
}

/* A block of metadata takes 4096 bytes, even one of 512: not more of them get dirty than a commit can copy.
 */
static void small_blocks_fit(void **state)
{
	struct disk *d = disk_make(&(struct spec){ .bits = 9, .size = 4 << 20 });
	struct qcow2_memory memory;
	struct qcow2_image *img;
	struct arena *a;

	start_with(&a, &memory, ARENA_LARGEST);
	img = open_image(d, NULL);
	for (unsigned i = 0; i < 4000; i++)
		do_again(img, QCOW2_WRITE, (uint64_t)(i * 61 % 8192) << 9, 512, 1 + i % 250);
	assert_int_equal(do_flush(img), 0);
	for (unsigned i = 0; i < 4000; i++)
		do_again(img, QCOW2_WRITE, (uint64_t)(i * 67 % 8192) << 9, 512, 1 + i % 250);
	close_image(img);
	end_with(a, d);
}

/* It is there only after a while: what closes an image waits, and nothing is left undone. */
static void close_waits_for_memory(void **state)
{
	struct disk *d = disk_make(&(struct spec){ .bits = 16, .size = CLUSTERS << 16 });
	struct qcow2_memory memory;
	struct qcow2_image *img;
	struct arena *a;

	for (unsigned times = 1; times < 40; times++) {
		start_with(&a, &memory, ARENA_LARGEST);
		img = open_image(d, NULL);
		for (unsigned c = 0; c < 64; c++)
			do_again(img, QCOW2_WRITE, (uint64_t)c << 16, 65536, 1 + (int)times);
		do_again(img, QCOW2_DISCARD, (times % 16) << 16, 32 << 16, 0);
		refuse = times;
		close_image(img);
		assert_true(refuse == 0);
		qcow2_use_memory(NULL);
		arena_delete(a);
		assert_clean(d);
	}
	disk_free(d);
}

#define LINKS 40u
#define TABLES 32u

static struct {
	char path[24];
	struct disk *d;
} link_of[LINKS + 1];

static int open_link(void *ctx, const char *path, enum backing_format format, struct host_file **out,
		     struct qcow2_error *err)
{
	unsigned i = (unsigned)atoi(strrchr(path, '/') + 1);

	assert_true(i > 0 && i < LINKS);
	*out = disk_open(link_of[i].d, true);
	return 0;
}

static const struct qcow2_options with_links = { .opener = &(struct qcow2_opener){ .open = open_link } };

/* Cluster c of each 2 MiB (one L2 table) comes from link c. */
static void make_links(void)
{
	for (unsigned i = LINKS; i--;) {
		struct qcow2_image *img;

		snprintf(link_of[i].path, sizeof(link_of[i].path), "/%u", i);
		link_of[i].d =
			disk_make(&(struct spec){ .size = TABLES << 21,
						  .rt_clusters = 2,
						  .backing = i + 1 < LINKS ? link_of[i + 1].path : NULL,
						  .format = i + 1 < LINKS ? "qcow2" : NULL });
		link_of[i].d->path = link_of[i].path;
		img = open_image(link_of[i].d, &with_links);
		for (uint64_t t = 0; t < TABLES; t++)
			assert_int_equal(do_write(img, (t << 21) + i * 4096, 4096, (int)(1 + i)), 0);
		close_image(img);
	}
}

/* What each link of a deep chain has cached is no use to the next request; a walk down to the base needs
 * blocks of all. */
static void a_deep_chain_gets_on(void **state)
{
	struct qcow2_memory memory;
	struct qcow2_image *img;
	struct arena *a;

	make_links();
	start_with(&a, &memory, ARENA_LARGEST * (1 + LINKS / 16));
	img = open_image(link_of[0].d, &with_links);
	srand(3);
	for (unsigned i = 0; i < 3000; i++) {
		unsigned t = (unsigned)rand() % TABLES, c = (unsigned)rand() % (LINKS + 1);

		if (i % 10 == 0) {
			do_again(img, QCOW2_WRITE, ((uint64_t)t << 21) + 400 * 4096, 4096, 77);
			continue;
		}
		do_again(img, QCOW2_READ, ((uint64_t)t << 21) + c * 4096, 4096, 99);
		for (unsigned k = 0; k < 4096; k += 511)
			assert_int_equal(buf[k], c == LINKS ? 0 : 1 + c);
	}
	print_message("    %lu refusals\n", refusals);
	assert_true(refusals > 10);
	close_image(img);
	for (unsigned i = 1; i < LINKS; i++)
		disk_free(link_of[i].d);
	end_with(a, link_of[0].d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nobody_shares),	 cmocka_unit_test(grows_and_shrinks),
		cmocka_unit_test(grows_for_a_large_one), cmocka_unit_test(reserve_is_enough),
		cmocka_unit_test(small_blocks_fit),	 cmocka_unit_test(close_waits_for_memory),
		cmocka_unit_test(a_deep_chain_gets_on),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

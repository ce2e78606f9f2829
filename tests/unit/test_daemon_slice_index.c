// SPDX-License-Identifier: GPL-2.0-or-later
/* The index of slices: against a plain list, and with readers that look while it changes. */
#include "daemon/slice_index.h"
#include "unit.h"
#include <pthread.h>
#include <stdbool.h>

#define SLICES 60u
#define ROOM 16u

static uint64_t seed = 1;

static unsigned number(unsigned below)
{
	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return (unsigned)((seed >> 33) % below);
}

/* Numbers that collide often: low and high bits vary. */
static uint64_t slice_of(unsigned i)
{
	return (uint64_t)(i % 10) << 32 | i / 10;
}

static void finds_what_is_there(void **state)
{
	struct slice_index x = { 0 };
	uint32_t slot[SLICES];
	unsigned used = 0;

	assert_int_equal(slice_index_init(&x, ROOM), 0);
	for (unsigned i = 0; i < SLICES; i++)
		slot[i] = SLICE_INDEX_NONE;
	for (unsigned round = 0; round < 200000; round++) {
		unsigned i = number(SLICES);

		if (slot[i] != SLICE_INDEX_NONE) {
			slice_index_remove(&x, slice_of(i));
			slot[i] = SLICE_INDEX_NONE;
			used--;
		} else if (used < ROOM) {
			slot[i] = round;
			slice_index_insert(&x, slice_of(i), round);
			used++;
		}
		for (unsigned n = 0; n < SLICES; n++)
			assert_int_equal(slice_index_find(&x, slice_of(n)), slot[n]);
	}
	slice_index_exit(&x);
}

struct shared {
	struct slice_index x;
	bool stop;
	uint64_t found;
};

/* Slice i is always in slot i, when it is there. A reader may get another's slot, but only of those there
 * are. */
static void *reader_main(void *arg)
{
	struct shared *s = arg;
	uint64_t random = (uintptr_t)&s, found = 0;

	while (!__atomic_load_n(&s->stop, __ATOMIC_RELAXED)) {
		uint32_t slot;

		random = random * 6364136223846793005ull + 1442695040888963407ull;
		slot = slice_index_find(&s->x, slice_of((random >> 33) % SLICES));
		if (slot != SLICE_INDEX_NONE && slot >= SLICES)
			return (void *)1;
		found += slot != SLICE_INDEX_NONE;
	}
	__atomic_fetch_add(&s->found, found, __ATOMIC_RELAXED);
	return NULL;
}

static void readers_may_look_meanwhile(void **state)
{
	struct shared s = { 0 };
	bool there[SLICES] = { false };
	pthread_t thread[2];
	unsigned used = 0;

	assert_int_equal(slice_index_init(&s.x, ROOM), 0);
	for (unsigned i = 0; i < COUNT(thread); i++)
		assert_int_equal(pthread_create(&thread[i], NULL, reader_main, &s), 0);
	for (unsigned round = 0; round < 2000000; round++) {
		unsigned i = number(SLICES);

		if (there[i])
			slice_index_remove(&s.x, slice_of(i));
		else if (used < ROOM)
			slice_index_insert(&s.x, slice_of(i), i);
		else
			continue;
		used += there[i] ? -1u : 1;
		there[i] = !there[i];
	}
	__atomic_store_n(&s.stop, true, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < COUNT(thread); i++) {
		void *ret;

		pthread_join(thread[i], &ret);
		assert_null(ret);
	}
	for (unsigned i = 0; i < SLICES; i++)
		assert_int_equal(slice_index_find(&s.x, slice_of(i)), there[i] ? i : SLICE_INDEX_NONE);
	slice_index_exit(&s.x);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(finds_what_is_there),
		cmocka_unit_test(readers_may_look_meanwhile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The checker's counters against a plain array. */
#include "qcow2/counters.h"
#include "unit.h"

#define LIMIT 300000u

static void test_against_array(void **state)
{
	uint64_t *model = calloc(LIMIT, sizeof(*model)), budget = 64 << 20, lost, i, n, at, rng = 1;
	struct counters c;

	assert_non_null(model);
	assert_int_equal(counters_init(&c, LIMIT, 1ull << 40, &budget), 0);
	for (i = 0; i < 200000; i++) {
		rng = rng * 6364136223846793005ull + 1442695040888963407ull;
		at = (rng >> 33) % LIMIT;
		at = i % 2 ? at : at % 1000; /* half of them close together */
		n = 1ull << (rng >> 20) % 36;
		assert_int_equal(counters_add(&c, at, n, &lost), 0);
		model[at] += n;
		assert_int_equal(lost, model[at] > 1ull << 40 ? model[at] - (1ull << 40) : 0);
		model[at] -= lost;
	}
	for (i = 0; i < LIMIT; i++)
		assert_int_equal(counters_get(&c, i), model[i]);
	for (i = 0, at = 0; counters_next(&c, &at, LIMIT); at++) {
		for (; i < at; i++)
			assert_int_equal(model[i], 0);
		assert_int_equal(model[i++], counters_get(&c, at));
	}
	for (; i < LIMIT; i++)
		assert_int_equal(model[i], 0);
	assert_int_equal(counters_get(&c, LIMIT + 5), 0);
	counters_free(&c);
	free(model);
}

static void test_saturation(void **state)
{
	static const uint64_t max[] = { 1, 3, 15, 255, 65535, UINT32_MAX, UINT64_MAX };
	uint64_t budget = 1 << 20, lost;
	struct counters c;
	size_t i;

	for (i = 0; i < COUNT(max); i++) {
		assert_int_equal(counters_init(&c, 10, max[i], &budget), 0);
		assert_int_equal(counters_add(&c, 9, max[i] - 1, &lost), 0);
		assert_int_equal(lost, 0);
		assert_int_equal(counters_add(&c, 9, 1, &lost), 0);
		assert_int_equal(lost, 0);
		assert_int_equal(counters_get(&c, 9), max[i]);
		assert_int_equal(counters_add(&c, 9, 7, &lost), 0);
		assert_int_equal(lost, 7);
		assert_int_equal(counters_get(&c, 9), max[i]);
		assert_int_equal(counters_get(&c, 8), 0);
		counters_free(&c);
	}
}

static void test_budget(void **state)
{
	uint64_t budget = 100000, lost, i;
	struct counters c;

	assert_int_equal(counters_init(&c, 1u << 31, 255, &budget), -12);
	counters_free(&c);
	budget = 1 << 20;
	assert_int_equal(counters_init(&c, 1u << 31, 255, &budget), 0);
	for (i = 0; !counters_add(&c, i << 16, 1, &lost); i++)
		assert_true(i < 1000);
	assert_true(i > 50);
	assert_true(budget < 1 << 13);
	counters_free(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_against_array),
		cmocka_unit_test(test_saturation),
		cmocka_unit_test(test_budget),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

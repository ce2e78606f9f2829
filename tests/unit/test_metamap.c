// SPDX-License-Identifier: GPL-2.0-or-later
/* The map of metadata clusters: add, change, remove, all or nothing, and a random run against an array. */
#include "qcow2/metamap.h"
#include "unit.h"
#include <errno.h>

static void basics(void **state)
{
	struct metamap *m = metamap_new();

	assert_non_null(m);
	assert_int_equal(metamap_get(m, 0), META_NONE);
	assert_int_equal(metamap_add(m, 0, 1, META_HEADER), 0); /* cluster 0 is a cluster like others */
	assert_int_equal(metamap_get(m, 0), META_HEADER);
	assert_int_equal(metamap_add(m, 10, 5, META_L1), 0);
	assert_int_equal(metamap_get(m, 9), META_NONE);
	assert_int_equal(metamap_get(m, 10), META_L1);
	assert_int_equal(metamap_get(m, 14), META_L1);
	assert_int_equal(metamap_get(m, 15), META_NONE);
	metamap_set(m, 12, META_L2_NEW);
	metamap_set(m, 12, META_L2);
	assert_int_equal(metamap_get(m, 12), META_L2);
	metamap_set(m, 12, META_NONE);
	assert_int_equal(metamap_get(m, 12), META_NONE);
	metamap_set(m, 12, META_RB); /* not there: stays away */
	assert_int_equal(metamap_get(m, 12), META_NONE);
	assert_int_equal(metamap_add(m, (1ull << 47) - 1, 1, META_RT), 0); /* the largest: 2^56 / 512 */
	assert_int_equal(metamap_get(m, (1ull << 47) - 1), META_RT);
	assert_int_equal(metamap_add(m, 5, 0, META_RT), 0);
	metamap_free(m);
	metamap_free(NULL);
}

/* A run that meets one that is there adds none of its clusters and takes none away. */
static void all_or_nothing(void **state)
{
	struct metamap *m = metamap_new();

	assert_int_equal(metamap_add(m, 20, 1, META_RB), 0);
	assert_int_equal(metamap_add(m, 15, 10, META_L2), -EEXIST);
	for (uint64_t c = 10; c < 30; c++)
		assert_int_equal(metamap_get(m, c), c == 20 ? META_RB : META_NONE);
	assert_int_equal(metamap_add(m, 20, 1, META_RB), -EEXIST); /* the same type, too */
	metamap_free(m);
}

static uint64_t rnd(uint64_t n)
{
	static uint64_t x = 88172645463325252ull;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return (x >> 11) % n;
}

/* Far more than one table size, removed and added again: probing must find everybody. */
static void model(void **state)
{
	static const uint64_t strides[] = { 1, 256, 4096, 0x10001, 1ull << 32 };
	static uint8_t want[6000];
	unsigned s, i, k;

	for (s = 0; s < COUNT(strides); s++) {
		struct metamap *m = metamap_new();

		memset(want, 0, sizeof(want));
		for (i = 0; i < 60000; i++) {
			k = (unsigned)rnd(i < 30000 ? 6000 : 900);
			if (!want[k]) {
				want[k] = (uint8_t)(1 + rnd(META_QUARANTINE));
				assert_int_equal(metamap_add(m, k * strides[s], 1, want[k]), 0);
			} else {
				want[k] = rnd(2) ? META_NONE : (uint8_t)(1 + rnd(META_QUARANTINE));
				metamap_set(m, k * strides[s], want[k]);
			}
			k = (unsigned)rnd(6000);
			assert_int_equal(metamap_get(m, k * strides[s]), want[k]);
		}
		for (k = 0; k < 6000; k++)
			assert_int_equal(metamap_get(m, k * strides[s]), want[k]);
		metamap_free(m);
	}
}

static void names(void **state)
{
	unsigned t, u;

	for (t = META_NONE; t <= META_QUARANTINE; t++)
		for (u = META_NONE; u < t; u++)
			assert_string_not_equal(meta_name(t), meta_name(u));
	assert_string_equal(meta_name(META_QUARANTINE), "a freed cluster");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(basics),
		cmocka_unit_test(all_or_nothing),
		cmocka_unit_test(model),
		cmocka_unit_test(names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

// SPDX-License-Identifier: GPL-2.0-or-later
/* Range locks: who waits for whom, first come first served, and a random run against a plain model. */
#include "qcow2/range.h"
#include "unit.h"

static struct qcow2_image img;
static struct range r[16];
static struct op op[16];
static struct runq rq;

static enum step never(struct op *o)
{
	return STEP_DONE;
}

static int setup(void **state)
{
	unsigned i;

	runq_init(&rq);
	memset(r, 0, sizeof(r));
	for (i = 0; i < COUNT(op); i++) {
		op_init(&op[i], &rq);
		op_then(&op[i], never);
		op_get(&op[i]); /* as inside a step */
	}
	return ranges_new(&img);
}

static int teardown(void **state)
{
	ranges_free(&img);
	return 0;
}

static bool lock(unsigned i, uint64_t start, uint64_t end, bool exclusive)
{
	range_lock(&img, &r[i], &op[i], start, end, exclusive);
	assert_int_equal(op[i].pending, r[i].granted ? 1 : 2);
	return r[i].granted;
}

static void unlock(unsigned i)
{
	range_unlock(&img, &r[i]);
	assert_false(r[i].listed);
}

static bool has(unsigned i)
{
	assert_int_equal(op[i].pending, r[i].granted ? 1 : 2);
	return r[i].granted;
}

static void shared_do_not_wait(void **state)
{
	assert_true(lock(0, 0, 100, false));
	assert_true(lock(1, 50, 150, false));
	assert_true(lock(2, 0, 1000, false));
	unlock(1);
	unlock(0);
	unlock(2);
}

static void exclusive_waits(void **state)
{
	assert_true(lock(0, 0, 100, false));
	assert_true(lock(1, 50, 150, false));
	assert_false(lock(2, 99, 101, true));
	unlock(0);
	assert_false(has(2));
	unlock(1);
	assert_true(has(2));
	assert_false(lock(3, 100, 200, false));
	assert_false(lock(4, 0, 100, true));
	unlock(2);
	assert_true(has(3) && has(4));
	unlock(3);
	unlock(4);
}

/* Ranges that only touch do not conflict. */
static void edges(void **state)
{
	assert_true(lock(0, 100, 200, true));
	assert_true(lock(1, 0, 100, true));
	assert_true(lock(2, 200, 300, true));
	assert_false(lock(3, 99, 101, false));
	assert_false(lock(4, 199, 200, false));
	unlock(1);
	assert_false(has(3));
	unlock(0);
	assert_true(has(3) && has(4));
	unlock(2);
	unlock(3);
	unlock(4);
}

/* A reader that comes after a waiting writer waits, too: nobody starves. */
static void first_come_first_served(void **state)
{
	assert_true(lock(0, 0, 100, false));
	assert_false(lock(1, 0, 100, true));
	assert_false(lock(2, 0, 100, false));
	assert_false(lock(3, 50, 60, false));
	assert_true(lock(4, 100, 200, false));
	unlock(0);
	assert_true(has(1));
	assert_false(has(2) || has(3));
	unlock(1);
	assert_true(has(2) && has(3));
	unlock(2);
	unlock(3);
	unlock(4);
}

/* Through a chain: the first blocks the second, which blocks the third, which does not touch the first. */
static void chain(void **state)
{
	assert_true(lock(0, 0, 100, true));
	assert_false(lock(1, 50, 150, true));
	assert_false(lock(2, 120, 200, true));
	unlock(0);
	assert_true(has(1));
	assert_false(has(2));
	unlock(1);
	assert_true(has(2));
	unlock(2);
	unlock(2); /* not locked: nothing happens */
}

static void changing(void **state)
{
	assert_false(range_changing(&img, 0, ~0ull, NULL));
	lock(0, 0, 100, false);
	assert_false(range_changing(&img, 0, 100, NULL)); /* shared: a user, no change */
	lock(1, 0, 100, true); /* waits: counts already */
	assert_true(range_changing(&img, 99, 100, NULL));
	assert_false(range_changing(&img, 100, 101, NULL));
	assert_false(range_changing(&img, 0, 100, &r[1]));
	lock(2, 50, 60, true);
	assert_true(range_changing(&img, 0, 100, &r[1]));
	unlock(2);
	unlock(1);
	assert_false(range_changing(&img, 0, 100, NULL));
	unlock(0);
}

static uint64_t rnd(uint64_t n)
{
	static uint64_t x = 88172645463325252ull;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return (x >> 11) % n;
}

/* The invariant, after every step: granted iff no earlier one in the order of arrival conflicts. */
static void model(void **state)
{
	unsigned order[16], n = 0, step, i, k;

	for (step = 0; step < 20000; step++) {
		i = (unsigned)rnd(16);
		if (!r[i].listed) {
			uint64_t start = rnd(20);

			op[i].pending = 1;
			lock(i, start, start + 1 + rnd(6), rnd(3) == 0);
			order[n++] = i;
		} else if (r[i].granted) {
			unlock(i);
			for (k = 0; order[k] != i; k++)
				;
			memmove(order + k, order + k + 1, (--n - k) * sizeof(*order));
		}
		for (i = 0; i < n; i++) {
			bool free = true;

			for (k = 0; k < i; k++) {
				const struct range *a = &r[order[k]], *b = &r[order[i]];

				if ((a->exclusive || b->exclusive) && a->start < b->end && b->start < a->end)
					free = false;
			}
			assert_int_equal(has(order[i]), free);
		}
	}
	while (n)
		for (i = 0; i < n; i++)
			if (r[order[i]].granted) {
				unlock(order[i]);
				memmove(order + i, order + i + 1, (--n - i) * sizeof(*order));
				break;
			}
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(shared_do_not_wait),
		TEST(exclusive_waits),
		TEST(edges),
		TEST(first_come_first_served),
		TEST(chain),
		TEST(changing),
		TEST(model),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

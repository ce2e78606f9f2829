// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The thread that waits for hits in the kernel, over a module made up here: what is looked at without
 * waiting, what is waited for, the order of the answers, and errors.
 */
#include "daemon/kernel_drain.h"
#include "daemon/upper.h"
#include "unit.h"
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>

#define RANGE_SHIFT 20u

static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	int look; /* the answer of a call that must not wait */
	bool busy; /* calls that wait do so */
	int errors; /* so many of them fail with EINTR, then EIO by turns */
	unsigned looks, waits, waiting;
	struct ublk_bpf_drain last;
} module = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static struct {
	uint64_t ticket[8];
	unsigned count;
} told;

/* In place of upper.c. */
int upper_call(int control, unsigned long call, void *arg)
{
	const struct ublk_bpf_drain *drain = arg;
	int ret = 0;

	assert_int_equal(control, 77);
	assert_int_equal(call, UBLK_BPF_DRAIN);
	pthread_mutex_lock(&module.lock);
	module.last = *drain;
	if (drain->flags & UBLK_BPF_DRAIN_NOWAIT) {
		module.looks++;
		ret = module.look;
	} else {
		module.waits++;
		module.waiting++;
		pthread_cond_broadcast(&module.changed);
		while (module.busy)
			pthread_cond_wait(&module.changed, &module.lock);
		module.waiting--;
		if (module.errors)
			ret = module.errors-- % 2 ? -EINTR : -EIO;
	}
	pthread_mutex_unlock(&module.lock);
	return ret;
}

static void set_busy(bool busy)
{
	pthread_mutex_lock(&module.lock);
	module.busy = busy;
	pthread_cond_broadcast(&module.changed);
	pthread_mutex_unlock(&module.lock);
}

static void until_waiting(void)
{
	pthread_mutex_lock(&module.lock);
	while (!module.waiting)
		pthread_cond_wait(&module.changed, &module.lock);
	pthread_mutex_unlock(&module.lock);
}

static void drained(void *ctx, uint64_t ticket)
{
	assert_ptr_equal(ctx, &told);
	pthread_mutex_lock(&module.lock);
	told.ticket[told.count++] = ticket;
	pthread_cond_broadcast(&module.changed);
	pthread_mutex_unlock(&module.lock);
}

static void until_told(unsigned count)
{
	pthread_mutex_lock(&module.lock);
	while (told.count < count)
		pthread_cond_wait(&module.changed, &module.lock);
	pthread_mutex_unlock(&module.lock);
}

static struct kernel_drain *start(int look, bool busy)
{
	struct kernel_drain *d;

	module.look = look;
	module.busy = busy;
	module.errors = 0;
	module.looks = module.waits = 0;
	told.count = 0;
	assert_int_equal(kernel_drain_start(&d, 77, 3, RANGE_SHIFT, drained, &told), 0);
	return d;
}

static void nobody_there_is_known_at_once(void **state)
{
	struct kernel_drain *d = start(0, true);

	assert_int_equal(kernel_drain(d, 5, 8, 1), 0);
	assert_true(module.last.id == 3 && module.last.offset == 5ull << RANGE_SHIFT &&
		    module.last.length == 3ull << RANGE_SHIFT);
	module.look = -ENODEV; /* no disk, no hits */
	assert_int_equal(kernel_drain(d, 5, 8, 2), 0);
	kernel_drain_stop(d);
	assert_true(module.looks == 2 && module.waits == 0 && told.count == 0);
}

static void who_is_there_is_waited_for(void **state)
{
	struct kernel_drain *d = start(-EAGAIN, true);

	assert_int_equal(kernel_drain(d, 0, 1, 10), -EWOULDBLOCK);
	until_waiting();
	assert_int_equal(told.count, 0);
	assert_int_equal(kernel_drain(d, 1, 2, 11), -EWOULDBLOCK);
	assert_int_equal(kernel_drain(d, 2, 3, 15), -EWOULDBLOCK);
	assert_int_equal(told.count, 0);
	set_busy(false);
	until_told(3);
	assert_true(told.ticket[0] == 10 && told.ticket[1] == 11 && told.ticket[2] == 15);
	kernel_drain_stop(d);
	assert_int_equal(module.waits, 3);
}

/* An error does not mean that they have left; and what was asked for before the end is answered. */
static void errors_are_not_answers(void **state)
{
	struct kernel_drain *d = start(-EINVAL, false);

	module.errors = 4;
	assert_int_equal(kernel_drain(d, 0, 1, 1), -EWOULDBLOCK);
	kernel_drain_stop(d);
	assert_true(module.waits == 5 && told.count == 1 && told.ticket[0] == 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nobody_there_is_known_at_once),
		cmocka_unit_test(who_is_there_is_waited_for),
		cmocka_unit_test(errors_are_not_answers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

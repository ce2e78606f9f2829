// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The debug build: its interposed allocator aborts while a mapped request is served, and only then; its test
 * switches come from the environment.
 */
#include "daemon/fastmap.h"
#include "daemon/guard.h"
#include "daemon/test_switch.h"
#include "unit.h"
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef QUEUE_GUARD
static void call(unsigned what)
{
	static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	static void *volatile kept;
	void *p;

	switch (what) {
	case 0:
		kept = malloc(10);
		break;
	case 1:
		kept = calloc(1, 10);
		break;
	case 2:
		p = kept;
		kept = realloc(p, 20);
		break;
	case 3:
		free(kept);
		kept = NULL;
		break;
	case 4:
		pthread_mutex_lock(&mutex);
		pthread_mutex_unlock(&mutex);
		break;
	}
}

/* The status of a child that makes the call, under the guard or not. */
static int status_of(unsigned what, bool guarded)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		if (guarded)
			queue_guard_enter();
		call(what);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}
#endif

static void only_mapped_requests_abort(void **state)
{
#ifdef QUEUE_GUARD
	for (unsigned what = 0; what < 5; what++) {
		int status = status_of(what, true);

		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
		assert_int_equal(status_of(what, false), 0);
	}
#else
	skip();
#endif
}

#ifdef QUEUE_GUARD
static uint64_t hit_ms(unsigned queue)
{
	struct timespec from, to;

	clock_gettime(CLOCK_MONOTONIC, &from);
	test_switch_hit(queue);
	clock_gettime(CLOCK_MONOTONIC, &to);
	return (uint64_t)((to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000);
}

/* Whether a process with this in its environment refuses to start. */
static bool refuses(const char *name, const char *value)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		close(2);
		setenv(name, value, 1);
		test_switch_init();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) && WEXITSTATUS(status) == 2;
}
#endif

static void switches_are_read_from_the_environment(void **state)
{
#ifdef QUEUE_GUARD
	test_switch_init();
	assert_false(fastmap_test_skip_drain);
	setenv("UBLK_QCOW2_TEST_SKIP_DRAIN", "1", 1);
	setenv("UBLK_QCOW2_TEST_HIT_DELAY", "0x5:60000000:2", 1); /* a minute for those it does not concern */
	test_switch_init();
	assert_true(fastmap_test_skip_drain);
	assert_true(hit_ms(1) < 60000 && hit_ms(3) < 60000 && hit_ms(0) < 60000); /* the last: one of two */
	setenv("UBLK_QCOW2_TEST_SKIP_DRAIN", "0", 1);
	setenv("UBLK_QCOW2_TEST_HIT_DELAY", "4:20000", 1);
	test_switch_init();
	assert_false(fastmap_test_skip_drain);
	assert_true(hit_ms(2) >= 20 && hit_ms(2) >= 20);

	assert_false(refuses("UBLK_QCOW2_TEST_SKIP_DRAIN", "1"));
	assert_true(refuses("UBLK_QCOW2_TEST_SKIP_DRAIN", "yes"));
	assert_true(refuses("UBLK_QCOW2_TEST_HIT_DELAY", "1"));
	assert_true(refuses("UBLK_QCOW2_TEST_HIT_DELAY", "0:5"));
	assert_true(refuses("UBLK_QCOW2_TEST_HIT_DELAY", "1:5:0"));
	assert_true(refuses("UBLK_QCOW2_TEST_HIT_DELAY", "1:5ms"));
#else
	skip();
#endif
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(only_mapped_requests_abort),
		cmocka_unit_test(switches_are_read_from_the_environment),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

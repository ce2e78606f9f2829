// SPDX-License-Identifier: GPL-2.0-or-later
/* The debug build's interposed allocator aborts while a mapped request is served, and only then. */
#include "daemon/guard.h"
#include "unit.h"
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/wait.h>
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(only_mapped_requests_abort),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

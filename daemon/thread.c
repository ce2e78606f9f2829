/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thread.c - the daemon's threads. Owns nothing. All signals are left to the main thread, so that no system
 * call of the I/O path is interrupted.
 */
#include "thread.h"
#include "memory.h"
#include <limits.h>
#include <sched.h>

#ifdef __SANITIZE_ADDRESS__
#define STACK (4u << 20)
#else
#define STACK (64u << 10)
#endif

int thread_start(pthread_t *out, const char *name, void *(*fn)(void *), void *arg)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int ret;

	ret = pthread_attr_init(&attr);
	if (ret)
		return -ret;
	pthread_attr_setstacksize(&attr, STACK); /* more than PTHREAD_STACK_MIN: cannot fail */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	ret = pthread_create(out, &attr, fn, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	if (!ret)
		pthread_setname_np(*out, name);
	return -ret;
}

void thread_main_signals(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGTERM);
	sigaddset(set, SIGINT);
	sigaddset(set, SIGUSR1);
	sigprocmask(SIG_BLOCK, set, NULL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
}

void thread_batch(void)
{
	struct sched_param p = { 0 };

	sched_setscheduler(0, SCHED_BATCH, &p); /* allowed to everybody */
}

void thread_io_path(void)
{
	memory_fill_stack(STACK / 4 * 3); /* the rest holds what the C library keeps of a thread */
}

// SPDX-License-Identifier: GPL-2.0-or-later
/* scratch.c - see scratch.h. */
#include "scratch.h"
#include "crash.h"
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char dir[100];
static pid_t owner;

static void remove_all(void)
{
	char cmd[150];

	if (getpid() != owner)
		return;
	snprintf(cmd, sizeof(cmd), "rm -rf '%s'", dir);
	if (system(cmd))
		fprintf(stderr, "crash-sim: %s is left behind\n", dir);
}

bool scratch_make(void)
{
	const char *tmp = getenv("TMPDIR");

	if (system("qemu-img --version >/dev/null 2>&1")) {
		fprintf(stderr, "SKIP: qemu-img is not installed\n");
		return false;
	}
	/* The checker's megabyte of pieces is mapped, not cleared, each time: most of it is never touched. */
	mallopt(M_MMAP_THRESHOLD, 512 << 10);
	snprintf(dir, sizeof(dir), "%s/crash-sim.XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(dir))
		die("%s: cannot make it", dir);
	owner = getpid();
	return !atexit(remove_all);
}

const char *scratch_dir(void)
{
	return dir;
}

// SPDX-License-Identifier: GPL-2.0-or-later
/* crash.c - how the simulator ends; see crash.h. */
#include "crash.h"
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct where where;
void (*finding_details)(void);

void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fprintf(stderr, "crash-sim: ");
	vfprintf(stderr, fmt, ap);
	fprintf(stderr, "\n");
	va_end(ap);
	exit(2);
}

void finding(const char *fmt, ...)
{
	static bool again;
	va_list ap;

	fflush(stdout);
	fprintf(stderr, "FINDING: ");
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\n  family %s, seed %" PRIu64 ", life %u, point %" PRIu64, where.family, where.seed,
		where.life, where.point);
	if (where.state >= 0)
		fprintf(stderr, ", state %" PRId64, where.state);
	fprintf(stderr, " (after %" PRIu64 " judged states)\n  repeat: crash-sim --replay %s %" PRIu64,
		where.judged, where.family, where.seed);
	if (where.state >= 0)
		fprintf(stderr, " %" PRIu64 " %" PRId64, where.point, where.state);
	fprintf(stderr, "\n");
	if (!again && finding_details) {
		again = true;
		finding_details();
	}
	exit(1);
}

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * log.c - one function, two places. The journal reads /dev/log like every other syslog, so plain
 * syslog(3) reaches both. Nothing here waits: a log that nobody reads loses lines, not requests.
 */
#include "log.h"
#include <stdarg.h>
#include <stdio.h>

static bool use_syslog;

void log_to_syslog(void)
{
	openlog("ublk-qcow2", LOG_PID, LOG_DAEMON);
	use_syslog = true;
}

bool log_is_syslog(void)
{
	return use_syslog;
}

void log_line(int priority, const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (use_syslog)
		syslog(priority, "%s", text);
	else
		fprintf(stderr, "ublk-qcow2: %s\n", text);
}

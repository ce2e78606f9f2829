/* SPDX-License-Identifier: GPL-2.0-or-later */
/* log.h - what a device process has to say: standard error in the foreground, syslog otherwise. */
#ifndef DAEMON_LOG_H
#define DAEMON_LOG_H

#include <stdbool.h>
#include <syslog.h>

/* Until then everything goes to standard error. */
void log_to_syslog(void);
bool log_is_syslog(void);
/* One line, no newline at its end. priority: LOG_ERR, LOG_WARNING, LOG_INFO. Any thread. */
void log_line(int priority, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif

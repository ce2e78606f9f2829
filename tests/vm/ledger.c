// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * ledger.c - the file of promises (see the header).
 *
 * Lines, promises first: "mark SINCE FIRST COUNT SENT", SENT = when the log had the mark for certain:
 * whatever is before it in the log was started before that. Without a log nothing is known of that, SENT is
 * the end of time. Then those of judge_save().
 *
 * A power cut leaves of each block what a read could have seen that started with the last promise about it
 * and ended when the first mark had come that is not in the log any more.
 */
#include "ledger.h"
#include "judge.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/dm-ioctl.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define END_OF_TIME UINT64_MAX

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static FILE *file;
static const char *log_name;
static int control = -1;
static unsigned marks;

static uint64_t *promised; /* of each block */
static uint64_t end;

static void die(const char *what)
{
	fprintf(stderr, "ledger: %s: %s\n", what, strerror(errno));
	_exit(2);
}

/* ---- making one ---- */

void ledger_open(const char *path, const char *log)
{
	file = fopen(path, "w");
	if (!file)
		die(path);
	log_name = log;
	control = log ? open("/dev/mapper/control", O_RDWR | O_CLOEXEC) : -1;
	if (log && control < 0)
		die("/dev/mapper/control");
}

static void mark_log(unsigned n)
{
	_Alignas(struct dm_ioctl) char buf[sizeof(struct dm_ioctl) + 64] = { 0 };
	struct dm_ioctl *head = (struct dm_ioctl *)buf;
	struct dm_target_msg *msg = (struct dm_target_msg *)(head + 1);

	*head = (struct dm_ioctl){ .version = { DM_VERSION_MAJOR, 0, 0 },
				   .data_size = sizeof(buf),
				   .data_start = sizeof(*head) };
	snprintf(head->name, sizeof(head->name), "%s", log_name);
	snprintf(msg->message, 64 - sizeof(*msg), "mark %u", n);
	if (ioctl(control, DM_TARGET_MSG, head))
		die("mark");
}

void ledger_promise(uint64_t since, unsigned first, unsigned n)
{
	uint64_t sent = END_OF_TIME;

	pthread_mutex_lock(&lock);
	if (file) {
		if (log_name) {
			mark_log(++marks);
			sent = judge_time();
		}
		fprintf(file, "mark %" PRIu64 " %u %u %" PRIu64 "\n", since, first, n, sent);
		if (fflush(file))
			die("write");
	}
	pthread_mutex_unlock(&lock);
}

void ledger_close(void)
{
	pthread_mutex_lock(&lock);
	if (file) {
		judge_save(file);
		if (fclose(file))
			die("write");
		file = NULL;
	}
	pthread_mutex_unlock(&lock);
}

/* ---- reading one ---- */

static void load_mark(const char *line, unsigned mark, unsigned count)
{
	uint64_t since, sent;
	unsigned first, n;

	errno = EINVAL;
	if (sscanf(line, "mark %" SCNu64 " %u %u %" SCNu64, &since, &first, &n, &sent) != 4 ||
	    first > count || n > count - first)
		die(line);
	if (++marks == mark + 1)
		end = sent;
	for (unsigned b = first; marks <= mark && b < first + n; b++)
		if (since > promised[b])
			promised[b] = since;
}

void ledger_load(const char *path, unsigned mark, unsigned count)
{
	char line[200];
	FILE *f = fopen(path, "r");

	promised = calloc(count, sizeof(*promised));
	if (!f || !promised)
		die(path);
	end = END_OF_TIME;
	marks = 0;
	while (fgets(line, sizeof(line), f)) {
		if (!strncmp(line, "mark ", 5))
			load_mark(line, mark, count);
		else if (!judge_load(line))
			die(line);
	}
	fclose(f);
	errno = ERANGE;
	if (marks < mark)
		die("no such mark");
}

uint64_t ledger_since(unsigned b)
{
	return promised[b];
}

uint64_t ledger_end(void)
{
	return end;
}

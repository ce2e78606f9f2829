// SPDX-License-Identifier: GPL-2.0-or-later
/* progress.c - at most ten redraws a second, on one line. */
#include "progress.h"
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BAR 40
#define PAUSE_MS 100

const char *progress_text(char *buf, size_t size, uint64_t done, uint64_t total)
{
	double part = total ? (double)done / (double)total : 1;
	char bar[BAR + 1];
	int full;

	if (part > 1)
		part = 1;
	full = (int)(part * BAR);
	memset(bar, ' ', BAR);
	memset(bar, '=', (size_t)full);
	if (full < BAR)
		bar[full] = '>';
	bar[BAR] = '\0';
	snprintf(buf, size, "[%s] %3d%%", bar, (int)(part * 100));
	return buf;
}

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

void progress_start(struct progress *p)
{
	/* what is over at once needs no bar */
	*p = (struct progress){ .on = isatty(STDERR_FILENO) == 1, .next_ms = now_ms() + 5 * PAUSE_MS };
}

void progress_show(struct progress *p, uint64_t done, uint64_t total)
{
	char text[BAR + 16];
	int64_t now;

	if (!p->on)
		return;
	now = now_ms();
	if (now < p->next_ms)
		return;
	p->next_ms = now + PAUSE_MS;
	p->drawn = true;
	fprintf(stderr, "\r%s", progress_text(text, sizeof(text), done, total));
}

void progress_hide(struct progress *p)
{
	if (!p->drawn)
		return;
	fputs("\r\033[K", stderr);
	p->drawn = false;
}

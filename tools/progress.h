/* SPDX-License-Identifier: GPL-2.0-or-later */
/* progress.h - a progress line on a terminal's standard error; nothing anywhere else. */
#ifndef TOOLS_PROGRESS_H
#define TOOLS_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct progress {
	bool on;
	int64_t next_ms; /* no redraw before */
	bool drawn;
};

/* Text of the line, without newline: "[=====>        ]  37%". Pure. */
const char *progress_text(char *buf, size_t size, uint64_t done, uint64_t total);

void progress_start(struct progress *p);
void progress_show(struct progress *p, uint64_t done, uint64_t total);
/* Wipe the line, before anything else is printed; it comes back with the next show. */
void progress_hide(struct progress *p);

#endif

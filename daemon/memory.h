/* SPDX-License-Identifier: GPL-2.0-or-later */
/* memory.h - what keeps a device process going when memory is short, even if its device is the swap space. */
#ifndef DAEMON_MEMORY_H
#define DAEMON_MEMORY_H

#include <stddef.h>

/*
 * For a process with one thread and no ring: allocations of this thread, and of all threads that come of it,
 * never wait for I/O; no page that the process has touched leaves memory, its code and data are there at
 * once; the OOM killer takes others first. What is refused is one line in the log and otherwise done without.
 */
void memory_protect(const char *image);
/*
 * Between these two, what malloc gives in pages is freed to the kernel and not into the heap, which is locked
 * and keeps it: for libbpf, which takes much and for a moment. They do not nest.
 */
void memory_start_passing(void);
void memory_end_passing(void);
/* Have the pages of [p, p + len) there now, for writing, so that no access has to wait for memory. */
void memory_fill(void *p, size_t len);
/* The same for @len bytes of the calling thread's stack. */
void memory_fill_stack(size_t len);

#endif

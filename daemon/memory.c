/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * memory.c - locks the process's memory and says who it is. Owns nothing.
 *
 * A page of ours that is not in memory may have to be read from the device that we serve, or wait for memory
 * that only a write to that device frees. So both processes lock what they have: the worker for its requests,
 * the supervisor because it has to bring a dead worker back. Pages are locked as they are touched
 * (MCL_ONFAULT), so that the large, mostly unused mappings (buffers by tag) cost nothing; what a request
 * needs and nobody has touched yet is filled here and by memory_fill().
 */
#include "memory.h"
#include "log.h"
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define MAPPED (128 << 10) /* the C library's own limit of what malloc maps */
#define HEAP (96u << 10) /* less than that */

/* Whole pages that hold [start, end). */
static void populate(uintptr_t start, uintptr_t end, int how)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);

	start = start / page * page;
	end = (end + page - 1) / page * page;
	madvise((void *)start, end - start, how); /* 5.14; what cannot be had now comes when it is touched */
}

/* A program or library. Not all of it is used by a request: not worth a list. */
static int populate_object(struct dl_phdr_info *info, size_t size, void *unused)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);

	for (unsigned i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];
		uintptr_t start = info->dlpi_addr + p->p_vaddr, end = start + p->p_memsz;

		if (p->p_type != PT_LOAD)
			continue;
		populate(start, end, MADV_POPULATE_READ);
		for (; p->p_flags & PF_W && start < end; start += page) /* each: some are read-only (RELRO) */
			populate(start, start + 1, MADV_POPULATE_WRITE);
	}
	return 0;
}

/*
 * Killing us would free little, and stop the writes that free more. Not -1000: should we ever leak, the
 * kernel must be left with somebody to kill.
 */
static void set_oom_score(void)
{
	int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
	char now[16] = "";

	if (fd < 0)
		return;
	if (read(fd, now, sizeof(now) - 1) > 0 && atoi(now) > -900)
		(void)!pwrite(fd, "-900", 4, 0); /* a preference */
	close(fd);
}

/* What malloc has to give without asking the kernel, to whatever thread. */
static void reserve_heap(void)
{
	void *p;

	mallopt(M_ARENA_MAX, 1);
	mallopt(M_TRIM_THRESHOLD, 8 * HEAP);
	p = malloc(HEAP);
	if (p)
		memory_fill(p, HEAP);
	free(p);
}

void memory_protect(const char *image)
{
	set_oom_score();
	if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) < 0)
		log_line(LOG_WARNING, "%s: PR_SET_IO_FLUSHER: %s: do not swap on this device", image,
			 strerror(errno));
	if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) < 0) {
		log_line(LOG_WARNING, "%s: cannot lock memory: %s: do not swap on this device", image,
			 strerror(errno));
		return; /* nor is it worth filling */
	}
	dl_iterate_phdr(populate_object, NULL);
	reserve_heap();
}

void memory_start_passing(void)
{
	mallopt(M_MMAP_THRESHOLD, (int)sysconf(_SC_PAGESIZE));
}

void memory_end_passing(void)
{
	mallopt(M_MMAP_THRESHOLD, MAPPED);
	malloc_trim(HEAP);
}

void memory_fill(void *p, size_t len)
{
	populate((uintptr_t)p, (uintptr_t)p + len, MADV_POPULATE_WRITE);
}

__attribute__((noinline)) void memory_fill_stack(size_t len)
{
	char *here = __builtin_frame_address(0);

	memory_fill(here - len, len);
}

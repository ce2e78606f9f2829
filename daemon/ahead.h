/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * ahead.h - when and how far to reserve space behind the end of a growing file.
 */
#ifndef DAEMON_AHEAD_H
#define DAEMON_AHEAD_H

#include <stdbool.h>
#include <stdint.h>

#define AHEAD_MIN (1ull << 20)
#define AHEAD_MAX (16ull << 20)

struct ahead {
	int fd;
	bool running; /* between ahead_next() and ahead_done() */
	uint64_t start; /* bytes of the file used at first, */
	uint64_t used; /* and now; 0: not known yet */
	uint64_t step; /* of the last ahead_next() */
	uint64_t next; /* nothing to do until so much is used */
	uint64_t end; /* reserved up to here; 0: nothing was */
};

/* Of @fd, open for writing until ahead_cut(). Never reserves on a file system where that is not known to
 * help. */
void ahead_init(struct ahead *a, int fd);
/* The file is used up to byte @used, more than ever before. True: fallocate (mode 0) [*off, *off + *len),
 * then call ahead_done(); there is no second one meanwhile. */
bool ahead_next(struct ahead *a, uint64_t used, uint64_t *off, uint64_t *len);
/* The result, 0 or -errno. Any error only means that nothing is reserved for a while. */
void ahead_done(struct ahead *a, int res);
/* Give back what is reserved and not used. Nothing may run. */
void ahead_cut(const struct ahead *a);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * store.h - the descriptors of an image's chain, kept for the next worker. The open file descriptions carry
 * the image locks, so the locks live as long as the store does.
 */
#ifndef DAEMON_STORE_H
#define DAEMON_STORE_H

#include <stddef.h>

#define STORE_MAX 512u /* files; a chain has 256 at most */

struct stored {
	char *path, *role;
	int fd;
};

struct store {
	struct stored *file;
	unsigned count;
};

/* Keep @fd (owned from now on, also on failure) as what @path was opened for; an older one of that name is
 * closed. 0, -ENOMEM, -E2BIG. */
int store_add(struct store *s, const char *path, const char *role, int fd);
/* The descriptor, still the store's, or -1. */
int store_find(const struct store *s, const char *path, const char *role);
/* Closes everything. */
void store_clear(struct store *s);

#endif

// SPDX-License-Identifier: GPL-2.0-or-later
/* store.c - a list of descriptors by path and role. A chain names a file at most once, loops are refused. */
#include "store.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct stored *find(const struct store *s, const char *path, const char *role)
{
	for (unsigned i = 0; i < s->count; i++)
		if (strcmp(s->file[i].path, path) == 0 && strcmp(s->file[i].role, role) == 0)
			return &s->file[i];
	return NULL;
}

static int append(struct store *s, const char *path, const char *role, int fd)
{
	struct stored *more, new = { .path = strdup(path), .role = strdup(role), .fd = fd };

	more = new.path &&new.role ? realloc(s->file, (s->count + 1) * sizeof(*more)) : NULL;
	if (!more) {
		free(new.path);
		free(new.role);
		return -ENOMEM;
	}
	s->file = more;
	more[s->count++] = new;
	return 0;
}

int store_add(struct store *s, const char *path, const char *role, int fd)
{
	struct stored *old = find(s, path, role);
	int ret;

	if (old) {
		close(old->fd);
		old->fd = fd;
		return 0;
	}
	ret = s->count < STORE_MAX ? append(s, path, role, fd) : -E2BIG;
	if (ret)
		close(fd);
	return ret;
}

int store_find(const struct store *s, const char *path, const char *role)
{
	const struct stored *f = find(s, path, role);

	return f ? f->fd : -1;
}

void store_clear(struct store *s)
{
	for (unsigned i = 0; i < s->count; i++) {
		close(s->file[i].fd);
		free(s->file[i].path);
		free(s->file[i].role);
	}
	free(s->file);
	*s = (struct store){ NULL };
}

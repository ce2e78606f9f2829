/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * metamap.c - an open-addressing hash from host cluster number to the kind of metadata it holds.
 *
 * Every cluster that holds live metadata of the active image is in it from open on, so that one probe
 * answers "may guest data or another table be written here?" before each write.
 * A slot is cluster << 4 | type; 0 = empty; deletion moves followers back (no tombstones).
 */
#include <errno.h>
#include <stdlib.h>
#include "metamap.h"

struct metamap {
	uint64_t *slot;
	uint64_t mask, count;
};

static uint64_t home(const struct metamap *m, uint64_t cluster)
{
	return (cluster * 0x9e3779b97f4a7c15ull >> 20) & m->mask;
}

struct metamap *metamap_new(void)
{
	struct metamap *m = calloc(1, sizeof(*m));

	if (!m)
		return NULL;
	m->mask = 255;
	m->slot = calloc(m->mask + 1, sizeof(*m->slot));
	if (!m->slot) {
		free(m);
		return NULL;
	}
	return m;
}

void metamap_free(struct metamap *m)
{
	if (!m)
		return;
	free(m->slot);
	free(m);
}

/* The slot of @cluster, or the empty one where it would go. */
static uint64_t find(const struct metamap *m, uint64_t cluster)
{
	uint64_t i = home(m, cluster);

	while (m->slot[i] && m->slot[i] >> 4 != cluster)
		i = (i + 1) & m->mask;
	return i;
}

static int grow(struct metamap *m)
{
	struct metamap bigger = { .mask = m->mask * 2 + 1 };
	uint64_t i;

	if (m->count * 2 <= m->mask)
		return 0;
	bigger.slot = calloc(bigger.mask + 1, sizeof(*bigger.slot));
	if (!bigger.slot)
		return -ENOMEM;
	for (i = 0; i <= m->mask; i++)
		if (m->slot[i])
			bigger.slot[find(&bigger, m->slot[i] >> 4)] = m->slot[i];
	free(m->slot);
	m->slot = bigger.slot;
	m->mask = bigger.mask;
	return 0;
}

enum meta_type metamap_get(const struct metamap *m, uint64_t cluster)
{
	return (enum meta_type)(m->slot[find(m, cluster)] & 15);
}

int metamap_add(struct metamap *m, uint64_t first, uint64_t n, enum meta_type type)
{
	uint64_t c;
	int ret;

	for (c = first; c < first + n; c++) {
		ret = metamap_get(m, c) ? -EEXIST : grow(m);
		if (ret)
			goto undo;
		m->slot[find(m, c)] = c << 4 | type;
		m->count++;
	}
	return 0;
undo:
	while (c-- > first)
		metamap_set(m, c, META_NONE);
	return ret;
}

/* Close the gap at @i so that probing still finds every follower. */
static void erase(struct metamap *m, uint64_t i)
{
	uint64_t j = i;

	m->count--;
	for (;;) {
		uint64_t h;

		m->slot[i] = 0;
		do {
			j = (j + 1) & m->mask;
			if (!m->slot[j])
				return;
			h = home(m, m->slot[j] >> 4);
		} while (i <= j ? i < h && h <= j : i < h || h <= j);
		m->slot[i] = m->slot[j];
		i = j;
	}
}

void metamap_set(struct metamap *m, uint64_t cluster, enum meta_type type)
{
	uint64_t i = find(m, cluster);

	if (!m->slot[i])
		return;
	if (type == META_NONE)
		erase(m, i);
	else
		m->slot[i] = cluster << 4 | type;
}

const char *meta_name(enum meta_type type)
{
	static const char *const name[] = {
		"nothing",	  "the header",	    "the L1 table",   "an L2 table", "a new L2 table",
		"the refcount table", "a refcount block", "a snapshot table", "a freed cluster",
	};

	return name[type];
}

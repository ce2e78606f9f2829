/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * counters.c - a three-level tree: top array -> node of 512 leaves -> leaf of 128 counters.
 *
 * A dense file costs about 1.2 bytes per cluster, a sparse one what it touches. All counters of a
 * leaf have one width (1, 2, 4 or 8 bytes); the leaf is copied into a wider one when the first of
 * them overflows its width. Invariant: *budget goes down by exactly what is allocated.
 */
#include "counters.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LEAF_BITS 7
#define NODE_BITS 9
#define LEAF_COUNTERS (1u << LEAF_BITS)
#define NODE_LEAVES (1u << NODE_BITS)
#define TOP_SHIFT (LEAF_BITS + NODE_BITS)

struct leaf {
	uint64_t order; /* log2 of the bytes per counter */
	uint8_t bytes[];
};

struct counters_node {
	struct leaf *leaf[NODE_LEAVES];
};

static void *budget_alloc(uint64_t *budget, uint64_t bytes)
{
	void *p;

	if (bytes > *budget)
		return NULL;
	p = calloc(1, bytes);
	if (p)
		*budget -= bytes;
	return p;
}

static uint64_t leaf_get(const struct leaf *l, unsigned i)
{
	switch (l->order) {
	case 0:
		return l->bytes[i];
	case 1:
		return ((const uint16_t *)l->bytes)[i];
	case 2:
		return ((const uint32_t *)l->bytes)[i];
	default:
		return ((const uint64_t *)l->bytes)[i];
	}
}

static void leaf_set(struct leaf *l, unsigned i, uint64_t value)
{
	switch (l->order) {
	case 0:
		l->bytes[i] = (uint8_t)value;
		return;
	case 1:
		((uint16_t *)l->bytes)[i] = (uint16_t)value;
		return;
	case 2:
		((uint32_t *)l->bytes)[i] = (uint32_t)value;
		return;
	default:
		((uint64_t *)l->bytes)[i] = value;
	}
}

static bool fits(uint64_t order, uint64_t value)
{
	return order >= 3 || value >> (8u << order) == 0;
}

static uint64_t leaf_bytes(uint64_t order)
{
	return sizeof(struct leaf) + ((uint64_t)LEAF_COUNTERS << order);
}

/* Replace *slot (may be empty) by a leaf whose counters can hold @value. */
static struct leaf *leaf_for(struct counters *c, struct leaf **slot, uint64_t value)
{
	struct leaf *old = *slot, *l;
	uint64_t order = old ? old->order : 0;
	unsigned i;

	while (!fits(order, value))
		order++;
	if (old && order == old->order)
		return old;
	l = budget_alloc(c->budget, leaf_bytes(order));
	if (!l)
		return NULL;
	l->order = order;
	if (old) {
		for (i = 0; i < LEAF_COUNTERS; i++)
			leaf_set(l, i, leaf_get(old, i));
		*c->budget += leaf_bytes(old->order);
		free(old);
	}
	*slot = l;
	return l;
}

int counters_init(struct counters *c, uint64_t limit, uint64_t max, uint64_t *budget)
{
	*c = (struct counters){ .limit = limit, .max = max, .budget = budget };
	c->top = budget_alloc(budget, ((limit >> TOP_SHIFT) + 1) * sizeof(*c->top));
	return c->top ? 0 : -ENOMEM;
}

void counters_free(struct counters *c)
{
	uint64_t i;
	unsigned j;

	for (i = 0; c->top && i <= c->limit >> TOP_SHIFT; i++) {
		for (j = 0; c->top[i] && j < NODE_LEAVES; j++)
			free(c->top[i]->leaf[j]);
		free(c->top[i]);
	}
	free(c->top);
	c->top = NULL;
}

static struct leaf *find(const struct counters *c, uint64_t index)
{
	struct counters_node *node = c->top[index >> TOP_SHIFT];

	return node ? node->leaf[index >> LEAF_BITS & (NODE_LEAVES - 1)] : NULL;
}

int counters_add(struct counters *c, uint64_t index, uint64_t n, uint64_t *lost)
{
	struct counters_node **node = &c->top[index >> TOP_SHIFT];
	unsigned i = index & (LEAF_COUNTERS - 1);
	uint64_t old = counters_get(c, index);
	struct leaf *l;

	*lost = n > c->max - old ? n - (c->max - old) : 0;
	if (*lost == n)
		return 0;
	if (!*node)
		*node = budget_alloc(c->budget, sizeof(**node));
	if (!*node)
		return -ENOMEM;
	l = leaf_for(c, &(*node)->leaf[index >> LEAF_BITS & (NODE_LEAVES - 1)], old + n - *lost);
	if (!l)
		return -ENOMEM;
	leaf_set(l, i, old + n - *lost);
	return 0;
}

uint64_t counters_get(const struct counters *c, uint64_t index)
{
	struct leaf *l = index < c->limit ? find(c, index) : NULL;

	return l ? leaf_get(l, index & (LEAF_COUNTERS - 1)) : 0;
}

bool counters_next(const struct counters *c, uint64_t *index, uint64_t end)
{
	uint64_t i = *index;
	struct leaf *l;

	if (end > c->limit)
		end = c->limit;
	while (i < end) {
		l = find(c, i);
		if (l && leaf_get(l, i & (LEAF_COUNTERS - 1))) {
			*index = i;
			return true;
		}
		if (l)
			i++;
		else if (c->top[i >> TOP_SHIFT])
			i = (i | (LEAF_COUNTERS - 1)) + 1;
		else
			i = (i | ((1ull << TOP_SHIFT) - 1)) + 1;
	}
	return false;
}

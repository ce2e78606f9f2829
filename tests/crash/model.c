// SPDX-License-Identifier: GPL-2.0-or-later
/* model.c - the values of each sector, newest last; see model.h for the rule. */
#include "model.h"
#include "crash.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define PENDING UINT64_MAX

struct value {
	uint64_t word, serial, issued, completed;
	bool failed; /* replaces nothing */
};

struct sector {
	struct value *v;
	unsigned n, cap;
};

struct model {
	struct sector *s;
	uint64_t n, epoch;
};

static void add(struct sector *s, struct value v)
{
	if (s->n == s->cap) {
		s->cap = s->cap ? 2 * s->cap : 2;
		s->v = realloc(s->v, s->cap * sizeof(*s->v));
		if (!s->v)
			die("out of memory");
	}
	s->v[s->n++] = v;
}

struct model *model_new(const uint64_t *initial, uint64_t n)
{
	struct model *m = calloc(1, sizeof(*m));
	uint64_t i;

	if (m)
		m->s = calloc(n, sizeof(*m->s));
	if (!m || !m->s)
		die("out of memory");
	m->n = n;
	for (i = 0; i < n; i++)
		add(&m->s[i], (struct value){ .word = initial[i] });
	return m;
}

void model_free(struct model *m)
{
	uint64_t i;

	for (i = 0; i < m->n; i++)
		free(m->s[i].v);
	free(m->s);
	free(m);
}

void model_issue(struct model *m, uint64_t first, uint64_t n, uint64_t serial, const uint64_t *below,
		 uint64_t clock)
{
	uint64_t i, word;

	for (i = first; i < first + n; i++) {
		word = serial & ZERO_SERIAL ? 0 : word_for(i, serial);
		add(&m->s[i], (struct value){ word, serial, clock, PENDING, false });
		if (below)
			add(&m->s[i], (struct value){ below[i], serial, clock, PENDING, false });
	}
}

void model_complete(struct model *m, uint64_t first, uint64_t n, uint64_t serial, uint64_t clock, bool ok)
{
	uint64_t i;
	unsigned k;

	for (i = first; i < first + n; i++)
		for (k = 0; k < m->s[i].n; k++)
			if (m->s[i].v[k].serial == serial && m->s[i].v[k].completed == PENDING) {
				m->s[i].v[k].completed = clock;
				m->s[i].v[k].failed = !ok;
			}
}

/* Has @v been replaced by something that completed before @clock? */
static bool replaced(const struct sector *s, const struct value *v, uint64_t clock)
{
	unsigned k;

	for (k = 0; k < s->n; k++)
		if (!s->v[k].failed && s->v[k].issued > v->completed && s->v[k].completed < clock)
			return true;
	return false;
}

void model_flush(struct model *m, uint64_t clock)
{
	struct sector *s;
	unsigned k, kept;
	uint64_t i;

	for (i = 0; i < m->n; i++) {
		s = &m->s[i];
		if (s->n < 2)
			continue;
		/* In place: whoever replaces a value comes after it and is looked at before it is moved. */
		for (k = 0, kept = 0; k < s->n; k++)
			if (!replaced(s, &s->v[k], clock))
				s->v[kept++] = s->v[k];
		s->n = kept;
	}
	m->epoch++;
}

bool model_allows(const struct model *m, uint64_t sector, uint64_t value)
{
	const struct sector *s = &m->s[sector];
	unsigned k;

	for (k = s->n; k--;)
		if (s->v[k].word == value)
			return true;
	return false;
}

bool model_reads(const struct model *m, uint64_t sector, uint64_t value, uint64_t clock)
{
	const struct sector *s = &m->s[sector];
	unsigned k;

	for (k = s->n; k--;)
		if (s->v[k].word == value && !replaced(s, &s->v[k], clock))
			return true;
	return false;
}

uint64_t model_epoch(const struct model *m)
{
	return m->epoch;
}

const char *model_word(uint64_t value)
{
	static char text[4][64];
	static unsigned turn;
	char *t = text[turn++ % 4];

	if (!value)
		snprintf(t, sizeof(text[0]), "zeroes");
	else if (value >> 48 == 0x5157)
		snprintf(t, sizeof(text[0]), "write %" PRIu64 " of sector %" PRIu64, value >> 24 & 0xffffff,
			 value & 0xffffff);
	else
		snprintf(t, sizeof(text[0]), "0x%016" PRIx64, value);
	return t;
}

const char *model_says(const struct model *m, uint64_t sector)
{
	static char text[512];
	size_t at = 0;
	unsigned k;

	for (k = 0; k < m->s[sector].n && at < sizeof(text) - 80; k++)
		at += (size_t)snprintf(text + at, sizeof(text) - at, "%s%s%s", k ? ", " : "",
				       model_word(m->s[sector].v[k].word),
				       m->s[sector].v[k].completed == PENDING ? " (in flight)" : "");
	return text;
}

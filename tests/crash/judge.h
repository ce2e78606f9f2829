/* SPDX-License-Identifier: GPL-2.0-or-later */
/* judge.h - is a file that a power cut left acceptable? */
#ifndef TESTS_CRASH_JUDGE_H
#define TESTS_CRASH_JUDGE_H

#include "family.h"
#include "model.h"
#include "qcow2/check.h"
#include <stdio.h>

/* Some file in memory: a crash state or what a life began with. */
struct span {
	const uint8_t *bytes;
	uint64_t size;
};

/* What all states of one life are judged by. */
struct judge {
	const struct template *t;
	const struct model *model; /* NULL: content is not judged */
	uint64_t body; /* crash.body of the image as it was opened */
	uint64_t *values; /* t->sectors words: scratch */
};

/* The whole judgement of one state, a finding() if it is not acceptable. @body: crash.body of it. */
void judge_state(struct judge *j, struct span s, uint64_t body);
/* Our check: errors and leaks; findings go to @out (may be NULL). */
struct check_result judge_check(struct span s, FILE *out);
/* What the guest finds in each sector (values[] as in family.h), by a walk of our own through the tables. */
void judge_content(const struct template *t, struct span s, uint64_t *values);
/* The unknown and the bitmaps autoclear bits of the header; and a header without them. */
uint64_t judge_autoclear(struct span s);
void judge_clear_autoclear(uint8_t *header);
void judge_cleanup(void);

#endif

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * crash-sim FAMILY|all STATES [SEED]
 *     runs workloads, seed by seed, until each family has shown STATES different files that a power cut could
 *     leave, all of them judged. $CRASH_QEMU_EVERY: qemu-img is asked about one in so many (default 2000, 0 =
 * none). crash-sim --replay FAMILY SEED [POINT STATE [IMAGE]] repeats one run; or shows and judges one of its
 * states alone and writes it to IMAGE. crash-sim --list Exit status: 0, 1 = a finding, 2 = it could not run,
 * 77 = qemu-img is missing.
 */
#include "judge.h"
#include "scratch.h"
#include "workload.h"
#include <inttypes.h>
#include <stdlib.h>

static void print_head(void)
{
	printf("%-11s %9s %9s %9s %8s %6s %8s %8s %7s %6s %6s %7s %6s\n", "family", "distinct", "judged",
	       "built", "judged/s", "runs", "points", "writes", "flushes", "hits", "reused", "qemu", "worst");
}

static void print_totals(const char *name, const struct totals *t)
{
	printf("%-11s %9" PRIu64 " %9" PRIu64 " %9" PRIu64 " %8.0f %6" PRIu64 " %8" PRIu64 " %8" PRIu64
	       " %7" PRIu64 " %6" PRIu64 " %6" PRIu64 " %7" PRIu64 " %5.1fs\n",
	       name, t->distinct, t->judged, t->states, t->seconds > 0 ? (double)t->judged / t->seconds : 0,
	       t->runs, t->points, t->writes, t->flushes, t->hits, t->recovered, t->asked, t->worst);
	fflush(stdout);
}

static void add(struct totals *sum, const struct totals *t)
{
	sum->runs += t->runs;
	sum->lives += t->lives;
	sum->points += t->points;
	sum->states += t->states;
	sum->judged += t->judged;
	sum->distinct += t->distinct;
	sum->writes += t->writes;
	sum->flushes += t->flushes;
	sum->syncs += t->syncs;
	sum->hits += t->hits;
	sum->recovered += t->recovered;
	sum->asked += t->asked;
	sum->seconds += t->seconds;
	sum->worst = t->worst > sum->worst ? t->worst : sum->worst;
}

static struct sampling sampling(void)
{
	const char *every = getenv("CRASH_QEMU_EVERY");

	return (struct sampling){ .reuse = 500, .qemu = every ? (unsigned)atoi(every) : 2000 };
}

static void run_family(struct family *f, uint64_t states, uint64_t seed, struct totals *sum)
{
	struct totals t = { 0 };

	family_prepare(f, scratch_dir());
	for (; t.distinct < states; seed++)
		workload_run(f, seed, sampling(), NULL, &t);
	print_totals(f->name, &t);
	add(sum, &t);
	family_free(f);
	workload_forget();
}

static int replay(int argc, char **argv)
{
	struct family *f = family_find(argv[0]);
	struct totals t = { 0 };
	bool reached = false;
	struct replay r = { .state = -1, .reached = &reached };

	if (!f)
		die("%s: no such family", argv[0]);
	if (argc > 3) {
		r.point = strtoull(argv[2], NULL, 0);
		r.state = atoll(argv[3]);
		r.image = argc > 4 ? argv[4] : NULL;
	}
	family_prepare(f, scratch_dir());
	workload_run(f, strtoull(argv[1], NULL, 0), sampling(), &r, &t);
	family_free(f);
	if (r.state >= 0 && !reached)
		die("that run has no such state");
	print_head();
	print_totals(f->name, &t);
	return 0;
}

int main(int argc, char **argv)
{
	struct totals sum = { 0 };
	struct family *only;
	unsigned i;

	for (i = 0; argc == 2 && !strcmp(argv[1], "--list") && i < nfamilies; i++)
		printf("%-11s %s\n", families[i].name, families[i].about);
	if (i)
		return 0;
	if (argc < 3 || (!strcmp(argv[1], "--replay") && argc < 4))
		die("usage: crash-sim FAMILY|all STATES [SEED] | --replay FAMILY SEED [POINT STATE [IMAGE]] "
		    "| --list");
	if (!scratch_make())
		return 77;
	if (!strcmp(argv[1], "--replay"))
		return replay(argc - 2, argv + 2);
	only = family_find(argv[1]);
	if (!only && strcmp(argv[1], "all"))
		die("%s: no such family; --list names them", argv[1]);
	print_head();
	for (i = 0; i < nfamilies; i++)
		if (!only || only == &families[i])
			run_family(&families[i], strtoull(argv[2], NULL, 0),
				   argc > 3 ? strtoull(argv[3], NULL, 0) : 1, &sum);
	if (!only)
		print_totals("all", &sum);
	judge_cleanup();
	return 0;
}

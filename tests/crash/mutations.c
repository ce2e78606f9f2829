// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * crash-mutations [RULE...]: proof that the simulator sees. The library is built so that each rule of
 * commit.c can be broken (qcow2/broken.h); with each of them broken in turn, a child process looks until it
 * has a finding, at most STATES_MAX states. With none broken the same workloads must have none. Exit status:
 * 0 = every one was found, 1 = one was not, 2 = it could not run, 77 = qemu-img is missing.
 */
#include "judge.h"
#include "qcow2/broken.h"
#include "scratch.h"
#include "table.h"
#include "workload.h"
#include <inttypes.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define STATES_MAX 150000u

enum qcow2_rule qcow2_broken;

/* In the order of enum qcow2_rule, without those that no power cut shows; at the end what the simulator's own table breaks. */
static const struct {
	const char *name, *what;
	const char *families; /* where it can be seen, the likeliest first */
} rules[] = {
	[RULE_NONE] = { "none", "nothing is broken",
			"refcount snapshot hits faults autoclear cow-raw killed-faults" },
	[RULE_DATA_FIRST] = { "data-first", "1: entry before data and copy-on-write bytes",
			      "cow-raw cow-qcow2 snapshot" },
	[RULE_REFCOUNTS_FIRST] = { "refcounts-first", "2: entry before raised refcount", "allocate" },
	[RULE_L2_FIRST] = { "l2-first", "3: L1 entry before L2 table", "tables snapshot" },
	[RULE_BLOCK_FIRST] = { "block-first", "3: refcount table entry before refcount block", "refcount" },
	[RULE_TABLE_FIRST] = { "table-first", "3: header pointer before refcount table", "refcount" },
	[RULE_REMOVAL_FIRST] = { "removal-first", "4: refcount lowered before the entry is gone", "discard" },
	[RULE_QUARANTINE] = { "quarantine", "4: reused before the lowered refcount is durable", "discard" },
	[RULE_AUTOCLEAR_FIRST] = { "autoclear-first", "5: written before the autoclear bits are gone",
				   "autoclear" },
	[RULE_WITHDRAW_FIRST] = { "withdraw-first", "6: words not withdrawn", "hits" },
	[RULE_FLUSH_LAST] = { "flush-last", "7: FLUSH ends before its generation is durable",
			      "allocate overwrite" },
	[RULE_FSYNC_FAILURE] = { "fsync-failure", "7: FLUSH succeeds after a failed fsync", "faults" },
	[RULE_FROZEN] = { "frozen", "an entry of generation N+1 in a block of N",
			  "allocate cow-raw discard" },
	[RULE_LOST_REPLAY] = { "lost-replay", "7: a journal is applied after a failed fsync", "killed-faults" },
	[RULES] = { "drain", "6: withdrawn but not drained", "hits" },
};

/* In the child: one run of each family after the other. */
static void look(unsigned rule)
{
	struct totals t = { 0 };
	char name[200], *next, *state;
	uint64_t seed;

	qcow2_broken = rule < RULES ? (enum qcow2_rule)rule : RULE_NONE;
	table_no_drain = rule == RULES;
	alarm(120);
	for (seed = 1; t.judged < STATES_MAX; seed++) {
		snprintf(name, sizeof(name), "%s", rules[rule].families);
		for (next = strtok_r(name, " ", &state); next; next = strtok_r(NULL, " ", &state)) {
			workload_run(family_find(next), seed, (struct sampling){ 0 }, NULL, &t);
			workload_forget();
		}
		if (!rule && t.judged > STATES_MAX / 5)
			break;
	}
	printf("%" PRIu64 " states, no finding\n", t.judged);
	exit(0);
}

static int child(unsigned rule, const char *log)
{
	pid_t pid;
	int status;

	fflush(stdout);
	pid = fork();
	if (!pid) {
		if (!freopen(log, "w", stderr) || !freopen("/dev/null", "r", stdin) || dup2(2, 1) < 0)
			_exit(2);
		look(rule);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		die("fork");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* The lines that say what and where. */
static void show(const char *log)
{
	char line[400];
	FILE *f = fopen(log, "r");
	unsigned i;

	for (i = 0; f && i < 2 && fgets(line, sizeof(line), f); i++)
		printf("    %s", line);
	if (f)
		fclose(f);
}

static bool prove(unsigned rule)
{
	char log[200], name[200], *next, *state;
	bool ok;
	int got;

	snprintf(log, sizeof(log), "%s/log", scratch_dir());
	snprintf(name, sizeof(name), "%s", rules[rule].families);
	for (next = strtok_r(name, " ", &state); next; next = strtok_r(NULL, " ", &state))
		family_prepare(family_find(next), scratch_dir());
	got = child(rule, log);
	ok = got == (rule != RULE_NONE);
	printf("%s %s (%s)%s\n", ok ? "ok  " : "FAIL", rules[rule].name, rules[rule].what,
	       ok     ? ""
	       : rule ? ": not found"
		      : ": there are findings");
	show(log);
	return ok;
}

int main(int argc, char **argv)
{
	unsigned i, failed = 0;
	int k;

	if (!scratch_make())
		return 77;
	for (i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
		for (k = 1; rules[i].name && k < argc && strcmp(argv[k], rules[i].name); k++)
			;
		if (rules[i].name && (argc == 1 || k < argc))
			failed += !prove(i);
	}
	for (i = 0; i < nfamilies; i++)
		family_free(&families[i]);
	judge_cleanup();
	return failed != 0;
}

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cmd_check.c - ublk-qcow2 check IMAGE: findings on standard error, the summary is the answer. Opens neither
 * the backing nor the data file; changes nothing but what --repair asks for.
 */
#include "command.h"
#include "daemon/rundir.h"
#include "inspect.h"
#include "output.h"
#include "progress.h"
#include "qcow2/repair.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#define MAX_FINDINGS 1000u /* a hostile image could fill the screen for hours */

static int run_check(int argc, char **argv);

const struct command cmd_check = {
	.name = "check",
	.run = run_check,
	.summary = "verify or repair an image's metadata",
	.help = "check [--json] [--force-share | --repair=leaks|all] IMAGE\n"
		"Exit status: 0 clean, 2 errors, 3 leaked clusters only, 1 could not be checked. With "
		"--repair\n"
		"that is said of the repaired image.\n\n"
		"  --json               as JSON\n"
		"  --repair=leaks       free leaked clusters, if there are no errors\n"
		"  --repair=all         put refcounts, COPIED flags and dirty and corrupt bits right, too\n"
		"  -U, --force-share    also if somebody is writing the image: findings may be false\n",
};

struct check {
	struct progress progress;
	uint64_t findings;
};

static void on_finding(void *ctx, bool error, const char *text)
{
	struct check *c = ctx;

	if (c->findings++ >= MAX_FINDINGS)
		return;
	progress_hide(&c->progress);
	fprintf(stderr, "%s: %s\n", error ? "ERROR" : "LEAK", text);
}

static void on_progress(void *ctx, uint64_t done, uint64_t total)
{
	struct check *c = ctx;

	progress_show(&c->progress, done, total);
}

static uint64_t less(uint64_t before, uint64_t after)
{
	return before > after ? before - after : 0;
}

static int print_check_json(const char *image, const struct qcow2_repair_result *rep)
{
	const struct check_result *r = &rep->after, *b = &rep->before;
	sd_json_variant *v = NULL;
	int ret = json_add_string(&v, "image", image);

	if (ret >= 0)
		ret = sd_json_variant_merge_objectbo(
			&v, SD_JSON_BUILD_PAIR_UNSIGNED("errors", r->errors),
			SD_JSON_BUILD_PAIR_UNSIGNED("leaks", r->leaks),
			SD_JSON_BUILD_PAIR_UNSIGNED("leaks_fixed", less(b->leaks, r->leaks)),
			SD_JSON_BUILD_PAIR_UNSIGNED("errors_fixed", less(b->errors, r->errors)),
			SD_JSON_BUILD_PAIR_UNSIGNED("clusters", r->clusters),
			SD_JSON_BUILD_PAIR_UNSIGNED("allocated", r->allocated),
			SD_JSON_BUILD_PAIR_UNSIGNED("compressed", r->compressed),
			SD_JSON_BUILD_PAIR_UNSIGNED("image_end", r->image_end));
	return print_json(v, ret);
}

static double percent(uint64_t part, uint64_t whole)
{
	return whole ? (double)part * 100 / (double)whole : 0;
}

static void print_count(uint64_t n, const char *one, const char *many)
{
	if (n)
		printf("%" PRIu64 " %s.\n", n, n == 1 ? one : many);
}

/* A line for each kind of thing that was done. */
static void print_repairs(const struct qcow2_repair_result *rep)
{
	print_count(rep->raised, "refcount was raised", "refcounts were raised");
	print_count(rep->lowered, "refcount was lowered", "refcounts were lowered");
	print_count(rep->copied, "COPIED flag was corrected", "COPIED flags were corrected");
	print_count(rep->zeroed, "misplaced zero cluster was dropped",
		    "misplaced zero clusters were dropped");
	print_count(rep->moved, "data cluster was moved away from metadata",
		    "data clusters were moved away from metadata");
	if (rep->rebuilt)
		puts("The refcount table and blocks were written anew.");
	if (rep->dirty_cleared)
		puts("The dirty bit was cleared.");
	if (rep->corrupt_cleared)
		puts("The corrupt bit was cleared.");
	if (rep->before.leaks > rep->after.leaks || rep->before.errors > rep->after.errors)
		printf("Fixed: %" PRIu64 " errors, %" PRIu64
		       " leaked clusters. The image was checked again:\n",
		       less(rep->before.errors, rep->after.errors),
		       less(rep->before.leaks, rep->after.leaks));
}

static int print_check_text(const struct qcow2_repair_result *rep)
{
	const struct check_result *r = &rep->after;

	print_repairs(rep);
	if (!r->errors && !r->leaks)
		puts("No errors were found on the image.");
	if (r->errors)
		printf("%" PRIu64 " errors were found on the image.\n"
		       "Data may be corrupted, or further writes to the image may corrupt it.\n",
		       r->errors);
	if (r->leaks)
		printf("%" PRIu64 " leaked clusters were found on the image.\n"
		       "This means waste of disk space, but no harm to data.\n",
		       r->leaks);
	if (rep->left[0])
		printf("Left as it is: %s.\n", rep->left);
	printf("%" PRIu64 "/%" PRIu64 " = %.2f%% allocated, %.2f%% compressed clusters\n", r->allocated,
	       r->clusters, percent(r->allocated, r->clusters), percent(r->compressed, r->allocated));
	printf("Image end offset: %" PRIu64 "\n", r->image_end);
	return EXIT_DONE;
}

/* A repair would free the clusters of changes that a device left outside of the image. */
static int nothing_is_missing(const char *image, const struct host_file *file, struct qcow2_error *err)
{
	char path[300];
	int id;

	if (!rundir_find_kept(file->dev, file->ino, path, sizeof(path), &id))
		return 0;
	return qcow2_fail(err, -EBUSY,
			  "%s: lacks changes that are in %s: apply them first, with `ublk-qcow2 %s`", image,
			  path, id < 0 ? "attach" : "recover");
}

static int run_check(int argc, char **argv)
{
	struct qcow2_error err = { "" };
	struct inspect_options o;
	struct qcow2_repair_result r = { 0 };
	struct check c = { 0 };
	struct check_callbacks cb = { .finding = on_finding, .progress = on_progress, .ctx = &c };
	struct host_file *file;
	int ret;

	ret = inspect_parse(&cmd_check, argc, argv, &o);
	if (ret >= 0)
		return ret;
	ret = inspect_open(&o, &file, NULL, &err);
	if (!ret && o.repair) {
		ret = nothing_is_missing(o.image, file, &err);
		if (ret)
			file->ops->close(file);
	}
	if (ret)
		return report_error(&err, ret);
	progress_start(&c.progress);
	if (o.repair)
		ret = qcow2_repair(file, (enum qcow2_repair)o.repair_what, &cb, &r, &err);
	else
		ret = qcow2_check(file, &cb, &r.after, &err);
	progress_hide(&c.progress);
	file->ops->close(file);
	if (ret)
		return report_error(&err, ret);
	if (c.findings > MAX_FINDINGS)
		fprintf(stderr, "... and %" PRIu64 " findings more\n", c.findings - MAX_FINDINGS);
	if (!o.repair)
		r.before = r.after;
	if (o.json ? print_check_json(o.image, &r) : print_check_text(&r))
		return CHECK_IMPOSSIBLE;
	return r.after.errors ? CHECK_ERRORS : r.after.leaks ? CHECK_LEAKS : CHECK_CLEAN;
}

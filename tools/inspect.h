/* SPDX-License-Identifier: GPL-2.0-or-later */
/* inspect.h - images that are looked at, not attached: info, check, map. */
#ifndef TOOLS_INSPECT_H
#define TOOLS_INSPECT_H

#include "command.h"
#include "qcow2/error.h"
#include "qcow2/header.h"
#include "qcow2/io.h"
#include "qcow2/qcow2.h"
#include <stdbool.h>

/* What the commands have in common on their command line. */
struct inspect_options {
	const char *image;
	bool json;
	bool force_share; /* do not ask for the image's locks */
	bool repair; /* check only: opened read-write, with a writer's locks */
	int repair_what; /* enum qcow2_repair */
};
/* -1: go on; else the exit code. */
int inspect_parse(const struct command *cmd, int argc, char **argv, struct inspect_options *o);

/* Open read-only and take a reader's locks (but see .repair). *fd (may be NULL): the descriptor, the file's.
 * 0 or -errno. */
int inspect_open(const struct inspect_options *o, struct host_file **out, int *fd, struct qcow2_error *err);
/* Opens a chain's other files in the same way, for qcow2_open(); ctx = the options. */
int inspect_open_backing(void *ctx, const char *path, enum backing_format format, struct host_file **out,
			 struct qcow2_error *err);

int inspect_header(struct host_file *file, struct qcow2_header *h, struct qcow2_error *err);
/* *out: malloc'ed array of h->nb_snapshots. */
int inspect_snapshots(struct host_file *file, const struct qcow2_header *h, struct snapshot_info **out,
		      struct qcow2_error *err);

#endif

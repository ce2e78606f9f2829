/* SPDX-License-Identifier: GPL-2.0-or-later */
/* options.h - reading the command line: values, and what to say when one is wrong. */
#ifndef TOOLS_OPTIONS_H
#define TOOLS_OPTIONS_H

#include "command.h"
#include <stdbool.h>
#include <stdint.h>

/* ---- values; pure ---- */

/* "4096", "64K", "1MiB", "2g": bytes. False: not a size, negative, or it does not fit. */
bool parse_size(const char *text, uint64_t *out);
/* A decimal number from min to max, nothing else around it. */
bool parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *out);

struct choice {
	const char *name; /* NULL ends the list */
	int value;
};
bool parse_choice(const char *text, const struct choice *choices, int *out);
/* "a, b or c" */
const char *choice_list(const struct choice *choices, char *buf, unsigned size);

/* ---- what the user gets to see ---- */

/* "ublk-qcow2: CMD: what", where to find help; returns EXIT_USAGE. */
int usage_error(const struct command *cmd, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* getopt_long() returned '?' or ':' (opterr = 0, the short options begin with ':'). */
int bad_option(const struct command *cmd, char **argv, int opt);
/* Exactly @count arguments are left after the options, called @what. 0 or EXIT_USAGE. */
int want_arguments(const struct command *cmd, int argc, int count, const char *what);
/* Print the help text; returns EXIT_DONE. */
int show_help(const struct command *cmd);

/* Commands with one argument and --json. -1: go on; else the exit code. */
int parse_simple(const struct command *cmd, int argc, char **argv, const char *what, bool *json);

#endif

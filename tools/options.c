// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * options.c - the command line, in one tone for all sub-commands.
 *
 * Values are taken whole or refused: "64Kx", "-1" and "" are errors, not 64K, a huge number and 0. All
 * messages go to standard error; help that was asked for is an answer and goes to standard output.
 */
#include "options.h"
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- values ---- */

/* Digits only: strtoull alone would take "-1", "+1" and " 1". */
static bool parse_digits(const char *text, char **end, uint64_t *out)
{
	unsigned long long v;

	if (text[0] < '0' || text[0] > '9')
		return false;
	errno = 0;
	v = strtoull(text, end, 10);
	*out = v;
	return errno == 0;
}

bool parse_size(const char *text, uint64_t *out)
{
	static const char units[] = "KMGTPE";
	unsigned shift = 0;
	const char *unit;
	char *end;

	if (!parse_digits(text, &end, out))
		return false;
	if (*end) {
		unit = strchr(units, *end >= 'a' && *end <= 'z' ? *end - 'a' + 'A' : *end);
		if (unit) {
			shift = 10 * (unsigned)(unit - units + 1);
			end++;
			if (strcasecmp(end, "ib") == 0)
				end += 2;
		}
		if (*end)
			return false;
	}
	if (shift && *out >> (64 - shift))
		return false;
	*out <<= shift;
	return true;
}

bool parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
	char *end;

	return parse_digits(text, &end, out) && !*end && *out >= min && *out <= max;
}

bool parse_choice(const char *text, const struct choice *choices, int *out)
{
	const struct choice *c;

	for (c = choices; c->name; c++) {
		if (strcmp(text, c->name) == 0) {
			*out = c->value;
			return true;
		}
	}
	return false;
}

const char *choice_list(const struct choice *choices, char *buf, unsigned size)
{
	unsigned used = 0;
	const struct choice *c;

	buf[0] = '\0';
	for (c = choices; c->name && used < size; c++)
		used += (unsigned)snprintf(buf + used, size - used, "%s%s",
					   c == choices ? ""
					   : c[1].name	? ", "
							: " or ",
					   c->name);
	return buf;
}

/* ---- messages ---- */

int usage_error(const struct command *cmd, const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "ublk-qcow2: %s: ", cmd->name);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\nTry `ublk-qcow2 %s --help`.\n", cmd->name);
	return EXIT_USAGE;
}

int bad_option(const struct command *cmd, char **argv, int opt)
{
	/* a wrong long option leaves optopt 0 (unknown) or its value (an argument it does not take) */
	if (opt == ':')
		return usage_error(cmd, "%s: the option needs an argument", argv[optind - 1]);
	if (optopt && optopt < 128 && strncmp(argv[optind - 1], "--", 2) != 0)
		return usage_error(cmd, "-%c: unknown option", optopt);
	return usage_error(cmd, "%s: %s", argv[optind - 1],
			   optopt ? "the option takes no argument" : "unknown option");
}

int want_arguments(const struct command *cmd, int argc, int count, const char *what)
{
	if (argc - optind == count)
		return 0;
	if (argc - optind < count)
		return usage_error(cmd, "%s is missing", what);
	return usage_error(cmd, "more than one %s given", what);
}

int show_help(const struct command *cmd)
{
	printf("Usage: ublk-qcow2 %s", cmd->help);
	return EXIT_DONE;
}

int parse_simple(const struct command *cmd, int argc, char **argv, const char *what, bool *json)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int opt, ret;

	*json = false;
	while ((opt = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
		if (opt == 'h')
			return show_help(cmd);
		if (opt != 'j')
			return bad_option(cmd, argv, opt);
		*json = true;
	}
	if (!what && optind < argc)
		return usage_error(cmd, "%s: no argument is wanted", argv[optind]);
	ret = what ? want_arguments(cmd, argc, 1, what) : 0;
	return ret ? ret : -1;
}

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * main.c - ublk-qcow2 COMMAND ...: finds the command and makes sure that its answer really got out. A supervisor
 * starts its workers as `ublk-qcow2 worker`, which is nothing for people.
 */
#include "command.h"
#include "daemon/worker.h"
#include "output.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

#ifndef VERSION
#define VERSION "unknown"
#endif

static const struct command *const commands[] = {
	&cmd_attach, &cmd_detach, &cmd_recover, &cmd_restart, &cmd_list,
	&cmd_stats,  &cmd_info,	  &cmd_check,	&cmd_map,     &cmd_features,
};
#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static const struct command *find_command(const char *name)
{
	unsigned i;

	for (i = 0; i < COMMANDS; i++)
		if (strcmp(commands[i]->name, name) == 0)
			return commands[i];
	return NULL;
}

static void print_overview(FILE *out)
{
	unsigned i;

	fputs("Usage: ublk-qcow2 COMMAND [OPTION]... [ARGUMENT]\n"
	      "A qcow2 image as a Linux block device.\n\n",
	      out);
	for (i = 0; i < COMMANDS; i++)
		fprintf(out, "  %-9s %s\n", commands[i]->name, commands[i]->summary);
	fputs("\n`ublk-qcow2 COMMAND --help` tells more, `man ublk-qcow2` all.\n", out);
}

static int usage(const char *what, const char *arg)
{
	fprintf(stderr, "ublk-qcow2: %s%s\nTry `ublk-qcow2 --help`.\n", what, arg);
	return EXIT_USAGE;
}

static int run_help(int argc, char **argv)
{
	const struct command *cmd;

	if (argc < 3) {
		print_overview(stdout);
		return EXIT_DONE;
	}
	cmd = find_command(argv[2]);
	if (!cmd)
		return usage("unknown command: ", argv[2]);
	printf("Usage: ublk-qcow2 %s", cmd->help);
	return EXIT_DONE;
}

static int run(int argc, char **argv)
{
	const struct command *cmd;

	if (argc < 2)
		return usage("a command is missing", "");
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0)
		return run_help(argc, argv);
	if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
		puts("ublk-qcow2 " VERSION);
		return EXIT_DONE;
	}
	if (strcmp(argv[1], "worker") == 0 && worker_wanted())
		return worker_main();
	cmd = find_command(argv[1]);
	if (!cmd)
		return usage(argv[1][0] == '-' ? "unknown option: " : "unknown command: ", argv[1]);
	return cmd->run(argc - 1, argv + 1);
}

int main(int argc, char **argv)
{
	int code = run(argc, argv);

	if ((fflush(stdout) || ferror(stdout)) && code != EXIT_USAGE)
		code = report("standard output: %s", strerror(errno));
	return code;
}

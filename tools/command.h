/* SPDX-License-Identifier: GPL-2.0-or-later */
/* command.h - the sub-commands of ublk-qcow2 and what they return. */
#ifndef TOOLS_COMMAND_H
#define TOOLS_COMMAND_H

enum exit_code { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };
/* `check` answers as qemu-img check does. */
enum check_exit_code { CHECK_CLEAN = 0, CHECK_IMPOSSIBLE = 1, CHECK_ERRORS = 2, CHECK_LEAKS = 3 };

/* argv[0] is the sub-command's name. */
struct command {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *summary;
	const char *help; /* what --help prints: synopsis and options */
};

extern const struct command cmd_attach, cmd_detach, cmd_recover, cmd_restart, cmd_list, cmd_stats, cmd_info,
	cmd_check, cmd_map, cmd_features;

#endif

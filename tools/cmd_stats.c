// SPDX-License-Identifier: GPL-2.0-or-later
/* cmd_stats.c - ublk-qcow2 stats DEVICE: the counters of a device process, as it tells them. */
#include "client.h"
#include "command.h"
#include "find.h"
#include "options.h"
#include "output.h"
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>

static int run_stats(int argc, char **argv);

const struct command cmd_stats = {
	.name = "stats",
	.run = run_stats,
	.summary = "counters of a device",
	.help = "stats DEVICE [--json]\n"
		"Counters since the process that serves the device started. A hit is a request whose mapping was in the "
		"table.\n",
};

static int print_text(sd_json_variant *v)
{
	sd_json_variant *value;
	size_t i;

	for (i = 0; i + 1 < sd_json_variant_elements(v); i += 2) {
		value = sd_json_variant_by_index(v, i + 1);
		printf("%-16s ", sd_json_variant_string(sd_json_variant_by_index(v, i)));
		if (sd_json_variant_is_string(value))
			printf("%s\n", sd_json_variant_string(value));
		else
			printf("%" PRIu64 "\n", sd_json_variant_unsigned(value));
	}
	sd_json_variant_unref(v);
	return EXIT_DONE;
}

static int run_stats(int argc, char **argv)
{
	struct qcow2_error err = { "" };
	sd_json_variant *reply = NULL;
	char name[512];
	struct found f;
	bool json;
	int ret;

	ret = parse_simple(&cmd_stats, argc, argv, "DEVICE", &json);
	if (ret >= 0)
		return ret;
	shown(name, sizeof(name), argv[optind]);
	ret = find_device(argv[optind], true, &f, &err);
	if (ret)
		return report_error(&err, ret);
	if (f.live && f.state.phase == RUN_LIVE)
		ret = control_call(&f.state, "Stats", &reply, &err);
	else
		ret = qcow2_fail(&err, -1, "%s: has no counters: it is %s", f.state.device,
				 run_phase_name(f.state.phase));
	if (ret)
		qcow2_fail(&err, ret, "%s: its process (pid %d) did not answer", f.state.device,
			   (int)f.state.pid);
	run_state_clear(&f.state);
	if (ret)
		return report_error(&err, ret);
	return json ? print_json(reply, 0) : print_text(reply);
}

// SPDX-License-Identifier: GPL-2.0-or-later
/* cmd_list.c - ublk-qcow2 list: the run directories, as a table or as JSON. */
#include "command.h"
#include "daemon/rundir.h"
#include "options.h"
#include "output.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int run_list(int argc, char **argv);

const struct command cmd_list = {
	.name = "list",
	.run = run_list,
	.summary = "what is attached",
	.help = "list [--json]\n"
		"Every attached image: device, size, mode, engine, state, process, image.\n"
		"State is live (it serves), recovering (its process died, the next one takes over: I/O waits)\n"
		"or failed (nobody serves it: I/O waits for `recover`).\n",
};

/* @live: one of its processes is. */
static bool serves(const struct run_state *st, bool live)
{
	return live && st->phase == RUN_LIVE;
}

static int add_json(sd_json_variant **list, const struct run_state *st, bool live)
{
	bool supervised = live && st->supervisor;
	sd_json_variant *v = NULL;
	int ret;

	ret = json_add_string(&v, "device", st->device);
	if (!ret)
		ret = json_add_string(&v, "image", st->image);
	if (!ret)
		ret = json_add_string(&v, "engine", st->engine);
	if (ret >= 0 && serves(st, live))
		ret = sd_json_variant_set_field_integer(&v, "pid", st->pid);
	if (ret >= 0 && supervised)
		ret = sd_json_variant_set_field_integer(&v, "supervisor_pid", st->supervisor);
	if (ret >= 0)
		ret = sd_json_variant_merge_objectbo(
			&v, SD_JSON_BUILD_PAIR_CONDITION(!serves(st, live), "pid", SD_JSON_BUILD_NULL),
			SD_JSON_BUILD_PAIR_CONDITION(!supervised, "supervisor_pid", SD_JSON_BUILD_NULL),
			SD_JSON_BUILD_PAIR_STRING("state", run_phase_name(st->phase)),
			SD_JSON_BUILD_PAIR_UNSIGNED("size", st->size),
			SD_JSON_BUILD_PAIR_BOOLEAN("read_only", st->read_only),
			SD_JSON_BUILD_PAIR_BOOLEAN("zero_copy", st->zero_copy),
			SD_JSON_BUILD_PAIR_BOOLEAN("direct_io", st->direct_io),
			SD_JSON_BUILD_PAIR_UNSIGNED("queues", st->queues),
			SD_JSON_BUILD_PAIR_UNSIGNED("depth", st->depth));
	if (ret >= 0)
		ret = sd_json_variant_append_array(list, v);
	sd_json_variant_unref(v);
	return ret < 0 ? ret : 0;
}

static int add_row(struct table *t, const struct run_state *st, bool live)
{
	char size[32], pid[16], image[4096];
	const char *cells[] = { st->device,
				human_size(size, sizeof(size), st->size),
				st->read_only ? "ro" : "rw",
				st->engine,
				run_phase_name(st->phase),
				pid,
				shown(image, sizeof(image), st->image) };

	snprintf(pid, sizeof(pid), serves(st, live) ? "%d" : "-", (int)st->pid);
	return table_row(t, cells);
}

struct listing {
	bool json;
	sd_json_variant *array;
	struct table table;
};

static int add_device(struct listing *l, int id, struct qcow2_error *err)
{
	struct run_state st;
	bool live;
	int ret = rundir_read(id, &st, &live, err);

	if (ret)
		return ret == -ENOENT ? 0 : ret;
	/* no engine yet: it is being attached and not a device that could be used */
	if (!live || st.engine[0])
		ret = l->json ? add_json(&l->array, &st, live) : add_row(&l->table, &st, live);
	run_state_clear(&st);
	return ret;
}

static int print_list(struct listing *l)
{
	if (l->json)
		return print_json(l->array, 0);
	if (l->table.rows > 1)
		table_print(&l->table, stdout);
	table_free(&l->table);
	return EXIT_DONE;
}

static int run_list(int argc, char **argv)
{
	static const char *const head[] = { "DEVICE", "SIZE", "MODE", "ENGINE", "STATE", "PID", "IMAGE" };
	struct listing l = { .table = { .columns = 7, .right = 1u << 1 } };
	struct qcow2_error err = { "" };
	size_t count = 0, i;
	int *ids, ret;

	ret = parse_simple(&cmd_list, argc, argv, NULL, &l.json);
	if (ret >= 0)
		return ret;
	ret = rundir_list(&ids, &count, &err);
	if (!ret)
		ret = l.json ? sd_json_variant_new_array(&l.array, NULL, 0) : table_row(&l.table, head);
	for (i = 0; ret >= 0 && i < count; i++)
		ret = add_device(&l, ids[i], &err);
	free(ids);
	if (ret >= 0)
		return print_list(&l);
	sd_json_variant_unref(l.array);
	table_free(&l.table);
	return report_error(&err, ret);
}

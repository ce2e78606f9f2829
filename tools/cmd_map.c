// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cmd_map.c - ublk-qcow2 map IMAGE: where each guest byte comes from, down the backing chain. JSON has the
 * fields of `qemu-img map --output=json`. Written as it is found: an image may have millions of extents.
 */
#include "command.h"
#include "inspect.h"
#include "output.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static int run_map(int argc, char **argv);

const struct command cmd_map = {
	.name = "map",
	.run = run_map,
	.summary = "where an image's data lies",
	.help = "map [--json] [--force-share] IMAGE\n"
		"Text lists data only; JSON lists all extents, with the fields of `qemu-img map`.\n\n"
		"  --json               as JSON\n"
		"  -U, --force-share    also if somebody is writing the image: what is shown may be stale\n",
};

static bool continues(const struct qcow2_map_extent *a, const struct qcow2_map_extent *b)
{
	return a->data == b->data && a->zero == b->zero && a->present == b->present &&
	       a->compressed == b->compressed && a->depth == b->depth && a->has_host == b->has_host &&
	       (!a->has_host || a->host + a->len == b->host);
}

static const char *truth(bool b)
{
	return b ? "true" : "false";
}

static void print_extent_json(const struct qcow2_map_extent *e, bool first)
{
	printf("%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64
	       ", \"depth\": %u, \"present\": %s, \"zero\": %s, \"data\": %s, \"compressed\": %s",
	       first ? "[" : ",\n", e->guest, e->len, e->depth, truth(e->present), truth(e->zero),
	       truth(e->data), truth(e->compressed));
	if (e->has_host)
		printf(", \"offset\": %" PRIu64, e->host);
	printf("}");
}

static void print_extent_text(struct qcow2_image *img, const struct qcow2_map_extent *e)
{
	struct host_file *file = qcow2_chain_file(img, e->depth);
	char name[6000], host[24] = "compressed";

	if (!e->data)
		return;
	if (e->has_host && !e->compressed)
		snprintf(host, sizeof(host), "0x%" PRIx64, e->host);
	printf("0x%-14" PRIx64 " 0x%-14" PRIx64 " %-16s %s\n", e->guest, e->len, host,
	       shown(name, sizeof(name), file ? file->path : "?"));
}

static int walk(struct qcow2_image *img, bool json, uint64_t size)
{
	struct qcow2_map_extent now = { .len = 0 }, next;
	bool first = true;
	uint64_t guest;
	int ret;

	for (guest = 0; guest < size; guest += next.len) {
		ret = qcow2_map(img, guest, &next);
		if (ret)
			return ret;
		if (!next.len)
			return -EUCLEAN;
		if (now.len && continues(&now, &next)) {
			now.len += next.len;
			continue;
		}
		if (now.len && json)
			print_extent_json(&now, first);
		else if (now.len)
			print_extent_text(img, &now);
		first = first && !now.len;
		now = next;
	}
	if (json && now.len)
		print_extent_json(&now, first);
	else if (json)
		fputc('[', stdout);
	else if (now.len)
		print_extent_text(img, &now);
	return 0;
}

static int map_image(struct qcow2_image *img, const struct inspect_options *o)
{
	struct qcow2_info info;
	char name[600];
	int ret;

	qcow2_get_info(img, &info);
	if (!o->json)
		printf("%-16s %-16s %-16s %s\n", "START", "LENGTH", "OFFSET", "FILE");
	ret = walk(img, o->json, info.size);
	if (ret)
		return report("%s: cannot be mapped: %s", shown(name, sizeof(name), o->image),
			      strerror(-ret));
	if (o->json)
		fputs("]\n", stdout);
	return EXIT_DONE;
}

static int run_map(int argc, char **argv)
{
	struct qcow2_error err = { "" };
	struct inspect_options o;
	const struct qcow2_opener opener = { .open = inspect_open_backing, .ctx = &o };
	const struct qcow2_options opt = { .read_only = true, .opener = &opener };
	struct qcow2_image *img;
	struct host_file *file;
	int ret;

	ret = inspect_parse(&cmd_map, argc, argv, &o);
	if (ret >= 0)
		return ret;
	ret = inspect_open(&o, &file, NULL, &err);
	if (!ret)
		ret = qcow2_open(&img, file, &opt, &err);
	if (ret)
		return report_error(&err, ret);
	ret = map_image(img, &o);
	qcow2_close(img, NULL);
	return ret;
}

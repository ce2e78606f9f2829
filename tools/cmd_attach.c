// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cmd_attach.c - ublk-qcow2 attach IMAGE: options, and who waits for whom. Prints the device when it can be
 * used.
 */
#include "command.h"
#include "device_process.h"
#include "driver.h"
#include "find.h"
#include "options.h"
#include "output.h"
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_QUEUES 64u
#define MAX_DEPTH 1024u
#define MIN_CACHE (64ull << 10)
#define MAX_CACHE (1ull << 40)

static int run_attach(int argc, char **argv);

const struct command cmd_attach = {
	.name = "attach",
	.run = run_attach,
	.summary = "make an image a block device, print its path",
	.help = "attach [OPTION]... IMAGE\n"
		"Prints the device's path when it is ready to use.\n\n"
		"  --read-only              no writes; the image file is not changed at all\n"
		"  --engine=auto|kernel|server\n"
		"                           who serves requests (auto: server, for now)\n"
		"  --queues=N               queues with a thread each (default: CPUs, at most 4)\n"
		"  --depth=N                requests in flight per queue (default 64)\n"
		"  --cache-size=SIZE        mapping table (default 1M, about 8 GiB of 64 KiB clusters)\n"
		"  --discard=unmap|ignore   give discarded space back (default), or do nothing\n"
		"  --lock=qemu|none         take QEMU's image locks (default), or none\n"
		"  --block-size=512|4096    logical block size (default 512)\n"
		"  --backing-format=raw|qcow2\n"
		"                           what the backing file is if the image does not say\n"
		"  --repair=leaks           first free the clusters that a crash left allocated\n"
		"  --foreground             serve from this process until SIGTERM, SIGINT or detach\n",
};

enum {
	OPT_READ_ONLY = 256,
	OPT_ENGINE,
	OPT_QUEUES,
	OPT_DEPTH,
	OPT_CACHE_SIZE,
	OPT_DISCARD,
	OPT_LOCK,
	OPT_BLOCK_SIZE,
	OPT_BACKING_FORMAT,
	OPT_FOREGROUND,
	OPT_SNAPSHOT,
	OPT_REPAIR,
};

static const struct option long_options[] = {
	{ "read-only", no_argument, NULL, OPT_READ_ONLY },
	{ "engine", required_argument, NULL, OPT_ENGINE },
	{ "queues", required_argument, NULL, OPT_QUEUES },
	{ "depth", required_argument, NULL, OPT_DEPTH },
	{ "cache-size", required_argument, NULL, OPT_CACHE_SIZE },
	{ "discard", required_argument, NULL, OPT_DISCARD },
	{ "lock", required_argument, NULL, OPT_LOCK },
	{ "block-size", required_argument, NULL, OPT_BLOCK_SIZE },
	{ "backing-format", required_argument, NULL, OPT_BACKING_FORMAT },
	{ "foreground", no_argument, NULL, OPT_FOREGROUND },
	{ "snapshot", required_argument, NULL, OPT_SNAPSHOT },
	{ "repair", required_argument, NULL, OPT_REPAIR },
	{ "help", no_argument, NULL, 'h' },
	{ NULL, 0, NULL, 0 },
};

enum { ENGINE_URING = ENGINE_SERVER + 1 };
static const struct choice engines[] = {
	{ "auto", ENGINE_AUTO },
	{ "kernel", ENGINE_KERNEL },
	{ "uring", ENGINE_URING },
	{ "server", ENGINE_SERVER },
	{ NULL, 0 },
};
static const struct choice discards[] = {
	{ "unmap", QCOW2_DISCARD_UNMAP },
	{ "ignore", QCOW2_DISCARD_IGNORE },
	{ NULL, 0 },
};
static const struct choice locks[] = { { "qemu", true }, { "none", false }, { NULL, 0 } };
static const struct choice block_sizes[] = { { "512", 512 }, { "4096", 4096 }, { NULL, 0 } };
static const struct choice formats[] = { { "raw", BACKING_RAW }, { "qcow2", BACKING_QCOW2 }, { NULL, 0 } };
static const struct choice repairs[] = { { "leaks", 1 }, { NULL, 0 } };

struct attach {
	struct server_options opt;
	bool foreground;
	const char *refused; /* an option we know of, but cannot do */
	const char *why;
};

static int choose_from(const char *option, const char *text, const struct choice *choices, int *value)
{
	char list[100];

	if (parse_choice(text, choices, value))
		return 0;
	return usage_error(&cmd_attach, "%s=%s: must be %s", option, text,
			   choice_list(choices, list, sizeof(list)));
}

static int choose(const char *option, const struct choice *choices, int *value)
{
	return choose_from(option, optarg, choices, value);
}

static int number(const char *option, uint64_t max, unsigned *value)
{
	uint64_t n;

	if (!parse_number(optarg, 1, max, &n))
		return usage_error(&cmd_attach, "%s=%s: must be a number from 1 to %llu", option, optarg,
				   (unsigned long long)max);
	*value = (unsigned)n;
	return 0;
}

static int cache_size(struct attach *a)
{
	if (parse_size(optarg, &a->opt.cache_size) && a->opt.cache_size >= MIN_CACHE &&
	    a->opt.cache_size <= MAX_CACHE)
		return 0;
	return usage_error(&cmd_attach, "--cache-size=%s: must be a size from 64K to 1T", optarg);
}

static int refuse(struct attach *a, const char *option, const char *why)
{
	a->refused = option;
	a->why = why;
	return 0;
}

static int engine(struct attach *a, const char *option, const char *text)
{
	int value = ENGINE_AUTO;

	if (text && choose_from(option, text, engines, &value))
		return EXIT_USAGE;
	if (value == ENGINE_URING)
		return refuse(a, "engine uring", "this version has `kernel` and `server`");
	a->opt.engine = (enum server_engine)value;
	return 0;
}

/* 0, or the exit code. */
static int take_option(struct attach *a, int opt)
{
	int value = 0, ret = 0;

	switch (opt) {
	case OPT_READ_ONLY:
		a->opt.read_only = true;
		break;
	case OPT_ENGINE:
		return engine(a, "--engine", optarg);
	case OPT_QUEUES:
		return number("--queues", MAX_QUEUES, &a->opt.queues);
	case OPT_DEPTH:
		return number("--depth", MAX_DEPTH, &a->opt.depth);
	case OPT_CACHE_SIZE:
		return cache_size(a);
	case OPT_DISCARD:
		ret = choose("--discard", discards, &value);
		a->opt.discard = (enum qcow2_discard)value;
		break;
	case OPT_LOCK:
		ret = choose("--lock", locks, &value);
		a->opt.lock = value;
		break;
	case OPT_BLOCK_SIZE:
		ret = choose("--block-size", block_sizes, &value);
		a->opt.block_size = (unsigned)value;
		break;
	case OPT_BACKING_FORMAT:
		ret = choose("--backing-format", formats, &value);
		a->opt.backing_format = (enum backing_format)value;
		break;
	case OPT_FOREGROUND:
		a->foreground = true;
		break;
	case OPT_SNAPSHOT:
		return refuse(a, "--snapshot", "this version attaches the active state only");
	case OPT_REPAIR:
		ret = choose("--repair", repairs, &value);
		a->opt.repair_leaks = value;
		break;
	}
	return ret;
}

/* -1: go on; else the exit code. */
static int parse(struct attach *a, int argc, char **argv)
{
	int opt, ret = 0;

	while (!ret && (opt = getopt_long(argc, argv, ":h", long_options, NULL)) != -1) {
		if (opt == 'h')
			return show_help(&cmd_attach);
		ret = opt == '?' || opt == ':' ? bad_option(&cmd_attach, argv, opt) : take_option(a, opt);
	}
	if (!ret && a->opt.repair_leaks && a->opt.read_only)
		ret = usage_error(&cmd_attach, "--repair: not with --read-only, which changes nothing");
	if (!ret)
		ret = want_arguments(&cmd_attach, argc, 1, "IMAGE");
	return ret ? ret : -1;
}

static int attach(struct attach *a, const char *image)
{
	struct qcow2_error err = { "" };
	char device[64];
	int ret;

	driver_load(a->opt.engine != ENGINE_SERVER);
	if (a->foreground) {
		ret = device_process_foreground(&a->opt, &err);
	} else {
		ret = device_process_start(&a->opt, device, sizeof(device), &err);
		if (!ret)
			puts(device);
	}
	return ret ? report_error(&err, ret) : EXIT_DONE;
}

static int run_attach(int argc, char **argv)
{
	struct attach a = { .opt = { .lock = true, .block_size = 512 } };
	int ret = engine(&a, "UBLK_QCOW2_ENGINE", getenv("UBLK_QCOW2_ENGINE"));
	char name[512], *path;

	if (!ret)
		ret = parse(&a, argc, argv);
	if (ret >= 0)
		return ret;
	shown(name, sizeof(name), argv[optind]);
	if (a.refused)
		return report("%s: %s: not supported by this build: %s", name, a.refused, a.why);
	path = absolute_path(argv[optind]);
	if (!path)
		return report("%s: cannot be opened: %s", name, strerror(errno));
	a.opt.image = path;
	ret = attach(&a, path);
	free(path);
	return ret;
}

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * settings.c - struct server_options as JSON and back.
 *
 * Owns the names. A value that this version does not know becomes the default: the other end may be newer.
 */
#include "settings.h"
#include "message.h"
#include <string.h>

static const char *const engines[] = {
	[ENGINE_AUTO] = "auto", [ENGINE_KERNEL] = "kernel", [ENGINE_SERVER] = "server"
};
static const char *const discards[] = { [QCOW2_DISCARD_UNMAP] = "unmap", [QCOW2_DISCARD_IGNORE] = "ignore" };
static const char *const formats[] = {
	[BACKING_UNKNOWN] = "", [BACKING_RAW] = "raw", [BACKING_QCOW2] = "qcow2"
};

#define COUNT(a) (sizeof(a) / sizeof(*(a)))

int settings_to_json(const struct server_options *opt, sd_json_variant **v)
{
	int ret = sd_json_buildo(v, SD_JSON_BUILD_PAIR_BOOLEAN("read_only", opt->read_only),
				 SD_JSON_BUILD_PAIR_STRING("engine", engines[opt->engine]),
				 SD_JSON_BUILD_PAIR_UNSIGNED("queues", opt->queues),
				 SD_JSON_BUILD_PAIR_UNSIGNED("depth", opt->depth),
				 SD_JSON_BUILD_PAIR_UNSIGNED("cache_size", opt->cache_size),
				 SD_JSON_BUILD_PAIR_STRING("discard", discards[opt->discard]),
				 SD_JSON_BUILD_PAIR_BOOLEAN("repair_leaks", opt->repair_leaks),
				 SD_JSON_BUILD_PAIR_BOOLEAN("lock", opt->lock),
				 SD_JSON_BUILD_PAIR_UNSIGNED("block_size", opt->block_size),
				 SD_JSON_BUILD_PAIR_STRING("backing_format", formats[opt->backing_format]));

	return ret < 0 ? ret : 0;
}

/* The index of a member's value in @names; 0 if it is none of them. */
static unsigned index_of(sd_json_variant *v, const char *key, const char *const *names, unsigned count)
{
	sd_json_variant *f = sd_json_variant_by_key(v, key);

	for (unsigned i = 0; f && sd_json_variant_is_string(f) && i < count; i++)
		if (strcmp(names[i], sd_json_variant_string(f)) == 0)
			return i;
	return 0;
}

void settings_from_json(sd_json_variant *v, struct server_options *opt)
{
	*opt = (struct server_options){
		.read_only = json_get_bool(v, "read_only"),
		.engine = (enum server_engine)index_of(v, "engine", engines, COUNT(engines)),
		.queues = (unsigned)json_get_number(v, "queues"),
		.depth = (unsigned)json_get_number(v, "depth"),
		.cache_size = json_get_number(v, "cache_size"),
		.discard = (enum qcow2_discard)index_of(v, "discard", discards, COUNT(discards)),
		.repair_leaks = json_get_bool(v, "repair_leaks"),
		.lock = !sd_json_variant_by_key(v, "lock") || json_get_bool(v, "lock"),
		.block_size = (unsigned)json_get_number(v, "block_size"),
		.backing_format = (enum backing_format)index_of(v, "backing_format", formats, COUNT(formats)),
	};
	if (opt->block_size != 4096)
		opt->block_size = 512;
}

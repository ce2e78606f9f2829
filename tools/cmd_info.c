// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cmd_info.c - ublk-qcow2 info IMAGE: what the header says. Opens nothing but the image: the names of other
 * files in it are text from whoever made it, and are shown as such.
 */
#include "command.h"
#include "daemon/lock.h"
#include "find.h"
#include "inspect.h"
#include "output.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

static int run_info(int argc, char **argv);

const struct command cmd_info = {
	.name = "info",
	.run = run_info,
	.summary = "what an image is",
	.help = "info [--json] [--force-share] IMAGE\n"
		"Opens neither the backing nor the data file.\n\n"
		"  --json               as JSON\n"
		"  -U, --force-share    also if somebody is writing the image: what is shown may be stale\n",
};

struct info {
	const char *image;
	struct qcow2_header h;
	uint64_t file_size, disk_size;
	char *attached; /* as which device, or NULL */
	char users[512];
	struct snapshot_info *snapshots;
};

/* ---- gathering ---- */

static int gather(struct info *i, struct host_file *file, int fd, struct qcow2_error *err)
{
	struct stat st;
	int ret = inspect_header(file, &i->h, err);

	if (!ret)
		ret = inspect_snapshots(file, &i->h, &i->snapshots, err);
	if (!ret)
		ret = file->ops->size(file, &i->file_size);
	if (ret)
		return ret;
	if (fstat(fd, &st) == 0) {
		i->disk_size = S_ISBLK(st.st_mode) ? i->file_size : (uint64_t)st.st_blocks * 512;
		i->attached = find_image(st.st_dev, st.st_ino);
	}
	image_lock_users(fd, i->users, sizeof(i->users));
	return 0;
}

/* ---- names ---- */

struct bit_name {
	uint64_t bit;
	const char *name;
};

static const struct bit_name incompatible_names[] = {
	{ QCOW2_INCOMPAT_DIRTY, "dirty" },
	{ QCOW2_INCOMPAT_CORRUPT, "corrupt" },
	{ QCOW2_INCOMPAT_DATA_FILE, "external-data-file" },
	{ QCOW2_INCOMPAT_COMPRESSION, "compression-type" },
	{ QCOW2_INCOMPAT_EXTENDED_L2, "extended-l2" },
	{ 0, NULL },
};
static const struct bit_name compatible_names[] = {
	{ QCOW2_COMPAT_LAZY_REFCOUNTS, "lazy-refcounts" },
	{ 0, NULL },
};
static const struct bit_name autoclear_names[] = {
	{ QCOW2_AUTOCLEAR_BITMAPS, "bitmaps" },
	{ QCOW2_AUTOCLEAR_RAW_DATA, "raw-external-data" },
	{ 0, NULL },
};

static const char *bit_text(const struct bit_name *names, unsigned bit, char *buf, size_t size)
{
	for (; names->name; names++)
		if (names->bit == 1ull << bit)
			return names->name;
	snprintf(buf, size, "unknown-%u", bit);
	return buf;
}

static const char *encryption(const struct qcow2_header *h)
{
	switch (h->crypt_method) {
	case QCOW2_CRYPT_NONE:
		return "none";
	case QCOW2_CRYPT_AES:
		return "aes";
	case QCOW2_CRYPT_LUKS:
		return "luks";
	default:
		return "unknown";
	}
}

static const char *compat(const struct qcow2_header *h)
{
	return h->geo.version == 2 ? "0.10" : "1.1";
}

static const char *compression(const struct qcow2_header *h)
{
	return h->compression == QCOW2_COMPRESSION_ZSTD ? "zstd" : "zlib";
}

/* ---- as JSON ---- */

static int bits_json(sd_json_variant **features, const char *key, const struct bit_name *names, uint64_t bits)
{
	sd_json_variant *list = NULL;
	char buf[32];
	unsigned bit;
	int ret = sd_json_variant_new_array(&list, NULL, 0);

	for (bit = 0; ret >= 0 && bit < 64; bit++)
		if (bits & 1ull << bit)
			ret = sd_json_variant_append_arrayb(
				&list, SD_JSON_BUILD_STRING(bit_text(names, bit, buf, sizeof(buf))));
	if (ret >= 0)
		ret = sd_json_variant_set_field(features, key, list);
	sd_json_variant_unref(list);
	return ret;
}

static int features_json(sd_json_variant **v, const struct qcow2_header *h)
{
	sd_json_variant *features = NULL;
	int ret = bits_json(&features, "incompatible", incompatible_names, h->incompatible);

	if (ret >= 0)
		ret = bits_json(&features, "compatible", compatible_names, h->compatible);
	if (ret >= 0)
		ret = bits_json(&features, "autoclear", autoclear_names, h->autoclear);
	if (ret >= 0)
		ret = sd_json_variant_set_field(v, "features", features);
	sd_json_variant_unref(features);
	return ret;
}

static int snapshots_json(sd_json_variant **v, const struct info *i)
{
	sd_json_variant *list = NULL;
	int ret = sd_json_variant_new_array(&list, NULL, 0);
	uint32_t n;

	for (n = 0; ret >= 0 && n < i->h.nb_snapshots; n++)
		ret = sd_json_variant_append_arraybo(
			&list, SD_JSON_BUILD_PAIR_STRING("id", i->snapshots[n].id),
			SD_JSON_BUILD_PAIR_STRING("name", i->snapshots[n].name),
			SD_JSON_BUILD_PAIR_UNSIGNED("date", i->snapshots[n].date_sec),
			SD_JSON_BUILD_PAIR_UNSIGNED("virtual_size", i->snapshots[n].disk_size),
			SD_JSON_BUILD_PAIR_UNSIGNED("vm_state_size", i->snapshots[n].vm_state_size));
	if (ret >= 0)
		ret = sd_json_variant_set_field(v, "snapshots", list);
	sd_json_variant_unref(list);
	return ret;
}

static int base_json(sd_json_variant **v, const struct info *i)
{
	const struct qcow2_header *h = &i->h;

	return sd_json_variant_merge_objectbo(
		v, SD_JSON_BUILD_PAIR_STRING("format", "qcow2"),
		SD_JSON_BUILD_PAIR_UNSIGNED("virtual_size", h->disk_size),
		SD_JSON_BUILD_PAIR_UNSIGNED("disk_size", i->disk_size),
		SD_JSON_BUILD_PAIR_UNSIGNED("file_size", i->file_size),
		SD_JSON_BUILD_PAIR_UNSIGNED("cluster_size", h->geo.cluster_size),
		SD_JSON_BUILD_PAIR_UNSIGNED("version", h->geo.version),
		SD_JSON_BUILD_PAIR_STRING("compat", compat(h)),
		SD_JSON_BUILD_PAIR_UNSIGNED("refcount_bits", 1u << h->geo.refcount_order),
		SD_JSON_BUILD_PAIR_STRING("compression_type", compression(h)),
		SD_JSON_BUILD_PAIR_STRING("encryption", encryption(h)),
		SD_JSON_BUILD_PAIR_UNSIGNED("bitmaps", h->nb_bitmaps),
		SD_JSON_BUILD_PAIR_BOOLEAN("lazy_refcounts", h->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS),
		SD_JSON_BUILD_PAIR_BOOLEAN("dirty", !!(h->incompatible & QCOW2_INCOMPAT_DIRTY)),
		SD_JSON_BUILD_PAIR_BOOLEAN("corrupt", !!(h->incompatible & QCOW2_INCOMPAT_CORRUPT)),
		SD_JSON_BUILD_PAIR_BOOLEAN("extended_l2", !!(h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2)),
		SD_JSON_BUILD_PAIR_BOOLEAN("data_file", !!(h->incompatible & QCOW2_INCOMPAT_DATA_FILE)));
}

static int optional_string(sd_json_variant **v, const char *key, const char *value)
{
	if (value && value[0])
		return json_add_string(v, key, value);
	return sd_json_variant_merge_objectbo(v, SD_JSON_BUILD_PAIR_NULL(key));
}

static int print_info_json(const struct info *i)
{
	sd_json_variant *v = NULL;
	int ret = json_add_string(&v, "image", i->image);

	if (ret >= 0)
		ret = base_json(&v, i);
	if (ret >= 0)
		ret = optional_string(&v, "backing_file", i->h.backing_name);
	if (ret >= 0)
		ret = optional_string(&v, "backing_format", i->h.backing_format);
	if (ret >= 0)
		ret = features_json(&v, &i->h);
	if (ret >= 0)
		ret = snapshots_json(&v, i);
	if (ret >= 0)
		ret = optional_string(&v, "device", i->attached);
	if (ret >= 0)
		ret = optional_string(&v, "in_use_by", i->users);
	return print_json(v, ret);
}

/* ---- as text ---- */

static void print_bytes(const char *what, uint64_t bytes)
{
	char size[32];

	printf("%-17s %s (%" PRIu64 " bytes)\n", what, human_size(size, sizeof(size), bytes), bytes);
}

static void print_line(const char *what, const char *text)
{
	printf("%-17s %s\n", what, text);
}

static void print_bits(const char *what, const struct bit_name *names, uint64_t bits)
{
	char buf[32];
	unsigned bit;

	if (!bits)
		return;
	printf("%-17s", what);
	for (bit = 0; bit < 64; bit++)
		if (bits & 1ull << bit)
			printf(" %s", bit_text(names, bit, buf, sizeof(buf)));
	putchar('\n');
}

static void print_snapshots(const struct info *i)
{
	static const char *const head[] = { "  ID", "NAME", "VIRTUAL SIZE", "VM STATE", "DATE" };
	struct table t = { .columns = 5 };
	char id[70], size[32], vm[32], date[32];
	struct tm tm;
	time_t when;
	uint32_t n;

	if (!i->h.nb_snapshots)
		return;
	table_row(&t, head);
	for (n = 0; n < i->h.nb_snapshots; n++) {
		const struct snapshot_info *s = &i->snapshots[n];
		const char *cells[] = { id, s->name, human_size(size, sizeof(size), s->disk_size),
					human_size(vm, sizeof(vm), s->vm_state_size), date };

		snprintf(id, sizeof(id), "  %s", s->id);
		when = (time_t)s->date_sec;
		if (!localtime_r(&when, &tm) || !strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm))
			strcpy(date, "?");
		table_row(&t, cells);
	}
	puts("snapshots:");
	table_print(&t, stdout);
	table_free(&t);
}

static int print_info_text(const struct info *i)
{
	const struct qcow2_header *h = &i->h;
	char text[6000];

	print_line("image:", shown(text, sizeof(text), i->image));
	printf("%-17s qcow2, version %u (compat %s)\n", "format:", h->geo.version, compat(h));
	print_bytes("virtual size:", h->disk_size);
	print_bytes("disk size:", i->disk_size);
	print_bytes("cluster size:", h->geo.cluster_size);
	printf("%-17s %u\n", "refcount bits:", 1u << h->geo.refcount_order);
	print_line("compression:", compression(h));
	if (h->crypt_method)
		print_line("encryption:", encryption(h));
	if (h->backing_name[0])
		print_line("backing file:", shown(text, sizeof(text), h->backing_name));
	if (h->backing_name[0])
		print_line("backing format:", h->backing_format[0] ? h->backing_format : "not recorded");
	print_bits("incompatible:", incompatible_names, h->incompatible);
	print_bits("compatible:", compatible_names, h->compatible);
	print_bits("autoclear:", autoclear_names, h->autoclear);
	if (h->nb_bitmaps)
		printf("%-17s %" PRIu32 "\n", "bitmaps:", h->nb_bitmaps);
	if (i->attached)
		print_line("attached as:", i->attached);
	if (i->users[0])
		print_line("in use by:", i->users);
	print_snapshots(i);
	return EXIT_DONE;
}

static int run_info(int argc, char **argv)
{
	struct inspect_options o;
	struct info i = { 0 };
	struct qcow2_error err = { "" };
	struct host_file *file;
	int fd, ret;

	ret = inspect_parse(&cmd_info, argc, argv, &o);
	if (ret >= 0)
		return ret;
	ret = inspect_open(&o, &file, &fd, &err);
	if (ret)
		return report_error(&err, ret);
	i.image = o.image;
	ret = gather(&i, file, fd, &err);
	file->ops->close(file);
	if (ret)
		ret = report_error(&err, ret);
	else
		ret = o.json ? print_info_json(&i) : print_info_text(&i);
	free(i.snapshots);
	free(i.attached);
	return ret;
}

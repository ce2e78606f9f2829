// SPDX-License-Identifier: GPL-2.0-or-later
/* cmd_features.c - ublk-qcow2 features: what this kernel offers, which engine that allows, and why not a
 * better one. */
#include "command.h"
#include "daemon/ctrl.h"
#include "daemon/kernel_engine.h"
#include "driver.h"
#include "options.h"
#include "output.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

static int run_features(int argc, char **argv);

const struct command cmd_features = {
	.name = "features",
	.run = run_features,
	.summary = "what this kernel offers, and which engine is used",
	.help = "features [--json]\n"
		"What this kernel offers, which engine --engine=auto takes, and why not a better one.\n",
};

/* By bit number, as in linux/ublk_cmd.h without UBLK_F_. */
static const char *const bit_names[] = {
	"SUPPORT_ZERO_COPY",
	"URING_CMD_COMP_IN_TASK",
	"NEED_GET_DATA",
	"USER_RECOVERY",
	"USER_RECOVERY_REISSUE",
	"UNPRIVILEGED_DEV",
	"CMD_IOCTL_ENCODE",
	"USER_COPY",
	"ZONED",
	"USER_RECOVERY_FAIL_IO",
	"UPDATE_SIZE",
	"AUTO_BUF_REG",
	"QUIESCE",
	"PER_IO_DAEMON",
	"BUF_REG_OFF_DAEMON",
	"BATCH_IO",
	"INTEGRITY",
	"SAFE_STOP_DEV",
	"NO_AUTO_PART_SCAN",
	"SHMEM_ZC",
	"IO_DESC_SIZE",
};
#define BIT_NAMES (sizeof(bit_names) / sizeof(bit_names[0]))
#define ZERO_COPY (UBLK_F_SUPPORT_ZERO_COPY | UBLK_F_USER_COPY | UBLK_F_AUTO_BUF_REG)

struct engine_state {
	const char *name;
	bool available;
	char why[600]; /* why not */
};

struct features {
	struct utsname uts;
	bool control; /* the driver is there */
	uint64_t bits;
	struct engine_state engine[3]; /* best first */
	const char *chosen; /* by auto, or NULL */
	bool zero_copy;
	char zero_copy_why[64];
};

/* Everything but the image: load the program as for a device, only that no number is behind it. */
static void look_at_kernel(struct features *f, bool ublk)
{
	struct engine_state *e = &f->engine[0];
	struct qcow2_error err = { "" };

	*e = (struct engine_state){ .name = "kernel" };
	e->available = ublk && !kernel_engine_probe(&err);
	if (!e->available)
		snprintf(e->why, sizeof(e->why), "%s", ublk ? err.text : "no ublk");
}

static void gather(struct features *f)
{
	struct qcow2_error err = { "" };
	int ret;

	uname(&f->uts);
	driver_load(true);
	ret = ublk_features(&f->bits, &err);
	f->control = access("/dev/ublk-control", F_OK) == 0;
	look_at_kernel(f, !ret);
	f->engine[1] = (struct engine_state){ .name = "uring",
					      .why = "this version of ublk-qcow2 does not have it yet" };
	f->engine[2] = (struct engine_state){ .name = "server", .available = !ret };
	if (ret)
		snprintf(f->engine[2].why, sizeof(f->engine[2].why), "%s", err.text);
	else
		f->chosen = f->engine[f->engine[0].available ? 0 : 2].name;
	f->zero_copy = !ret && (f->bits & ZERO_COPY) == ZERO_COPY;
	if (!f->zero_copy)
		snprintf(f->zero_copy_why, sizeof(f->zero_copy_why), "%s",
			 ret				 ? "no ublk"
			 : f->bits & UBLK_F_AUTO_BUF_REG ? "USER_COPY or SUPPORT_ZERO_COPY is missing"
							 : "AUTO_BUF_REG is missing");
}

static const char *bit_name(unsigned bit, char *buf, size_t size)
{
	if (bit < BIT_NAMES)
		return bit_names[bit];
	snprintf(buf, size, "BIT_%u", bit);
	return buf;
}

static int lists_json(sd_json_variant **v, const struct features *f)
{
	sd_json_variant *bits = NULL, *engines = NULL;
	char buf[16];
	unsigned i;
	int ret = sd_json_variant_new_array(&bits, NULL, 0);

	for (i = 0; ret >= 0 && i < 64; i++)
		if (f->bits & 1ull << i)
			ret = sd_json_variant_append_arrayb(
				&bits, SD_JSON_BUILD_STRING(bit_name(i, buf, sizeof(buf))));
	for (i = 0; ret >= 0 && i < 3; i++)
		ret = sd_json_variant_append_arraybo(
			&engines, SD_JSON_BUILD_PAIR_STRING("name", f->engine[i].name),
			SD_JSON_BUILD_PAIR_BOOLEAN("available", f->engine[i].available),
			SD_JSON_BUILD_PAIR_CONDITION(f->engine[i].why[0] != 0, "why_not",
						     SD_JSON_BUILD_STRING(f->engine[i].why)));
	if (ret >= 0)
		ret = sd_json_variant_set_field(v, "features", bits);
	if (ret >= 0)
		ret = sd_json_variant_set_field(v, "engines", engines);
	sd_json_variant_unref(bits);
	sd_json_variant_unref(engines);
	return ret;
}

static int print_features_json(const struct features *f)
{
	sd_json_variant *v = NULL;
	int ret;

	ret = sd_json_variant_merge_objectbo(
		&v, SD_JSON_BUILD_PAIR_STRING("kernel", f->uts.release),
		SD_JSON_BUILD_PAIR_BOOLEAN("ublk_control", f->control),
		SD_JSON_BUILD_PAIR_UNSIGNED("feature_bits", f->bits),
		SD_JSON_BUILD_PAIR("auto", SD_JSON_BUILD_STRING(f->chosen)),
		SD_JSON_BUILD_PAIR_BOOLEAN("zero_copy", f->zero_copy),
		SD_JSON_BUILD_PAIR_CONDITION(!f->zero_copy, "zero_copy_why_not",
					     SD_JSON_BUILD_STRING(f->zero_copy_why)));
	if (ret >= 0)
		ret = lists_json(&v, f);
	return print_json(v, ret);
}

static int print_features_text(const struct features *f)
{
	char buf[16];
	unsigned i;

	printf("%-13s %s\n", "kernel:", f->uts.release);
	printf("%-13s %s\n", "ublk control:", f->control ? "present" : "missing");
	printf("%-13s", "features:");
	for (i = 0; i < 64; i++)
		if (f->bits & 1ull << i)
			printf(" %s", bit_name(i, buf, sizeof(buf)));
	printf("%s\n", f->bits ? "" : " unknown");
	printf("%-13s %s%s%s%s\n", "zero copy:", f->zero_copy ? "yes" : "no", f->zero_copy ? "" : " (",
	       f->zero_copy_why, f->zero_copy ? "" : ")");
	for (i = 0; i < 3; i++)
		printf("%-13s %-7s %s%s%s\n", i ? "" : "engines:", f->engine[i].name,
		       f->engine[i].available ? "available" : "no", f->engine[i].why[0] ? ": " : "",
		       f->engine[i].why);
	printf("%-13s %s\n", "auto takes:", f->chosen ? f->chosen : "none: images cannot be attached here");
	return EXIT_DONE;
}

static int run_features(int argc, char **argv)
{
	struct features f = { 0 };
	bool json;
	int ret = parse_simple(&cmd_features, argc, argv, NULL, &json);

	if (ret >= 0)
		return ret;
	gather(&f);
	return json ? print_features_json(&f) : print_features_text(&f);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuzz_repair.h - part of fuzz_image.c: repair any bytes.
 *
 * No crash, no hang; what the guest could read it still reads; not more errors than before; the file grows
 * only if something was written anew; where nothing is left to repair a second repair changes nothing, and
 * the image can be used like any clean one.
 */
#include "qcow2/repair.h"

#define BLOCK 4096u

static uint8_t was[WINDOW];
static bool readable[WINDOW / BLOCK];

static int repair(struct memory *m, enum qcow2_repair what, struct qcow2_repair_result *res)
{
	const struct check_callbacks cb = { .finding = note };
	struct host_file *f = mem_open(m, false, 1);
	struct qcow2_error err = { "" };
	int ret = qcow2_repair(f, what, &cb, res, &err);

	require(!ret == !err.text[0], "repair failed without a message, or the other way");
	mem_close(f);
	return ret;
}

static void remember_content(struct memory *m)
{
	struct qcow2_image *img = open_image(m, true, 1);
	uint64_t size = img ? disk_size(img) : 0, at;

	for (at = 0; at + BLOCK <= WINDOW; at += BLOCK)
		readable[at / BLOCK] = at + BLOCK <= size && read_range(img, at, BLOCK, was + at);
	if (img)
		qcow2_close(img, NULL);
}

static void compare_content(struct memory *m)
{
	struct qcow2_image *img = open_image(m, true, 1);
	static uint8_t now[BLOCK];
	uint64_t at;

	for (at = 0; at + BLOCK <= WINDOW; at += BLOCK) {
		if (!readable[at / BLOCK])
			continue;
		require(img, "a repaired image cannot be opened");
		require(read_range(img, at, BLOCK, now), "the repair made something unreadable");
		require(!memcmp(now, was + at, BLOCK), "the repair changed what the guest reads");
	}
	if (img)
		qcow2_close(img, NULL);
}

static void repair_leaks(const uint8_t *data, size_t size, const struct check_result *before)
{
	struct memory m = memory_of(data, size);
	struct qcow2_repair_result res;

	require(!repair(&m, QCOW2_REPAIR_LEAKS, &res), "leaks: failed");
	require(res.after.errors <= before->errors, "leaks: more errors than before");
	require(before->errors || !res.after.leaks, "leaks: some are left");
	require(!res.rebuilt && !res.raised && !res.moved && !res.zeroed, "leaks: did more than that");
	compare_content(&m);
	free(m.bytes);
}

/*
 * Errors may become more only where they could not be counted before; or where a refcount of one bit says one
 * but there are more references: none of them keeps COPIED, so that nobody writes in place, and each is an
 * error of its own.
 */
static bool no_worse(const struct judged *before, const struct judged *after)
{
	uint64_t was_missing = before->copied_missing, missing = after->copied_missing;

	if (before->unreadable)
		return true;
	if (after->res.errors - missing > before->res.errors - was_missing)
		return false;
	return after->res.errors <= before->res.errors + before->saturated;
}

static void repair_all(const uint8_t *data, size_t size)
{
	struct memory m = memory_of(data, size), again;
	struct qcow2_repair_result res;
	struct judged before, after;
	uint64_t bits = data[23] & 31;
	int ret;

	require(!judge(&m, &before), "cannot be checked again");
	ret = repair(&m, QCOW2_REPAIR_ALL, &res);
	require(!ret || ret == -ENOSPC, "all: failed");
	require(ret || res.rebuilt || m.size <= ((size - 1) >> bits << bits) + (1ull << bits),
		"all: the file grew");
	require(!judge(&m, &after), "all: cannot be checked after it");
	compare_content(&m);
	if (ret)
		goto out;
	require(after.res.errors == res.after.errors && after.res.leaks == res.after.leaks,
		"all: not what it says");
	require(no_worse(&before, &after), "all: more errors than before");
	require(!after.res.errors == !res.left[0] || after.res.leaks,
		"all: does not say why errors are left");
	if (after.res.errors || after.res.leaks)
		goto out;
	again = memory_of(m.bytes, m.size);
	require(!repair(&again, QCOW2_REPAIR_ALL, &res), "all: failed the second time");
	require(again.size == m.size && !memcmp(again.bytes, m.bytes, m.size),
		"all: not done the first time");
	free(again.bytes);
	use_read_write(m.bytes, m.size, true);
out:
	free(m.bytes);
}

static void repair_before_open(const uint8_t *data, size_t size)
{
	struct memory m = memory_of(data, size);
	struct host_file *f = mem_open(&m, false, 1);
	struct qcow2_repair_result res;
	struct qcow2_error err = { "" };
	int ret = qcow2_repair_before_open(f, rnd() % 2, &res, &err);

	require(!ret == !err.text[0], "repair before open failed without a message, or the other way");
	require(ret || !res.after.errors, "repair before open left errors");
	mem_close(f);
	free(m.bytes);
}

static void use_repair(const uint8_t *data, size_t size, const struct check_result *before)
{
	struct memory m = memory_of(data, size);

	remember_content(&m);
	free(m.bytes);
	repair_leaks(data, size, before);
	repair_all(data, size);
	repair_before_open(data, size);
}

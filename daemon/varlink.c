// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * varlink.c - the interface io.ublkqcow2. What control.c replies is checked against it by libsystemd;
 * fields may be added, never renamed or removed.
 */
#include "varlink.h"

#define OUT_STRING(name) SD_VARLINK_DEFINE_OUTPUT(name, SD_VARLINK_STRING, 0)
#define OUT_INT(name) SD_VARLINK_DEFINE_OUTPUT(name, SD_VARLINK_INT, 0)
#define OUT_BOOL(name) SD_VARLINK_DEFINE_OUTPUT(name, SD_VARLINK_BOOL, 0)

static SD_VARLINK_DEFINE_METHOD(Info, OUT_STRING(device), OUT_STRING(engine), OUT_INT(size),
				OUT_BOOL(read_only), OUT_BOOL(zero_copy), OUT_BOOL(direct_io),
				OUT_INT(queues), OUT_INT(depth), OUT_INT(pid));

static SD_VARLINK_DEFINE_METHOD(Stats, OUT_STRING(device), OUT_STRING(engine), OUT_INT(hits),
				OUT_INT(kernel_hits), OUT_INT(misses), OUT_INT(reads), OUT_INT(writes), OUT_INT(read_bytes), OUT_INT(write_bytes),
				OUT_INT(flushes), OUT_INT(discards), OUT_INT(commits), OUT_INT(withdrawals),
				OUT_INT(drains), OUT_INT(slices), OUT_INT(daemon_restarts));

static SD_VARLINK_DEFINE_METHOD(Detach, OUT_STRING(device));

static SD_VARLINK_DEFINE_ERROR(DetachFailed, SD_VARLINK_DEFINE_FIELD(message, SD_VARLINK_STRING, 0));

SD_VARLINK_DEFINE_INTERFACE(
	io_ublkqcow2, "io.ublkqcow2", SD_VARLINK_INTERFACE_COMMENT("One attached qcow2 image"),
	SD_VARLINK_SYMBOL_COMMENT("What the device is"), &vl_method_Info,
	SD_VARLINK_SYMBOL_COMMENT("Counters since it was attached"), &vl_method_Stats,
	SD_VARLINK_SYMBOL_COMMENT("Write everything back, delete the device; the reply comes after that"),
	&vl_method_Detach, SD_VARLINK_SYMBOL_COMMENT("The device is gone, but something was lost"),
	&vl_error_DetachFailed);

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upper.h - the calls to the module ublk_bpf (kernel/ublk_bpf.h), and what is done with a disk of it by its
 * number alone: /dev/ublkbpfN always lies over /dev/ublkbN.
 */
#ifndef DAEMON_UPPER_H
#define DAEMON_UPPER_H

#include "kernel/ublk_bpf.h"
#include "qcow2/error.h"
#include <stdbool.h>
#include <stddef.h>

/* A descriptor of the control device. -ENOENT: no module; -EACCES: not root; -EPROTO: a version that we do
 * not know. err says which. */
int upper_open(struct qcow2_error *err);
/* One call. 0 or -errno. */
int upper_call(int control, unsigned long call, void *arg);
/* 1: ublkbpf@id is there and lies over ublkb@id as it is now; 0: no; -errno. */
int upper_look(int control, int id, struct ublk_bpf_info *info);
/* Where the link of the disk's program is pinned; returns buf. */
const char *upper_pin(char *buf, size_t size, int id);
/* Take the program away from a disk, whoever attached it; no hit is in flight any more when it returns 0.
 * Else -errno. */
int upper_silence(int control, int id);
/* Silence and remove the disk, waiting a little for those who have it open. 0 also if there is none; -EBUSY;
 * -errno. */
int upper_destroy(int control, int id);
/* Destroy the disk over ublkb@id, or one whose lower device of that number is gone, if this machine has the
 * module at all. As upper_destroy(). */
int upper_remove(int id);
/* The same, but a disk over ublkb@id as it is now stays: it is another device's of that number. */
int upper_bury(int id);
/* A descriptor of the image file (the caller's), with its locks, as the disk over ublkb@id still has it.
 * -ENOENT: there is none. */
int upper_image(int id);

#endif

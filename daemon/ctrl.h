/* SPDX-License-Identifier: GPL-2.0-or-later */
/* ctrl.h - /dev/ublk-control: what the kernel offers, adding, starting, stopping and deleting devices. */
#ifndef DAEMON_CTRL_H
#define DAEMON_CTRL_H

#include "qcow2/error.h"
#include <linux/ublk_cmd.h>
#include <sched.h>
#include <stdint.h>

/* ---- for tools; each opens and closes the control device itself ---- */

/*
 * UBLK_F_* bits the kernel offers (0: a kernel too old to tell, before 6.5).
 * -ENOENT: the kernel has no ublk_drv; -EACCES: not root; err says what to do.
 */
int ublk_features(uint64_t *features, struct qcow2_error *err);
/* -ENODEV: no such device. */
int ublk_get_info(int id, struct ublksrv_ctrl_dev_info *info, struct qcow2_error *err);
/* Stop and delete a device and the disk of ublk_bpf over it, an orphan's cleanup; -ENODEV: no such device. Waits until its server let go of
 * it. */
int ublk_delete(int id, struct qcow2_error *err);
/* The same, from a process of its own that goes on alone after @ms: -ETIMEDOUT, the device goes later. */
int ublk_delete_within(int id, unsigned ms, struct qcow2_error *err);

/* ---- for server.c ---- */

struct ctrl;

int ctrl_open(struct ctrl **out, struct qcow2_error *err);
void ctrl_close(struct ctrl *c);
uint64_t ctrl_features(const struct ctrl *c);
/* The opcode to use for an I/O command of ublkcN: the ioctl-encoded one or, on an old kernel, the plain
 * number. */
uint32_t ctrl_io_cmd(const struct ctrl *c, uint32_t cmd);

/* These return what the driver said: 0 or -errno, no message. */
int ctrl_add(struct ctrl *c, struct ublksrv_ctrl_dev_info *info); /* dev_id -1: any; info is updated */
int ctrl_set_params(struct ctrl *c, int id, const struct ublk_params *params);
int ctrl_queue_affinity(struct ctrl *c, int id, unsigned queue, cpu_set_t *cpus);
int ctrl_start(struct ctrl *c, int id); /* blocks until the partitions were read */
int ctrl_stop(struct ctrl *c, int id); /* blocks until what is in flight completed */
int ctrl_delete(struct ctrl *c, int id); /* blocks until everybody closed ublkcN */
int ctrl_get_info(struct ctrl *c, int id, struct ublksrv_ctrl_dev_info *info);
/* -EBUSY: its last server has not let go of ublkcN yet. */
int ctrl_start_recovery(struct ctrl *c, int id);
int ctrl_end_recovery(struct ctrl *c, int id); /* when there is a FETCH on every tag */

#endif

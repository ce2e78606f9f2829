/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What a program for the module ublk_bpf sees. Needs linux/types.h (or vmlinux.h) and bpf_helpers.h before
 * it. A program is not sleepable. It cannot write the request: it records one action with the functions below
 * (the last one counts) and returns an enum ublk_bpf_verdict.
 */
#ifndef UBLK_BPF_BPF_H
#define UBLK_BPF_BPF_H

#include "../kernel/ublk_bpf.h"

/* One read or write; ends at the latest where its range (range_shift) ends. All multiples of 512 bytes. */
struct ublk_bpf_io {
	__u64 offset; /* bytes on the disk */
	__u32 len; /* bytes */
	__u32 op; /* enum ublk_bpf_op */
	__u32 dev_id; /* the N of ublkbpfN */
} __attribute__((preserve_access_index));

/*
 * The struct_ops. dev_id says which disk it is for: set it before the load. One program set per disk (EBUSY),
 * ENODEV without the disk. Attach by link; bpf_link__update_map() replaces it under load (EINVAL for another
 * dev_id).
 */
struct ublk_bpf_ops {
	/* Required. Called in the submitter's context with the range's counter held. */
	int (*queue_io)(struct ublk_bpf_io *io);
	/* Optional: the file I/O of an action ended; @result is 0 or -errno. May run in a softirq. */
	void (*complete_io)(struct ublk_bpf_io *io, int result);
	__u32 dev_id;
};

/*
 * The first @len bytes are at @offset of the file in @slot. 0, or -EINVAL: nothing recorded (length,
 * alignment to 512, slot). Less than io->len has to be a multiple of the disk's logical block size, here and
 * below, or the request is redirected.
 */
extern int ublk_bpf_io_hit(struct ublk_bpf_io *io, __u32 slot, __u64 offset, __u32 len) __ksym;
/* The first @len bytes read as zeroes. 0, or -EINVAL for a write or a bad length. */
extern int ublk_bpf_io_zero(struct ublk_bpf_io *io, __u32 len) __ksym;
/*
 * The first @len bytes are done: @result is 0 (a write is thrown away, a read reads zeroes) or a negative
 * errno. 0, or -EINVAL for a bad length or result.
 */
extern int ublk_bpf_io_complete(struct ublk_bpf_io *io, __u32 len, int result) __ksym;
/* The first @len bytes go to the device below; for UBLK_BPF_CONTINUE. 0, or -EINVAL for a bad length. */
extern int ublk_bpf_io_redirect(struct ublk_bpf_io *io, __u32 len) __ksym;

#endif

/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * ublk_bpf: a disk /dev/ublkbpfN stacked over a ublk block device. A BPF program says for each read and write whether
 * the kernel serves it from a registered file, at once, or whether it goes to the device below. docs/kernel.md has the
 * promises and lifetimes.
 *
 * Shared by the module, user space and BPF programs (these see more in bpf/ublk_bpf.bpf.h).
 *
 * Control is by ioctl on /dev/ublk-bpf-control, CAP_SYS_ADMIN only. Nothing belongs to the descriptor or the process: a
 * disk, its files and its program stay when the process that made them dies.
 * Errors common to all calls: EPERM no CAP_SYS_ADMIN, EFAULT bad pointer, ENODEV no disk with that id,
 * EINVAL an unknown flag or a reserved word that is not 0, ENOTTY unknown call.
 */
#ifndef UBLK_BPF_H
#define UBLK_BPF_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define UBLK_BPF_CONTROL	"/dev/ublk-bpf-control"
#define UBLK_BPF_VERSION	2	/* raised when an old user would misunderstand */
#define UBLK_BPF_FILES		16	/* file slots of a disk, 0..15 */
#define UBLK_BPF_BUCKETS	1024	/* in-flight counters of a disk: range r counts in bucket r % 1024 */
#define UBLK_BPF_RANGE_MIN	16	/* bounds of range_shift */
#define UBLK_BPF_RANGE_MAX	40
#define UBLK_BPF_ANY_ID		(~0U)

/* What queue_io returns. Anything else counts as UBLK_BPF_REDIRECT. */
enum ublk_bpf_verdict {
	UBLK_BPF_REDIRECT = 0,	/* all of the request to the device below; a recorded action is dropped */
	UBLK_BPF_QUEUED = 1,	/* the recorded action covers all of the request */
	UBLK_BPF_CONTINUE = 2,	/* the recorded action covers the first bytes; ask again for the rest */
};

/* ublk_bpf_io.op: a program sees no other requests, and of these none with FLUSH or FUA */
enum ublk_bpf_op {
	UBLK_BPF_READ = 0,
	UBLK_BPF_WRITE = 1,
};

/*
 * What a disk sends below carries both of these in ublksrv_io_desc.op_flags, and is merged with nothing else; no other
 * request has both. So the server can tell it from what somebody else does to the device below.
 */
#define UBLK_BPF_MARK		(UBLK_IO_F_META | UBLK_IO_F_SWAP)

/* A disk never writes through hits: what a program records for writes is redirected. */
#define UBLK_BPF_DISK_RDONLY	(1U << 0)

/*
 * UBLK_BPF_CREATE: makes /dev/ublkbpf<id> over @lower_fd and scans its partitions. Blocks until the device below has
 * answered those reads: the thread that serves it must be another one. All requests are redirected until a program is
 * attached. The lower device is held exclusively; capacity, limits, write cache, and (unless asked for here) the
 * read-only state are taken from it as they are now. @lower_fd may be closed afterwards.
 * EBADF no such descriptor; ENOTBLK no block device; EBUSY the lower device is held by somebody, or is itself a
 * ublkbpf disk; EEXIST @id is taken; ERANGE @range_shift out of bounds.
 */
struct ublk_bpf_create {
	__u32 id;		/* in: wanted number, 0..1048575, or UBLK_BPF_ANY_ID; out: the number */
	__s32 lower_fd;		/* in: an open descriptor of /dev/ublkbN, O_RDONLY suffices */
	__u32 flags;		/* in: UBLK_BPF_DISK_ */
	__u32 range_shift;	/* in: log2 bytes of a range, the unit of draining; a hit never crosses one */
	__u32 major, minor;	/* out: of the new device */
};

/*
 * UBLK_BPF_DESTROY: EBUSY while anybody has the disk or a partition open (a short-lived udev probe counts: try again).
 * Detaches the program, waits for hits in flight, drops the files, releases the lower device. An attached link stays
 * what it is, without effect. Pending requests below must be answered by somebody, or this waits.
 */
struct ublk_bpf_destroy {
	__u32 id;
	__u32 reserved;
};

#define UBLK_BPF_FILE_RDONLY	(1U << 0)	/* hits never write here: a write is redirected */

/*
 * UBLK_BPF_SET_FILE: puts the open file @fd (regular, or block device; O_DIRECT) into @slot. The module holds the open
 * file description, with its OFD locks, until the slot is cleared, replaced, or the disk destroyed. The call returns
 * when no hit on what was in the slot before is in flight. @fd = -1 clears the slot.
 * EBADF no such descriptor, or not open for reading (and writing, without the flag); EINVAL neither regular nor block
 * device, or not O_DIRECT; EOPNOTSUPP no direct I/O there; EROFS writable file on a read-only disk;
 * ELOOP the file lies on this disk or its lower device; ERANGE @slot.
 * O_NOATIME is set on the description: a read must not start a transaction for an access time. A slot that programs may still
 * name is replaced only by the same data; else withdraw and drain first.
 */
struct ublk_bpf_file {
	__u32 id;
	__u32 slot;
	__s32 fd;		/* in; UBLK_BPF_GET_FILE: out */
	__u32 flags;		/* UBLK_BPF_FILE_; UBLK_BPF_GET_FILE: out */
	__u32 mem_align;	/* out: bytes; a request with memory below this alignment is redirected, not served */
	__u32 offset_align;	/* out: bytes; the same for file offset and length */
};

/*
 * UBLK_BPF_GET_FILE (same struct): a new descriptor, close-on-exec, of the very open file description in @slot: its locks are
 * the caller's again. ENOENT the slot is empty.
 *
 * UBLK_BPF_DRAIN: returns when every hit is over that may have looked something up in [offset, offset + length) before this
 * call. Stores to the program's maps made before the call are seen by every lookup it does not wait for. Hits
 * that start later do not prolong it. Buckets are shared (see UBLK_BPF_BUCKETS), so it may wait for strangers.
 * Must not be called by a thread that completes the files' I/O. length ~0: the whole disk.
 * EINTR killed by a signal: drain again. EAGAIN (UBLK_BPF_DRAIN_NOWAIT) there is somebody to wait for. EINVAL length 0 or
 * (except ~0) offset + length overflows.
 */
#define UBLK_BPF_DRAIN_NOWAIT	(1U << 0)	/* only look; cheap */
struct ublk_bpf_drain {
	__u32 id;
	__u32 flags;		/* UBLK_BPF_DRAIN_ */
	__u64 offset, length;	/* bytes */
};

/* UBLK_BPF_INFO, of one disk; @id in, the rest out */
#define UBLK_BPF_ATTACHED	(1U << 31)	/* in @flags: a program is attached */
#define UBLK_BPF_LOWER_DEAD	(1U << 30)	/* in @flags: the lower device is gone, all I/O fails */
struct ublk_bpf_info {
	__u32 id;
	__u32 flags;
	__u32 range_shift;
	__u32 files;		/* bit n: slot n is taken */
	__u32 major, minor;
	__u32 lower_major, lower_minor;
};

/*
 * UBLK_BPF_STATS: since creation; @id in. Requests are counted after splitting; a consistent snapshot only while idle.
 * hits = requests served in the kernel to their end, misses = requests that went below.
 */
struct ublk_bpf_stats {
	__u32 id;
	__u32 reserved;
	__u64 hits, misses;
	__u64 reads, writes, read_bytes, write_bytes;	/* of the hits */
	__u64 zeroed;		/* hits answered with zeroes or with the program's result, no file I/O */
	__u64 splits;
	__u64 punts;		/* file I/O given to the worker because of where the submitter stood */
	__u64 again;		/* file I/O given to the worker because the file system would have slept */
	__u64 refused;		/* misses because an action could not be done: bad slot, alignment, end of file, read-only, frozen, no memory */
	__u64 failed;		/* misses because the file's I/O failed or was short: the mapping is to be withdrawn */
	__u64 drains;
};

/* UBLK_BPF_GET_VERSION returns UBLK_BPF_VERSION; needs no capability beyond opening the device. */
#define UBLK_BPF_GET_VERSION	_IO(0xbb, 0)
#define UBLK_BPF_CREATE		_IOWR(0xbb, 1, struct ublk_bpf_create)
#define UBLK_BPF_DESTROY	_IOW(0xbb, 2, struct ublk_bpf_destroy)
#define UBLK_BPF_SET_FILE	_IOWR(0xbb, 3, struct ublk_bpf_file)
#define UBLK_BPF_GET_FILE	_IOWR(0xbb, 4, struct ublk_bpf_file)
#define UBLK_BPF_DRAIN		_IOW(0xbb, 5, struct ublk_bpf_drain)
#define UBLK_BPF_INFO		_IOWR(0xbb, 6, struct ublk_bpf_info)
#define UBLK_BPF_STATS		_IOWR(0xbb, 7, struct ublk_bpf_stats)

#endif

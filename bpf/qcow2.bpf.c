// SPDX-License-Identifier: GPL-2.0
/*
 * qcow2.bpf.c - engine `kernel`: a request whose mapping is in the table is served by the module from the
 * image's files, everything else goes to the daemon. Counting is the module's.
 */
#include <linux/types.h>

#include <linux/bpf.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "mapping.bpf.h"
#include "ublk_bpf.bpf.h"

SEC("struct_ops/queue_io")
int BPF_PROG(qcow2_queue_io, struct ublk_bpf_io *io)
{
	struct mapping_hit hit;
	__u32 len = io->len;
	int ret;

	if (!mapping_lookup(io->offset, len, io->op == UBLK_BPF_WRITE, &hit))
		return UBLK_BPF_REDIRECT;
	ret = hit.zero ? ublk_bpf_io_zero(io, hit.len) : ublk_bpf_io_hit(io, hit.file, hit.host, hit.len);
	if (ret)
		return UBLK_BPF_REDIRECT;
	return hit.len == len ? UBLK_BPF_QUEUED : UBLK_BPF_CONTINUE;
}

SEC(".struct_ops.link")
struct ublk_bpf_ops ops = { .queue_io = (void *)qcow2_queue_io };

char _license[] SEC("license") = "GPL";

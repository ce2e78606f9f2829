// SPDX-License-Identifier: GPL-2.0
/* Self-test: every request ends in the program: writes vanish, reads are zeroes. Complete BPF handling. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "ublk_bpf.bpf.h"

SEC("struct_ops/queue_io")
int BPF_PROG(null_queue_io, struct ublk_bpf_io *io)
{
	return ublk_bpf_io_complete(io, io->len, 0) ? UBLK_BPF_REDIRECT : UBLK_BPF_QUEUED;
}

SEC(".struct_ops.link")
struct ublk_bpf_ops ops = { .queue_io = (void *)null_queue_io };

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: GPL-2.0
/* Self-test: chunks of 64 KiB alternate between the files in slots 0 and 1. Aio on several files, split at
 * each chunk. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "ublk_bpf.bpf.h"

#define CHUNK 65536U

SEC("struct_ops/queue_io")
int BPF_PROG(stripe_queue_io, struct ublk_bpf_io *io)
{
	__u64 chunk = io->offset / CHUNK;
	__u32 in = io->offset % CHUNK, n = CHUNK - in;

	if (n > io->len)
		n = io->len;
	if (ublk_bpf_io_hit(io, chunk % 2, chunk / 2 * CHUNK + in, n))
		return UBLK_BPF_REDIRECT;
	return n == io->len ? UBLK_BPF_QUEUED : UBLK_BPF_CONTINUE;
}

SEC(".struct_ops.link")
struct ublk_bpf_ops ops = { .queue_io = (void *)stripe_queue_io };

char _license[] SEC("license") = "GPL";

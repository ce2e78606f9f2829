// SPDX-License-Identifier: GPL-2.0
/*
 * Self-test: the disk is the file in slot 0, in pieces of 2^chunk_shift bytes, each served as modes[piece %
 * 8] says. So one program shows complete BPF handling (all FILE), complete server handling (all SERVER), and
 * both mixed with splits. A request is answered piece by piece (CONTINUE).
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "ublk_bpf.bpf.h"

enum mode {
	SERVER, /* below */
	FILE, /* slot 0, same offset */
	ZERO, /* reads as zeroes; writes go below */
	ERROR, /* EIO */
	BEYOND, /* an action that cannot be done: far behind the end of the file */
};

volatile __u32 chunk_shift = 16;
volatile __u8 modes[8] = { FILE, FILE, FILE, FILE, FILE, FILE, FILE, FILE };
/* What complete_io was told. */
volatile __u64 completions, failures;

SEC("struct_ops/queue_io")
int BPF_PROG(loop_queue_io, struct ublk_bpf_io *io)
{
	__u32 shift = chunk_shift & 31, chunk = 1U << shift;
	__u32 n = chunk - (io->offset & (chunk - 1));
	int bad;

	if (n > io->len)
		n = io->len;
	switch (modes[(io->offset >> shift) & 7]) {
	case FILE:
		bad = ublk_bpf_io_hit(io, 0, io->offset, n);
		break;
	case ZERO:
		if (io->op == UBLK_BPF_READ)
			bad = ublk_bpf_io_zero(io, n);
		else
			bad = ublk_bpf_io_redirect(io, n);
		break;
	case ERROR:
		bad = ublk_bpf_io_complete(io, n, -5);
		break;
	case BEYOND:
		bad = ublk_bpf_io_hit(io, 0, 1ULL << 50, n);
		break;
	default:
		bad = ublk_bpf_io_redirect(io, n);
	}
	if (bad)
		return UBLK_BPF_REDIRECT;
	return n == io->len ? UBLK_BPF_QUEUED : UBLK_BPF_CONTINUE;
}

SEC("struct_ops/complete_io")
void BPF_PROG(loop_complete_io, struct ublk_bpf_io *io, int result)
{
	__sync_fetch_and_add(&completions, 1);
	if (result)
		__sync_fetch_and_add(&failures, 1);
}

SEC(".struct_ops.link")
struct ublk_bpf_ops ops = {
	.queue_io = (void *)loop_queue_io,
	.complete_io = (void *)loop_complete_io,
};

char _license[] SEC("license") = "GPL";

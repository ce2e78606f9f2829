/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM ublk_bpf

#if !defined(UBLK_BPF_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define UBLK_BPF_TRACE_H

#include <linux/tracepoint.h>

#include "core.h"

/* What was decided for the first @len bytes of a request. */
TRACE_EVENT(ublk_bpf_queue,
	TP_PROTO(const struct ublk_bpf_call *call),
	TP_ARGS(call),
	TP_STRUCT__entry(
		__field(u32, dev_id)
		__field(u32, op)
		__field(u64, offset)
		__field(u32, len)
		__field(u32, action)
		__field(u32, slot)
		__field(u64, file_offset)
	),
	TP_fast_assign(
		__entry->dev_id = call->io.dev_id;
		__entry->op = call->io.op;
		__entry->offset = call->io.offset;
		__entry->len = call->len;
		__entry->action = call->action;
		__entry->slot = call->slot;
		__entry->file_offset = call->file_offset;
	),
	TP_printk("ublkbpf%u %s %llu+%u %s slot %u offset %llu", __entry->dev_id,
		  __entry->op == UBLK_BPF_WRITE ? "write" : "read", __entry->offset, __entry->len,
		  __print_symbolic(__entry->action, { UBLK_BPF_GO_BELOW, "below" }, { UBLK_BPF_FILE_IO, "file" },
				   { UBLK_BPF_RESULT, "result" }),
		  __entry->slot, __entry->file_offset)
);

/* A hit's file I/O ended; with an error it goes below (but for a full disk). */
TRACE_EVENT(ublk_bpf_complete,
	TP_PROTO(const struct ublk_bpf_io *io, int result),
	TP_ARGS(io, result),
	TP_STRUCT__entry(
		__field(u32, dev_id)
		__field(u64, offset)
		__field(int, result)
	),
	TP_fast_assign(
		__entry->dev_id = io->dev_id;
		__entry->offset = io->offset;
		__entry->result = result;
	),
	TP_printk("ublkbpf%u %llu result %d", __entry->dev_id, __entry->offset, __entry->result)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>

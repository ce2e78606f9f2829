/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * kernel_program.h - the BPF program of engine `kernel` (bpf/qcow2.bpf.c) and its table.
 */
#ifndef DAEMON_KERNEL_PROGRAM_H
#define DAEMON_KERNEL_PROGRAM_H

#include "bpf/mapping.h"
#include "qcow2/error.h"
#include <stdint.h>

/* The mapping table as two BPF maps, bpf/mapping.bpf.h. */
struct kernel_table {
	int index_fd, slot_fd;
	uint32_t slots;
	struct fastmap_slot *slot; /* zeroes; mapped */
};

/* 0 or -errno. */
int kernel_table_new(struct kernel_table *t, uint32_t slots);
void kernel_table_free(struct kernel_table *t);
/* The program finds a slice in a slot, or no more. Never fails for lack of memory; if it fails at all, the
 * slice's requests are misses. */
void kernel_table_tell(const struct kernel_table *t, uint64_t slice, uint32_t slot);
void kernel_table_forget(const struct kernel_table *t, uint64_t slice);

struct kernel_program;

/* Load the program for disk @id, which need not be there yet, over a table. 0 or -errno with err. */
int kernel_program_load(struct kernel_program **out, int id, const struct kernel_table *table,
			unsigned cluster_bits, struct qcow2_error *err);
/* Attach it to its disk and pin the link, so that it goes on without this process. 0 or -errno with err. */
int kernel_program_attach(struct kernel_program *p, const char *pin, struct qcow2_error *err);
/* What is attached and pinned stays so. */
void kernel_program_free(struct kernel_program *p);

#endif

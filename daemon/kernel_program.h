/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * kernel_program.h - the BPF program of engine `kernel` (bpf/qcow2.bpf.c) and the memory of its table.
 */
#ifndef DAEMON_KERNEL_PROGRAM_H
#define DAEMON_KERNEL_PROGRAM_H

#include "bpf/mapping.h"
#include "qcow2/error.h"

/* A BPF map of @sets sets, zeroes, and where it is mapped. A descriptor, or -errno. */
int kernel_table_new(unsigned sets, struct fastmap_slot **slot);
void kernel_table_free(int fd, unsigned sets, struct fastmap_slot *slot);

struct kernel_program;

/* Load the program for disk @id, which need not be there yet, over table @fd. 0 or -errno with err. */
int kernel_program_load(struct kernel_program **out, int id, int fd, unsigned sets, unsigned cluster_bits,
			struct qcow2_error *err);
/* Attach it to its disk and pin the link, so that it goes on without this process. 0 or -errno with err. */
int kernel_program_attach(struct kernel_program *p, const char *pin, struct qcow2_error *err);
/* What is attached and pinned stays so. */
void kernel_program_free(struct kernel_program *p);

#endif

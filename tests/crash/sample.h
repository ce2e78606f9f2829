/* SPDX-License-Identifier: GPL-2.0-or-later */
/* sample.h - what is too slow for every state: asking qemu-img, and using what the crash left. */
#ifndef TESTS_CRASH_SAMPLE_H
#define TESTS_CRASH_SAMPLE_H

#include "judge.h"

/* `qemu-img check` finds no error, and `qemu-img convert` reads what our walk read. */
void sample_qemu(struct judge *j, struct span s);
/*
 * Open the state, read all, use it and close it: everything reads as our walk read it, nothing leaks that the
 * crash had not left, and allocating and freeing for long does not make the file grow.
 * @s: its bytes go on as zeroes up to DEVICE_MAX.
 */
void sample_recovery(struct judge *j, struct span s, uint64_t seed);
/* Clusters that will be leaked once the file is written to: those past the end counted, autoclear bits gone.
 */
uint64_t sample_leaks(struct span s);
/* Write the state to a file. */
void sample_write(const char *path, struct span s);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* scratch.h - a folder for the images, gone when the process that made it exits; and how memory is taken. */
#ifndef TESTS_CRASH_SCRATCH_H
#define TESTS_CRASH_SCRATCH_H

#include <stdbool.h>

/* False: qemu-img is missing. */
bool scratch_make(void);
const char *scratch_dir(void);

#endif

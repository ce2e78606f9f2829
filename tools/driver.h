/* SPDX-License-Identifier: GPL-2.0-or-later */
/* driver.h - the kernel modules. */
#ifndef TOOLS_DRIVER_H
#define TOOLS_DRIVER_H

#include <stdbool.h>

/* Have ublk_drv, and for an engine that needs it (@kernel) ublk_bpf, loaded if it is a module that is not. Says nothing: whoever
 * opens the control device will. */
void driver_load(bool kernel);

#endif

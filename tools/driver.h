/* SPDX-License-Identifier: GPL-2.0-or-later */
/* driver.h - the kernel's ublk driver. */
#ifndef TOOLS_DRIVER_H
#define TOOLS_DRIVER_H

/* Have ublk_drv loaded if it is a module that is not. Says nothing: whoever opens /dev/ublk-control will. */
void driver_load(void);

#endif

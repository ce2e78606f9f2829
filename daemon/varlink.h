/* SPDX-License-Identifier: GPL-2.0-or-later */
/* varlink.h - the definition of the interface io.ublkqcow2 (what `varlinkctl introspect` shows). */
#ifndef DAEMON_VARLINK_H
#define DAEMON_VARLINK_H

#include <systemd/sd-varlink-idl.h>

extern const sd_varlink_interface vl_interface_io_ublkqcow2;

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* settings.h - what a device was attached with, as JSON: for the next worker and in the state file. */
#ifndef DAEMON_SETTINGS_H
#define DAEMON_SETTINGS_H

#include "server.h"
#include <systemd/sd-json.h>

/* A new object with every setting but the image and what concerns one process only. 0 or -errno. */
int settings_to_json(const struct server_options *opt, sd_json_variant **v);
/* What @v does not say (NULL: nothing) is as `attach` without options has it. Pointers of *opt are NULL. */
void settings_from_json(sd_json_variant *v, struct server_options *opt);

#endif

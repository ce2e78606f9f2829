/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * control.h - the main thread of a worker: signals, the death of the data path, orders of the supervisor, and
 * the Varlink interface io.ublkqcow2 on /run/ublk-qcow2/ID/control (Info, Stats, Detach).
 */
#ifndef DAEMON_CONTROL_H
#define DAEMON_CONTROL_H

#include "link.h"
#include "qcow2/error.h"
#include "rundir.h"
#include "server.h"

struct control;

/* Listen. @link: to the supervisor; NULL: there is none. @server, @dir, @state and @link stay the caller's if
 * this fails; else they are used until control_run() returns. 0 or -errno. */
int control_new(struct control **out, struct server *server, struct rundir *dir, struct run_state *state,
		struct link *link, struct qcow2_error *err);

/*
 * Serve until SIGTERM, SIGINT, a Detach, the supervisor's order or the end of the data path; then stop the
 * server, have the directory removed (by the supervisor if it lives), answer whoever asked for it, free all
 * (the server and the directory, too). If the order was to leave, the device and the directory stay. 0 if
 * everything ended well; else what went wrong was logged. If the data path ended though the device is there
 * and can have another process, this one ends at once, with EXIT_FAILURE, as if it had been killed.
 */
int control_run(struct control *c);

#endif

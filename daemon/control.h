/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * control.h - the main thread of a device process: signals, the death of the data path, and the Varlink
 * interface io.ublkqcow2 on /run/ublk-qcow2/ID/control (Info, Stats, Detach).
 */
#ifndef DAEMON_CONTROL_H
#define DAEMON_CONTROL_H

#include "qcow2/error.h"
#include "rundir.h"
#include "server.h"

/* Block what the control loop wants to receive. Before any thread exists: threads inherit it. */
void control_block_signals(void);

struct control;

/* Listen. @server, @dir and @state stay the caller's if this fails; else they are used until control_run()
 * returns. 0 or -errno. */
int control_new(struct control **out, struct server *server, struct rundir *dir,
		const struct run_state *state, struct qcow2_error *err);

/*
 * Serve until SIGTERM, SIGINT, a Detach or the end of the data path; then stop the server, remove the
 * directory, answer whoever asked for it, free all (the server and the directory, too). 0 if everything
 * ended well; else what went wrong was logged.
 */
int control_run(struct control *c);

#endif

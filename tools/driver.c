// SPDX-License-Identifier: GPL-2.0-or-later
/* driver.c - what mount does for file systems: the module comes when it is needed. */
#include "driver.h"
#include "kernel/ublk_bpf.h"
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

static int run_modprobe(const char *program, const char *module, pid_t *pid)
{
	char *const argv[] = { "modprobe", "-q", (char *)module, NULL };
	char *const envp[] = { "PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL };
	posix_spawn_file_actions_t quiet;
	int ret;

	if (posix_spawn_file_actions_init(&quiet))
		return -1;
	posix_spawn_file_actions_addopen(&quiet, 1, "/dev/null", O_WRONLY, 0);
	posix_spawn_file_actions_addopen(&quiet, 2, "/dev/null", O_WRONLY, 0);
	ret = posix_spawn(pid, program, &quiet, NULL, argv, envp);
	posix_spawn_file_actions_destroy(&quiet);
	return ret;
}

static void load(const char *module, const char *control)
{
	pid_t pid;

	if (access(control, F_OK) == 0 || geteuid() != 0)
		return;
	if (run_modprobe("/usr/sbin/modprobe", module, &pid) && run_modprobe("/sbin/modprobe", module, &pid))
		return;
	waitpid(pid, NULL, 0);
}

void driver_load(bool kernel)
{
	load("ublk_drv", "/dev/ublk-control");
	if (kernel)
		load("ublk_bpf", UBLK_BPF_CONTROL);
}

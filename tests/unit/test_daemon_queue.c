// SPDX-License-Identifier: GPL-2.0-or-later
/* test_daemon_queue.c - a queue that the driver does not take says so when it starts, not never. */
#include "daemon/copy.h"
#include "daemon/meta.h"
#include "daemon/queue.h"
#include "unit.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

static int try_ring(void **state)
{
	struct io_uring ring;

	if (io_uring_queue_init(4, &ring, 0)) {
		puts("no io_uring here");
		exit(77);
	}
	io_uring_queue_exit(&ring);
	return 0;
}

/* /dev/zero can be mapped as request descriptors are, but takes no commands: each FETCH is refused. */
static void refused_fetch_is_an_error(void **state)
{
	struct meta_files files = { .count = 0 };
	struct qcow2_error err = { "" };
	struct queue *q;
	struct queue_options opt = {
		.id = 1,
		.depth = 8,
		.char_fd = open("/dev/zero", O_RDWR | O_CLOEXEC),
		.zero_fd = open("/dev/zero", O_RDONLY | O_CLOEXEC),
		.dead_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
		.fetch_cmd = UBLK_U_IO_FETCH_REQ,
		.commit_cmd = UBLK_U_IO_COMMIT_AND_FETCH_REQ,
		.copy = &copy_classic,
		.files = &files,
	};

	assert_int_equal(queue_start(&q, &opt, &err), -EOPNOTSUPP);
	assert_string_equal(err.text, "ublk queue 1: FETCH: Operation not supported");
	close(opt.char_fd);
	close(opt.zero_fd);
	close(opt.dead_fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test_setup(refused_fetch_is_an_error, try_ring) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}

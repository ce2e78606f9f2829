// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * test_daemon_handover.c - what goes from one worker to the next: packets with descriptors, the store of
 * descriptors, settings, orders, and a worker's end of it all.
 */
#include "daemon/link.h"
#include "daemon/message.h"
#include "daemon/orders.h"
#include "daemon/settings.h"
#include "daemon/spawn.h"
#include "daemon/store.h"
#include "unit.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static int pair[2];

static int open_pair(void **state)
{
	return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair);
}

static int close_pair(void **state)
{
	close(pair[0]);
	if (pair[1] >= 0)
		close(pair[1]);
	return 0;
}

/* Descriptors this process has open. */
static unsigned open_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static bool same(int a, int b)
{
	struct stat x, y;

	return fstat(a, &x) == 0 && fstat(b, &y) == 0 && x.st_ino == y.st_ino && x.st_dev == y.st_dev;
}

/* ---- packets ---- */

static void text_of_any_bytes(void **state)
{
	static const char *const texts[] = { "", "a b\n\"c\"", "/img/\xff\xfe.qcow2", "\xc3\xa4" };
	struct message m;
	char *text;

	for (size_t i = 0; i < COUNT(texts); i++) {
		assert_int_equal(message_text(pair[0], "error", texts[i]), 0);
		assert_int_equal(message_receive(pair[1], &m, 0), 0);
		assert_string_equal(message_type(&m), "error");
		text = json_get_name(m.body, "text");
		assert_string_equal(text, texts[i]);
		free(text);
		message_clear(&m);
	}
}

static void descriptors_come_along(void **state)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC), zero = open("/dev/zero", O_RDWR | O_CLOEXEC), fd;
	const int fds[2] = { null, zero };
	sd_json_variant *v = NULL;
	struct message m;
	unsigned before = open_fds();
	int ret = sd_json_buildo(&v, SD_JSON_BUILD_PAIR_STRING("type", "file"));

	assert_int_equal(message_send(pair[0], ret, v, fds, 2), 0);
	assert_int_equal(message_receive(pair[1], &m, 0), 0);
	assert_int_equal(m.fds, 2);
	fd = message_take_fd(&m, 1);
	assert_true(same(fd, zero) && (fcntl(fd, F_GETFD) & FD_CLOEXEC));
	assert_int_equal(message_take_fd(&m, 1), -1);
	assert_int_equal(message_take_fd(&m, 2), -1);
	message_clear(&m); /* closes the one that nobody took */
	assert_int_equal(open_fds(), before + 1);
	close(fd);
	close(null);
	close(zero);
}

static void foreign_packets(void **state)
{
	static const char *const junk[] = { "x", "[]", "{", "\"type\"", "7" };
	struct message m;

	for (size_t i = 0; i < COUNT(junk); i++) {
		assert_int_equal(send(pair[0], junk[i], strlen(junk[i]), 0), (int)strlen(junk[i]));
		assert_int_equal(message_receive(pair[1], &m, 0), -EBADMSG);
	}
	assert_int_equal(send(pair[0], "{\"type\":7,\"n\":-1,\"b\":\"x\"}", 25, 0), 25);
	assert_int_equal(message_receive(pair[1], &m, 0), 0);
	assert_string_equal(message_type(&m), "");
	assert_int_equal(message_number(&m, "n"), 0);
	assert_false(message_bool(&m, "b"));
	message_clear(&m);
	assert_int_equal(message_receive(pair[1], &m, MSG_DONTWAIT), -EAGAIN);
}

/* A peer that dies with unread packets: all it had sent still arrives, then the end. */
static void death_of_the_peer(void **state)
{
	struct message m;

	assert_int_equal(message_word(pair[0], "leave"), 0);
	assert_int_equal(message_word(pair[1], "added"), 0);
	assert_int_equal(message_word(pair[1], "ready"), 0);
	close(pair[1]);
	pair[1] = -1;
	assert_int_equal(message_receive(pair[0], &m, MSG_DONTWAIT), 0);
	assert_string_equal(message_type(&m), "added");
	message_clear(&m);
	assert_int_equal(message_receive(pair[0], &m, MSG_DONTWAIT), 0);
	assert_string_equal(message_type(&m), "ready");
	message_clear(&m);
	assert_int_equal(message_receive(pair[0], &m, MSG_DONTWAIT), -ECONNRESET);
	assert_int_equal(message_word(pair[0], "stop"), -EPIPE);
}

/* ---- the store ---- */

static void store_keeps(void **state)
{
	unsigned before = open_fds();
	struct store s = { NULL };
	int a = open("/dev/null", O_RDWR | O_CLOEXEC), b = open("/dev/zero", O_RDWR | O_CLOEXEC);

	assert_int_equal(store_find(&s, "/a", "image"), -1);
	assert_int_equal(store_add(&s, "/a", "image", a), 0);
	assert_int_equal(store_add(&s, "/a", "backing-raw", b), 0);
	assert_int_equal(store_find(&s, "/a", "image"), a);
	assert_int_equal(store_find(&s, "/a", "backing-raw"), b);
	assert_int_equal(store_find(&s, "/b", "image"), -1);
	assert_int_equal(store_add(&s, "/a", "image", open("/dev/zero", O_RDONLY | O_CLOEXEC)), 0);
	assert_int_equal(s.count, 2);
	assert_int_equal(open_fds(), before + 2); /* the older one is closed */
	store_clear(&s);
	assert_int_equal(open_fds(), before);
	assert_int_equal(store_find(&s, "/a", "image"), -1);
}

static void store_is_bounded(void **state)
{
	unsigned before = open_fds();
	struct store s = { NULL };
	char path[32];

	/* STORE_MAX descriptors may be more than this process may open: one for all */
	for (unsigned i = 0; i <= STORE_MAX; i++) {
		snprintf(path, sizeof(path), "/%u", i);
		assert_int_equal(store_add(&s, path, "image", i == STORE_MAX ? dup(0) : -1),
				 i < STORE_MAX ? 0 : -E2BIG);
	}
	store_clear(&s);
	assert_int_equal(open_fds(), before);
}

/* ---- settings ---- */

static void settings_survive(void **state)
{
	const struct server_options opt = {
		.read_only = true,
		.queues = 3,
		.depth = 77,
		.cache_size = 1ull << 40,
		.discard = QCOW2_DISCARD_IGNORE,
		.lock = false,
		.block_size = 4096,
		.backing_format = BACKING_QCOW2,
	};
	struct server_options got;
	sd_json_variant *v = NULL;

	assert_int_equal(settings_to_json(&opt, &v), 0);
	settings_from_json(v, &got);
	assert_memory_equal(&got, &opt, sizeof(opt));
	sd_json_variant_unref(v);
}

static void settings_of_another_version(void **state)
{
	sd_json_variant *v = NULL;
	struct server_options got;

	settings_from_json(NULL, &got);
	assert_true(got.lock && got.block_size == 512 && got.discard == QCOW2_DISCARD_UNMAP &&
		    !got.read_only);
	assert_int_equal(sd_json_parse("{\"discard\":\"later\",\"lock\":false,\"queues\":-1,\"new\":[1]}", 0,
				       &v, NULL, NULL),
			 0);
	settings_from_json(v, &got);
	assert_true(!got.lock && got.discard == QCOW2_DISCARD_UNMAP && got.queues == 0);
	sd_json_variant_unref(v);
}

/* ---- orders ---- */

static char root[64];

static int make_root(void **state)
{
	char path[300];

	strcpy(root, "/tmp/ublk-qcow2-handover-XXXXXX");
	if (!mkdtemp(root) || setenv("UBLK_QCOW2_RUNDIR", root, 1))
		return -1;
	return mkdir(run_path(path, sizeof(path), 4, NULL), 0700);
}

static int remove_root(void **state)
{
	char cmd[100];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", root);
	return system(cmd);
}

static int client(void)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	run_path(sun.sun_path, sizeof(sun.sun_path), 4, "supervisor");
	assert_int_equal(connect(sock, (struct sockaddr *)&sun, sizeof(sun)), 0);
	return sock;
}

static unsigned take(struct orders *o)
{
	struct pollfd p[ORDERS_POLLS];

	orders_poll(o, p);
	poll(p, ORDERS_POLLS, 0);
	return orders_take(o, p);
}

static void assert_answer(int sock, const char *type, const char *text)
{
	struct message m;

	assert_int_equal(message_receive(sock, &m, MSG_DONTWAIT), 0);
	assert_string_equal(message_type(&m), type);
	assert_string_equal(message_string(&m, "text"), text);
	message_clear(&m);
	close(sock);
}

static void orders_are_heard(void **state)
{
	int quiet, restart, detach, i, crowd[ORDERS_CLIENTS + 2];
	struct orders o;

	orders_init(&o);
	assert_int_equal(orders_listen(&o, 4, NULL), 0);
	quiet = client();
	restart = client();
	detach = client();
	for (i = 0; i < 3; i++)
		assert_int_equal(take(&o), 0);
	assert_int_equal(message_word(restart, "restart"), 0);
	assert_int_equal(take(&o), WISH_BIT(WISH_RESTART));
	assert_int_equal(message_word(detach, "detach"), 0);
	assert_int_equal(take(&o), WISH_BIT(WISH_DETACH));
	assert_int_equal(orders_open(&o), WISH_BIT(WISH_RESTART) | WISH_BIT(WISH_DETACH));
	close(quiet);
	assert_int_equal(take(&o), 0);
	orders_answer(&o, WISH_BIT(WISH_RESTART), true, "");
	assert_answer(restart, "done", "");
	orders_answer(&o, ~0u, false, "the disk burnt");
	assert_answer(detach, "error", "the disk burnt");
	assert_int_equal(orders_open(&o), 0);
	/* more than there is room for: the rest waits, nobody is refused */
	for (i = 0; i < (int)COUNT(crowd); i++) {
		crowd[i] = client();
		assert_int_equal(message_word(crowd[i], "recover"), 0);
	}
	for (i = 0; i < 40 && i < 4 * (int)COUNT(crowd); i++) {
		take(&o);
		orders_answer(&o, WISH_BIT(WISH_RECOVER), true, "");
	}
	for (i = 0; i < (int)COUNT(crowd); i++)
		assert_answer(crowd[i], "done", "");
	orders_close(&o);
}

static void nonsense_is_no_order(void **state)
{
	struct orders o;
	int sock;
	char c;

	orders_init(&o);
	assert_int_equal(orders_listen(&o, 4, NULL), 0); /* over a dead supervisor's socket */
	sock = client();
	take(&o);
	assert_int_equal(message_word(sock, "explode"), 0);
	assert_int_equal(take(&o), 0);
	assert_int_equal(recv(sock, &c, 1, MSG_DONTWAIT), 0); /* hung up */
	close(sock);
	orders_close(&o);
}

/* ---- the worker's end ---- */

static void send_start(int sock, const char *json, const int *fds, unsigned count)
{
	sd_json_variant *v = NULL;
	int ret = sd_json_parse(json, 0, &v, NULL, NULL);

	assert_int_equal(message_send(sock, ret, v, fds, count), 0);
}

static void start_with_everything(void **state)
{
	char name[] = "/tmp/ublk-qcow2-journal-XXXXXX";
	int journal = mkstemp(name), null = open("/dev/null", O_RDWR | O_CLOEXEC), fd;
	const int fds[3] = { null, journal, null };
	unsigned before = open_fds();
	struct link_start start;
	struct link *l;

	assert_int_equal(ftruncate(journal, 4096 + sizeof(struct stamps)), 0);
	send_start(pair[0],
		   "{\"type\":\"start\",\"id\":5,\"image\":\"/"
		   "a\",\"restarts\":2,\"recover\":true,\"journal\":true,"
		   "\"lock\":true,\"files\":1,\"options\":{\"depth\":9},\"image_ino\":77,\"node\":8}",
		   fds, 3);
	send_start(pair[0], "{\"type\":\"file\",\"path\":\"/a\",\"role\":\"image\"}", &null, 1);
	assert_int_equal(link_open(&l, pair[1], &start, NULL), 0);
	assert_string_equal(start.opt.image, "/a");
	assert_true(start.opt.depth == 9 && start.opt.lock && start.state.restarts == 2);
	assert_true(start.custody.recover && start.custody.id == 5 && start.custody.node == 8);
	assert_true(start.custody.holds == 2 && start.custody.journal_size == 4096);
	fd = start.custody.find(start.custody.ctx, "/a", "image");
	assert_true(same(fd, null));
	close(fd);
	assert_int_equal(start.custody.find(start.custody.ctx, "/b", "image"), -1);
	/* another image than the one that was attached is not kept; backing files are nobody's identity */
	assert_int_equal(start.custody.keep(start.custody.ctx, "/a", "image", null, NULL), -ESTALE);
	assert_int_equal(start.custody.keep(start.custody.ctx, "/c", "backing-raw", null, NULL), 0);
	assert_int_equal(link_order(l), ORDER_NONE);
	message_word(pair[0], "leave");
	message_word(pair[0], "stop");
	assert_int_equal(link_order(l), ORDER_LEAVE);
	assert_int_equal(link_order(l), ORDER_STOP);
	link_close(l, &start);
	pair[1] = -1;
	assert_int_equal(open_fds(), before - 1); /* less the socket */
	close(journal);
	close(null);
	unlink(name);
}

static void start_that_is_none(void **state)
{
	static const char *const starts[] = {
		"{\"type\":\"stop\"}",
		"{\"type\":\"start\",\"image\":\"/a\",\"files\":0}", /* no pipe */
		"{\"type\":\"start\",\"image\":\"/a\",\"journal\":true}",
	};
	struct link_start start;
	struct link *l;
	int ends[2];

	for (size_t i = 0; i < COUNT(starts); i++) {
		unsigned before = open_fds();

		assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
		send_start(ends[0], starts[i], NULL, 0);
		assert_int_equal(link_open(&l, ends[1], &start, NULL), -EBADMSG);
		close(ends[0]);
		assert_int_equal(open_fds(), before);
	}
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
	close(ends[0]);
	assert_int_equal(link_open(&l, ends[1], &start, NULL), -ECONNRESET);
}

/* A program that cannot be executed: that shows as a process that ends. */
static void program_that_is_none(void **state)
{
	const struct store files = { NULL };
	struct run_state st = { .image = (char *)"/a", .id = -1 };
	struct start_info info = { .state = &st, .files = &files, .journal = -1, .lock = -1 };
	struct program p = { .path = "/nonexistent", .self = -1 };
	struct process w;
	struct message m;
	struct pollfd hup;

	assert_int_equal(process_start(&w, &p, false, &info), 0);
	assert_int_equal(message_receive(w.sock, &m, 0), -ECONNRESET);
	hup = (struct pollfd){ .fd = w.pipe };
	assert_int_equal(poll(&hup, 1, 5000), 1);
	assert_true(hup.revents & POLLHUP); /* nobody has the write end */
	hup = (struct pollfd){ .fd = w.pidfd, .events = POLLIN };
	assert_int_equal(poll(&hup, 1, 5000), 1);
	close(w.sock);
	close(w.pipe);
	close(w.pidfd);
}

/* The worker's socket takes a descriptor's place: not that of the program it is about to execute. */
static void program_keeps_its_place(void **state)
{
	int saved = fcntl(LINK_FD, F_DUPFD_CLOEXEC, 10);
	struct program p;

	close(LINK_FD);
	assert_int_equal(program_find(&p), 0);
	assert_true(p.self > LINK_FD);
	assert_true(p.path[0] == '/');
	close(p.self);
	if (saved >= 0) {
		dup2(saved, LINK_FD);
		close(saved);
	}
}

#define PAIR_TEST(name) cmocka_unit_test_setup_teardown(name, open_pair, close_pair)

int main(void)
{
	const struct CMUnitTest tests[] = {
		PAIR_TEST(text_of_any_bytes),
		PAIR_TEST(descriptors_come_along),
		PAIR_TEST(foreign_packets),
		PAIR_TEST(death_of_the_peer),
		cmocka_unit_test(store_keeps),
		cmocka_unit_test(store_is_bounded),
		cmocka_unit_test(settings_survive),
		cmocka_unit_test(settings_of_another_version),
		cmocka_unit_test(orders_are_heard),
		cmocka_unit_test(nonsense_is_no_order),
		PAIR_TEST(start_with_everything),
		cmocka_unit_test(start_that_is_none),
		cmocka_unit_test(program_that_is_none),
		cmocka_unit_test(program_keeps_its_place),
	};

	return cmocka_run_group_tests(tests, make_root, remove_root);
}

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * link.c - the worker's words, and the custody of its descriptors.
 *
 * Owns the socket, the descriptors that came with `start` and the journal's mapping. The pipe's end is not
 * closed before the process ends: it is one more proof that this process is gone, beside the rings that hold
 * it.
 */
#include "link.h"
#include "lock.h"
#include "memory.h"
#include "message.h"
#include "settings.h"
#include "upper.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

struct link {
	int sock;
	int lock; /* of the run directory; -1: not yet, or taken */
	int id;
	struct store files; /* of earlier workers */
	uint64_t image_dev, image_ino; /* 0: a new device */
};

/* ---- custody ---- */

static int find(void *ctx, const char *path, const char *role)
{
	const struct link *l = ctx;
	int fd = store_find(&l->files, path, role);

	return fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
}

static int same_image(const struct link *l, int fd, const char *path, struct qcow2_error *err)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return qcow2_fail(err, -errno, "%s: %s", path, strerror(errno));
	if (st.st_dev == l->image_dev && st.st_ino == l->image_ino)
		return 0;
	return qcow2_fail(err, -ESTALE, "%s: is not the file that was attached", path);
}

static int keep(void *ctx, const char *path, const char *role, int fd, struct qcow2_error *err)
{
	struct link *l = ctx;
	sd_json_variant *v = NULL;
	int ret = 0;

	if (l->image_ino && strncmp(role, "image", 5) == 0)
		ret = same_image(l, fd, path, err);
	if (ret)
		return ret;
	ret = sd_json_buildo(&v, SD_JSON_BUILD_PAIR_STRING("type", "file"),
			     SD_JSON_BUILD_PAIR_STRING("role", role));
	if (ret >= 0)
		ret = json_put_name(&v, "path", path);
	ret = message_send(l->sock, ret, v, &fd, 1);
	return ret ? qcow2_fail(err, ret, "%s: supervisor: %s", path, strerror(-ret)) : 0;
}

static int added(void *ctx, int id, struct qcow2_error *err)
{
	struct link *l = ctx;
	sd_json_variant *v = NULL;
	struct message m;
	char *text;
	int ret = sd_json_buildo(&v, SD_JSON_BUILD_PAIR_STRING("type", "added"),
				 SD_JSON_BUILD_PAIR_INTEGER("id", id));

	l->id = id;
	ret = message_send(l->sock, ret, v, NULL, 0);
	if (!ret)
		ret = message_receive(l->sock, &m, 0);
	if (ret)
		return qcow2_fail(err, ret, "/dev/ublkb%d: supervisor: %s", id, strerror(-ret));
	if (strcmp(message_type(&m), "claimed") == 0) {
		l->lock = message_take_fd(&m, 0);
	} else {
		text = json_get_name(m.body, "text");
		ret = qcow2_fail(err, -EIO, "%s", text ? text : "");
		free(text);
	}
	message_clear(&m);
	return ret;
}

/* ---- the start ---- */

static int map_journal(struct custody *c, int fd)
{
	struct stat st;
	void *p;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (st.st_size <= (off_t)sizeof(*c->stamps) || st.st_size % 4096)
		return -EBADMSG;
	p = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return -errno;
	memory_fill(p, (size_t)st.st_size);
	c->journal = p;
	c->journal_size = (size_t)st.st_size - sizeof(*c->stamps);
	c->stamps = (void *)((char *)p + c->journal_size);
	return 0;
}

/* The descriptors of `start`: the pipe, the journal and the directory's lock, the last two if there are any.
 */
static int take_start_fds(struct link *l, struct link_start *s, struct message *m)
{
	bool journal = message_bool(m, "journal"), lock = message_bool(m, "lock");
	struct custody *c = &s->custody;
	unsigned holds = 1u + journal;

	if (m->fds != holds + lock)
		return -EBADMSG;
	for (; c->holds < holds; c->holds++)
		c->hold[c->holds] = message_take_fd(m, c->holds);
	if (lock)
		l->lock = message_take_fd(m, holds);
	return journal ? map_journal(c, c->hold[1]) : 0;
}

static int parse_start(struct link *l, struct link_start *s, struct message *m)
{
	struct run_state *st = &s->state;

	settings_from_json(sd_json_variant_by_key(m->body, "options"), &s->opt);
	*st = (struct run_state){
		.id = (int)message_number(m, "id"),
		.image = json_get_name(m->body, "image"),
		.device = strdup(""),
		.engine = strdup(""),
		.pid = getpid(),
		.supervisor = getppid(),
		.restarts = (unsigned)message_number(m, "restarts"),
		.image_dev = message_number(m, "image_dev"),
		.image_ino = message_number(m, "image_ino"),
		.node = message_number(m, "node"),
		.opt = s->opt,
	};
	if (!st->image || !st->device || !st->engine)
		return -ENOMEM;
	s->foreground = message_bool(m, "foreground");
	s->custody.recover = message_bool(m, "recover");
	s->custody.replay = s->custody.recover || message_bool(m, "replay");
	s->custody.id = l->id = st->id;
	s->custody.node = st->node;
	if (s->custody.recover) {
		l->image_dev = st->image_dev;
		l->image_ino = st->image_ino;
	}
	return take_start_fds(l, s, m);
}

static int receive_files(struct link *l, unsigned count)
{
	struct message m;
	char *path;
	int ret = 0, fd;

	while (!ret && count--) {
		ret = message_receive(l->sock, &m, 0);
		if (ret)
			break;
		path = json_get_name(m.body, "path");
		fd = message_take_fd(&m, 0);
		ret = path && fd >= 0 ? store_add(&l->files, path, message_string(&m, "role"), fd) : -EBADMSG;
		free(path);
		message_clear(&m);
	}
	return ret;
}

static int receive_start(struct link *l, struct link_start *s)
{
	struct message m;
	unsigned files;
	int ret = message_receive(l->sock, &m, 0);

	if (ret)
		return ret;
	files = (unsigned)message_number(&m, "files");
	ret = strcmp(message_type(&m), "start") ? -EBADMSG : parse_start(l, s, &m);
	message_clear(&m);
	return ret ? ret : receive_files(l, files);
}

/* Both processes died, but the kernel still has the image open: its locks have not been free for a moment. */
static int take_image(struct link *l, struct link_start *s)
{
	const char *role = lock_role_name(s->opt.read_only ? LOCK_IMAGE_RO : LOCK_IMAGE_RW);
	int fd;

	if (!s->custody.recover || store_find(&l->files, s->state.image, role) >= 0)
		return 0;
	if (s->custody.node && s->custody.node != run_node(l->id))
		return 0; /* that number is somebody else's now, as is the disk over it */
	fd = upper_image(l->id);
	if (fd == -ENOENT)
		return 0;
	if (fd < 0)
		return fd;
	if (keep(l, s->state.image, role, fd, NULL)) {
		close(fd);
		return -ESTALE;
	}
	return store_add(&l->files, s->state.image, role, fd);
}

int link_open(struct link **out, int sock, struct link_start *s, struct qcow2_error *err)
{
	struct link *l = malloc(sizeof(*l));
	int ret;

	*s = (struct link_start){ .foreground = false };
	if (!l) {
		close(sock);
		return qcow2_fail(err, -ENOMEM, "worker: %s", strerror(ENOMEM));
	}
	*l = (struct link){ .sock = sock, .lock = -1, .id = -1 };
	ret = receive_start(l, s);
	if (!ret)
		ret = take_image(l, s);
	if (ret) {
		link_close(l, s);
		return qcow2_fail(err, ret, "worker: supervisor: %s", strerror(-ret));
	}
	s->custody.find = find;
	s->custody.keep = keep;
	s->custody.added = added;
	s->custody.ctx = l;
	s->opt.image = s->state.image;
	s->opt.custody = &s->custody;
	*out = l;
	return 0;
}

void link_close(struct link *l, struct link_start *s)
{
	store_clear(&l->files);
	if (s->custody.journal)
		munmap(s->custody.journal, s->custody.journal_size + sizeof(*s->custody.stamps));
	while (s->custody.holds)
		close(s->custody.hold[--s->custody.holds]);
	if (l->lock >= 0)
		close(l->lock);
	run_state_clear(&s->state);
	close(l->sock);
	free(l);
}

int link_fd(const struct link *l)
{
	return l->sock;
}

int link_take_dir(struct link *l, struct rundir **out, struct qcow2_error *err)
{
	int lock = l->lock;

	l->lock = -1;
	if (lock < 0)
		return qcow2_fail(err, -EBADMSG, "/dev/ublkb%d: supervisor: no directory", l->id);
	return rundir_share(out, l->id, lock, err);
}

/* ---- the worker's words ---- */

bool link_ready(struct link *l, const struct run_state *st)
{
	sd_json_variant *v = NULL;
	int ret = sd_json_buildo(&v, SD_JSON_BUILD_PAIR_STRING("type", "ready"),
				 SD_JSON_BUILD_PAIR_STRING("device", st->device),
				 SD_JSON_BUILD_PAIR_STRING("engine", st->engine),
				 SD_JSON_BUILD_PAIR_UNSIGNED("size", st->size),
				 SD_JSON_BUILD_PAIR_BOOLEAN("read_only", st->read_only),
				 SD_JSON_BUILD_PAIR_BOOLEAN("zero_copy", st->zero_copy),
				 SD_JSON_BUILD_PAIR_BOOLEAN("direct_io", st->direct_io),
				 SD_JSON_BUILD_PAIR_UNSIGNED("queues", st->queues),
				 SD_JSON_BUILD_PAIR_UNSIGNED("depth", st->depth));

	return !message_send(l->sock, ret, v, NULL, 0);
}

void link_read_only(struct link *l)
{
	message_word(l->sock, "read-only");
}

void link_failed(struct link *l, const char *text)
{
	message_text(l->sock, "error", text);
}

bool link_stopped(struct link *l, int ret, const struct qcow2_error *err, struct qcow2_error *remark)
{
	struct message m;
	bool removed = false;
	char *text;

	if (message_text(l->sock, "stopped", ret ? err->text : ""))
		return false;
	while (!removed && !message_receive(l->sock, &m, 0)) { /* an order may be under way */
		removed = strcmp(message_type(&m), "removed") == 0;
		text = json_get_name(m.body, "text");
		if (removed && text && text[0])
			qcow2_fail(remark, 0, "%s", text);
		free(text);
		message_clear(&m);
	}
	return removed;
}

enum link_order link_order(struct link *l)
{
	enum link_order order = ORDER_NONE;
	struct message m;
	int ret = message_receive(l->sock, &m, MSG_DONTWAIT);

	if (ret)
		return ret == -ECONNRESET ? ORDER_GONE : ORDER_NONE;
	if (strcmp(message_type(&m), "stop") == 0)
		order = ORDER_STOP;
	else if (strcmp(message_type(&m), "leave") == 0)
		order = ORDER_LEAVE;
	message_clear(&m);
	return order;
}

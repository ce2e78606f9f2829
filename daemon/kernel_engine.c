// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * kernel_engine.c - the disk of the module ublk_bpf over our ublk device, its program and its table.
 *
 * Owns this process's view of them: table, program, the thread that waits for hits. Disk, file slots and the
 * pinned link outlive it, and hits go on without it. The next process begins by taking the link away and
 * waiting for all hits: from then on everything comes to it, as if nothing had been published. So words of
 * the dead process are never looked at again, and a withdrawal that it had begun is complete before the image
 * is opened.
 *
 * Order: words are withdrawn and drained (fastmap) before a mapping changes, up to the close of the image;
 * the link goes before the disk, the disk before the lower device stops.
 */
#include "kernel_engine.h"
#include "kernel_drain.h"
#include "kernel_program.h"
#include "log.h"
#include "upper.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct kernel_engine {
	int control, id;
	unsigned cluster_bits;
	struct kernel_table table;
	struct fastmap_peer peer;
	struct kernel_program *program;
	struct kernel_drain *drain; /* NULL: no disk has ever had the table */
	bool disk; /* it is there */
	struct ublk_bpf_stats before; /* what it had counted for processes before this one */
};

static int drain(void *ctx, uint64_t first, uint64_t end, uint64_t ticket)
{
	struct kernel_engine *k = ctx;

	return k->drain ? kernel_drain(k->drain, first, end, ticket) : 0;
}

static void tell(void *ctx, uint64_t slice, uint32_t slot)
{
	kernel_table_tell(&((struct kernel_engine *)ctx)->table, slice, slot);
}

static void forget(void *ctx, uint64_t slice)
{
	kernel_table_forget(&((struct kernel_engine *)ctx)->table, slice);
}

static void stop(void *ctx)
{
	struct kernel_engine *k = ctx;

	if (k->drain)
		kernel_drain_stop(k->drain);
	k->drain = NULL;
}

static void drained(void *map, uint64_t ticket)
{
	fastmap_peer_drained(map, ticket);
}

int kernel_engine_new(struct kernel_engine **out, uint64_t cache_bytes, struct qcow2_error *err)
{
	struct kernel_engine *k = calloc(1, sizeof(*k));
	int ret;

	if (!k)
		return qcow2_fail(err, -ENOMEM, "engine kernel: %s", strerror(ENOMEM));
	k->id = -1;
	k->control = upper_open(err);
	if (k->control < 0) {
		ret = k->control;
		goto free_engine;
	}
	ret = kernel_table_new(&k->table, fastmap_slots(cache_bytes));
	if (ret) {
		qcow2_fail(err, ret, "a BPF map cannot be made: %s", strerror(-ret));
		goto close_control;
	}
	k->peer = (struct fastmap_peer){
		.slot = k->table.slot,
		.tell = tell,
		.forget = forget,
		.drain = drain,
		.stop = stop,
		.ctx = k,
	};
	*out = k;
	return 0;

close_control:
	close(k->control);
free_engine:
	free(k);
	return ret;
}

int kernel_engine_probe(struct qcow2_error *err)
{
	struct kernel_engine *k;
	int ret = kernel_engine_new(&k, 0, err);

	if (ret)
		return ret;
	ret = kernel_program_load(&k->program, 0, &k->table, 16, err);
	kernel_engine_free(k);
	return ret;
}

const struct fastmap_peer *kernel_engine_peer(const struct kernel_engine *k)
{
	return &k->peer;
}

int kernel_engine_adopt(struct kernel_engine *k, int id, struct qcow2_error *err)
{
	struct ublk_bpf_info info;
	int ret = upper_look(k->control, id, &info);

	if (!ret)
		return 0;
	if (ret > 0)
		ret = upper_silence(k->control, id);
	if (ret)
		return qcow2_fail(err, ret, "/dev/ublkbpf%d: its program cannot be taken away: %s", id,
				  strerror(-ret));
	k->disk = true;
	k->before.id = (__u32)id;
	if (upper_call(k->control, UBLK_BPF_STATS, &k->before))
		k->before = (struct ublk_bpf_stats){ 0 };
	return 1;
}

int kernel_engine_load(struct kernel_engine *k, int id, unsigned cluster_bits, struct fastmap *map,
		       struct qcow2_error *err)
{
	unsigned range_shift = cluster_bits + (unsigned)__builtin_ctz(FASTMAP_SLICE_CLUSTERS);
	int ret;

	k->id = id;
	k->cluster_bits = cluster_bits;
	ret = kernel_program_load(&k->program, id, &k->table, cluster_bits, err);
	if (ret)
		return ret;
	ret = kernel_drain_start(&k->drain, k->control, id, range_shift, drained, map);
	if (ret)
		return qcow2_fail(err, ret, "a thread cannot be started: %s", strerror(-ret));
	return 0;
}

static int create(struct kernel_engine *k, const char *lower, bool read_only, struct qcow2_error *err)
{
	struct ublk_bpf_create c = {
		.id = (__u32)k->id,
		.flags = read_only ? UBLK_BPF_DISK_RDONLY : 0,
		.range_shift = k->cluster_bits + (unsigned)__builtin_ctz(FASTMAP_SLICE_CLUSTERS),
	};
	int ret = upper_remove(k->id); /* what an earlier device of that number left */

	if (ret)
		return qcow2_fail(err, ret, "/dev/ublkbpf%d: is there already: %s", k->id, strerror(-ret));
	c.lower_fd = open(lower, O_RDONLY | O_CLOEXEC);
	if (c.lower_fd < 0)
		return qcow2_fail(err, -errno, "%s: %s", lower, strerror(errno));
	/* EBUSY: udev looks at the new device */
	for (unsigned ms = 0; (ret = upper_call(k->control, UBLK_BPF_CREATE, &c)) == -EBUSY && ms < 5000;
	     ms++)
		usleep(1000);
	close(c.lower_fd);
	if (ret)
		return qcow2_fail(err, ret, "/dev/ublkbpf%d: cannot be made: %s", k->id, strerror(-ret));
	k->disk = true;
	return 0;
}

/* A file of the chain that cannot be served from the kernel is left out: what it holds are misses. Not so the
 * image itself. */
static int set_files(struct kernel_engine *k, const struct meta_files *files, bool read_only,
		     struct qcow2_error *err)
{
	for (unsigned i = 0; i < UBLK_BPF_FILES; i++) {
		struct ublk_bpf_file f = {
			.id = (__u32)k->id,
			.slot = i,
			.fd = i < files->count ? files->fd[i] : -1,
			.flags = i || read_only ? UBLK_BPF_FILE_RDONLY : 0,
		};
		int ret = upper_call(k->control, UBLK_BPF_SET_FILE, &f);

		if (ret && i) {
			f.fd = -1;
			ret = upper_call(k->control, UBLK_BPF_SET_FILE, &f);
		}
		if (ret)
			return qcow2_fail(err, ret,
					  "/dev/ublkbpf%d: the image file cannot be given to the kernel: %s",
					  k->id, strerror(-ret));
	}
	return 0;
}

int kernel_engine_start(struct kernel_engine *k, const char *lower, const struct meta_files *files,
			bool read_only, struct qcow2_error *err)
{
	char pin[64];
	int ret = k->disk ? 0 : create(k, lower, read_only, err);

	if (!ret)
		ret = set_files(k, files, read_only, err);
	return ret ? ret : kernel_program_attach(k->program, upper_pin(pin, sizeof(pin), k->id), err);
}

bool kernel_engine_remove(struct kernel_engine *k)
{
	int ret;

	if (!k->disk)
		return true;
	ret = upper_destroy(k->control, k->id);
	if (ret)
		log_line(LOG_WARNING, "/dev/ublkbpf%d: cannot be removed: %s", k->id, strerror(-ret));
	k->disk = ret;
	return !ret;
}

void kernel_engine_stats(const struct kernel_engine *k, struct server_stats *st)
{
	struct ublk_bpf_stats s = { .id = (__u32)k->id };

	if (!k->disk || upper_call(k->control, UBLK_BPF_STATS, &s))
		return;
	st->kernel_hits = s.hits - k->before.hits;
	st->hits += st->kernel_hits;
	st->reads += s.reads - k->before.reads;
	st->writes += s.writes - k->before.writes;
	st->read_bytes += s.read_bytes - k->before.read_bytes;
	st->write_bytes += s.write_bytes - k->before.write_bytes;
}

void kernel_engine_free(struct kernel_engine *k)
{
	stop(k);
	if (k->program)
		kernel_program_free(k->program);
	kernel_table_free(&k->table);
	close(k->control);
	free(k);
}

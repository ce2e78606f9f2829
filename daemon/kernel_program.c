// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * kernel_program.c - libbpf: making the table, loading, attaching and pinning the program.
 *
 * Owns the descriptors of one process. The pinned link is what outlives it: link -> program -> maps. The next
 * process takes the link away and makes all of them anew, so none of their layouts has to fit another version
 * of this program.
 */
#include "kernel_program.h"
#include "memory.h"
#include "qcow2.skel.h"
#include <bpf/bpf.h>
#include <errno.h>
#include <linux/magic.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#define BPFFS "/sys/fs/bpf"

struct kernel_program {
	struct qcow2_bpf *skel;
	struct bpf_link *link;
};

static size_t slot_bytes(const struct kernel_table *t)
{
	return t->slots * sizeof(struct fastmap_slot);
}

/*
 * Neither map allocates later: the array is there in full and mmap maps all its pages at once, so there is
 * nothing to fill or to lock; the elements of the hash map are made with it.
 */
int kernel_table_new(struct kernel_table *t, uint32_t slots)
{
	LIBBPF_OPTS(bpf_map_create_opts, opts, .map_flags = BPF_F_MMAPABLE);
	int ret;

	*t = (struct kernel_table){ .slots = slots };
	t->index_fd = bpf_map_create(BPF_MAP_TYPE_HASH, "slices", sizeof(__u64), sizeof(__u32), slots, NULL);
	if (t->index_fd < 0)
		return t->index_fd;
	t->slot_fd = bpf_map_create(BPF_MAP_TYPE_ARRAY, "slots", sizeof(__u32), sizeof(struct fastmap_slot),
				    slots, &opts);
	ret = t->slot_fd;
	if (ret < 0)
		goto close_index;
	t->slot = mmap(NULL, slot_bytes(t), PROT_READ | PROT_WRITE, MAP_SHARED, t->slot_fd, 0);
	if (t->slot != MAP_FAILED)
		return 0;
	ret = -errno;
	close(t->slot_fd);
close_index:
	close(t->index_fd);
	return ret;
}

void kernel_table_free(struct kernel_table *t)
{
	munmap(t->slot, slot_bytes(t));
	close(t->slot_fd);
	close(t->index_fd);
}

void kernel_table_tell(const struct kernel_table *t, uint64_t slice, uint32_t slot)
{
	(void)bpf_map_update_elem(t->index_fd, &slice, &slot, BPF_ANY);
}

void kernel_table_forget(const struct kernel_table *t, uint64_t slice)
{
	(void)bpf_map_delete_elem(t->index_fd, &slice);
}

/* The first complaint of libbpf or the verifier, for the error message. */
static struct {
	char text[200];
} complaint;

static int note(enum libbpf_print_level level, const char *fmt, va_list ap)
{
	if (level == LIBBPF_WARN && !complaint.text[0]) {
		vsnprintf(complaint.text, sizeof(complaint.text), fmt, ap);
		complaint.text[strcspn(complaint.text, "\n")] = '\0';
	}
	return 0;
}

static int failed(const char *what, int ret, struct qcow2_error *err)
{
	return qcow2_fail(err, ret, "the BPF program cannot be %s: %s%s%s", what, strerror(-ret),
			  complaint.text[0] ? ": " : "", complaint.text);
}

static int load(struct kernel_program **out, int id, const struct kernel_table *table, unsigned cluster_bits,
		struct qcow2_error *err)
{
	struct kernel_program *p = calloc(1, sizeof(*p));
	int ret;

	if (!p)
		return qcow2_fail(err, -ENOMEM, "the BPF program: %s", strerror(ENOMEM));
	complaint.text[0] = '\0';
	libbpf_set_print(note);
	p->skel = qcow2_bpf__open();
	ret = p->skel ? bpf_map__reuse_fd(p->skel->maps.slots, table->slot_fd) : -errno;
	if (!ret)
		ret = bpf_map__reuse_fd(p->skel->maps.slices, table->index_fd);
	if (!ret) {
		p->skel->rodata->mapping_cluster_bits = cluster_bits;
		p->skel->struct_ops.ops->dev_id = (__u32)id;
		ret = qcow2_bpf__load(p->skel);
	}
	if (ret) {
		failed("loaded", ret, err);
		kernel_program_free(p);
		return ret;
	}
	*out = p;
	return 0;
}

int kernel_program_load(struct kernel_program **out, int id, const struct kernel_table *table,
			unsigned cluster_bits, struct qcow2_error *err)
{
	int ret;

	memory_start_passing();
	ret = load(out, id, table, cluster_bits, err);
	memory_end_passing();
	return ret;
}

/* The folder of the pin, on a bpffs; 0 or -errno. */
static int make_folder(const char *pin)
{
	char dir[64];
	struct statfs fs;

	if (statfs(BPFFS, &fs) < 0)
		return -errno;
	if ((unsigned long)fs.f_type != BPF_FS_MAGIC && mount("bpf", BPFFS, "bpf", 0, "mode=700") < 0)
		return -errno;
	snprintf(dir, sizeof(dir), "%.*s", (int)(strrchr(pin, '/') - pin), pin);
	return mkdir(dir, 0700) < 0 && errno != EEXIST ? -errno : 0;
}

static int attach(struct kernel_program *p, const char *pin, struct qcow2_error *err)
{
	int ret = make_folder(pin);

	if (ret)
		return qcow2_fail(err, ret, "%s: %s", pin, strerror(-ret));
	complaint.text[0] = '\0';
	p->link = bpf_map__attach_struct_ops(p->skel->maps.ops);
	if (!p->link)
		return failed("attached", -errno, err);
	ret = bpf_link__pin(p->link, pin);
	if (ret)
		return qcow2_fail(err, ret, "%s: the BPF link cannot be pinned: %s", pin, strerror(-ret));
	/* The link holds program and maps; what libbpf knows of them is of no use any more. */
	qcow2_bpf__destroy(p->skel);
	p->skel = NULL;
	return 0;
}

int kernel_program_attach(struct kernel_program *p, const char *pin, struct qcow2_error *err)
{
	int ret;

	memory_start_passing();
	ret = attach(p, pin, err);
	memory_end_passing();
	return ret;
}

void kernel_program_free(struct kernel_program *p)
{
	bpf_link__destroy(p->link);
	qcow2_bpf__destroy(p->skel);
	free(p);
}

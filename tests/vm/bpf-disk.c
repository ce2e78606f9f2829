// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * bpf-disk: the module's calls on the command line, for tests. Each fails with "CALL: errno text", exit
 * status 1.
 *
 *   create LOWER RANGE_SHIFT [ID [ro]]     prints the id
 *   destroy ID
 *   file ID SLOT PATH|- rw|ro|liar [buffered]  prints the alignments
 *   sizefile ID SLOT                       prints the size of the file in the slot, by a new descriptor
 *   drain ID OFFSET LENGTH [nowait]        0 0: everything
 *   drains ID COUNT                        COUNT drains of everything
 *   info ID | stats ID                     prints name=value words
 *   attach ID OBJECT PIN [NAME=VALUE]...   loads, sets words of .data (modes=01234000: a digit a byte),
 * attaches, pins update PIN ID OBJECT [NAME=VALUE]...   replaces the program of a pinned link
 */
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../kernel/ublk_bpf.h"

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

static void call(const char *what, unsigned long cmd, void *arg)
{
	int fd = open(UBLK_BPF_CONTROL, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		fail(UBLK_BPF_CONTROL);
	if (ioctl(fd, cmd, arg) < 0)
		fail(what);
	close(fd);
}

static __u32 number(const char *text)
{
	return strtoul(text, NULL, 0);
}

static void create(char **arg)
{
	struct ublk_bpf_create c = { .id = UBLK_BPF_ANY_ID, .range_shift = number(arg[1]) };

	c.lower_fd = open(arg[0], O_RDONLY);
	if (c.lower_fd < 0)
		fail(arg[0]);
	if (arg[2]) {
		c.id = number(arg[2]);
		c.flags = arg[3] && !strcmp(arg[3], "ro") ? UBLK_BPF_DISK_RDONLY : 0;
	}
	call("create", UBLK_BPF_CREATE, &c);
	printf("%u\n", c.id);
}

static void destroy(char **arg)
{
	struct ublk_bpf_destroy d = { .id = number(arg[0]) };

	call("destroy", UBLK_BPF_DESTROY, &d);
}

/* "liar": writable for the module, on a file that is open for reading only: has to be refused. */
static void set_file(char **arg)
{
	int ro = !strcmp(arg[3], "ro"),
	    flags = (strcmp(arg[3], "rw") ? O_RDONLY : O_RDWR) | (arg[4] ? 0 : O_DIRECT);
	struct ublk_bpf_file f = { .id = number(arg[0]), .slot = number(arg[1]), .fd = -1 };

	f.flags = ro ? UBLK_BPF_FILE_RDONLY : 0;
	if (strcmp(arg[2], "-")) {
		f.fd = open(arg[2], flags);
		if (f.fd < 0)
			fail(arg[2]);
	}
	call("file", UBLK_BPF_SET_FILE, &f);
	printf("mem_align=%u offset_align=%u\n", f.mem_align, f.offset_align);
}

static void size_file(char **arg)
{
	struct ublk_bpf_file f = { .id = number(arg[0]), .slot = number(arg[1]) };
	struct stat st;

	call("sizefile", UBLK_BPF_GET_FILE, &f);
	if (fstat(f.fd, &st))
		fail("fstat");
	printf("%" PRId64 "\n", (int64_t)st.st_size);
}

static void drain(char **arg)
{
	struct ublk_bpf_drain d = { .id = number(arg[0]) };

	d.offset = strtoull(arg[1], NULL, 0);
	d.length = strtoull(arg[2], NULL, 0);
	if (!d.length)
		d.length = ~0ULL;
	d.flags = arg[3] ? UBLK_BPF_DRAIN_NOWAIT : 0;
	call("drain", UBLK_BPF_DRAIN, &d);
}

static void drains(char **arg)
{
	struct ublk_bpf_drain d = { .id = number(arg[0]), .length = ~0ULL };
	int n;

	for (n = number(arg[1]); n; n--)
		call("drain", UBLK_BPF_DRAIN, &d);
}

static void info(char **arg)
{
	struct ublk_bpf_info i = { .id = number(arg[0]) };

	call("info", UBLK_BPF_INFO, &i);
	printf("attached=%d lower_dead=%d readonly=%d range_shift=%u files=%x device=%u:%u lower=%u:%u\n",
	       !!(i.flags & UBLK_BPF_ATTACHED), !!(i.flags & UBLK_BPF_LOWER_DEAD),
	       !!(i.flags & UBLK_BPF_DISK_RDONLY), i.range_shift, i.files, i.major, i.minor, i.lower_major,
	       i.lower_minor);
}

static void stats(char **arg)
{
	struct ublk_bpf_stats s = { .id = number(arg[0]) };

	call("stats", UBLK_BPF_STATS, &s);
#define SHOW(name) printf(#name "=%llu ", s.name)
	SHOW(hits), SHOW(misses), SHOW(reads), SHOW(writes), SHOW(read_bytes), SHOW(write_bytes),
		SHOW(zeroed);
	SHOW(splits), SHOW(punts), SHOW(again), SHOW(refused), SHOW(failed), SHOW(drains);
#undef SHOW
	printf("\n");
}

/* NAME=VALUE in the object's .data: a number, or for an array of bytes a digit each. */
static void set_word(struct bpf_object *object, const char *word)
{
	struct bpf_map *data = bpf_object__find_map_by_name(object, ".data");
	struct btf *btf = bpf_object__btf(object);
	const char *value = strchr(word, '=') + 1;
	const struct btf_type *section =
		btf__type_by_id(btf, btf__find_by_name_kind(btf, ".data", BTF_KIND_DATASEC));
	const struct btf_var_secinfo *var = btf_var_secinfos(section);
	size_t size, length = value - 1 - word, i;
	char *base = bpf_map__initial_value(data, &size);
	__u32 v;
	int n;

	for (n = btf_vlen(section); n; n--, var++) {
		const char *name = btf__name_by_offset(btf, btf__type_by_id(btf, var->type)->name_off);

		if (strncmp(name, word, length) || name[length])
			continue;
		v = number(value);
		if (var->size == sizeof(v))
			memcpy(base + var->offset, &v, sizeof(v));
		else
			for (i = 0; i < var->size && value[i]; i++)
				base[var->offset + i] = value[i] - '0';
		return;
	}
	fprintf(stderr, "%s: no such word\n", word);
	exit(1);
}

/* libbpf's own type for the struct's data: dev_id is its last member. */
struct ops {
	void *queue_io, *complete_io;
	__u32 dev_id;
};

static struct bpf_map *load(const char *path, __u32 id, char **words)
{
	struct bpf_object *object = bpf_object__open(path);
	struct bpf_map *map = object ? bpf_object__find_map_by_name(object, "ops") : NULL;
	size_t size;

	if (!map)
		fail(path);
	((struct ops *)bpf_map__initial_value(map, &size))->dev_id = id;
	for (; *words; words++)
		set_word(object, *words);
	if (bpf_object__load(object))
		fail("load");
	return map;
}

static void attach(char **arg)
{
	struct bpf_map *map = load(arg[1], number(arg[0]), arg + 3);
	struct bpf_link *link = bpf_map__attach_struct_ops(map);

	if (!link)
		fail("attach");
	if (bpf_link__pin(link, arg[2]))
		fail("pin");
}

static void update(char **arg)
{
	struct bpf_link *link = bpf_link__open(arg[0]);
	struct bpf_map *map = load(arg[2], number(arg[1]), arg + 3);

	if (!link)
		fail(arg[0]);
	/*
	 * bpf_link__update_map() wants a link of its own making. What it does besides, filling the kernel's
	 * map, is also the first half of an attach; the second half is refused: a program is attached, or
	 * there is no such disk.
	 */
	if (bpf_map__attach_struct_ops(map)) {
		errno = EEXIST;
		fail("update: could be attached");
	}
	if (bpf_link_update(bpf_link__fd(link), bpf_map__fd(map), NULL))
		fail("update");
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int arguments;
		void (*run)(char **arg);
	} calls[] = {
		{ "create", 2, create },      { "destroy", 1, destroy }, { "file", 4, set_file },
		{ "sizefile", 2, size_file }, { "drain", 3, drain },	 { "drains", 2, drains },
		{ "info", 1, info },	      { "stats", 1, stats },	 { "attach", 3, attach },
		{ "update", 3, update },
	};
	size_t i;

	for (i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		if (argc < 2 || strcmp(argv[1], calls[i].name))
			continue;
		if (argc - 2 < calls[i].arguments)
			break;
		calls[i].run(argv + 2);
		return 0;
	}
	fprintf(stderr, "bpf-disk: see the head of bpf-disk.c\n");
	return 2;
}

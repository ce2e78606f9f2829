// SPDX-License-Identifier: GPL-2.0-or-later
/* The snapshot table: hand-made entries, each limit at its edge, cuts at every length, qemu-img's own. */
#include "qcow2/header.h"
#include "qemu_img.h"
#include "unit.h"
#include <errno.h>

#define FILE_SIZE (256ull << 20)

static unsigned char *table; /* 80 MiB */
static size_t table_len;
static struct qcow2_header h;
static struct qcow2_error err;
static struct snapshot_info *out;
static size_t used;

static int setup(void **state)
{
	table = calloc(80, 1 << 20);
	return table ? scratch_setup(state) : -1;
}

static int teardown(void **state)
{
	free(table);
	return scratch_teardown(state);
}

static void fresh(uint32_t count)
{
	memset(&h, 0, sizeof(h));
	h.geo = (struct geometry){ .version = 3, .cluster_bits = 16, .refcount_order = 4, .size = 3 << 20 };
	geometry_init(&h.geo);
	h.nb_snapshots = count;
	h.snapshots_offset = 16 << 16;
	memset(table, 0, table_len);
	table_len = 0;
}

/* Append an entry; returns its position. */
static size_t add(uint64_t l1_offset, uint32_t l1_size, uint32_t extra, const char *id, size_t id_len,
		  const char *name, size_t name_len)
{
	size_t at = (table_len + 7) & ~(size_t)7;

	put64(table, at, l1_offset);
	put32(table, at + 8, l1_size);
	put16(table, at + 12, id_len);
	put16(table, at + 14, name_len);
	put32(table, at + 16, 1700000000);
	put32(table, at + 32, 0x1234); /* VM state size */
	put32(table, at + 36, extra);
	memcpy(table + at + 40 + extra, id, id_len);
	memcpy(table + at + 40 + extra + id_len, name, name_len);
	table_len = at + 40 + extra + id_len + name_len;
	return at;
}

static int parse(size_t len)
{
	memset(&err, 0, sizeof(err));
	out = (void *)1;
	return snapshots_parse(&h, table, len, FILE_SIZE, &out, &used, "disk.qcow2", &err);
}

static void refused(const char *what)
{
	assert_int_equal(parse(table_len), -EINVAL);
	assert_null(out);
	assert_ptr_equal(strstr(err.text, "disk.qcow2: snapshot table: "), err.text);
	if (!strstr(err.text, what))
		fail_msg("\"%s\" does not say \"%s\"", err.text, what);
}

static void ok(void)
{
	if (parse(table_len))
		fail_msg("refused: %s", err.text);
}

static void none(void **state)
{
	fresh(0);
	assert_int_equal(parse(0), 0);
	assert_null(out);
	assert_int_equal(used, 0);
}

static void two_entries(void **state)
{
	size_t at;

	fresh(2);
	at = add(20 << 16, 3, 0, "1", 1, "first", 5);
	at = add(21 << 16, 5, 24, "23", 2, "", 0);
	assert_int_equal(at, 48); /* 46 rounded up */
	put64(table, at + 40, 0x500000000ull);
	put64(table, at + 48, 0x700000000ull);
	ok();
	assert_int_equal(used, 48 + 40 + 24 + 2);
	assert_int_equal(out[0].l1_offset, 20 << 16);
	assert_int_equal(out[0].l1_entries, 3);
	assert_string_equal(out[0].id, "1");
	assert_string_equal(out[0].name, "first");
	assert_int_equal(out[0].vm_state_size, 0x1234); /* no extra data: the 32-bit field, */
	assert_int_equal(out[0].disk_size, 3 << 20); /* and today's size */
	assert_int_equal(out[0].date_sec, 1700000000);
	assert_int_equal(out[1].l1_offset, 21 << 16);
	assert_int_equal(out[1].l1_entries, 5);
	assert_string_equal(out[1].id, "23");
	assert_string_equal(out[1].name, "");
	assert_int_equal(out[1].vm_state_size, 0x500000000ull);
	assert_int_equal(out[1].disk_size, 0x700000000ull);
	free(out);
}

/* Extra data counts only as far as it goes. */
static void short_extra(void **state)
{
	static const uint32_t lengths[] = { 0, 7, 8, 15, 16, 24, 1024 };
	unsigned i;

	for (i = 0; i < COUNT(lengths); i++) {
		fresh(1);
		add(20 << 16, 3, lengths[i], "1", 1, "n", 1);
		if (lengths[i] >= 8)
			put64(table, 40, 99);
		if (lengths[i] >= 16)
			put64(table, 48, 77 * 512);
		ok();
		assert_int_equal(out[0].vm_state_size, lengths[i] >= 8 ? 99 : 0x1234);
		assert_int_equal(out[0].disk_size, lengths[i] >= 16 ? 77 * 512 : 3 << 20);
		assert_int_equal(out[0].incomplete, lengths[i] < 16);
		assert_string_equal(out[0].id, "1");
		assert_string_equal(out[0].name, "n");
		free(out);
	}
	fresh(1);
	add(20 << 16, 3, 1025, "1", 1, "n", 1);
	refused("entry 0 has 1025 bytes of extra data, must be at most 1024");
	put32(table, 36, UINT32_MAX);
	refused("4294967295 bytes of extra data");
}

static void names(void **state)
{
	static char lots[65535];

	memset(lots, 'x', sizeof(lots));
	lots[0] = '\033';
	fresh(1);
	add(20 << 16, 3, 0, lots, sizeof(lots), lots, sizeof(lots)); /* the largest there can be */
	ok();
	assert_int_equal(used, 40 + 2 * 65535);
	assert_int_equal(strlen(out[0].id), sizeof(out[0].id) - 1);
	assert_int_equal(strlen(out[0].name), sizeof(out[0].name) - 1);
	assert_memory_equal(out[0].name, "\\x1bxxx", 7);
	free(out);
}

static void l1_tables(void **state)
{
	fresh(1);
	add(20 << 16, 4u << 20, 0, "1", 1, "n", 1); /* 32 MiB */
	ok();
	free(out);
	put32(table, 8, (4u << 20) + 1);
	refused("entry 0: L1 table at 1310720 (4194305 entries) is larger than allowed");
	put32(table, 8, UINT32_MAX);
	refused("is larger than allowed");
	put32(table, 8, 8192); /* one cluster */
	put64(table, 0, FILE_SIZE - 65536);
	ok();
	free(out);
	put32(table, 8, 8193);
	refused("is beyond the end of the file");
	put64(table, 0, FILE_SIZE);
	refused("is beyond the end of the file");
	put64(table, 0, -65536ull);
	refused("is beyond the end of the file");
	put64(table, 0, (20 << 16) + 8);
	refused("is not cluster aligned");
	put64(table, 0, 0);
	refused("is inside the header cluster");
	put32(table, 8, 0);
	ok();
	free(out);
}

/* At every length: "read more", without a crash or a read past the end; the whole table: done. */
static void every_length(void **state)
{
	size_t len;

	fresh(3);
	add(20 << 16, 3, 16, "1", 1, "first", 5);
	add(21 << 16, 3, 0, "2", 1, "second", 6);
	add(22 << 16, 3, 24, "3", 1, "third", 5);
	for (len = 0; len <= table_len; len++) {
		void *copy = exact_copy(table, len);
		int ret = snapshots_parse(&h, copy, len, FILE_SIZE, &out, &used, "disk.qcow2", NULL);

		assert_int_equal(ret, len < table_len ? -EAGAIN : 0);
		free(copy);
	}
	assert_int_equal(used, table_len);
	assert_string_equal(out[2].name, "third");
	free(out);
}

/* "Read more" must end: a table that the file cannot hold is an error. */
static void end_of_file(void **state)
{
	fresh(1);
	add(20 << 16, 3, 0, "1", 1, "a name", 6);
	h.snapshots_offset = FILE_SIZE - 65536;
	put16(table, 14, 65535);
	assert_int_equal(parse(40), -EINVAL);
	assert_non_null(strstr(err.text, "entry 0 is beyond the end of the file"));
	put16(table, 14, 65536 - 40 - 1);
	assert_int_equal(parse(40), -EAGAIN);
	h.nb_snapshots = 1639; /* 40 bytes each are more than one cluster */
	assert_int_equal(parse(0), -EINVAL);
	assert_null(out);
	h.nb_snapshots = 1638;
	assert_int_equal(parse(0), -EAGAIN);
	assert_null(out);
}

static void count_and_bytes(void **state)
{
	static char lots[65535];
	uint32_t i;

	memset(lots, 'x', sizeof(lots));
	fresh(65536);
	for (i = 0; i < h.nb_snapshots; i++)
		add(20 << 16, 1, 0, "1", 1, "n", 1);
	ok();
	assert_string_equal(out[65535].name, "n");
	free(out);
	h.nb_snapshots = 65537;
	refused("65537 entries, must be at most 65536");

	fresh(0); /* 64 MiB to the byte: 511 entries of 131112 bytes and the rest */
	for (i = 0; i < 511; i++)
		add(20 << 16, 1, 0, lots, 65535, lots, 65535);
	table_len = (table_len + 7) & ~(size_t)7;
	i = (uint32_t)((64u << 20) - table_len - 40 - 65535);
	assert_true(i <= 65535);
	add(20 << 16, 1, 0, lots, 65535, lots, i);
	assert_int_equal(table_len, 64u << 20);
	h.nb_snapshots = 512;
	ok();
	assert_int_equal(used, 64u << 20);
	free(out);
	put16(table, table_len - i - 65535 - 40 + 14, i + 1);
	refused("entry 511 ends at 67108865, must be at most 67108864");
}

static void qemu_snapshots(void **state)
{
	unsigned char *file;
	uint64_t size;
	size_t len;

	need_qemu_img();
	assert_int_equal(sh("qemu-img create -q -f qcow2 x.qcow2 64M && qemu-img snapshot -c one x.qcow2 && "
			    "qemu-img snapshot -c 'the second' x.qcow2 && qemu-img resize -q x.qcow2 128M && "
			    "qemu-img snapshot -c 3 x.qcow2"),
			 0);
	file = slurp("x.qcow2", 0, &len, &size);
	assert_int_equal(header_parse(&h, file, len, size, "x.qcow2", NULL), 0);
	assert_int_equal(h.nb_snapshots, 3);
	assert_int_equal(snapshots_parse(&h, file + h.snapshots_offset, len - h.snapshots_offset, size, &out,
					 &used, "x.qcow2", NULL),
			 0);
	assert_string_equal(out[0].id, "1");
	assert_string_equal(out[0].name, "one");
	assert_int_equal(out[0].disk_size, 64u << 20);
	assert_string_equal(out[1].name, "the second");
	assert_int_equal(out[1].disk_size, 64u << 20);
	assert_string_equal(out[2].name, "3");
	assert_int_equal(out[2].disk_size, 128u << 20);
	assert_int_equal(out[2].vm_state_size, 0);
	assert_true(out[0].l1_offset != out[1].l1_offset && out[0].l1_entries == 1);
	free(out);
	free(file);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(none),		  cmocka_unit_test(two_entries),
		cmocka_unit_test(short_extra),	  cmocka_unit_test(names),
		cmocka_unit_test(l1_tables),	  cmocka_unit_test(every_length),
		cmocka_unit_test(end_of_file),	  cmocka_unit_test(count_and_bytes),
		cmocka_unit_test(qemu_snapshots),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}

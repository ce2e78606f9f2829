// SPDX-License-Identifier: GPL-2.0-or-later
/* test_tools_options.c - values on the command line, and the small pure helpers of the tools. */
#include "tools/busy.h"
#include "tools/find.h"
#include "tools/options.h"
#include "tools/output.h"
#include "tools/progress.h"
#include "unit.h"
#include <unistd.h>

static void sizes(void **state)
{
	static const struct {
		const char *text;
		uint64_t value;
	} good[] = {
		{ "0", 0 },
		{ "4096", 4096 },
		{ "64K", 65536 },
		{ "64k", 65536 },
		{ "1M", 1 << 20 },
		{ "1MiB", 1 << 20 },
		{ "2g", 2ull << 30 },
		{ "3T", 3ull << 40 },
		{ "1PiB", 1ull << 50 },
		{ "15E", 15ull << 60 },
		{ "18446744073709551615", UINT64_MAX },
	};
	static const char *const bad[] = { "",	   "-1",  "+1",	  " 1",	   "1 ",
					   "K",	   "1KB", "1MB",  "1X",	   "1.5G",
					   "64Kx", "16E", "0x10", "1Kib2", "18446744073709551616" };
	uint64_t v;
	size_t i;

	for (i = 0; i < COUNT(good); i++) {
		v = 1;
		assert_true(parse_size(good[i].text, &v));
		assert_int_equal(v, good[i].value);
	}
	for (i = 0; i < COUNT(bad); i++) {
		if (parse_size(bad[i], &v))
			print_error("\"%s\" was taken as a size\n", bad[i]);
		assert_false(parse_size(bad[i], &v));
	}
}

static void numbers(void **state)
{
	uint64_t v;

	assert_true(parse_number("1", 1, 64, &v));
	assert_true(parse_number("64", 1, 64, &v));
	assert_int_equal(v, 64);
	assert_false(parse_number("0", 1, 64, &v));
	assert_false(parse_number("65", 1, 64, &v));
	assert_false(parse_number("4K", 1, 64, &v));
	assert_false(parse_number("-1", 1, 64, &v));
	assert_false(parse_number("", 0, 64, &v));
}

static void choices(void **state)
{
	static const struct choice two[] = { { "raw", 7 }, { "qcow2", 9 }, { NULL, 0 } };
	static const struct choice three[] = { { "a", 1 }, { "b", 2 }, { "c", 3 }, { NULL, 0 } };
	char buf[40];
	int v = 0;

	assert_true(parse_choice("qcow2", two, &v));
	assert_int_equal(v, 9);
	assert_false(parse_choice("qcow", two, &v));
	assert_false(parse_choice("", two, &v));
	assert_string_equal(choice_list(two, buf, sizeof(buf)), "raw or qcow2");
	assert_string_equal(choice_list(three, buf, sizeof(buf)), "a, b or c");
}

static void human_sizes(void **state)
{
	char buf[32];

	assert_string_equal(human_size(buf, sizeof(buf), 0), "0 B");
	assert_string_equal(human_size(buf, sizeof(buf), 512), "512 B");
	assert_string_equal(human_size(buf, sizeof(buf), 1024), "1 KiB");
	assert_string_equal(human_size(buf, sizeof(buf), 1536), "1.5 KiB");
	assert_string_equal(human_size(buf, sizeof(buf), 10ull << 30), "10 GiB");
	assert_string_equal(human_size(buf, sizeof(buf), (10ull << 30) + (300ull << 20)), "10.3 GiB");
	assert_string_equal(human_size(buf, sizeof(buf), 64ull << 40), "64 TiB");
	assert_string_equal(human_size(buf, sizeof(buf), UINT64_MAX), "16 EiB");
}

static void device_names(void **state)
{
	assert_true(names_device("/dev/ublkb1", "/dev/ublkb1"));
	assert_true(names_device("/dev/ublkb1p2", "/dev/ublkb1"));
	assert_true(names_device("/dev/ublkb1p128", "/dev/ublkb1"));
	assert_true(names_device("/dev/ublkb1 (deleted)", "/dev/ublkb1"));
	assert_true(names_device("/dev/ublkb1p1\\040(deleted)", "/dev/ublkb1"));
	assert_false(names_device("/dev/ublkb10", "/dev/ublkb1"));
	assert_false(names_device("/dev/ublkb1p", "/dev/ublkb1"));
	assert_false(names_device("/dev/ublkb", "/dev/ublkb1"));
	assert_false(names_device("/dev/ublkb1px", "/dev/ublkb1"));
	assert_false(names_device("/srv/dev/ublkb1", "/dev/ublkb1"));
}

static void progress_lines(void **state)
{
	char buf[64];

	assert_string_equal(progress_text(buf, sizeof(buf), 0, 10),
			    "[>                                       ]   0%");
	assert_string_equal(progress_text(buf, sizeof(buf), 5, 10),
			    "[====================>                   ]  50%");
	assert_string_equal(progress_text(buf, sizeof(buf), 10, 10),
			    "[========================================] 100%");
	assert_non_null(strstr(progress_text(buf, sizeof(buf), 0, 0), "100%"));
	assert_non_null(strstr(progress_text(buf, sizeof(buf), 20, 10), "100%"));
}

static void assert_absolute(const char *path, const char *want)
{
	char *got = absolute_path(path);

	assert_non_null(got);
	assert_string_equal(got, want);
	free(got);
}

/* The folder is resolved, the image's own name is not: its backing names are relative to where the link is.
 */
static void absolute_paths(void **state)
{
	char dir[] = "/tmp/ublk-qcow2-abs-XXXXXX", want[64], cmd[200];

	assert_non_null(mkdtemp(dir));
	snprintf(cmd, sizeof(cmd),
		 "cd %s && mkdir real && ln -s real folder && touch real/f && ln -s f real/l", dir);
	assert_int_equal(system(cmd), 0);
	assert_int_equal(chdir(dir), 0);
	snprintf(want, sizeof(want), "%s/real/l", dir);
	assert_absolute("folder/l", want);
	assert_absolute("./real/../folder//l", want);
	snprintf(want, sizeof(want), "%s/missing", dir);
	assert_absolute("missing", want);
	snprintf(want, sizeof(want), "%s/real", dir);
	assert_absolute("folder/", want);
	assert_absolute("folder/.", want);
	assert_absolute("/dev", "/dev");
	assert_absolute("/", "/");
	assert_null(absolute_path("nowhere/image"));
	assert_int_equal(chdir("/"), 0);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	assert_int_equal(system(cmd), 0);
}

static void tables(void **state)
{
	static const char *const rows[][3] = { { "A", "SIZE", "NAME" },
					       { "long", "1", "x" },
					       { "b", "10000", "y z" } };
	struct table t = { .columns = 3, .right = 2 };
	char *text;
	size_t len, i;
	FILE *out = open_memstream(&text, &len);

	for (i = 0; i < COUNT(rows); i++)
		assert_int_equal(table_row(&t, rows[i]), 0);
	table_print(&t, out);
	fclose(out);
	table_free(&t);
	assert_string_equal(text, "A      SIZE  NAME\nlong      1  x\nb     10000  y z\n");
	free(text);
}

static void json_of_odd_names(void **state)
{
	sd_json_variant *v = NULL;

	assert_int_equal(json_add_string(&v, "good", "a\nb \xc3\xa9"), 0);
	assert_int_equal(json_add_string(&v, "bad", "a\xff\n"), 0);
	assert_string_equal(sd_json_variant_string(sd_json_variant_by_key(v, "good")), "a\nb \xc3\xa9");
	assert_string_equal(sd_json_variant_string(sd_json_variant_by_key(v, "bad")), "a\\xff\\x0a");
	sd_json_variant_unref(v);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes),
		cmocka_unit_test(numbers),
		cmocka_unit_test(choices),
		cmocka_unit_test(human_sizes),
		cmocka_unit_test(device_names),
		cmocka_unit_test(progress_lines),
		cmocka_unit_test(absolute_paths),
		cmocka_unit_test(tables),
		cmocka_unit_test(json_of_odd_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

// SPDX-License-Identifier: GPL-2.0-or-later
/* The replayer of dm-log-writes logs: where it stops, what it writes, and what it refuses. */
int log_replay(int argc, char **argv);
#define main log_replay
#include "tests/crash/log-replay.c"
#undef main
#include "unit.h"

#define TARGET_SECTORS 64u

static char log_path[] = "/tmp/test_log_replay.log.XXXXXX",
	    target_path[] = "/tmp/test_log_replay.target.XXXXXX",
	    out_path[] = "/tmp/test_log_replay.out.XXXXXX";
static int log_fd, target_fd, out_fd;
static uint32_t size; /* bytes of a sector */
static uint64_t entries, end; /* of the log that is being made */
static char said[200]; /* what the last run printed */

static void put(const void *buf, size_t len, uint64_t at)
{
	assert_int_equal(pwrite(log_fd, buf, len, (off_t)at), len);
}

static void put_super(void)
{
	struct super s = { htole64(LOG_MAGIC), htole64(LOG_VERSION), htole64(entries), htole32(size) };

	put(&s, sizeof(s), 0);
}

/* The data of an entry are its @fill. */
static void add(enum flags flags, uint64_t sector, uint64_t sectors, char fill, const char *mark)
{
	struct entry e = { htole64(sector), htole64(sectors), htole64(flags), htole64(strlen(mark)) };
	char buf[8 * SECTOR_MAX] = { 0 };

	memcpy(buf, &e, sizeof(e));
	memcpy(buf + sizeof(e), mark, strlen(mark));
	put(buf, size, end);
	end += size;
	memset(buf, fill, sizeof(buf));
	if (!(flags & (DISCARD | MARK))) {
		put(buf, sectors * size, end);
		end += sectors * size;
	}
	entries++;
	put_super();
}

static void start_log(uint32_t sector_size)
{
	size = sector_size;
	end = size;
	entries = 0;
	assert_false(ftruncate(log_fd, 0) || ftruncate(target_fd, 0) ||
		     ftruncate(target_fd, TARGET_SECTORS * size));
	put_super();
}

static int run(const char *some, const char *position, const char *count)
{
	char *argv[7] = { "log-replay" };
	int argc = 1, keep = dup(1), ret;

	if (some)
		argv[argc++] = (char *)some;
	argv[argc++] = log_path;
	argv[argc++] = target_path;
	argv[argc++] = (char *)position;
	if (count)
		argv[argc++] = (char *)count;
	fflush(stdout);
	assert_false(ftruncate(out_fd, 0));
	assert_true(lseek(out_fd, 0, SEEK_SET) == 0 && dup2(out_fd, 1) == 1);
	ret = log_replay(argc, argv);
	fflush(stdout);
	dup2(keep, 1);
	close(keep);
	memset(said, 0, sizeof(said));
	assert_true(pread(out_fd, said, sizeof(said) - 1, 0) >= 0);
	said[strcspn(said, "\n")] = 0;
	return ret;
}

/* The target, a letter for each sector; '.' is zero. */
static void target_is(const char *want)
{
	char sector[SECTOR_MAX], got[TARGET_SECTORS + 1] = "";

	for (unsigned i = 0; want[i]; i++) {
		assert_int_equal(pread(target_fd, sector, size, i * size), size);
		for (unsigned k = 1; k < size; k++)
			assert_int_equal(sector[k], sector[0]);
		got[i] = sector[0] ? sector[0] : '.';
	}
	assert_string_equal(got, want);
}

/* Goes on where the last run stopped. */
static int go_on(const char *count)
{
	char position[sizeof(said)];

	strcpy(position, said);
	position[strcspn(position, " ")] = 0;
	return run(NULL, *position ? position : "0", count);
}

static void clear_target(void)
{
	assert_false(ftruncate(target_fd, 0) || ftruncate(target_fd, TARGET_SECTORS * size));
	*said = 0;
}

static void stops_at_each_flush_fua_and_mark(void **state)
{
	for (uint32_t s = 512; s <= 4096; s *= 8) {
		char position[50];

		start_log(s);
		add(META, 0, 2, 'a', "");
		add(0, 2, 1, 'b', "");
		add(FLUSH, 0, 0, 0, "");
		add(MARK, 0, 0, 0, "one");
		add(0, 1, 2, 'c', "");
		add(FUA, 5, 1, 'd', "");
		add(DISCARD, 0, 2, 0, "");
		add(MARK, 0, 0, 0, "two words");
		add(FLUSH | FUA, 6, 1, 'e', "");
		add(0, 7, 1, 'f', "");
		add(MARK, 0, 0, 0, "three");
		add(MARK, 0, 0, 0, "dm-log-writes-end");

		clear_target();
		assert_int_equal(go_on(NULL), 0);
		snprintf(position, sizeof(position), "3:%u -", 7 * s);
		assert_string_equal(said, position);
		target_is("aab.....");
		assert_int_equal(go_on(NULL), 0);
		snprintf(position, sizeof(position), "4:%u one", 8 * s);
		assert_string_equal(said, position);
		target_is("aab.....");
		assert_int_equal(go_on(NULL), 0);
		target_is("acc..d..");
		assert_int_equal(go_on(NULL), 0);
		assert_non_null(strstr(said, " two words"));
		target_is("..c..d..");
		assert_int_equal(go_on(NULL), 0);
		assert_non_null(strstr(said, " -"));
		target_is("..c..de.");
		assert_int_equal(go_on("2"), 0);
		assert_non_null(strstr(said, " three"));
		target_is("..c..def");
		assert_int_equal(go_on(NULL), END_OF_LOG);

		clear_target();
		assert_int_equal(go_on("5"), 0);
		assert_non_null(strstr(said, " two words"));
		target_is("..c..de.");
		assert_int_equal(go_on("3"), END_OF_LOG);
		assert_non_null(strstr(said, " three"));
		target_is("..c..def");
	}
}

static void only_some(void **state)
{
	bool seen[16] = { false };
	char seed[20], sector[512];
	unsigned n, which;

	for (unsigned k = 0; k < 200; k++) {
		start_log(512);
		for (uint64_t i = 0; i < 4; i++)
			add(0, i, 1, 'a', "");
		add(MARK, 0, 0, 0, "mark");
		add(FLUSH | FUA, 4, 1, 'b', "");
		add(0, 5, 1, 'c', "");
		snprintf(seed, sizeof(seed), "--some=%u", k);
		assert_int_equal(run(seed, "0", NULL), 0);
		assert_non_null(strstr(said, " mark"));
		for (n = which = 0; n < 6; n++) {
			assert_int_equal(pread(target_fd, sector, 512, n * 512), 512);
			which |= (sector[0] != 0) << n;
		}
		assert_true(which < 16);
		seen[which] = true;
	}
	for (n = 0; n < 16; n++)
		assert_true(seen[n]);
	add(FLUSH, 0, 0, 0, "");
	assert_int_equal(run("--some=1", "0", NULL), 0);
	assert_int_equal(run("--some=1", "8:6656", NULL), END_OF_LOG);
}

static void refuses(void)
{
	assert_int_equal(run(NULL, "0", "100"), 1);
	assert_string_equal(said, "");
	assert_int_equal(run("--some=3", "0", NULL), 1);
}

static void patch(uint64_t at, uint64_t value)
{
	value = htole64(value);
	put(&value, sizeof(value), at);
}

static void bad_logs(void **state)
{
	static const struct {
		uint64_t at, value;
	} wrong[] = {
		{ 0, 0 },
		{ 8, 2 }, /* version */
		{ 24, 0 }, /* sector size */
		{ 24, 768 },
		{ 24, 8192 },
		{ 16, 4 }, /* more entries than there are */
		{ 16, UINT64_MAX },
		{ 512, TARGET_SECTORS }, /* the first entry */
		{ 512, UINT64_MAX },
		{ 520, TARGET_SECTORS + 1 },
		{ 520, UINT64_MAX },
		{ 520, UINT64_MAX / 512 + 2 },
		{ 520, 6 }, /* the log ends in its data */
		{ 528, 32 }, /* flags */
		{ 536, 1 }, /* inline data */
		{ 1560, 481 }, /* the mark's name */
		{ 1560, UINT64_MAX },
		{ 1544, 1 }, /* and its sectors */
	};

	for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		start_log(512);
		add(0, 0, 1, 'a', "");
		add(MARK, 0, 0, 0, "mark");
		add(0, 1, 1, 'b', "");
		add(FLUSH, 0, 0, 0, "");
		entries = 3; /* the FLUSH comes too late */
		put_super();
		assert_int_equal(run(NULL, "0", "100"), END_OF_LOG);
		assert_false(ftruncate(log_fd, (off_t)(end - size)));
		patch(wrong[i].at, wrong[i].value);
		refuses();
	}
}

/* Its tail is not there, or is zeroes. */
static void torn_logs(void **state)
{
	start_log(512);
	add(0, 0, 4, 'a', "");
	add(0, 8, 4, 'b', "");
	add(FLUSH, 0, 0, 0, "");
	for (uint64_t len = 0; len < end; len += 256) {
		assert_false(ftruncate(log_fd, (off_t)end));
		put_super();
		assert_false(ftruncate(log_fd, (off_t)len));
		refuses();
		assert_false(ftruncate(log_fd, (off_t)end));
		put_super();
		refuses();
	}
}

static void bad_positions(void **state)
{
	static const char *const nowhere[] = { "",    "x",	":512",	   "1",		"1:",
					       "1:0", "1:1025", "1:1536x", "1:1048576", "3:1536" };

	start_log(512);
	add(0, 0, 1, 'a', "");
	add(FLUSH, 0, 0, 0, "");
	for (unsigned i = 0; i < sizeof(nowhere) / sizeof(nowhere[0]); i++)
		assert_int_equal(run(NULL, nowhere[i], NULL), 1);
	assert_int_equal(run(NULL, "0", "0"), 2);
	assert_int_equal(run(NULL, "1:1536", NULL), 0);
	assert_string_equal(said, "2:2048 -");
	target_is(".");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(stops_at_each_flush_fua_and_mark),
		cmocka_unit_test(only_some),
		cmocka_unit_test(bad_logs),
		cmocka_unit_test(torn_logs),
		cmocka_unit_test(bad_positions),
	};
	int ret;

	log_fd = mkstemp(log_path);
	target_fd = mkstemp(target_path);
	out_fd = mkstemp(out_path);
	if (log_fd < 0 || target_fd < 0 || out_fd < 0)
		return 1;
	ret = cmocka_run_group_tests(tests, NULL, NULL);
	unlink(log_path);
	unlink(target_path);
	unlink(out_path);
	return ret;
}

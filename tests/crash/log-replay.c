// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * log-replay LOG TARGET [POSITION [COUNT]]
 *     writes onto TARGET what LOG, the log device of dm-log-writes, holds from POSITION on (as printed
 * before; at first 0) up to and with the COUNT-th (1) entry that is a FLUSH or FUA. Prints "POSITION MARK":
 * where it stopped, and the name of the last mark on the way or "-". TARGET, which held what the logged
 * device held in the beginning, then holds what that device had durable at that moment, and nothing else.
 * log-replay --some=SEED LOG TARGET POSITION
 *     writes of the entries from POSITION up to the next FLUSH or FUA, but without that, about half: the
 *     device lost power before it ended, having written part of its cache in no order.
 * log-replay --stops LOG
 *     prints how many times the first form would stop, one by one.
 * Exit status: 0, 1 = failed, 2 = usage, 3 = the log has ended before that stop.
 *
 * The log (Documentation/admin-guide/device-mapper/log-writes.rst), little endian, in sectors of the logged
 * device: a super block; then for each entry a sector with its header (a mark's name behind it), and its data
 * unless it is a discard. The kernel puts a write into the log when a FLUSH that covers it has completed, or
 * FUA itself; a mark at once. There are no checksums. Each entry is checked against the sizes of log and
 * TARGET before it is written; what was written before stays.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOG_MAGIC 0x6a736677736872ull
#define LOG_VERSION 1u
#define SECTOR_MAX 4096u
#define CHUNK (1u << 20)
#define END_OF_LOG 3

/* The kernel's own, at the end of the log, behind writes that nothing has flushed: a stop, but nobody's
 * promise. */
static const char last_mark[] = "dm-log-writes-end";

enum flags { FLUSH = 1, FUA = 2, DISCARD = 4, MARK = 8, META = 16, ALL_FLAGS = 31 };

#define STOPS (FLUSH | FUA | MARK)

struct super {
	uint64_t magic, version, entries;
	uint32_t sector_size;
};

struct entry {
	uint64_t sector, sectors, flags, data_len;
};

struct replay {
	const char *log_path, *target_path;
	int log, target;
	uint64_t log_size, target_size; /* bytes */
	uint64_t entries;
	uint32_t sector_size; /* bytes */
	uint64_t entry, at; /* the next one, and the byte of the log where it starts */
	char mark[SECTOR_MAX]; /* the last one on the way, or "" */
	char buf[CHUNK];
};

static int failed(const char *path, const char *what)
{
	fprintf(stderr, "log-replay: %s: %s: %s\n", path, what, strerror(errno));
	return -1;
}

static int bad_log(const struct replay *r, const char *what)
{
	fprintf(stderr, "log-replay: %s: bad log, entry %" PRIu64 " at byte %" PRIu64 ": %s\n", r->log_path,
		r->entry, r->at, what);
	return -1;
}

/* ---- reading ---- */

static int read_log(const struct replay *r, void *buf, size_t len, uint64_t at)
{
	ssize_t n = pread(r->log, buf, len, (off_t)at);

	if (n >= 0 && (size_t)n < len)
		errno = ENODATA;
	return n == (ssize_t)len ? 0 : failed(r->log_path, "read");
}

static int open_log(struct replay *r)
{
	struct super s;

	r->log = open(r->log_path, O_RDONLY | O_CLOEXEC);
	if (r->log < 0)
		return failed(r->log_path, "open");
	r->log_size = (uint64_t)lseek(r->log, 0, SEEK_END);
	if (read_log(r, &s, sizeof(s), 0))
		return -1;
	r->entries = le64toh(s.entries);
	r->sector_size = le32toh(s.sector_size);
	if (le64toh(s.magic) != LOG_MAGIC || le64toh(s.version) != LOG_VERSION)
		return bad_log(r, "no super block of version 1");
	if (r->sector_size < 512 || r->sector_size > SECTOR_MAX || r->sector_size & (r->sector_size - 1))
		return bad_log(r, "sector size");
	r->at = r->sector_size;
	return 0;
}

static int open_target(struct replay *r)
{
	r->target = open(r->target_path, O_RDWR | O_CLOEXEC);
	if (r->target < 0)
		return failed(r->target_path, "open");
	r->target_size = (uint64_t)lseek(r->target, 0, SEEK_END);
	return 0;
}

/* "ENTRY:BYTE", or "0" for the first entry. */
static int go_to(struct replay *r, const char *position)
{
	char *end;

	if (!strcmp(position, "0"))
		return 0;
	r->entry = strtoull(position, &end, 10);
	if (end == position || *end != ':')
		return bad_log(r, "no position");
	r->at = strtoull(end + 1, &end, 10);
	if (*end || r->at < r->sector_size || r->at % r->sector_size || r->entry > r->entries)
		return bad_log(r, "no position in this log");
	return 0;
}

static bool has_data(const struct entry *e)
{
	return !(e->flags & (DISCARD | MARK));
}

/* What a log that is none, or that lost its tail, would lead astray. */
static const char *wrong(const struct replay *r, const struct entry *e)
{
	uint64_t left = (r->log_size - r->at) / r->sector_size - 1;
	uint64_t target = r->target_size / r->sector_size;

	if (e->flags & ~(uint64_t)ALL_FLAGS)
		return "unknown flags";
	if (e->flags & MARK)
		return e->sectors || e->data_len > r->sector_size - sizeof(*e) ? "not a mark" : NULL;
	if (e->data_len)
		return "inline data";
	if (!e->sectors && !(e->flags & FLUSH))
		return "empty";
	if (has_data(e) && e->sectors > left)
		return "its data are beyond the end of the log";
	if (e->sectors > target || e->sector > target - e->sectors)
		return "beyond the end of the target";
	return NULL;
}

static int read_entry(struct replay *r, struct entry *e)
{
	const char *why = "beyond the end of the log";

	if (r->at <= r->log_size && r->log_size - r->at >= r->sector_size) {
		if (read_log(r, r->buf, r->sector_size, r->at))
			return -1;
		memcpy(e, r->buf, sizeof(*e));
		*e = (struct entry){ le64toh(e->sector), le64toh(e->sectors), le64toh(e->flags),
				     le64toh(e->data_len) };
		why = wrong(r, e);
	}
	if (why)
		return bad_log(r, why);
	if (e->flags & MARK &&
	    (e->data_len != strlen(last_mark) || memcmp(r->buf + sizeof(*e), last_mark, e->data_len))) {
		memcpy(r->mark, r->buf + sizeof(*e), e->data_len);
		r->mark[e->data_len] = 0;
	}
	return 0;
}

/* ---- writing ---- */

/* A discard makes zeroes. */
static int apply(struct replay *r, const struct entry *e)
{
	uint64_t len = e->sectors * r->sector_size, to = e->sector * r->sector_size, done;
	size_t n;

	for (done = 0; done < len; done += n) {
		n = len - done < CHUNK ? (size_t)(len - done) : CHUNK;
		if (has_data(e)) {
			if (read_log(r, r->buf, n, r->at + r->sector_size + done))
				return -1;
		} else {
			memset(r->buf, 0, n);
		}
		errno = EIO;
		if (pwrite(r->target, r->buf, n, (off_t)(to + done)) != (ssize_t)n)
			return failed(r->target_path, "write");
	}
	return 0;
}

static void next_entry(struct replay *r, const struct entry *e)
{
	r->at += r->sector_size + (has_data(e) ? e->sectors * r->sector_size : 0);
	r->entry++;
}

/* Through the @count-th stop. */
static int replay_all(struct replay *r, unsigned long count)
{
	struct entry e;

	while (count && r->entry < r->entries) {
		if (read_entry(r, &e) || (!(e.flags & MARK) && apply(r, &e)))
			return -1;
		next_entry(r, &e);
		count -= (e.flags & STOPS) != 0;
	}
	return count ? END_OF_LOG : 0;
}

static int replay_some(struct replay *r, uint64_t seed)
{
	struct entry e;

	for (; r->entry < r->entries; next_entry(r, &e)) {
		if (read_entry(r, &e))
			return -1;
		if (e.flags & (FLUSH | FUA))
			return 0;
		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		if (!(e.flags & MARK) && seed >> 63 && apply(r, &e))
			return -1;
	}
	return END_OF_LOG;
}

static int count_stops(struct replay *r)
{
	unsigned long stops = 1; /* the end */
	struct entry e;

	r->target_size = UINT64_MAX;
	for (; r->entry < r->entries; next_entry(r, &e)) {
		if (read_entry(r, &e))
			return 1;
		stops += (e.flags & STOPS) != 0;
	}
	printf("%lu\n", stops);
	return 0;
}

static int usage(void)
{
	fprintf(stderr, "usage: log-replay [--some=SEED] LOG TARGET [POSITION [COUNT]]\n"
			"       log-replay --stops LOG\n");
	return 2;
}

int main(int argc, char **argv)
{
	static const char some[] = "--some=";
	static struct replay r;
	const char *seed = NULL;
	unsigned long count;
	int ret;

	if (argc == 3 && !strcmp(argv[1], "--stops")) {
		r.log_path = argv[2];
		return open_log(&r) ? 1 : count_stops(&r);
	}
	if (argc > 1 && !strncmp(argv[1], some, strlen(some))) {
		seed = argv[1] + strlen(some);
		argc--;
		argv++;
	}
	count = argc > 4 ? strtoul(argv[4], NULL, 10) : 1;
	if (argc < 3 || argc > 5 || !count)
		return usage();
	r = (struct replay){ .log_path = argv[1], .target_path = argv[2] };
	if (open_log(&r) || open_target(&r) || go_to(&r, argc > 3 ? argv[3] : "0"))
		return 1;
	ret = seed ? replay_some(&r, strtoull(seed, NULL, 10)) : replay_all(&r, count);
	if (!ret || ret == END_OF_LOG)
		printf("%" PRIu64 ":%" PRIu64 " %s\n", r.entry, r.at, *r.mark ? r.mark : "-");
	if (fsync(r.target))
		ret = failed(r.target_path, "fsync");
	return ret < 0 ? 1 : ret;
}

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * coherence DEVICE [OPTION]...: many queues read and write the same clusters while others discard, zero and
 * reallocate them; every byte that is read is judged. Prints one line of JSON. Exit status: 0 nothing was
 * wrong, 1 something was, 2 the test itself failed. Knows nothing of who serves the device.
 *
 * Content and verdict: see judge.c.
 *
 * Discards are of whole clusters and must read as zeroes afterwards. --backed: over a backing file a discard
 * of a cluster that nobody wrote does nothing; none is made then.
 *
 * Random I/O (--ios N): threads pinned to the CPUs of all queues. Half of it goes to the --hot first of
 * --groups of blocks; the groups lie far apart, to need more slices than a small table holds. The last
 * quarter of the device belongs to the events.
 *
 * Many reads (--reads N): as many threads more read single blocks of the hot groups, as fast as they can, and
 * the random I/O is spread evenly over that time.
 *
 * Events (--events N, meanwhile): what only a missing drain can do. On the queue --slow-queue, whose hits
 * sleep (UBLK_QCOW2_TEST_HIT_DELAY of the debug build; random I/O keeps off it then), a block is read or,
 * every other time, written. While it sleeps its cluster is discarded through another queue, three flushes
 * let the host cluster become free, and writes of never-written clusters, first fit, take it. The slow read
 * must not see their data, and they must not see that of the slow write. With the drain the discard waits for
 * the slow I/O. --slow-file=PATH, --slow-us=N: there are no slow queues; hits that begin while N is in that
 * file sleep, and that is when the slow I/O begins.
 * --events-first: random I/O begins when they are over, so that nobody else takes the freed cluster: with
 * large clusters that is mostly somebody who writes another part of it, which a read cannot tell from a
 * discard.
 *
 * At the start the device is read whole: each block must be zero or stamped as a whole with one sequence. At
 * the end everybody has finished, and it is read whole and judged again.
 * --ledger=FILE: keep a ledger of it (ledger.h), each flush a promise. Every eighth write of one block is FUA
 * and so a promise, too. --log=NAME: with marks in the log of that device.
 * --judge=MARK, with --ledger: only judge what a power cut left when there were MARK promises.
 *
 * --fill: first write sequence 1 to all groups. --filled: only check that the device (or raw file) is just as
 * --fill alone left an empty one. --until-wrong: start nothing more after the first wrong read; nor after
 * SIGTERM.
 */
#include "judge.h"
#include "ledger.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MAX_BLOCKS 64u /* per I/O */
#define MAX_QUEUES 64u
#define FRESH 8u /* clusters that an event allocates */
#define NO_MARK UINT_MAX
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

enum kind { WRITE, DISCARD, ZERO, ZERO_UNMAP };

struct thread {
	pthread_t id;
	uint64_t random;
	unsigned cpu;
	char *buf;
	/* an event's slow I/O */
	unsigned block;
	bool is_write;
};

static struct {
	unsigned ios, reads, events, seed, cluster, groups, group_blocks, hot, threads, slow_queue, slow_us,
		backed, fill, filled, until_wrong, events_first, judge;
	const char *ledger, *log, *slow_file;
} opt = { .seed = 1,
	  .cluster = 65536,
	  .groups = 24,
	  .group_blocks = 64,
	  .hot = 3,
	  .threads = 2,
	  .judge = NO_MARK };

static struct {
	uint64_t reads, writes, discards, zeroes, flushes, wrong;
} count;

static int fd;
static unsigned blocks, queues, cpu_of[MAX_QUEUES];
static uint64_t done, read_done; /* random I/Os; those of --reads */
static volatile sig_atomic_t stopped;

static void die(const char *what)
{
	fprintf(stderr, "coherence: %s: %s\n", what, strerror(errno));
	if (opt.judge == NO_MARK)
		ledger_close(); /* somebody may have cut the power on purpose */
	_exit(2);
}

static uint64_t add(uint64_t *counter, uint64_t by)
{
	return __atomic_add_fetch(counter, by, __ATOMIC_RELAXED);
}

static unsigned pick(struct thread *t, unsigned below)
{
	t->random = t->random * 6364136223846793005ull + 1442695040888963407ull;
	return (unsigned)((t->random >> 33) % below);
}

static void pin(unsigned cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof(set), &set); /* a preference: an online CPU of another queue is as good */
}

/* ---- I/O ---- */

static void read_raw(char *buf, unsigned b, unsigned n)
{
	errno = EIO;
	if (pread(fd, buf, n * BLOCK, (off_t)b * BLOCK) != (ssize_t)(n * BLOCK))
		die("read");
}

static void do_read(char *buf, unsigned b, unsigned n)
{
	struct look look[MAX_BLOCKS];
	uint64_t end;
	bool good = true;

	for (unsigned i = 0; i < n; i++)
		look[i] = start_look(b + i);
	read_raw(buf, b, n);
	end = judge_time();
	for (unsigned i = 0; i < n; i++)
		good &= judge_block(b + i, buf + i * BLOCK, &look[i], end);
	add(&count.reads, 1);
	add(&count.wrong, !good);
}

static int clear_device(enum kind kind, unsigned b, unsigned n)
{
	uint64_t range[2] = { (uint64_t)b * BLOCK, (uint64_t)n * BLOCK };

	if (kind == DISCARD)
		return ioctl(fd, BLKDISCARD, range);
	if (kind == ZERO) /* may keep what is allocated */
		return ioctl(fd, BLKZEROOUT, range);
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)range[0], (off_t)range[1]);
}

static void do_change(enum kind kind, char *buf, unsigned b, unsigned n)
{
	struct iovec iov = { buf, n * BLOCK };
	uint32_t seq[MAX_BLOCKS];
	uint64_t end = 0;
	bool fua;

	for (unsigned i = 0; i < n; i++)
		seq[i] = start_change(b + i, kind != WRITE);
	fua = opt.ledger && kind == WRITE && n == 1 && (b + seq[0]) % 8 == 0;
	if (kind == WRITE) {
		for (unsigned i = 0; i < n; i++)
			put_stamps(buf + i * BLOCK, b + i, seq[i]);
		errno = EIO;
		if (pwritev2(fd, &iov, 1, (off_t)b * BLOCK, fua ? RWF_DSYNC : 0) != (ssize_t)(n * BLOCK))
			die("write");
	} else if (clear_device(kind, b, n)) {
		die(kind == DISCARD ? "discard" : "zero");
	}
	for (unsigned i = 0; i < n; i++)
		end = end_change(b + i, seq[i]);
	if (fua)
		ledger_promise(end, b, n);
	add(kind == WRITE ? &count.writes : kind == DISCARD ? &count.discards : &count.zeroes, 1);
}

static void do_flush(void)
{
	uint64_t since = judge_time();

	if (fdatasync(fd))
		die("flush");
	ledger_promise(since, 0, blocks);
	add(&count.flushes, 1);
}

static char *new_buffer(void)
{
	void *p;

	if (posix_memalign(&p, BLOCK, MAX_BLOCKS * BLOCK))
		die("buffer");
	return p;
}

/* ---- random I/O ---- */

static unsigned cluster_blocks(void)
{
	return opt.cluster > BLOCK ? opt.cluster / BLOCK : 1;
}

static unsigned group_start(unsigned g)
{
	unsigned stride = blocks / 4 * 3 / opt.groups;

	return g * (stride / cluster_blocks() * cluster_blocks());
}

/* Whether a discard of the cluster is one: see the head. */
static bool can_discard(unsigned b)
{
	bool can = !opt.backed;

	for (unsigned i = 0; i < cluster_blocks() && !can; i++)
		can = was_written(b + i);
	return can;
}

static void random_io(struct thread *t)
{
	unsigned g = pick(t, 2) ? pick(t, opt.hot) : pick(t, opt.groups), what = pick(t, 100);
	unsigned at = pick(t, opt.group_blocks), n = 1 + pick(t, 4), b = group_start(g) + at;
	unsigned cluster = b / cluster_blocks() * cluster_blocks();

	if (n > opt.group_blocks - at)
		n = opt.group_blocks - at;
	if (what < 50)
		do_read(t->buf, b, n);
	else if (what < 84)
		do_change(WRITE, t->buf, b, n);
	else if (what < 92 && can_discard(cluster))
		do_change(DISCARD, NULL, cluster, cluster_blocks());
	else if (what < 94)
		do_change(ZERO, NULL, b, n);
	else if (what < 98)
		do_change(ZERO_UNMAP, NULL, cluster, cluster_blocks());
	else
		do_flush();
}

static void stop(int sig)
{
	(void)sig;
	stopped = 1;
}

static bool go_on(void)
{
	return !stopped && (!opt.until_wrong || !__atomic_load_n(&count.wrong, __ATOMIC_RELAXED));
}

/* Random I/O does not run ahead of --reads. */
static void keep_pace(uint64_t ios)
{
	static const struct timespec nap = { .tv_nsec = 200000 };

	while (ios * opt.reads > (__atomic_load_n(&read_done, __ATOMIC_RELAXED) + 1000) * opt.ios && go_on())
		nanosleep(&nap, NULL);
}

static void *random_thread(void *arg)
{
	struct thread *t = arg;
	uint64_t n;

	pin(t->cpu);
	t->buf = new_buffer();
	while ((n = add(&done, 1)) <= opt.ios && go_on()) {
		if (opt.reads)
			keep_pace(n);
		random_io(t);
	}
	free(t->buf);
	return NULL;
}

static void *reader_thread(void *arg)
{
	struct thread *t = arg;

	t->buf = new_buffer();
	while (add(&read_done, 1) <= opt.reads && go_on())
		do_read(t->buf, group_start(pick(t, opt.hot)) + pick(t, opt.group_blocks), 1);
	free(t->buf);
	return NULL;
}

static void start(struct thread *t, void *(*main)(void *arg))
{
	errno = pthread_create(&t->id, NULL, main, t);
	if (errno)
		die("thread");
}

/* @n threads for random I/O, @readers more for --reads. */
static void start_random(struct thread *t, unsigned n, unsigned readers)
{
	unsigned others = opt.events && queues > 1 ? queues - 1 : queues;

	for (unsigned i = 0; i < n + readers; i++) {
		t[i].cpu = cpu_of[(opt.slow_queue + 1 + i % others) % queues];
		t[i].random = opt.seed * 1000003ull + i;
		start(&t[i], i < n ? random_thread : reader_thread);
	}
}

/* ---- events ---- */

static void *slow_io(void *arg)
{
	struct thread *t = arg;

	pin(t->cpu);
	if (t->is_write)
		do_change(WRITE, t->buf, t->block, 1);
	else
		do_read(t->buf, t->block, 1);
	return NULL;
}

static void make_hits_slow(unsigned us)
{
	FILE *f = opt.slow_file ? fopen(opt.slow_file, "w") : NULL;

	if (opt.slow_file && (!f || fprintf(f, "%u\n", us) < 0 || fclose(f)))
		die(opt.slow_file);
}

/* Cluster @c and the FRESH ones behind it have never been written. */
static void event(unsigned c, bool is_write, char *buf, char *slow_buf)
{
	static const struct timespec until_it_sleeps = { .tv_nsec = 200000000 };
	unsigned size = cluster_blocks(), b = c + c / size % size; /* some block of its cluster */
	struct thread slow = {
		.cpu = cpu_of[opt.slow_queue], .block = b, .is_write = is_write, .buf = slow_buf
	};

	do_change(WRITE, buf, b, 1);
	do_read(buf, b, 1);
	make_hits_slow(opt.slow_us);
	start(&slow, slow_io);
	nanosleep(&until_it_sleeps, NULL);
	make_hits_slow(0);
	do_change(DISCARD, NULL, c, size);
	for (unsigned i = 0; i < 3;
	     i++) /* entries, refcounts, and then the third finds the second's work done */
		do_flush();
	for (unsigned i = 1; i <= FRESH; i++)
		do_change(WRITE, buf, b + i * size, 1);
	pthread_join(slow.id, NULL);
	for (unsigned i = 0; i <= FRESH; i++)
		do_read(buf, b + i * size, 1);
}

static void events(void)
{
	unsigned size = cluster_blocks(), c = (blocks / 4 * 3 + size - 1) / size * size;
	char *buf = new_buffer(), *slow_buf = new_buffer();

	for (unsigned e = 0; e < opt.events && go_on(); e++) {
		if (c + (FRESH + 1) * size > blocks) {
			errno = ENOSPC;
			die("events");
		}
		event(c, e % 2, buf, slow_buf);
		c += (FRESH + 1) * size;
	}
	free(buf);
	free(slow_buf);
}

/* ---- the whole device ---- */

static bool in_group(unsigned b)
{
	unsigned stride = group_start(1), g = stride ? b / stride : 0;

	return g < opt.groups && b - group_start(g) < opt.group_blocks;
}

/* Take a block as it is; with --filled it must be as it should. */
static void survey_block(unsigned b, const char *buf)
{
	bool good = judge_take(b, buf);
	unsigned seq = *(const uint32_t *)buf;

	if (opt.filled && seq != in_group(b)) {
		fprintf(stderr, "WRONG: block %u: sequence %u\n", b, seq);
		good = false;
	}
	count.wrong += !good;
}

static void survivor(unsigned b, const char *buf)
{
	struct look l = look_since(b, ledger_since(b));

	count.wrong += !judge_block(b, buf, &l, ledger_end());
}

/* NULL: an ordinary read. */
static void whole_device(void (*look_at)(unsigned b, const char *buf))
{
	char *buf = new_buffer();

	for (unsigned n, b = 0; b < blocks; b += n) {
		n = blocks - b < MAX_BLOCKS ? blocks - b : MAX_BLOCKS;
		if (look_at) {
			read_raw(buf, b, n);
			for (unsigned i = 0; i < n; i++)
				look_at(b + i, buf + i * BLOCK);
		} else {
			do_read(buf, b, n);
		}
	}
	free(buf);
}

static void fill(void)
{
	char *buf = new_buffer();

	for (unsigned g = 0; g < opt.groups; g++)
		for (unsigned n, i = 0; i < opt.group_blocks; i += n) {
			n = opt.group_blocks - i < MAX_BLOCKS ? opt.group_blocks - i : MAX_BLOCKS;
			do_change(WRITE, buf, group_start(g) + i, n);
		}
	do_flush();
	free(buf);
}

/* ---- the device ---- */

/* A disk without queues is called by each CPU: engine kernel. */
static void take_cpus(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set))
		die("CPUs");
	for (unsigned cpu = 0; cpu < CPU_SETSIZE && queues < MAX_QUEUES; cpu++)
		if (CPU_ISSET(cpu, &set))
			cpu_of[queues++] = cpu;
}

/* A CPU of each hardware queue. */
static void find_queues(const struct stat *st)
{
	char path[100];
	FILE *f;

	for (queues = 0; S_ISBLK(st->st_mode) && queues < MAX_QUEUES; queues++) {
		snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/mq/%u/cpu_list", major(st->st_rdev),
			 minor(st->st_rdev), queues);
		f = fopen(path, "r");
		if (!f)
			break;
		if (fscanf(f, "%u", &cpu_of[queues]) != 1)
			die(path);
		fclose(f);
	}
	if (!queues && S_ISBLK(st->st_mode))
		take_cpus();
	else if (!queues)
		queues = 1; /* a file */
}

static void open_device(const char *path)
{
	struct stat st;
	off_t size;

	fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st))
		die(path);
	size = lseek(fd, 0, SEEK_END);
	blocks = (unsigned)(size / BLOCK);
	judge_init(blocks);
	find_queues(&st);
	errno = EINVAL;
	if (opt.slow_queue >= queues || !opt.hot || opt.hot > opt.groups || cluster_blocks() > MAX_BLOCKS ||
	    opt.group_blocks % cluster_blocks() || group_start(1) < opt.group_blocks || blocks >= 1u << 21)
		die("options do not fit the device");
}

static const char *parse(int argc, char **argv)
{
	static const struct {
		const char *name;
		unsigned *value;
	} known[] = {
		{ "--ios", &opt.ios },
		{ "--reads", &opt.reads },
		{ "--events", &opt.events },
		{ "--seed", &opt.seed },
		{ "--cluster", &opt.cluster },
		{ "--groups", &opt.groups },
		{ "--group-blocks", &opt.group_blocks },
		{ "--hot", &opt.hot },
		{ "--slow-queue", &opt.slow_queue },
		{ "--slow-us", &opt.slow_us },
		{ "--threads", &opt.threads },
		{ "--backed", &opt.backed },
		{ "--fill", &opt.fill },
		{ "--filled", &opt.filled },
		{ "--until-wrong", &opt.until_wrong },
		{ "--events-first", &opt.events_first },
		{ "--judge", &opt.judge },
	};
	static const struct {
		const char *name;
		const char **value;
	} text[] = { { "--ledger=", &opt.ledger },
		     { "--log=", &opt.log },
		     { "--slow-file=", &opt.slow_file } };
	const char *device = NULL;

	errno = EINVAL;
	for (int a = 1; a < argc; a++) {
		size_t len = strcspn(argv[a], "="), k = 0, t = 0;

		if (*argv[a] != '-') {
			device = argv[a];
			continue;
		}
		while (t < COUNT(text) && strncmp(text[t].name, argv[a], strlen(text[t].name)))
			t++;
		if (t < COUNT(text)) {
			*text[t].value = argv[a] + strlen(text[t].name);
			continue;
		}
		while (k < COUNT(known) &&
		       (strlen(known[k].name) != len || memcmp(known[k].name, argv[a], len)))
			k++;
		if (k == COUNT(known))
			die(argv[a]);
		*known[k].value = argv[a][len] ? (unsigned)strtoul(argv[a] + len + 1, NULL, 0) : 1;
	}
	if (!device)
		die("usage: coherence DEVICE [--OPTION[=N]]..., see the head of coherence.c");
	return device;
}

static void workload(void)
{
	unsigned n = opt.ios ? opt.threads * queues : 0, readers = opt.reads ? opt.threads * queues : 0;
	struct thread *t = calloc(n + readers + 1, sizeof(*t));

	if (!t)
		die("threads");
	if (opt.fill)
		fill();
	if (opt.events_first)
		events();
	start_random(t, n, readers);
	if (!opt.events_first)
		events();
	for (unsigned i = 0; i < n + readers; i++)
		pthread_join(t[i].id, NULL);
	free(t);
}

static void report(void)
{
	uint64_t judged, mixed;

	judge_counts(&judged, &mixed);
	const struct {
		const char *name;
		uint64_t value;
	} line[] = {
		{ "queues", queues },		{ "reads", count.reads },   { "writes", count.writes },
		{ "discards", count.discards }, { "zeroes", count.zeroes }, { "flushes", count.flushes },
		{ "blocks", judged },		{ "mixed", mixed },	    { "wrong", count.wrong },
	};
	for (unsigned i = 0; i < COUNT(line); i++)
		printf("%s\"%s\": %llu", i ? ", " : "{ ", line[i].name, (unsigned long long)line[i].value);
	printf(" }\n");
}

int main(int argc, char **argv)
{
	open_device(parse(argc, argv));
	pin(cpu_of[(opt.slow_queue + 1) % queues]); /* off the slow hits */
	if (opt.judge != NO_MARK) {
		ledger_load(opt.ledger, opt.judge, blocks);
		whole_device(survivor);
	} else {
		signal(SIGTERM, stop);
		if (opt.ledger)
			ledger_open(opt.ledger, opt.log);
		whole_device(survey_block);
		if (!opt.filled) {
			workload();
			whole_device(NULL);
		}
		ledger_close();
	}
	report();
	return count.wrong ? 1 : 0;
}

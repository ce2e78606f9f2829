/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * killed.c - a process that serves an image is killed at any instruction, again and again: nothing that was
 * reported as done may be missing, and nothing may leak.
 *
 *   killed FAMILY CASES [SEED]       (a long run: killed FAMILY 2000 SEED; 40 lives per case)
 *   killed --mutant=NAME FAMILY CASES [SEED]
 *
 * Each case makes an image with qemu-img, loads it and its backing files into shared memory (shared_host.h),
 * and lets up to 40 children in a row live on it, each with the journal of the one before. A child opens the
 * image (which applies the journal), lets our check look for errors, reads everything and compares it with
 * the shadow, then keeps 24 random requests in flight until it is killed. Kinds of death, SIGKILL each time:
 *   at the k-th hook (k random, often small: in the middle of the recovery): around every host I/O and every
 * function of the journal and a few of the cache, so also between the records of one change; after k single
 * steps from such a hook (ptrace); right after a write past the library; at a random time. Every fifth child
 * or so closes the image instead. What the child had submitted then happens or not, by sectors. The shadow
 * lives in shared memory: per sector the number of the write whose content it holds. Completed: exactly that.
 * In flight: old or new per sector (DISCARD: old or zeroes; what it is is learnt by a read). After a close:
 * no errors, no leaks, the journal empty; at the end of a case qemu-img agrees, with check and with convert,
 * and so does the snapshot, if there is one. Two cases of three have a mapping table: its writable words are
 * used for writes that the library never sees, some at the very moment at which the word is published.
 *
 * --mutant: one rule of the journal is broken, and the test has to find out: exits 0 if it did. See
 * mutants[].
 */
#include "qcow2/check.h"
#include "qcow2/journal.h"
#include "world.h"
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define LIVES 40
#define HANG_SECONDS 60 /* a life takes less than one */
#define FOUND 3 /* exit status: the child saw something wrong */

static uint8_t *buffers; /* (DEPTH + 1) * MAX_REQ, the child's */
static uint64_t words[MAX_SIZE / 512]; /* the mapping table: host offset per cluster, 0 = none */
static struct qcow2_image *img;
static bool is_child, serving;
static char what[200];
static const char *mutant = "";
static bool in_publish;

static void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fprintf(stderr, "killed: %s: ", what);
	vfprintf(stderr, fmt, ap);
	fprintf(stderr, "\n");
	va_end(ap);
	if (!is_child && mutant[0]) {
		fprintf(stderr, "killed: mutant %s found\n", mutant);
		exit(0);
	}
	_exit(is_child ? FOUND : 1);
}

static uint64_t rnd(uint64_t n)
{
	w->seed ^= w->seed << 13;
	w->seed ^= w->seed >> 7;
	w->seed ^= w->seed << 17;
	return (w->seed >> 11) % n;
}

static void hook(void)
{
	if (!is_child)
		return;
	w->hooks++;
	if (!w->kill_at || --w->kill_at)
		return;
	kill(getpid(), w->step ? SIGSTOP : SIGKILL);
}

/* ---- hooks inside the library, and mutants of it: by the linker's --wrap ---- */

static const char *const mutants[] = {
	"done-unpublished", /* done() before the records of the change are published */
	"words-unpublished", /* the same for words of the mapping table */
	"close-unpublished", /* a commit writes what is not published */
	"no-alloc",	     "no-used", "no-lower", "no-lowered", /* these records are missing */
	"truncate-open", /* truncation takes the open generation's records, too */
	"no-word", /* one changed word in 64 is not recorded */
};

static bool mutation(const char *name)
{
	return !strcmp(mutant, name);
}

#define WRAP(name, args, call, broken)                                                                       \
	void __real_##name args;                                                                             \
	void __wrap_##name args;                                                                             \
	void __wrap_##name args                                                                              \
	{                                                                                                    \
		hook();                                                                                      \
		if (!(broken))                                                                               \
			__real_##name call;                                                                  \
		hook();                                                                                      \
	}

WRAP(journal_word, (struct qcow2_image * i, enum block_type t, uint64_t off, uint64_t old, uint64_t new),
     (i, t, off, old, new), mutation("no-word") && !rnd(64))
WRAP(journal_alloc, (struct qcow2_image * i, uint64_t first, uint64_t n), (i, first, n), mutation("no-alloc"))
WRAP(journal_used, (struct qcow2_image * i, uint64_t first, uint64_t n), (i, first, n), mutation("no-used"))
WRAP(journal_lower, (struct qcow2_image * i, uint64_t first, uint64_t n), (i, first, n), mutation("no-lower"))
WRAP(journal_lowered, (struct qcow2_image * i, uint64_t cluster), (i, cluster), mutation("no-lowered"))
WRAP(journal_publish, (struct qcow2_image * i), (i),
     mutation(in_publish ? "words-unpublished" : "done-unpublished"))
WRAP(block_dirty, (struct qcow2_image * i, struct block *b), (i, b), false)
WRAP(cache_wake, (struct qcow2_image * i, int err), (i, err), false)

void __real_journal_close(struct qcow2_image *i);
void __wrap_journal_close(struct qcow2_image *i);
void __wrap_journal_close(struct qcow2_image *i)
{
	struct journal_header *h = w->journal.mem;
	uint64_t head = h->head;

	hook();
	__real_journal_close(i);
	if (mutation("close-unpublished"))
		h->head = head;
	hook();
}

void __real_journal_truncate(struct qcow2_image *i);
void __wrap_journal_truncate(struct qcow2_image *i);
void __wrap_journal_truncate(struct qcow2_image *i)
{
	hook();
	if (mutation("truncate-open"))
		__real_journal_close(i);
	__real_journal_truncate(i);
	hook();
}

struct range;
#define PUBLISH(name)                                                                                        \
	void __real_##name(struct qcow2_image *i, uint64_t start, uint64_t end, const struct range *r);      \
	void __wrap_##name(struct qcow2_image *i, uint64_t start, uint64_t end, const struct range *r);      \
	void __wrap_##name(struct qcow2_image *i, uint64_t start, uint64_t end, const struct range *r)       \
	{                                                                                                    \
		in_publish = true;                                                                           \
		__real_##name(i, start, end, r);                                                             \
		in_publish = false;                                                                          \
	}
PUBLISH(publish)
PUBLISH(publish_around)

/* ---- content ---- */

static const uint8_t *content(uint32_t id, uint64_t sector)
{
	static uint64_t out[64];
	unsigned i;

	if (id == BASE)
		return w->base + sector * 512;
	for (i = 0; i < 64; i++)
		out[i] = id ? ((uint64_t)id << 32 | sector) * 0x9e3779b97f4a7c15ull + i : 0;
	return (const uint8_t *)out;
}

static void fill(const struct job *j)
{
	uint64_t at;

	for (at = 0; at < j->req.len; at += 512)
		memcpy(j->buf + at, content(j->id, (j->req.off + at) / 512), 512);
}

static bool holds(const uint8_t *data, uint32_t id, uint64_t sector);

/* The write that put it there, for messages; UINT32_MAX: what was there at first; UINT32_MAX - 1: none of
 * all. */
static uint32_t which(const uint8_t *data, uint64_t sector)
{
	uint32_t id;

	for (id = 0; id <= w->next_id; id++)
		if (holds(data, id, sector))
			return id;
	return holds(data, BASE, sector) ? BASE : BASE - 1;
}

static bool holds(const uint8_t *data, uint32_t id, uint64_t sector)
{
	return !memcmp(data, content(id, sector), 512);
}

/* ---- the child: the mapping table ---- */

static bool hit(const struct job *j);
static bool idle(uint64_t off, uint64_t len);
static void completed(struct job *j);
static void fill(const struct job *j);

/* Another thread finds the word at once: a sector next to those of the request that brought it. */
static void hit_now(uint64_t guest, uint64_t len)
{
	uint64_t off = guest + rnd(len / 512) * 512;
	struct job *j = &w->job[DEPTH];

	if (off >= w->size || !idle(off, 512))
		return;
	j->req = (struct qcow2_req){ .op = QCOW2_WRITE, .off = off, .len = 512 };
	j->id = ++w->next_id;
	fill(j);
	__atomic_store_n(&j->busy, true, __ATOMIC_RELEASE);
	if (hit(j)) {
		completed(j);
		if (w->kill_hit && !--w->kill_hit)
			kill(getpid(), SIGKILL);
	}
	__atomic_store_n(&j->busy, false, __ATOMIC_RELEASE);
}

static void table_publish(void *ctx, uint64_t guest, uint64_t len, enum word_kind kind, unsigned file,
			  uint64_t host, bool writable)
{
	uint64_t at;

	for (at = 0; at < len; at += w->cluster)
		words[(guest + at) / w->cluster] = kind == WORD_DATA && !file && writable ? host + at : 0;
	if (serving && !rnd(4))
		hit_now(guest, len);
	hook();
}

static int table_withdraw(void *ctx, uint64_t guest, uint64_t len, struct op *waiter)
{
	uint64_t at;

	for (at = 0; at < len; at += w->cluster)
		words[(guest + at) / w->cluster] = 0;
	return 0;
}

/* A write that finds all its words goes past the library, at once. */
static bool hit(const struct job *j)
{
	uint64_t at, end = j->req.off + j->req.len;

	if (disk->dio_align > 1 && (j->req.off | j->req.len) % disk->dio_align)
		return false;
	for (at = j->req.off; at < end; at += 512)
		if (!words[at / w->cluster])
			return false;
	for (at = j->req.off; at < end; at += 512)
		disk_write_now(words[at / w->cluster] + at % w->cluster, j->buf + (at - j->req.off), 512);
	w->hits++;
	return true;
}

/* ---- the child: requests ---- */

static bool idle(uint64_t off, uint64_t len)
{
	unsigned i;

	for (i = 0; i <= DEPTH; i++) {
		const struct job *j = &w->job[i];

		if (j->busy && j->req.op != QCOW2_FLUSH && j->req.off < off + len &&
		    off < j->req.off + j->req.len)
			return false;
	}
	return true;
}

static void compare(const struct job *j)
{
	uint64_t at, s;

	for (at = 0; at < j->req.len; at += 512) {
		s = (j->req.off + at) / 512;
		if (j->learn && holds(j->buf + at, 0, s))
			w->shadow[s] = 0;
		else if (!holds(j->buf + at, w->shadow[s], s))
			die("sector %llu holds write %u, not %u", (unsigned long long)s,
			    which(j->buf + at, s), w->shadow[s]);
	}
}

/* What the request wrote is the content now: from here on it may not get lost. */
static void completed(struct job *j)
{
	uint64_t at;

	for (at = 0; j->req.op != QCOW2_FLUSH && at < j->req.len; at += 512)
		w->shadow[(j->req.off + at) / 512] = j->id;
	__atomic_store_n(&j->busy, false, __ATOMIC_RELEASE);
}

static void done(struct qcow2_req *req, int res)
{
	struct job *j = req->owner;

	hook();
	if (res)
		die("op %d off %llu len %llu: %s", req->op, (unsigned long long)req->off,
		    (unsigned long long)req->len, strerror(-res));
	if (req->op == QCOW2_READ) {
		compare(j);
		j->learn = false;
		__atomic_store_n(&j->busy, false, __ATOMIC_RELEASE);
	} else if (req->op == QCOW2_DISCARD) {
		j->learn = true;
	} else {
		completed(j);
	}
	hook();
}

static void start(struct job *j)
{
	uint64_t max = w->size / 512, off = rnd(max) * 512,
		 len = (1 + rnd(rnd(4) ? 12 : MAX_REQ / 512)) * 512;
	unsigned kind = (unsigned)rnd(20);

	if (!rnd(3)) /* much happens in few places */
		off = rnd(max < 64 ? max : 64) * 512;
	if (len > w->size - off)
		len = w->size - off;
	if (!idle(off, len))
		return;
	j->req = (struct qcow2_req){ .off = off, .len = len, .buf = j->buf, .owner = j, .done = done };
	j->learn = false;
	j->id = 0;
	j->req.op = kind < 10	? QCOW2_WRITE
		    : kind < 13 ? QCOW2_READ
		    : kind < 16 ? QCOW2_WRITE_ZEROES
		    : kind < 19 ? QCOW2_DISCARD
				: QCOW2_FLUSH;
	j->req.flags = rnd(2) ? QCOW2_REQ_NO_UNMAP : 0;
	if (j->req.op == QCOW2_WRITE) {
		j->id = ++w->next_id;
		fill(j);
	}
	__atomic_store_n(&j->busy, true, __ATOMIC_RELEASE);
	if (j->req.op == QCOW2_WRITE && rnd(2) && hit(j))
		completed(j);
	else if (qcow2_submit(img, &j->req))
		die("submit");
}

static void learn(struct job *j)
{
	struct qcow2_req *q = &j->req;

	*q = (struct qcow2_req){
		.op = QCOW2_READ, .off = q->off, .len = q->len, .buf = j->buf, .owner = j, .done = done
	};
	if (qcow2_submit(img, q))
		die("submit");
}

/* Until killed, or for w->ops requests. */
static void work(void)
{
	unsigned i, started = 0, active;

	do {
		for (i = 0, active = 0; i < DEPTH; i++) {
			struct job *j = &w->job[i];

			if (j->busy && j->learn && j->req.op == QCOW2_DISCARD)
				learn(j);
			if (!j->busy && started < w->ops) {
				start(j);
				started++;
			}
			active += j->busy;
		}
		qcow2_run(img, true);
		if (!rnd(50))
			qcow2_commit_start(img);
	} while (active || started < w->ops);
}

/* ---- the child: recovery ---- */

/* Completed: as the shadow says; in flight when the one before was killed: or what the request was about. */
static void verify_sector(const uint8_t *data, uint64_t s)
{
	unsigned i;

	if (holds(data, w->shadow[s], s))
		return;
	for (i = 0; i <= DEPTH; i++) {
		const struct job *j = &w->job[i];

		if (j->busy &&
		    (j->req.op == QCOW2_WRITE || j->req.op == QCOW2_WRITE_ZEROES ||
		     j->req.op == QCOW2_DISCARD || j->learn) &&
		    s * 512 >= j->req.off && s * 512 < j->req.off + j->req.len && holds(data, j->id, s)) {
			w->shadow[s] = j->id;
			return;
		}
	}
	die("after the recovery: sector %llu holds write %u, not %u", (unsigned long long)s, which(data, s),
	    w->shadow[s]);
}

static void verify(void)
{
	uint64_t off, at, n;
	unsigned i;

	for (off = 0; off < w->size; off += n) {
		n = w->size - off < MAX_REQ ? w->size - off : MAX_REQ;
		if (qcow2_sync(img, QCOW2_READ, buffers, n, off))
			die("read after the recovery");
		for (at = 0; at < n; at += 512)
			verify_sector(buffers + at, (off + at) / 512);
	}
	for (i = 0; i <= DEPTH; i++)
		w->job[i].busy = w->job[i].learn = false;
}

static void report(void *ctx, bool error, const char *text)
{
	if (error || ctx)
		fprintf(stderr, "  %s: %s\n", error ? "error" : "leak", text);
}

static void check(bool leaks, const char *when)
{
	struct check_callbacks cb = { .finding = report, .ctx = leaks ? w : NULL };
	struct qcow2_error err = { "" };
	struct check_result res;
	struct host_file *f = shared_open(0, true);

	if (qcow2_check(f, &cb, &res, &err))
		die("%s: check: %s", when, err.text);
	f->ops->close(f);
	if (res.errors || (leaks && res.leaks))
		die("%s: %llu errors, %llu leaks", when, (unsigned long long)res.errors,
		    (unsigned long long)res.leaks);
}

static int opener(void *ctx, const char *path, enum backing_format format, struct host_file **out,
		  struct qcow2_error *err)
{
	const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
	unsigned i;

	for (i = 1; i < FILES; i++)
		if (!strcmp(name, disk->file[i].name)) {
			*out = shared_open(i, true);
			return 0;
		}
	return -ENOENT;
}

static void stuck(int sig)
{
	struct qcow2_stats st;

	qcow2_get_stats(img, &st);
	qcow2_dump(img, stderr);
	die("it hangs: %llu commits, %llu requests' writes", (unsigned long long)st.commits,
	    (unsigned long long)w->next_id);
}

static void live(void)
{
	struct qcow2_opener o = { .open = opener };
	struct qcow2_table_ops table = { table_publish, table_withdraw, NULL };
	struct qcow2_options opt = { .opener = &o,
				     .table = w->table ? &table : NULL,
				     .cache_bytes = w->cache_bytes,
				     .journal = &w->journal };
	struct qcow2_error err = { "" };
	bool recovered = qcow2_journal_live(&w->journal);
	unsigned i;

	is_child = true;
	signal(SIGALRM, stuck);
	alarm(HANG_SECONDS);
	buffers = buf_alloc((DEPTH + 1) * MAX_REQ);
	for (i = 0; i <= DEPTH; i++)
		w->job[i].buf = buffers + (size_t)i * MAX_REQ;
	if (qcow2_open(&img, shared_open(0, false), &opt, &err))
		die("open: %s", err.text);
	check(false, "after the recovery");
	verify();
	w->recoveries += recovered;
	serving = true;
	work();
	if (qcow2_close(img, &err))
		die("close: %s", err.text);
	_exit(0);
}

/* ---- the parent: one life ---- */

/* From the stop at the hook on, @steps instructions; then dead. */
static void single_step(pid_t pid, unsigned steps)
{
	int status;

	while (steps--) {
		if (ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) || waitpid(pid, &status, 0) != pid ||
		    !WIFSTOPPED(status))
			break;
	}
	kill(pid, SIGKILL);
}

/* True if the child closed the image. */
static bool one_life(void)
{
	static bool no_ptrace;
	unsigned how = (unsigned)rnd(20);
	bool wanted_step;
	int status;
	pid_t pid;

	/* early deaths only where there is something to recover */
	w->kill_at = how < 8 && qcow2_journal_live(&w->journal) ? 1 + rnd(1ull << (3 + rnd(8)))
		     : how < 18					? 1 + rnd(1ull << (9 + rnd(6)))
								: 0;
	w->kill_hit = how == 17 ? 1 + rnd(100) : 0;
	w->step = how >= 5 && how < 10 && !no_ptrace;
	w->ops = w->kill_at || how < 19 ? UINT_MAX : 100 + (unsigned)rnd(1500);
	wanted_step = w->step;
	w->lives++;
	pid = fork();
	if (pid < 0)
		die("fork: %s", strerror(errno));
	if (!pid) {
		if (w->step && ptrace(PTRACE_TRACEME, 0, NULL, NULL))
			w->step = false;
		live();
	}
	if (how == 18) {
		usleep((useconds_t)rnd(20000));
		kill(pid, SIGKILL);
	}
	while (waitpid(pid, &status, 0) == pid && WIFSTOPPED(status))
		single_step(pid, (unsigned)rnd(3000));
	no_ptrace |= wanted_step && !w->step;
	if (WIFEXITED(status) && WEXITSTATUS(status) == FOUND)
		die("life %llu: see above", (unsigned long long)w->lives);
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return true;
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		die("life %llu ended with status %x", (unsigned long long)w->lives, status);
	disk_settle();
	return false;
}

static void one_case(void)
{
	unsigned i;
	bool closed = false;

	for (i = 0; i < LIVES || !closed; i++) {
		closed = one_life();
		if (closed) {
			w->closes++;
			check(true, "after the close");
			if (qcow2_journal_live(&w->journal))
				die("the journal is not empty after the close");
		} else if (!rnd(4)) {
			check(false, "after the kill"); /* the crash contract, without the journal */
		}
	}
}

/* ---- the parent: a case ---- */

static void make_journal(void)
{
	uint64_t least = 6 * (2 * (w->cluster < 4096 ? w->cluster : 4096) / 8 + 64 + 16);

	w->journal.size =
		rnd(2) ? QCOW2_JOURNAL_BYTES : sizeof(struct journal_header) + 24 * (least + rnd(3000));
	qcow2_journal_format(&w->journal);
}

/* qemu-img agrees. */
static void judge(const char *family)
{
	static uint8_t got[MAX_SIZE];
	char path[PATH_MAX];
	uint64_t s;
	FILE *f;

	snprintf(path, sizeof(path), "%s/t.qcow2", dir);
	f = fopen(path, "w");
	if (!f || fwrite(disk->file[0].data, 1, disk->file[0].size, f) != disk->file[0].size || fclose(f))
		die("%s: %s", path, strerror(errno));
	SH("qemu-img check -q t.qcow2");
	SH("qemu-img convert -f qcow2 -O raw t.qcow2 out.raw");
	load("out.raw", got, w->size);
	for (s = 0; s < w->size / 512; s++)
		if (!holds(got + 512 * s, w->shadow[s], s))
			die("qemu-img reads something else in sector %llu", (unsigned long long)s);
	if (is(family, "snapshot"))
		SH("qemu-img convert -f qcow2 -O raw -l one t.qcow2 after.raw && cmp before.raw after.raw");
}

static void setup(void)
{
	const char *tmp = getenv("TMPDIR");

	disk_init();
	w = share(sizeof(*w));
	w->journal = (struct qcow2_journal){
		.mem = share(QCOW2_JOURNAL_BYTES), .boot_id = "this boot", .dev = 1, .ino = 1
	};
	snprintf(dir, sizeof(dir), "%s/killed.XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(dir))
		die("%s: %s", dir, strerror(errno));
}

static void clean_up(void)
{
	sh("rm -rf %s", dir);
}

static bool known_mutant(const char *name)
{
	unsigned i;

	for (i = 0; i < sizeof(mutants) / sizeof(mutants[0]); i++)
		if (!strcmp(mutants[i], name))
			return true;
	return false;
}

int main(int argc, char **argv)
{
	unsigned long long first, i, cases;

	if (argc > 1 && !strncmp(argv[1], "--mutant=", 9)) {
		mutant = argv[1] + 9;
		argv++;
		argc--;
	}
	if (argc < 2 || (mutant[0] && !known_mutant(mutant))) {
		fprintf(stderr, "usage: killed [--mutant=NAME] FAMILY [CASES [SEED]]\n");
		return 2;
	}
	if (system("qemu-img --version >/dev/null 2>&1"))
		return 77;
	cases = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
	first = argc > 3 ? strtoull(argv[3], NULL, 0) : 1;
	setup();
	atexit(clean_up);
	for (i = first; i < first + cases; i++) {
		snprintf(what, sizeof(what), "%s seed %llu", argv[1], i);
		w->seed = 0x9e3779b97f4a7c15ull * i + (uint64_t)argv[1][0];
		make_image(argv[1]);
		make_journal();
		one_case();
		judge(argv[1]);
	}
	printf("%s: %llu lives, %llu of them closed the image, %llu recovered; %llu hooks, %llu hits\n",
	       argv[1], (unsigned long long)w->lives, (unsigned long long)w->closes,
	       (unsigned long long)w->recoveries, (unsigned long long)w->hooks, (unsigned long long)w->hits);
	if (mutant[0])
		fprintf(stderr, "killed: mutant %s was not found\n", mutant);
	return mutant[0] ? 1 : 0;
}

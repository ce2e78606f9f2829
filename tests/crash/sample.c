// SPDX-License-Identifier: GPL-2.0-or-later
/* sample.c - see sample.h. */
#include "sample.h"
#include "chain.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/wait.h>

#define CYCLES 24u
#define PAST_END (1u << 20) /* bytes: allocated when the power went, the file not yet that long */

void sample_write(const char *path, struct span s)
{
	FILE *f = fopen(path, "w");

	if (!f || fwrite(s.bytes, 1, s.size, f) != s.size || fclose(f))
		die("%s: %s", path, strerror(errno));
}

static int run(const char *dir, const char *what)
{
	char cmd[700];
	int status;

	snprintf(cmd, sizeof(cmd), "cd '%s' && %s >sample.log 2>&1", dir, what);
	status = system(cmd);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void sample_qemu(struct judge *j, struct span s)
{
	uint8_t sector[SECTOR];
	char path[256];
	int status;
	uint64_t i;
	FILE *f;

	snprintf(path, sizeof(path), "%s/sample.qcow2", j->t->dir);
	sample_write(path, s);
	status = run(j->t->dir, "qemu-img check -q -f qcow2 sample.qcow2");
	if (status != 0 && status != 3)
		finding("qemu-img check: exit status %d", status);
	if (run(j->t->dir, "qemu-img convert -f qcow2 -O raw sample.qcow2 sample.raw"))
		finding("qemu-img convert fails");
	judge_content(j->t, s, j->values);
	snprintf(path, sizeof(path), "%s/sample.raw", j->t->dir);
	f = fopen(path, "r");
	for (i = 0; f && i < j->t->sectors && fread(sector, SECTOR, 1, f) == 1; i++)
		if (sector_value(sector) != j->values[i])
			finding("qemu-img reads %s in sector %" PRIu64 ", our walk %s",
				model_word(sector_value(sector)), i, model_word(j->values[i]));
	if (!f || i < j->t->sectors)
		finding("qemu-img converted %" PRIu64 " of %" PRIu64 " sectors", i, j->t->sectors);
	fclose(f);
}

uint64_t sample_leaks(struct span s)
{
	static uint8_t copy[DEVICE_MAX];

	if (s.size > DEVICE_MAX - PAST_END)
		s.size = DEVICE_MAX - PAST_END;
	memcpy(copy, s.bytes, s.size + PAST_END);
	if (judge_autoclear(s))
		judge_clear_autoclear(copy);
	return judge_check((struct span){ copy, s.size + PAST_END }, NULL).leaks;
}

static void do_io(struct chain *c, enum qcow2_req_op op, void *buf, uint64_t len, uint64_t off)
{
	int ret = qcow2_sync(c->img, op, buf, len, off);

	if (ret)
		finding("after recovery: request %d at %" PRIu64 "+%" PRIu64 ": %s", op, off, len,
			strerror(-ret));
}

static void read_all(struct judge *j, struct chain *c, void *buf)
{
	uint64_t i;

	do_io(c, QCOW2_READ, buf, j->t->sectors * SECTOR, 0);
	for (i = 0; i < j->t->sectors; i++)
		if (sector_value((uint8_t *)buf + i * SECTOR) != j->values[i])
			finding("after recovery: sector %" PRIu64 " reads %s, our walk %s", i,
				model_word(sector_value((uint8_t *)buf + i * SECTOR)),
				model_word(j->values[i]));
}

/* Write and free the same clusters again and again. */
static void use(struct judge *j, struct chain *c, uint8_t *buf, struct rng *r)
{
	uint64_t cs = j->t->cluster_size, n = j->t->sectors * SECTOR / cs, size = 0, at = rnd(r, n),
		 len = 1 + rnd(r, 8);
	unsigned i;

	if (len > n - at)
		len = n - at;
	memset(buf, 0x5a, len * cs);
	for (i = 0; i < CYCLES; i++) {
		if (i == CYCLES / 2)
			size = c->image->live_size;
		do_io(c, QCOW2_WRITE, buf, len * cs, at * cs);
		do_io(c, QCOW2_FLUSH, NULL, 0, 0);
		do_io(c, QCOW2_DISCARD, NULL, len * cs, at * cs);
		do_io(c, QCOW2_FLUSH, NULL, 0, 0);
	}
	if (c->image->live_size > size)
		finding("after recovery: the same clusters are written and freed %u times and the file grows "
			"from %" PRIu64 " to %" PRIu64 " bytes",
			CYCLES, size, c->image->live_size);
}

void sample_recovery(struct judge *j, struct span s, uint64_t seed)
{
	struct rng r = { mix(seed, 5) };
	struct qcow2_error err = { "" };
	struct chain c;
	struct check_result res;
	uint64_t before = sample_leaks(s), after;
	uint8_t *buf = aligned_alloc(4096, (j->t->sectors * SECTOR + 4095) & ~4095ull);

	if (!buf)
		die("out of memory");
	judge_content(j->t, s, j->values);
	chain_init(&c, j->t, s.bytes, s.size, seed);
	chain_begin(&c, NULL, rnd(&r, 2), NULL);
	read_all(j, &c, buf);
	use(j, &c, buf, &r);
	if (qcow2_close(c.img, &err))
		finding("after recovery: %s", err.text);
	res = judge_check((struct span){ c.image->durable, c.image->durable_size }, NULL);
	if (res.errors)
		finding("after recovery: check: %" PRIu64 " errors", res.errors);
	after = sample_leaks((struct span){ c.image->durable, c.image->durable_size });
	if (after > before)
		finding("after recovery: %" PRIu64 " clusters are leaked, the crash had left %" PRIu64, after,
			before);
	chain_fini(&c);
	free(buf);
}

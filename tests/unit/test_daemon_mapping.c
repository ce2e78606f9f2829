// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The kernel's side of the mapping table: the BPF program's lookup, compiled natively, against the daemon's;
 * what the daemon asks of its peer, and when; and readers that use that lookup, with a fake of the module's
 * counters, against a publisher that moves clusters and evicts.
 */
#include "daemon/fastmap.h"
#include "qcow2/op.h"
#include "unit.h"
#include <errno.h>
#include <linux/bpf.h>
#include <pthread.h>
#include <sched.h>

/* ---- a BPF program's world: four slots, and a hash map that uses what was deleted again at once ---- */

#define SLOTS 4u

static struct fastmap_slot table[SLOTS] __attribute__((aligned(64)));
static struct {
	uint64_t slice_plus_1;
	__u32 slot;
} element[SLOTS];

#define SEC(name)
#define __uint(name, value) int(*name)[value]
#define __type(name, value) value *name
#define bpf_for(i, start, end) for ((i) = (start); (i) < (int)(end); (i)++)
#define barrier_var(var) __asm__ volatile("" : "+r"(var))
#undef __always_inline
#define __always_inline inline

static void *bpf_map_lookup_elem(const void *map, const void *key);

#include "bpf/mapping.bpf.h"

static void *bpf_map_lookup_elem(const void *map, const void *key)
{
	if (map == &slots)
		return *(const __u32 *)key < SLOTS ? &table[*(const __u32 *)key] : NULL;
	for (unsigned i = 0; i < SLOTS; i++)
		if (__atomic_load_n(&element[i].slice_plus_1, __ATOMIC_RELAXED) == *(const uint64_t *)key + 1)
			return &element[i].slot;
	return NULL;
}

static void tell(void *ctx, uint64_t slice, uint32_t slot)
{
	unsigned i = 0;

	while (i < SLOTS && element[i].slice_plus_1)
		i++;
	assert_true(i < SLOTS);
	__atomic_store_n(&element[i].slot, slot, __ATOMIC_RELAXED);
	__atomic_store_n(&element[i].slice_plus_1, slice + 1, __ATOMIC_RELAXED);
}

static void forget(void *ctx, uint64_t slice)
{
	unsigned i = 0;

	while (i < SLOTS && element[i].slice_plus_1 != slice + 1)
		i++;
	assert_true(i < SLOTS);
	__atomic_store_n(&element[i].slice_plus_1, 0, __ATOMIC_RELAXED);
}

#define CLUSTER_BITS 16u
#define CLUSTER 65536ull
#define SLICE (FASTMAP_SLICE_CLUSTERS * CLUSTER)

/* ---- a peer whose answers the test gives ---- */

struct fake {
	unsigned calls;
	bool busy;
	uint64_t first, end, ticket;
};

static int fake_drain(void *ctx, uint64_t first, uint64_t end, uint64_t ticket)
{
	struct fake *p = ctx;

	p->calls++;
	p->first = first;
	p->end = end;
	p->ticket = ticket;
	return p->busy ? -EWOULDBLOCK : 0;
}

static void no_stop(void *ctx)
{
}

struct fixture {
	struct fastmap *f;
	struct qcow2_table_ops ops;
	struct runq rq;
	struct fake fake;
};

static void make_with(struct fixture *x, int (*drain)(void *, uint64_t, uint64_t, uint64_t), void *ctx)
{
	struct fastmap_peer peer = {
		.slot = table, .tell = tell, .forget = forget, .drain = drain, .stop = no_stop, .ctx = ctx
	};

	memset(x, 0, sizeof(*x));
	memset(table, 0, sizeof(table));
	memset(element, 0, sizeof(element));
	assert_int_equal(fastmap_slots(0), SLOTS);
	assert_int_equal(fastmap_new(&x->f, CLUSTER_BITS, 0, 1, &peer), 0);
	fastmap_table_ops(x->f, &x->ops);
	runq_init(&x->rq);
}

static void make(struct fixture *x)
{
	make_with(x, fake_drain, &x->fake);
}

static void publish(struct fixture *x, uint64_t guest, uint64_t len, enum word_kind kind, unsigned file,
		    uint64_t host, bool writable)
{
	x->ops.publish(x->ops.ctx, guest, len, kind, file, host, writable);
}

static int withdraw(struct fixture *x, uint64_t guest, uint64_t len, struct op *op)
{
	op_init(op, &x->rq);
	op_get(op); /* so that a put of the drain does not make it ready */
	return x->ops.withdraw(x->ops.ctx, guest, len, op);
}

static bool drained(struct fixture *x, const struct op *op)
{
	fastmap_poll(x->f);
	return op->pending == 1;
}

static bool kernel_hit(uint64_t guest)
{
	struct mapping_hit hit;

	return mapping_lookup(guest, 512, false, &hit);
}

/* ---- the lookup ---- */

static uint64_t seed;

static uint64_t number(uint64_t below)
{
	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return (seed >> 33) % below;
}

static void random_change(struct fixture *x)
{
	uint64_t cluster = number(4 * FASTMAP_SLICE_CLUSTERS), clusters = 1 + number(20);
	struct op op;

	switch (number(5)) {
	case 0:
		assert_int_equal(withdraw(x, cluster * CLUSTER, clusters * CLUSTER, &op), 0);
		break;
	case 1:
		publish(x, cluster * CLUSTER, clusters * CLUSTER, WORD_ZERO, 0, 0, false);
		break;
	default: /* hosts from a small range, so that neighbours often meet */
		publish(x, cluster * CLUSTER, clusters * CLUSTER, WORD_DATA, (unsigned)number(2),
			(cluster + number(3)) * CLUSTER, number(4));
	}
}

/* The program is asked again for what is behind each answer; it must say what the daemon's lookup says at
 * once. */
static void compare(struct fixture *x, uint64_t guest, uint32_t len, bool write)
{
	static struct fastmap_extent ext[FASTMAP_SLICE_CLUSTERS];
	unsigned n = fastmap_lookup(x->f, guest, len, write, ext, COUNT(ext)), i = 0;
	uint32_t left = len;
	struct mapping_hit hit;

	for (; left && mapping_lookup(guest + len - left, left, write, &hit); left -= hit.len, i++) {
		assert_true(hit.len && hit.len <= left);
		if (!n)
			continue;
		assert_true(i < n);
		assert_int_equal(hit.len, ext[i].len);
		assert_int_equal(hit.zero, ext[i].zero);
		assert_true(hit.zero || (hit.host == ext[i].host && hit.file == ext[i].file));
	}
	assert_int_equal(!left, n > 0);
	assert_true(!n || i == n);
}

static void both_lookups_agree(void **state)
{
	struct fixture x;

	make(&x);
	for (unsigned round = 0; round < 4000; round++) {
		random_change(&x);
		for (unsigned i = 0; i < 8; i++) {
			uint64_t at = number(SLICE / 512) * 512, room = SLICE - at;
			uint64_t len = 512 * (1 + number(i < 4 ? 8 : 4096));

			compare(&x, number(4) * SLICE + at, (uint32_t)(len < room ? len : room), i & 1);
		}
	}
	fastmap_free(x.f);
}

/* ---- what the peer is asked ---- */

static void only_what_was_published_is_drained(void **state)
{
	struct fixture x;
	struct op op;

	make(&x);
	assert_int_equal(withdraw(&x, 0, SLICE, &op), 0);
	assert_int_equal(x.fake.calls, 0);
	publish(&x, 2 * SLICE - CLUSTER, 2 * CLUSTER, WORD_DATA, 0, 0, true);
	assert_true(kernel_hit(2 * SLICE - CLUSTER) && kernel_hit(2 * SLICE));
	assert_int_equal(withdraw(&x, 2 * SLICE - CLUSTER, 2 * CLUSTER, &op), 0);
	assert_false(kernel_hit(2 * SLICE - CLUSTER) || kernel_hit(2 * SLICE));
	assert_true(x.fake.calls == 1 && x.fake.first == 1 && x.fake.end == 3);
	assert_int_equal(withdraw(&x, 2 * SLICE - CLUSTER, 2 * CLUSTER, &op), 0);
	assert_int_equal(x.fake.calls, 1);
	fastmap_free(x.f);
}

static void a_withdrawal_waits_for_the_peer(void **state)
{
	struct fastmap_hold hold;
	struct fixture x;
	struct op a, b, c;

	make(&x);
	publish(&x, 0, 2 * CLUSTER, WORD_DATA, 0, 0, true);
	x.fake.busy = true;
	hold = fastmap_enter(x.f, 0, 0);
	assert_int_equal(withdraw(&x, 0, CLUSTER, &a), -EWOULDBLOCK);
	/* nothing new to withdraw, but hits of the first may go on */
	assert_int_equal(withdraw(&x, 0, CLUSTER, &b), -EWOULDBLOCK);
	assert_int_equal(x.fake.calls, 1);
	assert_int_equal(withdraw(&x, CLUSTER, CLUSTER, &c), -EWOULDBLOCK);
	assert_int_equal(x.fake.calls, 2);
	fastmap_leave(x.f, 0, hold);
	assert_false(drained(&x, &a) || drained(&x, &b) || drained(&x, &c));
	fastmap_peer_drained(x.f, x.fake.ticket - 1);
	assert_true(drained(&x, &a) && drained(&x, &b));
	assert_false(drained(&x, &c));
	fastmap_peer_drained(x.f, x.fake.ticket);
	assert_true(drained(&x, &c));
	/* and the other way round: the peer is done, a thread of ours is not */
	publish(&x, 0, CLUSTER, WORD_DATA, 0, 0, true);
	hold = fastmap_enter(x.f, 0, 0);
	assert_int_equal(withdraw(&x, 0, CLUSTER, &a), -EWOULDBLOCK);
	fastmap_peer_drained(x.f, x.fake.ticket);
	assert_false(drained(&x, &a));
	fastmap_leave(x.f, 0, hold);
	assert_true(drained(&x, &a));
	fastmap_free(x.f);
}

static void a_slot_is_reused_when_the_peer_has_drained(void **state)
{
	struct fixture x;
	struct op op;

	make(&x);
	for (uint64_t s = 0; s < 4; s++)
		publish(&x, s * SLICE, CLUSTER, WORD_DATA, 0, s * CLUSTER, false);
	for (uint64_t s = 0; s < 4; s++) /* slots without a word have readers of their header all the same */
		assert_int_equal(withdraw(&x, s * SLICE, CLUSTER, &op), 0);
	x.fake.busy = true;
	x.fake.calls = 0;
	publish(&x, 4 * SLICE, CLUSTER, WORD_DATA, 0, 4 * CLUSTER, false);
	assert_int_equal(x.fake.calls, 1);
	assert_true(x.fake.first < 4 && x.fake.end == x.fake.first + 1);
	publish(&x, 4 * SLICE, CLUSTER, WORD_DATA, 0, 4 * CLUSTER, false);
	assert_false(kernel_hit(4 * SLICE));
	fastmap_peer_drained(x.f, x.fake.ticket);
	publish(&x, 4 * SLICE, CLUSTER, WORD_DATA, 0, 4 * CLUSTER, false);
	assert_true(kernel_hit(4 * SLICE));
	fastmap_free(x.f);
}

static void a_peer_that_is_off_finds_nothing(void **state)
{
	struct fixture x;
	struct op op;

	make(&x);
	for (uint64_t s = 0; s < 3; s++)
		publish(&x, s * SLICE, CLUSTER, WORD_DATA, 0, s * CLUSTER, true);
	x.fake.busy = true;
	fastmap_peer_off(x.f, true);
	for (uint64_t s = 0; s < 3; s++) {
		publish(&x, s * SLICE, CLUSTER, WORD_DATA, 0, s * CLUSTER, true);
		assert_false(kernel_hit(s * SLICE));
	}
	assert_int_equal(x.fake.calls, 3);
	/* hits that began before may still be going on */
	assert_int_equal(withdraw(&x, 2 * SLICE, CLUSTER, &op), -EWOULDBLOCK);
	assert_int_equal(x.fake.calls, 3);
	fastmap_peer_off(x.f, false);
	assert_false(kernel_hit(0));
	assert_false(drained(&x, &op));
	fastmap_peer_drained(x.f, x.fake.ticket);
	assert_true(drained(&x, &op));
	for (uint64_t s = 0; s < 4; s++) { /* every slot is to be had again */
		publish(&x, s * SLICE, CLUSTER, WORD_DATA, 0, s * CLUSTER, true);
		assert_true(kernel_hit(s * SLICE));
	}
	fastmap_free(x.f);
}

/* ---- several threads ---- */

#define GUESTS 24u
#define CELLS 64u
#define READERS 3u

/* The module's counters (kernel/drain.c), one drain at a time; slices here are fewer than buckets. */
struct kernel {
	struct {
		uint32_t count[2], phase;
	} bucket[64];
	struct fastmap *map;
	uint64_t asked, done; /* tickets; one drain of everything answers all that were asked before */
	bool stop;
};

static unsigned kernel_enter(struct kernel *k, uint64_t slice)
{
	for (;;) {
		unsigned phase = __atomic_load_n(&k->bucket[slice].phase, __ATOMIC_RELAXED);

		__atomic_fetch_add(&k->bucket[slice].count[phase], 1, __ATOMIC_SEQ_CST);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (__atomic_load_n(&k->bucket[slice].phase, __ATOMIC_ACQUIRE) == phase)
			return phase;
		__atomic_fetch_sub(&k->bucket[slice].count[phase], 1, __ATOMIC_SEQ_CST);
	}
}

static void kernel_leave(struct kernel *k, uint64_t slice, unsigned phase)
{
	__atomic_fetch_sub(&k->bucket[slice].count[phase], 1, __ATOMIC_SEQ_CST);
}

static bool empty(struct kernel *k, uint64_t slice, unsigned phase)
{
	return !__atomic_load_n(&k->bucket[slice].count[phase], __ATOMIC_ACQUIRE);
}

static int kernel_look(void *ctx, uint64_t first, uint64_t end, uint64_t ticket)
{
	struct kernel *k = ctx;
	bool busy = false;

	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	for (uint64_t s = first; s < end; s++)
		busy |= !empty(k, s, 0) || !empty(k, s, 1);
	if (busy)
		__atomic_store_n(&k->asked, ticket, __ATOMIC_RELEASE);
	return busy ? -EWOULDBLOCK : 0;
}

static void *kernel_drainer(void *arg)
{
	struct kernel *k = arg;

	while (!__atomic_load_n(&k->stop, __ATOMIC_RELAXED)) {
		uint64_t ticket = __atomic_load_n(&k->asked, __ATOMIC_ACQUIRE);

		for (uint64_t s = 0; ticket > k->done && s < COUNT(k->bucket); s++) {
			unsigned phase = k->bucket[s].phase;

			while (!empty(k, s, !phase))
				sched_yield();
			__atomic_store_n(&k->bucket[s].phase, !phase, __ATOMIC_SEQ_CST);
			__atomic_thread_fence(__ATOMIC_SEQ_CST);
			while (!empty(k, s, phase))
				sched_yield();
		}
		if (ticket > k->done)
			fastmap_peer_drained(k->map, k->done = ticket);
		sched_yield();
	}
	return NULL;
}

struct hammer {
	struct fixture x;
	struct kernel kernel;
	uint64_t cell[CELLS]; /* plain memory: the protocol is all that orders its accesses */
	unsigned spin;
	bool stop;
	uint64_t hits, wrong;
};

/* 12 slices with two clusters each, in four slots: they evict each other all the time. */
static uint64_t guest_of(unsigned i)
{
	return (i / 2) * SLICE + (i % 2 ? 17 * CLUSTER : 0);
}

static void read_once(struct hammer *h, unsigned guest)
{
	uint64_t slice = guest_of(guest) / SLICE;
	unsigned phase = kernel_enter(&h->kernel, slice);
	struct mapping_hit hit;

	if (mapping_lookup(guest_of(guest), 512, false, &hit)) {
		uint64_t *cell = &h->cell[hit.host / CLUSTER];
		bool wrong = *cell != guest;

		for (unsigned i = 0; i < h->spin; i++)
			__asm__ volatile("" ::: "memory");
		if (h->spin > 1000)
			sched_yield();
		wrong |= *cell != guest;
		__atomic_fetch_add(&h->hits, 1, __ATOMIC_RELAXED);
		__atomic_fetch_add(&h->wrong, wrong, __ATOMIC_RELAXED);
	}
	kernel_leave(&h->kernel, slice, phase);
}

static void *reader_main(void *arg)
{
	struct hammer *h = arg;
	uint64_t random = (uintptr_t)&h ^ (uint64_t)pthread_self();

	while (!__atomic_load_n(&h->stop, __ATOMIC_RELAXED)) {
		random = random * 6364136223846793005ull + 1442695040888963407ull;
		read_once(h, (random >> 33) % GUESTS);
	}
	return NULL;
}

static void move(struct hammer *h, unsigned guest, unsigned *cell_of, unsigned to)
{
	struct op op;

	if (withdraw(&h->x, guest_of(guest), CLUSTER, &op) == -EWOULDBLOCK)
		while (!drained(&h->x, &op))
			sched_yield();
	h->cell[cell_of[guest]] = UINT64_MAX; /* somebody else's now */
	h->cell[to] = guest;
	cell_of[guest] = to;
	publish(&h->x, guest_of(guest), CLUSTER, WORD_DATA, 0, to * CLUSTER, false);
}

static void move_some(struct hammer *h, unsigned *cell_of)
{
	unsigned to;

	do
		to = (unsigned)number(CELLS);
	while (h->cell[to] < GUESTS && cell_of[h->cell[to]] == to);
	move(h, (unsigned)number(GUESTS), cell_of, to);
}

/* Until @moves were made and the readers had hits, or a reader saw something wrong. */
static void hammer(struct hammer *h, unsigned moves)
{
	unsigned cell_of[GUESTS];
	pthread_t thread[READERS + 1];

	make_with(&h->x, kernel_look, &h->kernel);
	h->kernel.map = h->x.f;
	for (unsigned i = 0; i < CELLS; i++)
		h->cell[i] = UINT64_MAX;
	for (unsigned g = 0; g < GUESTS; g++)
		h->cell[cell_of[g] = g] = g;
	assert_int_equal(pthread_create(&thread[READERS], NULL, kernel_drainer, &h->kernel), 0);
	for (unsigned i = 0; i < READERS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, reader_main, h), 0);
	for (unsigned i = 0; i < moves || __atomic_load_n(&h->hits, __ATOMIC_RELAXED) < 1000; i++) {
		if (__atomic_load_n(&h->wrong, __ATOMIC_RELAXED))
			break;
		move_some(h, cell_of);
		if (i % 100 > 97)
			fastmap_peer_off(h->x.f, i % 100 == 98);
		if (h->spin > 1000 || i % 64 == 0)
			sched_yield();
	}
	__atomic_store_n(&h->stop, true, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < READERS; i++)
		pthread_join(thread[i], NULL);
	__atomic_store_n(&h->kernel.stop, true, __ATOMIC_RELAXED);
	pthread_join(thread[READERS], NULL);
	fastmap_free(h->x.f);
}

static void kernel_readers_never_see_a_foreign_cell(void **state)
{
	for (unsigned spin = 0; spin <= 2000; spin += 1000) {
		struct hammer h = { .spin = spin };

		hammer(&h, 1000);
		assert_int_equal(h.wrong, 0);
		assert_true(h.hits >= 1000);
	}
}

static void without_the_drain_they_do(void **state)
{
	struct hammer h = { .spin = 2000 };

#ifdef __SANITIZE_THREAD__
	skip(); /* the race it reports is the point */
#endif
	fastmap_test_skip_drain = true;
	hammer(&h, 2000000);
	fastmap_test_skip_drain = false;
	assert_true(h.wrong > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(both_lookups_agree),
		cmocka_unit_test(only_what_was_published_is_drained),
		cmocka_unit_test(a_withdrawal_waits_for_the_peer),
		cmocka_unit_test(a_slot_is_reused_when_the_peer_has_drained),
		cmocka_unit_test(a_peer_that_is_off_finds_nothing),
		cmocka_unit_test(kernel_readers_never_see_a_foreign_cell),
		cmocka_unit_test(without_the_drain_they_do),
	};

	seed = 7;
	return cmocka_run_group_tests(tests, NULL, NULL);
}

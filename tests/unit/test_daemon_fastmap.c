// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The mapping table: every function in one thread, then readers against a publisher that withdraws, drains,
 * gives the host cells to somebody else and publishes anew. A reader must never see a cell that is not its
 * guest's.
 */
#include "daemon/fastmap.h"
#include "qcow2/op.h"
#include "unit.h"
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>

#define CLUSTER_BITS 16u
#define CLUSTER 65536ull
#define SLICE (FASTMAP_SLICE_CLUSTERS * CLUSTER)

struct fixture {
	struct fastmap *f;
	struct qcow2_table_ops ops;
	struct runq rq;
	unsigned wakes;
};

static void woken(void *ctx)
{
	((struct fixture *)ctx)->wakes++;
}

static struct fixture make(uint64_t bytes, unsigned readers)
{
	struct fixture x = { 0 };

	assert_int_equal(fastmap_new(&x.f, CLUSTER_BITS, bytes, readers, NULL), 0);
	fastmap_table_ops(x.f, &x.ops);
	runq_init(&x.rq);
	return x;
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

static bool hit(struct fixture *x, uint64_t guest, uint32_t len, bool write)
{
	struct fastmap_extent ext[8];

	return fastmap_lookup(x->f, guest, len, write, ext, 8);
}

/* ---- one thread ---- */

static void lookup_translates(void **state)
{
	struct fixture x = make(1 << 20, 1);
	struct fastmap_extent e[4];

	assert_false(hit(&x, 0, 512, false));
	publish(&x, 0, 4 * CLUSTER, WORD_DATA, 0, 10 * CLUSTER, true);
	assert_int_equal(fastmap_lookup(x.f, 512, 4096, true, e, 4), 1);
	assert_true(e[0].host == 10 * CLUSTER + 512 && e[0].len == 4096 && e[0].file == 0 && !e[0].zero);
	/* contiguous clusters are one extent */
	assert_int_equal(fastmap_lookup(x.f, CLUSTER - 512, 2 * CLUSTER, true, e, 1), 1);
	assert_true(e[0].host == 11 * CLUSTER - 512 && e[0].len == 2 * CLUSTER);
	/* the word behind the last one is unknown */
	assert_false(hit(&x, 3 * CLUSTER, CLUSTER + 512, false));

	publish(&x, 4 * CLUSTER, CLUSTER, WORD_DATA, 63, 77 * CLUSTER, false);
	publish(&x, 5 * CLUSTER, 2 * CLUSTER, WORD_ZERO, 0, 0, false);
	assert_int_equal(fastmap_lookup(x.f, 3 * CLUSTER, 4 * CLUSTER, false, e, 4), 3);
	assert_true(e[0].host == 13 * CLUSTER && e[0].len == CLUSTER && e[0].file == 0);
	assert_true(e[1].host == 77 * CLUSTER && e[1].len == CLUSTER && e[1].file == 63);
	assert_true(e[2].zero && e[2].len == 2 * CLUSTER);
	assert_int_equal(fastmap_lookup(x.f, 3 * CLUSTER, 4 * CLUSTER, false, e, 2), 0);
	/* neither read-only data nor zeroes can be written */
	assert_false(hit(&x, 4 * CLUSTER, 512, true));
	assert_false(hit(&x, 5 * CLUSTER, 512, true));
	assert_false(hit(&x, 3 * CLUSTER, 2 * CLUSTER, true));
	/* same host numbers in different files do not merge */
	publish(&x, 8 * CLUSTER, CLUSTER, WORD_DATA, 1, 20 * CLUSTER, false);
	publish(&x, 9 * CLUSTER, CLUSTER, WORD_DATA, 2, 21 * CLUSTER, false);
	assert_int_equal(fastmap_lookup(x.f, 8 * CLUSTER, 2 * CLUSTER, false, e, 4), 2);
	fastmap_free(x.f);
}

static void what_a_word_cannot_hold(void **state)
{
	struct fixture x = make(1 << 20, 1);

	publish(&x, 0, CLUSTER, WORD_DATA, 64, 0, false); /* file number */
	publish(&x, 0, CLUSTER, WORD_DATA, 0, 1ull << 56, false); /* host offset */
	assert_false(hit(&x, 0, 512, false));
	publish(&x, 0, CLUSTER, WORD_DATA, 0, (1ull << 56) - CLUSTER, false);
	assert_true(hit(&x, 0, 512, false));
	fastmap_free(x.f);
}

static void ranges_over_slices(void **state)
{
	struct fixture x = make(1 << 20, 1);
	struct fastmap_extent e[1];
	struct op op;

	publish(&x, SLICE - 2 * CLUSTER, 2 * CLUSTER + SLICE + CLUSTER, WORD_DATA, 0, 0, true);
	assert_int_equal(fastmap_lookup(x.f, SLICE - CLUSTER, CLUSTER, true, e, 1), 1);
	assert_true(e[0].host == CLUSTER);
	assert_int_equal(fastmap_lookup(x.f, 2 * SLICE, CLUSTER, true, e, 1), 1);
	assert_true(e[0].host == 2 * CLUSTER + SLICE);
	assert_false(hit(&x, 2 * SLICE + CLUSTER, 512, false));
	assert_false(hit(&x, SLICE - CLUSTER, 2 * CLUSTER, false)); /* a request lies in one slice */

	/* only the words of the range go */
	assert_int_equal(withdraw(&x, SLICE - CLUSTER, 2 * CLUSTER, &op), 0);
	assert_true(hit(&x, SLICE - 2 * CLUSTER, CLUSTER, true));
	assert_false(hit(&x, SLICE - CLUSTER, 512, true));
	assert_false(hit(&x, SLICE, 512, true));
	assert_true(hit(&x, SLICE + CLUSTER, 512, true));
	/* a range with more slices than the table has slots */
	assert_int_equal(withdraw(&x, 0, 1ull << 50, &op), 0);
	assert_false(hit(&x, SLICE - 2 * CLUSTER, CLUSTER, true));
	assert_false(hit(&x, 2 * SLICE, 512, true));
	fastmap_free(x.f);
}

static void a_withdrawal_waits_for_its_readers(void **state)
{
	struct fixture x = make(1 << 20, 2);
	struct fastmap_hold early, late;
	struct op op;
	uint64_t slots, withdrawals, drains;

	fastmap_set_wake(x.f, woken, &x);
	publish(&x, 0, CLUSTER, WORD_DATA, 0, 0, true);
	early = fastmap_enter(x.f, 1, 0);
	assert_true(hit(&x, 0, 512, true));
	assert_int_equal(withdraw(&x, 0, CLUSTER, &op), -EWOULDBLOCK);
	assert_int_equal(op.pending, 2);
	assert_false(hit(&x, 0, 512, true));
	assert_false(drained(&x, &op));
	/* who comes later is not waited for, and wakes for nothing: harmless */
	late = fastmap_enter(x.f, 0, 0);
	fastmap_leave(x.f, 1, early);
	assert_true(x.wakes > 0);
	assert_true(drained(&x, &op));
	x.wakes = 0;
	fastmap_leave(x.f, 0, late);
	assert_int_equal(x.wakes, 0);
	fastmap_counts(x.f, &slots, &withdrawals, &drains);
	assert_true(slots == 1 && withdrawals == 1 && drains == 1);
	fastmap_free(x.f);
}

/* Readers of other clusters of the slice are not waited for when the range has no words, as before a first
 * write; but those who may have seen words that are just being drained are. */
static void a_withdrawal_of_nothing_waits_for_nobody(void **state)
{
	struct fixture x = make(1 << 20, 1);
	uint64_t slots, withdrawals, drains;
	struct fastmap_hold hold;
	struct op op, again;

	publish(&x, 0, CLUSTER, WORD_DATA, 0, 0, true);
	hold = fastmap_enter(x.f, 0, 0);
	assert_true(hit(&x, 0, 512, true));
	assert_int_equal(withdraw(&x, CLUSTER, 7 * CLUSTER, &op), 0);
	assert_true(hit(&x, 0, 512, true));
	fastmap_counts(x.f, &slots, &withdrawals, &drains);
	assert_true(withdrawals == 1 && drains == 0);

	assert_int_equal(withdraw(&x, 0, 8 * CLUSTER, &op), -EWOULDBLOCK);
	assert_int_equal(withdraw(&x, 0, CLUSTER, &again), -EWOULDBLOCK); /* its word is zero by now */
	assert_false(drained(&x, &again));
	fastmap_leave(x.f, 0, hold);
	assert_true(drained(&x, &op));
	assert_true(drained(&x, &again));
	hold = fastmap_enter(x.f, 0, 0);
	assert_int_equal(withdraw(&x, 0, CLUSTER, &again), 0); /* drained before this reader came */
	fastmap_leave(x.f, 0, hold);
	fastmap_free(x.f);
}

static void a_second_withdrawal_waits_for_later_readers(void **state)
{
	struct fixture x = make(1 << 20, 2);
	struct fastmap_hold first, second, third;
	struct op a, b, c;

	publish(&x, 0, CLUSTER, WORD_DATA, 0, 0, true);
	first = fastmap_enter(x.f, 0, 0);
	assert_int_equal(withdraw(&x, 0, CLUSTER, &a), -EWOULDBLOCK);
	publish(&x, 0, CLUSTER, WORD_DATA, 0, CLUSTER, true);
	second = fastmap_enter(x.f, 1, 0);
	assert_true(hit(&x, 0, 512, true));
	assert_int_equal(withdraw(&x, 0, CLUSTER, &b), -EWOULDBLOCK);
	publish(&x, 0, CLUSTER, WORD_DATA, 0, 2 * CLUSTER, true);
	third = fastmap_enter(x.f, 0, 0);
	assert_int_equal(withdraw(&x, 0, CLUSTER, &c), -EWOULDBLOCK);
	/* the later readers leave first: the oldest reader may hold what any of the three withdrew */
	fastmap_leave(x.f, 0, third);
	assert_false(drained(&x, &b));
	assert_false(drained(&x, &c));
	fastmap_leave(x.f, 0, first);
	assert_true(drained(&x, &a));
	assert_false(drained(&x, &b));
	assert_false(drained(&x, &c));
	fastmap_leave(x.f, 1, second);
	assert_true(drained(&x, &b));
	assert_true(drained(&x, &c));
	fastmap_free(x.f);
}

static void a_bucket_is_shared_and_a_large_range_has_all(void **state)
{
	struct fixture x = make(1 << 20, 1);
	struct fastmap_hold hold = fastmap_enter(x.f, 0, (FASTMAP_BUCKETS + 3) * SLICE);
	struct op other, same, all;

	assert_int_equal(withdraw(&x, 4 * SLICE, SLICE, &other), 0);
	assert_int_equal(withdraw(&x, 3 * SLICE, CLUSTER, &same), -EWOULDBLOCK);
	assert_int_equal(withdraw(&x, 0, 1ull << 50, &all), -EWOULDBLOCK);
	fastmap_leave(x.f, 0, hold);
	assert_true(drained(&x, &same));
	assert_true(drained(&x, &all));
	fastmap_free(x.f);
}

static void a_slot_is_reused_when_its_readers_left(void **state)
{
	struct fixture x = make(0, 1); /* four slots */
	struct fastmap_hold hold[4];
	uint64_t slots, withdrawals, drains;
	struct op op;

	for (uint64_t s = 0; s < 4; s++) {
		publish(&x, s * SLICE, CLUSTER, WORD_DATA, 0, s * CLUSTER, false);
		hold[s] = fastmap_enter(x.f, 0, s * SLICE);
		assert_true(hit(&x, s * SLICE, 512, false));
	}
	publish(&x, 4 * SLICE, CLUSTER, WORD_DATA, 0, 4 * CLUSTER, false); /* evicts one, cannot use it yet */
	assert_false(hit(&x, 4 * SLICE, 512, false));
	publish(&x, 4 * SLICE, CLUSTER, WORD_DATA, 0, 4 * CLUSTER, false); /* evicts no second one */
	fastmap_counts(x.f, &slots, &withdrawals, &drains);
	assert_true(slots == 3);
	/* what was evicted has no slot any more, but its readers still count */
	for (uint64_t s = 0; s < 4; s++) {
		assert_int_equal(withdraw(&x, s * SLICE, CLUSTER, &op), -EWOULDBLOCK);
		fastmap_leave(x.f, 0, hold[s]);
		assert_true(drained(&x, &op));
	}
	publish(&x, 4 * SLICE, CLUSTER, WORD_DATA, 0, 4 * CLUSTER, false);
	assert_true(hit(&x, 4 * SLICE, 512, false));
	fastmap_free(x.f);
}

static void eviction_spares_what_is_used(void **state)
{
	struct fixture x = make(0, 1);

	for (uint64_t s = 0; s < 40; s++) {
		assert_true(s == 0 || hit(&x, 0, 512, false));
		publish(&x, s * SLICE, CLUSTER, WORD_ZERO, 0, 0, false);
		assert_true(hit(&x, s * SLICE, 512, false));
		publish(&x, 0, CLUSTER, WORD_ZERO, 0, 0, false);
	}
	fastmap_free(x.f);
}

/* Any slice may have any slot: none is evicted as long as one is free. */
static void a_table_holds_as_many_slices_as_it_has_slots(void **state)
{
	struct fixture x = make(1 << 20, 1);
	uint64_t slots, withdrawals, drains, n = fastmap_slots(1 << 20);

	for (uint64_t s = 0; s < n; s++)
		publish(&x, s * s * 7919 * SLICE, CLUSTER, WORD_DATA, 0, s * CLUSTER, true);
	for (uint64_t s = 0; s < n; s++)
		assert_true(hit(&x, s * s * 7919 * SLICE, 512, true));
	fastmap_counts(x.f, &slots, &withdrawals, &drains);
	assert_int_equal(slots, n);
	fastmap_free(x.f);
}

static void the_test_switch_skips_the_drain(void **state)
{
	struct fixture x = make(1 << 20, 1);
	struct fastmap_hold hold = fastmap_enter(x.f, 0, 0);
	struct op op;

	fastmap_test_skip_drain = true;
	assert_int_equal(withdraw(&x, 0, CLUSTER, &op), 0);
	fastmap_test_skip_drain = false;
	fastmap_leave(x.f, 0, hold);
	fastmap_free(x.f);
}

/* ---- several threads ---- */

#define GUESTS 24u
#define CELLS 64u
#define READERS 3u

struct hammer {
	struct fixture x;
	uint64_t cell[CELLS]; /* plain memory: the protocol is all that orders its accesses */
	unsigned spin; /* length of an "I/O" */
	bool stop;
	uint64_t hits, wrong;
};

struct reader {
	struct hammer *h;
	unsigned id;
};

/* Guest clusters of 12 slices, two each; with four slots they evict each other all the time. */
static uint64_t guest_of(unsigned i)
{
	return (i / 2) * SLICE + (i % 2 ? 17 * CLUSTER : 0);
}

static bool stopped(struct hammer *h)
{
	return __atomic_load_n(&h->stop, __ATOMIC_RELAXED);
}

/* One "I/O": the guest's number must be in the cell from the lookup until the end. */
static void read_once(struct hammer *h, unsigned reader, unsigned guest)
{
	struct fastmap_hold hold = fastmap_enter(h->x.f, reader, guest_of(guest));
	struct fastmap_extent e;

	if (fastmap_lookup(h->x.f, guest_of(guest), 512, false, &e, 1)) {
		uint64_t *cell = &h->cell[e.host / CLUSTER];
		bool wrong = *cell != guest;

		for (unsigned i = 0; i < h->spin; i++)
			__asm__ volatile("" ::: "memory");
		if (h->spin > 1000)
			sched_yield();
		wrong |= *cell != guest;
		__atomic_fetch_add(&h->hits, 1, __ATOMIC_RELAXED);
		__atomic_fetch_add(&h->wrong, wrong, __ATOMIC_RELAXED);
	}
	fastmap_leave(h->x.f, reader, hold);
}

static void *reader_main(void *arg)
{
	struct reader *r = arg;
	uint64_t seed = r->id + 1;

	while (!stopped(r->h)) {
		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		read_once(r->h, r->id, (seed >> 33) % GUESTS);
	}
	return NULL;
}

/* Move @guest from one cell to another as the library does: withdraw, drain, free the old cell, publish the
 * new. */
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

/* Until @moves were made, or a reader saw something wrong. */
static void hammer(struct hammer *h, uint64_t cache, unsigned moves)
{
	struct reader reader[READERS];
	pthread_t thread[READERS];
	unsigned cell_of[GUESTS], next = GUESTS;
	uint64_t seed = 42;

	h->x = make(cache, READERS);
	for (unsigned g = 0; g < GUESTS; g++) {
		h->cell[cell_of[g] = g] = g;
		publish(&h->x, guest_of(g), CLUSTER, WORD_DATA, 0, g * CLUSTER, false);
	}
	for (unsigned i = 0; i < READERS; i++) {
		reader[i] = (struct reader){ .h = h, .id = i };
		assert_int_equal(pthread_create(&thread[i], NULL, reader_main, &reader[i]), 0);
	}
	for (unsigned i = 0; i < moves && !__atomic_load_n(&h->wrong, __ATOMIC_RELAXED); i++) {
		while (i == moves / 2 && __atomic_load_n(&h->hits, __ATOMIC_RELAXED) < 1000)
			sched_yield(); /* the readers may not have had a processor yet */
		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		do
			next = (next + 1) % CELLS;
		while (h->cell[next] != UINT64_MAX && h->cell[next] < GUESTS &&
		       cell_of[h->cell[next]] == next);
		move(h, (seed >> 33) % GUESTS, cell_of, next);
		if (h->spin > 1000 || i % 64 == 0)
			sched_yield();
	}
	__atomic_store_n(&h->stop, true, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < READERS; i++)
		pthread_join(thread[i], NULL);
	fastmap_free(h->x.f);
}

static void readers_never_see_a_foreign_cell(void **state)
{
	static const uint64_t caches[] = { 0, 1 << 20 }; /* with and without evictions */

	for (unsigned i = 0; i < 2; i++) {
		for (unsigned spin = 0; spin <= 300; spin += 300) {
			struct hammer h = { .spin = spin };

			hammer(&h, caches[i], 3000);
			print_message("cache %u, spin %u: %llu hits\n", (unsigned)caches[i], spin,
				      (unsigned long long)h.hits);
			assert_int_equal(h.wrong, 0);
			assert_true(h.hits >= 1000);
		}
	}
}

static void without_the_drain_they_do(void **state)
{
	struct hammer h = { .spin = 2000 };

#ifdef __SANITIZE_THREAD__
	skip(); /* the race it reports is the point */
#endif
	fastmap_test_skip_drain = true;
	hammer(&h, 1 << 20, 2000000);
	fastmap_test_skip_drain = false;
	assert_true(h.wrong > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lookup_translates),
		cmocka_unit_test(what_a_word_cannot_hold),
		cmocka_unit_test(ranges_over_slices),
		cmocka_unit_test(a_withdrawal_waits_for_its_readers),
		cmocka_unit_test(a_withdrawal_of_nothing_waits_for_nobody),
		cmocka_unit_test(a_second_withdrawal_waits_for_later_readers),
		cmocka_unit_test(a_bucket_is_shared_and_a_large_range_has_all),
		cmocka_unit_test(a_slot_is_reused_when_its_readers_left),
		cmocka_unit_test(eviction_spares_what_is_used),
		cmocka_unit_test(a_table_holds_as_many_slices_as_it_has_slots),
		cmocka_unit_test(the_test_switch_skips_the_drain),
		cmocka_unit_test(readers_never_see_a_foreign_cell),
		cmocka_unit_test(without_the_drain_they_do),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

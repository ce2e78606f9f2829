// SPDX-License-Identifier: GPL-2.0-or-later
/* The judge of tests/vm and its ledger: what they let pass, and that they let nothing else pass. */
#include "tests/vm/judge.c"
#include "tests/vm/ledger.c"
#include "unit.h"

static uint64_t buf[WORDS];

/* Two blocks, the first zero, the second stamped with sequence 7. */
static void make(void)
{
	judge_init(2);
	memset(buf, 0, sizeof(buf));
	assert_true(judge_take(0, (char *)buf));
	put_stamps((char *)buf, 1, 7);
	assert_true(judge_take(1, (char *)buf));
}

/* Sequence 0: zero. */
static bool sees(const struct look *l, unsigned b, uint32_t seq)
{
	memset(buf, 0, sizeof(buf));
	if (seq)
		put_stamps((char *)buf, b, seq);
	return judge_block(b, (char *)buf, l, judge_time());
}

static bool sees_now(unsigned b, uint32_t seq)
{
	struct look l = start_look(b);

	return sees(&l, b, seq);
}

static uint32_t change(unsigned b, bool clear)
{
	uint32_t seq = start_change(b, clear);

	end_change(b, seq);
	return seq;
}

static void what_is_there(void **state)
{
	make();
	assert_true(sees_now(0, 0) && !sees_now(0, 1));
	assert_true(sees_now(1, 7) && !sees_now(1, 0) && !sees_now(1, 6) && !sees_now(1, 8));
	assert_int_equal(change(1, false), 8);
	assert_true(sees_now(1, 8) && !sees_now(1, 7));
	assert_false(was_written(0));
	change(1, true);
	assert_true(sees_now(1, 0) && !sees_now(1, 8) && was_written(1));
}

static void a_word_from_elsewhere(void **state)
{
	struct look l;

	make();
	put_stamps((char *)buf, 0, 7);
	l = start_look(1);
	assert_false(judge_block(1, (char *)buf, &l, judge_time())); /* another block */
	put_stamps((char *)buf, 1, 7);
	assert_true(judge_block(1, (char *)buf, &l, judge_time()));
	for (unsigned i = 0; i < WORDS; i += 37) {
		uint64_t keep = buf[i];

		buf[i] = 0;
		assert_false(judge_block(1, (char *)buf, &l, judge_time()));
		buf[i] = 0x1234;
		assert_false(judge_block(1, (char *)buf, &l, judge_time()));
		buf[i] = stamp(1, (i / SECTOR_WORDS + 1) % 8, 7); /* another sector */
		assert_false(judge_block(1, (char *)buf, &l, judge_time()));
		buf[i] = keep;
	}
}

static void while_it_changes(void **state)
{
	struct look before, during;
	uint32_t seq;

	make();
	before = start_look(1);
	seq = start_change(1, false);
	during = start_look(1);
	assert_true(sees(&during, 1, 7) && sees(&during, 1, seq) && !sees(&during, 1, 0));
	put_stamps((char *)buf, 1, seq);
	buf[5] = stamp(1, 0, 7); /* torn: allowed while they overlap */
	assert_true(judge_block(1, (char *)buf, &during, judge_time()));
	end_change(1, seq);
	assert_true(sees(&before, 1, 7) && sees(&before, 1, seq));
	assert_true(sees_now(1, seq) && !sees_now(1, 7));
	change(1, true);
	change(1, false);
	/* a read that began before all of it */
	assert_true(sees(&before, 1, 7) && sees(&before, 1, 0) && sees(&before, 1, seq + 2));
	assert_false(sees_now(1, 0));
}

static void who_won_stays(void **state)
{
	struct look before;
	uint32_t write, clear;

	make();
	before = start_look(1);
	write = start_change(1, false);
	clear = start_change(1, true);
	end_change(1, write);
	end_change(1, clear);
	assert_true(sees_now(1, write)); /* settles it */
	assert_true(sees_now(1, write));
	assert_false(sees_now(1, 0));
	assert_true(sees(&before, 1, 0)); /* it may have looked between the two */

	write = start_change(1, false);
	clear = start_change(1, true);
	end_change(1, write);
	assert_true(sees_now(1, write)); /* settles nothing: the clear still runs */
	end_change(1, clear);
	assert_true(sees_now(1, 0));
	assert_false(sees_now(1, write));
}

/* What the blocks may hold after a power cut that left @mark promises: a bit for each sequence number. */
static void survive(const char *path, unsigned mark, uint32_t block0, uint32_t block1)
{
	const uint32_t want[2] = { block0, block1 };

	judge_init(2);
	ledger_load(path, mark, 2);
	for (unsigned b = 0; b < 2; b++) {
		struct look l = look_since(b, ledger_since(b));
		uint32_t legal = 0;

		for (uint32_t seq = 0; seq < 12; seq++) {
			memset(buf, 0, sizeof(buf));
			if (seq)
				put_stamps((char *)buf, b, seq);
			legal |= (uint32_t)judge_block(b, (char *)buf, &l, ledger_end()) << seq;
		}
		assert_int_equal(legal, want[b]);
	}
	free(promised);
}

#define SEQ(n) (1u << (n))

static void what_a_power_cut_leaves(void **state)
{
	char path[] = "/tmp/test_judge.XXXXXX";
	uint32_t late, later;
	uint64_t flush;

	close(mkstemp(path));
	make(); /* zero and 7 */
	ledger_open(path, NULL);
	change(0, false); /* 1 */
	change(1, false); /* 8 */
	flush = judge_time();
	change(0, false); /* 2: the flush may have missed it */
	late = start_change(1, false); /* 9 */
	ledger_promise(flush, 0, 2);
	end_change(1, late);
	later = start_change(0, false); /* 3 */
	ledger_promise(end_change(0, later), 0, 1); /* FUA */
	change(1, true); /* 10 */
	start_change(1, false); /* 11: never ends */
	ledger_close();

	survive(path, 0, SEQ(0) | SEQ(1) | SEQ(2) | SEQ(3), SEQ(0) | SEQ(7) | SEQ(8) | SEQ(9) | SEQ(11));
	survive(path, 1, SEQ(1) | SEQ(2) | SEQ(3), SEQ(0) | SEQ(8) | SEQ(9) | SEQ(11));
	survive(path, 2, SEQ(3), SEQ(0) | SEQ(8) | SEQ(9) | SEQ(11));
	unlink(path);
}

/* With a log, what is after the next mark in it cannot be seen before. */
static void what_is_not_in_the_log_yet(void **state)
{
	char path[] = "/tmp/test_judge.XXXXXX";
	FILE *f = fdopen(mkstemp(path), "w");

	assert_non_null(f);
	fputs("mark 20 0 2 21\nmark 40 0 2 41\n"
	      "change 0 0 0 0 18446744073709551615 1\nchange 0 1 10 11 18446744073709551615 0\n"
	      "change 0 2 30 31 18446744073709551615 0\nchange 0 3 50 51 18446744073709551615 0\n"
	      "change 1 7 0 0 18446744073709551615 0\nchange 1 8 12 14 15 0\nchange 1 9 13 14 "
	      "18446744073709551615 0\n",
	      f);
	fclose(f);
	survive(path, 0, SEQ(0) | SEQ(1), SEQ(7) | SEQ(8) | SEQ(9));
	survive(path, 1, SEQ(1) | SEQ(2), SEQ(9)); /* a read had shown that 8 lost */
	survive(path, 2, SEQ(2) | SEQ(3), SEQ(9));
	unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_there),	   cmocka_unit_test(a_word_from_elsewhere),
		cmocka_unit_test(while_it_changes),	   cmocka_unit_test(who_won_stays),
		cmocka_unit_test(what_a_power_cut_leaves), cmocka_unit_test(what_is_not_in_the_log_yet),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

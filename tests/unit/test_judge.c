// SPDX-License-Identifier: GPL-2.0-or-later
/* The judge of tests/vm: what it lets pass, and that it lets nothing else pass. */
#include "tests/vm/judge.c"
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_there),
		cmocka_unit_test(a_word_from_elsewhere),
		cmocka_unit_test(while_it_changes),
		cmocka_unit_test(who_won_stays),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

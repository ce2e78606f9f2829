/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * broken.h - the rules of commit.c, each of which the build for tests/crash can break, to prove that the
 * power-cut simulator notices (those that are no order: that test_peer_failures does). In the product every BROKEN()
 * is false at compile time.
 */
#ifndef QCOW2_BROKEN_H
#define QCOW2_BROKEN_H

#ifdef QCOW2_TEST_MUTATIONS
enum qcow2_rule {
	RULE_NONE,
	RULE_DATA_FIRST, /* 1 */
	RULE_REFCOUNTS_FIRST, /* 2 */
	RULE_L2_FIRST, /* 3: before the L1 entry */
	RULE_BLOCK_FIRST, /* 3: a refcount block before its table entry */
	RULE_TABLE_FIRST, /* 3: a new table before the header pointer */
	RULE_REMOVAL_FIRST, /* 4: before the refcount is lowered */
	RULE_QUARANTINE, /* 4: no reuse before that is durable */
	RULE_AUTOCLEAR_FIRST, /* 5 */
	RULE_WITHDRAW_FIRST, /* 6 */
	RULE_FLUSH_LAST, /* 7 */
	RULE_FSYNC_FAILURE, /* 7: is never forgotten */
	RULE_FROZEN, /* entries of the next generation do not ride along */
	RULE_LOST_REPLAY, /* 7: nor by the next process, which writes nothing */
	RULE_OVERLAP, /* no order: nothing is allocated or written upon metadata */
	RULE_REUSE, /* no order: freed clusters are used again */
	RULES,
};
extern enum qcow2_rule qcow2_broken;
#define BROKEN(rule) (qcow2_broken == RULE_##rule)
#else
#define BROKEN(rule) false
#endif

#endif

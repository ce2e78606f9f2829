// SPDX-License-Identifier: GPL-2.0
/*
 * In-flight counters. A hit counts, from before its lookup until its I/O is over, in the bucket of its range;
 * whoever has withdrawn a mapping waits for those that may have seen it.
 *
 * A bucket has two counts and a phase that says which one newcomers take. A drain flips the phase and waits
 * for the old count, so newcomers cannot keep it from ending.
 * - reader: p = phase; count[p]++; full fence; phase still p? else start over; lookup
 * - drain: (words withdrawn) full fence; count[phase] 0? done; flip; full fence; wait until count[old] is 0
 *
 * A reader whose increment the drain does not see makes it after the drain's fence, so its lookup sees the
 * withdrawn word, or its second look at the phase sees the flip and it starts over. Invariant outside
 * drain_lock: the count that is not the phase's is 0, but for readers about to start over, or a drain that
 * was killed; the next drain of the bucket waits for it before it flips back.
 */
#include "core.h"

static int wait_for_zero(struct ublk_bpf_disk *disk, atomic_t *count, bool killable)
{
	/* acquire: what the holders read and wrote comes before what the withdrawer does next */
	if (killable)
		return wait_event_killable(disk->drain_wait, !atomic_read_acquire(count)) ? -EINTR : 0;
	wait_event(disk->drain_wait, !atomic_read_acquire(count));
	return 0;
}

static int flip(struct ublk_bpf_disk *disk, struct ublk_bpf_bucket *b, bool killable)
{
	u32 phase = b->phase;
	int ret;

	lockdep_assert_held(&disk->drain_lock);
	ret = wait_for_zero(disk, &b->count[!phase], killable);
	if (!ret && atomic_read(&b->count[phase]))
		WRITE_ONCE(b->phase, !phase);
	return ret;
}

/* The ranges whose buckets are all those of a byte range. */
static void ranges(const struct ublk_bpf_disk *disk, u64 offset, u64 length, u64 *first, u64 *last)
{
	u64 end = length - 1 > U64_MAX - offset ? U64_MAX : offset + (length - 1);

	*first = offset >> disk->range_shift;
	*last = min(end >> disk->range_shift, *first + UBLK_BPF_BUCKETS - 1);
}

/* Each count that is seen as 0 once has lost all its earlier holders, so no lock and no flip is needed. */
bool ublk_bpf_is_drained(struct ublk_bpf_disk *disk, u64 offset, u64 length)
{
	u64 first, last, r;

	/* The withdrawer's stores before the counts. */
	smp_mb();
	ranges(disk, offset, length, &first, &last);
	for (r = first; r <= last; r++) {
		struct ublk_bpf_bucket *b = &disk->buckets[r % UBLK_BPF_BUCKETS];

		/* acquire: as in wait_for_zero() */
		if (atomic_read_acquire(&b->count[0]) || atomic_read_acquire(&b->count[1]))
			return false;
	}
	atomic64_inc(&disk->drains);
	return true;
}

int ublk_bpf_drain_range(struct ublk_bpf_disk *disk, u64 offset, u64 length, bool killable)
{
	u64 first, last, r;
	int ret = 0;

	/* The withdrawer's stores before the counts. */
	smp_mb();
	ranges(disk, offset, length, &first, &last);
	if (!killable)
		mutex_lock(&disk->drain_lock);
	else if (mutex_lock_killable(&disk->drain_lock))
		return -EINTR;
	for (r = first; r <= last && !ret; r++)
		ret = flip(disk, &disk->buckets[r % UBLK_BPF_BUCKETS], killable);
	/* The flips before the counts: a reader not seen here sees its flip. */
	smp_mb();
	for (r = first; r <= last && !ret; r++) {
		struct ublk_bpf_bucket *b = &disk->buckets[r % UBLK_BPF_BUCKETS];

		ret = wait_for_zero(disk, &b->count[!b->phase], killable);
	}
	mutex_unlock(&disk->drain_lock);
	atomic64_inc(&disk->drains);
	return ret;
}

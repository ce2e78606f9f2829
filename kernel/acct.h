/* SPDX-License-Identifier: GPL-2.0 */
/*
 * I/O accounting of hits: what bio_start_io_acct() and bio_end_io_acct() do, without the calls as long as the
 * clock stands still. They cost as much as all the rest of the module; a tick (4 ms) has room for hundreds of
 * hits.
 */
#ifndef UBLK_BPF_ACCT_H
#define UBLK_BPF_ACCT_H

#include <linux/part_stat.h>

static inline unsigned long ublk_bpf_acct_start(struct bio *bio)
{
	struct block_device *bdev = bio->bi_bdev;
	unsigned long now = READ_ONCE(jiffies);

	if (unlikely(READ_ONCE(bdev->bd_stamp) != now))
		return bio_start_io_acct(bio);
	part_stat_lock();
	local_inc(this_cpu_ptr(&bdev->bd_stats->in_flight[op_is_write(bio_op(bio))]));
	part_stat_unlock();
	return now;
}

static inline void ublk_bpf_acct_end(struct bio *bio, unsigned long start)
{
	struct block_device *bdev = bio->bi_bdev;
	bool write = op_is_write(bio_op(bio));
	unsigned int group = write ? STAT_WRITE : STAT_READ;
	unsigned long now = READ_ONCE(jiffies);

	if (unlikely(start != now || READ_ONCE(bdev->bd_stamp) != now)) {
		bio_end_io_acct(bio, start);
		return;
	}
	part_stat_lock();
	part_stat_inc(bdev, ios[group]);
	part_stat_add(bdev, sectors[group], bio_sectors(bio));
	local_dec(this_cpu_ptr(&bdev->bd_stats->in_flight[write]));
	part_stat_unlock();
}

#endif

/* SPDX-License-Identifier: GPL-2.0 */
/*
 * ublk_bpf: what its source files share. Terms: a disk is one /dev/ublkbpfN; a call is one question to its
 * program; a hit is a bio served from a file slot.
 */
#ifndef UBLK_BPF_CORE_H
#define UBLK_BPF_CORE_H

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/fs.h>
#include <linux/llist.h>
#include <linux/mempool.h>
#include <linux/random.h>
#include <linux/refcount.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "ublk_bpf.h"

/* The type that programs see, read-only. */
struct ublk_bpf_io {
	u64 offset;
	u32 len;
	u32 op;
	u32 dev_id;
};

struct ublk_bpf_slot;

struct ublk_bpf_ops {
	int (*queue_io)(struct ublk_bpf_io *io);
	void (*complete_io)(struct ublk_bpf_io *io, int result);
	u32 dev_id;
};

enum ublk_bpf_action {
	UBLK_BPF_NO_ACTION,
	UBLK_BPF_GO_BELOW,
	UBLK_BPF_FILE_IO,
	UBLK_BPF_RESULT,
};

/* The question and, written by kfuncs only, the answer: the first @len bytes of @io. */
struct ublk_bpf_call {
	struct ublk_bpf_io io;
	u32 len;
	enum ublk_bpf_action action;
	u32 slot;
	int result;
	u64 file_offset;
	struct ublk_bpf_slot *file; /* what was in @slot, read once: the slot may be replaced meanwhile */
};

/* A bio, from the question about its front to the end of the file I/O that serves it. */
struct ublk_bpf_aio {
	struct kiocb iocb;
	struct ublk_bpf_disk *disk;
	struct bio *bio;
	unsigned long start; /* of its accounting */
	atomic_t *count; /* of its range, held: see drain.c */
	long result;
	atomic_t refs; /* its submission, its completion */
	u32 segments;
	struct llist_node node;
	struct ublk_bpf_call call;
};

/* One range counter: see drain.c. */
struct ublk_bpf_bucket {
	atomic_t count[2];
	u32 phase;
} __aligned(16);

struct ublk_bpf_slot {
	struct file *file;
	struct inode *inode; /* of the data: the one with the size */
	u32 mem_mask, offset_mask;
	bool writable, nowait, freezable;
};

struct ublk_bpf_counts {
	u64 hits[2], bytes[2]; /* by enum ublk_bpf_op */
	u64 misses, zeroed, splits, punts, again, refused, failed;
};

struct ublk_bpf_punt {
	struct llist_head list;
	struct work_struct work;
};

enum ublk_bpf_state { UBLK_BPF_STARTING, UBLK_BPF_LIVE, UBLK_BPF_GONE };

struct ublk_bpf_disk {
	/* what a request reads */
	struct ublk_bpf_ops *ops; /* read only while a range counter is held */
	struct ublk_bpf_bucket *buckets;
	struct block_device *lower;
	struct ublk_bpf_counts __percpu *counts;
	struct ublk_bpf_slot *slots[UBLK_BPF_FILES];
	u32 id;
	u32 range_shift;
	u64 range_mask; /* bytes of a range - 1 */
	u32 block_mask; /* logical block size - 1 */
	bool lower_dead;
	mempool_t aios;
	struct bio_set split_bios, clone_bios;
	struct ublk_bpf_punt issue; /* file I/O that must not or could not be started by its submitter */
	struct ublk_bpf_punt retry; /* failed hits on their way below */
	wait_queue_head_t drain_wait ____cacheline_aligned_in_smp;
	/* control */
	struct workqueue_struct *wq;
	struct mutex drain_lock;
	atomic64_t drains;
	struct mutex lock; /* slots, ops, state */
	enum ublk_bpf_state state;
	u32 flags;
	refcount_t refs;
	struct gendisk *gendisk;
	struct file *lower_file;
};

#define ublk_bpf_count(disk, what) this_cpu_inc((disk)->counts->what)

/* disk.c */
extern unsigned int ublk_bpf_test_no_memory;
static inline bool ublk_bpf_pretend_no_memory(void)
{
	unsigned int n = READ_ONCE(ublk_bpf_test_no_memory);

	return unlikely(n) && !get_random_u32_below(n);
}

struct ublk_bpf_disk *ublk_bpf_disk_get(u32 id); /* NULL without such a disk */
void ublk_bpf_disk_put(struct ublk_bpf_disk *disk);
int ublk_bpf_disk_create(struct ublk_bpf_create *arg);
int ublk_bpf_disk_destroy(struct ublk_bpf_disk *disk);
bool ublk_bpf_is_ours(const struct gendisk *gendisk);
/* Takes @bio, accounted since @start, to the lower device. */
void ublk_bpf_redirect(struct ublk_bpf_disk *disk, struct bio *bio, unsigned long start);

/* drain.c */
static inline void ublk_bpf_leave(struct ublk_bpf_disk *disk, atomic_t *count)
{
	/* atomic_dec_and_test() is a full fence: pairs with that of prepare_to_wait() */
	if (atomic_dec_and_test(count) && unlikely(waitqueue_active(&disk->drain_wait)))
		wake_up_all(&disk->drain_wait);
}

/* Raises the counter of @offset's range, to be left again; what depends on it is read afterwards. */
static inline atomic_t *ublk_bpf_enter(struct ublk_bpf_disk *disk, u64 offset)
{
	struct ublk_bpf_bucket *b = &disk->buckets[(offset >> (disk->range_shift & 63)) % UBLK_BPF_BUCKETS];

	for (;;) {
		u32 phase = READ_ONCE(b->phase);
		atomic_t *count = &b->count[phase & 1];

		atomic_inc(count);
		smp_mb__after_atomic();
		/* acquire: the lookup comes after this look */
		if (likely(smp_load_acquire(&b->phase) == phase))
			return count;
		ublk_bpf_leave(disk, count);
	}
}

/* @length is at least 1; offset + length may saturate. */
bool ublk_bpf_is_drained(struct ublk_bpf_disk *disk, u64 offset, u64 length);
/* 0 or, only if @killable, -EINTR. */
int ublk_bpf_drain_range(struct ublk_bpf_disk *disk, u64 offset, u64 length, bool killable);

/* slot.c */
int ublk_bpf_slot_set(struct ublk_bpf_disk *disk, struct ublk_bpf_file *arg);
int ublk_bpf_slot_get(struct ublk_bpf_disk *disk, struct ublk_bpf_file *arg);
void ublk_bpf_slots_clear(struct ublk_bpf_disk *disk); /* nothing is in flight, and no program asks */

/* aio.c */
/* The first of the free aios that each CPU keeps, for all disks: mostly the only one that is needed. */
DECLARE_PER_CPU(struct ublk_bpf_aio *, ublk_bpf_kept);
struct ublk_bpf_aio *ublk_bpf_aio_take(struct ublk_bpf_disk *disk);
void ublk_bpf_aio_give(struct ublk_bpf_disk *disk, struct ublk_bpf_aio *aio);

/* Only disk and bio are set. NULL: no memory at once; it is not waited for. */
static inline struct ublk_bpf_aio *ublk_bpf_aio_get(struct ublk_bpf_disk *disk, struct bio *bio)
{
	struct ublk_bpf_aio *aio = this_cpu_read(ublk_bpf_kept);

	if (ublk_bpf_pretend_no_memory())
		return NULL;
	if (unlikely(!aio) || unlikely(this_cpu_cmpxchg(ublk_bpf_kept, aio, NULL) != aio))
		aio = ublk_bpf_aio_take(disk);
	if (likely(aio)) {
		aio->disk = disk;
		aio->bio = bio;
	}
	return aio;
}

static inline void ublk_bpf_aio_free(struct ublk_bpf_disk *disk, struct ublk_bpf_aio *aio)
{
	/* else the reserve comes first */
	if (unlikely(!mempool_is_saturated(&disk->aios)) ||
	    unlikely(this_cpu_cmpxchg(ublk_bpf_kept, NULL, aio)))
		ublk_bpf_aio_give(disk, aio);
}

/* Serves aio->bio from its file; the counter is held until that is over. */
void ublk_bpf_aio_start(struct ublk_bpf_aio *aio);
void ublk_bpf_issue_work(struct work_struct *work);
void ublk_bpf_retry_work(struct work_struct *work);
int ublk_bpf_aio_init(struct ublk_bpf_disk *disk);
int ublk_bpf_aio_cache_init(void);
void ublk_bpf_aio_cache_exit(void);

/* bpf.c */
int ublk_bpf_struct_ops_init(void);
void ublk_bpf_detach(struct ublk_bpf_disk *disk);

#endif

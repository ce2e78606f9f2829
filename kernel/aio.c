// SPDX-License-Identifier: GPL-2.0
/*
 * File I/O of hits, with the bio's own pages: direct, asynchronous, whole bios.
 *
 * Where it is started. ->submit_bio runs with current->bio_list live: what a file system submits would queue
 * up there until it returns, so one that waits for a block of its own metadata waits for ever. And the
 * submitter may be in the middle of a transaction or of reclaim. So the submitter starts the I/O only if none
 * of that can happen (may_inline()), and then with IOCB_NOWAIT, without the bio_list, and with no I/O from
 * allocations. Else, or if the file system would have slept, a worker does. A nested disk's submitter finds
 * PF_MEMALLOC_NOIO set: one file system deep at most.
 *
 * How it ends. Complete, or a full disk: the bio ends. EAGAIN of a NOWAIT attempt: the worker. Everything
 * else: the bio as a whole goes below, once, without a lookup, from a worker of its own, which may wait for
 * the daemon without stopping hits. The range counter is held until the file's I/O is over, and never while
 * the bio is below.
 */
#include <linux/blk-cgroup.h>
#include <linux/kthread.h>
#include <linux/rcupdate.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uio.h>
#include <linux/version.h>

#include "acct.h"
#include "core.h"
#include "trace.h"

#define RESERVE 64 /* hits that get memory whatever happens */
#define KEPT 16 /* free aios that each CPU keeps besides the first */

static struct kmem_cache *aio_cache;

/* In front of the slab allocator, which clears what it gives out: together a thirtieth of a hit. */
DEFINE_PER_CPU(struct ublk_bpf_aio *, ublk_bpf_kept);
static DEFINE_PER_CPU(struct ublk_bpf_aio *, kept[KEPT]);

struct ublk_bpf_aio *ublk_bpf_aio_take(struct ublk_bpf_disk *disk)
{
	struct ublk_bpf_aio *aio = NULL;
	int i;

	for (i = 0; i < KEPT && !aio; i++)
		if (this_cpu_read(kept[i]))
			aio = this_cpu_xchg(kept[i], NULL);
	return aio ?: mempool_alloc(&disk->aios, GFP_NOWAIT);
}

void ublk_bpf_aio_give(struct ublk_bpf_disk *disk, struct ublk_bpf_aio *aio)
{
	int i;

	if (mempool_is_saturated(&disk->aios))
		for (i = 0; i < KEPT; i++)
			if (!this_cpu_cmpxchg(kept[i], NULL, aio))
				return;
	mempool_free(aio, &disk->aios);
}

static void punt(struct ublk_bpf_disk *disk, struct ublk_bpf_punt *to, struct ublk_bpf_aio *aio)
{
	/* The worker may be first, and end the bio, and with it what keeps the disk: see quiesce() */
	rcu_read_lock();
	if (llist_add(&aio->node, &to->list))
		queue_work(disk->wq, &to->work);
	rcu_read_unlock();
}

static bool is_write(const struct ublk_bpf_aio *aio)
{
	return aio->call.io.op == UBLK_BPF_WRITE;
}

/* Needs the counter, as all that calls a program. */
static void tell(struct ublk_bpf_aio *aio, int result)
{
	struct ublk_bpf_ops *ops = READ_ONCE(aio->disk->ops);

	if (ops && ops->complete_io)
		ops->complete_io(&aio->call.io, result);
}

/* Ends a hit. May run in a softirq. */
static void aio_done(struct ublk_bpf_aio *aio)
{
	struct ublk_bpf_disk *disk = aio->disk;
	struct bio *bio = aio->bio;
	bool write = is_write(aio);
	u32 len = aio->call.len;
	long result = aio->result;

	if (write && aio->call.file->freezable)
		kiocb_end_write(&aio->iocb);
	if (unlikely(result == -EAGAIN) && (aio->iocb.ki_flags & IOCB_NOWAIT)) {
		ublk_bpf_count(disk, again);
		punt(disk, &disk->issue, aio);
		return;
	}
	if (result >= 0)
		result = result == len ? 0 : -EIO;
	trace_ublk_bpf_complete(&aio->call.io, result);
	tell(aio, result);
	if (unlikely(result)) {
		if (!write || (result != -ENOSPC && result != -EDQUOT)) {
			ublk_bpf_count(disk, failed);
			ublk_bpf_leave(disk, aio->count);
			punt(disk, &disk->retry, aio);
			return;
		}
		bio->bi_status = errno_to_blk_status(result);
	}
	ublk_bpf_count(disk, hits[write]);
	this_cpu_add(disk->counts->bytes[write], len);
	ublk_bpf_leave(disk, aio->count);
	ublk_bpf_acct_end(bio, aio->start);
	ublk_bpf_aio_free(disk, aio);
	bio_endio(bio);
}

static void aio_put(struct ublk_bpf_aio *aio)
{
	if (atomic_dec_and_test(&aio->refs))
		aio_done(aio);
}

static void aio_complete(struct kiocb *iocb, long result)
{
	struct ublk_bpf_aio *aio = container_of(iocb, struct ublk_bpf_aio, iocb);

	aio->result = result;
	aio_put(aio);
}

/* Starts the I/O; its end, good or bad, is aio_done()'s. False: frozen file system, nothing was done. */
static __always_inline bool aio_issue(struct ublk_bpf_aio *aio, bool nowait)
{
	struct file *file = aio->call.file->file;
	const struct bio *bio = aio->bio;
	const struct bio_vec *bv = __bvec_iter_bvec(bio->bi_io_vec, bio->bi_iter);
	bool write = is_write(aio);
	struct iov_iter iter;
	ssize_t ret;

	aio->iocb = (struct kiocb){
		.ki_filp = file,
		.ki_pos = aio->call.file_offset,
		.ki_complete = aio_complete,
		.ki_flags = IOCB_DIRECT | (nowait ? IOCB_NOWAIT : 0) | (write ? IOCB_WRITE : 0),
		.ki_ioprio = bio->bi_ioprio,
	};
	if (write && aio->call.file->freezable) {
		if (!file_start_write_trylock(file))
			return false;
		__sb_writers_release(file_inode(file)->i_sb, SB_FREEZE_WRITE);
	}
	atomic_set(&aio->refs, 2);
	iov_iter_bvec(&iter, write ? ITER_SOURCE : ITER_DEST, bv, aio->segments, aio->call.len);
	iter.iov_offset = mp_bvec_iter_offset(bio->bi_io_vec, bio->bi_iter) - bv->bv_offset;
	ret = write ? file->f_op->write_iter(&aio->iocb, &iter) : file->f_op->read_iter(&aio->iocb, &iter);
	if (ret != -EIOCBQUEUED)
		aio_complete(&aio->iocb, ret);
	aio_put(aio);
	return true;
}

static void frozen(struct ublk_bpf_aio *aio)
{
	ublk_bpf_count(aio->disk, refused);
	ublk_bpf_leave(aio->disk, aio->count);
	punt(aio->disk, &aio->disk->retry, aio);
}

/* RLIMIT_FSIZE would be the submitter's, not ours. */
static bool may_inline(const struct ublk_bpf_slot *slot, bool write)
{
	return slot->nowait && !current->journal_info &&
	       !(current->flags & (PF_MEMALLOC | PF_MEMALLOC_NOFS | PF_MEMALLOC_NOIO)) &&
	       bio_list_empty(&current->bio_list[0]) && bio_list_empty(&current->bio_list[1]) &&
	       (!write || rlimit(RLIMIT_FSIZE) == RLIM_INFINITY);
}

/*
 * The block layer of 6.12 (not that of 7.3) has a plug of its own around ->submit_bio. What the file's disk
 * would finish at once stays in it until we are back, and then iomap ends a write in a workqueue, which costs
 * half a hit. So, unless it is the submitter's, who may have more to come: no plug, as where the file itself
 * is written.
 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(7, 0, 0)
static struct blk_plug *hide_plug(void)
{
	struct blk_plug *plug = current->plug;

	if (!plug || plug->nr_ios > 1 || plug->rq_count || !list_empty(&plug->cb_list))
		return NULL;
	/* Tags that a batch has got ahead: who sleeps gives them back, but only those of current->plug. */
	if (*(struct request **)&plug->cached_rqs) /* a pointer; in later 6.12 a list that begins with it */
		return NULL;
	/* The flag says that current->plug has the time; the scheduler clears it there without a look. */
	if (current->flags & PF_BLOCK_TS) {
		plug->cur_ktime = 0;
		current->flags &= ~PF_BLOCK_TS;
	}
	current->plug = NULL;
	return plug;
}
static void show_plug(struct blk_plug *plug)
{
	if (plug)
		current->plug = plug;
}
#else
static struct blk_plug *hide_plug(void)
{
	return NULL;
}
static void show_plug(struct blk_plug *plug)
{
}
#endif

void ublk_bpf_aio_start(struct ublk_bpf_aio *aio)
{
	struct bio_list *list = current->bio_list;
	struct blk_plug *plug;
	unsigned int noio;
	bool issued;

	if (!may_inline(aio->call.file, is_write(aio))) {
		ublk_bpf_count(aio->disk, punts);
		punt(aio->disk, &aio->disk->issue, aio);
		return;
	}
	noio = memalloc_noio_save();
	plug = hide_plug();
	current->bio_list = NULL;
	issued = aio_issue(aio, true);
	current->bio_list = list;
	show_plug(plug);
	memalloc_noio_restore(noio);
	if (!issued)
		frozen(aio);
}

static struct llist_node *take(struct ublk_bpf_punt *punted)
{
	return llist_reverse_order(llist_del_all(&punted->list));
}

void ublk_bpf_issue_work(struct work_struct *work)
{
	struct ublk_bpf_disk *disk = container_of(work, struct ublk_bpf_disk, issue.work);
	unsigned int throttle = current->flags & PF_LOCAL_THROTTLE;
	unsigned int noio = memalloc_noio_save();
	struct ublk_bpf_aio *aio, *next;
	struct blk_plug plug;

	current->flags |= PF_LOCAL_THROTTLE;
	blk_start_plug(&plug);
	llist_for_each_entry_safe (aio, next, take(&disk->issue), node) {
		kthread_associate_blkcg(bio_blkcg_css(aio->bio));
		if (!aio_issue(aio, false))
			frozen(aio);
		cond_resched();
	}
	kthread_associate_blkcg(NULL);
	blk_finish_plug(&plug);
	current->flags = (current->flags & ~PF_LOCAL_THROTTLE) | throttle;
	memalloc_noio_restore(noio);
}

void ublk_bpf_retry_work(struct work_struct *work)
{
	struct ublk_bpf_disk *disk = container_of(work, struct ublk_bpf_disk, retry.work);
	struct ublk_bpf_aio *aio, *next;

	llist_for_each_entry_safe (aio, next, take(&disk->retry), node) {
		struct bio *bio = aio->bio;
		unsigned long start = aio->start;

		ublk_bpf_aio_free(disk, aio);
		bio->bi_opf &= ~REQ_NOWAIT;
		ublk_bpf_redirect(disk, bio, start);
		cond_resched();
	}
}

int ublk_bpf_aio_init(struct ublk_bpf_disk *disk)
{
	return mempool_init_slab_pool(&disk->aios, RESERVE, aio_cache);
}

int ublk_bpf_aio_cache_init(void)
{
	aio_cache = KMEM_CACHE(ublk_bpf_aio, 0);
	return aio_cache ? 0 : -ENOMEM;
}

void ublk_bpf_aio_cache_exit(void)
{
	int cpu, i;

	for_each_possible_cpu (cpu) {
		if (per_cpu(ublk_bpf_kept, cpu))
			kmem_cache_free(aio_cache, per_cpu(ublk_bpf_kept, cpu));
		for (i = 0; i < KEPT; i++)
			if (per_cpu(kept[i], cpu))
				kmem_cache_free(aio_cache, per_cpu(kept[i], cpu));
	}
	kmem_cache_destroy(aio_cache);
}

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

#include "core.h"
#include "trace.h"

#define RESERVE 64 /* hits that get memory whatever happens */

struct ublk_bpf_aio {
	struct kiocb iocb;
	struct ublk_bpf_disk *disk;
	struct bio *bio;
	unsigned long start;
	long result;
	atomic_t refs; /* its submission, its completion */
	u32 token;
	struct llist_node node;
	struct ublk_bpf_call call;
};

static struct kmem_cache *aio_cache;

static void punt(struct ublk_bpf_disk *disk, struct ublk_bpf_punt *to, struct ublk_bpf_aio *aio)
{
	if (llist_add(&aio->node, &to->list))
		queue_work(disk->wq, &to->work);
}

static bool is_write(const struct ublk_bpf_aio *aio)
{
	return aio->call.io.op == UBLK_BPF_WRITE;
}

bool ublk_bpf_aio_possible(struct ublk_bpf_disk *disk, struct ublk_bpf_call *call, struct bio *bio)
{
	struct ublk_bpf_slot *slot = smp_load_acquire(&disk->slots[call->slot]);
	struct bvec_iter iter = bio->bi_iter;
	struct bio_vec bv;
	u32 memory = 0;
	u64 size;

	if (!slot || (call->io.op == UBLK_BPF_WRITE && !slot->writable))
		return false;
	size = i_size_read(slot->inode);
	if (call->file_offset > size || call->len > size - call->file_offset ||
	    (call->file_offset | call->len) & slot->offset_mask)
		return false;
	iter.bi_size = call->len;
	__bio_for_each_bvec (bv, bio, iter, iter)
		memory |= bv.bv_offset | bv.bv_len;
	call->file = slot;
	return !(memory & slot->mem_mask);
}

/* Ends a hit. May run in a softirq. */
static void aio_done(struct ublk_bpf_aio *aio)
{
	struct ublk_bpf_disk *disk = aio->disk;
	struct bio *bio = aio->bio;
	long result = aio->result;
	bool full = is_write(aio) && (result == -ENOSPC || result == -EDQUOT);

	if (is_write(aio) && aio->call.file->freezable)
		kiocb_end_write(&aio->iocb);
	if (result == -EAGAIN && (aio->iocb.ki_flags & IOCB_NOWAIT)) {
		ublk_bpf_count(disk, again);
		punt(disk, &disk->issue, aio);
		return;
	}
	if (result >= 0)
		result = result == aio->call.len ? 0 : -EIO;
	trace_ublk_bpf_complete(&aio->call.io, result);
	ublk_bpf_tell(disk, &aio->call, result);
	if (result && !full) {
		ublk_bpf_count(disk, failed);
		ublk_bpf_leave(disk, aio->token);
		punt(disk, &disk->retry, aio);
		return;
	}
	ublk_bpf_count(disk, hits[aio->call.io.op]);
	this_cpu_add(disk->counts->bytes[aio->call.io.op], aio->call.len);
	ublk_bpf_leave(disk, aio->token);
	bio->bi_status = errno_to_blk_status(result);
	bio_end_io_acct(bio, aio->start);
	mempool_free(aio, &disk->aios);
	bio_endio(bio);
	percpu_ref_put(&disk->inflight);
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

static void set_iter(struct ublk_bpf_aio *aio, struct iov_iter *iter)
{
	struct bio *bio = aio->bio;
	const struct bio_vec *first = __bvec_iter_bvec(bio->bi_io_vec, bio->bi_iter);
	struct bvec_iter i;
	struct bio_vec bv;
	unsigned int segments = 0;

	bio_for_each_bvec (bv, bio, i)
		segments++;
	iov_iter_bvec(iter, is_write(aio) ? ITER_SOURCE : ITER_DEST, first, segments, bio->bi_iter.bi_size);
	iter->iov_offset = mp_bvec_iter_offset(bio->bi_io_vec, bio->bi_iter) - first->bv_offset;
}

/* Starts the I/O; its end, good or bad, is aio_done()'s. False: frozen file system, nothing was done. */
static bool aio_issue(struct ublk_bpf_aio *aio, bool nowait)
{
	struct file *file = aio->call.file->file;
	bool write = is_write(aio);
	struct iov_iter iter;
	ssize_t ret;

	aio->iocb = (struct kiocb){
		.ki_filp = file,
		.ki_pos = aio->call.file_offset,
		.ki_complete = aio_complete,
		.ki_flags = IOCB_DIRECT | (nowait ? IOCB_NOWAIT : 0) | (write ? IOCB_WRITE : 0),
		.ki_ioprio = aio->bio->bi_ioprio,
	};
	if (write && aio->call.file->freezable) {
		if (!file_start_write_trylock(file))
			return false;
		__sb_writers_release(file_inode(file)->i_sb, SB_FREEZE_WRITE);
	}
	atomic_set(&aio->refs, 2);
	set_iter(aio, &iter);
	ret = write ? file->f_op->write_iter(&aio->iocb, &iter) : file->f_op->read_iter(&aio->iocb, &iter);
	if (ret != -EIOCBQUEUED)
		aio_complete(&aio->iocb, ret);
	aio_put(aio);
	return true;
}

static void frozen(struct ublk_bpf_aio *aio)
{
	ublk_bpf_count(aio->disk, refused);
	ublk_bpf_leave(aio->disk, aio->token);
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

void ublk_bpf_aio_start(struct ublk_bpf_disk *disk, const struct ublk_bpf_call *call, struct bio *bio,
			unsigned long start, u32 token)
{
	struct bio_list *list = current->bio_list;
	struct ublk_bpf_aio *aio;
	unsigned int noio;
	bool issued;

	/* Not waited for: failed hits hold some while they wait for the daemon, which may wait for our
	 * counter. */
	aio = ublk_bpf_pretend_no_memory() ? NULL : mempool_alloc(&disk->aios, GFP_NOWAIT);
	if (!aio) {
		ublk_bpf_count(disk, refused);
		ublk_bpf_leave(disk, token);
		ublk_bpf_redirect(disk, bio, start);
		return;
	}
	aio->disk = disk;
	aio->bio = bio;
	aio->start = start;
	aio->token = token;
	aio->call = *call;
	if (!may_inline(aio->call.file, is_write(aio))) {
		ublk_bpf_count(disk, punts);
		punt(disk, &disk->issue, aio);
		return;
	}
	noio = memalloc_noio_save();
	current->bio_list = NULL;
	issued = aio_issue(aio, true);
	current->bio_list = list;
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

		mempool_free(aio, &disk->aios);
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
	kmem_cache_destroy(aio_cache);
}
